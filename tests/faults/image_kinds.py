"""Every kind of image file: read as it should look or refused, the same in every command."""

import atexit
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from tests.faults.case import Case, NotPossible
from tests.faults.child import try_in_child
from tests.faults.image_commands import CLASSES, Survey, same_in_all, silence_required, survey
from tests.helpers.pictures import (
    BLUE,
    GREEN,
    PNG_START,
    RED,
    SIZE,
    WHITE,
    Colour,
    Corners,
    TiffTag,
    adobe_segment,
    animation,
    bmp_file,
    corners,
    empty_scans,
    flat_jpeg,
    gif_file,
    gif_frame,
    gray,
    gray16,
    jpeg_after_start,
    jpeg_segment,
    noise,
    palette,
    palette_image,
    png_16,
    png_after_header,
    png_chunk,
    png_claiming,
    png_file,
    png_interlaced,
    png_pixels_in_pieces,
    save,
    tiff_file,
    tiff_of,
    tiff_tags,
    two_colours,
    with_orientation,
    zlib_bomb,
)
from vtrain.data.images import MAX_FILE_BYTES, MAX_SCANS, Found, check_image, read_image
from vtrain.errors import ImageError

UNKNOWN = "is not an image in a supported format"
BLACK = gray(0)
NOBODY = 65534
# What the commands need; transforms ask for an image of at least 32 pixels, 32 being the input.
MIN_EDGES = (None, 1, 32, 224)
# JPEG and lossy WEBP and AVIF round colours; nothing else does.
LOSSY = 10


@dataclass(frozen=True, slots=True)
class Reads:
    """An image and the colours near its top left and bottom right corners, give or take."""

    corners: Corners
    size: tuple[int, int] = SIZE
    tolerance: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """A file, and how it reads or what is in the reason why it does not.

    `file` is its name where the name matters. What is `slow` takes half a second to be made or
    read, and is not in the short form.
    """

    name: str
    build: Callable[[], bytes]
    expected: Reads | str
    file: str = ""
    slow: bool = False


def lossy(left: Colour = RED, right: Colour = BLUE, size: tuple[int, int] = SIZE) -> Reads:
    return Reads((left, right), size, LOSSY)


def turned(orientation: int, expected: Reads) -> Kind:
    return Kind(
        f"jpeg orientation {orientation}",
        lambda: with_orientation(orientation, format="JPEG", quality=95),
        expected,
    )


def jpeg(**options: Any) -> bytes:
    return save(two_colours(), format="JPEG", quality=95, **options)


def png(**options: Any) -> bytes:
    return save(two_colours(), format="PNG", **options)


def tiff(**options: Any) -> bytes:
    return save(two_colours(), format="TIFF", **options)


def exif_jpeg(exif: bytes) -> bytes:
    return jpeg(exif=b"Exif\0\0" + exif)


def gray_tiff(*, order: str = "<", **options: Any) -> bytes:
    return tiff_file(tiff_tags(), two_colours("L", 40, 90).tobytes(), order=order, **options)


def tiff_with(*more: TiffTag, **options: Any) -> bytes:
    return tiff_file(tiff_tags(more=more), two_colours("L", 40, 90).tobytes(), **options)


def tiled_tiff() -> bytes:
    tags = [tag for tag in tiff_tags() if tag[0] != 278]
    left, right = bytes([40]) * 32 * 48, bytes([90]) * 32 * 48
    start = 8 + 2 + 12 * 10 + 4 + 16
    tags += [(322, "I", [32]), (323, "I", [48])]
    tags += [(324, "I", [start, start + len(left)]), (325, "I", [len(left), len(right)])]
    return tiff_file(tags, left + right)


def rgb_16_tiff() -> bytes:
    row = np.repeat(np.array([RED, BLUE], "<u2") << 8 | 0xFF, 32, axis=0)
    return tiff_file(tiff_tags(bits=(16, 16, 16)), np.tile(row, (48, 1, 1)).tobytes())


def planar_tiff() -> bytes:
    """Red, green and blue one behind the other, in three strips."""
    planes = two_colours().split()
    tags = tiff_tags(bits=(8, 8, 8), more=[(284, "H", [2])])
    start = 8 + 2 + 12 * 10 + 4 + 6 + 24
    size = 64 * 48
    tags += [(273, "I", [start, start + size, start + 2 * size]), (279, "I", [size] * 3)]
    return tiff_file(tags, b"".join(plane.tobytes() for plane in planes))


def ppm(magic: str, body: bytes, *, size: tuple[int, int] = SIZE, top: str = " 255") -> bytes:
    return f"{magic}\n# a comment\n{size[0]} {size[1]}{top}\n".encode() + body


def plain(levels: tuple[object, object]) -> bytes:
    row = [*[str(levels[0])] * 32, *[str(levels[1])] * 32]
    return "\n".join([" ".join(row)] * 48).encode()


def rows(left: bytes, right: bytes) -> list[bytes]:
    """48 rows of which each has two halves."""
    return [left + right] * 48


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def replaced(content: bytes, position: int, other: bytes) -> bytes:
    return content[:position] + other + content[position + len(other) :]


def flip_last_checksum(content: bytes) -> bytes:
    """Of the pixels: behind it are the 12 bytes of the last chunk."""
    return flip(content, len(content) - 13)


def strip(width: int, height: int) -> bytes:
    return save(Image.new("RGB", (width, height), RED), format="PNG")


def claims_jpeg(size: tuple[int, int], **options: Any) -> bytes:
    """A small JPEG whose header says that it is larger."""
    content = flat_jpeg([(40, 90)], **options)
    mine, other = struct.pack(">HH", *reversed(SIZE)), struct.pack(">HH", *reversed(size))
    assert content.count(mine) == 1
    return content.replace(mine, other)


