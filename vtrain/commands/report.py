"""`vtrain report`: a page about a run, to read, print and send."""

from pathlib import Path
from typing import Annotated

import typer

from vtrain.commands.options import Run, choose_run
from vtrain.commands.outcomes import require_page_name
from vtrain.system.terminal import Console, print_line
from vtrain.system.text import format_bytes, format_duration, one_line


def report(
    run: Run = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page; without it report.html in the run folder.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also replace a page that shows more.")
    ] = False,
    *,
    console: Console,
) -> None:
    """Write a page about a run: how good it is, and where it fails.

    The page needs no network and no script; a model card in Markdown goes beside it. Every
    `vtrain fit` writes them at its end, unless train.report is false.

    \b
    vtrain report
    vtrain report flowers-001 -o flowers.html
    """
    from vtrain.pages.report.heat_maps import draw_heat_maps
    from vtrain.pages.report.report import write_report
    from vtrain.system.machine import find_device

    require_page_name(output)  # the heat maps take seconds
    run_dir = choose_run(run, console)
    heat_maps = draw_heat_maps(run_dir, device=find_device("auto"))
    result = write_report(run_dir, output=output, heat_maps=heat_maps, force=force)
    for each in result.missing:
        console.say(each)
    console.say(
        f"{format_bytes(result.size)} in {format_duration(result.seconds)}; "
        f"model card: {one_line(result.card)}"
    )
    print_line(str(result.page))
