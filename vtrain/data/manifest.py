"""What scans found, kept in the cache folder, so that what has not changed is not scanned again."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from vtrain.cache_folder import find_cache_folder
from vtrain.data.naming import HIDDEN_PREFIXES, IMAGE_SUFFIXES
from vtrain.errors import VtrainError
from vtrain.files import atomic_write

Notify: TypeAlias = Callable[[str], object]
Identity: TypeAlias = tuple[int, int, int, int]  # device, inode, mtime_ns, ctime_ns

# File systems stamp changes with a clock that ticks every few milliseconds, some (FAT, older HFS+)
# every one or two seconds: within a tick a second change leaves no trace.
CLOCK_TICK_NS = 2_000_000_000
# Listing so few files takes less time than keeping what was found.
MIN_ENTRIES = 1_000
# Other versions may take other files for images.
RULES = [*IMAGE_SUFFIXES, *HIDDEN_PREFIXES]
_MAGIC = b"vtrain scan 1 "
_CHECKSUM_BYTES = 16
_SEPARATOR = "/"  # no name of a directory entry contains it


def kept_file(kind: str, source: Path) -> Path:
    """Where a scan of `source` is kept; the file need not exist."""
    place = os.fsencode(source.resolve())
    name = hashlib.blake2b(place, digest_size=16).hexdigest()
    return find_cache_folder() / "scans" / f"{kind}-{name}"


class Times(Protocol):
    """When a file was changed, as `os.stat` tells it."""

    @property
    def st_mtime_ns(self) -> int: ...  # noqa: D102
    @property
    def st_ctime_ns(self) -> int: ...  # noqa: D102


def is_settled(status: Times, now_ns: int) -> bool:
    """Whether any change to a file after `now_ns` will show in its times.

    A file whose times are younger than a tick of the clock (or lie in the future) may change again
    without another stamp; one without times says nothing, as on some mounts of object storage.
    """
    return (
        status.st_mtime_ns > 0
        and max(status.st_mtime_ns, status.st_ctime_ns) + CLOCK_TICK_NS < now_ns
    )


def read_kept(path: Path) -> Any:
    """What `write_kept` wrote; None if there is nothing, or it is damaged or something else."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError):
        return None
    start = len(_MAGIC) + 2 * _CHECKSUM_BYTES + 1
    body = memoryview(content)[start:]
    if content[:start] != _MAGIC + _checksum(body) + b"\n":
        return None
    try:
        return json.loads(content[start:])
    except (ValueError, RecursionError):
        return None


def write_kept(path: Path, value: Any, notify: Notify) -> None:
    """Keep plain data, whole or not at all; where that cannot be, say so and go on."""
    body = json.dumps(value, separators=(",", ":")).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            stream.write(_MAGIC + _checksum(body) + b"\n")
            stream.write(body)
    except (OSError, VtrainError) as error:
        say_not_kept("the scan", path, error, notify)


def say_not_kept(what: str, path: Path, error: Exception, notify: Notify) -> None:
    """Say that something will have to be done again next time, and why."""
    reason = f"{path.parent}: {error.strerror}" if isinstance(error, OSError) else str(error)
    notify(f"{what} is not kept for next time: {reason}")


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Listing:
    """Visible entries of one folder, sorted; links are told apart from what they lead to later.

    `skipped` are names and reasons. A listing that is not `whole` met errors, and is not kept.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = True

    def pack(self) -> list[Any]:
        """Plain data for `unpack`: few long strings instead of many short ones."""
        names = [_SEPARATOR.join(part) for part in (self.images, self.folders, self.links)]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped:
            reasons.setdefault(reason, []).append(name)
        return [*names, {reason: _SEPARATOR.join(each) for reason, each in reasons.items()}]

    @classmethod
    def unpack(cls, packed: list[Any]) -> "Listing":
        """What `pack` was given.

        Raises:
            ValueError, TypeError, AttributeError: this is something else.
        """
        images, folders, links, reasons = packed
        skipped = [
            (name, str(reason)) for reason, names in reasons.items() for name in _split(names)
        ]
        return cls(_split(images), _split(folders), _split(links), skipped)


def _split(names: str) -> list[str]:
    return names.split(_SEPARATOR) if names else []


class FolderMemory:
    """The listings of all folders below one root, as they were when they were last read.

    A listing holds as long as its folder is the same one and carries the same times; folders that
    are not asked for are forgotten at `save`.
    """

    def __init__(self, root: Path) -> None:
        self._file = kept_file("folder", root)
        self._root = os.fsencode(root.resolve()).hex()
        self._known: dict[Identity, list[Any]] = {}
        self._current: dict[Identity, list[Any]] = {}
        self._entries = 0
        value = read_kept(self._file)
        own = {"rules": RULES, "root": self._root}
        if isinstance(value, dict) and own.items() <= value.items():
            self._known = dict(_identified(value.get("folders")))

    def find(self, status: os.stat_result) -> Listing | None:
        """What a folder of this status holds, if that is known."""
        identity = _identify(status)
        packed = self._known.get(identity)
        if packed is None:
            return None
        try:
            listing = Listing.unpack(packed)
        except (ValueError, TypeError, AttributeError):
            del self._known[identity]
            return None
        self._remember(identity, packed, listing)
        return listing

    def keep(self, folder: str, before: os.stat_result, listing: Listing, started_ns: int) -> None:
        """Remember a listing that was begun at `started_ns`, if nothing can have changed since."""
        try:
            after = os.stat(folder)  # noqa: PTH116  # one of possibly many
        except OSError:
            return
        unchanged = _identify(before) == _identify(after)
        if listing.whole and unchanged and is_settled(after, started_ns):
            self._remember(_identify(after), listing.pack(), listing)

    def save(self, notify: Notify) -> None:
        """Write what is remembered, if it differs from what is kept and is worth it."""
        if self._entries < MIN_ENTRIES or self._current.keys() == self._known.keys():
            return
        folders = [[*identity, packed] for identity, packed in self._current.items()]
        write_kept(self._file, {"rules": RULES, "root": self._root, "folders": folders}, notify)

    def _remember(self, identity: Identity, packed: list[Any], listing: Listing) -> None:
        self._current[identity] = packed
        names = len(listing.images) + len(listing.folders) + len(listing.links)
        self._entries += names + len(listing.skipped)


def _identify(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _identified(rows: Any) -> Iterable[tuple[Identity, list[Any]]]:
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and len(row) == 5 and all(type(each) is int for each in row[:4]):
            yield (row[0], row[1], row[2], row[3]), row[4]
