"""Arguments and options that several commands take."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vtrain.errors import UsageError
from vtrain.system.terminal import Console
from vtrain.system.text import enumerate_names, one_line

if TYPE_CHECKING:
    from vtrain.data.lists import ListLayout
    from vtrain.runs.model_argument import LoadedModel


def complete_backbones(incomplete: str) -> list[str]:
    """Backbone names for the shell."""
    from vtrain.models.zoo import backbone_names

    return [name for name in backbone_names() if name.startswith(incomplete)]


def complete_models(incomplete: str) -> list[str]:
    """What `-m` takes: names of finished runs and of backbones."""
    return [*complete_runs(incomplete), *complete_backbones(incomplete)]


def complete_runs(incomplete: str) -> list[str]:
    """Finished runs for the shell, by name, or as `runs/<name>` where that was begun."""
    from vtrain.config.run_files import RUNS
    from vtrain.runs.folder import find_run_names

    names = find_run_names(RUNS)
    paths = [str(RUNS / name) for name in names] if incomplete.startswith(str(RUNS)) else []
    return [name for name in (*names, *paths) if name.startswith(incomplete)]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")]
Page = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.html", help="Write a page as well."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Run (folder, or name below runs/), model file, or a backbone such as resnet50, "
        "resnet50:IMAGENET1K_V1 or resnet50:weights.pth. Without it: the newest finished run.",
        autocompletion=complete_models,
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Images per forward pass.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=0, help="Processes that read images; chosen where not given."
    ),
]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="What the backbone computes in: auto (fastest that is safe), fp32, bf16 or fp16.",
    ),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Probabilities as the network gives them, not calibrated.")
]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Average over four views of each image: mirrored, and its middle enlarged. Takes four "
        "times as long; not for images in which left and right differ, such as text.",
    ),
]
Run = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="Run folder, or its name below runs/. Without it: the newest finished run there.",
        autocompletion=complete_runs,
    ),
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE ...]",
        help="Settings that replace those in the file, such as train.epochs=5.",
    ),
]


def choose_run(given: str | None, console: Console) -> Path:
    """The folder of the run that was named, or of the newest, which is said."""
    from vtrain.config.run_files import RUNS
    from vtrain.runs.folder import NAME_A_RUN, find_newest_run, find_run

    if given is not None:
        return find_run(given)
    run = find_newest_run(RUNS, NAME_A_RUN)
    console.say(f"run: {one_line(run)}")
    return run


def choose_workers(given: int | None) -> int | Literal["auto"]:
    """What `--workers` stands for: a number, or `auto` where it was not given."""
    return "auto" if given is None else given


@dataclass(frozen=True, slots=True)
class Compute:
    """The options of a command that runs a model over many images."""

    batch_size: BatchSize = 32
    workers: Workers = None
    device: Device = "auto"
    precision: PrecisionName = "auto"

    def load_model(self, model: str | None, console: Console) -> "LoadedModel":
        """What `-m` names, on the device and in the precision of the options."""
        from vtrain.runs.model_argument import load_model
        from vtrain.system.machine import find_device

        device = find_device(self.device)
        return load_model(model, device=device, precision=self.precision, reporter=console)


@dataclass(frozen=True, slots=True)
class Listed:
    """The options of a command that takes lists: how these are read."""

    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="COLUMNS",
            help="Columns of a list by their names, such as path=image_id,label=breed.",
        ),
    ] = None
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="FOLDER",
            help="What paths in a list are relative to; without it the folder of the list.",
        ),
    ] = None

    def build_layout(self, sources: Iterable[str | Path]) -> "ListLayout":
        """How the lists among `sources` are read.

        Raises:
            UsageError: the options are wrong, or there is no list that they could be about.
        """
        from vtrain.data.image_sets import LIST_SUFFIXES
        from vtrain.data.lists import FOUND_BY_NAME, parse_columns

        layout = FOUND_BY_NAME if self.columns is None else parse_columns(self.columns)
        given = [f"--{each.name}" for each in fields(self) if getattr(self, each.name) is not None]
        if given and not any(str(each).lower().endswith(LIST_SUFFIXES) for each in sources):
            raise UsageError(
                f"{enumerate_names(given)} was given, but no list ({' '.join(LIST_SUFFIXES)})",
                "leave it out, or name a list",
            )
        if self.root is not None and not self.root.is_dir():
            raise UsageError(f"--root: there is no folder {one_line(self.root)}")
        return replace(layout, root=self.root)


_GROUPS = {"compute": Compute, "listed": Listed}


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer shall see it: what its signature says, with groups of options spelt out.

    A parameter `compute` becomes the options of `Compute`, in its place, `listed` those of
    `Listed`; `--quiet` and `--debug` come last. A command that has a parameter `console` gets one
    that heeds `--quiet`.
    """
    own = signature(command).parameters
    groups = {name: signature(_GROUPS[name]).parameters for name in own if name in _GROUPS}

    def run(quiet: Quiet = False, debug: Debug = False, **given: Any) -> None:
        for group, options in groups.items():
            given[group] = _GROUPS[group](**{name: given.pop(name) for name in options})
        if "console" in own:
            given["console"] = Console(quiet=quiet)
        command(**given)

    shown: list[Parameter] = []
    for name, each in own.items():
        if name in groups:
            shown += groups[name].values()
        elif name != "console":
            shown.append(each)
    *common, _ = signature(run).parameters.values()
    run.__signature__ = Signature([*shown, *common])  # type: ignore[attr-defined]
    return wraps(command)(run)
