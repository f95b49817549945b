"""The one way in which every command reads an image: hardened Pillow, upright 8-bit RGB."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BufferedReader, BytesIO, FileIO, RawIOBase
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vtrain.data.formats import HEAD_BYTES, RAW, identify
from vtrain.data.image_plugins import open_by_extra, read_early_size
from vtrain.data.silence import NO_STDERR, NO_WARNINGS
from vtrain.data.tars import read_member
from vtrain.errors import ImageError

# Only these decoders ever see a file: an EPS named .jpg must not start Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")
# 100 megapixels take 400 MB decoded (Pillow keeps 4 bytes a pixel); phone panoramas stay below.
MAX_PIXELS = 100_000_000
# A 1 × 100,000 strip is a small file that becomes 6.5 gigapixels when its short edge grows to 256.
MAX_ASPECT_RATIO = 500
# 100 megapixels of four 8-bit channels fit uncompressed; whatever is larger is no photograph.
MAX_FILE_BYTES = 512_000_000
# Every scan of a progressive JPEG goes over the whole image, and takes a few bytes. Encoders write
# about ten; a refining one takes 0.2 s of an image of 100 megapixels.
MAX_SCANS = 50
# Pillow reads a header piece by piece, at a million pieces a second; a file of nothing else would
# keep it busy for minutes. A PNG of 400 MB in chunks of 8 KB is read three times in 0.6 million.
MAX_PIECES = 2_000_000
# A PPM of numbers as text costs Pillow a third of a microsecond a number, and every comment a
# search of a megabyte; programs write one comment.
MAX_TEXT_PIXELS = 10_000_000
MAX_TEXT_COMMENTS = 1_000
WHITE = (255, 255, 255)
# To be raised when `read_image` becomes stricter: then nothing counts as checked before.
CHECK_RULES = 3

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NOT_REGULAR = (
    (stat.S_ISDIR, "is a folder, not a file"),
    (stat.S_ISFIFO, "is a named pipe, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
)
# Neither a byte of the pixels (a zero follows) nor a restart within them nor filling.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_BARE = (0x01, 0xD8)  # markers without a segment behind them
# What extras read starts like this: no other decoder is asked, though AVIF's takes some of it.
_MAY_NEED_EXTRA = re.compile(rb"\xff\x0a|....(?:ftyp|JXL )", re.DOTALL)

_DIGEST_BYTES = 16

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class WholeImage:
    """An image as `read_image` gives it, and what its file says of itself.

    `digest` is a hash of the file's bytes, `format` and `mode` are Pillow's names. `turned` is
    whether EXIF turned it upright, `deep` whether a channel has more than 8 bits.
    """

    image: Image.Image
    digest: bytes
    format: str
    mode: str
    turned: bool
    transparent: bool
    deep: bool
    animated: bool


def read_image(
    path: Path | str,
    *,
    min_edge: int | None = None,
    background: tuple[int, int, int] = WHITE,
) -> Image.Image:
    """Read one image as 8-bit RGB.

    The first frame counts, EXIF orientation is applied, transparency is composited on
    `background`. 16-bit gray keeps its high byte; floating-point gray is taken as 0 to 1, or as
    0 to 255 where a value exceeds 1.

    Args:
        path: a regular file, a link to one, or a member of a tar (`shard.tar/class/1.jpg`);
            anything else is refused without being opened.
        min_edge: the shorter edge, in pixels, that the caller needs. A JPEG may then be decoded at
            1/2, 1/4 or 1/8 of its size, as long as both edges stay at least `2 * min_edge`; an
            image whose shorter edge is under `4 * min_edge` is always decoded in full.
        background: colour behind transparent pixels.

    Raises:
        ImageError: the file cannot be used; the message is a short reason without the path.
    """
    with _reasons(), NO_WARNINGS, _open_regular(path) as file:
        image, _ = _load(file, min_edge=min_edge)
        return _flatten(_turn_upright(image), background)


def check_image(path: Path | str) -> bytes:
    """Read one image in full for its errors, those of `read_image`; a hash of the file's bytes."""
    with _reasons(), NO_WARNINGS, _open_regular(path) as file:
        loaded, _ = _load(file, min_edge=None)
        _flatten(_turn_upright(loaded), WHITE)
        return _hash(file)


def read_size(path: Path | str) -> tuple[int, int]:
    """Width and height that the header of an image names, not turned upright; nothing is decoded.

    Raises:
        ImageError: the file cannot be used; the message is a short reason without the path.
    """
    with _reasons(), NO_WARNINGS, _open_regular(path) as file:
        return _open(file).size


