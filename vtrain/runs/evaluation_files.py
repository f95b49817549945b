"""What an evaluation leaves in a run folder: metrics as JSON, predictions as a table."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vtrain.data.image_sets import LabelledImages, SkippedFile
from vtrain.errors import DataError, ModelError
from vtrain.inference.calibration import CalibrationResult, JsonFloat
from vtrain.inference.metrics import ClassMetrics
from vtrain.inference.scores import ModelEvaluation
from vtrain.inference.statistics import (
    Interval,
    bootstrap_confusion,
    expected_calibration_error,
    smallest_visible_difference,
)
from vtrain.system.json_csv import (
    SCHEMA,
    from_plain,
    read_csv_cell,
    read_json_object,
    to_plain,
    write_csv,
)
from vtrain.system.text import one_line

NAMED_AT_MOST = 5
FEW_IMAGES = 10  # of a class: its precision and recall are then hardly more than a guess


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Metrics on a labelled folder: what `vtrain evaluate --json` prints, and a run folder keeps.

    `confusion_matrix[t][p]` counts images of class `t` predicted as class `p`. `failures` are the
    images that could not be read; they count in no metric. Intervals are those of 95 %. `loss` is
    that of the raw logits. `warnings` say what keeps the figures from being taken at face value.
    """

    top1: JsonFloat
    top1_interval: Interval | None = None
    top5: JsonFloat
    macro_f1: JsonFloat
    macro_f1_interval: Interval | None = None
    weighted_f1: JsonFloat = math.nan
    loss: JsonFloat
    count: int
    calibration: CalibrationResult | None = None
    warnings: tuple[str, ...] = ()
    per_class: tuple[ClassMetrics, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    failures: tuple[SkippedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What a model says of one labelled image; probabilities are between 0 and 1.

    `correct` compares the classes themselves: two of them may have one name. `label_probability`
    is that of the label, `second` the second most probable class (empty where there is one class
    alone). `distance` tells how unlike the training images the image is: above 1 it is further
    from them than 95 % of the validation images; NaN where the model cannot tell.
    """

    path: Path
    label: str
    prediction: str
    probability: JsonFloat
    correct: bool
    label_probability: JsonFloat = math.nan
    second: str = ""
    second_probability: JsonFloat = math.nan
    distance: JsonFloat = math.nan


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
    rows = confusion.per_class(images.classes)
    per_class = tuple(
        replace(row, precision_interval=precision, recall_interval=recall)
        for row, precision, recall in zip(rows, intervals.precision, intervals.recall, strict=True)
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
    rows = list(zip(images.classes, support, predicted, strict=True))
    if few := [name for name, labelled, _ in rows if 0 < labelled < FEW_IMAGES]:
        yield f"fewer than {FEW_IMAGES} images of {_name_some(few)}: see their intervals"
    if never := [name for name, labelled, times in rows if labelled and not times]:
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
    plain["per_class"] = [{"class": row.pop("name"), **row} for row in plain["per_class"]]
    plain["failures"] = [{"path": p["path"], "error": p["reason"]} for p in plain["failures"]]
    return {"schema": SCHEMA, **plain}


def read_evaluation(path: Path) -> EvaluationResult:
    """What `evaluation_json` has made of a result, from its file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or something else.
    """
    content = read_json_object(path)
    try:
        content["per_class"] = [{"name": row.pop("class"), **row} for row in content["per_class"]]
        failures = [{"path": p["path"], "reason": p["error"]} for p in content["failures"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no evaluation: {type(error).__name__} {error!s:.100}") from error
    found = from_plain(EvaluationResult, {**content, "failures": failures})
    matrix = found.confusion_matrix
    if any(len(each) != len(found.classes) for each in (matrix, *matrix)):
        raise ValueError("the confusion matrix does not fit the classes")
    return found


def evaluation_path(run_dir: Path, split: str) -> Path:
    """Where the metrics of a split stand: the object that `vtrain evaluate --json` prints."""
    return run_dir / f"evaluation-{split}.json"


def predictions_path(run_dir: Path, split: str) -> Path:
    """Where the answer for each image of a split stands."""
    return run_dir / f"predictions-{split}.csv"


def features_path(run_dir: Path, split: str) -> Path:
    """Where features of some images of a split stand: `features` `[M, D]` and `rows` `[M]`."""
    return run_dir / f"features-{split}.safetensors"


def read_predictions(run_dir: Path, split: str) -> list[ImagePrediction]:
    """The rows of `predictions-<split>.csv`, in its order.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = predictions_path(run_dir, split)
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            rows = csv.DictReader(stream, restval="")
            cells = [{name: read_csv_cell(row[name]) for name in row if name} for row in rows]
        return from_plain(list[ImagePrediction], cells)
    except FileNotFoundError as error:
        raise ModelError(
            f"{run_dir} holds no {path.name}", "finish the run: vtrain fit CONFIG --resume"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise ModelError(f"{path} is damaged: {error!s:.200}") from error
