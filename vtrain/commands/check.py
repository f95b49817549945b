"""`vtrain check`: what is wrong with a data set."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtrain.commands.options import Device, Json, Model, Overrides, Page, Workers, choose_workers
from vtrain.commands.outcomes import require_page_name, require_place
from vtrain.errors import DataError, UsageError
from vtrain.system.terminal import Console, print_json, print_line, print_table
from vtrain.system.text import one_line, quote_path

if TYPE_CHECKING:
    from vtrain.results.check import CheckResult, Embed
    from vtrain.results.check_findings import Finding

EXAMPLES = 10  # images or groups of each error that are listed


def check(
    source: Annotated[
        Path,
        typer.Argument(metavar="CONFIG|FOLDER", help="YAML file, or a folder, tar or list."),
    ],
    overrides: Overrides = None,
    output: Page = None,
    write_list: Annotated[
        Path | None,
        typer.Option(
            "--write-list", metavar="FILE", help="Write the images to leave out, for data.exclude."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", metavar="PX", min=16, help="Model's input in pixels, for a folder: 224."
        ),
    ] = None,
    embeddings: Annotated[
        bool,
        typer.Option("--embeddings", help="Seek similar images by a model's features as well."),
    ] = False,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
    workers: Workers = None,
    *,
    console: Console,
) -> None:
    """Look through images for damage, copies, leaks and odd classes.

    \b
    vtrain check photos/
    vtrain check photos/ -o check.html
    vtrain check flowers.yaml --write-list exclude.txt
    vtrain check flowers.yaml data.exclude=exclude.txt
    vtrain check photos/ --embeddings -m resnet50
    """
    from vtrain.results.check import (
        check_images,
        check_json,
        open_source,
        require_list_path,
        write_exclude_list,
    )

    require_page_name(output)
    if write_list is not None:
        require_place(write_list, "--write-list")
    if model is not None and not embeddings:
        raise UsageError("--model is for --embeddings", "add --embeddings, or leave it out")
    embed = _build_embed(model, device, workers, console) if embeddings else None
    opened = open_source(source, overrides or [], image_size=image_size, reporter=console)
    if write_list is not None:
        require_list_path(write_list, opened)
    result = check_images(opened, workers=choose_workers(workers), embed=embed, reporter=console)
    # The files first: who reads the table may close the pipe, which ends the command.
    written = []
    if write_list is not None:
        count = write_exclude_list(write_list, result)
        written.append(f"{quote_path(write_list)}: {count:,} images to leave out")
    if output is not None:
        from vtrain.pages.check import write_check_page

        write_check_page(output, result)
        written.append(f"page: {quote_path(output)}")
    elif result.findings:
        written.append("with -o check.html: a page that shows the images")
    if as_json:
        print_json(check_json(result))
    else:
        _show_check(result)
    for each in written:
        console.say(each)
    _require_sound(result, source, write_list)


def _build_embed(model: str | None, device: str, workers: int | None, console: Console) -> "Embed":
    """What computes the features of images."""
    from vtrain.results.features import compute_features
    from vtrain.runs.model_argument import load_model
    from vtrain.system.machine import find_device

    loaded = load_model(model, device=find_device(device), precision="auto", reporter=console)
    return partial(
        compute_features, model=loaded, workers=choose_workers(workers), reporter=console
    )


def _show_check(result: "CheckResult") -> None:
    data = result.data
    for name, images in data.splits.items():
        kind = "images" if name == "images" else f"{name} images"
        classes = f" of {len(images.classes)} classes" if data.labelled else ""
        print_line(f"{one_line(images.root)}: {len(images):,} {kind}{classes}")
    known = f", {data.inspection.known:,} known and unchanged" if data.inspection.known else ""
    print_line(f"{data.inspection.read:,} images read{known}; input {data.image_size} px")
    if not result.findings:
        print_line("nothing found")
        return
    print_table(
        ("severity", "count", "what was found, and what to do"),
        [
            (each.severity, f"{each.count:,}", f"{each.message}; {each.advice}")
            for each in result.findings
        ],
        right=(1,),
    )
    for finding in result.findings:
        if finding.severity == "error":
            _show_examples(finding)


def _show_examples(finding: "Finding") -> None:
    """The first images of an error, one a line, groups on one line."""
    if finding.groups:
        lines = [
            " = ".join(one_line(each.path) for each in group.images) + f"  ({group.same})"
            for group in finding.groups
        ]
    else:
        pairs = zip(finding.paths, finding.reasons, strict=False)
        lines = [f"{one_line(path)}: {reason}" for path, reason in pairs]
    if not lines:
        return
    print_line("")
    print_line(f"{finding.kind}:")
    for line in lines[:EXAMPLES]:
        print_line(f"  {line}")
    if len(lines) > EXAMPLES:
        print_line(f"  and {len(lines) - EXAMPLES:,} more")


def _require_sound(result: "CheckResult", source: Path, write_list: Path | None) -> None:
    """Exit 3 where something would spoil a result."""
    errors = result.count("error")
    if not errors:
        return
    kinds = ", ".join(each.kind for each in result.findings if each.severity == "error")
    if not result.exclude:
        hint = None
    elif write_list is None:
        hint = f"vtrain check {quote_path(source)} --write-list exclude.txt lists what to leave out"
    else:
        hint = f"leave them out with data.exclude={quote_path(write_list)}"
    raise DataError(f"{one_line(source)} would spoil a result: {kinds}", hint)
