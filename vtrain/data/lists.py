"""Lists of image files: one path on each line, and its class behind it."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.data.image_names import compose, describe_error
from vtrain.data.image_sets import SkippedFile
from vtrain.data.tars import find_status
from vtrain.errors import DataError
from vtrain.system.text import enumerate_names, one_line

_PATH_HEADERS = ("path", "file", "filename", "image")
_LABEL_HEADERS = ("label", "class")


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


@dataclass(slots=True)
class ListScan:
    """Files of a list in its order: names to be joined with its folder; "" for no class."""

    names: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)


def read_list(path: Path, layout: ListLayout = FOUND_BY_NAME, *, labelled: bool) -> ListScan:
    """The files that a `.csv` (commas), `.tsv` or `.txt` (tabs) names, if they are there.

    Relative paths are relative to the folder of the list. The columns are path and class, or those
    that a first line `path,label` names. Empty lines do not count; whatever a file's name ends
    with, it is taken for an image. Members of tar files can be listed as well.

    Args:
        path: the list, in UTF-8.
        layout: what its columns are.
        labelled: whether a line without a class is skipped.

    Raises:
        DataError: the list cannot be read, or names a file twice with two classes.
    """
    scan = ListScan()
    seen: dict[str, str] = {}
    try:
        for name, label in _read_rows(path):
            place = path.parent / name
            label = compose(label)
            reason = _find_fault(place, label if labelled else None)
            key = str(place)
            if key in seen and reason is None:
                if labelled and seen[key] != label:
                    raise DataError(
                        f"{path}: {one_line(name)} is listed as {enumerate_names([seen[key]])} "
                        f"and as {enumerate_names([label])}",
                        "keep one of the lines",
                    )
                reason = "is listed before"
            if reason is not None:
                scan.skipped.append(SkippedFile(place, reason))
                continue
            seen[key] = label
            scan.names.append(name)
            scan.classes.append(label)
    except OSError as error:
        raise DataError(f"{path} {describe_error(error)}") from error
    except (csv.Error, UnicodeError) as error:
        hint = "expected one path on each line, and its class behind it"
        raise DataError(f"{path} is no list of files ({error})", hint) from error
    return scan


def _find_fault(place: Path, label: str | None) -> str | None:
    """Why a line cannot be used; `label` is None where none is needed."""
    try:
        find_status(place)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return describe_error(error)
    if place.is_dir():
        return "is a folder, not a file"
    return "has no class in the list" if label == "" else None


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
