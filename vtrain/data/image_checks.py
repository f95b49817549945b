"""Reads every image of a data set once: whether it can be read, and where asked for its facts."""

import hashlib
import os
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from enum import IntFlag
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from vtrain.data.file_pool import map_images
from vtrain.data.image_names import EXTRAS, INSTALLED_EXTRAS
from vtrain.data.image_sets import PackedPaths, SkippedFile
from vtrain.data.images import CHECK_RULES, check_image, read_image, read_whole
from vtrain.data.kept_scans import ScanFile, is_settled
from vtrain.data.tars import FileStatus, find_status
from vtrain.system.reporter import Progress, Reporter
from vtrain.system.signals import shield_worker, stop_signals_blocked

THUMB_EDGE = 32  # pixels; 1 kB an image tells photographs of one kind apart
# Reduced in whole steps before it is resized: as good, and three times as fast.
_REDUCED_EDGE = 2 * THUMB_EDGE
# Images that each process reads before what was found is written: what a kill loses.
_PIECE_FILES = 1_024
# A file of so many times as many images as there are, but no fewer than so many, starts anew.
_MAX_GROWTH = 4
_MIN_LIMIT = 100_000
_FACT_RULES = 2  # to be raised when what is kept changes
_NO_KEY = 0
_NO_SIZE = 2**64 - 1  # -1 as a signed number
# So many files are asked about by several processes; fewer take less time than starting those.
_MIN_PARALLEL = 100_000
_BLOCK_FILES = 16_384

# Pillow's name of each format that is read, and the suffixes that go with it.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif"),  # a JPEG with further pictures, as some phones write
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "other": (),
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}
_FORMAT_NUMBERS = {name: number for number, name in enumerate(FORMATS)}


class Trait(IntFlag):
    """What is odd about an image file, without being wrong."""

    TRANSPARENT = 1
    DEEP = 2
    CMYK = 4
    PALETTE = 8
    TURNED = 16
    ANIMATED = 32


FACTS = np.dtype(
    [
        ("digest", "V16"),  # of the file's bytes
        ("width", "<u4"),  # pixels, upright
        ("height", "<u4"),
        ("format", "u1"),  # index into FORMATS
        ("traits", "u1"),
        ("thumb", "u1", (THUMB_EDGE, THUMB_EDGE)),  # gray
    ]
)
_NUMBERS = struct.Struct("<IIBB")  # those of FACTS
# What is kept of every image that can be read; its facts lie apart: most do not ask for them.
_KNOWN = np.dtype([("key", "<u8"), ("digest", "V16")])

Facts: TypeAlias = NDArray[Any]  # [N] of FACTS
Keys: TypeAlias = NDArray[np.uint64]  # [N], hashes of what `os.stat` tells of files
Sizes: TypeAlias = NDArray[np.int64]  # [N], bytes
Digests: TypeAlias = NDArray[np.void]  # [N], 16 bytes each, of the bytes of files


@dataclass(frozen=True, slots=True)
class Inspection:
    """Which images can be read, and what is known of them.

    `readable` is bool `[N]`, and `bad` are the others with their reasons, in order. `sizes` `[N]`
    are those of the files in bytes, -1 for one that is not there. `digests` `[N]` are of the files'
    bytes, `facts` `[N]` of `FACTS`, or `[0]` if they were not asked for; both are zeros for images
    that cannot be read. `read` images were read for this, `known` ones are unchanged since they
    were.
    """

    readable: NDArray[np.bool_]
    bad: list[SkippedFile]
    sizes: Sizes
    digests: Digests
    facts: Facts
    read: int
    known: int


def inspect_images(
    paths: Sequence[Path],
    root: Path,
    *,
    count: int,
    with_facts: bool,
    choose_workers: Callable[[int], int],
    bar: Progress,
    reporter: Reporter,
) -> Inspection:
    """Read every image once, or not at all if it was read before and has not changed since.

    An image is known by device, inode, size and times of its file (and its place in an archive),
    and only to the Pillow that read it.

    Args:
        paths: images below `root`.
        root: the folder, archive or list that they come from.
        count: images of this root in all, of which `paths` may be a part.
        with_facts: whether more is asked than that an image can be read.
        choose_workers: processes for a number of images to be read.
        bar: counts the images.
        reporter: is told once if nothing can be kept.
    """
    keys, sizes = stat_images(paths, workers=choose_workers(len(paths)))
    decoders = [PIL.__version__, *(version(EXTRAS[extra][0]) for extra in INSTALLED_EXTRAS)]
    kept = ScanFile("images", root, (CHECK_RULES, _FACT_RULES, *decoders))
    limit = max(_MIN_LIMIT, _MAX_GROWTH * count)
    readable, digests, facts = _find_known(kept, keys, with_facts, limit)
    unknown = np.flatnonzero(~readable)
    bar.update(len(paths) - len(unknown))
    workers = choose_workers(len(unknown))
    step = max(workers, 1) * _PIECE_FILES
    read: Callable[[Path], bytes] = inspect_image if with_facts else check_image
    bad: list[SkippedFile] = []
    for first in range(0, len(unknown), step):
        piece = unknown[first : first + step]
        some = [paths[position] for position in piece.tolist()]
        found = map_images(read, some, workers=workers, bar=bar)
        for position, path, each in zip(piece.tolist(), some, found, strict=True):
            if isinstance(each, str):
                bad.append(SkippedFile(path, each))
                continue
            readable[position] = True
            digests[position] = each[: digests.itemsize]
            if with_facts:
                facts[position] = np.frombuffer(each, FACTS)[0]
        new = piece[readable[piece] & (keys[piece] != _NO_KEY)]
        if len(new):
            known = np.empty(len(new), _KNOWN)
            known["key"], known["digest"] = keys[new], digests[new]
            values = facts[new].tobytes() if with_facts else b""
            kept.add(known.tobytes(), values, reporter=reporter)
    read_now = len(unknown)
    return Inspection(readable, bad, sizes, digests, facts, read_now, len(paths) - read_now)


