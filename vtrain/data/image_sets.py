"""Plain records that the layers hand to one another; this module imports nothing heavy."""

import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

UNKNOWN = "unknown"  # the answer for what is rejected
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


# What may stand where a folder of images may, besides that.
TAR_SUFFIX = ".tar"
LIST_SUFFIXES = (".csv", ".tsv", ".txt")


class PackedPaths(Sequence[Path]):
    """Paths below one root in one bytes object: a million take some 50 MB, as `Path`s 300 MB.

    A slice or selection shares the names of the whole. It equals any sequence of the same paths.

    Args:
        root: what the names are relative to.
        names: as they go into the result of `root / name`; they may be absolute only if `mixed`.
        mixed: names may be absolute, which makes reading them somewhat slower.
    """

    __slots__ = ("_ends", "_mixed", "_names", "_order", "root")
    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __init__(self, root: Path, names: Iterable[str], *, mixed: bool = False) -> None:
        packed, self._ends = bytearray(), array("Q")
        for name in names:
            packed += os.fsencode(name)
            self._ends.append(len(packed))
        self.root = root
        self._names = bytes(packed)
        self._order: array[int] | None = None
        self._mixed = mixed

    def __len__(self) -> int:
        return len(self._ends if self._order is None else self._order)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedPaths": ...
    def __getitem__(self, index: int | slice) -> "Path | PackedPaths":
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return Path(self.root, self.name(index))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False if isinstance(other, Sequence) else NotImplemented
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"PackedPaths({self.root}, {len(self)} paths)"

    def name(self, index: int) -> str:
        """One path below the root; from behind if negative."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        place = index % len(self) if self._order is None else self._order[index]
        return os.fsdecode(self._slice(place))

    def names(self) -> Iterator[str]:
        """All paths below the root, in order."""
        return map(os.fsdecode, self.encoded_names())

    def encoded_names(self) -> Iterator[bytes]:
        """All paths below the root, in order, in the file system's encoding."""
        if self._order is not None:
            yield from map(self._slice, self._order)
            return
        first = 0
        for end in self._ends:
            yield self._names[first:end]
            first = end

    def _slice(self, place: int) -> bytes:
        return self._names[self._ends[place - 1] if place else 0 : self._ends[place]]

    def texts(self) -> Iterator[str]:
        """All paths as text that opens; faster than `str` of each path."""
        if self._mixed:
            return (str(Path(self.root, name)) for name in self.names())
        prefix = join_prefix(self.root)
        return (prefix + name for name in self.names())

    def select(self, indices: Iterable[int]) -> "PackedPaths":
        """The paths at `indices`, in that order."""
        chosen = PackedPaths(self.root, (), mixed=self._mixed)
        chosen._names, chosen._ends = self._names, self._ends
        own = self._order
        chosen._order = array("Q", indices if own is None else (own[i] for i in indices))
        return chosen


def join_prefix(root: Path | str) -> str:
    """What stands before a name below `root`: the folder and a separator, nothing for `.`."""
    if str(root) == ".":
        return ""
    return f"{str(root).removesuffix(os.sep)}{os.sep}"


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of one split in the order of the scan: `labels[i]` indexes `classes`.

    `paths` of a scan are `PackedPaths`: go through them by index or by iteration.
    """

    root: Path
    classes: tuple[str, ...]
    paths: Sequence[Path]
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

    def texts(self) -> Iterator[str]:
        """Each image's path as text; for many images faster than `str(path)` of each."""
        return self.paths.texts() if isinstance(self.paths, PackedPaths) else map(str, self.paths)

    def places(self) -> Iterator[bytes]:
        """Each image's path below the root (or the whole path), in the file system's encoding."""
        if isinstance(self.paths, PackedPaths):
            return self.paths.encoded_names()
        return (
            os.fsencode(path.relative_to(self.root) if path.is_relative_to(self.root) else path)
            for path in self.paths
        )

    def subset(self, indices: Sequence[int]) -> "LabelledImages":
        """The images at `indices`, in that order, with the same classes."""
        if isinstance(self.paths, PackedPaths):
            paths: Sequence[Path] = self.paths.select(indices)
        else:
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
    """The answer for one input: classes by falling probability, or the reason why there is none.

    `distance` tells how unlike the training images it is, see `ImagePrediction`; None where the
    model cannot tell. `rejected` is why the answer is `unknown` in spite of its classes.
    """

    path: str
    predictions: tuple[ClassProbability, ...] = ()
    error: str | None = None
    distance: float | None = None
    rejected: Literal["confidence", "distance"] | None = None

    @property
    def answer(self) -> str | None:
        """The most probable class, or `unknown`; None with an error."""
        if self.error is not None or not self.predictions:
            return None
        return UNKNOWN if self.rejected else self.predictions[0].name


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Precision, recall and F1 of one class (0 to 1; 0 where undefined) and its image count.

    The intervals are those of 95 %, None where nothing can be said.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    precision_interval: tuple[float, float] | None = None
    recall_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Images whose confidence is above `low` and at most `high`, their mean and their accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """How far probabilities are from the shares that are right: errors from 0 to 1.

    All are expected calibration errors. `ece` is that of the probabilities at `temperature`,
    `ece_raw` that without it. `ece_held_out` is what `ece` would be if no image had helped to fit
    its own temperature; None where they have not.
    """

    temperature: float
    ece: float
    ece_raw: float
    ece_held_out: float | None
    bins: tuple[CalibrationBin, ...]
    bins_raw: tuple[CalibrationBin, ...]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Metrics on a labelled folder.

    `confusion_matrix[t][p]` counts images of class `t` predicted as class `p`. `failures` are the
    images that could not be read; they count in no metric. Intervals are those of 95 %. `loss` is
    that of the raw logits. `warnings` say what keeps the figures from being taken at face value.
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
    top1_interval: tuple[float, float] | None = None
    macro_f1_interval: tuple[float, float] | None = None
    weighted_f1: float = math.nan
    calibration: CalibrationResult | None = None
    warnings: tuple[str, ...] = ()


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
    probability: float
    correct: bool
    label_probability: float = math.nan
    second: str = ""
    second_probability: float = math.nan
    distance: float = math.nan


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """What `embed` wrote: `[count, dim]` float32 rows; those of `failures` are NaN."""

    output: Path
    index: Path
    count: int
    dim: tuple[int, ...]
    failures: Sequence[SkippedFile] = ()


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
