"""Features computed once: what is counted as computed, who waits, and what may go wrong."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import CPU, break_image, build_tiny_model, draw_image
from vtrain.config.preprocessing import Preprocessing
from vtrain.data.transforms import EvalTransform, TrainTransform
from vtrain.errors import DataError
from vtrain.inference import feature_store
from vtrain.inference.feature_cache import (
    FeatureCache,
    FrozenPart,
    Views,
    build_frozen_part,
    describe_size,
)
from vtrain.models.classifier import PENULTIMATE
from vtrain.models.freezing import FROZEN, ParamRule, apply_freeze
from vtrain.models.precision import Precision
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import SILENT, Interruptible, Progress, Reporter
from vtrain.system.tensor_files import save_tensors

MODEL = build_tiny_model(["ant", "bee"])
PREPROCESSING = dataclasses.replace(MODEL.preprocessing, resize=32, crop=32)
EVAL = Views(EvalTransform(PREPROCESSING))
apply_freeze(MODEL.classifier, [ParamRule("head", 1.0), FROZEN])


def build_part(
    boundary: str = PENULTIMATE,
    *,
    precision: str = "fp32",
    preprocessing: Preprocessing = PREPROCESSING,
) -> FrozenPart:
    return build_frozen_part(
        MODEL.classifier,
        boundary,
        preprocessing=preprocessing,
        precision=Precision(precision, CPU),
        device=CPU,
    )


@dataclass
class Bench(Reporter):
    """A cache below `root` that remembers what it said, and how many images were computed."""

    root: Path
    batch_size: int = 3
    limit_gb: float = 1.0
    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    computed: int = 0
    on_batch: Callable[[], None] = lambda: None
    part: FrozenPart = field(default_factory=build_part)
    processes: Processes = ALONE

    def provide(self, paths: list[Path], views: Views = EVAL) -> Tensor | None:
        """All activations `[N, K, ...]`."""
        compute = self.part.compute

        def count(images: Tensor) -> Tensor:
            self.computed += len(images)
            return compute(images)

        part = dataclasses.replace(self.part, compute=count)
        rows = self.cache().provide(part, paths, views)
        if rows is None:
            return None
        assert len(rows) == len(paths)
        every = range(len(paths))
        columns = [rows.gather(every, [view] * len(paths)) for view in range(rows.views)]
        return torch.stack(columns, dim=1)

    def cache(self) -> FeatureCache:
        return FeatureCache(
            root=self.root,
            limit_gb=self.limit_gb,
            batch_size=self.batch_size,
            workers=0,
            reporter=self,
            processes=self.processes,
        )

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> AbstractContextManager[Progress]:
        return Interruptible(SILENT, self.on_batch).progress(total, label)

    def count_new(self, paths: list[Path], views: Views = EVAL) -> int:
        """How many images are computed for these paths now."""
        before = self.computed
        assert self.provide(paths, views) is not None
        return self.computed - before

    def stores(self) -> list[Path]:
        return sorted(path for path in self.root.iterdir() if path.is_dir())


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Seven images."""
    return [draw_image(tmp_path / f"images/{number}.png", seed=number) for number in range(7)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "features")


def compute_directly(paths: list[Path], part: FrozenPart) -> Tensor:
    from vtrain.data.images import read_image

    edge, background = PREPROCESSING.resize, PREPROCESSING.background
    images = [read_image(path, min_edge=edge, background=background) for path in paths]
    transform = EvalTransform(PREPROCESSING)
    return part.compute(torch.stack([transform(image) for image in images])).cpu()


# --- what is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("boundary", [PENULTIMATE, "block1"])
def test_rows_are_what_the_frozen_part_gives(
    bench: Bench, paths: list[Path], boundary: str, precision: str
) -> None:
    bench.part = build_part(boundary, precision=precision)
    got = bench.provide(paths)
    assert got is not None
    expected = compute_directly(paths, bench.part)
    assert got.dtype == expected.dtype
    assert torch.allclose(
        got[:, 0], expected, rtol=1e-2 if precision == "bf16" else 1e-5, atol=1e-6
    )
    again = Bench(bench.root, part=bench.part)
    rows = again.provide(paths)
    assert rows is not None
    assert torch.equal(rows, got)
    assert (bench.computed, again.computed) == (7, 0)
    assert bench.part.row_bytes == got[0].nbytes