def read_whole(path: Path | str) -> WholeImage:
    """Read one image in full, as `check_image` does, with what is worth knowing of its file.

    Raises:
        ImageError: the file cannot be used; the message is a short reason without the path.
    """
    with _reasons(), NO_WARNINGS, _open_regular(path) as file:
        loaded, stored = _load(file, min_edge=None)
        digest = _hash(file)
        upright = _turn_upright(loaded)
        image = _flatten(upright, WHITE)
        return WholeImage(
            image=image,
            digest=digest,
            format=loaded.format or "",
            mode=loaded.mode,
            turned=upright is not loaded,
            transparent=loaded.has_transparency_data,
            deep="16" in stored or loaded.mode == "F" or loaded.mode.startswith("I"),
            animated=_is_animated(loaded),
        )


def _hash(file: BinaryIO) -> bytes:
    file.seek(0)
    return hashlib.sha256(file.read()).digest()[:_DIGEST_BYTES]


def _is_animated(image: ImageFile.ImageFile) -> bool:
    """Whether there are more frames than the first, which is the one that counts."""
    try:
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except Exception:  # of a second frame that is damaged
        return True


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    found = identify(head) if _MAY_NEED_EXTRA.match(head) else None
    if found is not None and found.readable:
        if (size := read_early_size(file, found)) is not None:
            _require_pixels(*size)
        file.seek(0)
        image = open_by_extra(file, found)
    elif found is not None:
        raise ImageError(found.reason)
    else:
        image = Image.open(file, formats=IMAGE_FORMATS)
    _require_pixels(*image.size)
    return image


def _require_pixels(width: int, height: int) -> None:
    if not width or not height:
        raise ImageError(f"has {width} × {height} pixels")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise ImageError(f"has {width} × {height} pixels, more than the {limit} megapixels allowed")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"has {width} × {height} pixels, longer than {MAX_ASPECT_RATIO}:1")


def _load(file: BinaryIO, *, min_edge: int | None) -> tuple[ImageFile.ImageFile, str]:
    """The decoded image, and Pillow's name for how the file stores a pixel."""
    image = _open(file)
    if isinstance(image, PngImageFile) and image.tile:
        image.verify()  # finds flipped bits that a decode misses, for a few percent of its time
        image = _open(file)
    if isinstance(image, JpegImageFile):
        _require_few_scans(file)
        if min_edge is not None:
            # draft() takes the largest of 1, 1/2, 1/4, 1/8 that keeps both edges at this size.
            image.draft(None, (2 * min_edge, 2 * min_edge))
    if image.tile and image.tile[0].codec_name == "ppm_plain":
        _require_short_text(image.size, file)
    stored = str(image.tile[0].args) if image.tile else ""
    with NO_STDERR if isinstance(image, TiffImageFile) else nullcontext():
        image.load()
    return image, stored


def _require_few_scans(file: BinaryIO) -> None:
    """Refuse a JPEG whose scans would keep a decoder busy for minutes."""
    file.seek(0)
    content = file.read()
    if content.count(b"\xff%c" % _JPEG_SCAN) <= MAX_SCANS:
        return
    scans = position = 0
    for _ in range(MAX_PIECES):
        found = _JPEG_MARKER.search(content, position)
        if found is None or scans > MAX_SCANS:
            break
        marker, position = content[found.end() - 1], found.end()
        if marker == _JPEG_END:
            break
        scans += marker == _JPEG_SCAN
        if marker not in _JPEG_BARE:
            position += int.from_bytes(content[position : position + 2], "big")
    if scans > MAX_SCANS:
        raise ImageError(f"is a JPEG of more than {MAX_SCANS} scans")


