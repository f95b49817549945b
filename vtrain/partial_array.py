"""An array on disk that is written block by block, so that a killed writer can be gone on with."""

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from vtrain.errors import ModelError, ResourceError, RunLockedError, UsageError
from vtrain.files import sync_folder, write_error, write_text
from vtrain.run_folder import LOCK_WAIT_SECONDS, find_changes

FORMAT = 1
COMMIT_SECONDS = 15.0  # at most this much work is lost by a kill
BYTES_PER_FLOAT = 4
_LONGEST_NAME = 180  # bytes, with room for what is added


@dataclass(frozen=True, slots=True)
class PartialFiles:
    """What stands beside `output`, a path without a link at its end, until it is whole.

    `rows` becomes `output`. `journal(rank)` says what it is and which blocks of it are written:
    one file for each writing process, that of rank 0 with a first line about the whole.
    """

    output: Path

    @property
    def rows(self) -> Path:
        """The array, as large as it will be."""
        return self._beside("partial")

    @property
    def lock(self) -> Path:
        """Held while the output is written."""
        return self._beside("lock")

    def journal(self, rank: int) -> Path:
        """Where the process `rank` says what it has written."""
        return self._beside(f"journal-{rank}" if rank else "journal")

    def find_journals(self) -> list[Path]:
        """Those that exist, of the main process first."""
        start = self.journal(0).name
        with os.scandir(self.output.parent) as entries:
            names = sorted(e.name for e in entries if e.name.startswith(start))
        number = {name: name.removeprefix(start).removeprefix("-") for name in names}
        return [
            self.output.with_name(name) for name in names if not number[name].strip("0123456789")
        ]

    def remove(self) -> None:
        """Remove rows and journals."""
        with contextlib.suppress(OSError):
            for path in (*self.find_journals(), self.rows):
                path.unlink(missing_ok=True)

    def _beside(self, kind: str) -> Path:
        name = self.output.name
        encoded = os.fsencode(name)
        if len(encoded) > _LONGEST_NAME:
            name = hashlib.sha256(encoded).hexdigest()[:32]
        return self.output.with_name(f".{name}.{kind}")


