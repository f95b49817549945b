"""Lists of image files: one path on each line, and its class behind it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.config.keys import DataConfig
from vtrain.data.config_checks import find_group_column
from vtrain.data.image_names import compose
from vtrain.data.image_sets import SkippedFile
from vtrain.data.list_columns import Columns, find_columns, find_split_word
from vtrain.data.list_rows import Row, Table
from vtrain.errors import DataError, UsageError, suggest
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.text import enumerate_names, one_line

NO_CLASS = "has no class in the list"
_WHOLE = re.compile(r"\d+(\.0+)?").fullmatch  # numbers, with what pandas makes of them
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


def layout_of(config: DataConfig) -> ListLayout:
    """How a config says that its lists are read; `data.group` may name a column."""
    named = config.columns
    root = None if config.root is None else Path(config.root)
    return ListLayout(named.path, named.label, named.split, find_group_column(config), root)


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

    Whether they exist is not asked: one that does not is an image that cannot be read. `splits` and
    `groups` are those of the names, None where the list has no column of them. `group_like` is a
    column that may be one of groups.
    """

    folder: Path
    names: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    splits: list[str] | None = None
    groups: list[str] | None = None
    skipped: list[SkippedFile] = field(default_factory=list)
    group_like: str | None = None


def read_list(
    path: Path,
    layout: ListLayout = FOUND_BY_NAME,
    *,
    labelled: bool,
    reporter: Reporter = SILENT,
) -> ListScan:
    """The files that a list names, in its order, and what it says of them.

    Columns are separated by what makes even ones: commas, semicolons, tabs, or a space between path
    and class; JSON lines have keys. What holds what is found by usual names in a first line, else
    by the files that are there. Relative paths are relative to the folder of the list. Empty lines
    do not count; whatever a file's name ends with, it is taken for an image. Members of tar files
    can be listed as well.

    Args:
        path: the list, in UTF-8, or in UTF-16 with its mark.
        layout: what its columns are.
        labelled: whether lines without a class, and repeated ones, are skipped.
        reporter: is told what was guessed.

    Raises:
        DataError: the list cannot be read or understood, or names a file twice with two classes.
    """
    wanted = {kind: name for kind in COLUMNS if (name := getattr(layout, kind)) is not None}
    table, columns = find_columns(path, wanted, layout.root or path.parent, labelled=labelled)
    if labelled and columns.no_label is not None and table.sample:
        raise columns.no_label
    scan = ListScan(columns.reading.folder, group_like=columns.group_like)
    if columns.split is not None:
        scan.splits = []
    if columns.group is not None:
        scan.groups = []
    _Reader(path, table, columns, scan, labelled).read()
    said = [each for each in (table.describe(), *columns.said) if each]
    if said:
        reporter.say(f"{one_line(path)}: {'; '.join(said)}")
    if scan.skipped and (count := sum(each.reason == NO_CLASS for each in scan.skipped)):
        lines = "1 line has" if count == 1 else f"{count} lines have"
        reporter.warn(f"{one_line(path)}: {lines} no class and do not count")
    return scan


class _Reader:
    """Turns rows into what a list says, in one pass."""

    def __init__(
        self, path: Path, table: Table, columns: Columns, scan: ListScan, labelled: bool
    ) -> None:
        self.path, self.table, self.columns, self.scan = path, table, columns, scan
        self.labelled = labelled
        self.classes: dict[str, str] = {}  # cells as they are written, and what they say
        self.splits: dict[str, str] = {}
        self.seen: dict[str, str] = {}

    def read(self) -> None:
        """Read all rows.

        Raises:
            DataError: one of them cannot be understood; its line is named.
        """
        columns, scan = self.columns, self.scan
        used = (columns.path, columns.label, columns.split, columns.group, *columns.one_hot)
        rows = self.table.rows([each for each in used if each is not None])
        if columns.has_header and self.table.keys is None:
            next(rows, None)
        for number, row in rows:
            try:
                self._take(row)
            except UnicodeError as error:
                raise self.table.refuse_bytes() from error
            except ValueError as error:
                where = f"{one_line(self.path)}:{number}"
                raise DataError(f"{where}: {one_line(error)}", "mend the line") from error
        labels = [each for each in self.classes.values() if each]
        if any("." in each for each in labels) and all(map(_WHOLE, labels)):
            scan.classes = [each.partition(".")[0] for each in scan.classes]
            columns.said.append("classes without the .0 behind their numbers")

    def _take(self, row: Row) -> None:
        columns, scan = self.columns, self.scan
        if len(row) > columns.width and any(row[columns.width :]):
            raise ValueError(
                f"{len(row)} cells, expected {columns.width}; what holds the separator itself "
                "goes in double quotes"
            )
        if len(row) < columns.width:
            row = row + [""] * (columns.width - len(row))
        if self.labelled and not row[columns.path]:
            raise ValueError("no path")
        if "\0" in row[columns.path]:
            raise ValueError("a path with a null byte, which no file has")
        name = columns.reading.name(row[columns.path])
        label = self._find_class(row)
        if self.labelled and (reason := self._find_fault(name, label)) is not None:
            scan.skipped.append(SkippedFile(scan.folder / name, reason))
            return
        scan.names.append(name)
        scan.classes.append(label)
        if scan.splits is not None and columns.split is not None:
            cell = row[columns.split]
            split = self.splits.get(cell)
            if split is None:
                split = self.splits[cell] = find_split_word(cell) or cell.strip()
            scan.splits.append(split)
        if scan.groups is not None and columns.group is not None:
            scan.groups.append(row[columns.group].strip())

    def _find_class(self, row: Row) -> str:
        columns = self.columns
        if columns.one_hot:
            ones = [name for n, name in columns.one_hot.items() if row[n].strip() in ("1", "1.0")]
            if len(ones) == 1:
                return self.classes.setdefault(ones[0], compose(ones[0]))
            if not self.labelled:
                return ""
            raise ValueError(
                f"{len(ones)} of {len(columns.one_hot)} columns of 0 and 1 hold 1, expected one: "
                "an image has one class"
            )
        if columns.label is None:
            return ""
        cell = row[columns.label]
        label = self.classes.get(cell)
        if label is None:
            cell.encode()  # a surrogate stands for a byte that is none of UTF-8
            label = self.classes[cell] = compose(cell.strip())
        return label

    def _find_fault(self, name: str, label: str) -> str | None:
        """Why a line of a labelled list does not count."""
        if not label:
            return NO_CLASS
        key = str(Path(name)) if _LOOSE(name) else name
        before = self.seen.get(key)
        if before is None:
            self.seen[key] = label
            return None
        if before == label:
            return "is listed before"
        raise DataError(
            f"{one_line(self.path)}: {one_line(name)} is listed as {enumerate_names([before])} "
            f"and as {enumerate_names([label])}",
            "keep one of the lines",
        )
