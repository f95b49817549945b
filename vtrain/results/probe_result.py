"""What a probe comes to: figures of each backbone, which one to take, and these as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from vtrain.data.image_sets import SkippedFile
from vtrain.models.zoo import find_backbone
from vtrain.results.probe_candidates import DEFAULT_WEIGHTS
from vtrain.system.text import format_count, format_percent, one_line

COLUMNS = ("backbone", "linear", "95 %", "kNN", "images/s", "", "params", "GFLOPs", "px")
RIGHT = (1, 2, 3, 4, 6, 7, 8)
LEAST = (8, 7, 6, 3, 2)  # left out one by one where they do not fit
FRONT, BEST = "front", "best"
LEGEND = (
    f"{BEST}: the most accurate one, and those that this sample does not tell apart from it",
    f"{FRONT}: no other one is faster and at least as accurate",
)


@dataclass(frozen=True, slots=True)
class ProbedBackbone:
    """What a backbone came to. Accuracies are shares, 0 to 1, over all images asked about.

    `model` is what `-m` takes for it. `interval` and `knn_interval` are 95 %; `images_per_second`
    is that of forward passes on decoded images on this machine; `gflops` are multiply-adds in
    billions at `image_size` pixels, `params` counts the published head as well. `pareto`: none of
    the others is faster and as accurate; `within_noise`: not told apart from the most accurate one.
    """

    model: str
    backbone: str
    weights: str
    accuracy: float
    standard_error: float
    interval: tuple[float, float]
    fold_accuracies: tuple[float, ...]
    penalties: tuple[float, ...]
    knn_accuracy: float
    knn_interval: tuple[float, float]
    params: int
    gflops: float
    image_size: int
    feature_dim: int
    images_per_second: float
    precision: str
    pareto: bool
    within_noise: bool
    stored: bool
    seconds: float

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings of a config that train it."""
        backbone = f"model.backbone={self.backbone}"
        if self.weights == DEFAULT_WEIGHTS:
            return (backbone,)
        return backbone, f"model.weights={self.weights}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A backbone that was not tried, or not to the end, and why.

    `kind`: `no weights` here, `budget`, `stopped` by a signal, or `failed`.
    """

    model: str
    kind: Literal["no weights", "budget", "stopped", "failed"]
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Backbones by falling accuracy, on `images`, of which some were held out once each.

    `split` is the subfolder that was used where the folder holds splits; `majority` the share of
    the most frequent class among those held out: what always naming that class would get.
    `recommended` is the model of a backbone, `overrides` are the settings that train it.
    """

    folder: Path
    split: Path | None
    classes: tuple[str, ...]
    images_found: int
    images: int
    images_held_out: int
    folds: int
    majority: float
    device: str
    backbones: tuple[ProbedBackbone, ...]
    left_out: tuple[LeftOut, ...]
    recommended: str | None
    recommendation: str
    overrides: tuple[str, ...]
    failures: tuple[SkippedFile, ...]
    seconds: float
    complete: bool

    @property
    def best(self) -> ProbedBackbone:
        """The recommended backbone, or the most accurate one where none is."""
        return next(
            (each for each in self.backbones if each.model == self.recommended), self.backbones[0]
        )


def recommend(
    backbones: Sequence[ProbedBackbone], majority: float
) -> tuple[ProbedBackbone | None, str]:
    """Which backbone to take, and why, in one sentence.

    The fastest of those that are not told apart from the most accurate one; None where that one is
    no better than naming the most frequent class.
    """
    best = backbones[0]
    if best.interval[0] <= majority:
        return None, (
            "none of these: they do no better than naming the most frequent class "
            f"({format_percent(majority)}) on this sample"
        )
    as_good = [each for each in backbones if each.within_noise]
    choice = max(as_good, key=lambda each: each.images_per_second)
    names = dict(zip(backbones, map(one_line, label_backbones(backbones)), strict=True))
    name = names[choice]
    if len(backbones) == 1:
        return choice, f"{name}, the only one that was probed"
    if choice is not best:
        times = choice.images_per_second / best.images_per_second
        return choice, (
            f"{name}: {times:.1f} times as fast as {names[best]}, from whose "
            f"{format_percent(best.accuracy)} this sample does not tell its "
            f"{format_percent(choice.accuracy)} apart"
        )
    if len(as_good) > 1:
        return choice, f"{name}: the most accurate, and no other one of that accuracy is faster"
    return choice, f"{name}: more accurate than all others"


def label_backbones(backbones: Sequence[ProbedBackbone]) -> list[str]:
    """A short name for each backbone: a weights file is named only where it tells two apart."""
    names = [each.backbone for each in backbones]
    labels = []
    for each in backbones:
        no_file = (DEFAULT_WEIGHTS, "none", *find_backbone(each.backbone).weights)
        is_clear = names.count(each.backbone) == 1 and each.weights not in no_file
        labels.append(each.backbone if is_clear else each.model)
    return labels


def table_rows(result: ProbeResult) -> list[tuple[str, ...]]:
    """Cells for `COLUMNS`, a row for each backbone."""
    return [
        (
            name,
            format_percent(each.accuracy),
            "{:.1f} to {:.1f}".format(*(100 * end for end in each.interval)),
            format_percent(each.knn_accuracy),
            f"{each.images_per_second:,.0f}",
            " ".join([BEST] * each.within_noise + [FRONT] * each.pareto),
            format_count(each.params),
            f"{each.gflops:.2f}",
            str(each.image_size),
        )
        for name, each in zip(label_backbones(result.backbones), result.backbones, strict=True)
    ]


def describe_sample(result: ProbeResult) -> str:
    """What the accuracies are shares of."""
    part = "" if result.images == result.images_found else f" of {result.images_found:,}"
    return (
        f"{result.images:,}{part} images of {len(result.classes)} classes, {result.folds} folds; "
        f"naming the most frequent class alone: {format_percent(result.majority)}"
    )


def next_command(result: ProbeResult) -> str | None:
    """What trains the recommended backbone, as it is typed."""
    if not result.overrides:
        return None
    return one_line(f"vtrain fit CONFIG {' '.join(map(quote, result.overrides))}")
