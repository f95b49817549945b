"""Images in plain tar files: an index of their members, and the way to the bytes of each.

A member is named by a path that goes through its archive: `shard-000.tar/daisy/1.jpg`.
"""

import os
import re
import stat
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from vtrain.data.formats import HEAD_BYTES, is_looked_into, judge
from vtrain.data.image_names import NOT_AN_IMAGE, is_hidden, is_image_name
from vtrain.data.image_sets import TAR_SUFFIX, PackedPaths, SkippedFile
from vtrain.data.kept_scans import MIN_ENTRIES, RULES, ScanFile, is_settled
from vtrain.data.tar_headers import Header, TarError, read_headers
from vtrain.errors import DataError
from vtrain.system.reporter import Reporter

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LABEL_SUFFIX = ".cls"
MAX_LABEL_BYTES = 1_000
_THROUGH_TAR = re.compile(rf"{re.escape(TAR_SUFFIX)}(?={re.escape(os.sep)})", re.IGNORECASE)
_MAGICS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0", b"PK\x03\x04")

Archive: TypeAlias = tuple[int, int, int, int, int]  # device, inode, size, mtime_ns, ctime_ns


class FileStatus(NamedTuple):
    """What tells one content of an image from another; a member has the times of its archive.

    `offset` is where a member's bytes begin, 0 for a file.
    """

    st_dev: int
    st_ino: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The images of one archive, sorted by name, with the places of their bytes.

    `labels` is None for an archive without labels of its own, else a text for each image, empty
    where it has none. `found` are images in spite of their names. `kept` tells whether the index is
    in the cache folder.
    """

    images: PackedPaths
    offsets: "array[int]"
    sizes: "array[int]"
    labels: list[str] | None
    skipped: list[tuple[str, str]]
    found: list[str]
    kept: bool = False


@dataclass(slots=True)
class TarScan:
    """Images of `archives`, named below a root.

    `places` are the archives by device and inode. `folders` are those within the archive that
    images lie in, "" for none; `labels` are the texts of `.cls` members, "" where there is none,
    and None if there are none at all.
    """

    archives: Sequence[str]
    places: set[tuple[int, int]] = field(default_factory=set)
    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    labels: list[str] | None = None
    skipped: list[SkippedFile] = field(default_factory=list)
    found: list[str] = field(default_factory=list)  # images in spite of their names

    def sort(self) -> None:
        """Bring the images into the order of their names."""
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        self.names = [self.names[i] for i in order]
        self.folders = [self.folders[i] for i in order]
        self.labels = self.labels and [self.labels[i] for i in order]


def is_compressed(name: str) -> bool:
    """Whether a file is named like a compressed archive."""
    return name.lower().endswith(COMPRESSED_SUFFIXES)


def compressed_error(path: Path) -> DataError:
    """The error for an archive in which nothing can be sought."""
    return DataError(
        f"{path} is compressed, and its images cannot be reached one by one",
        "unpack it, or write a plain .tar: images hardly get smaller by compression",
    )


def scan_tars(root: Path, archives: Sequence[str], reporter: Reporter) -> TarScan:
    """All images of `archives`, names below `root`; a single archive is its own root, named "".

    `root` may also be a folder within an archive. Indices are kept in the cache folder.

    Raises:
        DataError: an archive is compressed, damaged or cut off.
    """
    scan = TarScan(archives)
    archive, inside = find_archive(root) or (root, "")
    indices = [(each, _index_for_scan(archive / each, reporter)) for each in archives]
    if any(index.labels is not None for _, index in indices):
        scan.labels = []
    folders: dict[str, str] = {}  # one text for all images of a folder
    for each, index in indices:
        prefix = f"{each}/" if each else ""
        for number, name in enumerate(index.images.names()):
            if not name.startswith(inside):
                continue
            name = name[len(inside) :]
            folder = name.rpartition("/")[0]
            scan.names.append(prefix + name)
            scan.folders.append(folders.setdefault(folder, folder))
            if scan.labels is not None:
                scan.labels.append("" if index.labels is None else index.labels[number])
        path = archive / each
        scan.places.add(find_status(path)[:2])
        scan.skipped += [
            SkippedFile(path / name, reason)
            for name, reason in index.skipped
            if name.startswith(inside)
        ]
        scan.found += [str(path / name) for name in index.found if name.startswith(inside)]
    return scan


def find_archive(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the folder there, which ends with a slash.

    None for a path that leads into no archive, or to no folder of one.
    """
    error = NotADirectoryError(20, "Not a directory", str(path))
    try:
        archive, name, identity = _split_path(path, error)
        images = _load_index(archive, identity).images
    except (OSError, DataError):
        return None
    folder = f"{name}/"
    number = bisect_left(range(len(images)), folder, key=images.name)
    found = number < len(images) and images.name(number).startswith(folder)
    return (Path(archive), folder) if found else None


