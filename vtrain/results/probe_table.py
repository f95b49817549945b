"""What a probe says, as words and as JSON."""

from shlex import quote

from vtrain.results.probe import ProbedBackbone, ProbeResult
from vtrain.system.text import format_count, format_percent, one_line

SCHEMA = 1
COLUMNS = ("backbone", "linear", "95 %", "kNN", "images/s", "", "params", "GFLOPs", "px")
RIGHT = (1, 2, 3, 4, 6, 7, 8)
LEAST = (8, 7, 6, 3, 2)  # left out one by one where they do not fit
FRONT, BEST = "front", "best"
LEGEND = (
    f"{BEST}: the most accurate one, and those that this sample does not tell apart from it",
    f"{FRONT}: no other one is faster and at least as accurate",
)


def label_backbones(result: ProbeResult) -> list[str]:
    """A short name for each backbone: a weights file is named only where it tells two apart."""
    names = [each.candidate.spec.name for each in result.backbones]
    return [
        name
        if name == each.candidate.model or (names.count(name) == 1 and each.candidate.from_file)
        else each.candidate.model
        for name, each in zip(names, result.backbones, strict=True)
    ]


def table_rows(result: ProbeResult) -> list[tuple[str, ...]]:
    """Cells for `COLUMNS`, a row for each backbone."""
    return [
        (
            name,
            format_percent(each.accuracy),
            "{:.1f} to {:.1f}".format(*(100 * end for end in each.interval)),
            format_percent(each.knn_accuracy),
            f"{each.images_per_second:,.0f}",
            " ".join(_marks(each)),
            format_count(each.params),
            f"{each.gflops:.2f}",
            str(each.image_size),
        )
        for name, each in zip(label_backbones(result), result.backbones, strict=True)
    ]


def _marks(probed: ProbedBackbone) -> list[str]:
    marks = {BEST: probed.within_noise, FRONT: probed.pareto}
    return [mark for mark, holds in marks.items() if holds]


def describe_sample(result: ProbeResult) -> str:
    """What the accuracies are shares of."""
    part = "" if result.count == result.total else f" of {result.total:,}"
    return (
        f"{result.count:,}{part} images of {len(result.classes)} classes, {result.folds} folds; "
        f"naming the most frequent class alone: {format_percent(result.majority)}"
    )


def recommend(result: ProbeResult) -> str:
    """Which backbone to take, and why, in one sentence."""
    choice, best = result.recommended, result.backbones[0]
    names = dict(zip(result.backbones, map(one_line, label_backbones(result)), strict=True))
    if choice is None:
        return (
            "none of these: they do no better than naming the most frequent class "
            f"({format_percent(result.majority)}) on this sample"
        )
    name = names[choice]
    if len(result.backbones) == 1:
        return f"{name}, the only one that was probed"
    if choice is not best:
        times = choice.images_per_second / best.images_per_second
        return (
            f"{name}: {times:.1f} times as fast as {names[best]}, from whose "
            f"{format_percent(best.accuracy)} this sample does not tell its "
            f"{format_percent(choice.accuracy)} apart"
        )
    if sum(each.within_noise for each in result.backbones) > 1:
        return f"{name}: the most accurate, and no other one of that accuracy is faster"
    return f"{name}: more accurate than all others"


def next_command(result: ProbeResult) -> str | None:
    """What trains the recommended backbone, as it is typed."""
    choice = result.recommended
    if choice is None:
        return None
    return one_line(f"vtrain fit CONFIG {' '.join(map(quote, choice.candidate.overrides))}")


def probe_json(result: ProbeResult) -> dict[str, object]:
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


def _backbone_json(probed: ProbedBackbone) -> dict[str, object]:
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
