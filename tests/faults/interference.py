"""Lets the Nth call that changes a file fail, or the process die there, whoever makes the call."""

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

KILL = 0  # in place of an error number
# Of the calls that name or describe a file, those that change something.
_PLAIN_CALLS = (
    "fsync",
    "fdatasync",
    "ftruncate",
    "link",
    "mkdir",
    "posix_fallocate",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "truncate",
    "unlink",
    "utime",
    "write",
)


@dataclass(slots=True)
class Interference:
    """What happens at the call number `at` (from 1; None: nothing) and, if `lasting`, after it.

    `error` is an error number, or KILL. A process dies with half of its bytes written; a disk that
    is full takes half of them, and none at the next write. `calls` are the names of all calls so
    far, `failed` those that did not do their work.
    """

    error: int = KILL
    at: int | None = None
    lasting: bool = False
    over: bool = False
    calls: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def strikes(self, call: str) -> bool:
        """Count a call; whether it is one to fail."""
        if self.over:  # a file that was left to the garbage collector
            return False
        self.calls.append(call)
        number = len(self.calls)
        struck = self.at is not None and (number >= self.at if self.lasting else number == self.at)
        if struck:
            self.failed.append(call)
        return struck

    def strike(self, *named: object) -> OSError:
        """End the process, or the error to raise; `named` is the file that the call was given."""
        if self.error == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return OSError(self.error, os.strerror(self.error), *named)

    def meet(self, call: str, *named: object) -> None:
        """Count a call that fails before it has done anything."""
        if self.strikes(call):
            raise self.strike(*named)


@contextmanager
def interfering(interference: Interference) -> Iterator[None]:
    """Interfere with the calls of this process that change files, until the context ends."""
    opened = _open(interference)
    with ExitStack() as stack:
        for name in _PLAIN_CALLS:
            if real := getattr(os, name, None):
                stack.enter_context(patch.object(os, name, _counted(interference, name, real)))
        stack.enter_context(patch.object(os, "open", _open_descriptor(interference)))
        stack.enter_context(patch("io.open", opened))
        stack.enter_context(patch("builtins.open", opened))
        try:
            yield
        finally:
            interference.over = True


def _counted(interference: Interference, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        interference.meet(name)
        return real(*arguments, **options)

    return call


def _open_descriptor(interference: Interference) -> Callable[..., int]:
    real = os.open

    def opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            interference.meet("os.open", path)
        return real(path, flags, *rest, **options)

    return opened


def _open(interference: Interference) -> Callable[..., Any]:
    real = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa+"):
            return real(file, mode, buffering, *rest, **options)
        assert "b" in mode, f"a way to write files that is not watched: {mode}"
        assert isinstance(file, str | Path), f"a way to write files that is not watched: {file}"
        interference.meet("open", file)
        raw = _WatchedFile(file, mode.replace("b", ""), interference)
        if buffering == 0:
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    return opened


class _WatchedFile(io.FileIO):
    """A file below the buffer, whose calls are counted as well."""

    def __init__(self, path: str | Path, mode: str, interference: Interference) -> None:
        self._interference = interference
        self._full = False
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        struck = self._interference.strikes("write")
        if self._full or (struck and self._interference.error == errno.EIO):
            self._full = False
            raise self._interference.strike()
        if not struck:
            return super().write(view)
        written = super().write(view[: len(view) // 2])
        if self._interference.error == KILL or not written:
            raise self._interference.strike()
        self._full = True
        return written

    def truncate(self, size: int | None = None) -> int:
        self._interference.meet("truncate")
        return super().truncate(size)

    def close(self) -> None:
        if self.closed:
            return
        struck = self._interference.strikes("close")
        if struck and self._interference.error == KILL:
            self._interference.strike()
        super().close()  # as in the kernel, which gives up the descriptor in every case
        if struck:
            raise self._interference.strike()
