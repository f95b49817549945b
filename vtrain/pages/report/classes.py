"""Classes on the page of a run: recalls, confused pairs, the table of all, and calibration."""

from collections.abc import Sequence

from markupsafe import Markup

from vtrain.pages.charts import Bar, histogram, interval_bars, reliability_chart
from vtrain.pages.matrix import list_confusions, matrix_chart
from vtrain.pages.page import Table
from vtrain.pages.report.content import Content
from vtrain.pages.report.run_facts import Facts, class_counts, known
from vtrain.pages.svg import shorten
from vtrain.runs.evaluation_files import EvaluationResult, Interval
from vtrain.system.text import format_count, format_percent

MOST_BARS = 30  # classes with a bar; the worst are shown
MOST_ROWS = 200  # classes in the table
MOST_PAIRS = 15


def add_classes(content: Content, facts: Facts) -> None:
    """Recalls, confused pairs and the table of all classes."""
    val = facts.val
    if val is None:
        return
    worst = sorted(
        (row for row in val.per_class if row.support), key=lambda row: known(row.recall) or 0.0
    )
    content.classes.append(matrix_chart("Confusion matrix", val.classes, val.confusion_matrix))
    bars = [
        Bar(row.name, row.recall, row.recall_interval, f"of {format_count(row.support)}")
        for row in worst[:MOST_BARS]
    ]
    shown = "" if len(worst) <= MOST_BARS else f"The {MOST_BARS} worst of {len(worst)} classes. "
    content.classes.append(
        interval_bars(
            "Recall of each class, worst first",
            bars,
            note=f"{shown}Share of the class's validation images that are recognised"
            + (", with 95 % intervals." if any(bar.interval for bar in bars) else "."),
        )
    )
    if len(worst) > MOST_BARS:
        content.classes.append(_draw_recalls(worst_recalls(val)))
    tables = [_tabulate_pairs(val), _tabulate_classes(facts, val)]
    content.class_tables = [table for table in tables if table.rows]


def worst_recalls(evaluation: EvaluationResult) -> list[float]:
    """The recalls of all classes that have images, lowest first."""
    recalls = (known(row.recall) for row in evaluation.per_class if row.support)
    return sorted(each for each in recalls if each is not None)


def _draw_recalls(recalls: Sequence[float]) -> Markup:
    bins = [0] * 10
    for each in recalls:
        bins[min(int(each * 10), 9)] += 1
    columns = [(f"{10 * index}–{10 * index + 10}", count) for index, count in enumerate(bins)]
    return histogram(
        "How many classes are recognised how well",
        [(name.partition("–")[0], count) for name, count in columns],
        x_label="recall in %, from this to 10 more",
        y_label="classes",
    )


def _tabulate_pairs(evaluation: EvaluationResult) -> Table:
    pairs = list_confusions(evaluation.classes, evaluation.confusion_matrix, MOST_PAIRS)
    rows = tuple(
        (
            shorten(p.label, 60),
            shorten(p.prediction, 60),
            str(p.count),
            f"{p.count / p.support:.0%}",
        )
        for p in pairs
    )
    return Table(
        "Most frequent mistakes",
        ("true class", "predicted", "images", "of the class"),
        rows,
        (2, 3),
    )


def _tabulate_classes(facts: Facts, val: EvaluationResult) -> Table:
    train = class_counts(facts.record.data, "train")
    rows = sorted(val.per_class, key=lambda row: known(row.f1) or 0.0)[:MOST_ROWS]
    more = "" if len(val.per_class) <= MOST_ROWS else f"the {MOST_ROWS} lowest F1 of all; "

    def share(value: float, interval: Interval | None) -> str:
        if known(value) is None:
            return "–"
        spread = f" ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})" if interval else ""
        return f"{100 * value:.1f}{spread}"

    return Table(
        f"Classes by F1, lowest first ({more}in %, 95 % intervals in brackets)",
        ("class", "precision", "recall", "F1", "val images", "train images"),
        tuple(
            (
                shorten(row.name, 60),
                share(row.precision, row.precision_interval),
                share(row.recall, row.recall_interval),
                share(row.f1, None),
                f"{row.support:,}",
                f"{train[row.name]:,}" if row.name in train else "–",
            )
            for row in rows
        ),
        (1, 2, 3, 4, 5),
    )


def add_calibration(content: Content, facts: Facts) -> None:
    """How sure the model is, against how often it is right."""
    found = facts.val.calibration if facts.val else None
    if found is None:
        return
    content.calibration.append(
        reliability_chart(
            "Is the model as often right as it says?",
            found.bins,
            found.bins_raw,
            note="Each dot is the images of one bin of confidence. Below the diagonal the model "
            "claims more than it keeps, above it less.",
        )
    )
    shown = [
        f"{format_percent(known(value))} {name}"
        for name, value in (("before", found.ece_raw), ("after", found.ece))
        if known(value) is not None
    ]
    held_out = known(found.ece_held_out)
    if shown:
        content.calibration_text = (
            f"Expected calibration error: {' and '.join(shown)} temperature scaling"
            + (f" (temperature {found.temperature:.3f})" if known(found.temperature) else "")
            + (
                f"; {format_percent(held_out)} at a temperature that is fitted without the image"
                if held_out is not None
                else ""
            )
            + ". It is the mean distance of the dots from the diagonal, weighted by images."
        )
