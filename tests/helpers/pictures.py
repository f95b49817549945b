"""Image files made in memory: of every format, and some that no library would write."""

import struct
import zlib
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

Colour: TypeAlias = tuple[int, int, int]
Corners: TypeAlias = tuple[Colour, Colour]
TiffTag: TypeAlias = tuple[int, str, Sequence[int | bytes]]  # number, struct code, values

RED = (200, 30, 40)
GREEN = (20, 180, 60)
BLUE = (10, 60, 220)
WHITE = (255, 255, 255)
SIZE = (64, 48)
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
_TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "Q": 16}


def gray(level: int) -> Colour:
    """The gray of a level."""
    return level, level, level


def two_colours(
    mode: str = "RGB", left: object = RED, right: object = BLUE, *, size: tuple[int, int] = SIZE
) -> Image.Image:
    """64 × 48 pixels, `left` in the left half, `right` in the right one."""
    width, height = size
    image = Image.new(mode, size, left)  # type: ignore[arg-type]
    image.paste(right, (width // 2, 0, width, height))  # type: ignore[arg-type]
    return image


def noise(size: tuple[int, int] = (80, 70)) -> Image.Image:
    """Pixels that no encoder makes small."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def corners(image: Image.Image) -> Corners:
    """Colours near the top left and the bottom right corner."""
    width, height = image.size
    inset_x, inset_y = min(2, (width - 1) // 2), min(2, (height - 1) // 2)
    first = image.getpixel((inset_x, inset_y))
    last = image.getpixel((width - 1 - inset_x, height - 1 - inset_y))
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    return first[:3], last[:3]  # type: ignore[return-value]


def save(image: Image.Image, **options: Any) -> bytes:
    """The file that Pillow makes of an image."""
    buffer = BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, **options: Any) -> bytes:
    """A file of two colours that says how it is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(two_colours(), exif=exif, **options)


def animation(kind: str) -> bytes:
    """Two frames, the second one green."""
    frames = [two_colours(), two_colours(left=GREEN, right=GREEN)]
    return save(frames[0], format=kind, save_all=True, append_images=frames[1:], lossless=True)


def gray16(values: tuple[int, int], order: str) -> bytes:
    """Pixels of 64 × 48, the values side by side."""
    row = np.repeat(np.array(values, order), 32)
    return np.tile(row, 48).tobytes()


def palette_image() -> Image.Image:
    """The left half is entry 0, red, the right one entry 1, blue."""
    image = Image.new("P", SIZE, 0)
    image.putpalette([*RED, *BLUE, *GREEN])
    image.paste(1, (32, 0, 64, 48))
    return image


def palette(transparency: int | bytes | None) -> bytes:
    """A PNG with a palette of red and blue, and perhaps a key or a table of alpha."""
    options = {} if transparency is None else {"transparency": transparency}
    return save(palette_image(), format="PNG", **options)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_file(
    size: tuple[int, int], *chunks: bytes, depth: int = 8, kind: int = 0, interlaced: int = 0
) -> bytes:
    """A PNG of a header, the chunks and an end; `kind` is 0 gray, 2 RGB, 3 palette, 6 RGBA."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, interlaced))
    return PNG_START + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def png_16(pixels: bytes, *, channels: int, key: bytes = b"") -> bytes:
    """A 64-pixel wide PNG with 16 bits a channel: Pillow does not save all of them."""
    row = 64 * channels * 2
    rows = [b"\0" + pixels[i : i + row] for i in range(0, len(pixels), row)]
    chunks = [png_chunk(b"tRNS", key)] if key else []
    chunks.append(png_chunk(b"IDAT", zlib.compress(b"".join(rows))))
    return png_file((64, len(rows)), *chunks, depth=16, kind={1: 0, 3: 2, 4: 6}[channels])


def png_interlaced() -> bytes:
    """Gray 40 and 90 in the seven passes of Adam7."""
    pixels = np.asarray(two_colours("L", 40, 90))
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    data = b""
    for top, left, down, across in (*passes, (1, 0, 2, 1)):
        data += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::across])
    return png_file(SIZE, png_chunk(b"IDAT", zlib.compress(data)), interlaced=1)


def png_claiming(size: tuple[int, int]) -> bytes:
    """A PNG of a few bytes whose header says how large it is."""
    return png_file(size, png_chunk(b"IDAT", zlib.compress(b"\0")))


def png_after_header(content: bytes, *chunks: bytes) -> bytes:
    """The same PNG with more chunks right behind its header."""
    return content[:33] + b"".join(chunks) + content[33:]


def png_pixels_in_pieces(piece: int) -> bytes:
    """Noise of which every chunk holds so many bytes."""
    rows = np.asarray(noise((320, 104)).convert("L"))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 0)
    parts = (data[start : start + piece] for start in range(0, len(data), piece))
    return png_file((320, 104), *(png_chunk(b"IDAT", part) for part in parts))


def zlib_bomb(megabytes: int) -> bytes:
    """Zeros, a thousandth of their size."""
    packer = zlib.compressobj(9)
    zeros = bytes(1_000_000)
    parts = [packer.compress(each) for each in repeat(zeros, megabytes)]
    return b"".join([*parts, packer.flush()])


def jpeg_segment(marker: int, data: bytes) -> bytes:
    """A marker and what follows it, with its length."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_after_start(content: bytes, *segments: bytes) -> bytes:
    """The same JPEG with more segments at its beginning."""
    return content[:2] + b"".join(segments) + content[2:]


def adobe_segment(transform: int) -> bytes:
    """Adobe's marker: 0 for components as they are, 1 for YCbCr, 2 for YCCK."""
    return jpeg_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))


