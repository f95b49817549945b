"""Every error that vtrain raises on purpose, and the exit code of each.

VtrainError                     1   unexpected
├── UsageError                  2   wrong command line
│   └── ConfigError             2   wrong config: every mistake in one report
├── DataError                   3   images or folders unusable
│   └── ImageError              3   one image unreadable
├── ModelError                  4   model, weights or checkpoint unusable
│   └── NewerFormatError        4   written by a newer vtrain
├── ResourceError               5   out of disk, memory or shared memory
├── DivergedError               6   loss no longer finite
├── RunLockedError              7   run folder in use by another process
├── StoppedError               75   stopped early by a signal, resumable
└── InterruptedRunError       130   Ctrl-C, resumable
"""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; scripts depend on them."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    DATA = 3
    MODEL = 4
    RESOURCE = 5
    DIVERGED = 6
    LOCKED = 7
    STOPPED = 75
    INTERRUPTED = 130


class VtrainError(Exception):
    """Something the user can act on.

    `message` says what was got, where, and what was expected; `hint` says what to do next.
    Neither ends with a full stop; the console prints them as `error: …` and `hint: …`.
    """

    exit_code = ExitCode.UNEXPECTED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(VtrainError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """The config cannot be used; the message lists every mistake, one line each."""


class DataError(VtrainError):
    """The folder or its images cannot be used for what was asked."""

    exit_code = ExitCode.DATA


class ImageError(DataError):
    """One image cannot be read; the message is a short reason without the path."""


class ModelError(VtrainError):
    """A model file, weights file or checkpoint is missing, damaged, foreign or does not fit."""

    exit_code = ExitCode.MODEL


class NewerFormatError(ModelError):
    """The file was written by a newer vtrain; nothing is wrong with it."""


class ResourceError(VtrainError):
    """The machine ran out of disk, memory or shared memory."""

    exit_code = ExitCode.RESOURCE


class DivergedError(VtrainError):
    """The training loss is no longer finite."""

    exit_code = ExitCode.DIVERGED


class RunLockedError(VtrainError):
    """Another process is working in the run folder."""

    exit_code = ExitCode.LOCKED


class StoppedError(VtrainError):
    """A signal ended the run early; the checkpoint holds everything that resume needs."""

    exit_code = ExitCode.STOPPED


class InterruptedRunError(VtrainError):
    """Ctrl-C ended the run early; the checkpoint holds everything that resume needs."""

    exit_code = ExitCode.INTERRUPTED


def suggest(name: str, known: Iterable[str], *, lead: str = ", ") -> str:
    """`, did you mean x?` with the known name that is nearest, empty where none is near."""
    close = get_close_matches(name, list(known), n=1)
    return f"{lead}did you mean {close[0]}?" if close else ""
