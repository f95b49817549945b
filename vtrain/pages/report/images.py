"""What a report says of a run beyond its files: an evaluation in safe types, mistakes, a map."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtrain.data.image_sets import CalibrationBin, ImagePrediction
from vtrain.errors import ModelError

Interval = tuple[float, float]
Floats = NDArray[np.float64]
MAX_MAP = 2000  # images on a map; more cannot be told apart


@dataclass(frozen=True, slots=True)
class ClassRow:
    """Metrics of one class between 0 and 1, NaN where unknown; intervals are of 95 %."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Reliability after temperature scaling, and `raw` before; errors between 0 and 1.

    `ece_held_out` is that at temperatures fitted without the image, NaN where not known.
    """

    temperature: float
    ece: float
    ece_raw: float
    ece_held_out: float
    bins: tuple[CalibrationBin, ...]
    raw: tuple[CalibrationBin, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The content of `evaluation-<split>.json`, NaN where a number is missing."""

    count: int
    top1: float
    top5: float
    macro_f1: float
    weighted_f1: float
    loss: float
    top1_interval: Interval | None
    macro_f1_interval: Interval | None
    classes: tuple[str, ...]
    per_class: tuple[ClassRow, ...]
    matrix: tuple[tuple[int, ...], ...]
    failures: int
    calibration: Calibration | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Coordinates `[M, 2]` of images, rows of the predictions `[M]`, and the variance shown."""

    places: Floats
    rows: tuple[int, ...]
    explained: float


def read_evaluation(content: Mapping[str, Any]) -> Evaluation:
    """An evaluation as `vtrain evaluate --json` prints it; keys of later versions may be missing.

    Raises:
        ModelError: it is something else.
    """
    try:
        classes = tuple(str(name) for name in content["classes"])
        matrix = tuple(tuple(int(count) for count in row) for row in content["confusion_matrix"])
        if any(len(row) != len(classes) for row in matrix) or len(matrix) != len(classes):
            raise ValueError("the confusion matrix does not fit the classes")
        calibration = content.get("calibration")
        return Evaluation(
            count=int(content["count"]),
            top1=_number(content["top1"]),
            top5=_number(content.get("top5")),
            macro_f1=_number(content["macro_f1"]),
            weighted_f1=_number(content.get("weighted_f1")),
            loss=_number(content.get("loss")),
            top1_interval=_interval(content.get("top1_interval")),
            macro_f1_interval=_interval(content.get("macro_f1_interval")),
            classes=classes,
            per_class=tuple(_read_class(row) for row in content["per_class"]),
            matrix=matrix,
            failures=len(content.get("failures") or ()),
            calibration=_read_calibration(calibration) if calibration else None,
            warnings=tuple(str(each) for each in content.get("warnings") or ()),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ModelError(f"it is no evaluation: {type(error).__name__} {error!s:.100}") from error


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _interval(value: Any) -> Interval | None:
    if not value:
        return None
    low, high = (_number(each) for each in value)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _read_class(row: Mapping[str, Any]) -> ClassRow:
    return ClassRow(
        str(row["class"]),
        _number(row["precision"]),
        _number(row["recall"]),
        _number(row["f1"]),
        int(row["support"]),
        _interval(row.get("precision_interval")),
        _interval(row.get("recall_interval")),
    )


def _read_calibration(content: Mapping[str, Any]) -> Calibration:
    def bins(name: str) -> tuple[CalibrationBin, ...]:
        names = ("low", "high", "count", "confidence", "accuracy")
        numbers = ([_number(each.get(key)) for key in names] for each in content.get(name) or ())
        return tuple(CalibrationBin(a, b, int(c), d, e) for a, b, c, d, e in numbers)

    return Calibration(
        _number(content.get("temperature")),
        _number(content.get("ece")),
        _number(content.get("ece_raw")),
        _number(content.get("ece_held_out")),
        bins("bins"),
        bins("bins_raw"),
    )


# --- images --------------------------------------------------------------------------------------


def find_worst(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Wrong predictions, the most confident first."""
    wrong = [each for each in predictions if not each.correct]
    return sorted(wrong, key=lambda each: -_sortable(each.probability))[:limit]


