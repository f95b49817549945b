"""The rows of a list as text, whatever it is written in: encoding, separator, JSON lines."""

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vtrain.data.image_names import describe_error, is_image_name
from vtrain.errors import DataError
from vtrain.system.text import one_line

JSON_SUFFIXES = (".jsonl", ".ndjson")
SAMPLE_ROWS = 100
_SPACE, _JSON = " ", ""
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "|", _SPACE: "a space"}
_USUAL = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_EXCEL_FIRST_LINE = re.compile(r'"?sep=(.)"?[\r\n]*')  # it says what separates

Row = list[str]


@dataclass(slots=True)
class Table:
    """A list as it is written; `rows` reads it, from the start each time.

    `sample` are its first rows. `comments` lines at its start, with `#`, are none. `keys` are
    those of JSON lines, which stand for the header that they do not have.
    """

    path: Path
    separator: str = _JSON
    quoted: bool = True
    comments: int = 0
    encoding: str = "utf-8-sig"
    keys: Row | None = None
    sample: list[Row] = field(default_factory=list)

    def rows(self, used: Collection[int] = ()) -> Iterator[tuple[int, Row]]:
        """Number of the line and cells of each row that is not empty.

        Args:
            used: columns in which a JSON line must hold a plain value.

        Raises:
            DataError: the file cannot be read, or is no text, or no list of this form.
        """
        number = 0
        try:
            with self.path.open(encoding=self.encoding, errors=self.errors, newline="") as stream:
                lines = iter(stream)
                for _ in range(self.comments):
                    next(lines)
                for number, row in self._parse(lines, used):
                    if any(row):
                        yield number + self.comments, row
        except OSError as error:
            raise DataError(f"{self.path} {describe_error(error)}") from error
        except UnicodeError as error:
            raise self.refuse_bytes() from error
        except (csv.Error, ValueError) as error:
            hint = "expected one path on each line, and its class behind it"
            message = f"{one_line(self.path)} is no list of files, behind line {number}: {error}"
            raise DataError(message, hint) from error

    @property
    def errors(self) -> str:
        """Names of files need not be UTF-8 where the system made the list (`ls > x.txt`)."""
        return "surrogateescape" if self.path.suffix.lower() == ".txt" else "strict"

    def describe(self) -> str | None:
        """What is not as the suffix says."""
        parts = []
        if self.keys is None and self.separator != _USUAL[self.path.suffix.lower()]:
            parts.append(f"columns separated by {_SEPARATORS[self.separator]}")
        if self.encoding == "utf-16":
            parts.append("in UTF-16")
        if self.comments:
            parts.append(f"without its first {self.comments} lines, which are comments")
        return ", ".join(parts) or None

    def refuse_bytes(self) -> DataError:
        """The error for a list that is not UTF-8, with the place of the first wrong byte."""
        where = ""
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    where = f": byte 0x{byte:02x} in line {number}, at {error.start + 1}"
                    break
        return DataError(
            f"{one_line(self.path)} is not UTF-8{where}",
            'save the list as UTF-8 text; in Excel that is "CSV UTF-8"',
        )

    def _parse(self, lines: Iterator[str], used: Collection[int]) -> Iterator[tuple[int, Row]]:
        if self.keys is not None:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _read_json(line, number, self.keys, used)
        elif self.separator == _SPACE:
            for number, line in enumerate(lines, 1):
                yield number, line.rsplit(None, 1)
        elif not self.quoted:  # a quote is a part of the name
            for number, line in enumerate(lines, 1):
                yield number, line.rstrip("\r\n").split(self.separator)
        else:
            reader = csv.reader(lines, delimiter=self.separator, strict=True)
            for row in reader:
                yield reader.line_num, row


def open_table(
    path: Path, knows: Callable[[Row], bool], is_there: Callable[[str], bool], *, labelled: bool
) -> Table:
    """Find out how a list is written.

    Args:
        path: the list.
        knows: whether a row is a header with names that are known.
        is_there: whether a path leads to a file.
        labelled: whether a class is looked for behind each path.

    Raises:
        DataError: the list cannot be read, or is no text.
    """
    table = Table(path)
    lines = _read_first(table)
    if path.suffix.lower() in JSON_SUFFIXES:
        table.keys = _find_keys(path, lines)
    elif said := _EXCEL_FIRST_LINE.fullmatch(lines[0] if lines else ""):
        table.separator, table.comments = said[1], 1
    else:
        while table.comments < len(lines) and _is_comment(lines[table.comments], is_there):
            table.comments += 1
        _choose_separator(table, lines[table.comments :], knows, is_there, labelled)
    table.sample = [row for _, row in islice(table.rows(), SAMPLE_ROWS)]
    return table


