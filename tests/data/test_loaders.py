"""Batches: the same bits for any number of workers, every input accounted for, no hangs."""

import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from tests.helpers.told import Told
from vtrain.config.preprocessing import Preprocessing
from vtrain.data import loaders
from vtrain.data.batches import SAMPLE_STREAM, Batch, prefetch_to_device
from vtrain.data.folders import scan_labelled
from vtrain.data.image_sets import LabelledImages, PackedPaths
from vtrain.data.loaders import ImageLoader, build_eval_loader, build_train_loader
from vtrain.data.sampler import ORDER_STREAM, EpochBatchSampler
from vtrain.data.transforms import EvalTransform, TrainTransform
from vtrain.data.workers import resolve_workers, worker_troubles
from vtrain.errors import ResourceError
from vtrain.runs.plan import MODEL_STREAM
from vtrain.system.machine import mix_seed
from vtrain.system.reporter import SILENT
from vtrain.training.step import STEP_STREAM

SMALL = Preprocessing(resize=18, crop=16)
COUNT = 22
T = TypeVar("T")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """22 random 24 × 20 pixel images in two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        folder = root / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return scan_labelled(root)


def build_sampler(
    *, num_images: int = COUNT, batch_size: int = 4, seed: int = 0
) -> EpochBatchSampler:
    return EpochBatchSampler(num_images=num_images, batch_size=batch_size, seed=seed)


def train_batches(
    images: LabelledImages,
    *,
    workers: int,
    epoch: int = 0,
    start_batch: int = 0,
    seed: int = 0,
) -> list[Batch]:
    sampler = build_sampler(seed=seed)
    transform = TrainTransform(SMALL, preset="trivial", erasing=0.5)
    loader = build_train_loader(images, transform, sampler=sampler, workers=workers, seed=seed)
    sampler.set_epoch(epoch, start_batch=start_batch)
    return list(loader)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.positions, other.positions)
        assert one.failures == other.failures


# --- sampler


def flatten(batches: Iterable[list[T]]) -> list[T]:
    return list(chain.from_iterable(batches))


def indices_of(sampler: EpochBatchSampler, epoch: int, start_batch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch, start_batch=start_batch)
    return [[index for index, _ in batch] for batch in sampler]


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    sampler = build_sampler()
    batches = indices_of(sampler, 0)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    assert len(sampler) == 6
    assert sorted(flatten(batches)) == list(range(COUNT))
    assert indices_of(sampler, 0) == batches
    assert indices_of(sampler, 1) != batches
    assert indices_of(build_sampler(seed=1), 0) != batches


@pytest.mark.parametrize(
    ("num_images", "batch_size", "expected"),
    [
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (1, 4, [1]),
        (3, 4, [3]),
        (3, 1, [1, 1, 1]),
        (0, 4, []),
    ],
)
def test_a_last_batch_of_one_joins_the_one_before(
    num_images: int, batch_size: int, expected: list[int]
) -> None:
    sampler = build_sampler(num_images=num_images, batch_size=batch_size)
    assert [len(batch) for batch in sampler] == expected
    assert sampler.batch_sizes() == expected
    assert len(sampler) == len(expected)


@pytest.mark.parametrize("num_images", [9, 16, 17, 18, 19, 22])
def test_ranks_share_every_batch(num_images: int) -> None:
    whole = build_sampler(num_images=num_images, batch_size=8)
    parts = [
        EpochBatchSampler(num_images=num_images, batch_size=8, seed=0, rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert len(parts[0]) == len(parts[1])
    batches = [list(part) for part in parts]
    joined = [first + second for first, second in zip(*batches, strict=True)]
    assert flatten(joined) == flatten(whole)
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(*batches, strict=True))
    assert min(len(batch) for part in batches for batch in part) >= 1


def test_sample_seeds_differ_between_samples_epochs_and_runs() -> None:
    seeds: Counter[int] = Counter()
    for seed in range(3):
        sampler = build_sampler(seed=seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            seeds.update(value or 0 for batch in sampler for _, value in batch)
    assert len(seeds) == 9 * COUNT
    # Torch's CPU generator takes the low 32 bits only.
    assert len({value % 2**32 for value in seeds}) == 9 * COUNT
    assert 0 <= min(seeds) < max(seeds) < 2**63


def test_order_samples_steps_and_model_draw_from_different_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[int, ...]] = []

    def record(*parts: int) -> int:
        drawn.append(parts)
        return mix_seed(*parts)

    monkeypatch.setattr("vtrain.data.sampler.mix_seed", record)
    indices_of(build_sampler(seed=7), 0)
    streams = {parts[1] for parts in drawn}
    assert {parts[0] for parts in drawn} == {7}
    assert streams == {ORDER_STREAM, SAMPLE_STREAM}
    assert len({*streams, MODEL_STREAM, STEP_STREAM}) == 4


def test_balancing_weights_draw_with_replacement() -> None:
    weights = [1 / 18] * 18 + [1 / 2] * 2  # 18 images of one class, 2 of the other
    sampler = EpochBatchSampler(num_images=20, batch_size=5, seed=0, weights=weights)
    drawn: Counter[bool] = Counter()
    for epoch in range(50):
        batches = indices_of(sampler, epoch)
        assert [len(batch) for batch in batches] == [5, 5, 5, 5]
        drawn.update(index >= 18 for batch in batches for index in batch)
    assert 0.45 < drawn[True] / 1000 < 0.55
    assert indices_of(sampler, 3) == indices_of(sampler, 3)


@pytest.mark.parametrize("start_batch", [1, 5, 6])
def test_start_batch_gives_the_rest_of_the_same_epoch(start_batch: int) -> None:
    sampler = build_sampler()
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, start_batch=start_batch)
    assert list(sampler) == whole[start_batch:]
    assert len(sampler) == 6


# --- training batches


def test_batches_are_uint8_channels_last_and_match_their_files(images: LabelledImages) -> None:
    sampler = build_sampler()
    loader = build_train_loader(images, EvalTransform(SMALL), sampler=sampler, workers=0, seed=0)
    seen = []
    for batch in loader:
        assert batch.inputs.dtype == torch.uint8
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.positions.dtype == torch.int64
        assert len(batch) == len(batch.inputs)
        for image, label, position in zip(batch.inputs, batch.labels, batch.positions, strict=True):
            with Image.open(images.paths[position]) as opened:
                assert torch.equal(image, EvalTransform(SMALL)(opened.convert("RGB")))
            assert int(label) == images.labels[position]
            seen.append(int(position))
    assert sorted(seen) == list(range(COUNT))


def test_workers_do_not_change_a_bit(images: LabelledImages) -> None:
    alone = train_batches(images, workers=0, epoch=1)
    assert_same(train_batches(images, workers=2, epoch=1), alone)
    assert_same(train_batches(images, workers=1, epoch=1), alone)
    other = train_batches(images, workers=0, epoch=2)
    assert not all(torch.equal(a.inputs, b.inputs) for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_in_the_middle_gives_the_rest_of_the_epoch(
    images: LabelledImages, workers: int
) -> None:
    whole = train_batches(images, workers=0, epoch=3)
    rest = train_batches(images, workers=workers, epoch=3, start_batch=2)
    assert_same(rest, whole[2:])


def test_workers_stay_for_the_next_epoch_and_follow_the_sampler(images: LabelledImages) -> None:
    sampler = build_sampler()
    transform = TrainTransform(SMALL, preset="light")
    loader = build_train_loader(images, transform, sampler=sampler, workers=2, seed=0)
    alone = build_train_loader(images, transform, sampler=sampler, workers=0, seed=0)
    for epoch, start_batch in [(0, 0), (1, 2), (1, 0), (5, 0)]:
        sampler.set_epoch(epoch, start_batch=start_batch)
        batches = list(loader)
        assert_same(batches, list(alone))
    sampler.set_epoch(7)
    for _ in loader:  # left in the middle
        break
    assert_same(list(loader), list(alone))


def test_loading_leaves_torchs_generator_alone(images: LabelledImages) -> None:
    for workers in (0, 2):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        train_batches(images, workers=workers)
        assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_does_not_reach_the_samples(images: LabelledImages) -> None:
    torch.manual_seed(1)
    first = train_batches(images, workers=0)
    torch.manual_seed(2)
    assert_same(train_batches(images, workers=0), first)


@pytest.fixture
def spoilt(tmp_path: Path) -> LabelledImages:
    """Six images in two classes, of which the second and the last cannot be read."""
    for number in range(6):
        folder = tmp_path / "ab"[number // 3]
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    (tmp_path / "b" / "5.png").write_bytes(b"")
    return scan_labelled(tmp_path)


FAILURES = ((1, "is not an image in a supported format"), (5, "is an empty file"))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_records_in_training(spoilt: LabelledImages, workers: int) -> None:
    sampler = build_sampler(num_images=6, batch_size=3)
    loader = build_train_loader(
        spoilt, EvalTransform(SMALL), sampler=sampler, workers=workers, seed=0
    )
    batches = list(loader)
    assert sorted(failure for batch in batches for failure in batch.failures) == list(FAILURES)
    positions = [int(p) for batch in batches for p in batch.positions]
    assert sorted(positions) == [0, 2, 3, 4]
    for batch in batches:
        assert len(batch.inputs) == len(batch.labels) == 3 - len(batch.failures)
        assert batch.labels.tolist() == [spoilt.labels[p] for p in batch.positions]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_accounts_for_every_input_in_order(spoilt: LabelledImages, workers: int) -> None:
    loader = build_eval_loader(
        spoilt.paths, spoilt.labels, EvalTransform(SMALL), batch_size=2, workers=workers
    )
    for _ in range(2):  # once more: validation runs every epoch
        batches = list(loader)
        assert [batch.positions.tolist() for batch in batches] == [[0], [2, 3], [4]]
        assert [batch.failures for batch in batches] == [FAILURES[:1], (), FAILURES[1:]]
        assert [batch.labels.tolist() for batch in batches] == [[0], [0, 1], [1]]


def test_a_batch_without_a_readable_image_is_empty(tmp_path: Path) -> None:
    paths = [tmp_path / "none.png"]
    (batch,) = build_eval_loader(paths, None, EvalTransform(SMALL), batch_size=4, workers=0)
    assert batch.inputs.shape == (0, 3, 16, 16)
    assert len(batch) == 0
    assert batch.labels.dtype == batch.positions.dtype == torch.int64
    assert batch.failures == ((0, "does not exist"),)
    assert list(build_eval_loader([], None, EvalTransform(SMALL), batch_size=4, workers=0)) == []


def test_labels_may_be_unknown(images: LabelledImages) -> None:
    loader = build_eval_loader(images.paths, None, EvalTransform(SMALL), batch_size=5, workers=0)
    assert {int(label) for batch in loader for label in batch.labels} == {-1}


def test_names_that_are_not_utf8_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xe4.png")
    try:
        Image.new("RGB", (20, 20)).save(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (batch,) = build_eval_loader([path], None, EvalTransform(SMALL), batch_size=4, workers=0)
    assert batch.failures == ()


def see_through(path: Path) -> Path:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(path)
    return path


def test_transparent_images_get_the_background_of_the_preprocessing(tmp_path: Path) -> None:
    path, colour = see_through(tmp_path / "a.png"), (10, 200, 30)
    preprocessing = Preprocessing(18, 16, background=colour)
    (batch,) = build_eval_loader(
        [path], None, EvalTransform(preprocessing), batch_size=1, workers=0
    )
    assert batch.inputs[0, :, 8, 8].tolist() == list(colour)
    images = LabelledImages(tmp_path, ("a",), PackedPaths(tmp_path, [path.name]), (0,))
    transform = TrainTransform(preprocessing, preset="light")
    sampler = build_sampler(num_images=1)
    (batch,) = build_train_loader(images, transform, sampler=sampler, workers=0, seed=0)
    assert batch.inputs[0, :, 8, 8].tolist() == list(colour)


def test_memory_is_pinned_only_when_asked_for(
    images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for pin in (False, True):
        train = build_train_loader(
            images,
            EvalTransform(SMALL),
            sampler=build_sampler(),
            workers=0,
            seed=0,
            pin_memory=pin,
        )
        evaluation = build_eval_loader(
            images.paths, None, EvalTransform(SMALL), batch_size=4, workers=0, pin_memory=pin
        )
        assert train._build().pin_memory is evaluation._build().pin_memory is pin
    default = build_eval_loader([], None, EvalTransform(SMALL), batch_size=4, workers=0)
    assert not default._build().pin_memory


def test_pinning_a_batch_pins_images_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2), torch.arange(2))
    copy = batch.pin_memory()
    assert [id(each) for each in pinned] == [id(batch.inputs), id(batch.labels)]
    assert_same([copy], [batch])


class UnpicklableError(Exception):
    """Cannot be rebuilt by pickle: its constructor takes other arguments than it passes on."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("broken transform")


