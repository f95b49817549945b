"""A comparison of runs as a page: verdicts, curves, what differs, and the images they differ on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from vtrain.pages.charts import Series, format_share, line_chart
from vtrain.pages.differences import Difference, difference_chart
from vtrain.pages.page import Table, write_page
from vtrain.pages.thumbnails import Picture, make_thumbnail
from vtrain.results.compare import (
    LEVEL,
    ClassChange,
    ComparedRun,
    Comparison,
    Disagreement,
    RunDifference,
    format_points,
)
from vtrain.results.compared_runs import SPLIT_NAMES
from vtrain.system.text import format_bytes, format_duration, format_percent, one_line

MOST_PICTURES = 48  # on the page; a picture takes some 5 kB
MOST_CLASSES = 20  # of each comparison
NUMBERS = tuple(range(1, 9))


@dataclass(frozen=True, slots=True)
class OneSided:
    """Some of the `count` images that only one of two runs has right."""

    title: str
    count: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A run against the baseline."""

    title: str
    verdict: str
    text: str
    classes: Table | None
    classes_left_out: int
    galleries: tuple[OneSided, ...]


def write_comparison_page(
    path: Path, comparison: Comparison, *, progress: Callable[[int, int], object] | None = None
) -> None:
    """Write the page, whole or not at all; `progress` gets the number of images read and of all.

    Raises:
        ResourceError: no space left; an earlier file is intact.
        UsageError: the path cannot be written.
    """
    write_page(
        path,
        "compare.html.j2",
        comparison=comparison,
        images=SPLIT_NAMES[comparison.split],
        level=f"{100 * LEVEL:.0f} %",
        runs=_table_runs(comparison.runs),
        charts=_draw_charts(comparison),
        settings=_table_settings(comparison),
        sections=_build_sections(comparison, progress),
    )


def _table_runs(runs: Sequence[ComparedRun]) -> Table:
    def interval(limits: tuple[float, float]) -> str:
        return f"{100 * limits[0]:.1f} to {100 * limits[1]:.1f}"

    rows = tuple(
        (
            one_line(run.run),
            format_percent(run.top1),
            interval(run.top1_interval),
            format_percent(run.macro_f1),
            interval(run.macro_f1_interval),
            "–" if run.best_epoch is None else f"{run.best_epoch} of {run.epochs}",
            "–" if run.seconds is None else format_duration(run.seconds),
            "–" if run.model_bytes is None else format_bytes(run.model_bytes),
        )
        for run in runs
    )
    interval_name = f"{100 * LEVEL:.0f} % interval"
    columns = (
        *("run", "top-1", interval_name, "macro F1", interval_name),
        *("best epoch", "training time", "model"),
    )
    return Table("The first run is what the others are compared with", columns, rows, NUMBERS)


def _draw_charts(comparison: Comparison) -> list[Markup]:
    charts = [
        difference_chart(
            f"Difference to {one_line(comparison.baseline)}",
            [
                Difference(
                    str(each.run),
                    100 * each.top1.difference,
                    100 * each.top1.interval[0],
                    100 * each.top1.interval[1],
                    each.verdict != "unclear",
                )
                for each in comparison.differences
            ],
            x_label=f"points of top-1, with {100 * LEVEL:.0f} % intervals",
            note="In colour: more than chance explains.",
        )
    ]
    curves = [run for run in comparison.runs if run.val_top1_by_epoch]
    if curves:
        charts.append(
            line_chart(
                "Top-1 on the validation images",
                [Series(str(run.run), list(enumerate(run.val_top1_by_epoch, 1))) for run in curves],
                format_y=format_share,
            )
        )
    return charts


def _table_settings(comparison: Comparison) -> Table | None:
    if not comparison.settings:
        return None
    return Table(
        "Settings that are not the same in all runs",
        ("setting", *(one_line(run.run) for run in comparison.runs)),
        tuple(
            (
                each.key,
                *("–" if value is None else one_line(value) for value in each.values.values()),
            )
            for each in comparison.settings
        ),
    )


def _build_sections(
    comparison: Comparison, progress: Callable[[int, int], object] | None
) -> list[Section]:
    most = max(3, MOST_PICTURES // (2 * len(comparison.differences)))
    chosen = [
        images[:most]
        for each in comparison.differences
        for images in (each.right_in_run_only, each.right_in_baseline_only)
    ]  # fmt: skip
    total = sum(map(len, chosen))
    done = 0

    def picture(image: Disagreement) -> Picture:
        nonlocal done
        made = _make_picture(image)
        done += 1
        if progress is not None:
            progress(done, total)
        return made

    return [_build_section(each, comparison, most, picture) for each in comparison.differences]


def _build_section(
    difference: RunDifference,
    comparison: Comparison,
    most: int,
    picture: Callable[[Disagreement], Picture],
) -> Section:
    run, baseline = one_line(difference.run), one_line(comparison.baseline)
    changed = [each for each in difference.per_class if each.gained or each.lost]
    shown = changed
    if len(changed) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        shown = [*changed[:half], *changed[-half:]]
    galleries = tuple(
        OneSided(f"Right in {name} only", len(images), tuple(map(picture, images[:most])))
        for name, images in (
            (run, difference.right_in_run_only),
            (baseline, difference.right_in_baseline_only),
        )
        if images
    )
    return Section(
        title=f"{run} against {baseline}",
        verdict=difference.verdict,
        text=one_line(difference.text),
        classes=_table_classes(shown, baseline, run) if shown else None,
        classes_left_out=len(changed) - len(shown),
        galleries=galleries,
    )


def _table_classes(changes: Sequence[ClassChange], baseline: str, run: str) -> Table:
    rows = tuple(
        (
            one_line(each.class_),
            str(each.count),
            format_percent(each.right_in_baseline / each.count),
            format_percent(each.right_in_run / each.count),
            format_points(each.right_in_run / each.count - each.right_in_baseline / each.count),
            str(each.gained),
            str(each.lost),
        )
        for each in changes
    )
    columns = ("class", "images", baseline, run, "points", "gained", "lost")
    return Table("Share of each class that is right", columns, rows, NUMBERS[:6])


def _make_picture(image: Disagreement) -> Picture:
    label = one_line(image.label)
    lines = (
        one_line(image.path.name),
        f"{label} {image.right.probability:.2f}",
        f"taken for {one_line(image.wrong.class_)} {image.wrong.probability:.2f}",
    )
    return Picture(make_thumbnail(image.path), f"{label}: {one_line(image.path)}", lines)
