"""What a probe says, as words and as JSON."""

from typing import Any

from vtrain.console import format_count, one_line
from vtrain.probe import ProbedBackbone, ProbeResult

SCHEMA = 1
COLUMNS = (
    "backbone",
    "linear",
    "95 % interval",
    "kNN",
    "images/s",
    "params",
    "GFLOPs",
    "px",
    "",
)
RIGHT = (1, 2, 3, 4, 5, 6, 7)
FRONT, BEST = "front", "best"  # the last column
LEGEND = (
    f"{BEST}: the most accurate one, and those that this sample does not tell apart from it",
    f"{FRONT}: no other one is faster and at least as accurate",
)


def table_rows(result: ProbeResult) -> list[tuple[str, ...]]:
    """Cells for `COLUMNS`, a row for each backbone."""
    return [
        (
            each.candidate.model,
            f"{each.accuracy:.1%}",
            _format_interval(each.interval),
            f"{each.knn_accuracy:.1%}",
            f"{each.images_per_second:,.0f}",
            format_count(each.params),
            f"{each.gflops:.2f}",
            str(each.image_size),
            " ".join(_marks(each)),
        )
        for each in result.backbones
    ]


def _format_interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _marks(probed: ProbedBackbone) -> list[str]:
    marks = {BEST: probed.within_noise, FRONT: probed.pareto}
    return [mark for mark, holds in marks.items() if holds]


def describe_sample(result: ProbeResult) -> str:
    """What the accuracies are shares of."""
    part = "" if result.count == result.total else f" of {result.total:,}"
    return (
        f"{result.count:,}{part} images of {len(result.classes)} classes, {result.folds} folds; "
        f"naming the most frequent class alone: {result.majority:.1%}"
    )


def recommend(result: ProbeResult) -> str:
    """Which backbone to take, and why, in one sentence."""
    choice, best = result.recommended, result.backbones[0]
    assert choice is not None  # the most accurate one is among those it is taken from
    name = one_line(choice.candidate.model)
    if best.interval[0] <= result.majority:
        return (
            f"none of these does clearly better than naming the most frequent class "
            f"({result.majority:.1%}): try others, or fine-tune more than the head"
        )
    if len(result.backbones) == 1:
        return f"{name}, the only one that was probed"
    if choice is not best:
        times = choice.images_per_second / best.images_per_second
        return (
            f"{name}: {times:.1f} times as fast as {one_line(best.candidate.model)}, whose "
            f"{best.accuracy:.1%} are no better than its {choice.accuracy:.1%} on this sample"
        )
    if sum(each.within_noise for each in result.backbones) > 1:
        return f"{name}: the fastest of those that this sample does not tell apart from the best"
    return f"{name}: more accurate than all others"


def list_overrides(result: ProbeResult) -> list[str]:
    """The settings that train the recommended backbone, as they are typed."""
    from shlex import quote

    choice = result.recommended
    return [] if choice is None else [one_line(quote(each)) for each in choice.candidate.overrides]


def probe_json(result: ProbeResult) -> dict[str, Any]:
    """The object that `vtrain probe --json` prints."""
    choice = result.recommended
    return {
        "schema": SCHEMA,
        "folder": str(result.folder),
        "split": None if result.split is None else str(result.split),
        "classes": list(result.classes),
        "images_found": result.total,
        "images": result.count,
        "images_held_out": result.asked,
        "folds": result.folds,
        "majority": result.majority,
        "device": result.device,
        "backbones": [_backbone_json(each) for each in result.backbones],
        "left_out": [
            {"model": each.candidate.model, "kind": each.kind, "reason": each.reason}
            for each in result.left_out
        ],
        "recommended": None if choice is None else choice.candidate.model,
        "recommendation": recommend(result),
        "overrides": [] if choice is None else list(choice.candidate.overrides),
        "failures": [{"path": str(each.path), "error": each.reason} for each in result.failures],
        "seconds": round(result.seconds, 3),
        "complete": result.stop is None,
    }


def _backbone_json(probed: ProbedBackbone) -> dict[str, Any]:
    return {
        "model": probed.candidate.model,
        "backbone": probed.candidate.spec.name,
        "weights": probed.candidate.weights,
        "accuracy": probed.accuracy,
        "standard_error": probed.standard_error,
        "interval": list(probed.interval),
        "fold_accuracies": list(probed.fold_accuracies),
        "penalties": list(probed.penalties),
        "knn_accuracy": probed.knn_accuracy,
        "knn_interval": list(probed.knn_interval),
        "params": probed.params,
        "gflops": probed.gflops,
        "image_size": probed.image_size,
        "feature_dim": probed.feature_dim,
        "images_per_second": probed.images_per_second,
        "precision": probed.precision,
        "pareto": probed.pareto,
        "within_noise": probed.within_noise,
        "stored": probed.stored,
        "seconds": round(probed.seconds, 3),
    }