def text_chunk(kind: bytes) -> bytes:
    """A text of 70 MB in a small file."""
    head = {b"zTXt": b"note\0\0", b"iTXt": b"note\0\1\0\0\0", b"iCCP": b"note\0\0"}[kind]
    return png_after_header(png(), png_chunk(kind, head + zlib_bomb(70)))


def too_many_pixels_in_data() -> bytes:
    """Pixels of a small image that inflate to 100 MB."""
    return png_file(SIZE, png_chunk(b"IDAT", zlib_bomb(100)))


def archive() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("image.png", png())
    return buffer.getvalue()


def heic() -> bytes:
    brand = struct.pack(">I4s4sI4s", 24, b"ftyp", b"heic", 0, b"mif1") + b"heic"
    return brand + struct.pack(">I4s", 400, b"meta") + bytes(392)


def psd() -> bytes:
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 48, 64, 8, 3) + bytes(12 + 2 + 3 * 64 * 48)


def pdf() -> bytes:
    return b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"


def gif_with_offset() -> bytes:
    """A frame of 8 × 8 in the corner of a canvas of 16 × 16, behind which there is nothing."""
    return gif_file(size=(16, 16), frame=gif_frame(place=(0, 0)))


def gif_frames(count: int) -> bytes:
    return gif_file(gif_frame() * count)


def gif_of_large_frame(size: tuple[int, int]) -> bytes:
    """A frame larger than the screen: that counts too."""
    return gif_file(size=(8, 8), frame=gif_frame(size=size))


