"""What a command runs in when faults are put into it: a fork of a process that has loaded torch."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import vtrain.__main__
import vtrain.results.embed
import vtrain.results.prediction_files
import vtrain.runs.fit
from vtrain.system.signals import STOP_SIGNALS, raise_on_stop_signals

BEGUN = "begun"  # a file beside the output


@dataclass(frozen=True, slots=True)
class Command:
    """A command line in a folder, and what is wrong with the machine.

    `limits` are soft limits by their names in `resource`, `before` is called in the process first.
    Variables of `environ` that are None are unset.
    """

    arguments: tuple[str, ...]
    folder: Path
    environ: dict[str, str | None] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    before: Callable[[], None] | None = None


def run(command: Command, output: Path) -> NoReturn:
    """Run the command as `python -m vtrain` does; both its streams go to `output`."""
    os.setsid()
    # Not the way in which this process was started, which is inherited.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(command.folder)
    with output.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for name, value in command.environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for name, limit in command.limits.items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    for number in STOP_SIGNALS:  # which a parent in the background, or under nohup, has ignored
        signal.signal(number, signal.SIG_DFL)
    raise_on_stop_signals()  # as run() will once more
    output.with_name(BEGUN).touch()
    if command.before is not None:
        command.before()
    sys.argv = ["vtrain", *command.arguments]
    vtrain.__main__.run()


def kill_at(module: str, name: str, call: int, *, after: bool = False) -> None:
    """Kill this process, as `kill -9` does, before or after the given call of a function."""
    _replace(module, name, call, lambda: os.kill(os.getpid(), signal.SIGKILL), after=after)


def signal_at(module: str, name: str, call: int, *, number: int, group: bool) -> None:
    """Send a signal to this process, or to its group, before the given call of a function."""

    def send() -> None:
        if group:
            os.killpg(os.getpgid(0), number)
        else:
            os.kill(os.getpid(), number)

    _replace(module, name, call, send)


def wrap(module: str, name: str, build: Callable[[Any], Any]) -> None:
    """Put what `build` makes of a function in its place."""
    owner = import_module(module)
    setattr(owner, name, build(getattr(owner, name)))


def set_value(module: str, name: str, value: Any) -> None:
    """Give a constant another value."""
    setattr(import_module(module), name, value)


def _replace(
    module: str, name: str, call: int, act: Callable[[], None], *, after: bool = False
) -> None:
    owner: Any = import_module(module)
    *parts, last = name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    original = getattr(owner, last)
    process, calls = os.getpid(), 0

    @wraps(original)
    def replacement(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == call and os.getpid() == process
        if mine and not after:
            act()
        result = original(*arguments, **named)
        if mine and after:
            act()
        return result

    setattr(owner, last, replacement)