class BrokenTransform(EvalTransform):
    """Fails on every image, in a way that a worker could not report."""

    def __call__(self, image: Image.Image) -> Tensor:
        raise UnpicklableError(1, 2)


class DeadlyTransform(EvalTransform):
    """Kills the process that runs it, at one image or, without `only`, at every one.

    With `once`, a path, only where that does not exist yet.
    """

    def __init__(self, *, only: int | None = None, once: Path | None = None) -> None:
        super().__init__(SMALL)
        self._only, self._once = only, once

    def __call__(self, image: Image.Image) -> Tensor:
        if self._only in (None, image.width) and not (self._once and self._once.exists()):
            if self._once is not None:
                self._once.touch()
            self.fail()
        return super().__call__(image)

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class HangingTransform(DeadlyTransform):
    """Does not come back."""

    def fail(self) -> None:
        time.sleep(600)


@pytest.mark.parametrize("workers", [0, 1])
def test_unpicklable_exceptions_are_records(images: LabelledImages, workers: int) -> None:
    loader = build_eval_loader(
        images.paths[:3], None, BrokenTransform(SMALL), batch_size=4, workers=workers
    )
    (batch,) = loader
    reason = "cannot be transformed (UnpicklableError: broken transform)"
    assert batch.failures == ((0, reason), (1, reason), (2, reason))


