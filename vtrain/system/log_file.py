"""The log of a long piece of work: a reporter that also writes down what it passes on."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from vtrain.system.reporter import Forwarding, Reporter
from vtrain.system.terminal import format_table
from vtrain.system.text import printable


class LogFile(Forwarding):
    """A `Reporter` that appends every line to a file, with the time, and passes it on."""

    def __init__(self, reporter: Reporter, file: TextIO) -> None:
        super().__init__(reporter)
        self._file: TextIO | None = file

    def say(self, message: str) -> None:
        """See `Reporter`, as for all methods here."""
        self.reporter.say(message)
        self.log(message)

    def warn(self, message: str) -> None:
        """With `warning: ` in front."""
        self.reporter.warn(message)
        self.log(f"warning: {message}")

    def log(self, message: str) -> None:
        """To the file alone."""
        if self._file is None:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            lines = printable(message).splitlines()
            self._file.write("".join(f"{stamp} {line}\n" for line in lines))
            self._file.flush()
        except OSError as error:
            # A full disk is an error where the checkpoint is saved, not where the run is told of.
            self._file = None
            self.reporter.warn(f"the log file gets no more lines: {error.strerror}")
        except RuntimeError:
            pass  # a signal handler spoke in the middle of a write, which Python refuses

    def end(self) -> None:
        """Write no more lines; they are still passed on."""
        self._file = None

    def say_fitting(self, facts: Sequence[str], end: str = "") -> None:
        """All of the facts go into the file."""
        self.reporter.say_fitting(facts, end)
        self.log("  ".join(facts) + end)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        right: Sequence[int] = (),
    ) -> None:
        """As wide as it needs to be in the file."""
        self.reporter.table(columns, rows, title=title, right=right)
        self.log((f"{title}\n" if title else "") + format_table(columns, rows, right=right))


@contextmanager
def logged_to(path: Path, reporter: Reporter) -> Iterator[LogFile]:
    """`reporter`, whose lines are appended to `path` as well until the context ends."""
    file = path.open("a", encoding="utf-8", errors="backslashreplace")
    log = LogFile(reporter, file)
    try:
        yield log
    finally:
        log.end()
        with suppress(OSError):  # a line that a full disk refused is still in it
            file.close()
