"""`vtrain sample`: a small data set, drawn."""

from pathlib import Path
from typing import Annotated

import typer

from vtrain.system.terminal import Console, print_line


def sample(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that does not exist yet.")
    ],
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Another seed draws another set.")
    ] = 0,
    *,
    console: Console,
) -> None:
    """Draw a small data set of five shapes, to try things with.

    \b
    vtrain sample shapes/
    """
    from vtrain.data.example_set import draw_sample

    for images in draw_sample(folder, seed=seed):
        console.say(f"{images.root}: {len(images)} images of {', '.join(images.classes)}")
    print_line(str(folder))
