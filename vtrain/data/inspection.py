"""The facts of each image that a check of a data set needs, kept so that none is read twice."""

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from vtrain.data.checked import CheckedFiles, read_facts
from vtrain.data.images import CHECK_RULES, map_images, read_image, read_whole
from vtrain.data.kept_records import KeptRecords
from vtrain.data.manifest import Notify, kept_file
from vtrain.records import SkippedFile

THUMB_EDGE = 32  # pixels; 1 kB an image tells photographs of one kind apart
# Reduced in whole steps before it is resized: as good, and three times as fast.
_REDUCED_EDGE = 2 * THUMB_EDGE
# Images that are read before what was found is written: what a kill loses.
_PIECE_FILES = 1_024
_MIN_LIMIT = 100_000
_MAX_GROWTH = 4  # a file of so many times as many records as there are images starts anew
_RULES = 1  # to be raised when the facts change

# Pillow's name of each format that is read, and the suffixes that go with it.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jfif"),  # a JPEG with further pictures, as some phones write
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
}
_FORMAT_NAMES = tuple(FORMATS)
_FORMAT_NUMBERS = {name: number for number, name in enumerate(FORMATS)}
_OTHER_FORMAT = len(FORMATS)


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
_KEPT = np.dtype([("key", "<u8"), ("facts", FACTS)])

Facts: TypeAlias = NDArray[Any]  # [N] of FACTS


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts of images, `[N]` of `FACTS`, and which of them could be read.

    `readable` is bool `[N]`; the facts of the others are zeros. `bad` are those with their reasons,
    in order. `read` images were read for this, `known` ones were unchanged since they were.
    """

    facts: Facts
    readable: NDArray[np.bool_]
    bad: list[SkippedFile]
    read: int
    known: int


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
    number = _FORMAT_NUMBERS.get(whole.format, _OTHER_FORMAT)
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
    return _FORMAT_NAMES[number] if number < len(_FORMAT_NAMES) else "other"


def inspect_images(
    paths: Sequence[Path],
    root: Path,
    *,
    count: int,
    choose_workers: Callable[[int], int],
    progress: Callable[[int], object],
    notify: Notify,
) -> Inspection:
    """Read every image once, or not at all if it was read before and has not changed since.

    Images that turn out to be good need no check before training either.

    Args:
        paths: images below `root`.
        root: the folder, archive or list that they come from.
        count: images of this root in all, of which `paths` may be a part.
        choose_workers: processes for a number of images to be read.
        progress: called with the number of images done since its last call.
        notify: is told once if nothing can be kept.
    """
    files = read_facts(paths, workers=choose_workers(len(paths)))
    records = _open_records(root, count, notify)
    facts, readable = _look_up(records.load(), files.keys)
    unknown = np.flatnonzero(~readable)
    progress(len(paths) - len(unknown))
    good = CheckedFiles(root, count=count, notify=lambda _: None)
    workers = choose_workers(len(unknown))
    step = max(workers, 1) * _PIECE_FILES
    bad: list[SkippedFile] = []
    for first in range(0, len(unknown), step):
        piece = unknown[first : first + step]
        some = [paths[position] for position in piece.tolist()]
        found = map_images(inspect_image, some, workers=workers, progress=progress)
        for position, path, each in zip(piece.tolist(), some, found, strict=True):
            if isinstance(each, str):
                bad.append(SkippedFile(path, each))
            else:
                facts[position] = np.frombuffer(each, FACTS)[0]
                readable[position] = True
        new = piece[readable[piece] & (files.keys[piece] != 0)]
        _keep(records, good, files.keys[new], facts[new])
    return Inspection(facts, readable, bad, len(unknown), len(paths) - len(unknown))


def _open_records(root: Path, count: int, notify: Notify) -> KeptRecords:
    place = os.fsencode(root.resolve())
    rules = f"{_RULES} {CHECK_RULES} {PIL.__version__} ".encode()
    return KeptRecords(
        kept_file("inspected", root),
        head=b"vtrain facts 1 " + hashlib.sha256(rules + place).digest(),
        dtype=_KEPT,
        limit=max(_MIN_LIMIT, _MAX_GROWTH * count),
        what="what was found out of the images",
        notify=notify,
    )


def _look_up(kept: NDArray[Any], keys: NDArray[np.uint64]) -> tuple[Facts, NDArray[np.bool_]]:
    """The facts of the files with these keys, and for which of them there are any."""
    facts = np.zeros(len(keys), FACTS)
    if not len(kept):
        return facts, np.zeros(len(keys), np.bool_)
    known, first = np.unique(kept["key"], return_index=True)
    places = np.searchsorted(known, keys).clip(max=len(known) - 1)
    found: NDArray[np.bool_] = (known[places] == keys) & (keys != 0)
    facts[found] = kept["facts"][first[places[found]]]
    return facts, found


def _keep(records: KeptRecords, good: CheckedFiles, keys: NDArray[np.uint64], facts: Facts) -> None:
    rows = np.zeros(len(keys), _KEPT)
    rows["key"], rows["facts"] = keys, facts
    records.add(rows)
    good.add(keys[good.find_unknown(keys)])


def find_wrong_suffixes(paths: Sequence[Path], inspection: Inspection) -> list[int]:
    """Positions of readable images whose format is not what their suffix says."""
    formats = [FORMATS[name] for name in _FORMAT_NAMES] + [()]
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
