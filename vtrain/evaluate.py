"""Metrics of a model on a labelled folder, and the prediction for each of its images."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vtrain.checkpoint import LoadedModel
from vtrain.console import one_line
from vtrain.data.folders import describe_skipped, name_first_skipped, scan_labelled
from vtrain.data.loaders import Batch, build_eval_loader, resolve_workers
from vtrain.data.transforms import EvalTransform
from vtrain.errors import DataError, ModelError
from vtrain.files import write_csv
from vtrain.records import EvaluationResult, ImagePrediction, LabelledImages, SkippedFile, to_plain
from vtrain.training.inference import (
    compute_outputs,
    find_finite_rows,
    find_model_device,
    find_top_classes,
)
from vtrain.training.metrics import ClassificationMetrics, cross_entropies
from vtrain.training.streams import choose_streams, compute_in_order

SCHEMA = 1
NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True, eq=False)
class ModelEvaluation:
    """What a model does on labelled batches.

    `positions`, `labels` and `predictions` are int64 `[N]`, `probabilities` and `losses` (plain
    cross-entropy) float64 `[N]`, all on the CPU, for the N images that could be read. `failures`
    are (position, reason). `non_finite` are the positions of images whose logits hold NaN or
    infinity: with any of those, the metrics mean nothing.
    """

    metrics: ClassificationMetrics
    positions: Tensor
    labels: Tensor
    predictions: Tensor
    probabilities: Tensor
    losses: Tensor
    failures: tuple[tuple[int, str], ...]
    non_finite: tuple[int, ...]

    @property
    def top1(self) -> float:
        """Share of correct predictions, 0 to 1; NaN without images."""
        return self.metrics.confusion.accuracy()

    @property
    def macro_f1(self) -> float:
        """See `ConfusionMatrix.macro_f1`."""
        return self.metrics.confusion.macro_f1()

    @property
    def loss(self) -> float:
        """Mean cross-entropy per image, without label smoothing; NaN for non-finite logits."""
        # Summed exactly, and so the same however the images were split over processes.
        return math.fsum(self.losses.tolist()) / len(self.losses) if len(self.losses) else math.nan


@torch.inference_mode()
def evaluate_model(
    compute_logits: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    num_classes: int,
    device: torch.device,
    streams: int = 1,
    on_batch: Callable[[int], object] | None = None,
) -> ModelEvaluation:
    """Gather what a model says of labelled batches.

    `compute_logits` turns a batch's inputs (on the CPU) into float32 logits `[B, C]` on `device`;
    the model behind it is in evaluation mode. `streams` batches are computed at a time, see
    `compute_in_order`. `on_batch` gets the number of images done since its last call.
    """
    metrics = ClassificationMetrics(num_classes, device)
    failures: list[tuple[int, str]] = []
    rows: list[tuple[Tensor, ...]] = []

    def compute(batch: Batch) -> Tensor | None:
        return compute_logits(batch.inputs) if len(batch.positions) else None

    for batch, logits in compute_in_order(batches, compute, streams=streams):
        failures.extend(batch.failures)
        if logits is not None:
            labels = batch.labels.to(device, non_blocking=True)
            metrics.update(logits, labels)
            ranked, probabilities = find_top_classes(logits, 1)
            finite = find_finite_rows(logits)
            # Stays on the device until the end: copying here would wait for every batch.
            columns = (ranked[:, 0], probabilities[:, 0], cross_entropies(logits, labels), finite)
            rows.append((batch.positions, batch.labels, *columns))
        if on_batch is not None:
            on_batch(len(batch.positions) + len(batch.failures))
    positions, truth, predictions, probabilities, losses, finite = _join(rows)
    metrics.to_cpu()
    return ModelEvaluation(
        metrics=metrics,
        positions=positions,
        labels=truth,
        predictions=predictions,
        probabilities=probabilities.double(),
        losses=losses.double(),
        failures=tuple(failures),
        non_finite=tuple(positions[~finite].tolist()),
    )


def _join(rows: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    if not rows:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none, none, none.double(), none.double(), none.bool()
    return tuple(torch.cat(column).cpu() for column in zip(*rows, strict=True))


def merge_evaluations(parts: Sequence[ModelEvaluation]) -> ModelEvaluation:
    """One evaluation of several on disjoint images, in the order of the parts."""
    first, *others = parts
    for other in others:
        first.metrics.merge(other.metrics)
    columns = ("positions", "labels", "predictions", "probabilities", "losses")
    return ModelEvaluation(
        metrics=first.metrics,
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in columns},
        failures=tuple(failure for part in parts for failure in part.failures),
        non_finite=tuple(position for part in parts for position in part.non_finite),
    )


def evaluate(
    folder: Path,
    model: LoadedModel,
    *,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    notify: Callable[[str], None],
    progress: Callable[[int, int], object] | None = None,
) -> tuple[EvaluationResult, list[ImagePrediction]]:
    """Metrics on a folder with one subfolder per class, and the prediction of every image.

    Classes are matched to the model's by name. Images that cannot be read are in `failures` of
    the result and count in no metric; whether that is an error is up to the caller. `progress` gets
    the number of images done and of all.

    Raises:
        DataError: not a labelled folder, a class that the model lacks, or no readable image.
        ModelError: the model gives logits that are not finite.
        ResourceError: a loader worker died or hung.
    """
    images = _scan(folder, model.classes, notify)
    for message in describe_match(images):
        notify(message)
    batches = build_eval_loader(
        images.paths,
        images.labels,
        EvalTransform(model.preprocessing),
        batch_size=batch_size,
        workers=resolve_workers(workers, len(images)),
        pin_memory=find_model_device(model.classifier).type == "cuda",
        notify=notify,
    )
    counter = _Counter(len(images), progress)
    device = find_model_device(model.classifier)
    evaluation = evaluate_model(
        lambda images: compute_outputs(model.classifier, images, model.preprocessing, device),
        batches,
        num_classes=len(model.classes),
        device=device,
        streams=choose_streams(device),
        on_batch=counter.advance,
    )
    return build_result(evaluation, images), list_predictions(evaluation, images)


def _scan(folder: Path, classes: Sequence[str], notify: Callable[[str], None]) -> LabelledImages:
    # ImageNet's published names repeat ("crane" the bird, "crane" the machine): a folder of such
    # a name is taken for the first of them, and its images count once.
    numbers = {name: number for number, name in reversed(list(enumerate(classes)))}
    names = tuple(dict.fromkeys(classes))
    found = scan_labelled(folder, classes=names, name="folder", notify=notify)
    labels = tuple(numbers[names[label]] for label in found.labels)
    if not labels:
        raise DataError(
            f"{one_line(folder)} holds no images in folders named like the model's classes"
            f"{name_first_skipped(found.skipped)}"
        )
    return LabelledImages(folder, tuple(classes), found.paths, labels, found.skipped)


@dataclass(slots=True)
class _Counter:
    total: int
    progress: Callable[[int, int], object] | None
    done: int = 0

    def advance(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def describe_match(images: LabelledImages) -> list[str]:
    """What a user should know about the match of a folder to the model's classes."""
    counts = list(zip(images.classes, images.class_counts(), strict=True))
    present = {name for name, count in counts if count}
    missing = [name for name, _ in counts if name not in present]
    messages = [
        f"class {name!r} is the name of {images.classes.count(name)} of the model's classes; "
        f"the folder is taken for number {number}, counted from 0"
        for number, (name, count) in enumerate(counts)
        if count and images.classes.count(name) > 1
    ]
    if missing:
        named = ": " + ", ".join(map(one_line, missing)) if len(missing) <= NAMED_AT_MOST else ""
        messages.append(
            f"{len(missing)} of the model's {len(images.classes)} classes have no images "
            f"in {one_line(images.root)}{named}; they can still be predicted"
        )
    if images.skipped:
        messages.append(describe_skipped(images.root, images.skipped))
    return messages


