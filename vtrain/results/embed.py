"""Features of every image of a folder as one `.npy` array, with an index of its rows beside it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vtrain.data.batches import Batch
from vtrain.data.folders import is_source, name_first_skipped, report_skipped, scan_with_labels
from vtrain.data.image_sets import PackedPaths, SkippedFile
from vtrain.data.lists import FOUND_BY_NAME, ListLayout
from vtrain.data.loaders import ImageLoader, build_eval_loader
from vtrain.data.transforms import EvalTransform
from vtrain.data.workers import resolve_workers
from vtrain.errors import DataError, UsageError, VtrainError
from vtrain.inference.forward import (
    NOT_FINITE,
    Forward,
    compute_outputs,
    find_finite_rows,
    find_model_device,
)
from vtrain.inference.streams import choose_streams, compute_in_order
from vtrain.models.classifier import LOGITS, PENULTIMATE
from vtrain.models.freezing import tensor_digest
from vtrain.results.inputs import FoundInputs
from vtrain.results.resumable_array import DoneBlocks, PartialArray, lock_output, require_writable
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.json_csv import to_plain, write_csv, write_json
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import Progress, Reporter
from vtrain.system.signals import StopRequest, build_stop_error
from vtrain.system.text import one_line

ROUND_BLOCKS = 4  # between two exchanges of progress among processes
MADE_BY = "vtrain embed"  # a key of the .json, which tells it from others
MAX_FACTS_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class _Rows:
    """The images, one for each row; `errors` are why rows stand for none, by their number.

    `labels` are their classes, "" for none; None where nothing gives any image a class.
    """

    paths: PackedPaths
    labels: Sequence[str] | None = None
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is computed, from what, and where it goes; the same in every process."""

    rows: "_Rows"
    index: Path
    array: PartialArray


def facts_path(output: Path) -> Path:
    """Where it stands which model an array was made with."""
    return output.with_suffix(".json")


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """What `embed` wrote: `[count, dim]` float32 rows; those of `failures` are NaN."""

    output: Path
    index: Path
    count: int
    dim: tuple[int, ...]
    failures: Sequence[SkippedFile] = ()


def embed(
    source: Path | FoundInputs,
    output: Path,
    model: LoadedModel,
    *,
    layer: str = "penultimate",
    feature_maps: bool = False,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    resume: bool = False,
    layout: ListLayout = FOUND_BY_NAME,
    processes: Processes = ALONE,
    reporter: Reporter,
) -> EmbedResult:
    """Write the features of every image of a folder, tar or list, or of inputs, to `output`.

    `output` is a `.npy` file, float32 `[N, D]`, with `feature_maps` `[N, C, H, W]`; the rows
    follow the sorted paths of a folder or tar, the lines of a list (`layout` says how it is read),
    or the inputs. The `.csv` beside it has the columns row, path (`source` joined with what is
    below it, so that it opens from the same working directory), status: `ok`, or `error: reason`
    where the row is NaN; and label, where `source` gives any image a class. The `.json` says which
    model and layer they are of, for `logits` also the classes. All three replace what was there,
    when they are complete; the memory needed does not grow with N beyond the list of paths. `layer`
    is what `Classifier.forward_layer` takes.

    Until then the rows are in a hidden file beside `output`, which stays when the work ends early:
    with `resume` it goes on there, in any number of processes, and comes to the same bytes. The
    started `processes` share the work, in the same batches as one alone, and all return
    the same; `output` must be on a file system that all of them see.

    Raises:
        UsageError: `output` cannot be written, the layer does not exist, or what is there to
            resume is of other work.
        DataError: no images, or not the same ones for all processes.
        ResourceError: no space left, found before the first image is read where possible; a
            loader worker died or hung; or another process did.
        RunLockedError: another process writes to `output`.
        StoppedError, InterruptedRunError: after a signal; what is done can be resumed.
    """

    def forward(images: Tensor) -> Tensor:
        return model.classifier.forward_layer(images, layer, feature_maps=feature_maps)

    with processes.together():
        settings = {"layer": layer, "feature_maps": feature_maps, "batch_size": batch_size}
        find_rows = partial(_find_rows, source, layout, reporter)
        job = _plan(find_rows, output, model, forward, settings)
    _require_same_paths(job, processes)
    with ExitStack() as stack:
        with processes.together():
            if processes.is_main:
                stack.enter_context(lock_output(job.array.output))
        with processes.together():
            start = _start(job.array, reporter, resume=resume) if processes.is_main else None
        start = processes.broadcast(start)
        share = _choose_share(start.done, processes)
        loader = _build_loader(job, model, share, workers, processes, reporter)
        # Other layers are found by hooks, which threads that share a model would confuse.
        device = find_model_device(model.classifier)
        streams = choose_streams(device) if layer in (PENULTIMATE, LOGITS) else 1
        blocks = _compute_blocks(loader, forward, model, job.array.shape[1:], streams)
        with _kept_for_resuming(job, start, processes, reporter):
            own = _write_share(job, start, share, blocks, processes, reporter)
            failures = dict(start.failures)
            for each in processes.gather(own):
                failures |= each
            failures |= {row: job.rows.errors.get(row, failures[row]) for row in failures}
            with processes.together():
                if processes.is_main:
                    _publish(job, failures, model.classes if layer == LOGITS else ())
    count, *dim = job.array.shape
    failed = tuple(SkippedFile(job.rows.paths[row], failures[row]) for row in sorted(failures))
    return EmbedResult(output, job.index, count, tuple(dim), failed)


