"""`vtrain init`, `config` and `schema`: configs written, resolved and described."""

from pathlib import Path
from typing import Annotated

import typer

from vtrain.commands.options import Config, Json, Overrides, complete_backbones
from vtrain.errors import UsageError
from vtrain.system.files import path_exists, real_path
from vtrain.system.terminal import Console, print_json, print_line, print_text
from vtrain.system.text import one_line, quote_path


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="One subfolder for each class, or splits of these; tar or list."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="CONFIG", help="Where to write it."),
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(metavar="NAME", help="Backbone to train.", autocompletion=complete_backbones),
    ] = "resnet18",
    *,
    console: Console,
) -> None:
    """Write a commented config for a folder, tar or list of images.

    \b
    vtrain init photos/
    vtrain init labels.csv
    vtrain init photos/ -o photos.yaml --backbone mobilenet_v3_small
    """
    from vtrain.runs.starter_config import build_config_text, inspect_folder, write_config

    is_file = path_exists(folder) and folder.is_file()
    if folder.suffix.lower() in (".yaml", ".yml") and is_file:
        raise UsageError(
            f"{one_line(folder)} is a config already, expected images",
            f"to train: vtrain fit {quote_path(folder)}",
        )
    place = real_path(folder)
    path = output or Path(f"{place.stem if is_file else place.name}.yaml")
    summary = inspect_folder(folder)
    write_config(path, build_config_text(summary, backbone=backbone, folder=path.parent))
    for line in summary.lines():
        (console.warn if line in summary.unread else console.say)(line)
    console.say(f"next: vtrain fit {quote_path(path)}")
    print_line(str(path))


def show_config(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """The whole config, and where each value came from.

    \b
    vtrain config flowers.yaml
    vtrain config flowers.yaml optim.lr=1e-4
    """
    from vtrain.config.dump import dump_config
    from vtrain.runs.settings import load_settings

    loaded = load_settings(config, overrides or [])
    if as_json:
        config_json = loaded.config.model_dump(mode="json")
        print_json({"schema": 1, "config": config_json, "origins": loaded.origins})
    else:
        print_text(dump_config(loaded.config, loaded.origins).rstrip("\n"))


def schema() -> None:
    """JSON Schema of the config, for editors.

    \b
    vtrain schema > vtrain.schema.json
    """
    from vtrain.config.dump import json_schema

    print_json(json_schema())
