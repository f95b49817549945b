"""Records of one size in a file of the cache folder, to which more are added at its end."""

import hashlib
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtrain.data.manifest import Notify, say_not_kept
from vtrain.errors import VtrainError
from vtrain.files import atomic_write

_PIECE_HEAD = struct.Struct("<I8s")  # number of records, checksum of them


class KeptRecords:
    """Records of `dtype` in pieces, each with a checksum; what is damaged counts as nothing.

    Args:
        file: need not exist.
        head: what the file begins with; one that begins with something else is written anew.
        dtype: little-endian, of one record.
        limit: a file of more records starts anew.
        what: they tell, for the message if they cannot be kept.
        notify: is told that once.
    """

    def __init__(
        self,
        file: Path,
        *,
        head: bytes,
        dtype: np.dtype[Any],
        limit: int,
        what: str,
        notify: Notify,
    ) -> None:
        self._file, self._head, self._dtype, self._limit = file, head, dtype, limit
        self._what = what
        self._notify: Notify | None = notify
        self._before: bytes | None = b""  # whole pieces of a damaged file; None: it is whole

    def load(self) -> NDArray[Any]:
        """All records `[N]`, in the order in which they were added."""
        content = b""
        with suppress(OSError):
            content = self._file.read_bytes()
        pieces, end = self._find_pieces(content)
        count = sum(stop - start for start, stop in pieces) // self._dtype.itemsize
        records = np.empty(count if count <= self._limit else 0, self._dtype)
        if count > self._limit or not content.startswith(self._head):
            return records
        position = 0
        for start, stop in pieces:
            piece = np.frombuffer(content[start:stop], self._dtype)
            records[position : position + len(piece)] = piece
            position += len(piece)
        self._before = None if end == len(content) else content[len(self._head) : end]
        return records

    def add(self, records: NDArray[Any]) -> None:
        """Keep records for good: a kill right after does not lose them. `load` comes first."""
        if self._notify is None or not len(records):
            return
        piece = _pack_piece(records.astype(self._dtype))
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._before is None:
                with self._file.open("ab", buffering=0) as stream:
                    stream.write(piece)
            else:
                with atomic_write(self._file) as stream:
                    stream.write(self._head + self._before + piece)
                self._before = None
        except (OSError, VtrainError) as error:
            say_not_kept(self._what, self._file, error, self._notify)
            self._notify = None

    def _find_pieces(self, content: bytes) -> tuple[list[tuple[int, int]], int]:
        """Start and stop of the records of each whole piece, and where the last of them ends."""
        position, pieces = len(self._head), []
        while position < len(content):
            start = position + _PIECE_HEAD.size
            if start > len(content):
                break
            count, checksum = _PIECE_HEAD.unpack_from(content, position)
            stop = start + self._dtype.itemsize * count
            if stop > len(content) or _checksum(memoryview(content)[start:stop]) != checksum:
                break
            pieces.append((start, stop))
            position = stop
        return pieces, position


def _pack_piece(records: NDArray[Any]) -> bytes:
    content = records.tobytes()
    return _PIECE_HEAD.pack(len(records), _checksum(content)) + content


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()
