"""Features of every image of a folder as one `.npy` array, with an index of its rows beside it."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from vtrain.checkpoint import LoadedModel
from vtrain.data.folders import describe_skipped, name_first_skipped, scan_images
from vtrain.data.loaders import Batch, build_eval_loader, resolve_workers, worker_troubles
from vtrain.data.transforms import EvalTransform
from vtrain.errors import DataError, UsageError
from vtrain.files import atomic_write, write_csv
from vtrain.records import EmbedResult, SkippedFile
from vtrain.training.inference import (
    NOT_FINITE,
    compute_outputs,
    find_finite_rows,
    find_model_device,
)

BYTES_PER_FLOAT = 4
Forward = Callable[[Tensor], Tensor]


@worker_troubles()
def embed(
    folder: Path,
    output: Path,
    model: LoadedModel,
    *,
    layer: str = "penultimate",
    feature_maps: bool = False,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    notify: Callable[[str], None],
    progress: Callable[[int, int], object] | None = None,
) -> EmbedResult:
    """Write the features of every image below `folder` (or of one image file) to `output`.

    `output` is a `.npy` file, float32 `[N, D]`, with `feature_maps` `[N, C, H, W]`; the rows
    follow the sorted paths. The `.csv` beside it has the columns row, path (`folder` joined with
    what is below it, so that it opens from the same working directory) and status: `ok`, or
    `error: reason` where the row is NaN. Both replace what was there, when they are complete; the
    memory needed does not grow with N beyond the list of paths. `layer` is what
    `Classifier.forward_layer` takes. `progress` gets the number of images done and of all.

    Raises:
        UsageError: `output` cannot be written, or the layer does not exist.
        DataError: no images.
        ResourceError: no space left, found before the first image is read where possible; or a
            loader worker died or hung.
    """
    index = _check_output(output)
    device = find_model_device(model.classifier)

    def forward(images: Tensor) -> Tensor:
        return model.classifier.forward_layer(images, layer, feature_maps=feature_maps)

    crop = model.preprocessing.crop
    blank = torch.zeros(1, 3, crop, crop, dtype=torch.uint8)
    shape = tuple(compute_outputs(forward, blank, model.preprocessing, device).shape[1:])
    paths = _find_images(folder, notify)
    batches = build_eval_loader(
        paths,
        None,
        EvalTransform(model.preprocessing),
        batch_size=batch_size,
        workers=resolve_workers(workers, len(paths)),
        pin_memory=device.type == "cuda",
    )
    blocks = _compute_blocks(batches, forward, model, shape)
    with atomic_write(output) as stream:
        _reserve(stream, (len(paths), *shape))
        failures = _write_blocks(stream, blocks, len(paths), progress)
        # First the index, then the array takes its place: a full disk here leaves the old array.
        write_csv(index, ("row", "path", "status"), _index_rows(paths, failures))
    return EmbedResult(
        output=output,
        index=index,
        count=len(paths),
        dim=shape,
        failures=tuple(SkippedFile(paths[row], reason) for row, reason in failures.items()),
    )


def _check_output(output: Path) -> Path:
    """The path of the index; an output that cannot be written is found before any work."""
    if output.suffix != ".npy":
        raise UsageError(
            f"output {output} does not end with .npy", f"write to {output.with_suffix('.npy')}"
        )
    index = output.with_suffix(".csv")
    for path in (output, index):
        if path.is_dir():
            raise UsageError(f"output {path} is a folder, expected a file")
    if not output.parent.is_dir():
        raise UsageError(
            f"output {output}: its folder {output.parent} does not exist",
            f"create it with: mkdir -p {output.parent}",
        )
    return index


def _find_images(folder: Path, notify: Callable[[str], None]) -> list[Path]:
    if folder.is_file():
        return [folder]
    paths, skipped = scan_images(folder)
    if not paths:
        raise DataError(f"{folder} holds no images{name_first_skipped(skipped)}")
    if skipped:
        notify(describe_skipped(folder, skipped))
    return paths


def _compute_blocks(
    batches: Iterable[Batch],
    forward: Forward,
    model: LoadedModel,
    shape: tuple[int, ...],
) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    """Consecutive rows `[n, *shape]`, NaN where they failed, and the failures by row."""
    start = 0
    device = find_model_device(model.classifier)
    for batch in batches:
        failures = dict(batch.failures)
        block = torch.full((len(batch.positions) + len(failures), *shape), float("nan"))
        if len(batch.positions):
            features = compute_outputs(forward, batch.inputs, model.preprocessing, device)
            finite = find_finite_rows(features).cpu()  # a CPU-GPU sync point, like the next copy
            good = batch.positions[finite]
            block[good - start] = features.cpu()[finite]
            failures |= dict.fromkeys(batch.positions[~finite].tolist(), NOT_FINITE)
        start += len(block)
        yield block.numpy(), failures


def _reserve(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header and take the disk space of the whole array now."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    stream.flush()
    length = int(np.prod(shape, dtype=np.int64)) * BYTES_PER_FLOAT
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(stream.fileno(), stream.tell(), length)
    except OSError as error:
        # Some file systems cannot reserve: there a full disk shows while rows are written.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _write_blocks(
    stream: BinaryIO,
    blocks: Iterable[tuple[np.ndarray, Mapping[int, str]]],
    total: int,
    progress: Callable[[int, int], object] | None,
) -> dict[int, str]:
    """Write the rows one after the other; the reasons of the rows that failed."""
    done = 0
    failures: dict[int, str] = {}
    for block, block_failures in blocks:
        stream.write(block.astype("<f4", copy=False).tobytes())
        failures.update(block_failures)
        done += len(block)
        if progress is not None:
            progress(done, total)
    assert done == total, f"{done} rows for {total} images"
    return dict(sorted(failures.items()))


def _index_rows(
    paths: Sequence[Path], failures: Mapping[int, str]
) -> Iterator[tuple[int, Path, str]]:
    for row, path in enumerate(paths):
        yield row, path, f"error: {failures[row]}" if row in failures else "ok"
