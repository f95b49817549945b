"""Batches of images from worker processes, the same ones for any number of workers."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vtrain.console import one_line
from vtrain.data.images import read_image
from vtrain.data.transforms import ImageTransform
from vtrain.errors import DataError, ImageError, ResourceError
from vtrain.records import LabelledImages, PackedPaths
from vtrain.runtime import count_cores, mix_seed

# A batch takes a worker well under 10 s even for large photographs on a network disk.
WORKER_TIMEOUT_S = 300.0
_MAX_AUTO_WORKERS = 8
_SMALL_SET = 64  # reading so few images takes less time than starting a process
# These separate the streams here from the others that are drawn from a run's seed.
ORDER_STREAM = 2
SAMPLE_STREAM = 3

# What torch's messages contain, what that means, what to do; the first match counts. Torch's
# shared memory is in files named torch_…, which its messages quote as </torch_…>.
_WORKER_TROUBLES = (
    (
        ("DataLoader timed out",),
        "a loader worker hangs",
        "look at the disk that the images are on, or read them without workers: data.workers=0",
    ),
    (
        ("Too many open files", "items of ancdata"),
        "no more files can be opened: every batch from a worker takes one",
        "raise the limit (ulimit -n 4096), or use data.workers=0",
    ),
    (
        ("Bus error", "</torch_", "shared memory(shm)", "shared memory object"),
        "shared memory is full: batches from workers go through /dev/shm",
        "make it larger (docker run --shm-size=8g), or use a smaller data.batch_size or "
        "data.workers=0",
    ),
    (
        ("DataLoader worker (pid", "EOFError", "ConnectionResetError", "ConnectionRefusedError"),
        "a loader worker died",
        "if the machine ran out of memory, use fewer data.workers or a smaller data.batch_size",
    ),
)

SampleKey: TypeAlias = tuple[int, int | None]  # index, seed of its augmentation
Failure: TypeAlias = tuple[int, str]  # position in the input list, reason


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model gets of the images that could be read, and what became of the others.

    inputs: uint8 images [B, 3, H, W], channels last in memory, or stored activations [B, ...] of a
    frozen part. labels: int64 [B], -1 where unknown. positions: int64 [B], index of each image in
    the input list. failures: position and reason of each image of this batch that could not be
    read; they are in none of the tensors.
    """

    inputs: Tensor
    labels: Tensor
    positions: Tensor
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> "Batch":
        """The same batch with what goes to a GPU in page-locked memory; the loader calls this."""
        inputs, labels = self.inputs.pin_memory(), self.labels.pin_memory()
        return Batch(inputs, labels, self.positions, self.failures)

    def __reduce__(self) -> tuple[object, ...]:
        # Only the inputs are worth a shared-memory segment and its file descriptor.
        small = (self.labels.tolist(), self.positions.tolist(), self.failures)
        return _rebuild_batch, (self.inputs, *small)


def _rebuild_batch(
    inputs: Tensor, labels: list[int], positions: list[int], failures: tuple[Failure, ...]
) -> Batch:
    int64 = torch.int64
    return Batch(
        inputs,
        torch.tensor(labels, dtype=int64),
        torch.tensor(positions, dtype=int64),
        failures,
    )


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of (index, sample seed) as a pure function of (seed, epoch).

    The order depends on (seed, epoch), each sample's seed on (seed, epoch, index). A last batch
    with under two images for each rank is merged into the one before it: BatchNorm cannot train on
    one value.

    Args:
        num_images: N, the length of the data set and of an epoch.
        batch_size: images in a batch, over all ranks together.
        seed: of the run.
        weights: None for a permutation, or N weights for drawing with replacement.
        rank: which part of each batch to give.
        world_size: number of parts; a part is empty where a batch has fewer images than that.
    """

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._start_batch = 0

    def set_epoch(self, epoch: int, *, start_batch: int = 0) -> None:
        """Choose the next epoch and the first of its batches to give, both counted from 0."""
        self._epoch = epoch
        self._start_batch = start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever `start_batch` is."""
        full, rest = divmod(self._num_images, self._batch_size)
        merged = full > 0 and rest < 2 * self._world_size
        return full + (rest > 0 and not merged)

    def batch_sizes(self) -> list[int]:
        """Images in each batch of an epoch, over all ranks together."""
        before_last = len(self) - 1
        if before_last < 0:
            return []
        return [self._batch_size] * before_last + [
            self._num_images - self._batch_size * before_last
        ]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self._draw_order()
        epoch, batches = self._epoch, len(self)
        for batch in range(self._start_batch, batches):
            first = batch * self._batch_size
            last = self._num_images if batch == batches - 1 else first + self._batch_size
            indices = self._take_part(order[first:last]).tolist()
            yield [(index, mix_seed(self._seed, SAMPLE_STREAM, epoch, index)) for index in indices]

    def _draw_order(self) -> Tensor:
        seed = mix_seed(self._seed, ORDER_STREAM, self._epoch)
        generator = torch.Generator().manual_seed(seed)
        if self._weights is None:
            return torch.randperm(self._num_images, generator=generator)
        return torch.multinomial(
            self._weights, self._num_images, replacement=True, generator=generator
        )

    def _take_part(self, indices: Tensor) -> Tensor:
        first = len(indices) * self._rank // self._world_size
        last = len(indices) * (self._rank + 1) // self._world_size
        return indices[first:last]


