"""Plain records that the layers hand to one another; this module imports nothing heavy."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file or folder below an image folder that is not used, and why."""

    path: Path
    reason: str


# What may stand where a folder of images may, besides that.
TAR_SUFFIX = ".tar"
LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")


class PackedPaths(Sequence[Path]):
    """Paths below one root in one bytes object: a million take some 50 MB, as `Path`s 300 MB.

    A slice or selection shares the names of the whole. It equals any sequence of the same paths.

    Args:
        root: what the names are relative to.
        names: as they go into the result of `root / name`; they may be absolute only if `mixed`.
        mixed: names may be absolute, which makes reading them somewhat slower.
    """

    __slots__ = ("_ends", "_mixed", "_names", "_order", "root")
    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __init__(self, root: Path, names: Iterable[str], *, mixed: bool = False) -> None:
        packed, self._ends = bytearray(), array("Q")
        for name in names:
            packed += os.fsencode(name)
            self._ends.append(len(packed))
        self.root = root
        self._names = bytes(packed)
        self._order: array[int] | None = None
        self._mixed = mixed

    def __len__(self) -> int:
        return len(self._ends if self._order is None else self._order)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedPaths": ...
    def __getitem__(self, index: int | slice) -> "Path | PackedPaths":
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return Path(self.root, self.name(index))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False if isinstance(other, Sequence) else NotImplemented
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"PackedPaths({self.root}, {len(self)} paths)"

    def name(self, index: int) -> str:
        """One path below the root; from behind if negative."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        place = index % len(self) if self._order is None else self._order[index]
        return os.fsdecode(self._slice(place))

    def names(self) -> Iterator[str]:
        """All paths below the root, in order."""
        return map(os.fsdecode, self.encoded_names())

    def encoded_names(self) -> Iterator[bytes]:
        """All paths below the root, in order, in the file system's encoding."""
        if self._order is not None:
            yield from map(self._slice, self._order)
            return
        first = 0
        for end in self._ends:
            yield self._names[first:end]
            first = end

    def _slice(self, place: int) -> bytes:
        return self._names[self._ends[place - 1] if place else 0 : self._ends[place]]

    def texts(self) -> Iterator[str]:
        """All paths as text that opens; faster than `str` of each path."""
        if self._mixed:
            return (str(Path(self.root, name)) for name in self.names())
        prefix = join_prefix(self.root)
        return (prefix + name for name in self.names())

    def select(self, indices: Iterable[int]) -> "PackedPaths":
        """The paths at `indices`, in that order."""
        chosen = PackedPaths(self.root, (), mixed=self._mixed)
        chosen._names, chosen._ends = self._names, self._ends
        own = self._order
        chosen._order = array("Q", indices if own is None else (own[i] for i in indices))
        return chosen


def join_prefix(root: Path | str) -> str:
    """What stands before a name below `root`: the folder and a separator, nothing for `.`."""
    if str(root) == ".":
        return ""
    return f"{str(root).removesuffix(os.sep)}{os.sep}"


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of one split in the order of the scan: `labels[i]` indexes `classes`.

    `groups[i]` names what the image belongs to, where a list says so. `places` are the folders and
    archives (by device and inode) that hold every image; None if images may lie elsewhere.
    """

    root: Path
    classes: tuple[str, ...]
    paths: PackedPaths
    labels: tuple[int, ...]
    skipped: tuple[SkippedFile, ...] = ()
    groups: tuple[str, ...] | None = None
    places: frozenset[tuple[int, int]] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def class_counts(self) -> list[int]:
        """Number of images of each class, in the order of `classes`."""
        counts = [0] * len(self.classes)
        for label in self.labels:
            counts[label] += 1
        return counts

    def subset(self, indices: Sequence[int]) -> "LabelledImages":
        """The images at `indices`, in that order, with the same classes."""
        return replace(
            self,
            paths=self.paths.select(indices),
            labels=tuple(self.labels[i] for i in indices),
            groups=self.groups and tuple(self.groups[i] for i in indices),
        )
