"""Metrics of a model on a labelled folder, and the prediction for each of its images."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vtrain.data.folders import describe_skipped, name_first_skipped, scan_labelled
from vtrain.data.image_sets import (
    CalibrationResult,
    EvaluationResult,
    ImagePrediction,
    LabelledImages,
    SkippedFile,
    to_plain,
)
from vtrain.data.loaders import Batch, build_eval_loader, resolve_workers
from vtrain.data.transforms import EvalTransform
from vtrain.errors import DataError, ModelError
from vtrain.inference.calibration import Novelty
from vtrain.inference.forward import (
    Outputs,
    compute_probabilities,
    find_finite_rows,
    find_model_device,
)
from vtrain.inference.metrics import ClassificationMetrics, cross_entropies, rank_classes
from vtrain.inference.statistics import (
    bootstrap_confusion,
    expected_calibration_error,
    smallest_visible_difference,
)
from vtrain.inference.streams import choose_streams, compute_in_order
from vtrain.runs.checkpoint import LoadedModel
from vtrain.system.files import write_csv
from vtrain.system.terminal import one_line

SCHEMA = 1
NAMED_AT_MOST = 5
FEW_IMAGES = 10  # of a class: its precision and recall are then hardly more than a guess
_SCORED_AT_ONCE = 4_000_000  # logits; in float64 they are copied several times
_WHOLE = ("positions", "labels", "predictions", "seconds")
_DECIMALS = (
    "probabilities",
    "raw_probabilities",
    "label_probabilities",
    "second_probabilities",
    "losses",
    "distances",
)


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """What turns logits into probabilities, and features into distances."""

    temperature: float = 1.0
    novelty: Novelty | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """What to keep of all images: their logits, the features of every n-th (0: of none)."""

    logits: bool = False
    features_every: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ModelEvaluation:
    """What a model does on labelled batches.

    `positions`, `labels`, `predictions` and `seconds` (the second most probable class, -1 where
    there is none) are int64 `[N]`. `probabilities`, `label_probabilities` and
    `second_probabilities` are calibrated, `raw_probabilities` those of the predictions without
    that, `losses` plain cross-entropy of the raw logits, `distances` those from the training images
    or NaN: float64 `[N]`. All are on the CPU, for the N images that could be read. `failures` are
    (position, reason). `non_finite` are the positions of images whose logits hold NaN or infinity:
    with any of those, the metrics mean nothing. `logits` `[N, C]` and `features` `[M, D]` of the
    images at `feature_positions` are float32, and there as far as they were kept.
    """

    metrics: ClassificationMetrics
    positions: Tensor
    labels: Tensor
    predictions: Tensor
    probabilities: Tensor
    raw_probabilities: Tensor
    label_probabilities: Tensor
    seconds: Tensor
    second_probabilities: Tensor
    losses: Tensor
    distances: Tensor
    failures: tuple[tuple[int, str], ...]
    non_finite: tuple[int, ...]
    logits: Tensor | None = None
    features: Tensor | None = None
    feature_positions: Tensor | None = None

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

    def with_temperature(self, temperature: float) -> "ModelEvaluation":
        """The same with the probabilities that kept logits have at this temperature."""
        assert self.logits is not None
        rows = max(1, _SCORED_AT_ONCE // self.logits.shape[1])
        parts = [
            _score(self.logits[i : i + rows], self.labels[i : i + rows], temperature)
            for i in range(0, len(self.labels), rows)
        ]
        return replace(
            self,
            probabilities=torch.cat([part.probabilities for part in parts]),
            label_probabilities=torch.cat([part.label_probabilities for part in parts]),
            second_probabilities=torch.cat([part.second_probabilities for part in parts]),
        )

    def in_units_of(self, novelty: Novelty) -> "ModelEvaluation":
        """The same with distances that were measured with the threshold 1 in units of that."""
        # In float32, as `Novelty.distances` computes them: the same bits as in every later command.
        return replace(self, distances=(self.distances.float() / novelty.threshold).double())


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Columns of a batch, on the device; names as in `ModelEvaluation`."""

    predictions: Tensor
    probabilities: Tensor
    raw_probabilities: Tensor
    label_probabilities: Tensor
    seconds: Tensor
    second_probabilities: Tensor