def resolve_workers(value: int | Literal["auto"], num_images: int, *, processes: int = 1) -> int:
    """Worker processes for `data.workers`: `auto` is one for each usable core, at most eight.

    `auto` gives 0, reading in the main process, for 64 images or fewer. Several `processes` of one
    job share the cores of their machine.
    """
    if value != "auto":
        return value
    if num_images <= _SMALL_SET:
        return 0
    return max(1, min(count_cores() // processes, _MAX_AUTO_WORKERS))


def build_train_loader(
    images: LabelledImages,
    transform: ImageTransform,
    *,
    sampler: EpochBatchSampler,
    workers: int,
    seed: int,
    pin_memory: bool = False,
    timeout: float = WORKER_TIMEOUT_S,
) -> "ImageLoader":
    """Batches in the order of `sampler`, the same bits for any number of workers.

    Call `sampler.set_epoch` before each pass. `pin_memory` is for batches that go to a CUDA device:
    they can then travel while it computes. A worker that gives nothing for `timeout` seconds
    counts as hung. See `ImageLoader` for what is raised.
    """
    return ImageLoader(
        _ImageDataset(images.paths, images.labels, transform),
        batches=sampler,
        workers=workers,
        seed=seed,
        pin_memory=pin_memory,
        timeout=timeout,
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
    timeout: float = WORKER_TIMEOUT_S,
) -> "ImageLoader":
    """Every image once, in order; those that cannot be read are in the batches' failures.

    `seeds` are those of each image's augmentation, for a transform that has any. `pin_memory` and
    `timeout` are as for `build_train_loader`.
    """
    return ImageLoader(
        _ImageDataset(paths, labels, transform),
        batches=_InOrder(len(paths), batch_size, seeds),
        workers=workers,
        seed=0,
        pin_memory=pin_memory,
        timeout=timeout,
    )


def require_readable(batches: Iterable[Batch], paths: Sequence[Path]) -> Iterator[Batch]:
    """The batches as they come, as long as every image in them could be read.

    Raises:
        DataError: an image was readable before training and is not now.
    """
    for batch in batches:
        for position, reason in batch.failures:
            path = one_line(paths[position])
            raise DataError(
                f"{path} was readable before training and is not now: {reason}",
                "restore the file, then continue with --resume",
            )
        yield batch


def build_stream_loader(
    batches: Iterable[Sequence[Path]],
    transform: ImageTransform,
    *,
    workers: int,
    pin_memory: bool = False,
    timeout: float = WORKER_TIMEOUT_S,
) -> "ImageLoader":
    """As `build_eval_loader`, for batches of paths that are made on the way and may never end.

    Each worker gets the next batch but one while it reads the next, so that with N workers up to
    2 N batches are asked for before the first is given. Positions count from the first path. A
    batch without paths gives one without images. One pass only.
    """
    return ImageLoader(
        _StreamDataset(transform),
        batches=_InTurn(batches),
        workers=workers,
        seed=0,
        pin_memory=pin_memory,
        timeout=timeout,
    )


def prefetch_to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their tensors on `device`; on CUDA the next one travels meanwhile.

    It is copied on a stream of its own, so that it does not queue up behind the computation.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            inputs = batch.inputs.to(device, non_blocking=True)
            labels = batch.labels.to(device, non_blocking=True)
        if coming is not None:
            yield coming
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in (inputs, labels):  # its memory must not be used again before it is read
            tensor.record_stream(torch.cuda.current_stream(device))
        coming = replace(batch, inputs=inputs, labels=labels)
    if coming is not None:
        yield coming


class ImageLoader(DataLoader[Batch]):
    """A DataLoader of `Batch`es that tells in vtrain's terms what went wrong with its workers.

    Its randomness is its own: neither making nor using one touches torch's global generator.

    Raises:
        ResourceError: while iterating: a worker died or hung, or shared memory is full.
    """

    def __init__(
        self,
        dataset: "_ImageDataset | _StreamDataset",
        *,
        batches: "Sampler[list[SampleKey]] | _InOrder | _InTurn",
        workers: int,
        seed: int,
        pin_memory: bool,
        timeout: float,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_keep_batch,  # type: ignore[arg-type]  # __getitems__ gives a Batch
            # An iterator draws a base seed when it is made: from here, not from the global one.
            generator=torch.Generator().manual_seed(seed),
            worker_init_fn=_set_up_worker,
            persistent_workers=workers > 0,
            timeout=timeout if workers else 0,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with worker_troubles():
            yield from super().__iter__()


class _ImageDataset(Dataset[Batch]):
    """Whole batches at once; it raises nothing, because an exception in a worker can hang us."""

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int] | None, transform: ImageTransform
    ) -> None:
        # Packed: a million `Path`s would be copied page by page into every worker.
        self._paths = (
            paths
            if isinstance(paths, PackedPaths)
            else PackedPaths(Path(), map(str, paths), mixed=True)
        )
        self._labels = np.full(len(paths), -1) if labels is None else np.array(labels, np.int64)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        positions: list[int] = []
        images: list[Tensor] = []
        failures: list[Failure] = []
        for position, seed in keys:
            image = self._load(position, seed)
            if isinstance(image, str):
                failures.append((position, image))
            else:
                positions.append(position)
                images.append(image)
        labels = torch.from_numpy(self._labels[positions])
        stacked = _stack_images(images, self._transform.crop)
        return Batch(stacked, labels, torch.tensor(positions, dtype=torch.int64), tuple(failures))

    def _load(self, position: int, seed: int | None) -> Tensor | str:
        """One transformed image, or why there is none."""
        try:
            image = read_image(
                self._paths[position],
                min_edge=self._transform.resize,
                background=self._transform.background,
            )
            if seed is None:
                return self._transform(image)
            with _seeded(seed):
                return self._transform(image)
        except ImageError as error:
            return error.message
        except Exception as error:
            return f"cannot be transformed ({type(error).__name__}: {error})"


class _InOrder:
    """Batches of (index, seed): every image once, in order; without seeds these are None."""

    def __init__(self, num_images: int, batch_size: int, seeds: Sequence[int] | None) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._seeds = seeds

    def __len__(self) -> int:
        return -(-self._num_images // self._batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first in range(0, self._num_images, self._batch_size):
            last = min(first + self._batch_size, self._num_images)
            seeds = self._seeds[first:last] if self._seeds is not None else [None] * (last - first)
            yield list(zip(range(first, last), seeds, strict=True))


class _StreamDataset(Dataset[Batch]):
    """Whole batches whose keys are positions and paths: it needs no list of them."""

    def __init__(self, transform: ImageTransform) -> None:
        self._transform = transform

    def __getitems__(self, keys: Sequence[tuple[int, Path]]) -> Batch:
        here = _ImageDataset([path for _, path in keys], None, self._transform)
        batch = here.__getitems__([(index, None) for index in range(len(keys))])
        first = keys[0][0] if keys else 0
        failures = tuple((first + index, reason) for index, reason in batch.failures)
        return Batch(batch.inputs, batch.labels, batch.positions + first, failures)


class _InTurn:
    """Batches of (position, path) from batches of paths."""

    def __init__(self, batches: Iterable[Sequence[Path]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, Path]]]:
        first = 0
        for paths in self._batches:
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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator and restore it (`fork_rng` takes eighty times as long)."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _set_up_worker(_: int) -> None:
    """One compute thread; signals for the whole process group are the parent's to answer."""
    torch.set_num_threads(1)
    sys.excepthook = _report_unless_disconnected
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_termination, daemon=True).start()


