"""Files that are written whole or not at all, whatever happens while they are written."""

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from vtrain.errors import ResourceError, UsageError, VtrainError
from vtrain.system.text import list_names

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FAILED = (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESTALE)
_NO_HARD_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)
_TEMPORARY = re.compile(r"\..*\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp")

# Surrogates that stand for no byte of a file name.
_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
MAX_NAME_BYTES = 255  # of one file or folder, on every usual file system
NO_HOME = "write out the home folder, ~ is not expanded"


@contextmanager
def atomic_write(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A stream for the new content of `path`, which takes its place when the block ends well.

    The content goes to a temporary file in the same folder, reaches the disk, and is then renamed,
    so that at any moment `path` holds its old content or its new one, also after `kill -9` or on a
    full disk. A symbolic link is followed. The stream can be read and sought as well.

    `previous`, in the same folder, then holds the old content, if there was any. On a file system
    without hard links there is a moment in which it alone exists.

    Raises:
        ResourceError: the disk or quota is full, or the file system failed.
        UsageError: the folder is missing or cannot be written, or `path` is no regular file.
    """
    target = _find_target(path)
    # The random part keeps threads, containers and hosts that share a pid apart.
    temporary = _temporary_name(target)
    try:
        stream = temporary.open("x+b")
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield stream
        _commit(stream, temporary, target, previous)
    except BaseException as error:
        written = _discard(stream, temporary)
        if failure := find_disk_error(error, _DISK_FULL + _DISK_FAILED):
            raise write_error(path, failure, written=written) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; file names that are not UTF-8 keep their bytes.

    Raises: see `atomic_write`.
    """
    with atomic_write(path) as stream:
        stream.write(encode_text(text))


def encode_text(text: str) -> bytes:
    """UTF-8; names that are something else keep their bytes."""
    return escape_surrogates(text).encode("utf-8", "surrogateescape")


def escape_surrogates(text: str) -> str:
    """Surrogates that no file name has, and that no encoding takes, become escapes."""
    return _SURROGATES.sub(escape_match, text)


def escape_match(match: re.Match[str]) -> str:
    """Escapes as JSON has them, beyond 16 bits as a pair of surrogates."""
    char = match[0]
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else json.dumps(char)[1:-1]


def sweep_temporaries(folder: Path, *, older_than: float = 0.0) -> list[Path]:
    """Remove what dead processes of this machine left of `atomic_write` in `folder`.

    Process ids say nothing about other machines: call it only where no other machine can be
    writing, such as in a run folder whose lock is held; or for files `older_than` so many seconds,
    which nobody can still be writing. Returns the removed files.
    """
    removed = []
    for path in sorted(folder.glob(".*.tmp")):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _process_lives(int(match["pid"])):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
                    removed.append(path)
    return removed


def write_error(path: Path, error: OSError, *, written: int = 0) -> VtrainError:
    """The error a user should see when `path` cannot be written, `written` bytes into it."""
    folder = path.parent
    if error.errno in _DISK_FULL:
        reason = "a file size limit" if error.errno == errno.EFBIG else "no space left"
        free = ""
        with suppress(OSError):
            free = f"{shutil.disk_usage(folder).free:,} bytes free "
        return ResourceError(
            f"cannot write {path}: {reason} after {written:,} bytes ({free}in {folder})",
            "free some space or choose another folder; what was there before is untouched",
        )
    if isinstance(error, FileNotFoundError) and not folder.exists():
        return UsageError(
            f"cannot write {path}: the folder {folder} does not exist",
            f"create it with: mkdir -p {folder}",
        )
    closed = (PermissionError, FileNotFoundError, NotADirectoryError)
    if isinstance(error, closed) or (error.errno == errno.EROFS and not written):
        return UsageError(
            f"cannot write {path}: folder {folder}: {error.strerror}",
            "choose a folder that you may write to",
        )
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"cannot write {path}: {error.strerror}", "choose a shorter name")
    return ResourceError(
        f"cannot write {path}: {error.strerror or error}",
        "look after the disk; what was there before is untouched",
    )


