"""Lists of image files: one path on each line, and its class behind it."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.data.image_names import compose, describe_error
from vtrain.data.image_sets import SkippedFile
from vtrain.errors import DataError, UsageError, suggest
from vtrain.system.text import enumerate_names, one_line

_PATH_HEADERS = ("path", "file", "filename", "image")
_LABEL_HEADERS = ("label", "class")
_LOOSE = re.compile(r"(^|/)\.?/").search  # paths that can be written with fewer characters


@dataclass(frozen=True, slots=True)
class ListLayout:
    """How a list is read: its columns by name, and the folder of relative paths.

    None: columns are found by the usual names, and paths are relative to the folder of the list.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    root: Path | None = None


FOUND_BY_NAME = ListLayout()
COLUMNS = ("path", "label", "split", "group")


def parse_columns(text: str) -> ListLayout:
    """The columns that an option names: `path=img,label=kind`.

    Raises:
        UsageError: it names something else.
    """
    found: dict[str, str] = {}
    for each in text.split(","):
        key, sign, name = (part.strip() for part in each.partition("="))
        if not sign or not name or key not in COLUMNS or key in found:
            problem = f"{key} is given twice" if key in found else f"got {each.strip()!r}"
            raise UsageError(
                f"--columns: {one_line(problem)}{suggest(key, COLUMNS)}",
                f"expected pairs such as path=image_id,label=breed, of {', '.join(COLUMNS)}",
            )
        found[key] = name
    path, label, split, group = map(found.get, COLUMNS)
    return ListLayout(path, label, split, group)


@dataclass(slots=True)
class ListScan:
    """Files of a list in its order: names to be joined with `folder`; "" for no class.

    Whether they exist is not asked: one that does not is an image that cannot be read.
    """

    folder: Path
    names: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)


def read_list(path: Path, layout: ListLayout = FOUND_BY_NAME, *, labelled: bool) -> ListScan:
    """The files that a `.csv` (commas), `.tsv` or `.txt` (tabs) names.

    Relative paths are relative to the folder of the list. The columns are path and class, or those
    that a first line `path,label` names. Empty lines do not count; whatever a file's name ends
    with, it is taken for an image. Members of tar files can be listed as well.

    Args:
        path: the list, in UTF-8.
        layout: what its columns are.
        labelled: whether lines without a class, and repeated ones, are skipped.

    Raises:
        DataError: the list cannot be read, or names a file twice with two classes.
    """
    scan = ListScan(layout.root or path.parent)
    seen: dict[str, str] = {}
    try:
        for name, label in _read_rows(path):
            label = compose(label)
            if labelled and (reason := _find_fault(path, name, label, seen)) is not None:
                scan.skipped.append(SkippedFile(scan.folder / name, reason))
                continue
            scan.names.append(name)
            scan.classes.append(label)
    except OSError as error:
        raise DataError(f"{path} {describe_error(error)}") from error
    except (csv.Error, UnicodeError) as error:
        hint = "expected one path on each line, and its class behind it"
        raise DataError(f"{path} is no list of files ({error})", hint) from error
    return scan


def _find_fault(path: Path, name: str, label: str, seen: dict[str, str]) -> str | None:
    """Why a line of a labelled list does not count; `seen` are the lines so far."""
    if not label:
        return "has no class in the list"
    key = str(Path(name)) if _LOOSE(name) else name
    before = seen.get(key)
    if before is None:
        seen[key] = label
        return None
    if before == label:
        return "is listed before"
    raise DataError(
        f"{path}: {one_line(name)} is listed as {enumerate_names([before])} "
        f"and as {enumerate_names([label])}",
        "keep one of the lines",
    )


def _read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """Path and class of each line, the class "" where there is none."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        suffix = path.suffix.lower()
        if suffix == ".txt":  # no quoting: a quote is a part of the name
            rows: Iterator[list[str]] = (line.rstrip("\r\n").split("\t") for line in stream)
        else:
            rows = csv.reader(stream, delimiter="," if suffix == ".csv" else "\t", strict=True)
        columns = (0, 1)
        for number, row in enumerate(rows):
            if number == 0 and (named := _find_columns(row)) is not None:
                columns = named
            elif any(row):
                name, label = (row[column] if column < len(row) else "" for column in columns)
                yield name, label.strip()


def _find_columns(row: Sequence[str]) -> tuple[int, int] | None:
    """Where a first line says that path and class are; None if it names a file."""
    names = [cell.strip().lower() for cell in row]
    path = next((names.index(each) for each in _PATH_HEADERS if each in names), None)
    if path is None:
        return None
    label = next((names.index(each) for each in _LABEL_HEADERS if each in names), len(names))
    return path, label
