"""`vtrain neighbors`: the most similar images of an embedded folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vtrain.commands.options import Csv, Device, Json, Page, PrecisionName, complete_models
from vtrain.commands.outcomes import require_one_form, require_page_name
from vtrain.system.terminal import Console, print_csv_row, print_json, print_table
from vtrain.system.text import one_line, quote_path

if TYPE_CHECKING:
    from vtrain.results.neighbors import NeighborResult


def neighbors(
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="An image, a path in the index, or a row number."),
    ],
    embeddings: Annotated[
        Path,
        typer.Argument(
            metavar="EMBEDDINGS.npy", help="What `vtrain embed` wrote, its .csv beside it."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Model for an image that is not in the index; without it the one that the "
            "embeddings were made with.",
            autocompletion=complete_models,
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="Images to show.")] = 10,
    metric: Annotated[
        Literal["cosine", "euclidean"],
        typer.Option("--metric", metavar="METRIC", help="cosine or euclidean."),
    ] = "cosine",
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="LAYER", help="As for embed, for embeddings without a .json."
        ),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    output: Page = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    *,
    console: Console,
) -> None:
    """The most similar images of an embedded folder.

    \b
    vtrain neighbors holiday.jpg photos.npy
    vtrain neighbors photos/cat/001.jpg photos.npy -k 20 -o similar.html
    vtrain neighbors 17 photos.npy --metric euclidean --csv > similar.csv
    """
    from vtrain.results.neighbors import find_neighbors
    from vtrain.system.machine import find_device

    require_one_form(as_json=as_json, as_csv=as_csv)
    require_page_name(output)
    result = find_neighbors(
        query,
        embeddings,
        model=model,
        k=k,
        metric=metric,
        layer=layer,
        device=find_device(device),
        precision=precision,
        reporter=console,
    )
    if result.row is not None:
        console.say(f"query: row {result.row}, {one_line(result.query)}")
    if result.left_out:
        rows = result.count + result.left_out
        console.say(f"{result.left_out:,} of {rows:,} rows hold no features and are left out")
    if output is not None:
        from vtrain.pages.neighbors import write_neighbors_page

        write_neighbors_page(output, result)
        console.say(f"page: {quote_path(output)}")
    _show_neighbors(result, as_json=as_json, as_csv=as_csv)


def _show_neighbors(result: "NeighborResult", *, as_json: bool, as_csv: bool) -> None:
    from vtrain.results.neighbors import neighbors_json

    name = "similarity" if result.metric == "cosine" else "distance"
    if as_json:
        print_json(neighbors_json(result))
    elif as_csv:
        print_csv_row(("rank", name, "row", "path"))
        for each in result.neighbors:
            print_csv_row((each.rank, f"{each.value:.6f}", each.row, each.path))
    else:
        print_table(
            (name, "row", "path"),
            [(f"{each.value:.4f}", str(each.row), str(each.path)) for each in result.neighbors],
            right=(0, 1),
        )