def _plan(
    find_rows: Callable[[], _Rows],
    output: Path,
    model: LoadedModel,
    forward: Forward,
    settings: dict[str, Any],
) -> _Job:
    if output.suffix != ".npy":
        raise UsageError(
            f"output {output} does not end with .npy", f"write to {output.with_suffix('.npy')}"
        )
    index = output.with_suffix(".csv")
    require_writable(output, index, facts_path(output))
    _require_own(facts_path(output))
    device = find_model_device(model.classifier)
    crop = model.preprocessing.crop
    blank = torch.zeros(1, 3, crop, crop, dtype=torch.uint8)
    shape = tuple(compute_outputs(forward, blank, model.preprocessing, device).shape[1:])
    rows = find_rows()
    paths = rows.paths
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
    work = {
        "folder": str(paths.root),
        "images": len(paths),
        "list of images": digest.hexdigest(),
        "model": model.source,
        "weights": digest_weights(model),
        "preprocessing": to_plain(model.preprocessing),
        "precision": model.precision,
        "device": device.type,
        **settings,
    }
    target = output.resolve() if output.is_symlink() else output
    array = PartialArray(target, (len(paths), *shape), settings["batch_size"], work)
    return _Job(rows, index, array)


def _require_own(facts: Path) -> None:
    """Somebody else's `.json` of the same name is not replaced."""
    with suppress(OSError, ValueError, TypeError, RecursionError):  # nothing written here
        if not facts.exists():
            return
        small = facts.stat().st_size <= MAX_FACTS_BYTES
        if small and MADE_BY in json.loads(facts.read_text(encoding="utf-8")):
            return
    raise UsageError(
        f"output {facts} exists already and is not of `vtrain embed`",
        "choose another name for the array, or move that file away",
    )


def _find_rows(source: Path | FoundInputs, layout: ListLayout, reporter: Reporter) -> _Rows:
    if isinstance(source, FoundInputs):
        return _take_inputs(source)
    with suppress(OSError):  # the scan says why it cannot be reached
        if source.is_file() and not is_source(source):
            return _Rows(PackedPaths(source.parent, [source.name]))
    paths, skipped, labels = scan_with_labels(source, layout=layout, reporter=reporter)
    if not paths:
        raise DataError(f"{one_line(source)} holds no images{name_first_skipped(skipped)}")
    report_skipped(source, skipped, reporter)
    return _Rows(paths, labels)


