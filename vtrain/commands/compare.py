"""`vtrain compare`: which of several runs is better, and how sure that is."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vtrain.commands.options import Json, Page, complete_runs
from vtrain.commands.outcomes import require_page_name
from vtrain.system.terminal import (
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
    from vtrain.results.compare import ComparedRun, Comparison, Disagreement, RunDifference

CLASSES_SHOWN, IMAGES_SHOWN = 5, 3  # on each side


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Run folders, or their names below runs/; the others are compared with the first.",
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
    from vtrain.results.compare import compare_runs
    from vtrain.runs.folder import find_run
    from vtrain.system.json_csv import to_plain

    comparison = compare_runs([find_run(each) for each in runs], split=split)
    if output is not None:
        from vtrain.pages.compare import write_comparison_page

        write_comparison_page(output, comparison, reporter=console)
    for warning in comparison.warnings:
        console.warn(warning)
    if as_json:
        print_json({"schema": 1, **to_plain(comparison)})
    else:
        _show_comparison(comparison)
    for note in comparison.notes:
        console.say(f"note: {note}")
    if output is not None:
        console.say(f"page: {quote_path(output)}")


def _show_comparison(comparison: "Comparison") -> None:
    from vtrain.results.compared_runs import SPLIT_NAMES

    images = f"{comparison.count:,} {SPLIT_NAMES[comparison.split]} images"
    print_line(f"{len(comparison.runs)} runs on {images}")
    _show_runs(comparison.runs)
    print_line("")
    width = find_width(data_stream())
    for difference in comparison.differences:
        text = one_line(difference.text)
        print_text(text if width is None else fill(text, width))
    print_line("")
    if comparison.settings:
        print_table(
            ("setting", *(str(run.run) for run in comparison.runs)),
            [
                (
                    each.key,
                    *("-" if value is None else str(value) for value in each.values.values()),
                )
                for each in comparison.settings
            ],
        )
    else:
        print_line("no setting differs")
    for difference in comparison.differences:
        _show_classes(difference, str(comparison.baseline))
        _show_images(difference.right_in_run_only, difference.run)
        _show_images(difference.right_in_baseline_only, comparison.baseline)
    _show_curves(comparison.runs)


def _show_runs(runs: Sequence["ComparedRun"]) -> None:
    print_table(
        ("run", "top-1 %", "95 %", "F1", "95 %", "best", "time", "model"),
        [
            (
                str(run.run),
                f"{100 * run.top1:.1f}",
                "-".join(f"{100 * limit:.1f}" for limit in run.top1_interval),
                f"{run.macro_f1:.3f}",
                "-".join(f"{limit:.3f}" for limit in run.macro_f1_interval),
                "-" if run.best_epoch is None else f"{run.best_epoch}/{run.epochs}",
                "-" if run.seconds is None else format_duration(run.seconds),
                "-" if run.model_bytes is None else format_bytes(run.model_bytes),
            )
            for run in runs
        ],
        right=range(1, 8),
        least=(7, 6, 5),
    )


def _show_classes(difference: "RunDifference", baseline: str) -> None:
    changed = [each for each in difference.per_class if each.gained or each.lost]
    if not changed:
        return
    shown = changed
    if len(changed) > 2 * CLASSES_SHOWN:
        shown = [*changed[:CLASSES_SHOWN], *changed[-CLASSES_SHOWN:]]
    print_line("")
    print_table(
        ("class", "images", baseline, str(difference.run), "gained", "lost"),
        [
            (
                each.class_,
                str(each.count),
                format_percent(each.right_in_baseline / each.count),
                format_percent(each.right_in_run / each.count),
                str(each.gained),
                str(each.lost),
            )
            for each in shown
        ],
        right=(1, 2, 3, 4, 5),
    )
    if len(shown) < len(changed):
        print_line(f"{len(changed) - len(shown)} classes with smaller changes are not shown")


def _show_images(images: Sequence["Disagreement"], run: Path) -> None:
    if not images:
        return
    print_line("")
    print_line(f"right in {run} only: {len(images):,}")
    for each in images[:IMAGES_SHOWN]:
        wrong = each.wrong
        print_line(
            f"  {each.path}: {each.label}, taken for {wrong.class_} ({wrong.probability:.2f})"
        )
    if len(images) > IMAGES_SHOWN:
        print_line(f"  and {len(images) - IMAGES_SHOWN:,} more (--json lists all)")


def _show_curves(runs: Sequence["ComparedRun"]) -> None:
    from vtrain.commands.terminal_plot import draw_plot

    curves = {str(run.run): run.val_top1_by_epoch for run in runs}
    if max(map(len, curves.values())) < 2:
        return
    points = {
        run: (range(1, len(curve) + 1), [100 * value for value in curve])
        for run, curve in curves.items()
    }
    print_line("")
    title = "top-1 on the validation images, %"
    print_text(draw_plot(points, data_stream(), title=title, x_title="epoch"))
