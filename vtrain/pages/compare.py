"""A comparison of runs as a page: verdicts, curves, what differs, and the images they differ on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from vtrain.pages.charts import Series, format_share, line_chart
from vtrain.pages.page import Table, write_page
from vtrain.pages.svg import (
    WIDTH,
    Frame,
    Scale,
    build_figure,
    draw_line,
    draw_path,
    draw_text,
    draw_whisker,
    draw_x_axis,
    find_ticks,
    shorten,
)
from vtrain.pages.thumbnails import Gallery, Picture, Thumbnail, make_thumbnail
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
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.text import format_bytes, format_duration, format_percent, one_line

MOST_PICTURES = 48  # on the page; a picture takes some 5 kB
MOST_CLASSES = 20  # of each comparison
NUMBERS = tuple(range(1, 9))
ROW = 34  # pixels of a difference: the name stands above its interval
LONGEST_NAME = 52  # characters


@dataclass(frozen=True, slots=True)
class RunSection:
    """A run against the baseline."""

    title: str
    verdict: str
    text: str
    classes: Table | None
    classes_left_out: int
    galleries: tuple[Gallery, ...]


def write_comparison_page(
    path: Path, comparison: Comparison, *, reporter: Reporter = SILENT
) -> None:
    """Write the page, whole or not at all.

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
        sections=_build_sections(comparison, reporter),
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
        draw_differences(
            f"Difference to {one_line(comparison.baseline)}",
            comparison.differences,
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


def draw_differences(title: str, differences: Sequence[RunDifference]) -> Markup:
    """Intervals of differences to the baseline one below the other, and a line at zero."""
    frame = Frame(left=10, right=WIDTH - 10, top=6, bottom=6 + ROW * len(differences))
    limits = [0.0, *(100 * end for each in differences for end in each.top1.interval)]
    room = 0.06 * (max(limits) - min(limits)) or 1.0
    x = Scale(min(limits) - room, max(limits) + room, frame.left, frame.right)
    ticks = find_ticks(x.low, x.high, 6)
    x_label = f"points of top-1, with {100 * LEVEL:.0f} % intervals"
    parts = [
        draw_x_axis(frame, x, ticks, x_label, lambda tick: f"{tick:+g}" if tick else "0", grid=True)
    ]
    parts.append(draw_line(x(0), frame.top, x(0), frame.bottom, "axis"))
    texts = []
    for index, each in enumerate(differences):
        top = frame.top + ROW * index
        name = shorten(each.run, LONGEST_NAME)
        parts.append(draw_text(frame.left, top + 13, name, kind="over", full=str(each.run)))
        value, low, high = (100 * share for share in (each.top1.difference, *each.top1.interval))
        parts.append(draw_whisker(x(low), x(high), top + 24, 4))
        kind = "quiet" if each.verdict == "unclear" else "right" if value > 0 else "wrong"
        parts.append(draw_path([(x(value), top + 24)], f"dots {kind}"))
        texts.append(f"{shorten(each.run, 60)}: {value:+.1f}, {low:+.1f} to {high:+.1f}")
    note = "In colour: more than chance explains."
    height = frame.bottom + 36
    return build_figure(parts, title=title, text="; ".join(texts), height=height, note=note)


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


def _build_sections(comparison: Comparison, reporter: Reporter) -> list[RunSection]:
    most = max(3, MOST_PICTURES // (2 * len(comparison.differences)))
    shown = [
        image.path
        for each in comparison.differences
        for image in (*each.right_in_run_only[:most], *each.right_in_baseline_only[:most])
    ]
    thumbnails: dict[Path, Thumbnail | None] = {}
    with reporter.progress(len(shown), "reading images") as bar:
        for path in shown:
            thumbnails[path] = make_thumbnail(path)
            bar.update(1)
    return [_build_section(each, comparison, thumbnails) for each in comparison.differences]


def _build_section(
    difference: RunDifference, comparison: Comparison, thumbnails: Mapping[Path, Thumbnail | None]
) -> RunSection:
    run, baseline = one_line(difference.run), one_line(comparison.baseline)
    changed = [each for each in difference.per_class if each.gained or each.lost]
    shown = changed
    if len(changed) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        shown = [*changed[:half], *changed[-half:]]
    return RunSection(
        title=f"{run} against {baseline}",
        verdict=difference.verdict,
        text=one_line(difference.text),
        classes=_table_classes(shown, baseline, run) if shown else None,
        classes_left_out=len(changed) - len(shown),
        galleries=tuple(
            _build_gallery(f"Right in {name} only: {len(images)}", images, thumbnails)
            for name, images in (
                (run, difference.right_in_run_only),
                (baseline, difference.right_in_baseline_only),
            )
            if images
        ),
    )


def _build_gallery(
    title: str, images: Sequence[Disagreement], thumbnails: Mapping[Path, Thumbnail | None]
) -> Gallery:
    pictures = tuple(
        _build_picture(each, thumbnails[each.path]) for each in images if each.path in thumbnails
    )
    note = f"The {len(pictures)} of which the wrong answer was surest."
    return Gallery(title, note if len(pictures) < len(images) else "", pictures)


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


def _build_picture(image: Disagreement, thumbnail: Thumbnail | None) -> Picture:
    label = one_line(image.label)
    lines = (
        one_line(image.path.name),
        f"{label} {image.right.probability:.2f}",
        f"taken for {one_line(image.wrong.class_)} {image.wrong.probability:.2f}",
    )
    return Picture(thumbnail, f"{label}: {one_line(image.path)}", lines)
