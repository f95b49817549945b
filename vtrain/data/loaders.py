"""Batches of images from worker processes, the same ones for any number of workers."""

import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vtrain.data.batches import Batch, Failure
from vtrain.data.image_sets import LabelledImages, PackedPaths
from vtrain.data.images import read_image
from vtrain.data.sampler import EpochBatchSampler, SampleKey
from vtrain.data.transforms import ImageTransform
from vtrain.data.workers import (
    child_signals_kept,
    find_trouble,
    run_apart,
    set_up_worker,
    worker_troubles,
)
from vtrain.errors import ImageError, ResourceError
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.signals import stop_signals_blocked

# A worker that gives nothing for so long counts as hung. A batch takes well under 10 s even for
# large photographs on a network disk.
WORKER_TIMEOUT_S = 300.0
_LOOK_SECONDS = 2.0  # how long a worker may be dead before that is noticed
_PROBE_SECONDS = 60.0
_TIMED_OUT = "DataLoader timed out"


def build_train_loader(
    images: LabelledImages,
    transform: ImageTransform,
    *,
    sampler: EpochBatchSampler,
    workers: int,
    seed: int,
    pin_memory: bool = False,
    reporter: Reporter = SILENT,
) -> "ImageLoader":
    """Batches in the order of `sampler`, the same bits for any number of workers.

    Call `sampler.set_epoch` before each pass. `pin_memory` is for batches that go to a CUDA device:
    they can then travel while it computes. `reporter` is told of workers that were lost. See
    `ImageLoader` for what is raised.
    """
    return ImageLoader(
        _ImageDataset(images.paths, images.labels, transform),
        ask=sampler.__iter__,
        workers=workers,
        seed=seed,
        pin_memory=pin_memory,
        reporter=reporter,
        kept=True,
    )


def build_eval_loader(
    paths: Sequence[Path],
    labels: Sequence[int] | None,
    transform: ImageTransform,
    *,
    batch_size: int,
    workers: int,
    seeds: Sequence[int] | None = None,
    pin_memory: bool = False,
    reporter: Reporter = SILENT,
) -> "ImageLoader":
    """Every image once, in order; those that cannot be read are in the batches' failures.

    `seeds` are those of each image's augmentation, for a transform that has any. `pin_memory`
    and `reporter` are as for `build_train_loader`.
    """
    return ImageLoader(
        _ImageDataset(paths, labels, transform),
        ask=partial(_ask_in_order, len(paths), batch_size, seeds),
        workers=workers,
        pin_memory=pin_memory,
        reporter=reporter,
    )


def build_stream_loader(
    batches: Iterable[Sequence[Path]],
    transform: ImageTransform,
    *,
    workers: int,
    pin_memory: bool = False,
    reporter: Reporter = SILENT,
) -> "ImageLoader":
    """As `build_eval_loader`, for batches of paths that are made on the way and may never end.

    Each worker gets the next batch but one while it reads the next, so that with N workers up to
    2 N batches are asked for before the first is given. Positions count from the first path. A
    batch without paths gives one without images. One pass only.
    """
    return ImageLoader(
        _ImageDataset((), None, transform),
        ask=partial(_ask_in_turn, batches),
        workers=workers,
        pin_memory=pin_memory,
        reporter=reporter,
    )


