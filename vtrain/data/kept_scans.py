"""What scans found, kept in the cache folder, so that what has not changed is not scanned again."""

import hashlib
import json
import os
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vtrain.data.formats import FORMATS
from vtrain.data.image_names import HIDDEN_PREFIXES, IMAGE_SUFFIXES, SYSTEM_NAMES
from vtrain.errors import VtrainError
from vtrain.system.cache_folder import SCANS, find_cache_folder
from vtrain.system.files import atomic_write
from vtrain.system.reporter import Reporter

Identity: TypeAlias = tuple[int, int, int, int]  # device, inode, mtime_ns, ctime_ns

# File systems stamp changes with a clock that ticks every few milliseconds, some (FAT, older HFS+)
# every one or two seconds: within a tick a second change leaves no trace.
CLOCK_TICK_NS = 2_000_000_000
# Listing so few files takes less time than keeping what was found.
MIN_ENTRIES = 1_000
# Other versions, or with other extras, may take other files for images; reasons are kept as well.
RULES = (
    1,
    *IMAGE_SUFFIXES,
    *HIDDEN_PREFIXES,
    *sorted(SYSTEM_NAMES),
    *(f"{each.reason} {each.readable}" for each in FORMATS),
)
_MAGIC = b"vtrain scan 2 "
_PIECE_HEAD = struct.Struct("<QQ16s16s")  # bytes of keys and values, and their checksums
_SEPARATOR = "/"  # no name of a directory entry contains it


def is_settled(mtime_ns: int, ctime_ns: int, now_ns: int) -> bool:
    """Whether any change to a file with these times after `now_ns` will show in its times.

    A file whose times are younger than a tick of the clock (or lie in the future) may change again
    without another stamp; one without times says nothing, as on some mounts of object storage.
    """
    return mtime_ns > 0 and max(mtime_ns, ctime_ns) + CLOCK_TICK_NS < now_ns


class ScanFile:
    """What was found in one source, in the cache folder: pieces of keys and values with checksums.

    What is damaged, cut off by a kill, or was written for another source or by other rules counts
    as nothing. Several processes may use one file: at worst something is scanned again.

    Args:
        kind: what is looked for; each kind has its own file for a source.
        source: the folder, archive or list that is scanned.
        rules: plain data on which depends what is found.
    """

    def __init__(self, kind: str, source: Path, rules: object) -> None:
        place = os.fsencode(source.resolve())
        name = hashlib.blake2b(place, digest_size=16).hexdigest()
        self.path = find_cache_folder() / SCANS / f"{kind}-{name}"
        self._head = _MAGIC + hashlib.sha256(repr(rules).encode() + place).digest()
        self._end: int | None = 0  # of the whole pieces, if more follows; 0: the file begins anew
        self._failed = False

    def read(self, *, values: bool = True) -> list[tuple[bytes, bytes]]:
        """Keys and values of each piece, in the order in which they were added.

        `values` that are not asked for are not read, and come empty.
        """
        pieces: list[tuple[bytes, bytes]] = []
        with suppress(OSError), self.path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if stream.read(len(self._head)) != self._head:
                return []
            end = len(self._head)
            while len(head := stream.read(_PIECE_HEAD.size)) == _PIECE_HEAD.size:
                key_bytes, value_bytes, *checksums = _PIECE_HEAD.unpack(head)
                stop = end + len(head) + key_bytes + value_bytes
                if stop > size:
                    break
                piece = (stream.read(key_bytes), stream.read(value_bytes) if values else b"")
                if [_checksum(part) for part in piece[: 1 + values]] != checksums[: 1 + values]:
                    break
                pieces.append(piece)
                end = stream.seek(stop)
            self._end = None if end == size else end
        return pieces

    def add(self, keys: bytes, values: bytes = b"", *, reporter: Reporter) -> None:
        """Add a piece behind those that were read: a kill right after does not lose it.

        Where that cannot be, `reporter` is told once, and nothing more is kept.
        """
        if self._failed:
            return
        checksums = _checksum(keys), _checksum(values)
        piece = _PIECE_HEAD.pack(len(keys), len(values), *checksums) + keys + values
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._end == 0:
                with atomic_write(self.path) as stream:
                    stream.write(self._head + piece)
            else:
                if self._end is not None:
                    os.truncate(self.path, self._end)
                with self.path.open("ab", buffering=0) as stream:  # at once: pieces do not mix
                    stream.write(piece)
            self._end = None
        except (OSError, VtrainError) as error:
            self._failed = True
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"{self.path.parent}: {error.strerror}"
            reporter.warn(f"the scan is not kept for next time: {reason}")

    def restart(self) -> None:
        """Let the next piece take the place of all others."""
        self._end = 0

    def load(self) -> Any:
        """What `save` was given; None if there is nothing."""
        pieces = self.read()
        return json.loads(pieces[0][0]) if pieces else None

    def save(self, content: Any, *, reporter: Reporter) -> None:
        """Keep plain data in place of all that the file holds, whole or not at all."""
        self.restart()
        self.add(json.dumps(content, separators=(",", ":")).encode(), reporter=reporter)


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Listing:
    """Visible entries of one folder, sorted; links are told apart from what they lead to later.

    `skipped` are names and reasons, `found` files that are images in spite of their names.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        named = len(self.images) + len(self.folders) + len(self.links) + len(self.found)
        return named + len(self.skipped)

    def pack(self) -> list[Any]:
        """Plain data for `unpack`: few long strings take a third of the memory of many short."""
        names = (self.images, self.folders, self.links, self.found)
        return [*map(_SEPARATOR.join, names), self.skipped]

    @classmethod
    def unpack(cls, packed: list[Any]) -> "Listing":
        """What was packed."""
        *names, skipped = packed
        images, folders, links, found = (each.split(_SEPARATOR) if each else [] for each in names)
        return cls(images, folders, links, found, skipped)


class FolderMemory:
    """The listings of all folders below one root, as they were when they were last read.

    A listing holds as long as its folder is the same one and carries the same times; folders that
    are not asked for are forgotten at `save`.
    """

    def __init__(self, root: Path) -> None:
        self._file = ScanFile("folder", root, RULES)
        kept = self._file.load() or ()
        self._known: dict[Identity, list[Any]] = {tuple(key): packed for key, packed in kept}
        self._current: dict[Identity, list[Any]] = {}
        self._entries = 0

    def find(self, status: os.stat_result) -> Listing | None:
        """What a folder of this status holds, if that is known."""
        packed = self._known.get(_identify(status))
        if packed is None:
            return None
        listing = Listing.unpack(packed)
        self._remember(_identify(status), packed, listing)
        return listing

    def keep(self, folder: str, before: os.stat_result, listing: Listing, started_ns: int) -> None:
        """Remember a listing that was begun at `started_ns`, if nothing can have changed since."""
        try:
            after = os.stat(folder)  # noqa: PTH116  # one of possibly many
        except OSError:
            return
        identity = _identify(after)
        if _identify(before) == identity and is_settled(*identity[2:], started_ns):
            self._remember(identity, listing.pack(), listing)

    def save(self, reporter: Reporter) -> None:
        """Write what is remembered, if it differs from what is kept and is worth it."""
        if self._entries >= MIN_ENTRIES and self._current.keys() != self._known.keys():
            self._file.save(list(self._current.items()), reporter=reporter)

    def _remember(self, identity: Identity, packed: list[Any], listing: Listing) -> None:
        self._current[identity] = packed
        self._entries += len(listing)


def _identify(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