def load_with_trouble(
    images: LabelledImages, transform: EvalTransform, *, timeout: float = 20
) -> tuple[list[Batch], list[str]]:
    """Batches of four, and what was said meanwhile."""
    said: list[str] = []
    loader = build_eval_loader(
        images.paths, images.labels, transform, batch_size=4, workers=2, reporter=Told(said)
    )
    with patch.object(loaders, "WORKER_TIMEOUT_S", timeout):
        return list(loader), said


def undisturbed(images: LabelledImages) -> list[Batch]:
    transform = EvalTransform(SMALL)
    loader = build_eval_loader(images.paths, images.labels, transform, batch_size=4, workers=0)
    return list(loader)


@pytest.fixture
def marked(images: LabelledImages, tmp_path: Path) -> LabelledImages:
    """A copy of the images, of which number 5 alone is 77 pixels wide."""
    shutil.copytree(images.root, tmp_path / "marked")
    copied = scan_labelled(tmp_path / "marked")
    Image.new("RGB", (77, 20)).save(copied.paths[5])
    return copied


@pytest.mark.parametrize("kind", [DeadlyTransform, HangingTransform])
def test_what_a_lost_worker_was_reading_is_read_again(
    images: LabelledImages, tmp_path: Path, kind: type[DeadlyTransform]
) -> None:
    batches, said = load_with_trouble(images, kind(once=tmp_path / "happened"), timeout=1.5)
    assert_same(batches, undisturbed(images))
    assert len(said) == 1
    assert said[0].startswith("a loader worker ")
    assert said[0].endswith("what it was asked for is read again")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (DeadlyTransform, "the process that decoded it died"),
        (HangingTransform, "reading it takes more than 1.5 s"),
    ],
)
def test_a_file_that_is_the_end_of_its_worker_is_a_failure(
    marked: LabelledImages, kind: type[DeadlyTransform], reason: str
) -> None:
    batches, said = load_with_trouble(marked, kind(only=77), timeout=1.5)
    assert [failure for batch in batches for failure in batch.failures] == [(5, reason)]
    positions = [position for batch in batches for position in batch.positions.tolist()]
    assert positions == [each for each in range(COUNT) if each != 5]
    assert len(said) == (2 if kind is DeadlyTransform else 1)