class ImageLoader:
    """`Batch`es in order, the same ones whatever becomes of the workers.

    What a worker that died was asked for is asked for again, of new ones. If that ends in the same
    way, or a worker hangs, the files are tried one by one, each in a process of its own: one that
    kills its process, or takes more than a minute, is a failure of its batch.

    Its workers end with each pass, or are `kept` for the next one until `close`.
    Its randomness is its own: neither making nor using one touches torch's global generator.

    Raises:
        ResourceError: while iterating: workers die or hang by no file's fault, or shared memory
            is full.
    """

    def __init__(
        self,
        dataset: "_ImageDataset",
        *,
        ask: Callable[[], Iterator[Any]],
        workers: int,
        pin_memory: bool,
        reporter: Reporter,
        seed: int = 0,
        kept: bool = False,
    ) -> None:
        self._kept = kept
        self._dataset = dataset
        self._asked = _Asked(ask)
        self._workers = workers
        self._seed = seed
        self._pin_memory = pin_memory
        self._reporter = reporter
        self._loader: DataLoader[Batch] | None = None
        self._processes: list[Any] = []

    def __iter__(self) -> Iterator[Batch]:
        self._asked.begin()
        lost_at = -1
        try:
            while True:
                try:
                    with worker_troubles():
                        for batch in self._run():
                            self._asked.came_back()
                            yield batch
                    return
                except ResourceError as error:
                    self._recover(error, again=lost_at == self._asked.done)
                lost_at = self._asked.done
        finally:
            if not self._kept:
                self.close()

    def close(self) -> None:
        """End the workers, now and here; another pass starts new ones.

        Left to the garbage collector they can hold up whatever runs then for seconds, or end in a
        process that is forked later.
        """
        for process in self._processes:
            process.kill()  # they would be waited for
        self._processes.clear()
        self._loader = None

    def _recover(self, error: ResourceError, *, again: bool) -> None:
        """Make ready for another pass after a worker was lost, `again` at the same batch.

        Raises:
            ResourceError: `error`, where another pass would end in the same way.
        """
        cause = error.__cause__
        trouble = find_trouble(cause)
        if cause is None or trouble is None or not trouble.lost or not self._workers:
            raise error
        self.close()
        traceback.clear_frames(cause.__traceback__)  # they hold on to torch's iterator
        # One that died may have been chosen by the kernel, for lack of memory.
        deadly = self._find_deadly() if again or trouble.hangs else {}
        if again and not deadly:
            raise error
        self._dataset.refused.update(deadly)
        self._reporter.warn(f"{error.message}: what it was asked for is read again")

    def _run(self) -> Iterator[Batch]:
        """One pass over what was not given yet; ends with torch's error where a worker is lost."""
        if not self._asked.has_more():  # as in an epoch that was saved after its last batch
            return
        iterator = self._start()
        waited = 0.0  # by torch's count: a process that was stopped meanwhile has waited for nobody
        while True:
            try:
                batch = next(iterator, None)
            except RuntimeError as error:
                # Torch looks after its workers only when it has waited for so long as this.
                if not str(error).startswith(_TIMED_OUT):
                    raise
                waited += min(WORKER_TIMEOUT_S, _LOOK_SECONDS)
                if waited >= WORKER_TIMEOUT_S:
                    raise RuntimeError(f"{_TIMED_OUT} after {waited:.0f} seconds") from error
                continue
            if batch is None:
                return
            yield batch
            waited = 0.0

    def _start(self) -> Iterator[Batch]:
        others = set(multiprocessing.active_children())
        try:
            with child_signals_kept(), stop_signals_blocked():
                if self._loader is not None:
                    # Workers of an earlier pass may be gone by now, or too busy to answer.
                    with suppress(RuntimeError):
                        return iter(self._loader)
                self._loader = self._build()
                return iter(self._loader)
        finally:
            self._processes += [
                each for each in multiprocessing.active_children() if each not in others
            ]

    def _build(self) -> DataLoader[Batch]:
        return DataLoader(
            self._dataset,
            batch_sampler=self._asked,
            num_workers=self._workers,
            collate_fn=_keep_batch,  # type: ignore[arg-type]  # __getitems__ gives a Batch
            # An iterator draws a base seed when it is made: from here, not from the global one.
            generator=torch.Generator().manual_seed(self._seed),
            worker_init_fn=set_up_worker,
            persistent_workers=self._kept and self._workers > 0,
            timeout=min(WORKER_TIMEOUT_S, _LOOK_SECONDS) if self._workers else 0,
            pin_memory=self._pin_memory,
        )

    def _find_deadly(self) -> dict[int, str]:
        """Position and reason of the files that end or hold up the process that reads them.

        Of the first batch that has any: others will be found in their turn.
        """
        timeout = min(WORKER_TIMEOUT_S, _PROBE_SECONDS)
        for keys in self._asked.waiting:
            if run_apart(partial(_read_apart, self._dataset, keys), timeout=timeout) is None:
                continue
            reasons = {
                key[0]: run_apart(partial(_read_apart, self._dataset, [key]), timeout=timeout)
                for key in keys
            }
            if deadly := {key: reason for key, reason in reasons.items() if reason is not None}:
                return deadly
        return {}


def _read_apart(dataset: "_ImageDataset", keys: Sequence[Any]) -> None:
    # As in a worker. The threads of the process that this one is a copy of are not in it.
    torch.set_num_threads(1)
    dataset.__getitems__(keys)


