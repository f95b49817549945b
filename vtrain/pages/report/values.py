"""What is known of a run for its page and its model card, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtrain.inference.statistics import Interval
from vtrain.runs.evaluation_files import (
    evaluation_path,
)
from vtrain.runs.metric_log import EpochMetrics, find_best
from vtrain.runs.record import RunRecord
from vtrain.system.text import one_line, quote_path

SPLIT_TITLES = {"val": "Validation", "test": "Test"}
RESUME = "vtrain fit CONFIG --resume"


def report_command(record: RunRecord) -> str:
    """The command that makes the page."""
    return f"vtrain report {quote_path(record.run_dir)}"


def format_interval(interval: Interval | None) -> str:
    """An interval of shares: 91.2 to 95.6 %."""
    if interval is None:
        return "interval not known"
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def find_best_epoch(record: RunRecord) -> EpochMetrics | None:
    """The row of the saved model; without a result that of the best top-1 so far."""
    if record.result is not None:
        for row in record.metrics:
            if row.epoch == record.result.best_epoch:
                return row
    return find_best(record.metrics)


def describe_evaluating(record: RunRecord) -> str:
    """How to make the evaluation of the validation images."""
    make = RESUME
    if record.result is not None:
        config = record.config
        folder = quote_path(config.data.val) if config and config.data.val else "FOLDER"
        path = quote_path(evaluation_path(record.run_dir, "val"))
        make = f"vtrain evaluate {folder} -m {quote_path(record.run_dir)} --json > {path}"
    return f"Make it with: {make}"


def describe_freeze(record: RunRecord) -> str:
    """The freeze policy in a word."""
    freeze = record.flat_config().get("freeze", "")
    return freeze if isinstance(freeze, str) else "own rules"


def describe_device(record: RunRecord) -> str:
    """What the run computed on."""
    choices = record.environment.get("choices")
    if not isinstance(choices, dict):
        return ""
    return ", ".join(str(choices[key]) for key in ("device", "precision") if choices.get(key))


def shorten_list(values: Sequence[object], limit: int = 5) -> str:
    """The first names or numbers, and how many more there are."""
    shown = ", ".join(one_line(each) for each in values[:limit])
    return shown + (f" and {len(values) - limit} more" if len(values) > limit else "")


def class_counts(data: Mapping[str, Any], split: str) -> dict[str, int]:
    """Images by class of a split, empty if they are not known."""
    part = data.get(split)
    counts = part.get("per_class") if isinstance(part, dict) else None
    if not isinstance(counts, dict):
        return {}
    return {str(name): count for name, count in counts.items() if isinstance(count, int)}


def split_count(data: Mapping[str, Any], split: str) -> int:
    """How many images a split has, 0 if that is not known."""
    part = data.get(split)
    count = part.get("count") if isinstance(part, dict) else None
    return count if isinstance(count, int) else 0