def _read_first(table: Table) -> list[str]:
    try:
        with table.path.open("rb") as file:
            if file.read(2) in _UTF_16:
                table.encoding = "utf-16"
        with table.path.open(encoding=table.encoding, errors=table.errors, newline="") as stream:
            lines = list(islice(stream, SAMPLE_ROWS))
    except OSError as error:
        raise DataError(f"{table.path} {describe_error(error)}") from error
    except UnicodeError as error:
        raise table.refuse_bytes() from error
    if lines and "\0" in lines[0]:
        hint = "expected text in UTF-8: one path on each line, and its class behind it"
        message = f"{one_line(table.path)} is no list of files: null bytes in its first line"
        raise DataError(message, hint)
    return lines


def _is_comment(line: str, is_there: Callable[[str], bool]) -> bool:
    text = line.strip()
    return text.startswith("#") and not is_image_name(text) and not is_there(text.split("\t")[0])


def _choose_separator(
    table: Table,
    lines: Sequence[str],
    knows: Callable[[Row], bool],
    is_there: Callable[[str], bool],
    labelled: bool,
) -> None:
    """The usual one of the suffix if its paths are there, else the one that makes even columns."""
    plain = table.path.suffix.lower() == ".txt"
    usual = _USUAL[table.path.suffix.lower()]
    grids: dict[str, list[Row]] = {}
    for sign in (usual, *(each for each in _SEPARATORS if each != usual)):
        reading = Table(table.path, sign, quoted=not plain or sign != "\t")
        rows = grids.setdefault(sign, [])
        with suppress(csv.Error):  # as for the last row, if a quoted cell goes on behind the sample
            rows += (row for _, row in reading._parse(iter(lines), ()) if any(row))
    known = [sign for sign, rows in grids.items() if rows and knows(rows[0])]
    several = [sign for sign in known if len(grids[sign][0]) > 1]
    here = [each for each, rows in grids.items() if any(is_there(row[0]) for row in rows[:20])]
    if known:
        table.separator = (several or known)[0]
    elif usual in here:
        table.separator = usual
    else:
        even = [sign for sign, rows in grids.items() if _is_even(sign, rows)]
        sure = {usual, _SPACE, *here}
        fits = [sign for sign in even if sign in sure or labelled or not plain]
        table.separator = fits[0] if fits else usual
    # A quote is a part of a name in plain text, unless the whole first line is quoted.
    first = lines[0].strip() if lines else ""
    is_quoted = first.startswith('"') and first.endswith('"') and '"\t"' in first
    table.quoted = not plain or table.separator != "\t" or is_quoted


def _is_even(sign: str, rows: Sequence[Row]) -> bool:
    """Whether all rows have the same number of cells, and more than one."""
    if sign == _SPACE:  # which may also be a part of a name
        named = sum(len(row) == 2 and is_image_name(row[0]) for row in rows)
        return bool(rows) and named == len(rows) and not any(is_image_name(row[1]) for row in rows)
    widths = {len(row) for row in rows}
    return len(widths) == 1 and widths.pop() > 1


def _find_keys(path: Path, lines: Sequence[str]) -> Row:
    keys: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                keys.update(dict.fromkeys(_load_object(line)))
            except ValueError as error:
                hint = 'expected lines such as {"file_name": "1.jpg", "label": "cat"}'
                raise DataError(f"{one_line(path)}:{number}: {error}", hint) from error
    return list(keys)


def _load_object(line: str) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found


def _read_json(line: str, number: int, keys: Sequence[str], used: Collection[int]) -> Row:
    try:
        found = _load_object(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    row = []
    for column, key in enumerate(keys):
        value = found.get(key, "")
        if isinstance(value, (dict, list)):
            if column in used:
                raise ValueError(f"line {number}: {key!r} is no single value")
            value = ""
        row.append(value if isinstance(value, str) else "" if value is None else json.dumps(value))
    return row