class _Asked:
    """Batches of keys, of which those that have not come back can be asked for again."""

    def __init__(self, ask: Callable[[], Iterator[Any]]) -> None:
        self._ask = ask
        self._source: Iterator[Any] = iter(())
        self.waiting: deque[Any] = deque()
        self.done = 0

    def begin(self) -> None:
        """Start from the first batch."""
        self._source = self._ask()
        self.waiting.clear()
        self.done = 0

    def __iter__(self) -> Iterator[Any]:
        yield from list(self.waiting)
        for keys in self._source:
            self.waiting.append(keys)
            yield keys

    def has_more(self) -> bool:
        """Whether there is anything left to ask for."""
        first = next(self._source, None)
        if first is not None:
            self._source = chain([first], self._source)
        return first is not None or bool(self.waiting)

    def came_back(self) -> None:
        """The first of those that are waited for has come."""
        self.waiting.popleft()
        self.done += 1


class _ImageDataset(Dataset[Batch]):
    """Whole batches at once; it raises nothing, because an exception in a worker can hang us.

    A key is a position in `paths` and a seed, or a position and the path itself.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int] | None, transform: ImageTransform
    ) -> None:
        if not isinstance(paths, PackedPaths):
            # Packed: a million `Path`s would be copied page by page into every worker.
            paths = PackedPaths(Path(), map(str, paths), mixed=True)
        self._paths = paths
        self._labels = None if labels is None else np.array(labels, np.int64)
        self._transform = transform
        self.refused: dict[int, str] = {}  # positions that must not be read, and why

    def __getitems__(self, keys: Sequence[SampleKey | tuple[int, Path]]) -> Batch:
        positions: list[int] = []
        images: list[Tensor] = []
        failures: list[Failure] = []
        for position, given in keys:
            image = self._load(position, given)
            if isinstance(image, str):
                failures.append((position, image))
            else:
                positions.append(position)
                images.append(image)
        labels = torch.full((len(positions),), -1)
        if self._labels is not None:
            labels = torch.from_numpy(self._labels[positions])
        stacked = _stack_images(images, self._transform.crop)
        return Batch(stacked, labels, torch.tensor(positions, dtype=torch.int64), tuple(failures))

    def _load(self, position: int, given: int | Path | None) -> Tensor | str:
        """One transformed image, or why there is none."""
        if position in self.refused:
            return self.refused[position]
        try:
            path, seed = (
                (given, None) if isinstance(given, Path) else (self._paths[position], given)
            )
            image = read_image(
                path, min_edge=self._transform.resize, background=self._transform.background
            )
            if seed is None:
                return self._transform(image)
            before = torch.get_rng_state()
            torch.default_generator.manual_seed(seed)  # `fork_rng` takes eighty times as long
            try:
                return self._transform(image)
            finally:
                torch.set_rng_state(before)
        except ImageError as error:
            return error.message
        except Exception as error:
            return f"cannot be transformed ({type(error).__name__}: {error})"


def _ask_in_order(
    num_images: int, batch_size: int, seeds: Sequence[int] | None
) -> Iterator[list[SampleKey]]:
    """Batches of (index, seed): every image once, in order; without seeds these are None."""
    for first in range(0, num_images, batch_size):
        last = min(first + batch_size, num_images)
        some = seeds[first:last] if seeds is not None else [None] * (last - first)
        yield list(zip(range(first, last), some, strict=True))


def _ask_in_turn(batches: Iterable[Sequence[Path]]) -> Iterator[list[tuple[int, Path]]]:
    """Batches of (position, path) from batches of paths."""
    first = 0
    for paths in batches:
        yield list(enumerate(paths, first))
        first += len(paths)


def _stack_images(images: Sequence[Tensor], edge: int) -> Tensor:
    """Uint8 [B, 3, edge, edge] in channels-last memory, ready to be sent from a worker."""
    stacked = torch.empty(len(images), edge, edge, 3, dtype=torch.uint8)
    for target, image in zip(stacked, images, strict=True):
        target.copy_(image.permute(1, 2, 0))
    if torch.utils.data.get_worker_info() is not None:
        # Here a full /dev/shm is an error that reaches the parent; later it would be a lost batch.
        stacked.share_memory_()  # type: ignore[no-untyped-call]
    return stacked.permute(0, 3, 1, 2)


def _keep_batch(batch: Batch) -> Batch:
    return batch