KINDS = (
    # JPEG
    Kind("jpeg", jpeg, lossy()),
    Kind("jpeg progressive", lambda: jpeg(progressive=True), lossy()),
    Kind("jpeg optimized, 4:2:0", lambda: jpeg(optimize=True, subsampling="4:2:0"), lossy()),
    Kind(
        "jpeg gray",
        lambda: save(two_colours("L", 40, 90), format="JPEG"),
        lossy(gray(40), gray(90)),
    ),
    Kind(
        "jpeg cmyk",
        lambda: save(two_colours("CMYK", (255, 0, 0, 0), (0, 0, 255, 0)), format="JPEG"),
        lossy((0, 255, 255), (255, 255, 0)),
    ),
    Kind(
        # As Photoshop writes them: inverted, so that 255 is no ink.
        "jpeg cmyk, adobe, inverted",
        lambda: flat_jpeg([(0, 255), (255, 255), (255, 0), (255, 255)], segments=adobe_segment(0)),
        lossy((0, 255, 255), (255, 255, 0)),
    ),
    Kind(
        "jpeg ycck, adobe, inverted",
        lambda: flat_jpeg(
            [(200, 90), (128, 128), (128, 128), (255, 255)], segments=adobe_segment(2)
        ),
        lossy(gray(55), gray(165)),
    ),
    Kind(
        "jpeg rgb, adobe, not turned to ycc",
        lambda: flat_jpeg([(200, 10), (30, 60), (40, 220)], segments=adobe_segment(0)),
        lossy(),
    ),
    Kind("jpeg 12 bits", lambda: flat_jpeg([(40, 90)], frame=0xC1, precision=12), UNKNOWN),
    Kind("jpeg restarts", lambda: jpeg(restart_marker_blocks=1), lossy()),
    Kind(
        "jpeg several pictures",
        lambda: save(
            two_colours(),
            format="MPO",
            quality=95,
            save_all=True,
            append_images=[two_colours(left=GREEN)],
        ),
        lossy(),
    ),
    Kind("jpeg one component", lambda: flat_jpeg([(40, 90)]), lossy(gray(40), gray(90))),
    Kind("jpeg two components", lambda: flat_jpeg([(40, 90), (1, 2)]), "is "),
    Kind(
        "jpeg of half a row of blocks",
        lambda: flat_jpeg([(40, 90)], size=(63, 41)),
        lossy(gray(40), gray(90), (63, 41)),
    ),
    Kind("jpeg adobe marker cut", lambda: jpeg_after_start(jpeg(), b"\xff\xee\0\x06Adob"), lossy()),
    # PNG
    Kind("png", png, Reads((RED, BLUE))),
    Kind("png 1 bit", lambda: save(two_colours("1", 0, 1), format="PNG"), Reads((BLACK, WHITE))),
    Kind(
        "png gray",
        lambda: save(two_colours("L", 40, 90), format="PNG"),
        Reads((gray(40), gray(90))),
    ),
    Kind(
        "png gray, key",
        lambda: save(two_colours("L", 40, 90), format="PNG", transparency=40),
        Reads((WHITE, gray(90))),
    ),
    Kind(
        "png gray and alpha",
        lambda: save(two_colours("LA", (40, 255), (90, 0)), format="PNG"),
        Reads((gray(40), WHITE)),
    ),
    Kind("png palette", lambda: palette(None), Reads((RED, BLUE))),
    Kind("png palette, key", lambda: palette(0), Reads((WHITE, BLUE))),
    Kind("png palette, table of alpha", lambda: palette(b"\xff\x00"), Reads((RED, WHITE))),
    Kind("png key", lambda: png(transparency=RED), Reads((WHITE, BLUE))),
    Kind(
        "png rgba",
        lambda: save(two_colours("RGBA", (*RED, 255), (*BLUE, 0)), format="PNG"),
        Reads((RED, WHITE)),
    ),
    Kind(
        "png rgba, half through",
        lambda: save(two_colours("RGBA", (0, 0, 0, 128), (0, 0, 0, 51)), format="PNG"),
        Reads((gray(127), gray(204))),
    ),
    Kind(
        "png gray 16 bits",
        lambda: png_16(gray16((0x1234, 0xFEDC), ">u2"), channels=1),
        Reads((gray(0x12), gray(0xFE))),
    ),
    Kind(
        "png gray 16 bits, key",
        lambda: png_16(gray16((0x1234, 0xFEDC), ">u2"), channels=1, key=b"\x12\x34"),
        Reads((WHITE, gray(0xFE))),
    ),
    Kind(
        "png rgb 16 bits",
        lambda: png_16(b"\x12\xff\x34\xff\x56\xff" * 64 * 48, channels=3),
        Reads(((0x12, 0x34, 0x56), (0x12, 0x34, 0x56))),
    ),
    Kind(
        "png rgba 16 bits",
        lambda: png_16(b"\x12\xff\x34\xff\x56\xff\xff\xff" * 64 * 48, channels=4),
        Reads(((0x12, 0x34, 0x56), (0x12, 0x34, 0x56))),
    ),
    Kind("png interlaced", png_interlaced, Reads((gray(40), gray(90)))),
    Kind("png animation", lambda: animation("PNG"), Reads((RED, BLUE))),
    Kind(
        "png of 33,000 pieces",
        lambda: png_pixels_in_pieces(1),
        Reads((gray(117), gray(83)), (320, 104)),
    ),
    # WEBP and AVIF
    Kind("webp", lambda: save(two_colours(), format="WEBP", quality=95), lossy()),
    Kind(
        "webp lossless",
        lambda: save(two_colours(), format="WEBP", lossless=True),
        Reads((RED, BLUE)),
    ),
    Kind(
        "webp alpha",
        lambda: save(two_colours("RGBA", (*RED, 255), (*BLUE, 0)), format="WEBP", lossless=True),
        Reads((RED, WHITE)),
    ),
    Kind("webp animation", lambda: animation("WEBP"), Reads((RED, BLUE))),
    Kind("avif", lambda: save(two_colours(), format="AVIF", quality=95), lossy()),
    Kind(
        "avif alpha",
        lambda: save(two_colours("RGBA", (*RED, 255), (*BLUE, 0)), format="AVIF", quality=95),
        lossy(RED, WHITE),
    ),
    # BMP
    Kind("bmp", lambda: save(two_colours(), format="BMP"), Reads((RED, BLUE))),
    Kind(
        "bmp 1 bit",
        lambda: bmp_file(rows(bytes(4), b"\xff" * 4), bits=1, colours=(RED, BLUE)),
        Reads((RED, BLUE)),
    ),
    Kind(
        "bmp 4 bits",
        lambda: bmp_file(rows(bytes(16), b"\x11" * 16), bits=4, colours=(RED, BLUE)),
        Reads((RED, BLUE)),
    ),
    Kind(
        "bmp 8 bits",
        lambda: bmp_file(rows(bytes(32), b"\1" * 32), bits=8, colours=(RED, BLUE)),
        Reads((RED, BLUE)),
    ),
    Kind(
        "bmp 16 bits",
        lambda: bmp_file(rows(b"\x00\x7c" * 32, b"\x1f\x00" * 32), bits=16),
        Reads(((255, 0, 0), (0, 0, 255))),
    ),
    Kind(
        "bmp 32 bits, fourth byte unused",
        lambda: bmp_file(rows(b"\x28\x1e\xc8\0" * 32, b"\xdc\x3c\x0a\0" * 32), bits=32),
        Reads((RED, BLUE)),
    ),
    Kind(
        "bmp top-down",
        lambda: bmp_file(
            [*[b"\x28\x1e\xc8" * 64] * 24, *[b"\xdc\x3c\x0a" * 64] * 24], bits=24, height=-48
        ),
        Reads((RED, BLUE)),
    ),
    Kind(
        "bmp run lengths",
        lambda: bmp_file(
            [*rows(b"\x20\0", b"\x20\1\0\0"), b"\0\1"],
            bits=8,
            colours=(RED, BLUE),
            compression=1,
        ),
        Reads((RED, BLUE)),
    ),
    # TIFF
    Kind("tiff", tiff, Reads((RED, BLUE))),
    Kind("tiff lzw", lambda: tiff(compression="tiff_lzw"), Reads((RED, BLUE))),
    Kind("tiff deflate", lambda: tiff(compression="tiff_adobe_deflate"), Reads((RED, BLUE))),
    Kind("tiff packbits", lambda: tiff(compression="packbits"), Reads((RED, BLUE))),
    Kind("tiff jpeg", lambda: tiff(compression="jpeg", quality=95), lossy()),
    Kind(
        "tiff fax, g4",
        lambda: save(two_colours("1", 0, 1), format="TIFF", compression="group4"),
        Reads((BLACK, WHITE)),
    ),
    Kind("tiff tiles", tiled_tiff, Reads((gray(40), gray(90)))),
    Kind("tiff planes", planar_tiff, Reads((RED, BLUE))),
    Kind(
        "tiff several pages",
        lambda: tiff(save_all=True, append_images=[two_colours(left=GREEN)]),
        Reads((RED, BLUE)),
    ),
    Kind(
        "tiff gray 16 bits",
        lambda: tiff_of((0x1234, 0xFEDC), "<u2"),
        Reads((gray(0x12), gray(0xFE))),
    ),
    Kind(
        "tiff gray 16 bits, big-endian",
        lambda: tiff_of((0x1234, 0xFEDC), ">u2"),
        Reads((gray(0x12), gray(0xFE))),
    ),
    Kind("tiff rgb 16 bits", rgb_16_tiff, Reads((RED, BLUE))),
    Kind(
        "tiff gray 32 bits",
        lambda: tiff_of((0x1234, 0xFEDC), "<i4"),
        Reads((gray(0x12), gray(0xFE))),
    ),
    Kind(
        "tiff gray 32 bits, out of range",
        lambda: tiff_of((-5, 70_000), "<i4"),
        "has integer pixels from -5 to 70000, outside 0 to 65535",
    ),
    Kind("tiff float to 1", lambda: tiff_of((0.2, 1.0), "<f4"), Reads((gray(51), WHITE))),
    Kind("tiff float to 255", lambda: tiff_of((51.0, 200.0), "<f4"), Reads((gray(51), gray(200)))),
    Kind(
        "tiff float below zero",
        lambda: tiff_of((-1.0, 1.0), "<f4"),
        "has floating-point pixels from -1 to 1, outside 0 to 255",
    ),
    Kind(
        "tiff float, not a number",
        lambda: tiff_of((float("nan"), 1.0), "<f4"),
        "has floating-point pixels from nan",
    ),
    Kind(
        "tiff cmyk",
        lambda: save(two_colours("CMYK", (255, 0, 0, 0), (0, 0, 255, 0)), format="TIFF"),
        Reads(((0, 255, 255), (255, 255, 0))),
    ),
    Kind("tiff palette", lambda: save(palette_image(), format="TIFF"), Reads((RED, BLUE))),
    Kind(
        "tiff rgba",
        lambda: save(two_colours("RGBA", (*RED, 255), (*BLUE, 0)), format="TIFF"),
        Reads((RED, WHITE)),
    ),
    Kind("tiff big-endian", lambda: gray_tiff(order=">"), Reads((gray(40), gray(90)))),
    Kind(
        "tiff white is zero",
        lambda: tiff_with((262, "H", [0])),
        Reads((gray(215), gray(165))),
    ),
    Kind("bigtiff", lambda: tiff(big_tiff=True), Reads((RED, BLUE))),
    Kind(
        "tiff lab",
        lambda: save(two_colours("LAB", (255, 128, 128), (0, 128, 128)), format="TIFF"),
        lossy(WHITE, BLACK),
    ),
    # PPM and its relatives
    Kind("ppm", lambda: save(two_colours(), format="PPM"), Reads((RED, BLUE))),
    Kind(
        "ppm plain",
        lambda: ppm("P3", plain(("200 30 40", "10 60 220"))),
        Reads((RED, BLUE)),
    ),
    Kind("pgm plain", lambda: ppm("P2", plain((40, 90))), Reads((gray(40), gray(90)))),
    Kind("pbm", lambda: save(two_colours("1", 0, 1), format="PPM"), Reads((BLACK, WHITE))),
    Kind("pbm plain", lambda: ppm("P1", plain((1, 0)), top=""), Reads((BLACK, WHITE))),
    Kind(
        "pgm 16 bits",
        lambda: ppm("P5", gray16((0x1234, 0xFEDC), ">u2"), top=" 65535"),
        Reads((gray(0x12), gray(0xFE))),
    ),
    Kind(
        "pgm 10 bits",
        lambda: ppm("P5", gray16((0, 1023), ">u2"), top=" 1023"),
        Reads((BLACK, WHITE)),
    ),
    Kind(
        "ppm 16 bits",
        lambda: ppm(
            "P6", np.repeat(np.array([RED] * 64 * 48, ">u2") * 257, 1).tobytes(), top=" 65535"
        ),
        Reads((RED, RED)),
    ),
    Kind(
        "pfm",
        lambda: (
            b"Pf\n64 48\n-1.0\n" + np.tile(np.repeat(np.array([0.2, 1], "<f4"), 32), 48).tobytes()
        ),
        Reads((gray(51), WHITE)),
    ),
    # GIF
    Kind("gif", lambda: save(two_colours(), format="GIF"), Reads((RED, BLUE))),
    Kind(
        "gif key", lambda: save(palette_image(), format="GIF", transparency=0), Reads((WHITE, BLUE))
    ),
    Kind("gif animation", lambda: animation("GIF"), Reads((RED, BLUE))),
    Kind(
        "gif interlaced", lambda: save(two_colours(), format="GIF", interlace=1), Reads((RED, BLUE))
    ),
    Kind("gif frame smaller than the screen", gif_with_offset, Reads((BLACK, BLACK), (16, 16))),
    Kind("gif of 100,000 frames", lambda: gif_frames(100_000), Reads((BLACK, BLACK), (8, 8))),
    # Names
    Kind("png called jpg", png, Reads((RED, BLUE)), "a png.jpg"),
    Kind("jpeg called png", jpeg, lossy(), "a jpeg.png"),
    Kind("upper-case suffix", jpeg, lossy(), "IMG_0001.JPG"),
    Kind("two suffixes", jpeg, lossy(), "photo.tar.gz.jpg"),
    Kind("line break in the name", jpeg, lossy(), "one\ntwo.jpg"),
    Kind("emoji in the name", jpeg, lossy(), "\N{DOG FACE} and \N{CAT FACE}.jpg"),
    Kind("bytes in the name that are no UTF-8", jpeg, lossy(), os.fsdecode(b"caf\xe9.jpg")),
    Kind("name of 255 bytes", jpeg, lossy(), "n" * 251 + ".jpg"),
    Kind(
        "name of a bad file with an escape",
        lambda: bytes(10),
        UNKNOWN,
        "\x1b[31mred.jpg",
    ),
    # Orientation
    turned(1, lossy()),
    turned(2, lossy(BLUE, RED)),
    turned(3, lossy(BLUE, RED)),
    turned(4, lossy()),
    turned(5, lossy(size=(48, 64))),
    turned(6, lossy(size=(48, 64))),
    turned(7, lossy(BLUE, RED, (48, 64))),
    turned(8, lossy(BLUE, RED, (48, 64))),
    turned(0, lossy()),
    turned(9, lossy()),
    Kind(
        "jpeg orientation a text",
        lambda: exif_jpeg(tiff_file([(0x0112, "s", [b"6"])])),
        lossy(),
    ),
    Kind("jpeg exif cut", lambda: exif_jpeg(b"II*\0\x08\0\0\0\xff\xff\x12\x01"), lossy()),
    Kind("jpeg exif of noise", lambda: exif_jpeg(noise().tobytes()[:5000]), lossy()),
    Kind(
        "jpeg exif that leads to itself",
        lambda: exif_jpeg(tiff_file([(0x8769, "I", [8]), (0x8825, "I", [8])], following=8)),
        lossy(),
    ),
    Kind("png turned", lambda: with_orientation(3, format="PNG"), Reads((BLUE, RED))),
    Kind("tiff turned", lambda: with_orientation(3, format="TIFF"), Reads((BLUE, RED))),
    Kind(
        "webp turned",
        lambda: with_orientation(3, format="WEBP", lossless=True),
        Reads((BLUE, RED)),
    ),
    Kind(
        "avif turned", lambda: with_orientation(6, format="AVIF", quality=95), lossy(size=(48, 64))
    ),
    Kind("jpeg colour profile damaged", lambda: jpeg(icc_profile=b"not a profile"), lossy()),
    Kind("png colour profile damaged", lambda: png(icc_profile=b"\0" * 9), Reads((RED, BLUE))),
    # Shapes
    Kind("one pixel", lambda: strip(1, 1), Reads((RED, RED), (1, 1))),
    Kind("1 by 500", lambda: strip(1, 500), Reads((RED, RED), (1, 500))),
    Kind("500 by 1", lambda: strip(500, 1), Reads((RED, RED), (500, 1))),
    Kind("1 by 501", lambda: strip(1, 501), "has 1 × 501 pixels, longer than 500:1"),
    Kind("501 by 1", lambda: strip(501, 1), "has 501 × 1 pixels, longer than 500:1"),
    Kind("png of no pixels", lambda: png_claiming((0, 10)), "is "),
    Kind("jpeg of no rows", lambda: claims_jpeg((64, 0)), "is "),
    Kind("ppm of no pixels", lambda: ppm("P6", b"", size=(0, 10)), UNKNOWN),
    Kind(
        "gif of no pixels",
        lambda: gif_file(size=(0, 0), frame=gif_frame(size=(0, 0))),
        UNKNOWN,
    ),
    Kind("bmp of no rows", lambda: bmp_file([], bits=24, height=0), UNKNOWN),
    Kind(
        "90 megapixels",
        lambda: save(Image.new("1", (9500, 9500)), format="PNG"),
        Reads((BLACK, BLACK), (9500, 9500)),
        slow=True,
    ),
    Kind(
        "101 megapixels",
        lambda: png_claiming((10_100, 10_000)),
        "has 10100 × 10000 pixels, more than the 100 megapixels allowed",
    ),
    Kind(
        "png that says 50,000 × 50,000",
        lambda: png_claiming((50_000, 50_000)),
        "has more pixels than the 100 megapixels allowed",
    ),
    Kind(
        "jpeg that says 65,500 × 65,500",
        lambda: claims_jpeg((65_500, 65_500)),
        "has more pixels than",
    ),
    Kind(
        "gif that says 65,535 × 65,535",
        lambda: gif_file(size=(65_535, 65_535)),
        "has more pixels than",
    ),
    Kind(
        "gif frame of 65,535 × 65,535",
        lambda: gif_of_large_frame((65_535, 65_535)),
        "has more pixels than",
    ),
    Kind(
        "webp that says 16,384 × 16,384",
        lambda: replaced(
            save(two_colours(), format="WEBP", lossless=True), 21, b"\xff\xff\xff\x0f"
        ),
        "has more pixels than",
    ),
    Kind(
        "avif that says 50,000 × 50,000",
        lambda: save(two_colours(), format="AVIF").replace(
            struct.pack(">4xII", *SIZE), struct.pack(">4xII", 50_000, 50_000)
        ),
        "is ",
    ),
    Kind(
        "tiff that says 4 billion × 4 billion",
        lambda: tiff_with((256, "I", [2**32 - 1]), (257, "I", [2**32 - 1])),
        "has more pixels than",
    ),
    # Bombs
    Kind("png of 100 MB in its pixels", too_many_pixels_in_data, Reads((BLACK, BLACK)), slow=True),
    Kind("png text of 70 MB, zTXt", lambda: text_chunk(b"zTXt"), "is damaged (", slow=True),
    Kind("png text of 70 MB, iTXt", lambda: text_chunk(b"iTXt"), "is damaged (", slow=True),
    Kind("png profile of 70 MB", lambda: text_chunk(b"iCCP"), "is damaged (", slow=True),
    Kind(
        "tiff of 100 million strips",
        lambda: tiff_with(
            (273, "I", [200, 1]), (279, "I", [64, 1]), counts={273: 10**8, 279: 10**8}
        ),
        UNKNOWN,
    ),
    Kind(
        "tiff text of 4 GB",
        lambda: tiff_with((270, "s", [b"no longer"]), counts={270: 2**32 - 16}),
        Reads((gray(40), gray(90))),
    ),
    # Damage
    Kind("png header only", lambda: PNG_START, "is "),
    Kind("jpeg header only", lambda: save(noise(), format="JPEG")[:300], "is "),
    Kind("jpeg half", lambda: cut(save(noise(), format="JPEG"), 0.5), "is truncated"),
    Kind("jpeg without its last byte", lambda: jpeg()[:-1], "is truncated"),
    Kind("jpeg without its end", lambda: cut(save(noise(), format="JPEG"), 0.99), "is truncated"),
    Kind(
        "progressive jpeg half",
        lambda: cut(save(noise(), format="JPEG", progressive=True), 0.5),
        "is truncated",
    ),
    Kind("png half", lambda: cut(save(noise(), format="PNG"), 0.5), "is truncated"),
    Kind("png without its last byte", lambda: png()[:-1], Reads((RED, BLUE))),
    Kind("png without its end", lambda: png()[:-12], "is truncated"),
    Kind("webp half", lambda: cut(save(noise(), format="WEBP"), 0.5), "is "),
    Kind("webp without its last byte", lambda: save(noise(), format="WEBP")[:-1], "is "),
    Kind("avif half", lambda: cut(save(noise(), format="AVIF"), 0.5), "is "),
    Kind("gif half", lambda: cut(save(noise(), format="GIF"), 0.5), "is "),
    Kind("bmp half", lambda: cut(save(noise(), format="BMP"), 0.5), "is truncated"),
    Kind("tiff half", lambda: cut(save(noise(), format="TIFF"), 0.5), "is "),
    Kind(
        "tiff lzw half",
        lambda: cut(save(noise(), format="TIFF", compression="tiff_lzw"), 0.5),
        "is ",
    ),
    Kind("ppm half", lambda: cut(save(noise(), format="PPM"), 0.5), "is truncated"),
    Kind("ppm plain half", lambda: cut(ppm("P2", plain((40, 90))), 0.5), "is "),
    Kind("png checksum of the header flipped", lambda: flip(png(), 29), "is "),
    Kind("png checksum of the pixels flipped", lambda: flip_last_checksum(png()), "is damaged ("),
    Kind(
        "png checksum behind the pixels flipped",
        lambda: flip(png()[:-12] + png_chunk(b"tIME", bytes(7)) + png()[-12:], -13),
        "is damaged (",
    ),
    Kind("png pixels missing", lambda: png_file(SIZE), "is "),
    Kind("jpeg and garbage", lambda: jpeg() + noise().tobytes(), lossy()),
    Kind("png and garbage", lambda: png() + noise().tobytes(), Reads((RED, BLUE))),
    Kind("tiff and garbage", lambda: tiff() + noise().tobytes(), Reads((RED, BLUE))),
    Kind(
        "webp and garbage",
        lambda: save(two_colours(), format="WEBP", lossless=True) + bytes(99),
        Reads((RED, BLUE)),
    ),
    Kind(
        "gif and garbage", lambda: save(two_colours(), format="GIF") + bytes(99), Reads((RED, BLUE))
    ),
    Kind("garbage and jpeg", lambda: b"garbage " + jpeg(), UNKNOWN),
    Kind("garbage and png", lambda: b"\0" + png(), UNKNOWN),
    Kind("tiff of 20,617 samples a pixel", lambda: tiff_with((277, "H", [20_617])), UNKNOWN),
    Kind("tiff strips of noise", lambda: tiff_with((259, "H", [5])), "is damaged ("),
    Kind("tiff deflate of noise", lambda: tiff_with((259, "H", [8])), "is damaged ("),
    Kind("tiff jpeg of noise", lambda: tiff_with((259, "H", [7])), "is damaged ("),
    Kind(
        "tiff whose pixels lie behind its end",
        lambda: tiff_with((273, "I", [10**6]), (279, "I", [64 * 48])),
        "is ",
    ),
    # No images
    Kind("empty", lambda: b"", "is an empty file"),
    Kind("one byte", lambda: b"\xff", UNKNOWN),
    Kind("megabyte of zeros", lambda: bytes(10**6), UNKNOWN),
    Kind("text", lambda: b"not an image\n", UNKNOWN),
    Kind(
        "html",
        lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
        "is a web page (",
    ),
    Kind(
        "svg",
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "is an SVG drawing (",
    ),
    Kind("pdf", pdf, "is a PDF document ("),
    Kind(
        "eps",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "is an EPS drawing (",
    ),
    Kind("psd", psd, "is a Photoshop file ("),
    Kind("ico", lambda: save(two_colours(), format="ICO"), UNKNOWN),
    Kind("jpeg 2000", lambda: save(two_colours(), format="JPEG2000"), "is a JPEG 2000 image ("),
    Kind("zip", archive, "is a ZIP archive ("),
    Kind("heic", heic, "is a HEIC photograph ("),
    Kind("python pickle", lambda: b"\x80\x04cos\nsystem\n(S'false'\ntR.", UNKNOWN),
    # Two at once
    Kind("jpeg and zip", lambda: jpeg() + archive(), lossy()),
    Kind(
        "jpeg with html in a comment", lambda: jpeg(comment=b"<script>alert(1)</script>"), lossy()
    ),
    Kind(
        "gif that is a script",
        lambda: gif_file(b"!\xfe\x0c*/alert(1)/*\0"),
        Reads((BLACK, BLACK), (8, 8)),
    ),
    Kind("pdf and jpeg", lambda: pdf() + jpeg(), "is a PDF document ("),
    # Hostile
    Kind("tiff that leads to itself", lambda: gray_tiff(following=8), Reads((gray(40), gray(90)))),
    Kind(
        "tiff below itself",
        lambda: tiff_with((330, "I", [8]), (34665, "I", [8]), following=8),
        Reads((gray(40), gray(90))),
    ),
    Kind(
        "jpeg of 5,000 tables",
        lambda: jpeg_after_start(
            jpeg(), jpeg_segment(0xC4, b"\x03" + bytes([1, *[0] * 15, 0])) * 5000
        ),
        lossy(),
    ),
    Kind(
        "jpeg of 5,000 application segments",
        lambda: jpeg_after_start(jpeg(), jpeg_segment(0xE7, b"x" * 9) * 5000),
        lossy(),
    ),
    Kind(
        "jpeg of two frames",
        lambda: jpeg_after_start(
            jpeg(), jpeg_segment(0xC0, struct.pack(">BHHB", 8, 48, 64, 1) + b"\1\x11\0")
        ),
        "is ",
    ),
    Kind(
        "jpeg of a million empty segments",
        lambda: jpeg_after_start(jpeg(), jpeg_segment(0xE7, b"") * 1_000_000),
        "is cut into more than 2 million pieces",
        slow=True,
    ),
    Kind(
        "ppm comment of 4 MB",
        lambda: b"P6\n#" + b"a" * 4_000_000 + b"\n8 8 255\n" + bytes(192),
        "is cut into more than 2 million pieces",
        slow=True,
    ),
    Kind(
        "ppm plain of 16 megapixels",
        lambda: ppm("P2", b"1 " * 9, size=(4000, 4000)),
        "has 4000 × 4000 pixels as text, more than the 10 megapixels allowed",
    ),
    Kind(
        "ppm plain with as many comments as may be",
        lambda: ppm("P2", b"#\n" * 999 + plain((40, 90))),
        Reads((gray(40), gray(90))),
    ),
    Kind(
        "ppm plain of a million comments",
        lambda: ppm("P2", b"#\n" * 1_000_000 + plain((40, 90))),
        "has more than 1,000 comments",
    ),
    Kind(
        "jpeg of as many scans as may be",
        lambda: flat_jpeg([(40, 90)], frame=0xC2, scans=empty_scans(SIZE, MAX_SCANS - 1)),
        lossy(gray(40), gray(90)),
    ),
    Kind(
        "jpeg of one scan more",
        lambda: flat_jpeg([(40, 90)], frame=0xC2, scans=empty_scans(SIZE, MAX_SCANS)),
        f"is a JPEG of more than {MAX_SCANS} scans",
    ),
    Kind(
        "sequential jpeg of too many scans",
        lambda: flat_jpeg([(40, 90)], scans=empty_scans(SIZE, MAX_SCANS)),
        f"is a JPEG of more than {MAX_SCANS} scans",
    ),
    Kind(
        "jpeg of 10,000 scans of a megapixel",
        lambda: flat_jpeg(
            [(40, 90)], size=(1024, 1024), frame=0xC2, scans=empty_scans((1024, 1024), 10_000)
        ),
        f"is a JPEG of more than {MAX_SCANS} scans",
    ),
    Kind(
        "progressive jpeg with a film behind it",
        lambda: jpeg(progressive=True) + b"\xff\xda\0\x08" * 1000,
        lossy(),
    ),
)


