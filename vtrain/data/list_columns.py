"""Which columns of a list hold what: by their names, by the files that they lead to, or asked."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.data.image_names import is_image_name
from vtrain.data.list_places import LOOKED_AT, Reading, find_below, find_reading, is_file
from vtrain.data.list_rows import Row, Table, open_table
from vtrain.errors import DataError, suggest
from vtrain.system.text import enumerate_names, one_line


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Usual names, in lower case and without spaces, hyphens and underscores.
_NAMES = {
    "path": _words("""path paths filepath imagepath imgpath relpath relativepath file files filename
        imagefile imgfile imagefilename imgfilename image images imagename imgname img picture
        photo photopath imageindex"""),
    "id": _words("imageid imgid pictureid photoid fileid id uuid"),
    "label": _words("""label labels labelname labelid class classes classname classid classlabel
        category categoryname categoryid target targets species speciesname breed y tag
        cls diagnosis dx groundtruth gt"""),
    "split": _words("split splits subset set dataset partition datasettype phase usage fold"),
    "group": _words("""group groupid patient patientid subject subjectid animal animalid individual
        individualid video videoid sequence sequenceid session sessionid case caseid lesion
        lesionid clip clipid scene sceneid"""),
}
SPLIT_WORDS = {
    "train": _words("train training trn tr"),
    "val": _words("val valid validation dev eval evaluation"),
    "test": _words("test testing tst"),
}
_LIKE_A_PATH = re.compile(r"[/\\]|\.\w{1,5}$").search
_WINDOWS = re.compile(r"[A-Za-z]:[/\\]").match
_USUAL_HEADERS = {"path", "file", "filename", "image", "label", "class"}
_SAY_COLUMNS = (
    "name the columns: data.columns: {path: NAME, label: NAME} in a config, "
    "--columns path=NAME,label=NAME of a command"
)


@dataclass(slots=True)
class Columns:
    """What is where in the rows of a list; None for what it does not have.

    `one_hot` are columns of 0 and 1 with their classes. `no_label` tells why there is no label.
    `said` is what was guessed. Rows have at most `width` cells.
    """

    width: int
    path: int = 0
    label: int | None = None
    split: int | None = None
    group: int | None = None
    has_header: bool = False
    header: Row = field(default_factory=list)
    one_hot: dict[int, str] = field(default_factory=dict)
    no_label: DataError | None = None
    group_like: str | None = None
    said: list[str] = field(default_factory=list)
    reading: Reading = field(default_factory=lambda: Reading(Path()))


def find_split_word(cell: str) -> str | None:
    """The split that a cell names."""
    word = cell.strip().lower()
    return next((name for name, words in SPLIT_WORDS.items() if word in words), None)


def find_columns(
    path: Path, wanted: Mapping[str, str], folder: Path, *, labelled: bool
) -> tuple[Table, Columns]:
    """Open a list and find its columns.

    Args:
        path: the list.
        wanted: names of columns that were asked for: of path, label, split and group.
        folder: what its paths are relative to.
        labelled: whether it needs a class for each file.

    Raises:
        DataError: it cannot be read, or what its columns are has no answer, or several.
    """

    def knows(row: Row) -> bool:
        names = [_plain(cell) for cell in row]
        asked = any(_plain(each) in names for each in wanted.values())
        known = any(name in _NAMES["path"] + _NAMES["id"] for name in names)
        return (asked or known) and not any(map(is_image_name, row))

    table = open_table(path, knows, lambda cell: is_file(folder / cell), labelled=labelled)
    finder = _Finder(table, wanted, folder, knows)
    return table, finder.find()


def _plain(cell: str) -> str:
    return re.sub(r"[\s_-]+", "", cell).lower()


class _Finder:
    """Answers one question after the other from the first rows of a list."""

    def __init__(
        self, table: Table, wanted: Mapping[str, str], folder: Path, knows: Callable[[Row], bool]
    ) -> None:
        self.table, self.wanted, self.folder = table, wanted, folder
        self.where = one_line(table.path)
        rows = list(table.sample)
        self.readings: dict[int, Reading] = {}
        if table.keys is not None:
            header, certain = table.keys, True
        else:
            header, certain = (rows[0] if rows else []), bool(rows) and knows(rows[0])
        self.rows = rows if table.keys is not None else rows[1:]
        self.has_header = certain or self._looks_like_header(header)
        if not self.has_header:
            self.rows = rows
            width = max((_width(row) for row in rows), default=1)
            header = [""] * width
        elif self.rows and all(_width(row) == len(header) + 1 for row in self.rows):
            header = ["", *header]  # R does not name the column of row names
        self.header = [cell.strip() for cell in header]
        self.found = Columns(len(header), has_header=self.has_header, header=self.header)

    def find(self) -> Columns:
        """Path, then what stands beside it."""
        try:
            "".join(self.header).encode()
        except UnicodeError as error:
            raise self.table.refuse_bytes() from error
        if wanted := next(iter(self.wanted.values()), None):
            self._require_header(wanted)
        found = self.found
        found.path = self._find_path()
        found.reading = self._find_places()
        found.split = self._find_named("split")
        found.group = self._find_asked("group")
        self._find_label()
        groups = self._known("group")
        if groups and found.group is None and groups[0] != found.label:
            found.group_like = self.header[groups[0]]
        return found

    def _cells(self, column: int, rows: Sequence[Row] | None = None) -> list[str]:
        chosen = self.rows if rows is None else rows
        return [row[column] if column < len(row) else "" for row in chosen]

    def _read(self, column: int) -> Reading:
        if column not in self.readings:
            cells = self._cells(column, self.rows[:LOOKED_AT])
            self.readings[column] = find_reading(self.folder, cells)
        return self.readings[column]

    def _is_path(self, column: int) -> bool:
        """Whether the files of a column are there."""
        return self._read(column).found > 0

    def _looks_like_header(self, first: Row) -> bool:
        """Whether the first row names no file while others do, in the same column.

        A row that is taken for a header is a row lost: in doubt it is none. One cell alone, what
        looks like a path, and what stands below as well, are no names of columns.
        """
        if not self.rows or len(first) < 2 or any(map(_LIKE_A_PATH, first)):
            return False
        counts = [cell.strip() for cell in first] == [str(n) for n in range(len(first))]  # pandas
        for column, cell in enumerate(first):
            below = self._cells(column)
            if cell.strip() and not counts and (cell in below or _is_number(cell.strip())):
                return False
        return any(
            (self._is_path(column) or _mostly(is_image_name, self._cells(column)))
            and not find_reading(self.folder, [cell]).found
            for column, cell in enumerate(first)
            if cell.strip()
        )

    def _require_header(self, wanted: str) -> None:
        if not self.has_header:
            first = self.table.sample[0] if self.table.sample else []
            raise DataError(
                f"{self.where} has no column {one_line(wanted)!r}: its first line names a file, "
                f"{enumerate_names(first[:2])}",
                f"write a first line that names the columns, such as path,{one_line(wanted)}",
            )

    def _find_asked(self, kind: str) -> int | None:
        """The column that was asked for by name."""
        name = self.wanted.get(kind)
        if name is None:
            return None
        if self.header.count(name) == 1:
            return self.header.index(name)
        same = [n for n, cell in enumerate(self.header) if _plain(cell) == _plain(name)]
        if len(same) == 1:
            return same[0]
        raise DataError(
            f"{self.where} has {len(same) or 'no'} column{'s' * (len(same) > 1)} "
            f"{one_line(name)!r} (asked for as {kind}){suggest(name, self.header)}",
            f"its columns are {enumerate_names(self.header)}",
        )

    def _known(self, kind: str) -> list[int]:
        """Columns with usual names, the more usual first."""
        names = [_plain(cell) for cell in self.header]
        known = [n for n, name in enumerate(names) if name in _NAMES[kind]]
        return sorted(known, key=lambda n: _NAMES[kind].index(names[n]))

    def _find_named(self, kind: str) -> int | None:
        asked = self._find_asked(kind)
        known = [n for n in self._known(kind) if n != self.found.path]
        if kind == "split":  # "fold", "set" and the like may be something else
            known = [n for n in known if _mostly(find_split_word, self._cells(n))] or [
                n for n in known if _plain(self.header[n]) == "split"
            ]
        if asked is not None or len(known) < 2:
            return asked if asked is not None else next(iter(known), None)
        raise self._ambiguous(kind, known)

    def _ambiguous(self, kind: str, columns: Sequence[int]) -> DataError:
        named = enumerate_names([self.header[n] for n in columns])
        return DataError(
            f"{self.where}: each of the columns {named} may hold the {kind}",
            f"say which one: data.columns: {{{kind}: NAME}} in a config, "
            f"--columns {kind}=NAME of a command",
        )

    def _find_path(self) -> int:
        if (asked := self._find_asked("path")) is not None:
            return asked
        known = self._known("path") or self._known("id")
        candidates = known or [n for n in range(len(self.header)) if not self._is_index(n)]
        if len(candidates) == 1 and (known or not self.has_header):
            return candidates[0]
        here = [n for n in candidates if self._is_path(n)]
        if not here and not self.has_header:
            here = [n for n in candidates if _mostly(is_image_name, self._cells(n))][:1]
        if len(here) == 1:
            if not known and (self.has_header or here[0] != 0):
                reason = "whose files are there" if self._is_path(here[0]) else "by their suffix"
                self.found.said.append(f"paths from {self._name(here[0])}, {reason}")
            return here[0]
        if not known and (not here or not self.has_header):
            raise self._not_understood(f"{'alone ' if here else ''}names its files")
        raise self._ambiguous("path", here or candidates)

    def _not_understood(self, what: str) -> DataError:
        if not self.has_header:
            first = self.table.sample[0] if self.table.sample else []
            message = f"{self.where}: no column {what}; its first line is {enumerate_names(first)}"
            return DataError(
                message,
                f"paths are relative to {one_line(self.folder)}; a first line such as path,label "
                "names the columns",
            )
        named = enumerate_names(self.header)
        return DataError(f"{self.where}: no column {what}; it has {named}", _SAY_COLUMNS)

    def _name(self, column: int) -> str:
        name = self.header[column]
        return repr(one_line(name)) if name else f"column {column + 1}"

    def _find_places(self) -> Reading:
        """How the paths lead to files; from another folder where none does from the right one."""
        reading = self._read(self.found.path)
        cells = [each for each in self._cells(self.found.path, self.rows[:LOOKED_AT]) if each]
        if reading.found or not cells:
            pass
        elif find_reading(Path(), cells).found and self.folder.resolve() != Path.cwd():
            raise DataError(
                f"{self.where}: its files are not below {one_line(self.folder)}, but below the "
                f"working directory {one_line(Path.cwd())}",
                f"paths are relative to the list; say data.root={one_line(Path.cwd())} for a "
                "config, --root . for a command",
            )
        elif _WINDOWS(cells[0]) and os.sep == "/":
            raise DataError(
                f"{self.where}: {one_line(cells[0])} is a path of another machine",
                "write paths relative to the list, or to the folder that data.root (--root) names",
            )
        elif (below := find_below(self.folder, cells)) is not None:
            reading = below
            self.found.said.append(f"paths are below {one_line(below.folder)}")
        if reading.found and reading.spelling:
            self.found.said.append(reading.spelling)
        if reading.found and reading.by_stem:
            self.found.said.append("names without a suffix are looked for")
        return reading

    def _is_index(self, column: int) -> bool:
        """Whether a first column without a name counts the rows, as pandas and R write it."""
        name = self.header[column].lower()
        if column or (name and not name.startswith("unnamed:")):
            return False
        cells = self._cells(column)
        starts = {cells[0]} & {"0", "1"} if len(cells) > 1 else ()
        return any(
            cells == [str(n) for n in range(int(start), int(start) + len(cells))]
            for start in starts
        )

    def _find_label(self) -> None:
        found = self.found
        asked = self._find_asked("label")
        taken = {found.path, found.split, found.group}
        others = [
            n
            for n in range(len(self.header))
            if n not in taken and not self._is_index(n) and any(self._cells(n))
        ]
        known = [n for n in self._known("label") if n not in taken]
        known = [n for n in known if n in others] or known
        try:
            if asked is not None:
                found.label = asked
            elif len(known) > 1:
                found.label = self._choose_equal(known)
            elif known:
                found.label = known[0]
            else:
                self._guess_label(others)
        except DataError as error:
            found.no_label = error
        if found.label is None or asked is not None or not self.has_header:
            return
        if _plain(self.header[found.label]) not in _USUAL_HEADERS:
            found.said.append(f"classes from {self._name(found.label)}")

    def _guess_label(self, others: Sequence[int]) -> None:
        kinds = [*self._known("split"), *self._known("id"), *self._known("group")]
        rest = [n for n in others if n not in kinds] or [
            n for n in others if n not in self._known("split")
        ]
        if not rest:
            named = f"its columns are {enumerate_names(self.header)}"
            raise DataError(
                f"{self.where} names no classes, {named if self.has_header else 'only paths'}",
                "expected a column of classes beside them; predict takes a list without",
            )
        if not self.has_header and len(rest) > 1:
            raise self._not_understood("is known to hold the classes")
        bits = {"0", "1", "0.0", "1.0"}
        if len(rest) > 1 and all(bits.issuperset(map(str.strip, self._cells(n))) for n in rest):
            self.found.one_hot = {n: self.header[n] for n in rest}
            self.found.said.append(f"classes from the 1 in {len(rest)} columns of 0 and 1")
            return
        cells = self._cells(rest[0])
        is_unlike = len(cells) > 9 and len(set(cells)) == len(cells)
        if len(rest) > 1 or (is_unlike and self.has_header):
            raise self._not_understood("is known to hold the classes")
        self.found.label = rest[0]

    def _choose_equal(self, known: Sequence[int]) -> int:
        """One of several columns of classes: they must say the same throughout the list."""
        seen: set[tuple[str, ...]] = set()
        for row in self._all_rows():
            seen.add(tuple(row[n].strip() if n < len(row) else "" for n in known))
        if any(len({each[k] for each in seen}) != len(seen) for k in range(len(known))):
            raise self._ambiguous("label", known)
        texts = [n for k, n in enumerate(known) if not all(_is_number(each[k]) for each in seen)]
        chosen = (texts or list(known))[0]
        others = [self._name(n) for n in known if n != chosen]
        self.found.said.append(f"{', '.join(others)} says the same as {self._name(chosen)}")
        return chosen

    def _all_rows(self) -> Iterator[Row]:
        skip = int(self.has_header and self.table.keys is None)
        yield from (row for number, (_, row) in enumerate(self.table.rows()) if number >= skip)


def _width(row: Row) -> int:
    """The number of cells without empty ones at the end."""
    return next((n for n in range(len(row), 0, -1) if row[n - 1].strip()), 0)


def _mostly(test: Callable[[str], object], cells: Sequence[str]) -> bool:
    return sum(bool(test(cell)) for cell in cells) * 2 > len(cells)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", cell) is not None
