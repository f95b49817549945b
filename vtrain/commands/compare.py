"""`vtrain compare`: which of several runs is better, and how sure that is."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vtrain.commands.options import Json, Page, complete_runs
from vtrain.commands.outcomes import require_page_name
from vtrain.system.terminal import (
    GAP,
    Console,
    data_stream,
    find_width,
    print_json,
    print_line,
    print_table,
    print_text,
)
from vtrain.system.text import format_bytes, format_duration, format_percent, one_line, quote_path

if TYPE_CHECKING:
    from vtrain.results.compare import ComparedRun, Comparison, RunDifference

FEWEST_COLUMNS = 5  # of the table of runs: with the intervals
CLASSES_SHOWN, IMAGES_SHOWN = 5, 3  # on each side


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Run folders; the others are compared with the first.",
            autocompletion=complete_runs,
        ),
    ],
    split: Annotated[
        Literal["val", "test"],
        typer.Option("--split", metavar="SPLIT", help="Images to compare on: val or test."),
    ] = "val",
    as_json: Json = False,
    output: Page = None,
    *,
    console: Console,
) -> None:
    """Tell which run is better, and how surely.

    Runs are compared on the images that all of them have in predictions-val.csv: a paired
    bootstrap gives the interval of the difference, McNemar's exact test the p value. It compares
    models, not recipes: the same settings with another seed give another model.

    \b
    vtrain compare runs/flowers-001 runs/flowers-002
    vtrain compare runs/flowers-00* --split test --json
    vtrain compare runs/flowers-001 runs/flowers-002 -o compare.html
    """
    require_page_name(output)
    from vtrain.results.compare import compare as run_compare
    from vtrain.results.compare import comparison_json

    comparison = run_compare(runs, split=split)
    if output is not None:
        from vtrain.pages.compare import write_comparison_page

        write_comparison_page(output, comparison, reporter=console)
    for warning in comparison.warnings:
        console.warn(warning)
    if as_json:
        print_json(comparison_json(comparison))
    else:
        _show_comparison(comparison)
    for note in comparison.notes:
        console.say(f"note: {note}")
    if output is not None:
        console.say(f"page: {quote_path(output)}")


def _show_comparison(comparison: "Comparison") -> None:
    from vtrain.results.compare import SPLIT_NAMES, describe_difference

    images = f"{comparison.count:,} {SPLIT_NAMES[comparison.split]} images"
    print_line(f"{len(comparison.runs)} runs on {images}")
    _show_runs(comparison.runs)
    print_line("")
    for difference in comparison.differences:
        _show_verdict(describe_difference(difference, comparison))
    _show_settings(comparison)
    for difference in comparison.differences:
        _show_classes(difference, comparison)
        _show_images(difference, comparison)
    _show_curves(comparison.runs)


def _show_runs(runs: Sequence["ComparedRun"]) -> None:
    rows = [
        (
            str(run.run_dir),
            f"{100 * run.top1:.1f}",
            "-".join(f"{100 * limit:.1f}" for limit in run.top1_interval),
            f"{run.macro_f1:.3f}",
            "-".join(f"{limit:.3f}" for limit in run.macro_f1_interval),
            "-" if run.best_epoch is None else f"{run.best_epoch}/{run.epochs}",
            "-" if run.seconds is None else format_duration(run.seconds),
            "-" if run.model_bytes is None else format_bytes(run.model_bytes),
        )
        for run in runs
    ]
    header = ("run", "top-1 %", "95 %", "F1", "95 %", "best", "time", "model")
    count = _count_fitting([header, *rows], find_width(data_stream()))
    print_table(header[:count], [row[:count] for row in rows], right=tuple(range(1, count)))


def _count_fitting(rows: Sequence[Sequence[str]], width: int | None) -> int:
    """How many columns a terminal has room for, without those that matter least, on the right."""
    widths = [max(map(len, column)) + GAP for column in zip(*rows, strict=True)]
    while width is not None and len(widths) > FEWEST_COLUMNS and sum(widths) - GAP > width:
        widths.pop()
    return len(widths)


def _show_verdict(text: str) -> None:
    """A sentence on stdout, broken between words where it is for a terminal."""
    width = find_width(data_stream())
    print_text(one_line(text) if width is None else fill(one_line(text), width))


def _show_settings(comparison: "Comparison") -> None:
    print_line("")
    if not comparison.settings:
        print_line("no setting differs")
        return
    print_table(
        ("setting", *(str(run.run_dir) for run in comparison.runs)),
        [
            (each.key, *("-" if value is None else str(value) for value in each.values))
            for each in comparison.settings
        ],
    )


def _show_classes(difference: "RunDifference", comparison: "Comparison") -> None:
    changed = [each for each in difference.classes if each.gained or each.lost]
    if not changed:
        return
    shown = changed
    if len(changed) > 2 * CLASSES_SHOWN:
        shown = [*changed[:CLASSES_SHOWN], *changed[-CLASSES_SHOWN:]]
    print_line("")
    names = (str(comparison.baseline.run_dir), str(difference.run_dir))
    print_table(
        ("class", "images", *names, "gained", "lost"),
        [
            (
                each.name,
                str(each.count),
                format_percent(each.baseline / each.count),
                format_percent(each.other / each.count),
                str(each.gained),
                str(each.lost),
            )
            for each in shown
        ],
        right=(1, 2, 3, 4, 5),
    )  # fmt: skip
    if len(shown) < len(changed):
        print_line(f"{len(changed) - len(shown)} classes with smaller changes are not shown")


def _show_images(difference: "RunDifference", comparison: "Comparison") -> None:
    for images, run_dir in (
        (difference.gained, difference.run_dir),
        (difference.lost, comparison.baseline.run_dir),
    ):
        if not images:
            continue
        print_line("")
        print_line(f"right in {run_dir} only: {len(images):,}")
        for each in images[:IMAGES_SHOWN]:
            wrong = each.baseline if each.other.correct else each.other
            print_line(
                f"  {each.path}: {each.label}, taken for {wrong.prediction} "
                f"({wrong.probability:.2f})"
            )
        if len(images) > IMAGES_SHOWN:
            print_line(f"  and {len(images) - IMAGES_SHOWN:,} more (--json lists all)")


def _show_curves(runs: Sequence["ComparedRun"]) -> None:
    from vtrain.commands.terminal_plot import draw_plot

    if max(len(run.curve) for run in runs) < 2:
        return
    curves = {
        str(run.run_dir): (range(1, len(run.curve) + 1), [100 * value for value in run.curve])
        for run in runs
    }
    print_line("")
    title = "top-1 on the validation images, %"
    print_text(draw_plot(curves, data_stream(), title=title, x_title="epoch"))