def file_name(kind: Kind) -> str:
    return kind.file or f"{kind.name}.jpg"


def try_kind(kind: Kind, folder: Path, *, full: bool) -> None:
    """Reading and checking do what is expected, and every command does the same."""
    require_format(kind.name)
    path = folder / "image"
    path.write_bytes(kind.build())
    with silence_required():
        found = [read(partial(read_image, min_edge=edge), path) for edge in MIN_EDGES]
        checked = read(check_image, path)
    for each, edge in zip(found, MIN_EDGES, strict=True):
        require(kind.expected, each, reduced=edge is not None)
    reasons = {each if isinstance(each, str) else None for each in [*found, checked]}
    assert len(reasons) == 1, f"not refused alike: {reasons}"
    place = place_of(kind)
    met = survey_kinds(full=full)
    assert not same_in_all(met, place), same_in_all(met, place)
    said = met.commands["fit"][place]
    assert {said} == reasons, f"fit says {said!r}, reading {reasons}"


def read(use: Callable[[Path], Found], path: Path) -> Found | str:
    """What a function gives, or its reason for giving nothing."""
    try:
        return use(path)
    except ImageError as error:
        return error.message


def require(
    expected: Reads | str, found: Image.Image | str | None, *, reduced: bool = False
) -> None:
    """An image is the one expected, or a reason holds what is expected, and no more than a line.

    A `reduced` one may be smaller.
    """
    if isinstance(expected, str):
        assert isinstance(found, str), f"read, not refused because it {expected}"
        assert expected in found, f"{found!r} without {expected!r}"
        assert len(found) <= 120
        assert found.isprintable()
        return
    assert isinstance(found, Image.Image), f"refused: {found}"
    width, height = expected.size
    divisors = (1, 2, 4, 8) if reduced else (1,)
    assert found.size in {(-(-width // each), -(-height // each)) for each in divisors}, found.size
    assert found.mode == "RGB"
    difference = np.abs(np.subtract(corners(found), expected.corners))
    assert difference.max() <= expected.tolerance, f"{corners(found)}, not {expected.corners}"


def require_format(name: str) -> None:
    """Not every Pillow has AVIF."""
    if "avif" in name and not features.check("avif"):
        raise NotPossible("Pillow was built without AVIF")


def place_of(kind: Kind) -> str:
    """Where a kind lies below the folder that the commands get."""
    label = CLASSES[KINDS.index(kind) % len(CLASSES)]
    return f"{label}/{kind.file or f'{kind.name}.jpg'}"


@cache
def survey_kinds(*, full: bool) -> Survey:
    """What every command says of a folder with all kinds and entries in it, once a process."""
    root = Path(tempfile.mkdtemp(prefix="vtrain-kinds-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)

    def fill(folder: Path, label: str) -> None:
        for kind in KINDS:
            place = Path(place_of(kind))
            if place.parent.name == label and (full or not kind.slow) and can_be_made(kind.name):
                (folder / place.name).write_bytes(kind.build())
        if label == CLASSES[0]:
            for entry in ENTRIES:
                with suppress(NotPossible):
                    entry.make(folder / entry.file)

    return survey(root, fill)


def can_be_made(name: str) -> bool:
    try:
        require_format(name)
    except NotPossible:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Entry:
    """What may lie in a folder besides images.

    `expected` is as for a `Kind` when its path is read; `unlisted` is what is in the reason why no
    command takes it for an image of its folder, None for one that they all take.
    """

    name: str
    make: Callable[[Path], None]
    expected: Reads | str
    unlisted: str | None
    file: str


def make_node(path: Path, *, kind: int) -> None:
    """A pipe or a socket; both without anyone at the other end."""
    try:
        os.mknod(path, kind | 0o600)
    except OSError as error:
        raise NotPossible(f"files of this kind: {error}") from error


def make_link(path: Path, *, target: str) -> None:
    if target == "/dev/null" and not Path(target).exists():
        raise NotPossible("/dev/null")
    path.symlink_to(target)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("no image", encoding="utf-8")


def make_linked(path: Path) -> None:
    (path.parent / ".aside").mkdir()
    (path.parent / ".aside/image.png").write_bytes(png())
    path.symlink_to(".aside/image.png")


def make_sparse(path: Path, *, content: bytes, size: int) -> None:
    path.write_bytes(content)
    os.truncate(path, size)


ENTRIES = (
    Entry("pipe", partial(make_node, kind=stat.S_IFIFO), "is a named pipe", "pipe", "pipe.jpg"),
    Entry("socket", partial(make_node, kind=stat.S_IFSOCK), "is a socket", "socket", "socket.jpg"),
    Entry(
        "device",
        partial(make_link, target="/dev/null"),
        "is a device, not a file",
        "is a device",
        "device.jpg",
    ),
    Entry(
        "folder", make_folder, "is a folder, not a file", "is not named like an image", "folder.jpg"
    ),
    Entry(
        "link to nothing",
        partial(make_link, target="none.jpg"),
        "does not exist",
        "is a broken link",
        "dangling.jpg",
    ),
    Entry(
        "link to itself",
        partial(make_link, target="loop.jpg"),
        "cannot be read (too many levels of symbolic links)",
        "cannot be read (too many levels of symbolic links)",
        "loop.jpg",
    ),
    Entry("link to an image", make_linked, Reads((RED, BLUE)), None, "link.jpg"),
    Entry(
        "image followed by a hole up to the limit",
        partial(make_sparse, content=png(), size=MAX_FILE_BYTES),
        Reads((RED, BLUE)),
        None,
        "hole.png",
    ),
    Entry(
        "file over the limit",
        partial(make_sparse, content=png(), size=MAX_FILE_BYTES + 10**6),
        "has 513 MB, more than the 512 MB allowed",
        None,
        "huge.png",
    ),
    Entry(
        "hole of 100 MB",
        partial(make_sparse, content=b"", size=10**8),
        UNKNOWN,
        None,
        "nothing.png",
    ),
)


def try_entry(entry: Entry, folder: Path, *, full: bool) -> None:
    """As `try_kind`, for what no bytes can tell."""
    path = folder / entry.file
    entry.make(path)
    with silence_required():
        found = read(read_image, path)
        checked = read(check_image, path)
    require(entry.expected, found)
    reason = found if isinstance(found, str) else None
    assert (checked if isinstance(checked, str) else None) == reason
    met = survey_kinds(full=full)
    place = f"{CLASSES[0]}/{entry.file}"
    if entry.unlisted is None:
        assert not same_in_all(met, place), same_in_all(met, place)
        assert met.commands["fit"][place] == reason
        return
    for name, reasons in met.commands.items():
        assert not any(each.startswith(place) for each in reasons), f"{name} takes {place}"
    said = {path: why for path, why in met.unlisted.items() if path.startswith(place)}
    assert len(said) == 1, said
    assert all(entry.unlisted in why for why in said.values()), said


def try_unreadable(folder: Path) -> None:
    """A file that only its owner may read, read by another one."""
    path = folder / "image.png"
    path.write_bytes(png())
    path.chmod(0)
    folder.chmod(0o755)
    (found,) = try_in_child([path], read_as_nobody, seconds=20)
    assert found == ("cannot be read (permission denied)",) * 2, found


def read_as_nobody(path: Path) -> tuple[str | None, str | None]:
    """The reasons that reading and checking give."""
    # What lies above the folder may be closed to others: from within it does not matter.
    os.chdir(path.parent)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    results = [read(use, Path(path.name)) for use in (read_image, check_image)]
    first, second = (each if isinstance(each, str) else None for each in results)
    return first, second


def try_members(folder: Path) -> None:
    """Every kind is read from a tar as it is from a file."""
    kinds = [kind for kind in KINDS if not kind.slow and can_be_made(kind.name)]
    shard, path = folder / "shard.tar", folder / "image"
    contents = [kind.build() for kind in kinds]
    with tarfile.open(shard, "w") as archive:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"ant/{number}.jpg")
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    for number, (kind, content) in enumerate(zip(kinds, contents, strict=True)):
        path.write_bytes(content)
        with silence_required():
            alone, inside = read(read_image, path), read(read_image, shard / f"ant/{number}.jpg")
        require(kind.expected, inside)
        assert inside == alone, f"{kind.name}: {inside!r}, not {alone!r}"


def cases(full: bool) -> Iterator[Case]:
    """Every kind; the short form leaves out those that take long."""
    for kind in KINDS:
        if full or not kind.slow:
            yield Case(kind.name, partial(try_kind, kind, full=full))
    for entry in ENTRIES:
        yield Case(entry.name, partial(try_entry, entry, full=full))
    yield Case("unreadable", try_unreadable)
    yield Case("every kind in a tar", try_members)