def _require_short_text(size: tuple[int, int], file: BinaryIO) -> None:
    """Refuse a PPM of numbers as text that would take minutes."""
    width, height = size
    if width * height > MAX_TEXT_PIXELS:
        limit = MAX_TEXT_PIXELS // 1_000_000
        raise ImageError(
            f"has {width} × {height} pixels as text, more than the {limit} megapixels allowed"
        )
    file.seek(0)
    if file.read().count(b"#") > MAX_TEXT_COMMENTS:
        raise ImageError(f"has more than {MAX_TEXT_COMMENTS:,} comments")


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply EXIF orientation; a damaged EXIF block is no reason to refuse the pixels.

    Pillow has turned a TIFF while loading it and dropped the tag by then, and so has the decoder
    of HEIC. That of JPEG XL has turned it too, but for what is a JPEG inside, and left the tag.
    """
    if getattr(image, "format", None) == "JXL" and not getattr(image, "jpeg", False):
        return image
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any mode to RGB, transparent pixels composited on `background`."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _reduce_to_8_bit(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, background)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _reduce_to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit integer (holding 16-bit values) or float gray to L, or LA with a colour key.

    Raises:
        ImageError: the range of the values is not one that images use.
    """
    pixels = np.asarray(image)
    low, high = pixels.min().item(), pixels.max().item()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # NaN fails every comparison
            raise ImageError(
                f"has floating-point pixels from {low:g} to {high:g}, outside 0 to 255"
            )
        levels = np.empty(pixels.shape, np.uint8)
        for row, values in zip(levels, pixels, strict=True):  # at once it takes 1.2 GB of 100 MP
            row[:] = np.rint(values * (255 if high <= 1 else 1))
    else:
        if low < 0 or high > 0xFFFF:
            raise ImageError(f"has integer pixels from {low} to {high}, outside 0 to 65535")
        levels = (pixels >> 8).astype(np.uint8)
    gray = Image.fromarray(levels)
    key = image.info.get("transparency")
    if isinstance(key, int):
        alpha = np.where(pixels == key, 0, 255).astype(np.uint8)
        gray = Image.merge("LA", (gray, Image.fromarray(alpha)))
    return gray


@contextmanager
def _open_regular(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file; opening a FIFO would wait for a writer for ever, so look first.

    A path that leads through a tar opens the member's bytes.
    """
    path = Path(path)
    try:
        status = path.stat()
    except NotADirectoryError as error:
        content, size = read_member(path, error, max_bytes=MAX_FILE_BYTES)
        _require_size(size)
        with _PieceCounter(cast(RawIOBase, BytesIO(content))) as file, _named(file, path):
            yield file
        return
    for is_kind, reason in _NOT_REGULAR:
        if is_kind(status.st_mode):
            raise ImageError(reason)
    _require_size(status.st_size)
    with _PieceCounter(FileIO(path)) as file, _named(file, path):
        yield file


@contextmanager
def _named(file: BinaryIO, path: Path) -> Iterator[None]:
    """Say what a file is that is no image; a raw photograph would be taken for its thumbnail."""
    suffix = path.suffix.lower()
    if suffix in RAW.suffixes:
        _refuse_foreign(file, suffix)
    try:
        yield
    except UnidentifiedImageError:
        _refuse_foreign(file, suffix)
        raise


def _refuse_foreign(file: BinaryIO, suffix: str) -> None:
    file.seek(0)
    found = identify(file.read(HEAD_BYTES), suffix)
    if found is not None and not found.readable:
        raise ImageError(found.reason)
    file.seek(0)


class _PieceCounter(BufferedReader):
    """A file that can be read in so many pieces only."""

    _pieces = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """See `BufferedReader.read`.

        Raises:
            ImageError: it was read more than `MAX_PIECES` times.
        """
        self._pieces += 1
        if self._pieces > MAX_PIECES:
            raise ImageError(f"is cut into more than {MAX_PIECES // 1_000_000} million pieces")
        return super().read(size)


def _require_size(size: int) -> None:
    if size == 0:
        raise ImageError("is an empty file")
    if size > MAX_FILE_BYTES:
        megabytes, limit = size // 1_000_000, MAX_FILE_BYTES // 1_000_000
        raise ImageError(f"has {megabytes:,} MB, more than the {limit} MB allowed")


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a damaged file raises (it can be almost anything) into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("is not an image in a supported format") from error
    except FileNotFoundError as error:
        raise ImageError("does not exist") from error
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS // 1_000_000
        raise ImageError(f"has more pixels than the {limit} megapixels allowed") from error
    except MemoryError as error:
        raise ImageError("needs more memory than there is") from error
    except OSError as error:
        reason = f"is damaged ({_shorten(error)})"
        if error.errno is not None:
            reason = f"cannot be read ({os.strerror(error.errno).lower()})"
        elif "truncated" in str(error).lower():
            reason = "is truncated"
        raise ImageError(reason) from error
    except Exception as error:
        raise ImageError(f"is damaged ({_shorten(error)})") from error


def _shorten(error: Exception) -> str:
    """One printable line of at most 80 characters: messages may quote the file's own bytes."""
    text = "".join(c if c.isprintable() else " " for c in str(error)) or type(error).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
