"""`vtrain embed`: one feature vector for each image."""

from pathlib import Path
from typing import Annotated

import typer

from vtrain.commands.options import Compute, Json, Model, choose_workers
from vtrain.commands.outcomes import reported_once, require_all_readable, require_no_config
from vtrain.system.terminal import Console, print_json, print_line


def embed(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images at any depth, or one image.")
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT.npy", help="The array to write; OUT.csv, OUT.json go beside."),
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
    compute: Compute,
    console: Console,
) -> None:
    """Write one feature vector for each image.

    OUT.npy is [N, D] float32; OUT.csv has row, path and status of each image, OUT.json the
    model and layer. Under torchrun the processes share the work; OUT.npy must be where all of
    them see it.

    \b
    vtrain embed photos/ photos.npy
    vtrain embed photos/ photos.npy -m vit_b_16
    vtrain embed photos/ maps.npy -m resnet50 --layer layer3 --feature-maps
    torchrun --nproc-per-node=8 -m vtrain embed photos/ photos.npy --resume
    """
    from vtrain.results.embed import embed as run_embed
    from vtrain.runs.model_argument import load_model
    from vtrain.system.json_csv import to_plain
    from vtrain.system.machine import find_device
    from vtrain.system.processes import read_processes

    require_no_config("embed FOLDER OUT.npy", folder)
    processes = read_processes()
    if not processes.is_main:
        console = Console(quiet=True)
    chosen = find_device(processes.choose_device(compute.device))
    with reported_once(processes), processes.joined(chosen):
        with processes.together(main_first=True):  # the first may have to download weights
            loaded = load_model(model, device=chosen, precision=compute.precision, reporter=console)
        result = run_embed(
            folder,
            output,
            loaded,
            layer=layer,
            feature_maps=feature_maps,
            batch_size=compute.batch_size,
            workers=choose_workers(compute.workers),
            resume=resume,
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