class RowFailures:
    """Rows that could not be computed and why, in a few bytes each."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._codes = array("q")
        self._reasons: dict[str, int] = {}
        self._texts: list[str] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, str]:
        return self._rows[index], self._texts[self._codes[index]]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return map(self.__getitem__, range(len(self)))

    def extend(self, failures: Iterable[tuple[int, str]]) -> None:
        """Add rows and their reasons."""
        for row, reason in failures:
            code = self._reasons.setdefault(reason, len(self._texts))
            if code == len(self._texts):
                self._texts.append(reason)
            self._rows.append(row)
            self._codes.append(code)

    def sort(self) -> None:
        """Order by rising row."""
        order = np.argsort(np.array(self._rows), kind="stable")
        self._rows = array("q", np.array(self._rows)[order].tobytes())
        self._codes = array("q", np.array(self._codes)[order].tobytes())


@dataclass(frozen=True, slots=True)
class Progress:
    """Where writing starts: `done` holds one bool for each block."""

    token: str
    done: np.ndarray
    failures: RowFailures


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """A `.npy` file of float32 rows `[N, ...]`, in blocks of `block_rows`, the last may be less."""

    shape: tuple[int, ...]
    block_rows: int

    @property
    def header(self) -> bytes:
        """The first bytes of the file."""
        stream = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, described)
        return stream.getvalue()

    @property
    def num_blocks(self) -> int:
        """Blocks, with one that may be shorter."""
        return -(-self.shape[0] // self.block_rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * BYTES_PER_FLOAT

    @property
    def file_bytes(self) -> int:
        """Bytes of the file when it is whole."""
        return len(self.header) + self.shape[0] * self.row_bytes

    def find_offset(self, block: int) -> int:
        """Where a block starts in the file, in bytes."""
        return len(self.header) + block * self.block_rows * self.row_bytes


@contextlib.contextmanager
def lock_output(files: PartialFiles) -> Iterator[None]:
    """Keep other processes from writing the same output.

    Raises:
        RunLockedError: another process does.
        UsageError: the folder cannot be written.
    """
    lock = FileLock(files.lock)
    try:
        lock.acquire(timeout=LOCK_WAIT_SECONDS)
    except Timeout as error:
        raise RunLockedError(
            f"{files.output} is being written by another process",
            "wait until it ends, or choose another output",
        ) from error
    except OSError as error:
        raise write_error(files.output, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            files.lock.unlink()
        lock.release()


def create_rows(files: PartialFiles, layout: ArrayLayout, work: Mapping[str, Any]) -> Progress:
    """Start afresh: replace what is there by an empty array, its disk space taken already.

    `work` is plain data that says what the rows are made from.

    Raises:
        ResourceError: no space for the array; nothing is left behind.
        UsageError: the folder cannot be written.
    """
    files.remove()
    progress = Progress(secrets.token_hex(8), np.zeros(layout.num_blocks, bool), RowFailures())
    try:
        with files.rows.open("xb") as stream:
            _reserve(stream, layout)
        _write_journal(files, work, progress)
    except BaseException as error:
        files.remove()
        if isinstance(error, OSError):
            raise write_error(files.output, error) from error
        raise
    return progress


def load_rows(
    files: PartialFiles,
    layout: ArrayLayout,
    work: Mapping[str, Any],
    notify: Callable[[str], None],
) -> Progress | None:
    """What an earlier process left of the same work; None where there is nothing.

    Raises:
        UsageError: it is other work; the message says what differs.
        ModelError: what is there is damaged.
    """
    if not (files.rows.exists() and files.journal(0).exists()):
        return None
    first, *lines = _read_lines(files.journal(0)) or [None]
    if not isinstance(first, dict) or not isinstance(first.get("work"), dict):
        raise _damaged(files, "its journal does not start as it should")
    if first.get("format") != FORMAT:
        raise _damaged(files, f"its journal has format {first.get('format')!r}, not {FORMAT}")
    changes = find_changes(first["work"], json.loads(json.dumps(work)))
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise UsageError(
            f"cannot resume: {files.rows} is of other work:\n{listed}",
            "ask for the same as before, or start afresh without --resume",
        )
    if files.rows.stat().st_size != layout.file_bytes:
        raise _damaged(files, f"it has not the {layout.file_bytes:,} bytes of its array")
    progress = Progress(secrets.token_hex(8), np.zeros(layout.num_blocks, bool), RowFailures())
    for path in files.find_journals():
        lines += _read_lines(path) if path != files.journal(0) else []
    for line in lines:
        _take_line(files, line, progress)
    # All in one journal again: the next processes may be more or fewer.
    _write_journal(files, work, progress)
    for path in files.find_journals():
        if path != files.journal(0):
            path.unlink(missing_ok=True)
    notify(f"resuming: {int(progress.done.sum())} of {layout.num_blocks} blocks are there")
    return progress


def publish_rows(files: PartialFiles) -> None:
    """Give the rows the name of the output; all of them are on disk.

    Raises:
        ResourceError: the file system failed.
    """
    try:
        files.rows.replace(files.output)
        sync_folder(files.output.parent)
    except OSError as error:
        raise write_error(files.output, error) from error
    files.remove()


class RowWriter:
    """Writes blocks of rows into the array of `create_rows` or `load_rows`, one in each process.

    Raises:
        ResourceError: this process does not see the files that rank 0 made.
    """

    def __init__(self, files: PartialFiles, layout: ArrayLayout, *, rank: int, token: str) -> None:
        self._files = files
        self._layout = layout
        self._blocks: list[int] = []
        self._failures: list[tuple[int, str]] = []
        self._committed_at = time.monotonic()
        self.count = 0
        try:
            first = (_read_lines(files.journal(0)) or [None])[0]
            if not isinstance(first, dict) or first.get("token") != token:
                raise FileNotFoundError(errno.ENOENT, "the journal is another one")
            with contextlib.ExitStack() as opened:
                self._rows = opened.enter_context(files.rows.open("r+b"))
                self._journal = opened.enter_context(files.journal(rank).open("ab"))
                opened.pop_all()  # both are there: `__exit__` closes them
        except FileNotFoundError as error:
            raise ResourceError(
                f"process {rank} does not see {files.rows}, which process 0 has made",
                "on several machines the output must be on a file system that all of them share",
            ) from error
        except OSError as error:
            raise write_error(files.output, error) from error

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.commit()
        except Exception:
            if error is None:  # else there is a first cause to tell of
                raise
        finally:
            with contextlib.suppress(OSError):
                self._rows.close()
            with contextlib.suppress(OSError):
                self._journal.close()

    def write(self, block: int, values: np.ndarray, failures: Mapping[int, str]) -> None:
        """Write a block by its number, float32 `[n, ...]`; `failures` are reasons by array row.

        Raises:
            ResourceError: the disk is full or failed.
        """
        try:
            self._rows.seek(self._layout.find_offset(block))
            self._rows.write(values.astype("<f4", copy=False).tobytes())
        except OSError as error:
            raise write_error(self._files.output, error) from error
        self._blocks.append(block)
        self._failures += failures.items()
        self.count += 1
        if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Bring the rows to the disk, and only then say in the journal that they are there.

        Raises:
            ResourceError: the disk is full or failed.
        """
        if not self._blocks:
            return
        line = json.dumps({"blocks": self._blocks, "failures": self._failures})
        try:
            for stream, text in ((self._rows, ""), (self._journal, f"{line}\n")):
                stream.write(text.encode("ascii"))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(self._files.output, error) from error
        self._blocks, self._failures = [], []
        self._committed_at = time.monotonic()