def test_only_new_images_are_computed(bench: Bench, paths: list[Path], tmp_path: Path) -> None:
    assert bench.count_new(paths) == 7
    more = [
        draw_image(tmp_path / f"images/new-{number}.png", seed=50 + number) for number in (0, 1)
    ]
    assert bench.count_new([more[1], *paths, more[0]]) == 2
    assert bench.count_new(paths[2:5]) == 0
    got = bench.provide([paths[6], more[0], paths[0]])
    assert got is not None
    expected = compute_directly([paths[6], more[0], paths[0]], bench.part)
    assert torch.allclose(got[:, 0], expected, atol=1e-6)
    paths[1].unlink()
    assert bench.count_new([paths[0], *paths[2:]]) == 0


def test_a_changed_image_is_never_served(bench: Bench, paths: list[Path]) -> None:
    assert bench.count_new(paths) == 7
    before = paths[2].stat()
    # Raw pixels, so that another image has the same size.
    raw = [path.with_suffix(".bmp") for path in paths[:2]]
    for number, path in enumerate(raw):
        draw_image(path, seed=number)
    old = bench.provide([raw[0]])
    status = raw[0].stat()
    raw[0].write_bytes(raw[1].read_bytes())
    os.utime(raw[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert raw[0].stat().st_size == status.st_size
    assert raw[0].stat().st_mtime_ns == status.st_mtime_ns
    new = bench.provide([raw[0]])
    assert old is not None
    assert new is not None
    assert not torch.equal(new, old)
    assert torch.allclose(new[:, 0], compute_directly([raw[1]], bench.part), atol=1e-6)
    assert paths[2].stat() == before
    assert bench.count_new(paths) == 0


def test_whatever_the_rows_depend_on_has_its_own_store(bench: Bench, paths: list[Path]) -> None:
    assert bench.count_new(paths) == 7
    changes = [
        build_part("block2"),
        build_part(precision="bf16"),
        build_part(preprocessing=dataclasses.replace(PREPROCESSING, resize=40)),
    ]
    weight = next(MODEL.classifier.backbone.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1e-3
        changes.append(build_part())
        weight.copy_(kept)
    for part in changes:
        bench.part = part
        assert bench.count_new(paths) == 7
    bench.part = build_part()
    assert bench.count_new(paths) == 0
    assert len(bench.stores()) == 5


def test_weights_above_the_boundary_do_not_count() -> None:
    facts = build_part("block1").facts
    with torch.no_grad():
        head, above = MODEL.classifier.head[-1].bias, MODEL.classifier.backbone.block3  # type: ignore[index]
        for tensor in (head, next(above.parameters())):  # type: ignore[union-attr]
            kept = tensor.clone()
            tensor += 1.0
            assert build_part("block1").facts == facts
            tensor.copy_(kept)


def test_sizes_are_said_for_people() -> None:
    part = build_part()
    assert part.row_bytes % 4 == 0
    assert describe_size(part, 1000).startswith("1,000 features, ")
    assert describe_size(build_part("block1"), 7).startswith("7 activations of block1, ")


def test_an_unreadable_image_is_named(bench: Bench, paths: list[Path]) -> None:
    break_image(paths[4])
    with pytest.raises(DataError, match=r"4\.png was readable before training"):
        bench.provide(paths)
    paths[4].unlink()
    with pytest.raises(DataError, match=r"4\.png was readable before training"):
        bench.provide(paths)
    assert bench.count_new([*paths[:4], *paths[5:]]) == 3  # the first batch is there


# --- random views --------------------------------------------------------------------------------


def light(count: int, seed: int = 0) -> Views:
    return Views(TrainTransform(PREPROCESSING, preset="light"), "light", count, seed)


def test_random_views_differ_and_are_the_same_for_a_copy_of_the_images(
    bench: Bench, paths: list[Path], tmp_path: Path
) -> None:
    views = bench.provide(paths, light(3))
    assert views is not None
    assert views.shape[:2] == (7, 3)
    flat = views.flatten(2)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (flat[:, first] != flat[:, second]).any(dim=1).all()
    assert bench.count_new(paths, light(3)) == 0
    assert bench.count_new(paths, light(5)) == 14  # the first three are there
    shutil.copytree(tmp_path / "images", tmp_path / "copy/images")
    copies = [tmp_path / "copy/images" / path.name for path in paths]
    other = Bench(tmp_path / "other", batch_size=2).provide(copies[::-1], light(3))
    assert other is not None
    assert torch.allclose(other.flip(0), views, atol=1e-6)
    seeded = bench.provide(paths, light(3, seed=1))
    assert seeded is not None
    assert not torch.allclose(seeded, views, atol=1e-3)
    plain = bench.provide(paths)
    assert plain is not None
    assert plain.shape[1] == 1


# --- what stops a build --------------------------------------------------------------------------


class StopError(Exception):
    """As the signal's."""


def stop_after(calls: int) -> Callable[[], None]:
    seen = []

    def on_batch() -> None:
        seen.append(1)
        if len(seen) == calls:
            raise StopError

    return on_batch


def test_a_stopped_build_keeps_what_it_has(bench: Bench, paths: list[Path]) -> None:
    bench.on_batch = stop_after(2)
    with pytest.raises(StopError):
        bench.provide(paths)
    assert bench.computed == 6
    assert bench.warned == []
    after = Bench(bench.root)
    got = after.provide(paths)
    assert after.computed == 1
    assert got is not None
    assert torch.allclose(got[:, 0], compute_directly(paths, bench.part), atol=1e-6)


def test_a_full_disk_does_not_hide_why_a_build_stops(
    bench: Bench, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch)
    bench.on_batch = stop_after(2)
    with pytest.raises(StopError):
        bench.provide(paths)


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(feature_store, "save_tensors", fail)


def test_a_full_disk_is_a_warning(
    bench: Bench, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch)
        assert bench.provide(paths) is None
    (warning,) = bench.warned
    assert "No space left on device" in warning
    assert "training without it: the same result, slower" in warning
    assert bench.count_new(paths) == 7


def test_a_folder_that_cannot_be_made_is_a_warning(bench: Bench, paths: list[Path]) -> None:
    bench.root.write_text("a file")
    assert bench.provide(paths) is None
    assert bench.computed == 0
    assert "training without it: the same result, slower" in bench.warned[0]


def test_a_block_that_is_lost_while_it_is_built_is_never_guessed(
    bench: Bench, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(path: Path, *rest: Any) -> None:
        save_tensors(path, *rest)
        path.unlink()

    monkeypatch.setattr(feature_store, "save_tensors", lose)
    assert bench.provide(paths) is None
    assert "7 rows that were written are not in" in bench.warned[0]


# --- several processes ---------------------------------------------------------------------------


@contextmanager
def start_builder(root: Path, paths: list[Path], pause: float) -> Iterator[tuple[Any, Any]]:
    """A process that builds a store in batches of two, and a pipe.

    The pipe gives None after each batch, for which the process then rests `pause` seconds, and in
    the end how many images were computed.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def on_batch() -> None:
        sender.send(None)
        time.sleep(pause)

    def build() -> None:
        bench = Bench(root, batch_size=2, on_batch=on_batch)
        bench.provide(paths)
        sender.send(bench.computed)

    process = context.Process(target=build)
    process.start()
    try:
        yield process, receiver
    finally:
        process.kill()
        process.join()


def test_two_processes_compute_nothing_twice(
    bench: Bench, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "_LOCK_SECONDS", 0.02)
    with start_builder(bench.root, paths, 0.1) as (_, pipe):
        assert pipe.recv() is None  # it builds
        got = bench.provide(paths)
        counts = [pipe.recv() for _ in range(4)]
    assert counts == [None, None, None, 7]
    assert bench.computed == 0
    assert bench.said == ["waiting for another run that computes the same features"]
    assert got is not None
    assert torch.allclose(got[:, 0], compute_directly(paths, bench.part), atol=1e-6)


def test_a_killed_build_leaves_whole_blocks(
    bench: Bench, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "BLOCK_ROWS", 2)
    with start_builder(bench.root, paths, 60.0) as (process, pipe):
        assert pipe.recv() is None
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    got = bench.provide(paths)
    assert bench.computed == 5
    assert bench.said == []  # nothing is damaged, nobody is waited for
    assert got is not None
    assert torch.allclose(got[:, 0], compute_directly(paths, bench.part), atol=1e-6)


@dataclass(frozen=True, slots=True)
class ThreadGroup(Processes):
    """Two threads that meet as processes of a job do; whoever is left alone fails."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=10))
    values: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.meeting.wait()
        found = [self.values[rank] for rank in (0, 1)]
        self.meeting.wait()
        return found


def provide_in_two_threads(root: Path, paths: list[Path]) -> tuple[list[Bench], list[Any]]:
    first = ThreadGroup(rank=0, world_size=2)
    benches = [
        Bench(root, processes=first),
        Bench(root, processes=dataclasses.replace(first, rank=1)),
    ]
    with ThreadPoolExecutor(2) as pool:
        return benches, list(pool.map(lambda bench: bench.provide(paths), benches))


def test_processes_of_one_job_share_the_work(bench: Bench, paths: list[Path]) -> None:
    benches, got = provide_in_two_threads(bench.root, paths)
    assert [each.computed for each in benches] == [4, 3]
    expected = compute_directly(paths, bench.part)
    for rows in got:
        assert torch.allclose(rows[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("failing", ["save_tensors", "write_json"])
def test_what_one_process_cannot_write_leaves_no_other_waiting(
    bench: Bench, paths: list[Path], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    original = getattr(feature_store, failing)
    first: list[int] = []

    def fail(path: Path, *rest: Any) -> None:
        first.append(threading.get_ident())
        if threading.get_ident() != first[0]:
            original(path, *rest)
            return
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(feature_store, failing, fail)
    if failing == "write_json":  # else the other's file would do
        monkeypatch.setattr(Path, "is_file", lambda _: False)
    benches, got = provide_in_two_threads(bench.root, paths)
    assert got == [None, None]
    for each in benches:
        assert len(each.warned) == 1
        assert "No space left on device" in each.warned[0]


# --- the limit -----------------------------------------------------------------------------------


def test_the_store_that_rested_longest_goes_first(bench: Bench, paths: list[Path]) -> None:
    parts = [build_part(), build_part("block2"), build_part("block1")]
    folders: list[Path] = []
    for age, part in zip((300, 100), parts[:2], strict=True):
        bench.part = part
        bench.provide(paths)
        (folder,) = set(bench.stores()) - set(folders)
        folders.append(folder)
        then = time.time() - age
        for path in (*folder.iterdir(), folder):
            os.utime(path, (then, then))
    bench.part = parts[0]
    assert bench.count_new(paths) == 0  # used: the second is now the older one
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]
    bench.part = parts[2]
    bench.limit_gb = (sizes[0] + 7 * parts[2].row_bytes + 3000) / 1e9
    bench.said.clear()
    assert bench.count_new(paths) == 7
    assert folders[0].exists()
    assert not folders[1].exists()
    (message,) = bench.said
    assert "removed 1 older stores" in message
    assert "train.cache_limit" in message


def test_the_store_in_use_is_never_removed(bench: Bench, paths: list[Path]) -> None:
    bench.provide(paths[:4])
    bench.limit_gb = 1e-9
    assert bench.count_new(paths) == 3
    assert len(bench.stores()) == 1
    assert not bench.cache().fits(bench.part, 1)
    bench.limit_gb = 7 * bench.part.row_bytes / 1e9
    assert bench.cache().fits(bench.part, 7)
    assert not bench.cache().fits(bench.part, 8)