def build_result(evaluation: ModelEvaluation, images: LabelledImages) -> EvaluationResult:
    """The metrics as plain numbers.

    Raises:
        DataError: no image could be read.
        ModelError: the model gives logits that are not finite.
    """
    failures = tuple(
        SkippedFile(images.paths[position], reason) for position, reason in evaluation.failures
    )
    if not len(evaluation.positions):
        first = [f", the first is {one_line(each.path)}: {each.reason}" for each in failures[:1]]
        root = one_line(images.root)
        raise DataError(f"none of the {len(images)} images in {root} can be read{''.join(first)}")
    if evaluation.non_finite:
        raise ModelError(
            f"the model's output is not finite for {len(evaluation.non_finite)} of "
            f"{len(evaluation.positions)} images, "
            f"the first is {one_line(images.paths[evaluation.non_finite[0]])}",
            "the weights are damaged or the training diverged: use another model",
        )
    confusion = evaluation.metrics.confusion
    return EvaluationResult(
        classes=images.classes,
        count=len(evaluation.positions),
        top1=evaluation.top1,
        top5=evaluation.metrics.top_k.value(),
        macro_f1=evaluation.macro_f1,
        loss=evaluation.loss,
        per_class=confusion.per_class(images.classes),
        confusion_matrix=tuple(tuple(row) for row in confusion.counts.tolist()),
        failures=failures,
    )


def list_predictions(evaluation: ModelEvaluation, images: LabelledImages) -> list[ImagePrediction]:
    """One row for every image that could be read, in the order of `images`."""
    columns = (
        evaluation.positions,
        evaluation.labels,
        evaluation.predictions,
        evaluation.probabilities,
    )
    return [
        ImagePrediction(
            images.paths[position],
            images.classes[label],
            images.classes[prediction],
            probability,
            label == prediction,
        )
        for position, label, prediction, probability in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def write_predictions_csv(path: Path, rows: Iterable[ImagePrediction]) -> None:
    """Write one row per image: path, label, prediction, probability (0 to 1), correct (0 or 1).

    Raises:
        ResourceError: no space left; an earlier file is intact.
    """
    header = ("path", "label", "prediction", "probability", "correct")
    cells = (
        (row.path, row.label, row.prediction, row.probability, int(row.correct)) for row in rows
    )
    write_csv(path, header, cells)


def evaluation_json(result: EvaluationResult) -> dict[str, Any]:
    """The object that `vtrain evaluate --json` prints."""
    per_class = [
        {"class": row["name"], **{key: value for key, value in row.items() if key != "name"}}
        for row in to_plain(result.per_class)
    ]
    failures = [{"path": str(each.path), "error": each.reason} for each in result.failures]
    return {
        "schema": SCHEMA,
        "top1": result.top1,
        "top5": result.top5,
        "macro_f1": result.macro_f1,
        "loss": result.loss,
        "count": result.count,
        "per_class": per_class,
        "confusion_matrix": [list(row) for row in result.confusion_matrix],
        "classes": list(result.classes),
        "failures": failures,
    }