def find_status(path: Path | str) -> FileStatus:
    """The status of an image as it is now, in a folder or in an archive.

    Raises:
        OSError: it is not there, or cannot be reached.
    """
    try:
        return FileStatus(*_identify(os.stat(path)))  # noqa: PTH116  # one of possibly a million
    except NotADirectoryError as error:
        archive, name, identity = _split_path(path, error)
        offset, size = _find_member(archive, identity, name, error)
        return FileStatus(*identity[:2], size, *identity[3:], offset)


def read_member(path: Path, error: NotADirectoryError, *, max_bytes: int) -> tuple[bytes, int]:
    """The bytes of a member, none if it has more than `max_bytes`, and its size.

    `error` is what the system said to `path`; it is raised again if no archive has such a member.

    Raises:
        OSError: there is no such member, or the archive cannot be read.
    """
    archive, name, _ = _split_path(path, error)
    with Path(archive).open("rb") as file:
        offset, size = _find_member(archive, _identify(os.fstat(file.fileno())), name, error)
        if size > max_bytes:
            return b"", size
        file.seek(offset)
        return file.read(size), size


def _split_path(path: Path | str, error: NotADirectoryError) -> tuple[str, str, Archive]:
    """The archive that a path leads through, the member's name, and what tells the archive."""
    text = str(Path(path))
    for match in _THROUGH_TAR.finditer(text):
        with suppress(OSError):
            status = os.stat(text[: match.end()])  # noqa: PTH116  # one of possibly a million
            if stat.S_ISREG(status.st_mode):
                name = text[match.end() + 1 :].replace(os.sep, "/")
                return text[: match.end()], name, _identify(status)
    raise error


def _find_member(
    archive: str, identity: Archive, name: str, error: NotADirectoryError
) -> tuple[int, int]:
    """Offset and size of a member."""
    try:
        index = _load_index(archive, identity)
    except DataError:
        raise error from None
    images = index.images
    number = bisect_left(range(len(images)), name, key=images.name)
    if number == len(images) or images.name(number) != name:
        raise FileNotFoundError(2, "No such member", f"{archive}{os.sep}{name}")
    return index.offsets[number], index.sizes[number]


def _identify(status: os.stat_result) -> Archive:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _index_for_scan(path: Path, reporter: Reporter) -> TarIndex:
    """The index of an archive, which is kept for other processes if it is worth it."""
    started = time.time_ns()
    try:
        identity = _identify(path.stat())
        index = _load_index(str(path), identity)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path} cannot be read ({reason})") from error
    count = len(index.images) + len(index.skipped)
    if not index.kept and count >= MIN_ENTRIES and is_settled(*identity[3:], started):
        _index_file(path, identity).save(_pack_index(index), reporter=reporter)
    return index


@cache
def _load_index(archive: str, identity: Archive) -> TarIndex:
    """The index of an archive: from this process, from the cache folder, or made now.

    Raises:
        DataError: the archive is compressed, damaged or cut off.
        OSError: it cannot be read.
    """
    path = Path(archive)
    packed = _index_file(path, identity).load()
    if packed is not None:
        return _unpack_index(path, packed)
    with path.open("rb", buffering=0) as file:
        if _identify(os.fstat(file.fileno())) != identity:
            raise DataError(f"{path} changes while it is read")
        return _build_index(path, file)


