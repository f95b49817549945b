"""`vtrain suspects`: labels of a run's images that look wrong."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vtrain.commands.options import Compute, Csv, Json, Page, Run, choose_run, choose_workers
from vtrain.commands.outcomes import require_one_form, require_page_name
from vtrain.system.terminal import Console, print_csv_row, print_json, print_table
from vtrain.system.text import one_line, quote_path

if TYPE_CHECKING:
    from vtrain.results.suspects import SuspectReport


def suspects(
    run: Run = None,
    split: Annotated[
        Literal["train", "val", "both"],
        typer.Option("--split", metavar="SPLIT", help="train, val or both."),
    ] = "train",
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Labels to show.")] = 40,
    as_json: Json = False,
    as_csv: Csv = False,
    output: Page = None,
    *,
    compute: Compute,
    console: Console,
) -> None:
    """Labels of a run's images that look wrong.

    A ranking to look through by eye: how much similar images, and a classifier that has not
    seen the image, speak against its label. Some of the first are right and only unusual.

    \b
    vtrain suspects runs/flowers-001
    vtrain suspects runs/flowers-001 --split both --top 100 -o suspects.html
    vtrain suspects runs/flowers-001 --csv > suspects.csv
    """
    from vtrain.results.suspects import find_suspects
    from vtrain.system.machine import find_device

    require_one_form(as_json=as_json, as_csv=as_csv)
    require_page_name(output)
    report = find_suspects(
        choose_run(run, console),
        split=split,
        top=top,
        device=find_device(compute.device),
        precision=compute.precision,
        batch_size=compute.batch_size,
        workers=choose_workers(compute.workers),
        reporter=console,
    )
    for note in report.notes:
        console.warn(note)
    for each in report.failures:
        console.warn(f"left out {one_line(each.path)}: {each.reason}")
    if report.judged < report.count:
        console.say(
            f"{report.count - report.judged} of {report.count} images cannot be judged: "
            "unreadable, or the only one of their class"
        )
    console.say(
        f"the {len(report.suspects)} most suspect of {report.judged} labels "
        f"({' and '.join(report.splits)}): a ranking to look through, no verdict"
    )
    if output is not None:
        from vtrain.pages.suspects import write_suspects_page

        write_suspects_page(output, report, reporter=console)
        console.say(f"page: {quote_path(output)}")
    _show_suspects(report, as_json=as_json, as_csv=as_csv)


def _show_suspects(report: "SuspectReport", *, as_json: bool, as_csv: bool) -> None:
    from vtrain.results.suspects import CSV_HEADER
    from vtrain.system.json_csv import to_plain

    if as_json:
        print_json({"schema": 1, **to_plain(report)})
    elif as_csv:
        print_csv_row(CSV_HEADER)
        for each in report.suspects:
            # Its fields in their order, but for the last: the images against it.
            cells = list(to_plain(each).values())[: len(CSV_HEADER)]
            print_csv_row(f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells)
    else:
        print_table(
            ("score", "label", "p", "suggested", "p", "like it", "path"),
            [
                (
                    f"{each.score:.3f}",
                    each.label,
                    f"{each.label_probability:.2f}",
                    each.suggested,
                    f"{each.suggested_probability:.2f}",
                    f"{each.agreeing}/{each.neighbors}",
                    str(each.path),
                )
                for each in report.suspects
            ],
            right=(0, 2, 4, 5),
        )