def _reserve(stream: BinaryIO, layout: ArrayLayout) -> None:
    """Write the header and take the disk space of the whole array now."""
    stream.write(layout.header)
    stream.flush()
    stream.truncate(layout.file_bytes)
    if not hasattr(os, "posix_fallocate"):
        return
    length = layout.file_bytes - len(layout.header)
    try:
        os.posix_fallocate(stream.fileno(), len(layout.header), length)
    except OSError as error:
        # Some file systems cannot reserve: there a full disk shows while rows are written.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _write_journal(files: PartialFiles, work: Mapping[str, Any], progress: Progress) -> None:
    first = {
        "vtrain": f"unfinished rows of {files.output.name}; `vtrain embed --resume` goes on",
        "format": FORMAT,
        "token": progress.token,
        "work": work,
    }
    text = f"{json.dumps(first)}\n"
    if progress.done.any():
        done = np.flatnonzero(progress.done).tolist()
        text += json.dumps({"blocks": done, "failures": list(progress.failures)}) + "\n"
    write_text(files.journal(0), text)


def _read_lines(path: Path) -> list[Any]:
    """The whole lines of a journal up to the first that is not whole: a kill may cut one off."""
    values: list[Any] = []
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            try:
                values.append(json.loads(line))
            except ValueError:
                break
    return values


def _take_line(files: PartialFiles, line: Any, progress: Progress) -> None:
    try:
        blocks = [int(block) for block in line["blocks"]]
        failures = [(int(row), str(reason)) for row, reason in line["failures"]]
    except (TypeError, ValueError, KeyError) as error:
        raise _damaged(files, "its journal holds something else") from error
    if blocks and not 0 <= min(blocks) <= max(blocks) < len(progress.done):
        raise _damaged(files, "its journal names blocks that do not exist")
    if progress.done[blocks].any():
        return  # already taken from a journal that was written anew
    progress.done[blocks] = True
    progress.failures.extend(failures)


def _damaged(files: PartialFiles, reason: str) -> ModelError:
    return ModelError(
        f"cannot resume: {files.rows} is damaged: {reason}", "start afresh without --resume"
    )
