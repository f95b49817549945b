"""An array on disk that is written block by block, so that a killed writer can be gone on with."""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import NonNegativeInt, TypeAdapter

from vtrain.errors import ModelError, ResourceError, RunLockedError, UsageError, VtrainError
from vtrain.runs.folder import LOCK_WAIT_SECONDS, find_changes
from vtrain.system.files import sync_folder, write_error, write_text
from vtrain.system.json_csv import to_plain

COMMIT_SECONDS = 15.0  # at most this much work is lost by a kill
_LONGEST_NAME = 180  # bytes, with room for what is added


@dataclass(frozen=True, slots=True)
class DoneBlocks:
    """What is written: one bool for each block, and the reasons of the rows that failed.

    `token` is the same in all processes that write one array, and in its journal.
    """

    token: str
    done: np.ndarray
    failures: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Heading:
    """The first line of the first journal: what the array is of."""

    vtrain: str
    format: Literal[1]
    token: str
    work: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Written:
    """A line of a journal: blocks whose rows are on the disk, and which of these failed and why."""

    blocks: list[NonNegativeInt]
    failures: list[tuple[NonNegativeInt, str]]


_HEADING = TypeAdapter(_Heading)
_WRITTEN = TypeAdapter(_Written)


@dataclass(frozen=True, slots=True)
class PartialArray:
    """A `.npy` file of float32 rows `[N, ...]` and what stands beside it until it is whole.

    Attributes:
        output: where the array goes in the end, a path without a link at its end.
        shape: of the whole array.
        block_rows: rows that are written at a time; the last block may have fewer.
        work: plain data that says what the rows are made from.
    """

    output: Path
    shape: tuple[int, ...]
    block_rows: int
    work: Mapping[str, Any]

    @property
    def rows(self) -> Path:
        """The array, as large as it will be."""
        return _beside(self.output, "partial")

    def journal(self, rank: int) -> Path:
        """Where the process `rank` says what it has written."""
        return _beside(self.output, f"journal-{rank}" if rank else "journal")

    @property
    def num_blocks(self) -> int:
        """Blocks, with one that may be shorter."""
        return -(-self.shape[0] // self.block_rows)

    @property
    def header(self) -> bytes:
        """The first bytes of the file."""
        stream = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, described)
        return stream.getvalue()

    def find_offset(self, row: int) -> int:
        """Where a row starts in the file, in bytes; that of row N is the size of the file."""
        return len(self.header) + row * int(np.prod(self.shape[1:], dtype=np.int64)) * 4

    def count_rows(self, done: np.ndarray) -> int:
        """The rows of the blocks that are done."""
        missing = self.num_blocks * self.block_rows - self.shape[0] if done[-1] else 0
        return int(done.sum()) * self.block_rows - missing

    def create(self) -> DoneBlocks:
        """Start afresh: replace what is there by an empty array, its disk space taken already.

        Raises:
            ResourceError: no space for the array; nothing is left behind.
            UsageError: the folder cannot be written.
        """
        self.remove()
        progress = DoneBlocks(secrets.token_hex(8), np.zeros(self.num_blocks, bool), {})
        try:
            with self.rows.open("xb") as stream:
                stream.write(self.header)
                stream.truncate(self.find_offset(self.shape[0]))
                _reserve(stream, self.find_offset(self.shape[0]))
            self._write_journal(progress)
        except BaseException as error:
            self.remove()
            if isinstance(error, OSError):
                raise write_error(self.output, error) from error
            raise
        return progress

    def load(self) -> DoneBlocks | None:
        """What an earlier process left of the same work; None where there is nothing.

        Raises:
            UsageError: it is other work; the message says what differs.
            ModelError: what is there is damaged.
        """
        if not (self.rows.exists() and self.journal(0).exists()):
            return None
        progress = DoneBlocks(secrets.token_hex(8), np.zeros(self.num_blocks, bool), {})
        first_journal, *journals = self._find_journals()
        first, *lines = _read_lines(first_journal) or [None]
        lines += [line for path in journals for line in _read_lines(path)]
        try:
            before = _HEADING.validate_python(first).work
            if changes := find_changes(before, self.work):
                listed = "\n".join(f"  {change}" for change in changes)
                raise UsageError(
                    f"cannot resume: {self.rows} is of other work:\n{listed}",
                    "ask for the same as before, or start afresh without --resume",
                )
            for written in map(_WRITTEN.validate_python, lines):
                progress.done[written.blocks] = True
                progress.failures.update(written.failures)
            if max(progress.failures, default=0) >= self.shape[0]:
                raise IndexError("a row that the array does not have")
        except (ValueError, IndexError) as error:
            raise self._damaged("its journal does not hold what it should") from error
        size = self.find_offset(self.shape[0])
        if self.rows.stat().st_size != size:
            raise self._damaged(f"it has not the {size:,} bytes of its array")
        # All in one journal again: the next processes may be more or fewer.
        self._write_journal(progress)
        for path in journals:
            path.unlink(missing_ok=True)
        return progress

    def holds_rows(self) -> bool:
        """Whether the first journal tells of any block."""
        return len(_read_lines(self.journal(0))) > 1

    def publish(self) -> None:
        """Give the rows the name of the output; all of them are on disk.

        Raises:
            ResourceError: the file system failed.
        """
        try:
            self.rows.replace(self.output)
            sync_folder(self.output.parent)
        except OSError as error:
            raise write_error(self.output, error) from error
        self.remove()

    def remove(self) -> None:
        """Remove rows and journals."""
        with contextlib.suppress(OSError):
            for path in (*self._find_journals(), self.rows):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, rank: int, token: str) -> Iterator["RowWriter"]:
        """A writer into what `create` or `load` has prepared, one in each process.

        Raises:
            ResourceError: this process does not see the files of rank 0; the disk is full.
        """
        with contextlib.ExitStack() as stack:
            try:
                first = (_read_lines(self.journal(0)) or [None])[0]
                if not isinstance(first, dict) or first.get("token") != token:
                    raise FileNotFoundError(errno.ENOENT, "the journal is another one")
                rows = self.rows.open("r+b", buffering=0)
                stack.callback(_close_quietly, rows)
                journal = self.journal(rank).open("ab", buffering=0)
                stack.callback(_close_quietly, journal)
            except FileNotFoundError as error:
                raise ResourceError(
                    f"process {rank} does not see {self.rows}, which process 0 has made",
                    "on several machines the output must be on a file system that all of them "
                    "share",
                ) from error
            except OSError as error:
                raise write_error(self.output, error) from error
            writer = RowWriter(self, rows, journal)
            try:
                yield writer
            except BaseException:
                with contextlib.suppress(VtrainError):  # the first cause is the one to tell of
                    writer.commit()
                raise
            writer.commit()
            writer.close()

    def _find_journals(self) -> list[Path]:
        """Those of all processes, of the main process first."""
        first = self.journal(0)
        others = first.parent.glob(f"{glob.escape(first.name)}-[0-9]*")
        return [first, *sorted(others)]

    def _write_journal(self, progress: DoneBlocks) -> None:
        named = f"unfinished rows of {self.output.name}; `vtrain embed --resume` goes on"
        text = _format_line(_Heading(named, 1, progress.token, dict(self.work)))
        if progress.done.any():
            done = np.flatnonzero(progress.done).tolist()
            text += _format_line(_Written(done, list(progress.failures.items())))
        write_text(self.journal(0), text)

    def _damaged(self, reason: str) -> ModelError:
        return ModelError(
            f"cannot resume: {self.rows} is damaged: {reason}", "start afresh without --resume"
        )