def flat_jpeg(
    planes: Sequence[tuple[int, int]],
    *,
    size: tuple[int, int] = SIZE,
    frame: int = 0xC0,
    precision: int = 8,
    segments: bytes = b"",
    scans: bytes = b"",
) -> bytes:
    """A JPEG whose components have one level on the left and one on the right.

    `frame` is the marker that names the process, 0xC2 for a progressive one; `segments` come
    before it, `scans` behind the only scan, which holds the mean of every block.
    """
    width, height = size
    numbers = range(1, len(planes) + 1)
    across, down = -(-width // 8), -(-height // 8)
    layout = b"".join(bytes([number, 0x11, 0]) for number in numbers)
    header = struct.pack(">BHHB", precision, height, width, len(planes)) + layout
    progressive = frame == 0xC2
    chosen = b"".join(bytes([number, 0]) for number in numbers)
    scan = bytes([len(planes)]) + chosen + bytes([0, 0 if progressive else 63, 0])
    # With codes of four bits for the sizes of differences, and of one bit for the end of a block.
    tables = [
        jpeg_segment(0xDB, b"\0" + b"\x08" * 64),
        jpeg_segment(frame, header),
        jpeg_segment(0xC4, b"\0" + bytes([0, 0, 0, 12, *[0] * 12]) + bytes(range(12))),
        jpeg_segment(0xC4, b"\x10" + bytes([1, 1, *[0] * 14]) + b"\0\xe0"),
    ]
    end_of_block = "" if progressive else "0"
    bits: list[str] = []
    before = [0] * len(planes)
    for block in range(across * down):
        for number, levels in enumerate(planes):
            level = levels[block % across >= across // 2] - 128
            bits.append(_jpeg_difference(level - before[number]) + end_of_block)
            before[number] = level
    parts = [JPEG_START, segments, *tables, jpeg_segment(0xDA, scan), _jpeg_bits("".join(bits))]
    return b"".join([*parts, scans, JPEG_END])


def empty_scans(size: tuple[int, int], count: int, *, refining: bool = False) -> bytes:
    """Scans of a `flat_jpeg` of one component that say of all blocks that they hold no more."""
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    bits = []
    while blocks:
        run = min(blocks, 2**15 - 1) if blocks >= 2**14 else 1
        bits.append(f"10{run - 2**14:014b}" if run > 1 else "0")
        blocks -= run
    data = _jpeg_bits("".join(bits))
    first = jpeg_segment(0xDA, bytes([1, 1, 0, 1, 63, 0x01]))
    again = jpeg_segment(0xDA, bytes([1, 1, 0, 1, 63, 0x10])) if refining else first
    return first + data + (again + data) * (count - 1)


def _jpeg_difference(value: int) -> str:
    size = abs(value).bit_length()
    if not size:
        return "0000"
    return f"{size:04b}" + f"{value if value > 0 else value + 2**size - 1:0{size}b}"


def _jpeg_bits(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def gif_file(*blocks: bytes, size: tuple[int, int] = (8, 8), frame: bytes | None = None) -> bytes:
    """A GIF of black and white: blocks, then one frame of black."""
    screen = struct.pack("<HHBBB", *size, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + b"".join(blocks) + (frame or gif_frame()) + b";"


def gif_frame(*, place: tuple[int, int] = (0, 0), size: tuple[int, int] = (8, 8)) -> bytes:
    """A frame of black, of which there are 64 pixels."""
    # Every pair behind a code that clears the table, so that all codes keep their three bits; the
    # lowest bit of a code and of a byte comes first.
    bits = "001000000" * 32 + "101"
    bits += "0" * (-len(bits) % 8)
    data = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    head = b"," + struct.pack("<HHHHB", *place, *size, 0)
    return head + b"\x02" + bytes([len(data)]) + data + b"\0"


def bmp_file(
    rows: Iterable[bytes],
    *,
    bits: int,
    colours: Sequence[Colour] = (),
    height: int = 48,
    compression: int = 0,
) -> bytes:
    """A BMP 64 pixels wide of rows as they lie in the file; a negative height is top-down."""
    table = b"".join(bytes([blue, green, red, 0]) for red, green, blue in colours)
    pixels = b"".join(rows)
    start = 54 + len(table)
    sizes = (compression, len(pixels), 0, 0, len(colours), 0)
    header = struct.pack("<IiiHHIIiiII", 40, 64, height, 1, bits, *sizes)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + table + pixels


def tiff_tags(
    size: tuple[int, int] = SIZE, *, bits: Sequence[int] = (8,), more: Sequence[TiffTag] = ()
) -> list[TiffTag]:
    """Tags of an uncompressed gray or RGB image in one strip, those in `more` instead or too."""
    width, height = size
    tags: list[TiffTag] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", bits),
        (259, "H", [1]),
        (262, "H", [2 if len(bits) > 1 else 1]),
        (277, "H", [len(bits)]),
        (278, "I", [height]),
    ]
    known = {number: (number, code, values) for number, code, values in [*tags, *more]}
    return [known[number] for number in sorted(known)]


def tiff_file(
    tags: Sequence[TiffTag],
    pixels: bytes = b"",
    *,
    order: str = "<",
    following: int = 0,
    counts: dict[int, int] | None = None,
) -> bytes:
    """A TIFF of one directory, which is at byte 8, and pixels behind it.

    Without other places and lengths for strips (273, 279) these are those of the pixels.
    `following` is where the next directory is said to be, `counts` how many values tags claim.
    """
    numbers = {number for number, _, _ in tags}
    entries = list(tags)
    start = 8 + 2 + 12 * (len(tags) + 2 * (not numbers & {273, 324})) + 4
    values = {number: struct.pack(f"{order}{len(v)}{code}", *v) for number, code, v in tags}
    outside = b"".join(data for data in values.values() if len(data) > 4)
    if not numbers & {273, 324}:
        for number, value in ((273, start + len(outside)), (279, len(pixels))):
            entries.append((number, "I", [value]))
            values[number] = struct.pack(f"{order}I", value)
    directory, place = struct.pack(f"{order}H", len(entries)), start
    for number, code, of_tag in sorted(entries):
        data = values[number]
        count = (counts or {}).get(number, len(of_tag))
        directory += struct.pack(f"{order}HHI", number, _TIFF_TYPES[code], count)
        directory += data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(f"{order}I", place)
        place += len(data) if len(data) > 4 else 0
    mark = b"II" if order == "<" else b"MM"
    ends = struct.pack(f"{order}I", following)
    return mark + struct.pack(f"{order}HI", 42, 8) + directory + ends + outside + pixels


def tiff_of(values: tuple[float, float], dtype: str) -> bytes:
    """A gray TIFF of numbers of any kind, the values side by side."""
    pixels = np.tile(np.repeat(np.array(values, dtype), 32), (48, 1))
    return save(Image.fromarray(pixels), format="TIFF")