def _score(logits: Tensor, labels: Tensor, temperature: float) -> _Scores:
    ranked = rank_classes(logits, 2)
    probabilities = compute_probabilities(logits, temperature)
    top = probabilities.gather(1, ranked)
    raw = compute_probabilities(logits, 1.0) if temperature != 1.0 else probabilities
    alone = ranked.shape[1] == 1
    return _Scores(
        predictions=ranked[:, 0],
        probabilities=top[:, 0],
        raw_probabilities=raw.gather(1, ranked[:, :1])[:, 0],
        label_probabilities=probabilities.gather(1, labels[:, None])[:, 0],
        seconds=ranked[:, -1] if not alone else torch.full_like(labels, -1),
        second_probabilities=top[:, -1] if not alone else torch.full_like(top[:, 0], math.nan),
    )


@torch.inference_mode()
def evaluate_model(
    compute: Callable[[Tensor], Outputs],
    batches: Iterable[Batch],
    *,
    num_classes: int,
    device: torch.device,
    scoring: Scoring | None = None,
    keep: Keep | None = None,
    streams: int = 1,
    on_batch: Callable[[int], object] | None = None,
) -> ModelEvaluation:
    """Gather what a model says of labelled batches.

    `compute` turns a batch's inputs (on the CPU) into outputs on `device`; the model behind it is
    in evaluation mode. `streams` batches are computed at a time, see `compute_in_order`. `on_batch`
    gets the number of images done since its last call.
    """
    metrics = ClassificationMetrics(num_classes, device)
    gathered = _Gathered(metrics, device, scoring or Scoring(), keep or Keep())

    def compute_batch(batch: Batch) -> Outputs | None:
        return compute(batch.inputs) if len(batch.positions) else None

    for batch, outputs in compute_in_order(batches, compute_batch, streams=streams):
        gathered.failures.extend(batch.failures)
        if outputs is not None:
            gathered.add(batch, outputs)
        if on_batch is not None:
            on_batch(len(batch.positions) + len(batch.failures))
    return gathered.finish()


class _Gathered:
    """Columns of the batches so far."""

    def __init__(
        self, metrics: ClassificationMetrics, device: torch.device, scoring: Scoring, keep: Keep
    ) -> None:
        self.metrics, self.device, self.scoring, self.keep = metrics, device, scoring, keep
        self.failures: list[tuple[int, str]] = []
        self.rows: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, outputs: Outputs) -> None:
        logits = outputs.logits
        labels = batch.labels.to(self.device, non_blocking=True)
        self.metrics.update(logits, labels)
        scores = _score(logits, labels, self.scoring.temperature)
        # Stays on the device until the end: copying here would wait for every batch.
        self._append(
            positions=batch.positions,
            labels=batch.labels,
            losses=cross_entropies(logits, labels),
            finite=find_finite_rows(logits),
            **{name: getattr(scores, name) for name in _Scores.__dataclass_fields__},
        )
        features, novelty = outputs.features, self.scoring.novelty
        if novelty is not None and features is not None:
            self._append(distances=novelty.distances(features))
        if self.keep.logits:
            self._append(logits=logits.cpu())
        if self.keep.features_every and features is not None:
            chosen = batch.positions % self.keep.features_every == 0
            kept = features[chosen.to(self.device)].cpu()
            self._append(features=kept, feature_positions=batch.positions[chosen])

    def _append(self, **columns: Tensor) -> None:
        for name, column in columns.items():
            self.rows.setdefault(name, []).append(column)

    def finish(self) -> ModelEvaluation:
        columns = {name: torch.cat(parts).cpu() for name, parts in self.rows.items()}
        whole = torch.zeros(0, dtype=torch.int64)
        for name in _WHOLE:
            columns.setdefault(name, whole)
        for name in _DECIMALS:
            blank = torch.full((len(columns["positions"]),), math.nan, dtype=torch.float64)
            columns[name] = columns[name].double() if name in columns else blank
        finite = columns.pop("finite", whole.bool())
        self.metrics.to_cpu()
        return ModelEvaluation(
            metrics=self.metrics,
            failures=tuple(self.failures),
            non_finite=tuple(columns["positions"][~finite].tolist()),
            **columns,
        )


