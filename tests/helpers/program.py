"""Runs vtrain as users do: in this process, as a process of its own, or on a pseudo-terminal."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import vtrain.cli

SOURCE = Path(vtrain.cli.__file__).parents[1]
VTRAIN = (sys.executable, "-m", "vtrain")
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def talk(self) -> list[str]:
        """The lines of stderr."""
        return self.err.splitlines()


class Program:
    """Runs commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> Outcome:
        self._capture.readouterr()
        code = vtrain.cli.main(arguments)
        captured = self._capture.readouterr()
        return Outcome(code, captured.out, captured.err)


def environment(**more: str) -> dict[str, str]:
    """The variables of a child process, without those of the terminal that the tests run in."""
    hidden = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {
        **kept,
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm-256color",
        **more,
    }


def run_process(
    *arguments: str | bytes, stdin: bytes = b"", env: dict[str, str] | None = None
) -> Outcome:
    """Run `python -m vtrain` to its end, its streams going to pipes; bytes become surrogates."""
    done = subprocess.run(
        [*VTRAIN, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(**(env or {})),
        timeout=TIMEOUT,
        check=False,
    )
    return Outcome(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


@contextlib.contextmanager
def start_process(*arguments: str, session: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Start `python -m vtrain`, its streams going to pipes; it does not outlive the context."""
    with subprocess.Popen(
        [*VTRAIN, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=session,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(process: subprocess.Popen[str], start: str) -> list[str]:
    """Read stderr up to and with the first line that starts with `start`."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line starts with {start!r}: {lines}")


class Terminal:
    """A vtrain process whose three streams are a pseudo-terminal of `columns` columns."""

    def __init__(
        self, *arguments: str, columns: int = 80, env: dict[str, str] | None = None
    ) -> None:
        self._main, side = open_terminal(columns)
        self._process = subprocess.Popen(
            [*VTRAIN, *arguments],
            stdin=side,
            stdout=side,
            stderr=side,
            env=environment(**(env or {})),
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(side)
        self.text = ""

    def read_until(self, part: str) -> None:
        """Collect output in `text` until `part` is in it."""
        while part not in self.text:
            if not self._read():
                raise AssertionError(f"ended without {part!r}: {self.text!r}")

    def press(self, keys: str) -> None:
        """Type keys; Ctrl-C is "\\x03"."""
        os.write(self._main, keys.encode())

    def finish(self) -> int:
        """Collect the rest of the output and return the exit code."""
        while self._read():
            pass
        os.close(self._main)
        return self._process.wait(TIMEOUT)

    def _read(self) -> bool:
        try:
            chunk = os.read(self._main, 65536)
        except OSError:  # Linux says so when the last process has left the terminal
            return False
        self.text += chunk.decode("utf-8", "replace")
        return bool(chunk)


def _own_terminal() -> None:
    # Ctrl-C reaches the processes of the terminal's session only.
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class TerminalProgram:
    """Runs commands in this process with its output on a pseudo-terminal, which is faster."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def __call__(
        self, *arguments: str, columns: int = 80, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit code and everything shown, both streams together, without carriage returns at
        line ends."""
        main, side = open_terminal(columns)
        chunks: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(main, chunks))
        reader.start()
        with self._patch.context() as patch:
            for name in ("NO_COLOR", "COLUMNS", "LINES"):
                patch.delenv(name, raising=False)
            for name, value in {"TERM": "xterm-256color", **(env or {})}.items():
                patch.setenv(name, value)
            with open(side, "w", encoding="utf-8", newline="") as stream:  # noqa: PTH123
                patch.setattr(sys, "stdout", stream)
                patch.setattr(sys, "stderr", stream)
                code = vtrain.cli.main(arguments)
        reader.join(TIMEOUT)
        os.close(main)
        return code, b"".join(chunks).decode("utf-8", "replace").replace("\r\n", "\n")


def open_terminal(columns: int) -> tuple[int, int]:
    """The two ends of a new pseudo-terminal: the one to read from, the one for a program."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return main, side


def _read_all(descriptor: int, chunks: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)


def lasting_lines(shown: str) -> list[str]:
    """The lines that stay on the screen when the bars that were drawn over are gone."""
    return [line.rpartition("\r")[2] for line in shown.removesuffix("\n").split("\n")]


def without_styles(text: str) -> str:
    """The text without its bold and colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def assert_refused(outcome: Outcome, code: int, *parts: str) -> None:
    """An error as the contract has it: nothing on stdout, no traceback, `error:` and `hint:`."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    errors = [line for line in outcome.talk if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err
    for part in parts:
        assert part in outcome.err


def read_lines(lines: Sequence[str], start: str) -> list[str]:
    """The lines that start with `start`."""
    return [line for line in lines if line.startswith(start)]
