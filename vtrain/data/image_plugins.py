"""Decoders of the extras `heif` and `jxl`: each is loaded for the first file that needs it."""

import importlib
from functools import cache
from typing import Any, BinaryIO

from PIL import Image, ImageFile

from vtrain.data.formats import HEIC, JPEG_XL, Format

_MAX_BOXES = 1_000
_CODESTREAM = b"\xff\x0a"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def open_by_extra(file: BinaryIO, found: Format) -> ImageFile.ImageFile:
    """Open a file of a format that an installed extra reads; other decoders do not see it."""
    _load_heif() if found is HEIC else _load_jxl()
    return Image.open(file, formats=("HEIF" if found is HEIC else "JXL",))


@cache
def _load_heif() -> None:
    # Loaders read with a process for each core. Only the main picture of a file counts.
    importlib.import_module("pillow_heif").register_heif_opener(
        decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
    )


@cache
def _load_jxl() -> None:
    importlib.import_module("pillow_jxl")
    plugin: Any = importlib.import_module("pillow_jxl.JpegXLImagePlugin")
    plugin.DECODE_THREADS = 0


def read_early_size(file: BinaryIO, found: Format) -> tuple[int, int] | None:
    """Width and height of a file whose decoder does all its work when it opens it.

    Raises:
        ValueError: the file does not say its size.
    """
    if found is not JPEG_XL:
        return None
    file.seek(0)
    start = file.read(16)
    if not start.startswith(_CODESTREAM):
        start = _find_codestream(file)
    return _parse_size(start)


def _find_codestream(file: BinaryIO) -> bytes:
    """The first bytes of the codestream that lies in one of the boxes of a JPEG XL file."""
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        head = file.read(36)
        size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            found = head[start + 4 * (kind == b"jxlp") :]
            if found.startswith(_CODESTREAM):
                return found
        if size < start:
            break
        position += size
    raise ValueError("no codestream")


def _parse_size(start: bytes) -> tuple[int, int]:
    """The size header of a codestream: numbers of varying length, the lowest bit first."""
    bits = int.from_bytes(start[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def take_edge() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = take_edge()
    ratio = take(3)
    if ratio == 0:
        return take_edge(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height
