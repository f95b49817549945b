"""Everything that vtrain prints: talk goes to stderr, data to stdout; nothing heavy is imported."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from vtrain.errors import ResourceError, VtrainError
from vtrain.system.files import escape_surrogates
from vtrain.system.json_csv import format_csv_row, format_json_line
from vtrain.system.reporter import Reporter
from vtrain.system.text import printable

REFRESH_SECONDS = 0.1
NARROWEST = 40  # columns; below, tables and lines keep this width and the terminal wraps them
NARROWEST_CELL = 12
GAP = 2  # between the columns of a table
RED, YELLOW, RESET = "\x1b[1;31m", "\x1b[33m", "\x1b[0m"


class OutputClosedError(Exception):
    """The reader of stdout has gone, as with `| head`: nothing is wrong, and nothing is left to do.

    Not a BrokenPipeError, since that can also come from a process that died.
    """


def is_terminal(stream: TextIO) -> bool:
    """Whether bars make sense on a stream."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def takes_styles(stream: TextIO) -> bool:
    """Whether colours and bold make sense on a stream."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def data_stream() -> TextIO:
    """Where data goes, for what depends on its width and encoding; the functions below write it."""
    return sys.stdout


def find_width(stream: TextIO) -> int | None:
    """Columns of the terminal, None off one: lines are then as long as they need."""
    if not stream.isatty():
        return None
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(columns or 80, NARROWEST)  # a terminal that does not know its size says 0


class Console(Reporter):
    """A `Reporter` that draws on stderr; `quiet` silences all but errors."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self._bar: Any = None

    @property
    def is_terminal(self) -> bool:
        """Whether bars make sense."""
        return not self.quiet and is_terminal(self.stream)

    def say(self, message: str) -> None:
        """One or more lines of talk."""
        self._say(message, "")

    def warn(self, message: str) -> None:
        """Something that the user should not overlook."""
        self._say(f"warning: {message}", YELLOW)

    def say_fitting(self, facts: Sequence[str], end: str = "") -> None:
        """One line of facts, the most important first: as many as the terminal has columns for."""
        width, shown = find_width(self.stream), list(facts)
        while width is not None and len(shown) > 1 and len("  ".join(shown) + end) > width:
            shown.pop()
        self._say("  ".join(shown) + end, "")

    def error(self, error: VtrainError) -> None:
        """`error: …` and `hint: …`, also when quiet."""
        self._show(f"error: {printable(error.message)}", RED)
        if error.hint:
            self._show(f"hint: {printable(error.hint)}", "")

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
            heading = f"{printable(title)}\n" if title else ""
            width, styled = find_width(self.stream), takes_styles(self.stream)
            text = format_table(columns, rows, right=right, width=width, styled=styled)
            self._show(heading + text, "")

    @contextlib.contextmanager
    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> Iterator[Any]:
        """A bar on a terminal, nothing elsewhere; yields an object with `update(n)` and `n`.

        `data`: lines of data come out meanwhile, which are progress enough on a terminal.
        """
        from tqdm import tqdm

        # No thread that watches the bars: loader workers are forked while a bar is open.
        tqdm.monitor_interval = 0
        with tqdm(
            total=total,
            desc=label,
            unit=unit,
            file=self.stream,
            disable=not self.is_terminal or (data and sys.stdout.isatty()),
            leave=False,
            dynamic_ncols=True,
            mininterval=REFRESH_SECONDS,
        ) as bar:
            before, self._bar = self._bar, None if bar.disable else bar
            try:
                yield bar
            finally:
                self._bar = before

    def log(self, message: str) -> None:
        """Nothing: the terminal is no log file."""

    def _say(self, message: str, style: str) -> None:
        if not self.quiet:
            self._show(printable(message), style)

    def _show(self, text: str, style: str) -> None:
        if style and takes_styles(self.stream):
            text = f"{style}{text}{RESET}"
        try:
            if self._bar is not None:
                self._bar.clear()
            self.stream.write(f"{text}\n")
            self.stream.flush()
            if self._bar is not None:
                self._bar.refresh()
        except (OSError, ValueError):
            # The terminal or the reader has gone. A run goes on: its log has everything.
            _discard_output(self.stream)
            self._bar = None
        except RuntimeError:
            pass  # a signal handler spoke in the middle of a write, which Python refuses


def open_missing_streams() -> None:
    """Replace standard streams that were closed, as with `>&-`, by ones that lead nowhere.

    Before anything else is opened: a file that got their numbers would get their output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


def flush_output() -> None:
    """Write out what is buffered, as Python does at its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has gone: nothing to tell
            stream.flush()


