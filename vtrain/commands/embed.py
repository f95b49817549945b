"""`vtrain embed`: one feature vector for each image."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtrain.commands.options import Compute, Json, Listed, Model, choose_workers
from vtrain.commands.outcomes import reported_once, require_all_readable, require_no_config
from vtrain.errors import UsageError
from vtrain.system.files import real_path
from vtrain.system.terminal import Console, print_json, print_line
from vtrain.system.text import one_line

if TYPE_CHECKING:
    from vtrain.data.lists import ListLayout
    from vtrain.results.inputs import FoundInputs
    from vtrain.system.processes import Processes


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH... OUT.npy",
            help="Images, folders, tars, lists, globs, or - for paths on stdin; and the array to "
            "write: OUT.csv, OUT.json go beside.",
        ),
    ],
    model: Model = None,
    layer: Annotated[
        str,
        typer.Option(
            metavar="LAYER", help="penultimate, pooled, logits, or a stage of the backbone."
        ),
    ] = "penultimate",
    feature_maps: Annotated[
        bool, typer.Option("--feature-maps", help="Keep the spatial extent: [N, C, H, W].")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same command was stopped or killed.")
    ] = False,
    as_json: Json = False,
    *,
    listed: Listed,
    compute: Compute,
    console: Console,
) -> None:
    """Write one feature vector for each image.

    OUT.npy is [N, D] float32; OUT.csv has row, path, status and, where there are classes, the label
    of each image, OUT.json the model and layer. Under torchrun the processes share the work;
    OUT.npy must be where all of them see it.

    \b
    vtrain embed photos/ photos.npy
    vtrain embed photos/ photos.npy -m vit_b_16
    find photos -name '*.jpg' | vtrain embed - photos.npy
    vtrain embed photos/ maps.npy -m resnet50 --layer layer3 --feature-maps
    torchrun --nproc-per-node=8 -m vtrain embed photos/ photos.npy --resume
    """
    from vtrain.results.embed import embed as run_embed
    from vtrain.runs.model_argument import load_model
    from vtrain.system.json_csv import to_plain
    from vtrain.system.machine import find_device
    from vtrain.system.processes import read_processes

    *sources, output = paths
    require_no_config("embed FOLDER OUT.npy", *sources)
    processes = read_processes()
    if not processes.is_main:
        console = Console(quiet=True)
    _require_sources(sources, output, processes)
    layout = listed.build_layout(sources)
    source = _choose_source(sources, layout, console)
    chosen = find_device(processes.choose_device(compute.device))
    with reported_once(processes), processes.joined(chosen):
        with processes.together(main_first=True):  # the first may have to download weights
            loaded = load_model(model, device=chosen, precision=compute.precision, reporter=console)
        result = run_embed(
            source,
            Path(output),
            loaded,
            layer=layer,
            feature_maps=feature_maps,
            batch_size=compute.batch_size,
            workers=choose_workers(compute.workers),
            resume=resume,
            layout=layout,
            processes=processes,
            reporter=console,
        )
    if not processes.is_main:
        return
    if as_json:
        failures = [to_plain(each) for each in result.failures]
        print_json({"schema": 1, **to_plain(result), "failures": failures})
    else:
        shape = "x".join(str(size) for size in (result.count, *result.dim))
        print_line(f"{result.output}: {shape} float32, paths in {result.index}")
    require_all_readable(result.failures, result.count)


def _require_sources(sources: Sequence[str], output: str, processes: "Processes") -> None:
    if not sources:
        raise UsageError(
            f"only {one_line(output)} was given, expected images and the array to write",
            "vtrain embed PATH... OUT.npy",
        )
    suffixes = (".npy", ".csv", ".json") if output.endswith(".npy") else ()
    written = {real_path(Path(output).with_suffix(suffix)) for suffix in suffixes}
    if lost := [each for each in sources if real_path(each) in written]:
        raise UsageError(
            f"{one_line(lost[0])} is an input, and would be replaced by what goes beside "
            f"{one_line(output)}",
            "choose another name for the array",
        )
    if "-" in sources and processes.world_size > 1:
        raise UsageError(
            "stdin reaches one of several processes only",
            "write the paths to a list, such as photos.txt, and embed that",
        )


def _choose_source(
    sources: Sequence[str], layout: "ListLayout", console: Console
) -> "Path | FoundInputs":
    """A folder, tar or list by itself, which is refused if it cannot be used; or many inputs."""
    from vtrain.results.inputs import STDIN, FoundInputs, is_pattern

    if len(sources) == 1 and sources[0] != STDIN and not is_pattern(sources[0]):
        return Path(sources[0])
    return FoundInputs(sources, sys.stdin.buffer, layout=layout, labelled=True, reporter=console)