def _take_inputs(inputs: FoundInputs) -> _Rows:
    labels: list[str] = []
    errors: dict[int, str] = {}

    def take() -> Iterator[str]:
        for row, each in enumerate(inputs):
            labels.append(each.label)
            if each.error is not None:
                errors[row] = each.error
            yield each.path

    paths = PackedPaths(Path(), take(), mixed=True)
    return _Rows(paths, labels if any(labels) else None, errors)


def digest_weights(model: LoadedModel) -> str:
    """SHA-256 of a model's tensors, in the precision that it computes in."""
    digest = hashlib.sha256()
    for name, tensor in model.classifier.state_dict().items():
        digest.update(f"{name} {tensor_digest(tensor)}\n".encode())
    return digest.hexdigest()


def _require_same_paths(job: _Job, processes: Processes) -> None:
    work = job.array.work
    seen = processes.gather((work["images"], work["list of images"]))
    for rank, each in enumerate(seen):
        if each != seen[0]:
            raise DataError(
                f"process {rank} sees other images in {work['folder']} than process 0: "
                f"{each[0]:,} against {seen[0][0]:,}",
                "on several machines the folder must hold the same files under the same path",
            )


def _start(array: PartialArray, reporter: Reporter, *, resume: bool) -> DoneBlocks:
    if resume:
        progress = array.load()
        if progress is not None:
            done = int(progress.done.sum())
            reporter.say(f"resuming: {done} of {array.num_blocks} blocks are there")
            return progress
        reporter.say(f"no unfinished rows of {array.output}: starting with the first image")
    elif array.rows.exists():
        reporter.say(f"starting again: {array.rows} is replaced, which --resume would have used")
    return array.create()


def _choose_share(done: np.ndarray, processes: Processes) -> np.ndarray:
    """The numbers of the blocks that this process computes: a part of those that are left."""
    left = np.flatnonzero(~done)
    rank, parts = processes.rank, processes.world_size
    return left[len(left) * rank // parts : len(left) * (rank + 1) // parts]


def _build_loader(
    job: _Job,
    model: LoadedModel,
    share: np.ndarray,
    workers: int | Literal["auto"],
    processes: Processes,
    reporter: Reporter,
) -> ImageLoader:
    paths, block_rows = job.rows.paths, job.array.block_rows
    if len(share) < job.array.num_blocks:
        rows = (share[:, None] * block_rows + np.arange(block_rows)).ravel()
        paths = paths.select(rows[rows < len(paths)].tolist())
    return build_eval_loader(
        paths,
        None,
        EvalTransform(model.preprocessing),
        batch_size=block_rows,
        workers=resolve_workers(workers, len(paths), processes=processes.local_world_size),
        pin_memory=find_model_device(model.classifier).type == "cuda",
        reporter=reporter,
    )


def _compute_blocks(
    batches: Iterable[Batch],
    forward: Forward,
    model: LoadedModel,
    shape: tuple[int, ...],
    streams: int,
) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    """Consecutive rows `[n, *shape]`, NaN where they failed, and why by the row's place in them."""
    device = find_model_device(model.classifier)

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        if not len(batch.positions):
            return torch.empty(0, *shape), torch.empty(0, dtype=torch.bool)
        features = compute_outputs(forward, batch.inputs, model.preprocessing, device)
        finite = find_finite_rows(features).cpu()  # a CPU-GPU sync point, like the next copy
        return features.cpu(), finite

    start = 0
    for batch, (features, finite) in compute_in_order(batches, compute, streams=streams):
        failures = dict(batch.failures)
        block = torch.full((len(batch.positions) + len(failures), *shape), float("nan"))
        block[batch.positions[finite] - start] = features[finite]
        failures |= dict.fromkeys(batch.positions[~finite].tolist(), NOT_FINITE)
        yield block.numpy(), {place - start: reason for place, reason in failures.items()}
        start += len(block)


def _write_share(
    job: _Job,
    start: DoneBlocks,
    share: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, dict[int, str]]],
    processes: Processes,
    reporter: Reporter,
) -> dict[int, str]:
    """Write this process's blocks; the rows that failed and why."""
    failures: dict[int, str] = {}
    with ExitStack() as stack:
        with processes.together():
            writer = stack.enter_context(job.array.writing(processes.rank, start.token))
        bar = stack.enter_context(reporter.progress(len(job.rows.paths), "embedding"))
        rounds = _Rounds(job, start, processes, bar)
        stop = stack.enter_context(StopRequest(reporter, once=processes.world_size == 1))
        for block, (values, reasons) in zip(share.tolist(), blocks, strict=True):
            first = block * job.array.block_rows
            failed = {first + place: reason for place, reason in sorted(reasons.items())}
            writer.write(block, values, failed)
            failures |= failed
            rounds.add(len(values))
            if stop.received is not None:
                raise build_stop_error(stop.received, f"{stop.received.name} stopped embedding")
        writer.commit()
        rounds.end()
    return failures


