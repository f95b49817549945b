"""Metrics of a run as files: `metrics.jsonl`, `metrics.csv` and, if asked for, TensorBoard."""

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vtrain.errors import UsageError
from vtrain.system.files import write_text
from vtrain.system.json_csv import from_plain, write_csv


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


METRICS_NAME = "metrics.jsonl"
COLUMNS = tuple(each.name for each in fields(EpochMetrics))


def write_metrics(run_dir: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per epoch to `metrics.jsonl` and `metrics.csv`, whole files each time.

    The history comes from the checkpoint, so that the files of a resumed run hold each epoch once.
    """
    lines = [json.dumps({name: row[name] for name in COLUMNS}) + "\n" for row in history]
    write_text(run_dir / METRICS_NAME, "".join(lines))
    write_csv(
        run_dir / "metrics.csv", COLUMNS, [[row[name] for name in COLUMNS] for row in history]
    )


def read_metrics(path: Path) -> tuple[EpochMetrics, ...]:
    """The rows of `metrics.jsonl`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    return from_plain(tuple[EpochMetrics, ...], [json.loads(line) for line in lines])


def find_best(rows: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """The epoch with the best top-1, of those the one with the lowest loss; None before any."""
    finite = [row for row in rows if math.isfinite(row.val_top1)]
    return max(finite, key=lambda row: (row.val_top1, -row.val_loss), default=None)


def require_tensorboard() -> None:
    """Raise UsageError unless the extra is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "train.tensorboard is true, but the package tensorboard is not installed",
            'install it with: pip install "vtrain[tensorboard]"',
        )


class TensorBoardLog:
    """Scalars of every epoch for TensorBoard, under `<run folder>/tensorboard`."""

    def __init__(self, run_dir: Path, *, purge_step: int) -> None:
        """Start or continue the log; what was logged from epoch `purge_step` on is dropped.

        Raises:
            UsageError: the extra is not installed.
        """
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)

    def write(self, row: EpochMetrics) -> None:
        """Log one epoch, flushed to disk."""
        for name in COLUMNS:
            value = getattr(row, name)
            if name not in ("phase", "epoch"):
                self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Release the file."""
        self._writer.close()