def _discard_output(stream: TextIO) -> None:
    """Let all further output go nowhere, also what is buffered: Python writes it at its exit."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _write_stdout(text: str, *, errors: str = "backslashreplace") -> None:
    """Write data at once.

    Raises:
        OutputClosedError: its reader has gone.
        ResourceError: it goes to a file on a full disk.
    """
    stream = sys.stdout
    data = text.encode(stream.encoding or "utf-8", errors)
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    except BrokenPipeError as error:
        _discard_output(stream)
        raise OutputClosedError from error
    except OSError as error:
        _discard_output(stream)
        raise ResourceError(
            f"cannot write to stdout: {error.strerror}", "the output so far is incomplete"
        ) from error


def is_output_closed() -> bool:
    """Whether the reader of stdout has gone, after something else that wrote to it has failed."""
    import select

    closed = False
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no pipe, or no poll()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        _discard_output(sys.stdout)
    return closed


def print_line(text: str) -> None:
    """One line of data on stdout, without control characters."""
    _write_stdout(printable(text, keep="") + "\n")


def print_text(text: str) -> None:
    """Lines of data on stdout, without control characters."""
    _write_stdout(printable(text) + "\n")


def print_json(value: Any, *, indent: bool = True) -> None:
    """One JSON value on stdout, ASCII only, so that no file name can break it."""
    text = format_json(value) if indent else format_json_line(value)
    _write_stdout(text + "\n")


def print_csv_row(cells: Iterable[object]) -> None:
    """One CSV row on stdout; off a terminal file names keep their bytes, as in files."""
    row = escape_surrogates(format_csv_row(cells))
    if sys.stdout.isatty():
        row = printable(row)
    _write_stdout(row + "\n", errors="surrogateescape")


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    least: Sequence[int] = (),
    crop_last: bool = False,
) -> None:
    """A table on stdout, see `format_table`."""
    text = format_table(
        columns,
        rows,
        right=right,
        least=least,
        crop_last=crop_last,
        width=find_width(sys.stdout),
        styled=takes_styles(sys.stdout),
    )
    _write_stdout(text + "\n")


def format_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    least: Sequence[int] = (),
    crop_last: bool = False,
    width: int | None = None,
    styled: bool = False,
) -> str:
    """A plain table whose cells are shown as they are, never read as markup.

    `right` are the indices of columns aligned to the right. What does not fit into `width`
    columns is folded within its cell; with `crop_last` the last column is cut instead. Before
    that columns of `least` are left out, in that order, until the others fit.
    """
    from io import StringIO

    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(printable(cell, keep="")) for cell in row] for row in (columns, *rows)]
    if crop_last and width is not None:
        _crop_last(cells, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = _choose_columns(cells, least, width)
    for index in shown:
        justify: Literal["left", "right"] = "right" if index in right else "left"
        table.add_column(cells[0][index], justify=justify, overflow="fold")
    for row in cells[1:]:
        table.add_row(*(row[index] for index in shown))
    output = StringIO()
    console = RichConsole(
        file=output,
        width=width or 100_000,
        force_terminal=styled,
        color_system="standard" if styled else None,
        legacy_windows=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def _choose_columns(
    rows: Sequence[list[Any]], least: Sequence[int], width: int | None
) -> list[int]:
    """Indices of the columns that are shown."""
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    shown = list(range(len(widths)))
    for index in least:
        if width is None or sum(widths[each] + GAP for each in shown) - GAP <= width:
            break
        shown.remove(index)
    return shown


def _crop_last(rows: Sequence[list[Any]], width: int) -> None:
    """Cut the last cells so that the rows fit, or drop them where too little would be left."""
    others = zip(*(row[:-1] for row in rows), strict=True)
    left = width - sum(max(cell.cell_len for cell in column) + GAP for column in others)
    for row in rows:
        if left < NARROWEST_CELL:
            row.pop()
        else:
            row[-1].truncate(left, overflow="ellipsis")


def format_json(value: Any, *, indent: str = "") -> str:
    """Indented JSON, ASCII only, with lists of plain values on one line: a matrix reads as one.

    Raises:
        ValueError: a number that is not finite.
    """
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [
            f"{format_json_line(str(key))}: {format_json(each, indent=inner)}"
            for key, each in value.items()
        ]
        braces = "{}"
    elif isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        items = [format_json(each, indent=inner) for each in value]
        braces = "[]"
    else:
        return format_json_line(value)
    lines = f",\n{inner}".join(items)
    return f"{braces[0]}\n{inner}{lines}\n{indent}{braces[1]}"