def _find_known(
    kept: ScanFile, keys: Keys, with_facts: bool, limit: int
) -> tuple[NDArray[np.bool_], Digests, Facts]:
    """Which of the images with these keys are known to be readable; their digests and facts."""
    pieces = kept.read(values=with_facts)
    if sum(len(part) for part, _ in pieces) > limit * _KNOWN.itemsize:
        kept.restart()
        pieces = []
    if with_facts:
        pieces = [piece for piece in pieces if piece[1]]
    stored = np.frombuffer(b"".join(part for part, _ in pieces), _KNOWN)
    known, first = np.unique(stored["key"], return_index=True)
    digests = np.zeros(len(keys), _KNOWN["digest"])
    facts = np.zeros(len(keys) if with_facts else 0, FACTS)
    if not len(known):
        return np.zeros(len(keys), np.bool_), digests, facts
    places = np.searchsorted(known, keys).clip(max=len(known) - 1)
    readable: NDArray[np.bool_] = (known[places] == keys) & (keys != _NO_KEY)
    found = first[places[readable]]
    digests[readable] = stored["digest"][found]
    if with_facts:
        values = np.frombuffer(b"".join(part for _, part in pieces), FACTS)
        del pieces  # facts are 1 kB an image: no second copy of them
        facts[readable] = values[found]
    return readable, digests, facts


def stat_images(paths: Sequence[Path], *, workers: int) -> tuple[Keys, Sizes]:
    """Key and size of each image as it is now, asked for by several processes if there are many.

    A key is 0 where the file is not there, or may change without a trace in this moment.
    """
    started = time.time_ns()
    texts = paths.texts() if isinstance(paths, PackedPaths) else map(str, paths)
    blocks = ("\0".join(block) for block in iter(lambda: list(islice(texts, _BLOCK_FILES)), []))
    read = partial(_stat_block, started_ns=started)
    if workers and len(paths) >= _MIN_PARALLEL:
        with ProcessPoolExecutor(workers, initializer=shield_worker) as pool:
            with stop_signals_blocked():
                contents = pool.map(read, blocks)
            content = b"".join(contents)
    else:
        content = b"".join(map(read, blocks))
    columns = np.frombuffer(content, np.uint64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1].astype(np.int64)


def _stat_block(texts: str, *, started_ns: int) -> bytes:
    """Key and size, 8 bytes each, of every path in a text; the separator is in no path."""
    columns = array("Q")
    for text in texts.split("\0"):
        columns.extend(_stat_image(text, started_ns))
    return columns.tobytes()


def _stat_image(path: str, started_ns: int) -> tuple[int, int]:
    try:
        status: os.stat_result | FileStatus = os.stat(path)  # noqa: PTH116  # one of many
    except NotADirectoryError:
        try:
            status = find_status(path)
        except OSError:
            return _NO_KEY, _NO_SIZE
    except (OSError, ValueError):
        return _NO_KEY, _NO_SIZE
    if not is_settled(status.st_mtime_ns, status.st_ctime_ns, started_ns):
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


def inspect_image(path: Path) -> bytes:
    """The record of an image: `FACTS` as bytes.

    Raises:
        ImageError: it cannot be read.
    """
    whole = read_whole(path)
    # Plain numbers: this is a part of the time that a large set takes.
    traits = (
        1 * whole.transparent
        | 2 * whole.deep
        | 4 * (whole.mode == "CMYK")
        | 8 * (whole.mode in ("P", "PA"))
        | 16 * whole.turned
        | 32 * whole.animated
    )
    number = _FORMAT_NUMBERS.get(whole.format, _FORMAT_NUMBERS["other"])
    return whole.digest + _NUMBERS.pack(*whole.image.size, number, traits) + shrink(whole.image)


def shrink(image: Image.Image) -> bytes:
    """Gray values `[32, 32]` of the whole image, whatever its shape."""
    factor = min(image.size) // _REDUCED_EDGE
    if factor > 1:
        image = image.reduce(factor)
    edges = (THUMB_EDGE, THUMB_EDGE)
    return image.convert("L").resize(edges, Image.Resampling.BILINEAR).tobytes()


def hash_pixels(path: Path) -> bytes:
    """A hash of an image as every command sees it: its size and all its pixels.

    Raises:
        ImageError: it cannot be read.
    """
    image = read_image(path)
    return hashlib.sha256(b"%d %d " % image.size + image.tobytes()).digest()


def format_name(number: int) -> str:
    """The name of a format in the facts."""
    return list(FORMATS)[number]


def find_wrong_suffixes(paths: Sequence[Path], inspection: Inspection) -> list[int]:
    """Positions of readable images whose format is not what their suffix says."""
    formats = list(FORMATS.values())
    return [
        position
        for position in np.flatnonzero(inspection.readable).tolist()
        if (suffix := paths[position].suffix.lower())
        and suffix not in formats[int(inspection.facts["format"][position])]
    ]


def hash_all_pixels(
    paths: Sequence[Path], *, choose_workers: Callable[[int], int]
) -> list[bytes | None]:
    """`hash_pixels` of each image, None where it cannot be read any more."""
    found = map_images(hash_pixels, paths, workers=choose_workers(len(paths)))
    return [None if isinstance(each, str) else each for each in found]