def find_least_sure(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Images whose two most probable classes are nearest to each other, right or wrong."""

    def margin(each: ImagePrediction) -> float:
        second = each.second_probability
        return each.probability - (second if math.isfinite(second) else 1 - each.probability)

    known = [each for each in predictions if math.isfinite(each.probability)]
    return sorted(known, key=margin)[:limit]


def find_label_errors(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Images whose given label is likely wrong, the clearest first, by confident learning.

    A class counts as probable for an image where its probability reaches the mean probability
    that the model gives to that class on the images labelled with it. An image is listed where
    the most probable of these classes is not its label; the order is that of the label's
    probability less that of the prediction. Only the label and the two most probable classes are
    known of each image. Northcutt, Jiang and Chuang, arXiv:1911.00068.
    """
    given: dict[str, list[float]] = defaultdict(list)
    for each in predictions:
        if math.isfinite(each.label_probability):
            given[each.label].append(each.label_probability)
    thresholds = {name: math.fsum(values) / len(values) for name, values in given.items()}
    suspects = []
    for each in predictions:
        if each.correct or not math.isfinite(each.label_probability):
            continue
        for name, probability in (
            (each.prediction, each.probability),
            (each.second, each.second_probability),
        ):
            if probability >= thresholds.get(name, math.inf):
                if name != each.label:
                    suspects.append(each)
                break
    return sorted(suspects, key=lambda each: each.label_probability - each.probability)[:limit]


def find_strangest(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Images that are unlike the training images, the furthest first."""
    far = [each for each in predictions if each.distance > 1]
    return sorted(far, key=lambda each: -each.distance)[:limit]


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else -1.0


# --- the map -------------------------------------------------------------------------------------


def build_map(features: NDArray[Any], rows: Sequence[int]) -> EmbeddingMap | None:
    """Project features `[M, D]` on their first two principal components.

    Rows that are not finite are left out; None where fewer than three differ.
    """
    values = np.asarray(features, dtype=np.float64)
    finite = np.isfinite(values.sum(axis=1))
    values = values[finite]
    if len(values) < 3 or values.shape[1] < 2:
        return None
    values = values - values.mean(axis=0)
    total = float((values**2).sum())
    if total <= 1e-12 * values.size:
        return None
    places, singular = principal_components(values)
    kept = tuple(int(row) for row, fine in zip(rows, finite, strict=True) if fine)
    return EmbeddingMap(places, kept, min(float((singular**2).sum()) / total, 1.0))


def principal_components(centred: Floats) -> tuple[Floats, Floats]:
    """The coordinates `[M, 2]` of centred rows `[M, D]`, and the two singular values.

    A whole SVD of 2,000 x 2,048 takes seconds; this one starts from the same random numbers each
    time. Signs are those that make the largest coordinate positive.
    """
    import torch  # a page without a map needs none

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` reaches GPUs as well
        left, singular, _ = torch.pca_lowrank(
            torch.from_numpy(centred), q=min(10, *centred.shape), center=False, niter=20
        )
    places = (left[:, :2] * singular[:2]).numpy()
    largest = np.abs(places).argmax(axis=0)
    places *= np.where(places[largest, [0, 1]] < 0, -1.0, 1.0)
    return places, singular[:2].numpy()


def read_map(path: Path) -> EmbeddingMap | None:
    """The map of the features in `features-<split>.safetensors`.

    Raises:
        ModelError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        features, rows = tensors["features"], tensors["rows"]
        if features.ndim != 2 or rows.shape != (len(features),):
            raise ValueError(f"shapes {features.shape} and {rows.shape} do not fit")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path.name} is damaged: {error!s:.200}") from error
    return build_map(features[:MAX_MAP], rows[:MAX_MAP].tolist())
