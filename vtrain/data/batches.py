"""A batch of images, images that cannot be read, and the way of a batch to the device."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from vtrain.errors import DataError
from vtrain.system.text import one_line

SAMPLE_STREAM = 3

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
