"""JSON and CSV as vtrain writes them: no number that is none, no cell that is a formula."""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vtrain.system.files import atomic_write, encode_text, escape_match

T = TypeVar("T")
SCHEMA = 1  # of all JSON that commands print and results are written as
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
MAX_JSON_BYTES = 500_000_000
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")

# What JSON leaves as it is and terminals may obey; joiners and wide spaces are parts of words.
_UNPRINTED = re.compile(
    "[\x7f-\x9f\xad\u061c\u1680\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f"
    "\ud800-\uf8ff\ufeff\ufff0-\uffff]|[\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)


def to_plain(record: Any) -> Any:
    """Records, tuples and paths as dictionaries, lists and strings, ready for JSON."""
    if hasattr(record, "__dataclass_fields__"):
        # A field is called `class_` where the key is a word that Python keeps for itself.
        return {
            name.removesuffix("_"): to_plain(getattr(record, name))
            for name in record.__dataclass_fields__
        }
    if isinstance(record, dict):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    return str(record) if isinstance(record, Path) else record


def from_plain(kind: type[T], content: Any) -> T:
    """The record of the dataclass `kind`, or a list of them, that `to_plain` has made plain.

    Raises:
        ValueError: it is something else; the message names the first mistake.
    """
    from pydantic import TypeAdapter, ValidationError  # not at every start

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place} is {first['input']!r:.80}: {first['msg']}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most `MAX_JSON_BYTES`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, damaged, or holds something else.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError("it is too large")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def write_json(path: Path, value: Any) -> None:
    """Write a record or plain data as indented JSON, readable and valid in every case.

    JSON knows no NaN: numbers that are not finite become null. Surrogates and control characters in
    names become JSON escapes, which `json.loads` turns back.

    Raises: see `atomic_write`.
    """
    plain = _replace_non_finite(to_plain(value))
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as stream:
        stream.write(_UNPRINTED.sub(escape_match, text).encode("utf-8"))


def format_json_line(value: Any) -> str:
    """JSON on one line of printable ASCII, whatever a file is called.

    Raises:
        ValueError: a number that is not finite.
    """
    return json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows as they come; no cell can become a spreadsheet formula.

    Text that starts with `= + - @`, tab, CR or LF and is no number gets `'` in front, and so does
    text that would look as if it had got one: `read_csv_cell` tells them apart. None is empty.

    Raises: see `atomic_write`.
    """
    with atomic_write(path) as stream:
        for row in itertools.chain([header], rows):
            stream.write(encode_text(f"{format_csv_row(row)}\n"))


def format_csv_row(cells: Iterable[object]) -> str:
    """One row without its line end; see `write_csv`."""
    row = io.StringIO()
    # csv has to believe in CRLF as the end of a row: only then does it quote a lone CR in a cell
    # (before Python 3.13).
    csv.writer(row, lineterminator="\r\n").writerow([_csv_cell(cell) for cell in cells])
    return row.getvalue().removesuffix("\r\n")


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv_cell(cell: object) -> object:
    if cell is None or isinstance(cell, (int, float)):
        return cell
    text = str(cell)
    if text.lstrip("'").startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(text):
        return "'" + text
    return text


def read_csv_cell(cell: str) -> str:
    """The text that a cell was written for."""
    guarded = cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA_STARTS)
    return cell[1:] if guarded else cell
