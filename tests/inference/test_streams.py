"""Batches computed side by side: the results of one after the other, in their order."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from vtrain.data.batches import Batch
from vtrain.inference.streams import MAX_STREAMS, choose_streams, compute_in_order
from vtrain.models.classifier import build_pretrained_classifier
from vtrain.models.zoo import find_backbone

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Four compute threads for a test, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def make_batches(count: int, *, edge: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.rand(2, 3, edge, edge, generator=generator),
            torch.zeros(2, dtype=torch.int64),
            torch.tensor([2 * number, 2 * number + 1]),
            (),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_results_come_in_order(streams: int, count: int) -> None:
    def compute(batch: Batch) -> int:
        first = int(batch.positions[0])
        time.sleep(0.004 if first % 4 == 0 else 0)  # some are overtaken
        return first

    found = list(compute_in_order(make_batches(count), compute, streams=streams))
    assert [result for _, result in found] == [2 * number for number in range(count)]
    assert [int(batch.positions[0]) for batch, _ in found] == [result for _, result in found]
    assert all(batch.inputs.numel() == 0 for batch, _ in found)


def test_streams_run_at_the_same_time_and_share_the_threads() -> None:
    together = threading.Barrier(2, timeout=20)

    def compute(_: Batch) -> int:
        together.wait()  # both are here, or this breaks
        return torch.get_num_threads()

    assert [n for _, n in compute_in_order(make_batches(4), compute, streams=2)] == [2] * 4
    assert torch.get_num_threads() == 4


def test_no_more_batches_are_asked_for_than_said() -> None:
    asked = 0

    def count() -> Iterator[Batch]:
        nonlocal asked
        for batch in make_batches(9):
            asked += 1
            yield batch

    given = compute_in_order(count(), lambda _: None, streams=2)
    next(given)
    assert asked == 3
    next(given)
    assert asked == 4
    given.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == 4


def test_error_of_a_stream_arrives_where_its_result_would() -> None:
    def compute(batch: Batch) -> int:
        if int(batch.positions[0]) == 6:
            raise ValueError("no")
        return 0

    given = compute_in_order(make_batches(9), compute, streams=2)
    assert [next(given)[1] for _ in range(3)] == [0, 0, 0]
    with pytest.raises(ValueError, match="no"):
        next(given)
    assert torch.get_num_threads() == 4


def test_error_of_the_source_comes_after_what_came_before_it() -> None:
    def read() -> Iterator[Batch]:
        yield from make_batches(3)
        raise ValueError("no more")

    given = compute_in_order(read(), lambda batch: int(batch.positions[0]), streams=2)
    assert [next(given)[1] for _ in range(3)] == [0, 2, 4]
    with pytest.raises(ValueError, match="no more"):
        next(given)


@pytest.mark.parametrize("layer", ["penultimate", "logits"])
@pytest.mark.parametrize("name", ["simple_cnn", "squeezenet1_1", "vit_b_32"])
def test_threads_that_share_a_model_get_their_own_outputs(layer: str, name: str) -> None:
    size = 32 if name == "vit_b_32" else 64
    spec = find_backbone(name)
    torch.manual_seed(0)
    model = build_pretrained_classifier(spec, image_size=size).eval()
    batches = make_batches(12, edge=size)

    @torch.inference_mode()
    def compute(batch: Batch) -> torch.Tensor:
        return model.forward_layer(batch.inputs, layer)

    alone = [result for _, result in compute_in_order(batches, compute, streams=1)]
    shared = [result for _, result in compute_in_order(batches, compute, streams=4)]
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one, other)
    # The last layer of a new ViT is zero.
    assert torch.equal(alone[0], alone[1]) == ((name, layer) == ("vit_b_32", "logits"))


def test_streams_are_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.inference.streams.count_cores", lambda: 4)
    assert choose_streams(CPU) == 4 == MAX_STREAMS
    found = {}
    monkeypatch.setattr("vtrain.inference.streams.count_cores", lambda: 16)
    for threads in (1, 2, 3, 5, 6, 8, 10, 16):
        torch.set_num_threads(threads)
        found[threads] = choose_streams(CPU)
    assert found == {1: 1, 2: 2, 3: 3, 5: 4, 6: 3, 8: 4, 10: 2, 16: 4}
    assert choose_streams(torch.device("cuda", 0)) == 1
    monkeypatch.setattr("vtrain.inference.streams.count_cores", lambda: 8)
    torch.set_num_threads(9)  # more than the cores that this process is bound to
    assert choose_streams(CPU) == 1
