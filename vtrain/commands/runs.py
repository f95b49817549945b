"""`vtrain runs`: what has been trained, and how good it is."""

from pathlib import Path
from typing import Annotated

import typer

from vtrain.commands.options import Json
from vtrain.system.terminal import Console, print_json, print_table
from vtrain.system.text import format_duration, one_line


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Where they lie; runs/ if it is not given."),
    ] = None,
    as_json: Json = False,
    *,
    console: Console,
) -> None:
    """Runs with their figures, the newest first.

    \b
    vtrain runs
    vtrain runs experiments/ --json
    """
    from vtrain.runs.listing import list_runs
    from vtrain.system.json_csv import to_plain

    found = list_runs(folder)
    if as_json:
        print_json({"schema": 1, "runs": to_plain(found)})
        return
    if not found:
        console.say(f"no run below {one_line(folder or 'runs')}/: `vtrain fit CONFIG` makes one")
        return
    print_table(
        ("run", "state", "val", "test", "F1", "epoch", "backbone", "images", "classes", "time", ""),
        [
            (
                each.name,
                each.state,
                _format_share(each.val_top1),
                _format_share(each.test_top1),
                _format_share(each.val_macro_f1),
                _format_number(each.best_epoch),
                each.backbone or "-",
                _format_number(each.images),
                _format_number(each.classes),
                "-" if each.seconds is None else format_duration(each.seconds),
                each.changed[:16].replace("T", " "),
            )
            for each in found
        ],
        right=(2, 3, 4, 5, 7, 8, 9),
        least=(8, 9, 7, 6, 4, 5, 10),
    )
    for each in found:
        if each.problem is not None:
            console.warn(f"{one_line(each.path)}: {each.problem}")


def _format_share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _format_number(value: int | None) -> str:
    return "-" if value is None else str(value)