def _build_index(path: Path, file: Any) -> TarIndex:
    found: dict[str, Header] = {}
    skipped: list[tuple[str, str]] = []
    try:
        for header in read_headers(file):
            name = _place_member(header, skipped)
            if name is None:
                continue
            if name in found:
                skipped.append((name, "is replaced by a later member of the same name"))
            found[name] = header
    except TarError as error:
        file.seek(0)
        if not found and file.read(8).startswith(_MAGICS):
            raise compressed_error(path) from error
        hint = "write or fetch it again; a part of the images would be missing"
        raise DataError(f"{path} {error}", hint) from error
    labels = {
        _sample_key(name): _read_label(file, header)
        for name, header in found.items()
        if name.endswith(LABEL_SUFFIX)
    }
    images = list(filter(is_image_name, found))
    others = _judge_others(file, found, images)
    unnamed = sorted(name for name, reason in others.items() if reason is None)
    images = sorted([*images, *unnamed])
    keys = set(map(_sample_key, images)) if labels else set()
    skipped += [
        (name, reason)
        for name, reason in others.items()
        # What shares its name with an image belongs to it.
        if reason is not None and _sample_key(name) not in keys
    ]
    return TarIndex(
        PackedPaths(path, images),
        array("Q", (found[name].offset for name in images)),
        array("Q", (found[name].size for name in images)),
        [labels.get(_sample_key(name), "") for name in images] if labels else None,
        sorted(skipped),
        unnamed,
    )


def _judge_others(
    file: BinaryIO, found: dict[str, Header], images: list[str]
) -> dict[str, str | None]:
    """Members that are not named like images: why they are not used, None if they are some."""

    def read_head(name: str) -> bytes:
        file.seek(found[name].offset)
        return file.read(min(found[name].size, HEAD_BYTES))

    others = [name for name in found if name and not is_image_name(name)]
    if not any(is_looked_into(name.rpartition("/")[2]) for name in others):
        return dict.fromkeys(others, NOT_AN_IMAGE)
    by_folder: dict[str, set[str]] = {}
    for folder, _, name in (image.rpartition("/") for image in images):
        by_folder.setdefault(folder, set()).add(name)
    reasons = {}
    for path in others:
        folder, _, name = path.rpartition("/")
        beside = by_folder.get(folder, set())
        reasons[path] = judge(name, beside, partial(read_head, path), alone=not beside)
    return reasons


def _place_member(header: Header, skipped: list[tuple[str, str]]) -> str | None:
    """The name of a member as it counts; None if it is skipped, or does not exist for a scan."""
    parts = [part for part in header.name.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if header.remark is not None:
        skipped.append((name, header.remark))
        return None
    if header.is_folder or not parts:
        return None
    reason = None
    if any(ord(character) < 32 for character in header.name):
        name, reason = ascii(name)[1:-1], "has control characters in its name"
    elif header.name.startswith("/"):
        reason = "has an absolute name"
    elif ".." in parts:
        reason = "has a name that leads out of the archive"
    if reason is not None:
        skipped.append((name.lstrip("/"), reason))
        return None
    return None if any(map(is_hidden, parts)) else name


def _sample_key(name: str) -> str:
    """What the members of one sample share: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _read_label(file: BinaryIO, header: Header) -> str:
    """The one line of a `.cls` member; empty if it holds something else."""
    if header.size > MAX_LABEL_BYTES:
        return ""
    file.seek(header.offset)
    try:
        text = file.read(header.size).decode().strip()
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def _index_file(path: Path, identity: Archive) -> ScanFile:
    """Where the index of an archive is kept: one that has changed is not what was indexed."""
    return ScanFile("tar", path, (RULES, identity))


def _pack_index(index: TarIndex) -> list[Any]:
    """Plain data; no name or label holds a line end."""
    labels = None if index.labels is None else "\n".join(index.labels)
    names = "\n".join(index.images.names())
    return [names, index.offsets.tolist(), index.sizes.tolist(), labels, index.skipped, index.found]


def _unpack_index(path: Path, packed: list[Any]) -> TarIndex:
    names, offsets, sizes, labels, skipped, found = packed
    return TarIndex(
        PackedPaths(path, names.split("\n") if offsets else ()),
        array("Q", offsets),
        array("Q", sizes),
        None if labels is None else labels.split("\n"),
        skipped,
        found,
        kept=True,
    )
