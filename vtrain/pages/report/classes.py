"""Classes on the page of a run: recalls, confused pairs, and the table of all."""

from collections.abc import Sequence

from markupsafe import Markup

from vtrain.inference.metrics import ClassMetrics
from vtrain.inference.statistics import Interval
from vtrain.pages.charts import Bar, histogram, interval_bars
from vtrain.pages.matrix import list_confusions, matrix_chart
from vtrain.pages.page import Table
from vtrain.pages.report.section import Section
from vtrain.pages.report.values import class_counts, describe_evaluating
from vtrain.pages.svg import shorten
from vtrain.runs.evaluation_files import (
    EvaluationResult,
)
from vtrain.runs.record import RunRecord
from vtrain.system.text import format_count

MOST_BARS = 30  # classes with a bar; the worst are shown
MOST_ROWS = 200  # classes in the table
MOST_PAIRS = 15


def build_classes(record: RunRecord) -> Section:
    """Recalls, confused pairs and the table of all classes."""
    val = record.evaluations.get("val")
    if val is None:
        missing = f"This run has no evaluation-val.json. {describe_evaluating(record)}"
        return Section("classes", "Classes", missing=[missing])
    worst = sorted((row for row in val.per_class if row.support), key=lambda row: row.recall)
    charts = [
        matrix_chart("Confusion matrix", val.classes, val.confusion_matrix),
        _draw_worst(worst),
    ]
    if len(worst) > MOST_BARS:
        charts.append(_draw_recalls(worst))
    pairs = _tabulate_pairs(val)
    tables = [pairs] if pairs.rows else []
    train = class_counts(record.data, "train")
    tables.append(_tabulate_classes(val.per_class, train))
    return Section("classes", "Classes", charts=charts, tables=tables)


def _draw_worst(worst: Sequence[ClassMetrics]) -> Markup:
    bars = [
        Bar(row.name, row.recall, row.recall_interval, f"of {format_count(row.support)}")
        for row in worst[:MOST_BARS]
    ]
    shown = "" if len(worst) <= MOST_BARS else f"The {MOST_BARS} worst of {len(worst)} classes. "
    return interval_bars(
        "Recall of each class, worst first",
        bars,
        note=f"{shown}Share of the class's validation images that are recognised"
        + (", with 95 % intervals." if any(bar.interval for bar in bars) else "."),
    )


def _draw_recalls(rows: Sequence[ClassMetrics]) -> Markup:
    bins = [0] * 10
    for row in rows:
        bins[min(int(row.recall * 10), 9)] += 1
    return histogram(
        "How many classes are recognised how well",
        [(str(10 * index), count) for index, count in enumerate(bins)],
        x_label="recall in %, from this to 10 more",
        y_label="classes",
    )


def _tabulate_pairs(val: EvaluationResult) -> Table:
    rows = tuple(
        (
            shorten(p.label, 60),
            shorten(p.prediction, 60),
            str(p.count),
            f"{p.count / p.support:.0%}",
        )
        for p in list_confusions(val.classes, val.confusion_matrix, MOST_PAIRS)
    )
    columns = ("true class", "predicted", "images", "of the class")
    return Table("Most frequent mistakes", columns, rows, (2, 3))


def _tabulate_classes(rows: Sequence[ClassMetrics], train: dict[str, int]) -> Table:
    def share(value: float, interval: Interval | None = None) -> str:
        spread = f" ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})" if interval else ""
        return f"{100 * value:.1f}{spread}"

    more = "" if len(rows) <= MOST_ROWS else f"the {MOST_ROWS} lowest F1 of all; "
    return Table(
        f"Classes by F1, lowest first ({more}in %, 95 % intervals in brackets)",
        ("class", "precision", "recall", "F1", "val images", "train images"),
        tuple(
            (
                shorten(row.name, 60),
                share(row.precision, row.precision_interval),
                share(row.recall, row.recall_interval),
                share(row.f1),
                f"{row.support:,}",
                f"{train[row.name]:,}" if row.name in train else "–",
            )
            for row in sorted(rows, key=lambda row: row.f1)[:MOST_ROWS]
        ),
        (1, 2, 3, 4, 5),
    )