def merge_evaluations(parts: Sequence[ModelEvaluation]) -> ModelEvaluation:
    """One evaluation of several on disjoint images, in the order of the parts."""
    first, *others = parts
    for other in others:
        first.metrics.merge(other.metrics)
    columns: dict[str, Tensor] = {}
    for name in (*_WHOLE, *_DECIMALS, "logits", "features", "feature_positions"):
        found = [getattr(part, name) for part in parts]
        kept = [each for each in found if each is not None]
        if kept:
            columns[name] = torch.cat(kept)
    return ModelEvaluation(
        metrics=first.metrics,
        **columns,
        failures=tuple(failure for part in parts for failure in part.failures),
        non_finite=tuple(position for part in parts for position in part.non_finite),
    )


def evaluate(
    folder: Path,
    model: LoadedModel,
    *,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    raw: bool = False,
    tta: bool = False,
    notify: Callable[[str], None],
    progress: Callable[[int, int], object] | None = None,
) -> tuple[EvaluationResult, list[ImagePrediction]]:
    """Metrics on a folder with one subfolder per class, and the prediction of every image.

    Classes are matched to the model's by name. Images that cannot be read are in `failures` of
    the result and count in no metric; whether that is an error is up to the caller. `raw` leaves
    the model's temperature out, `tta` averages over four views of each image. `progress` gets the
    number of images done and of all.

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
    compute, temperature = model.choose_compute(raw=raw, tta=tta)
    evaluation = evaluate_model(
        compute,
        batches,
        num_classes=len(model.classes),
        device=device,
        scoring=Scoring(temperature, model.novelty),
        streams=choose_streams(device),
        on_batch=counter.advance,
    )
    found = build_result(evaluation, images, temperature=1.0 if raw else model.temperature)
    return found, list_predictions(evaluation, images)


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


def build_result(
    evaluation: ModelEvaluation,
    images: LabelledImages,
    *,
    temperature: float,
    held_out: Tensor | None = None,
) -> EvaluationResult:
    """The metrics as plain numbers, with 95 % intervals.

    `temperature` is the one that the probabilities have; `held_out` `[N]` are those of the
    predictions at temperatures that were fitted without the image, where it was fitted on these.

    Raises:
        DataError: no image could be read.
        ModelError: the model gives logits that are not finite.
    """
    _require_answers(evaluation, images)
    confusion = evaluation.metrics.confusion
    counts = confusion.counts.numpy()
    intervals = bootstrap_confusion(counts)
    per_class = tuple(
        replace(row, precision_interval=precision, recall_interval=recall)
        for row, precision, recall in zip(
            confusion.per_class(images.classes),
            intervals.precision,
            intervals.recall,
            strict=True,
        )
    )
    return EvaluationResult(
        classes=images.classes,
        count=len(evaluation.positions),
        top1=evaluation.top1,
        top5=evaluation.metrics.top_k.value(),
        macro_f1=evaluation.macro_f1,
        loss=evaluation.loss,
        per_class=per_class,
        confusion_matrix=tuple(tuple(row) for row in confusion.counts.tolist()),
        failures=_list_failures(evaluation, images),
        top1_interval=intervals.accuracy,
        macro_f1_interval=intervals.macro_f1,
        weighted_f1=confusion.weighted_f1(),
        calibration=_build_calibration(evaluation, temperature, held_out),
        warnings=tuple(_list_warnings(evaluation, images)),
    )


def _require_answers(evaluation: ModelEvaluation, images: LabelledImages) -> None:
    if not len(evaluation.positions):
        failures = _list_failures(evaluation, images)[:1]
        first = [f", the first is {one_line(each.path)}: {each.reason}" for each in failures]
        root = one_line(images.root)
        raise DataError(f"none of the {len(images)} images in {root} can be read{''.join(first)}")
    if evaluation.non_finite:
        raise ModelError(
            f"the model's output is not finite for {len(evaluation.non_finite)} of "
            f"{len(evaluation.positions)} images, "
            f"the first is {one_line(images.paths[evaluation.non_finite[0]])}",
            "the weights are damaged or the training diverged: use another model",
        )


def _list_failures(evaluation: ModelEvaluation, images: LabelledImages) -> tuple[SkippedFile, ...]:
    return tuple(
        SkippedFile(images.paths[position], reason) for position, reason in evaluation.failures
    )


def _build_calibration(
    evaluation: ModelEvaluation, temperature: float, held_out: Tensor | None
) -> CalibrationResult:
    correct = (evaluation.predictions == evaluation.labels).numpy()
    ece, bins = expected_calibration_error(evaluation.probabilities.numpy(), correct)
    ece_raw, bins_raw = expected_calibration_error(evaluation.raw_probabilities.numpy(), correct)
    without = None
    if held_out is not None:
        without = expected_calibration_error(held_out.numpy(), correct)[0]
    return CalibrationResult(temperature, ece, ece_raw, without, bins, bins_raw)


def _list_warnings(evaluation: ModelEvaluation, images: LabelledImages) -> Iterator[str]:
    """What keeps the figures from being taken at face value."""
    count, counts = len(evaluation.positions), evaluation.metrics.confusion.counts
    visible = smallest_visible_difference(count, evaluation.top1)
    if visible >= 0.01:
        yield (
            f"{count} image{'' if count == 1 else 's'} cannot show a difference between two models "
            f"that is smaller than about {100 * visible:.0f} points of top-1"
        )
    support, predicted = counts.sum(dim=1).tolist(), counts.sum(dim=0).tolist()
    few = [
        name
        for name, images_of in zip(images.classes, support, strict=True)
        if 0 < images_of < FEW_IMAGES
    ]
    if few:
        yield f"fewer than {FEW_IMAGES} images of {_name_some(few)}: see their intervals"
    never = [
        name
        for name, labelled, times in zip(images.classes, support, predicted, strict=True)
        if labelled and not times
    ]
    if never:
        yield f"never predicted: {_name_some(never)}"


def _name_some(names: Sequence[str]) -> str:
    shown = ", ".join(map(one_line, names[:NAMED_AT_MOST]))
    more = len(names) - NAMED_AT_MOST
    return f"{shown} and {more} more classes" if more > 0 else shown


def list_predictions(evaluation: ModelEvaluation, images: LabelledImages) -> list[ImagePrediction]:
    """One row for every image that could be read, in the order of `images`."""
    classes = images.classes
    names = (
        *("positions", "labels", "predictions", "probabilities"),
        *("label_probabilities", "seconds", "second_probabilities", "distances"),
    )
    columns = (getattr(evaluation, name).tolist() for name in names)
    return [
        ImagePrediction(
            path=images.paths[position],
            label=classes[label],
            prediction=classes[prediction],
            probability=probability,
            correct=label == prediction,
            label_probability=of_label,
            second=classes[second] if second >= 0 else "",
            second_probability=of_second,
            distance=distance,
        )
        for position, label, prediction, probability, of_label, second, of_second, distance in zip(
            *columns, strict=True
        )
    ]


def write_predictions_csv(path: Path, rows: Iterable[ImagePrediction]) -> None:
    """Write one row per image, the fields of `ImagePrediction` by their names.

    `correct` is 0 or 1, numbers that are not known are empty.

    Raises:
        ResourceError: no space left; an earlier file is intact.
    """
    header = tuple(ImagePrediction.__dataclass_fields__)
    write_csv(path, header, ([_plain_cell(getattr(row, name)) for name in header] for row in rows))


def _plain_cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluation_json(result: EvaluationResult) -> dict[str, Any]:
    """The object that `vtrain evaluate --json` prints, and that a run folder keeps."""
    plain = to_plain(result)
    per_class = [
        {"class": row["name"], **{key: value for key, value in row.items() if key != "name"}}
        for row in plain["per_class"]
    ]
    failures = [{"path": str(each.path), "error": each.reason} for each in result.failures]
    figures = {
        name: plain[name]
        for name in (
            *("top1", "top1_interval", "top5", "macro_f1", "macro_f1_interval", "weighted_f1"),
            *("loss", "count", "calibration", "warnings"),
        )
    }
    return {
        "schema": SCHEMA,
        **figures,
        "per_class": per_class,
        "confusion_matrix": plain["confusion_matrix"],
        "classes": plain["classes"],
        "failures": failures,
    }
