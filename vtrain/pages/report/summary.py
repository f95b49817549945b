"""What stands on the page of a run: its record turned into tables, charts and messages."""

import math

from vtrain.pages.report.values import (
    RESUME,
    SPLIT_TITLES,
    class_counts,
    describe_device,
    describe_freeze,
    find_best_epoch,
    format_interval,
    shorten_list,
)
from vtrain.runs.evaluation_files import EvaluationResult
from vtrain.runs.record import RunRecord
from vtrain.system.text import format_duration, format_percent, one_line

FEW_TRAIN = 20  # images of a class that teach little


# --- headline ------------------------------------------------------------------------------------


def build_tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Value, what it is, and a remark, for each number of the headline."""
    result, best, tiles = record.result, find_best_epoch(record), []
    if val := record.evaluations.get("val"):
        tiles += _tiles_of("validation", val)
    elif best is not None:
        why = "best epoch" if result is None else "interval not known"
        tiles.append((format_percent(best.val_top1), "validation top-1", why))
        tiles.append((format_percent(best.val_macro_f1), "validation macro F1", why))
    if test := record.evaluations.get("test"):
        tiles += _tiles_of("test", test)
    elif result is not None and result.test_top1 is not None:
        tiles.append((format_percent(result.test_top1), "test top-1", "interval not known"))
    if best is not None:
        epochs = len(record.metrics)
        planned = result.planned_epochs if result else record.flat_config().get("train.epochs")
        trained = f"of {epochs} trained" + (f", {planned} planned" if planned != epochs else "")
        tiles.append((str(best.epoch), "best epoch", trained))
    if record.config is not None:
        tiles.append((record.config.model.backbone, "model", f"freeze: {describe_freeze(record)}"))
    if result is not None:
        tiles.append((format_duration(result.seconds), "whole run", describe_device(record)))
    return tiles


def _tiles_of(name: str, evaluation: EvaluationResult) -> list[tuple[str, str, str]]:
    top1 = f"{format_interval(evaluation.top1_interval)} (95 %), {evaluation.count:,} images"
    macro = f"{format_interval(evaluation.macro_f1_interval)} (95 %)"
    if evaluation.macro_f1_interval is None:
        macro = f"mean over {len(evaluation.classes)} classes"
    return [
        (format_percent(evaluation.top1), f"{name} top-1", top1),
        (format_percent(evaluation.macro_f1), f"{name} macro F1", macro),
    ]


# --- warnings ------------------------------------------------------------------------------------


def build_messages(record: RunRecord) -> list[tuple[str, str]]:
    """Kind (warning or note) and text of what a reader must know before anything else."""
    warnings = []
    if record.result is None:
        epochs = len(record.metrics)
        so_far = f"{epochs} epoch{'' if epochs == 1 else 's'} so far"
        warnings.append(f"This run has not finished: {so_far}. Go on with: {RESUME}")
    warnings += [
        f"{SPLIT_TITLES.get(split, split)}: {text}"
        for split, each in record.evaluations.items()
        for text in each.warnings
    ]
    warnings += [*_warn_of_curves(record), *_warn_of_data(record)]
    for split, evaluation in record.evaluations.items():
        warnings += _warn_of_evaluation(split, evaluation)
    notes = [f"{problem}: what it would say is not shown." for problem in record.problems]
    return [*(("warning", text) for text in dict.fromkeys(warnings)), *(("note", n) for n in notes)]


def _warn_of_curves(record: RunRecord) -> list[str]:
    warnings = []
    bad = [
        row.epoch
        for row in record.metrics
        if not all(map(math.isfinite, (row.train_loss, row.val_loss, row.val_top1)))
    ]
    if bad:
        warnings.append(
            f"Losses or metrics are not finite in epoch {shorten_list(bad)}: the training "
            "diverged; try a smaller optim.lr, or train.precision=fp32"
        )
    result = record.result
    if result is not None and result.epochs >= 5 and result.best_epoch == result.epochs:
        warnings.append(
            f"The last epoch ({result.epochs}) is the best: more train.epochs may bring more"
        )
    return warnings


def _warn_of_data(record: RunRecord) -> list[str]:
    warnings = []
    train = class_counts(record.data, "train")
    few = [name for name, count in train.items() if count < FEW_TRAIN]
    if few:
        warnings.append(
            f"Fewer than {FEW_TRAIN} training images in {len(few)} of {len(train)} classes: "
            f"{shorten_list(few)}"
        )
    largest, smallest = max(train.values(), default=0), min(train.values(), default=0)
    if smallest and largest / smallest >= 10:
        balance = "" if record.flat_config().get("data.balance") != "none" else "; see data.balance"
        warnings.append(
            f"The largest class has {largest / smallest:.0f} times the training images of the "
            f"smallest{balance}"
        )
    bad = record.data.get("bad_images")
    if isinstance(bad, list) and bad:
        warnings.append(f"{len(bad)} damaged images were left out; data.json names them")
    told = record.data.get("warnings")
    return [*warnings, *map(one_line, told if isinstance(told, list) else ())]


def _warn_of_evaluation(split: str, evaluation: EvaluationResult) -> list[str]:
    warnings = []
    rows = evaluation.per_class
    absent = [row.name for row in rows if not row.support]
    if absent:
        warnings.append(
            f"No {split} images of {len(absent)} of {len(rows)} classes, so nothing is known of "
            f"them: {shorten_list(absent)}"
        )
    if evaluation.failures:
        warnings.append(
            f"{len(evaluation.failures)} {split} images could not be read and count in no figure"
        )
    return warnings
