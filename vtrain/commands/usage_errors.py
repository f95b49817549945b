"""How the command line explains itself: help pages, and what went wrong when it did."""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from vtrain.errors import ResourceError, UsageError, VtrainError
from vtrain.system.signals import TerminatedError, build_stop_error

RESUME_AUTO = "--resume-auto"  # what `--resume auto` becomes
# Names that other tools give to our commands.
OTHER_NAMES = {
    "train": "fit",
    "finetune": "fit",
    "resume": "fit CONFIG --resume",
    "eval": "evaluate",
    "test": "evaluate",
    "val": "evaluate",
    "validate": "evaluate",
    "classify": "predict",
    "infer": "predict",
    "inference": "predict",
    "features": "embed",
    "extract": "embed",
    "models": "backbones",
    "list": "backbones",
    "zoo": "backbones",
    "new": "init",
    "info": "env",
    "help": "--help",
    "version": "--version",
}


class PlainCommand(TyperCommand):
    """A command whose help shows arguments as they are typed: `CONFIG [KEY=VALUE ...]`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The arguments by their metavars, then the options."""
        arguments = [
            str(each.metavar) for each in self.params if each.param_type_name == "argument"
        ]
        return [*arguments, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """A section for arguments and one for options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for each in self.get_params(ctx):
            if each.param_type_name == "argument":
                sections["Arguments"].append((str(each.metavar), getattr(each, "help", "")))
            elif record := each.get_help_record(ctx):
                sections["Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class FitCommand(PlainCommand):
    """Takes `--resume auto` besides `--resume`: an option with a value that may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click would take a CONFIG or KEY=VALUE after `--resume` for its value."""
        joined: list[str] = []
        for each in args:
            if each == "auto" and joined[-1:] == ["--resume"]:
                joined[-1] = RESUME_AUTO
            else:
                joined.append(RESUME_AUTO if each == "--resume=auto" else each)
        parsed: list[str] = super().parse_args(ctx, joined)
        return parsed


def explain_error(error: BaseException, arguments: Sequence[str]) -> VtrainError:
    """What the user can do about an error, whoever raised it."""
    if isinstance(error, VtrainError):
        return error
    if isinstance(error, typer.TyperException):
        return _explain_usage(error, arguments)
    if isinstance(error, KeyboardInterrupt):
        name = f" by {error.number.name}" if isinstance(error, TerminatedError) else ""
        return build_stop_error(error, f"interrupted{name}", "run the same command again")
    if isinstance(error, MemoryError):
        return ResourceError("out of memory", "lower the batch size or the number of workers")
    from vtrain.system.files import find_disk_error

    if failure := find_disk_error(error):
        return ResourceError(f"no space left: {failure}", "free some space, or write elsewhere")
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from vtrain.data.workers import explain_worker_error
        from vtrain.system.machine import explain_torch_error

        if explained := explain_worker_error(error) or explain_torch_error(error):
            # Its hint is for fit, which asks by itself and has keys for what others have options.
            return ResourceError(explained.message, "lower --batch-size or --workers")
    reason = str(error).partition("\n")[0]
    return VtrainError(
        f"unexpected {type(error).__name__}{': ' if reason else ''}{reason}",
        "run the command again with --debug, and report what it prints with `vtrain env`",
    )


def _explain_usage(error: typer.TyperException, arguments: Sequence[str]) -> UsageError:
    """Typer's message in our form: the nearest name, and the usage of the command."""
    context = getattr(error, "ctx", None)
    message = (
        error.format_message()
        .partition(" (Possible options")[0]
        .rstrip(".")
        .replace(" Value error,", "")
    )
    message = message[:1].lower() + message[1:].replace(". Did you mean", ", did you mean")
    # Typer compares with the dashes, by which --lr is near to --help.
    possible = [each.lstrip("-") for each in getattr(error, "possibilities", None) or ()]
    typed = getattr(error, "option_name", "").lstrip("-")
    near = difflib.get_close_matches(typed, possible, n=1)
    if near:
        message += f", did you mean --{near[0]}?"
    if context is None or context.parent is None:
        first = arguments[0] if arguments else ""
        # An option without its value comes without a context.
        other = f"{first} --help" if context is None else OTHER_NAMES.get(first, "--help")
        return UsageError(message, f"try: vtrain {other}")
    usage = " ".join(context.get_usage().removeprefix("Usage: ").split())
    hint = f"{usage}; more with -h"
    if "KEY=VALUE" in usage and message.startswith("no such option") and not near:
        hint = f"settings have no dashes, such as train.epochs=5: {hint}"
    return UsageError(message, hint)