class RowWriter:
    """Writes blocks of rows, and then says in a journal that they are on the disk."""

    def __init__(self, array: PartialArray, rows: BinaryIO, journal: BinaryIO) -> None:
        self._array = array
        self._rows = rows
        self._journal = journal
        self._written = _Written([], [])
        self._committed_at = time.monotonic()

    def write(self, block: int, values: np.ndarray, failures: Mapping[int, str]) -> None:
        """Write a block by its number, float32 `[n, ...]`; `failures` are reasons by array row.

        Raises:
            ResourceError: the disk is full or failed.
        """
        try:
            self._rows.seek(self._array.find_offset(block * self._array.block_rows))
            _write_whole(self._rows, values.astype("<f4", copy=False).tobytes())
        except OSError as error:
            raise write_error(self._array.output, error) from error
        self._written.blocks.append(block)
        self._written.failures.extend(failures.items())
        if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Bring the rows to the disk, and only then say in the journal that they are there.

        Raises:
            ResourceError: the disk is full or failed.
        """
        if not self._written.blocks:
            return
        line = _format_line(self._written)
        try:
            os.fsync(self._rows.fileno())
            _write_whole(self._journal, line.encode("ascii"))
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise write_error(self._array.output, error) from error
        self._written = _Written([], [])
        self._committed_at = time.monotonic()

    def close(self) -> None:
        """Close both files; some file systems tell only here that they have failed.

        Raises:
            ResourceError: this one did.
        """
        errors = []
        for stream in (self._rows, self._journal):
            try:
                stream.close()
            except OSError as error:
                errors.append(error)
        if errors:
            raise write_error(self._array.output, errors[0]) from errors[0]


def require_writable(*outputs: Path) -> None:
    """Find out before any work that files cannot be written; all are in one folder.

    Raises:
        UsageError: one is a folder or a device, or their folder does not exist.
    """
    for output in outputs:
        if output.exists() and not output.is_file():
            kind = "a folder" if output.is_dir() else "not a regular file"
            raise UsageError(f"cannot write {output}: it is {kind}")
    folder = outputs[0].parent
    if not folder.is_dir():
        raise UsageError(
            f"output {outputs[0]}: its folder {folder} does not exist",
            f"create it with: mkdir -p {folder}",
        )


@contextlib.contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keep other processes from writing the same output, a path without a link at its end.

    Raises:
        RunLockedError: another process does.
        UsageError: the folder cannot be written.
    """
    lock = FileLock(_beside(output, "lock"))
    try:
        lock.acquire(timeout=LOCK_WAIT_SECONDS)
    except Timeout as error:
        raise RunLockedError(
            f"{output} is being written by another process",
            "wait until it ends, or choose another output",
        ) from error
    except OSError as error:
        raise write_error(output, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _beside(output: Path, kind: str) -> Path:
    """A hidden file in the same folder."""
    name = output.name
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST_NAME:
        name = hashlib.sha256(encoded).hexdigest()[:32]
    return output.with_name(f".{name}.{kind}")


def _reserve(stream: BinaryIO, size: int) -> None:
    """Take the disk space of the whole file now: later, a full disk would cost all the work."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        # Some file systems cannot reserve: there a full disk shows while rows are written.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _close_quietly(stream: BinaryIO) -> None:
    """Close a file on the way out of an error, which is the one to tell of."""
    with contextlib.suppress(OSError):
        stream.close()


def _write_whole(stream: BinaryIO, content: bytes) -> None:
    """Write to a file without a buffer, which may take only a part at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def _format_line(record: _Heading | _Written) -> str:
    return json.dumps(to_plain(record)) + "\n"


def _read_lines(path: Path) -> list[Any]:
    """The whole lines of a journal up to the first that is not whole: a kill may cut one off."""
    values: list[Any] = []
    no_line = (FileNotFoundError, ValueError, RecursionError)
    with contextlib.suppress(*no_line), path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            values.append(json.loads(line))
    return values
