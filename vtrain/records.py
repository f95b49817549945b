"""Plain records that the layers hand to one another; this module imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a model's input at evaluation; stored in every model file.

    EXIF orientation is applied, alpha is composited on `background`, the shorter edge is resized
    to `resize` pixels, the centre `crop` × `crop` pixels are kept, and each channel becomes
    `(value / 255 - mean) / std`.
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    background: tuple[int, int, int] = (255, 255, 255)
    exif: Literal["applied"] = "applied"
    alpha: Literal["composited"] = "composited"

    def with_image_size(self, image_size: int) -> "Preprocessing":
        """The same preprocessing for another input size: the ratio of resize to crop is kept."""
        resize = max(image_size, round(self.resize * image_size / self.crop))
        return replace(self, resize=resize, crop=image_size)


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file or folder below an image folder that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of one split in the order of the scan: `labels[i]` indexes `classes`."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    skipped: tuple[SkippedFile, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def class_counts(self) -> list[int]:
        """Number of images of each class, in the order of `classes`."""
        counts = [0] * len(self.classes)
        for label in self.labels:
            counts[label] += 1
        return counts

    def subset(self, indices: Sequence[int]) -> "LabelledImages":
        """The images at `indices`, in that order, with the same classes."""
        paths = tuple(self.paths[i] for i in indices)
        labels = tuple(self.labels[i] for i in indices)
        return LabelledImages(self.root, self.classes, paths, labels, self.skipped)


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """One row of `metrics.jsonl` and `metrics.csv`.

    `step` counts optimiser steps since the start of the run, `lr` is the head's learning rate at
    the epoch's last step, losses are means per image, `images_per_second` counts training images,
    `data_wait` is the share of training time (0 to 1) spent waiting for the loader.
    """

    phase: str
    epoch: int
    step: int
    lr: float
    train_loss: float
    val_loss: float
    val_top1: float
    val_macro_f1: float
    images_per_second: float
    data_wait: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """One class and its probability between 0 and 1."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one input: classes by falling probability, or the reason why there is none."""

    path: str
    predictions: tuple[ClassProbability, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Precision, recall and F1 of one class (0 to 1; 0 where undefined) and its image count."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Metrics on a labelled folder.

    `confusion_matrix[t][p]` counts images of class `t` predicted as class `p`. `failures` are the
    images that could not be read; they count in no metric.
    """

    classes: tuple[str, ...]
    count: int
    top1: float
    top5: float
    macro_f1: float
    loss: float
    per_class: tuple[ClassMetrics, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    failures: tuple[SkippedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """What `embed` wrote: `[count, dim]` float32 rows, of which `failed` could not be computed."""

    output: Path
    index: Path
    count: int
    dim: tuple[int, ...]
    failures: tuple[SkippedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a finished run came to: metrics of the saved best model, and how long it took.

    `epochs` were trained, of `planned_epochs` (early stopping ends sooner).
    """

    run_dir: Path
    best_epoch: int
    val_top1: float
    val_macro_f1: float
    test_top1: float | None
    epochs: int
    planned_epochs: int
    seconds: float
    already_finished: bool = False


def to_plain(record: Any) -> Any:
    """Records, tuples and paths as dictionaries, lists and strings, ready for JSON."""
    if hasattr(record, "__dataclass_fields__"):
        return {name: to_plain(getattr(record, name)) for name in record.__dataclass_fields__}
    if isinstance(record, dict):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    return str(record) if isinstance(record, Path) else record
