"""Where the files of a list lie: below which folder, in which spelling, with which suffix."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.data.image_names import is_image_name
from vtrain.data.tars import find_status
from vtrain.errors import DataError
from vtrain.system.text import enumerate_names, one_line

LOOKED_AT = 20  # rows whose files are looked for
_MAX_FOLDERS = 50  # subfolders that are looked into


def _with_slashes(cell: str) -> str:
    return cell.replace("\\", "/")


def _stripped(cell: str) -> str:
    return cell.strip()


def _both(cell: str) -> str:
    return _with_slashes(cell.strip())


_SPELLINGS: tuple[tuple[str | None, Callable[[str], str] | None], ...] = (
    (None, None),
    ("spaces around paths left out", _stripped),
    ("backslashes in paths taken for slashes", _with_slashes),
    ("backslashes in paths taken for slashes", _both),
)


@dataclass(slots=True)
class Reading:
    """How the cells of a column become names of files below `folder`.

    `found` of the first cells lead to files so. With `by_stem` a name without its suffix is looked
    for in the folder that it names.
    """

    folder: Path
    found: int = 0
    spelling: str | None = None
    respell: Callable[[str], str] | None = None
    by_stem: bool = False
    _stems: dict[str, dict[str, str]] = field(default_factory=dict)

    def name(self, cell: str) -> str:
        """The name of a file below `folder`: the cell itself if no file goes with it.

        Raises:
            ValueError: two files go with it.
        """
        if self.respell is not None:
            cell = self.respell(cell)
        return self._find_stem(cell) if self.by_stem else cell

    def _find_stem(self, cell: str) -> str:
        below, slash, stem = cell.rpartition("/")
        stems = self._stems.get(below)
        if stems is None:
            stems = self._stems[below] = _list_stems(Path(self.folder, below))
        name = stems.get(stem)
        if name is None:
            return cell
        if not name:
            where = one_line(Path(self.folder, below))
            raise ValueError(f"{stem!r} may be each of several images in {where}; add the suffix")
        return f"{below}{slash}{name}"


def is_file(place: Path) -> bool:
    """Whether a path leads to a file, or to a member of an archive."""
    try:
        find_status(place)
    except (OSError, ValueError):
        return False
    return not place.is_dir()


def find_reading(folder: Path, cells: Sequence[str]) -> Reading:
    """How most of the cells lead to files below `folder`; as they stand if none does."""
    readings = []
    for spelling, respell in _SPELLINGS:
        names = [cell if respell is None else respell(cell) for cell in cells]
        if respell is not None and names == list(cells):
            continue
        count = sum(is_file(folder / name) for name in names if name)
        readings.append(Reading(folder, count, spelling, respell))
        if not count and not any(map(is_image_name, names)):
            stems = Reading(folder, 0, spelling, respell, by_stem=True)
            stems.found = sum(_has_stem(stems, cell) for cell in cells if cell.strip())
            readings.append(stems)
    return max(readings, key=lambda each: each.found)


def find_below(folder: Path, cells: Sequence[str]) -> Reading | None:
    """The reading below the one subfolder that has all of the files; None if none has.

    Raises:
        DataError: several have them.
    """
    try:
        names = sorted(each.name for each in folder.iterdir() if each.is_dir())
    except OSError:
        return None
    readings = [find_reading(folder / name, cells) for name in names[:_MAX_FOLDERS]]
    whole = [each for each in readings if each.found == len(cells)]
    if len(whole) > 1:
        named = enumerate_names([str(each.folder) for each in whole])
        raise DataError(
            f"the files of the list are below each of {named}",
            "say which one is meant: data.root in a config, --root of a command",
        )
    return whole[0] if whole else None


def _has_stem(reading: Reading, cell: str) -> bool:
    try:
        name = reading.name(cell)
    except ValueError:
        return True  # said where the line is known
    return name != (cell if reading.respell is None else reading.respell(cell))


def _list_stems(folder: Path) -> dict[str, str]:
    """The images of a folder by name without suffix; "" where several share one."""
    stems: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image_name(entry.name):
                    stem = entry.name.rpartition(".")[0]
                    stems[stem] = "" if stem in stems else entry.name
    except OSError:
        return {}
    return stems