class _Rounds:
    """Exchanges progress among processes every few blocks, and shows it.

    This also tells a process that another has ended while it still computes. The sum of a round is
    awaited in the next one only, so that no process waits for one that is a little slower.
    """

    def __init__(self, job: _Job, start: DoneBlocks, processes: Processes, bar: Progress) -> None:
        self._processes = processes
        self._bar = bar
        done = job.array.count_rows(start.done)
        self._done_before = done
        self._own = self._blocks = 0
        self._common = int((~start.done).sum()) // processes.world_size  # blocks of every process
        self._sum = torch.zeros(1, dtype=torch.int64)
        self._finish: Callable[[], None] | None = None
        if done:
            bar.update(done - bar.n)

    def add(self, rows: int) -> None:
        """Count a block of this process."""
        self._own += rows
        self._blocks += 1
        if self._processes.world_size == 1:
            self._bar.update(rows)
        elif self._blocks % ROUND_BLOCKS == 0 and self._blocks <= self._common:
            self.end()
            self._sum = torch.tensor([self._own])
            self._finish = self._processes.start_sum(self._sum)

    def end(self) -> None:
        """Wait for the last exchange."""
        if self._finish is not None:
            self._finish()
            self._finish = None
            self._bar.update(self._done_before + int(self._sum) - self._bar.n)


@contextmanager
def _kept_for_resuming(
    job: _Job, start: DoneBlocks, processes: Processes, reporter: Reporter
) -> Iterator[None]:
    """Say how to go on after what ended the work early; remove what holds no row yet."""
    try:
        yield
    except BaseException as error:
        if processes.world_size == 1 and not start.done.any() and not job.array.holds_rows():
            job.array.remove()
            raise
        hint = f"go on with the same command and --resume: {job.array.rows} has what is done"
        if isinstance(error, KeyboardInterrupt):
            raise build_stop_error(error, "interrupted", hint) from error
        if isinstance(error, VtrainError) and error.hint is None:
            error.hint = hint
        else:
            reporter.say(hint)
        raise


def _publish(job: _Job, failures: dict[int, str], classes: Sequence[str]) -> None:
    # The array takes its place at last: a full disk here leaves the old one.
    names = ("model", "weights", "preprocessing", "precision", "layer", "feature_maps")
    facts = {
        "schema": 1,
        MADE_BY: f"{job.index.stem}.npy",
        "shape": list(job.array.shape),
        **{name: job.array.work[name] for name in names},
        **({"classes": list(classes)} if classes else {}),
    }
    write_json(facts_path(job.index), facts)
    statuses = (
        f"error: {failures[row]}" if row in failures else "ok" for row in range(len(job.rows.paths))
    )
    columns: list[Iterable[object]] = [job.rows.paths, statuses]
    header: tuple[str, ...] = ("row", "path", "status")
    if job.rows.labels is not None:
        header, columns = (*header, "label"), [*columns, job.rows.labels]
    rows = ((row, *cells) for row, cells in enumerate(zip(*columns, strict=True)))
    write_csv(job.index, header, rows)
    job.array.publish()