def find_disk_error(
    error: BaseException | None, codes: Collection[int] = _DISK_FULL
) -> OSError | None:
    """The full disk, quota or size limit behind `error`, however it was wrapped since."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in codes:
            return error
        error = error.__cause__ or error.__context__
    return None


def _find_target(path: Path) -> Path:
    """Where the content goes: the end of a link; never in place of a folder, pipe or device."""
    try:
        target = path.resolve() if path.is_symlink() else path
        exists, regular = target.exists(), target.is_file()
    except OSError as error:
        raise write_error(path, error) from error
    if exists and not regular:
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise UsageError(f"cannot write {path}: it is {kind}")
    return target


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _commit(stream: BinaryIO, temporary: Path, target: Path, previous: Path | None) -> None:
    """Bring the content to the disk, then give it its name, then bring the name to the disk."""
    try:
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        if previous is not None and target.exists():
            _keep_as(target, previous)
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise write_error(target, error) from error


def _keep_as(path: Path, previous: Path) -> None:
    """Give a file a second name, in place of what has that name."""
    link = _temporary_name(previous)
    try:
        link.hardlink_to(path)
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            path.replace(previous)
        elif error.errno != errno.EXDEV:  # `path` led to another disk: there is no earlier one then
            raise
        return
    try:
        link.replace(previous)
    finally:  # it stays where both were names of one file already
        with suppress(OSError):
            link.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Find out in time that a disk is too full.

    Raises:
        ResourceError: fewer than `needed` bytes are free for `purpose`.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # no file system that would tell
        return
    if free < needed:
        raise ResourceError(
            f"{purpose} need {needed:,} bytes in {folder}, and {free:,} are free",
            "free some space, or choose a folder on another disk",
        )


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where that can be done."""
    # Windows cannot open a folder and some file systems cannot sync one, nor can it be opened
    # without the right to list it; the content itself is safe by then.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _discard(stream: BinaryIO, temporary: Path) -> int:
    """Close and remove the temporary file; the number of bytes it had got."""
    written = 0
    with suppress(OSError):
        written = temporary.stat().st_size
    with suppress(OSError, ValueError):  # closing flushes, which fails again on a full disk
        stream.close()
    with suppress(OSError):
        temporary.unlink()
    return written


def _process_lives(pid: int) -> bool:
    if os.name == "nt":  # signal 0 would end the process there
        return True
    try:
        with suppress(PermissionError, OverflowError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def describe_missing(path: Path, what: str) -> str | None:
    """Why there is nothing at `path`, and what stands where its first missing part should be."""
    if path_exists(path):
        return None
    if (unreachable := describe_unreachable(path)) is not None:
        return unreachable
    return f"no such {what}: {path}; {explain_missing(path)}"


def explain_missing(path: Path) -> str:
    """What stands where the first missing part of `path` should be."""
    if path.parts and path.parts[0].startswith("~"):
        return NO_HOME
    missing = next(
        (part for part in (*reversed(path.parents), path) if not path_exists(part)), path
    )
    if missing.is_symlink():
        return f"{missing} is a broken link to {missing.readlink()}"
    close = get_close_matches(missing.name, list_names(missing.parent), n=1, cutoff=0.5)
    if close:
        guess = missing.with_name(close[0])
        whole = guess / path.relative_to(missing)
        return f"did you mean {whole if path_exists(whole) else guess}?"
    if path_exists(missing.parent) and not missing.parent.is_dir():
        return f"{missing.parent} is a file"
    if path.is_absolute():
        return f"there is no {missing.name} in {missing.parent}"
    if missing != path:
        return f"{missing} does not exist"
    return "paths are relative to the working directory"


def describe_unreachable(path: Path) -> str | None:
    """Why one cannot even ask whether there is something at `path`: links in a loop, for one."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"{path} cannot be read: {str(reason).lower()}"
    return None


def real_path(path: Path | str) -> Path:
    """A path without links, as far as they can be followed: a loop of links is no error here."""
    return Path(os.path.realpath(path))


def path_exists(path: Path) -> bool:
    """Whether there is something at a path; False where one cannot ask."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True
