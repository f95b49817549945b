"""Curves on the page of a run: loss, accuracy and rates by epoch, and where its time went."""

import math
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from vtrain.pages.charts import Series, Span, format_share, line_chart, stacked_bars
from vtrain.pages.report.section import Section
from vtrain.pages.report.values import RESUME, find_best_epoch, split_count
from vtrain.runs.metric_log import EpochMetrics
from vtrain.runs.record import RunRecord


def build_curves(record: RunRecord) -> Section:
    """Curves of the run by epoch, none before the first has ended."""
    rows = record.metrics
    if not rows:
        missing = f"No epoch has been recorded yet. Train with: {RESUME}"
        return Section("curves", "Training", missing=[missing])
    spans = _find_spans(rows) if len({row.phase for row in rows}) > 1 else []
    best = find_best_epoch(record)
    mark = (float(best.epoch), f"best: {best.epoch}") if best and len(rows) > 1 else None

    def series(name: str, key: str, *, dashed: bool = False) -> Series:
        return Series(name, [(row.epoch, float(getattr(row, key))) for row in rows], dashed)

    charts = [
        line_chart(
            "Accuracy on the validation images",
            [series("top-1", "val_top1"), series("macro F1", "val_macro_f1", dashed=True)],
            spans=spans, mark=mark, format_y=format_share,
        ),
        line_chart(
            "Loss",
            [series("training", "train_loss"), series("validation", "val_loss", dashed=True)],
            spans=spans, mark=mark,
            note="The training loss counts label smoothing and augmentation, the validation "
            "loss does not: their levels cannot be compared, their courses can.",
        ),
        line_chart("Learning rate of the head", [series("learning rate", "lr")], spans=spans),
        _draw_time(record),
    ]  # fmt: skip
    return Section("curves", "Training", charts=charts)


def _find_spans(rows: Sequence[EpochMetrics]) -> list[Span]:
    phases = [(name, list(group)) for name, group in groupby(rows, lambda row: row.phase)]
    return [Span(name, group[0].epoch, group[-1].epoch) for name, group in phases]


def _draw_time(record: RunRecord) -> Markup:
    images = split_count(record.data, "train")
    columns = []
    for row in record.metrics:
        training = images / row.images_per_second if images and row.images_per_second > 0 else 0.0
        training = min(training, row.seconds) if training else row.seconds
        wait = row.data_wait if math.isfinite(row.data_wait) else 0.0
        parts = (training * (1 - wait), training * wait, row.seconds - training)
        columns.append((float(row.epoch), parts))
    names = ("training", "waiting for images", "validation and saving")
    return stacked_bars("Where the time of an epoch goes", names, columns)
