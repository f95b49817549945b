"""What is known of a run for its page and its model card, in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtrain.errors import VtrainError
from vtrain.runs.evaluation_files import (
    EvaluationResult,
    ImagePrediction,
    Interval,
    predictions_path,
    read_predictions,
)
from vtrain.runs.metric_log import EpochMetrics
from vtrain.runs.record import RunRecord
from vtrain.system.text import one_line

NAME = 36  # characters of a name below a picture
MAX_PREDICTION_BYTES = 200_000_000  # some 2 million images

SPLIT_TITLES = {"val": "Validation", "test": "Test"}
RESUME = "vtrain fit CONFIG --resume"


@dataclass(frozen=True, slots=True)
class Facts:
    """A run with what could be read of its evaluations, its predictions and their problems."""

    record: RunRecord
    predictions: Sequence[ImagePrediction] | None
    problems: tuple[str, ...]

    @property
    def val(self) -> EvaluationResult | None:
        """The evaluation on the validation images."""
        return self.record.evaluations.get("val")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.record.result is not None


def gather_facts(record: RunRecord) -> Facts:
    """Read what the report needs besides the record; what cannot be read becomes a problem."""
    problems = list(record.problems)
    predictions, path = None, predictions_path(record.run_dir, "val")
    try:
        if path.exists() and path.stat().st_size > MAX_PREDICTION_BYTES:
            problems.append(f"{path.name} is too large to be looked through")
        elif path.exists():
            predictions = read_predictions(record.run_dir, "val")
    except VtrainError as error:
        problems.append(f"{path.name} cannot be used: {error.message}")
    return Facts(record, predictions, tuple(problems))


def known(value: float | None) -> float | None:
    """The number, None where it is none."""
    return value if value is not None and math.isfinite(value) else None


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
    finite = [row for row in record.metrics if known(row.val_top1) is not None]
    return max(finite, key=lambda row: (row.val_top1, -row.val_loss), default=None)


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