def test_a_lost_worker_changes_no_batch_of_training(images: LabelledImages, tmp_path: Path) -> None:
    alone = train_batches(images, workers=0, epoch=1)
    sampler = build_sampler()
    sampler.set_epoch(1)
    loader = build_train_loader(
        images,
        DeadlyTrain(tmp_path / "happened"),
        sampler=sampler,
        workers=2,
        seed=0,
        reporter=SILENT,
    )
    assert_same(list(loader), alone)
    sampler.set_epoch(2)
    assert_same(list(loader), train_batches(images, workers=0, epoch=2))


class DeadlyTrain(TrainTransform):
    """Kills its process once."""

    def __init__(self, marker: Path) -> None:
        super().__init__(SMALL, preset="trivial", erasing=0.5)
        self._marker = marker

    def __call__(self, image: Image.Image) -> Tensor:
        transformed = super().__call__(image)
        if not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return transformed


def test_workers_that_die_for_no_file_are_an_error_with_a_way_out(
    images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.data.loaders.run_apart", lambda call, *, timeout: None)
    with pytest.raises(ResourceError, match="a loader worker died") as caught:
        load_with_trouble(images, DeadlyTransform())
    assert "data.workers" in str(caught.value.hint)


def test_a_worker_that_dies_interrupts_nothing_but_the_wait_for_it(
    images: LabelledImages, tmp_path: Path
) -> None:
    transform = DeadlyTransform(once=tmp_path / "happened")
    loader = build_eval_loader(
        images.paths, None, transform, batch_size=1, workers=1, reporter=SILENT
    )
    transform._once.touch()  # type: ignore[union-attr]
    batches = iter(loader)
    next(batches)
    (worker,) = worker_processes(loader)
    os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while worker.is_alive():  # torch's handler of SIGCHLD would raise here
        assert time.monotonic() < deadline
    assert len(list(batches)) == COUNT - 1


def worker_processes(loader: ImageLoader) -> list[Any]:
    """The processes that a loader has started."""
    return list(loader._processes)


def test_signals_to_the_whole_group_do_not_reach_the_workers(images: LabelledImages) -> None:
    loader = build_eval_loader(images.paths, None, EvalTransform(SMALL), batch_size=1, workers=1)
    batches: Iterator[Batch] = iter(loader)
    next(batches)
    (pid,) = [process.pid for process in worker_processes(loader)]
    # From a child of ours: the worker obeys a SIGTERM from its parent alone.
    if os.fork() == 0:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(pid, number)
        os._exit(0)
    os.wait()
    assert len(list(batches)) == COUNT - 1


def test_a_sigterm_from_the_parent_ends_a_worker(images: LabelledImages) -> None:
    loader = build_eval_loader(images.paths, None, EvalTransform(SMALL), batch_size=1, workers=1)
    batches = iter(loader)
    next(batches)
    (process,) = worker_processes(loader)
    process.terminate()
    process.join(5)
    assert process.exitcode == 0


class RudeTransform(EvalTransform):
    """Asks for a file descriptor as the parent does, and hangs up, as on Ctrl-C."""

    def __call__(self, image: Image.Image) -> Tensor:
        descriptor = resource_sharer.DupFd(0)
        address = descriptor._id[0]  # type: ignore[attr-defined]
        Client(address, authkey=multiprocessing.current_process().authkey).close()
        os.close(descriptor.detach())  # answered after the one that hung up
        if self.crop == 17:
            sys.excepthook(ValueError, ValueError("a bug"), None)
        return super().__call__(image)


@pytest.mark.parametrize(("crop", "expected"), [(16, ""), (17, "ValueError: a bug\n")])
def test_a_worker_does_not_complain_about_a_parent_that_hangs_up(
    images: LabelledImages, capfd: pytest.CaptureFixture[str], crop: int, expected: str
) -> None:
    transform = RudeTransform(Preprocessing(18, crop))
    loader = build_eval_loader(images.paths[:1], None, transform, batch_size=1, workers=1)
    assert [batch.failures for batch in loader] == [()]
    assert capfd.readouterr().err == expected


def test_spawned_workers_give_the_same_batches(images: LabelledImages) -> None:
    transform = TrainTransform(SMALL, preset="light")
    sampler = build_sampler()
    loader = build_train_loader(images, transform, sampler=sampler, workers=1, seed=0)
    loader._loader = loader._build()
    loader._loader.multiprocessing_context = "spawn"
    alone = build_train_loader(images, transform, sampler=sampler, workers=0, seed=0)
    assert_same(list(loader), list(alone))


def test_datasets_and_batches_survive_pickling(images: LabelledImages) -> None:
    transform = TrainTransform(SMALL, preset="rand", erasing=0.2)
    loader = build_train_loader(images, transform, sampler=build_sampler(), workers=0, seed=0)
    keys = [(3, 11), (5, 12)]
    batch = loader._dataset.__getitems__(keys)
    copy = pickle.loads(pickle.dumps(loader._dataset)).__getitems__(keys)
    assert_same([copy], [batch])
    assert_same([pickle.loads(pickle.dumps(batch))], [batch])


@pytest.mark.parametrize(
    ("value", "num_images", "cores", "expected"),
    [
        (3, 10, 2, 3),
        (0, 10_000, 2, 0),
        ("auto", 64, 16, 0),
        ("auto", 65, 2, 2),
        ("auto", 10_000, 1, 1),
        ("auto", 10_000, 64, 8),
    ],
)
def test_workers_are_resolved(
    monkeypatch: pytest.MonkeyPatch, value: int, num_images: int, cores: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert resolve_workers(value, num_images) == expected


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file <x>"), "shared memory"),
        (
            RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error"),
            "shared memory",
        ),
        (OSError(24, "Too many open files"), "no more files"),
        (RuntimeError("Too many open files. Communication with the workers is"), "no more files"),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1>: Too many open files (24)"
            ),
            "no more files",
        ),
        (RuntimeError("received 0 items of ancdata"), "no more files"),
        (RuntimeError("unable to resize file </torch_1_2> to the right size"), "shared memory"),
        (RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"), "a loader worker died"),
        (ConnectionRefusedError(111, "Connection refused"), "a loader worker died"),
        (EOFError(), r"a loader worker died \(EOFError\)"),
        (ConnectionResetError(104, "Connection reset by peer"), "a loader worker died"),
    ],
)
def test_what_torch_raises_about_workers_is_translated(
    images: LabelledImages, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: str
) -> None:
    def fail(_: object) -> Iterator[Batch]:
        raise failure

    loader = build_eval_loader(images.paths, None, EvalTransform(SMALL), batch_size=4, workers=0)
    monkeypatch.setattr(DataLoader, "__iter__", fail)
    with pytest.raises(ResourceError, match=expected) as caught:
        list(loader)
    assert caught.value.hint


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("a bug"),
        RuntimeError("CUDA error: too many resources: out of shared memory for this kernel"),
        RuntimeError("Caught ValueError in DataLoader worker process 0."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(28, "No space left on device", "/dev/shm/runs/last.ckpt"),
        FileNotFoundError(2, "No such file or directory", "/dev/shm/</torch_1/Bus error.jpg"),
        PermissionError(13, "Permission denied", "/data/DataLoader worker (pid 1)/a.jpg"),
        BrokenPipeError(32, "Broken pipe"),
        TimeoutError(110, "Connection timed out"),
    ],
)
def test_other_errors_are_left_alone(failure: Exception) -> None:
    with pytest.raises(type(failure)) as caught, worker_troubles():
        raise failure
    assert caught.value is failure


def test_prefetching_on_the_cpu_changes_nothing() -> None:
    batches = [Batch(torch.zeros(2, 3, 4, 4), torch.arange(2), torch.arange(2)) for _ in range(3)]
    found = list(prefetch_to_device(batches, torch.device("cpu")))
    assert [id(batch) for batch in found] == [id(batch) for batch in batches]


def test_processes_of_a_job_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.data.workers.count_cores", lambda: 12)
    assert resolve_workers("auto", 1000) == 8
    assert resolve_workers("auto", 1000, processes=4) == 3
    assert resolve_workers("auto", 1000, processes=100) == 1
    assert resolve_workers("auto", 10, processes=4) == 0
    assert resolve_workers(5, 1000, processes=4) == 5