def _report_unless_disconnected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing when the parent stops in the middle of taking a batch over.

    The thread that hands out a worker's tensors calls `sys.excepthook` by itself, so that Ctrl-C
    in the parent would end with a traceback from here.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _await_termination() -> None:
    """End this worker on a SIGTERM from its parent; ignore one sent to the process group.

    A worker that a group-wide SIGTERM kills makes the parent fail in the middle of a step that it
    would have finished and saved.
    """
    parent = parent_process()
    while parent is not None:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent.pid:
            os._exit(0)


@contextmanager
def worker_troubles() -> Iterator[None]:
    """Turn what a DataLoader raises about its workers into a ResourceError with a way out.

    Iterating over an `ImageLoader` does this by itself. But torch learns of a dead worker from a
    signal, and raises in whatever the main thread is doing: put the body of the loop inside too.
    Other errors pass through, such as a full disk.
    """
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:
        explained = explain_worker_error(error)
        if explained is None:
            raise
        raise explained from error


def explain_worker_error(error: Exception) -> ResourceError | None:
    """What torch's error says about its loader workers, None where it is about something else."""
    signature = _describe_trouble(error)
    for signs, message, hint in _WORKER_TROUBLES:
        if any(sign in signature for sign in signs):
            reason = str(error) or type(error).__name__
            return ResourceError(f"{message} ({reason.splitlines()[0]})", hint)
    return None


def _describe_trouble(error: Exception) -> str:
    """What to look for signs in; of the operating system's errors not the paths they quote."""
    name = type(error).__name__
    if not isinstance(error, OSError):
        return f"{name}: {error}"
    return "Too many open files" if error.errno == errno.EMFILE else name
