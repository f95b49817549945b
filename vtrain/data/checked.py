"""Which images were found good, kept in the cache folder, so that none is checked twice."""

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray

from vtrain.data.images import CHECK_RULES, check_images
from vtrain.data.kept_records import KeptRecords
from vtrain.data.manifest import Notify, is_settled, kept_file
from vtrain.data.shards import FileStatus, find_status
from vtrain.records import PackedPaths, SkippedFile
from vtrain.signals import shield_worker, stop_signals_blocked

# Files that each process checks before the results are written: what a kill loses.
_PIECE_FILES = 1_024
# A file of results may hold so many times as many as there are images; then it starts anew.
_MAX_GROWTH = 8
_MIN_LIMIT = 1_000_000
_NO_KEY = 0
_NO_SIZE = 2**64 - 1  # -1 as a signed number
# So many files are asked about by several processes; fewer take less time than starting those.
_MIN_PARALLEL = 100_000
_BLOCK_FILES = 16_384

Sizes: TypeAlias = NDArray[np.int64]
Keys: TypeAlias = NDArray[np.uint64]  # [N], hashes of files as they were when they were found good


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The unusable images in their order, and how many were checked and how many known.

    `sizes` in bytes are those of all images `[N]`, -1 for one that is not there.
    """

    bad: list[SkippedFile]
    checked: int
    known: int
    sizes: Sizes = field(default_factory=lambda: np.empty(0, np.int64), compare=False)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Keys `[N]`, 0 for files that cannot be known, and sizes `[N]` in bytes."""

    keys: Keys
    sizes: Sizes


class CheckedFiles:
    """The good images below one root: 8 bytes each, in memory and on disk.

    An image is known by device, inode, size and times of its file (and its place in an archive),
    and only to the Pillow that checked it. What is damaged, or was written by something else,
    counts as nothing.

    Args:
        root: the folder, archive or list that the images come from.
        count: images of this root in all, which bounds the size of the file.
        notify: is told once if nothing can be kept.
    """

    def __init__(self, root: Path, *, count: int, notify: Notify) -> None:
        place = os.fsencode(root.resolve())
        rules = f"{CHECK_RULES} {PIL.__version__} ".encode()
        self._records = KeptRecords(
            kept_file("checked", root),
            head=b"vtrain checks 1 " + hashlib.sha256(rules + place).digest(),
            dtype=np.dtype("<u8"),
            limit=max(_MIN_LIMIT, _MAX_GROWTH * count),
            what="which images are good",
            notify=notify,
        )
        self._known: Keys = np.unique(self._records.load()).astype(np.uint64)

    def __len__(self) -> int:
        return len(self._known)

    def find_unknown(self, keys: Keys) -> NDArray[np.intp]:
        """Positions of the keys that are not those of good images, in order."""
        if not len(self._known):
            return np.arange(len(keys))
        places = np.searchsorted(self._known, keys).clip(max=len(self._known) - 1)
        return np.flatnonzero((self._known[places] != keys) | (keys == _NO_KEY))

    def add(self, keys: Keys) -> None:
        """Keep the keys of good images, for good: a kill right after does not lose them."""
        self._records.add(keys[keys != _NO_KEY])


def check_unknown(
    paths: Sequence[Path],
    known: CheckedFiles,
    *,
    choose_workers: Callable[[int], int],
    progress: Callable[[int], object],
) -> CheckResult:
    """Check the images that are not known to be good, and keep those that turn out to be.

    Args:
        paths: images of the root that `known` belongs to.
        known: is told of the good ones while others are still checked.
        choose_workers: processes for a number of images to be checked.
        progress: called with the number of images done since its last call.
    """
    facts = read_facts(paths, workers=choose_workers(len(paths)))
    unknown = known.find_unknown(facts.keys)
    progress(len(paths) - len(unknown))
    workers = choose_workers(len(unknown))
    step = max(workers, 1) * _PIECE_FILES
    bad: list[SkippedFile] = []
    for first in range(0, len(unknown), step):
        positions = unknown[first : first + step]
        piece = [paths[position] for position in positions.tolist()]
        found = check_images(piece, workers=workers, progress=progress)
        bad_paths = {each.path for each in found}
        good = [path not in bad_paths for path in piece]
        known.add(facts.keys[positions[np.array(good)]])
        bad += found
    return CheckResult(bad, len(unknown), len(paths) - len(unknown), facts.sizes)


def read_facts(paths: Sequence[Path], *, workers: int) -> FileFacts:
    """Key and size of each image as it is now, asked for by several processes if there are many."""
    started = time.time_ns()
    texts = paths.texts() if isinstance(paths, PackedPaths) else map(str, paths)
    blocks = ("\0".join(block) for block in iter(lambda: list(islice(texts, _BLOCK_FILES)), []))
    read = partial(_read_block, started_ns=started)
    if workers and len(paths) >= _MIN_PARALLEL:
        with ProcessPoolExecutor(workers, initializer=shield_worker) as pool:
            with stop_signals_blocked():
                contents = pool.map(read, blocks)
            content = b"".join(contents)
    else:
        content = b"".join(map(read, blocks))
    columns = np.frombuffer(content, np.uint64).reshape(-1, 2)
    return FileFacts(columns[:, 0], columns[:, 1].astype(np.int64))


def _read_block(texts: str, *, started_ns: int) -> bytes:
    """Key and size, 8 bytes each, of every path in a text; the separator is in no path."""
    columns = array("Q")
    for text in texts.split("\0"):
        columns.extend(_read_fact(text, started_ns))
    return columns.tobytes()


def _read_fact(path: str, started_ns: int) -> tuple[int, int]:
    """Key and size; no key for what changes in this moment, nor for what is not there."""
    try:
        status: os.stat_result | FileStatus = os.stat(path)  # noqa: PTH116  # one of many
    except NotADirectoryError:
        try:
            status = find_status(path)
        except OSError:
            return _NO_KEY, _NO_SIZE
    except (OSError, ValueError):
        return _NO_KEY, _NO_SIZE
    if not is_settled(status, started_ns):
        return _NO_KEY, status.st_size
    facts = b"%d %d %d %d %d %d" % (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.offset if isinstance(status, FileStatus) else 0,
    )
    key = int.from_bytes(hashlib.blake2b(facts, digest_size=8).digest(), "little")
    return key, status.st_size
