"""Everything that vtrain prints: talk goes to stderr, data to stdout; nothing heavy is imported."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from vtrain.errors import VtrainError
from vtrain.records import EpochMetrics

REFRESH_SECONDS = 0.1


def printable(text: str) -> str:
    """Text safe for a terminal: control characters and lone surrogates become escapes."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


class Console:
    """Where talk goes: stderr, and a log file while a run is open.

    `quiet` silences all but errors on the terminal; the log file always gets everything.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self._rich = RichConsole(
            file=self.stream, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._log: TextIO | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether bars and colours make sense."""
        return self._rich.is_terminal and not self._rich.is_dumb_terminal and not self.quiet

    @contextlib.contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        """Append everything said to `path` as well, until the context ends."""
        with path.open("a", encoding="utf-8", errors="backslashreplace") as self._log:
            try:
                yield
            finally:
                self._log = None

    def say(self, message: str, *, style: str | None = None) -> None:
        """One or more lines of talk."""
        message = printable(message)
        if not self.quiet:
            self._rich.print(Text(message, style=style or ""))
        self._write_log(message)

    def warn(self, message: str) -> None:
        """A line that the user should not overlook."""
        self.say(f"warning: {message}", style="yellow")

    def error(self, error: VtrainError) -> None:
        """`error: …` and `hint: …`, also when quiet."""
        lines = [(f"error: {error.message}", "bold red")]
        if error.hint:
            lines.append((f"hint: {error.hint}", ""))
        for line, style in lines:
            self._rich.print(Text(printable(line), style=style))
            self._write_log(printable(line))

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        right: Sequence[int] = (),
    ) -> None:
        """A table on stderr; `right` are the indices of columns aligned to the right."""
        if not self.quiet:
            self._rich.print(build_table(columns, rows, title=title, right=right))
        self._write_log("\n".join(["\t".join(columns), *("\t".join(row) for row in rows)]))

    @contextlib.contextmanager
    def progress(self, total: int, label: str, *, unit: str = "img") -> Iterator[Any]:
        """A bar on a terminal, nothing elsewhere; yields an object with `update(n)`."""
        from tqdm import tqdm

        with tqdm(
            total=total,
            desc=label,
            unit=unit,
            file=self.stream,
            disable=not self.is_terminal,
            leave=False,
            dynamic_ncols=True,
            mininterval=REFRESH_SECONDS,
        ) as bar:
            yield bar

    @contextlib.contextmanager
    def counter(self, label: str) -> Iterator[Callable[[int, int], object]]:
        """A bar whose length is learnt on the way: yields a function of images done and total."""
        with self.progress(0, label) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show

    def log_only(self, message: str) -> None:
        """A line for the log file alone."""
        self._write_log(printable(message))

    def _write_log(self, message: str) -> None:
        if self._log is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            self._log.write("".join(f"{stamp} {line}\n" for line in message.splitlines()))
            self._log.flush()


def print_line(text: str) -> None:
    """One or more lines of data on stdout, without control characters."""
    stream = sys.stdout
    line = printable(text) + "\n"
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON value on stdout, ASCII only, so that no file name can break it."""
    print_line(json.dumps(value, indent=indent, allow_nan=False))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """A table on stdout: as wide as the terminal, or as it needs off one."""
    console = RichConsole(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 400
    console.print(build_table(columns, rows, right=right))


def build_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    right: Sequence[int] = (),
) -> Table:
    """A plain table whose cells are shown as they are, never read as markup."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def format_count(count: float) -> str:
    """A large number in three digits: 950, 12.3k, 25.6M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:g}"


def format_epoch(metrics: EpochMetrics, epochs: int, *, best: bool) -> str:
    """The line that stands for one epoch."""
    return (
        f"epoch {metrics.epoch:>{len(str(epochs))}}/{epochs} {metrics.phase}: "
        f"train loss {metrics.train_loss:.4f}, val loss {metrics.val_loss:.4f}, "
        f"val top-1 {metrics.val_top1:.4f}, macro F1 {metrics.val_macro_f1:.4f}, "
        f"lr {metrics.lr:.2e}, {metrics.images_per_second:.0f} img/s, "
        f"data wait {metrics.data_wait:.0%}, {metrics.seconds:.1f} s"
        f"{'  (best)' if best else ''}"
    )
