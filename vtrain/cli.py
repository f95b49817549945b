"""The command line: every command by its name, and what happens to errors.

What computes is imported inside the commands, so that help and config errors appear at once.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from vtrain.commands.backbones import backbones
from vtrain.commands.cache import cache
from vtrain.commands.check import check
from vtrain.commands.compare import compare
from vtrain.commands.config import init, schema, show_config
from vtrain.commands.embed import embed
from vtrain.commands.env import env
from vtrain.commands.evaluate import evaluate
from vtrain.commands.explain import explain
from vtrain.commands.fit import fit
from vtrain.commands.neighbors import neighbors
from vtrain.commands.options import expand_options
from vtrain.commands.predict import predict
from vtrain.commands.probe import probe
from vtrain.commands.report import report
from vtrain.commands.runs import runs
from vtrain.commands.sample import sample
from vtrain.commands.suspects import suspects
from vtrain.commands.usage_errors import FitCommand, PlainCommand, explain_error
from vtrain.errors import ExitCode, UsageError
from vtrain.system.terminal import (
    Console,
    OutputClosedError,
    is_output_closed,
    open_missing_streams,
    print_line,
)

COMPLETE_VARIABLE = "_VTRAIN_COMPLETE"  # what Typer's shell scripts set
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    help="""Train, evaluate and use image classifiers by transfer learning, from one YAML file.

    \b
    vtrain init photos/ -o photos.yaml    write a config for a folder of images
    vtrain check photos.yaml              look through its images before training
    vtrain fit photos.yaml                train into a new folder below runs/
    vtrain predict holiday.jpg            classify with the newest model
    vtrain predict cat.jpg -m resnet50    classify with ImageNet weights
    vtrain embed photos/ out.npy          write one feature vector for each image
    """,
)


def add(
    command: Callable[..., None],
    kind: type[PlainCommand] = PlainCommand,
    *,
    name: str | None = None,
) -> None:
    """Make a function a command, by its own name or another."""
    app.command(name, cls=kind)(expand_options(command))


# In the order of the help page.
add(fit, FitCommand)
add(evaluate)
add(compare)
add(predict)
add(embed)
add(neighbors)
add(suspects)
add(explain)
add(report)
add(runs)
add(backbones)
add(probe)
add(init)
add(check)
add(show_config, name="config")
add(schema)
add(sample)
add(cache)
add(env)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("vtrain")
        except PackageNotFoundError:
            number = "(not installed: running from its source)"
        print_line(f"vtrain {number}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    show: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What stands before the command."""
    if context.invoked_subcommand is None:
        Console().say(f"{context.get_help()}\n")
        raise UsageError("no command was given", "start with: vtrain init FOLDER")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    open_missing_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if COMPLETE_VARIABLE in os.environ:
        app(arguments, prog_name="vtrain")  # answers the shell and exits
    try:
        return _run(arguments)
    except OutputClosedError:
        return int(ExitCode.OK)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and is_output_closed():
            return int(ExitCode.OK)  # Typer prints help by itself
        if "--debug" in arguments:
            Console().say(traceback.format_exc().rstrip())
        explained = explain_error(error, arguments)
        Console().error(explained)
        return int(explained.exit_code)


def _run(arguments: list[str]) -> int:
    # Typer's own main() would turn Ctrl-C, a closed pipe and EOFError into exit codes of its own.
    program = typer.main.get_command(app)
    try:
        with program.make_context("vtrain", arguments) as context:
            program.invoke(context)
    except typer.Exit as stop:  # after --help and --version, or where another process tells why
        return stop.exit_code
    return int(ExitCode.OK)
