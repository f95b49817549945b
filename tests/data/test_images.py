"""Every kind of image file that vtrain meets: good, odd, damaged and hostile."""

import multiprocessing
import os
import signal
import socket
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from vtrain.data import images
from vtrain.data.images import MAX_FILE_BYTES, check_image, check_images, read_image
from vtrain.errors import ImageError
from vtrain.records import SkippedFile

RED = (200, 30, 40)
GREEN = (20, 180, 60)
BLUE = (10, 60, 220)
WHITE = (255, 255, 255)
Colour = tuple[int, int, int]
Corners = tuple[Colour, Colour]

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
needs_permissions = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything"
)


def two_colours(mode: str = "RGB", left: object = RED, right: object = BLUE) -> Image.Image:
    """64 × 48 pixels, `left` in the left half, `right` in the right one."""
    image = Image.new(mode, (64, 48), left)  # type: ignore[arg-type]
    image.paste(right, (32, 0, 64, 48))  # type: ignore[arg-type]
    return image


def corners(image: Image.Image) -> Corners:
    """Colours near the top left and the bottom right corner."""
    width, height = image.size
    first, last = image.getpixel((2, 2)), image.getpixel((width - 3, height - 3))
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    return first[:3], last[:3]  # type: ignore[return-value]


def png_16(pixels: bytes, *, channels: int, key: bytes = b"") -> bytes:
    """A 64-pixel wide PNG with 16 bits a channel, by hand: Pillow does not save all of them."""
    row = 64 * channels * 2
    rows = [b"\0" + pixels[i : i + row] for i in range(0, len(pixels), row)]
    colour_type = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", 64, len(rows), 16, colour_type, 0, 0, 0)
    middle = png_chunk(b"tRNS", key) if key else b""
    middle += png_chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + middle + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def save(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(two_colours(), exif=exif, **options)


def palette(transparency: int | bytes | None) -> bytes:
    image = Image.new("P", (64, 48), 0)  # the left half is entry 0, the right one entry 1
    image.putpalette([*RED, *BLUE, *GREEN])
    image.paste(1, (32, 0, 64, 48))
    options = {} if transparency is None else {"transparency": transparency}
    return save(image, format="PNG", **options)


def gray16(values: tuple[int, int], order: str) -> bytes:
    row = np.repeat(np.array(values, order), 32)
    return np.tile(row, 48).tobytes()


def tiff_of(values: tuple[float, float], dtype: str) -> bytes:
    pixels = np.tile(np.repeat(np.array(values, dtype), 32), (48, 1))
    return save(Image.fromarray(pixels), format="TIFF")


def animation(kind: str) -> bytes:
    frames = [two_colours(), two_colours(left=GREEN, right=GREEN)]
    return save(frames[0], format=kind, save_all=True, append_images=frames[1:], lossless=True)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    return caught.value.message


def noise(size: tuple[int, int] = (80, 70)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def big_png() -> bytes:
    """90 megapixels: Pillow warns from 89.5 on."""
    return save(Image.new("1", (9500, 9500)), format="PNG")


def gray(level: int) -> Colour:
    return level, level, level


LOSSLESS: dict[str, tuple[Callable[[], bytes], Corners]] = {
    "png": (lambda: save(two_colours(), format="PNG"), (RED, BLUE)),
    "bmp": (lambda: save(two_colours(), format="BMP"), (RED, BLUE)),
    "tiff": (lambda: save(two_colours(), format="TIFF"), (RED, BLUE)),
    "tiff-lzw": (lambda: save(two_colours(), format="TIFF", compression="tiff_lzw"), (RED, BLUE)),
    "ppm": (lambda: save(two_colours(), format="PPM"), (RED, BLUE)),
    "gif": (lambda: save(two_colours(), format="GIF"), (RED, BLUE)),
    "webp": (lambda: save(two_colours(), format="WEBP", lossless=True), (RED, BLUE)),
    "gray": (lambda: save(two_colours("L", 40, 90), format="PNG"), (gray(40), gray(90))),
    "bilevel": (lambda: save(two_colours("1", 0, 1), format="PNG"), (gray(0), WHITE)),
    "pbm": (lambda: save(two_colours("1", 0, 1), format="PPM"), (gray(0), WHITE)),
    "palette": (lambda: palette(None), (RED, BLUE)),
    "palette-key": (lambda: palette(0), (WHITE, BLUE)),
    "palette-alpha-table": (lambda: palette(b"\xff\x00"), (RED, WHITE)),
    "gray-alpha": (
        lambda: save(two_colours("LA", (40, 255), (90, 0)), format="PNG"),
        (gray(40), WHITE),
    ),
    "rgba": (
        lambda: save(two_colours("RGBA", (*RED, 255), (*BLUE, 0)), format="PNG"),
        (RED, WHITE),
    ),
    "rgba-half": (
        lambda: save(two_colours("RGBA", (0, 0, 0, 128), (0, 0, 0, 51)), format="PNG"),
        (gray(127), gray(204)),
    ),
    "rgba-webp": (
        lambda: save(two_colours("RGBA", (*RED, 255), (*BLUE, 0)), format="WEBP", lossless=True),
        (RED, WHITE),
    ),
    "rgba-tiff": (
        lambda: save(two_colours("RGBA", (*RED, 255), (*BLUE, 0)), format="TIFF"),
        (RED, WHITE),
    ),
    "gif-key": (lambda: save(two_colours(), format="GIF", transparency=0), (WHITE, BLUE)),
    "rgb-key": (lambda: save(two_colours(), format="PNG", transparency=RED), (WHITE, BLUE)),
    "gray-key": (
        lambda: save(two_colours("L", 40, 90), format="PNG", transparency=40),
        (WHITE, gray(90)),
    ),
    "gray-16": (
        lambda: png_16(gray16((0x1234, 0xFEDC), ">u2"), channels=1),
        (gray(0x12), gray(0xFE)),
    ),
    "gray-16-key": (
        lambda: png_16(gray16((0x1234, 0xFEDC), ">u2"), channels=1, key=b"\x12\x34"),
        (WHITE, gray(0xFE)),
    ),
    "rgb-16": (
        lambda: png_16(b"\x12\xff\x34\xff\x56\xff" * 64 * 48, channels=3),
        ((0x12, 0x34, 0x56), (0x12, 0x34, 0x56)),
    ),
    "gray-16-tiff": (lambda: tiff_of((0x1234, 0xFEDC), "<u2"), (gray(0x12), gray(0xFE))),
    "gray-16-tiff-big-endian": (
        lambda: tiff_of((0x1234, 0xFEDC), ">u2"),
        (gray(0x12), gray(0xFE)),
    ),
    "gray-32-tiff": (lambda: tiff_of((0x1234, 0xFEDC), "<i4"), (gray(0x12), gray(0xFE))),
    "pgm-16": (
        lambda: b"P5 64 48 65535\n" + gray16((0x1234, 0xFEDC), ">u2"),
        (gray(0x12), gray(0xFE)),
    ),
    "pgm-10-bit": (lambda: b"P5 64 48 1023\n" + gray16((0, 1023), ">u2"), (gray(0), WHITE)),
    "float-to-1": (lambda: tiff_of((0.2, 1.0), "<f4"), (gray(51), WHITE)),
    "float-to-255": (lambda: tiff_of((51.0, 200.0), "<f4"), (gray(51), gray(200))),
    "gif-animation": (lambda: animation("GIF"), (RED, BLUE)),
    "webp-animation": (lambda: animation("WEBP"), (RED, BLUE)),
    "png-animation": (lambda: animation("PNG"), (RED, BLUE)),
    "png-turned": (lambda: with_orientation(3, format="PNG"), (BLUE, RED)),
    "tiff-turned-once": (lambda: with_orientation(3, format="TIFF"), (BLUE, RED)),
    "webp-turned": (lambda: with_orientation(3, format="WEBP", lossless=True), (BLUE, RED)),
    "cmyk-tiff": (
        lambda: save(two_colours("CMYK", (255, 0, 0, 0), (0, 0, 255, 0)), format="TIFF"),
        ((0, 255, 255), (255, 255, 0)),
    ),
}
LOSSY: dict[str, tuple[Callable[[], bytes], Corners]] = {
    "jpeg": (lambda: save(two_colours(), format="JPEG"), (RED, BLUE)),
    "jpeg-progressive": (lambda: save(two_colours(), format="JPEG", progressive=True), (RED, BLUE)),
    "jpeg-gray": (lambda: save(two_colours("L", 40, 90), format="JPEG"), (gray(40), gray(90))),
    "jpeg-cmyk": (
        lambda: save(two_colours("CMYK", (255, 0, 0, 0), (0, 0, 255, 0)), format="JPEG"),
        ((0, 255, 255), (255, 255, 0)),
    ),
    "jpeg-from-phone": (
        lambda: save(two_colours(), format="MPO", save_all=True, append_images=[two_colours()]),
        (RED, BLUE),
    ),
    "jpeg-turned-3": (lambda: with_orientation(3, format="JPEG"), (BLUE, RED)),
    "tiff-jpeg": (lambda: save(two_colours(), format="TIFF", compression="jpeg"), (RED, BLUE)),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_kinds_give_their_exact_colours(tmp_path: Path, kind: str) -> None:
    build, expected = LOSSLESS[kind]
    path = write(tmp_path / "image", build())
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert corners(image) == expected
    check_image(path)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_kinds_give_nearly_their_colours(tmp_path: Path, kind: str) -> None:
    build, expected = LOSSY[kind]
    path = write(tmp_path / "image", build())
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    np.testing.assert_allclose(corners(image), expected, atol=6)
    check_image(path)


@needs_avif
def test_avif_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "image.avif", save(two_colours(), format="AVIF", quality=95))
    np.testing.assert_allclose(corners(read_image(path)), (RED, BLUE), atol=10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    undo = {  # how a camera stores an upright picture under each orientation
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "image.png", exif=exif)
    assert read_image(tmp_path / "image.png").tobytes() == upright.tobytes()


def test_transparent_pixels_show_the_background_asked_for(tmp_path: Path) -> None:
    two_colours("RGBA", (*RED, 255), (*BLUE, 0)).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png", background=GREEN)
    assert corners(image) == (RED, GREEN)


def test_suffix_does_not_matter_and_strings_are_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "image.jpg", save(two_colours(), format="PNG"))
    assert corners(read_image(str(path))) == (RED, BLUE)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").getpixel((0, 0)) == RED


def bomb_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = (
        png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0"))
        + png_chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def huge_text_png() -> bytes:
    content = save(two_colours(), format="PNG")
    text = png_chunk(b"zTXt", b"note\0\0" + zlib.compress(b"a" * 70_000_000, 9))
    return content[:33] + text + content[33:]


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is an empty file"),
    "text": (lambda: b"not an image\n", "is not an image in a supported format"),
    "html": (lambda: b"<html><body>404</body></html>", "is not an image in a supported format"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image in a supported"),
    "eps": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "is not an image in a supported format",
    ),
    "ico": (lambda: save(two_colours(), format="ICO"), "is not an image in a supported format"),
    "png-signature-only": (lambda: b"\x89PNG\r\n\x1a\n", "is not an image"),
    "jpeg-cut": (lambda: save(noise(), format="JPEG")[:3000], "is truncated"),
    "jpeg-header-only": (lambda: save(noise(), format="JPEG")[:300], "is "),
    "png-cut": (lambda: save(noise(), format="PNG")[:3000], "is truncated"),
    "webp-cut": (lambda: save(noise(), format="WEBP")[:3000], "is "),
    "gif-cut": (lambda: save(noise(), format="GIF")[:1000], "is "),
    "bmp-cut": (lambda: save(noise(), format="BMP")[:1000], "is truncated"),
    "tiff-cut": (lambda: save(noise(), format="TIFF")[:1000], "is "),
    "ppm-cut": (lambda: save(noise(), format="PPM")[:1000], "is truncated"),
    "png-zero-width": (lambda: bomb_png(0, 10), "is "),
    "ppm-zero-width": (lambda: b"P6 0 10 255\n", "is "),
    "png-bomb": (lambda: bomb_png(40_000, 40_000), "has more pixels than the 100 megapixels"),
    "png-101-megapixels": (lambda: bomb_png(10_100, 10_000), "has 10100 × 10000 pixels, more than"),
    "png-strip": (lambda: bomb_png(1, 100_000), "has 1 × 100000 pixels, longer than 500:1"),
    "png-huge-text": (huge_text_png, "is damaged ("),
    "tiff-signed-32": (lambda: tiff_of((-5, 70_000), "<i4"), "has integer pixels from -5 to 70000"),
    "tiff-nan": (lambda: tiff_of((float("nan"), 1.0), "<f4"), "has floating-point pixels from nan"),
    "tiff-float-range": (
        lambda: tiff_of((-1.0, 1.0), "<f4"),
        "has floating-point pixels from -1 to 1",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused_with_a_short_reason(tmp_path: Path, kind: str) -> None:
    build, expected = DAMAGED[kind]
    path = write(tmp_path / "image.jpg", build())
    for use in (read_image, check_image):
        with pytest.raises(ImageError) as caught:
            use(path)
        message = caught.value.message
        assert message.startswith(expected)
        assert len(message) <= 120
        assert message.isprintable()
        assert str(tmp_path) not in message


def test_check_finds_the_flipped_bit_that_a_decode_misses(tmp_path: Path) -> None:
    content = bytearray(save(noise(), format="PNG"))
    content[29] ^= 1  # in the header's checksum, which decoding alone may accept
    path = write(tmp_path / "image.png", bytes(content))
    with pytest.raises(ImageError):
        check_image(path)


def test_what_is_no_regular_file_is_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        assert reason(tmp_path / "s.jpg") == "is a socket, not a file"
    assert reason(tmp_path / "fifo.jpg") == "is a named pipe, not a file"
    assert reason(tmp_path) == "is a folder, not a file"
    assert reason(Path("/dev/null")) == "is a device, not a file"
    assert reason(tmp_path / "none.jpg") == "does not exist"
    assert reason(tmp_path / ("x" * 300)) == "cannot be read (file name too long)"
    assert reason(Path("a\0b")).startswith("is damaged (")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert reason(tmp_path / "loop.jpg") == "cannot be read (too many levels of symbolic links)"


@needs_permissions
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "image.png", save(two_colours(), format="PNG"))
    path.chmod(0)
    assert reason(path) == "cannot be read (permission denied)"


@pytest.mark.parametrize("failure", [MemoryError(), SyntaxError("not a TIFF"), RecursionError()])
def test_whatever_a_decoder_raises_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    path = write(tmp_path / "image.png", save(two_colours(), format="PNG"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason(path) in (
        "needs more memory than there is",
        "is damaged (not a TIFF)",
        "is damaged (RecursionError)",
    )


def corrupt_exif_jpeg() -> bytes:
    return save(two_colours(), format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")


@pytest.mark.parametrize("build", [corrupt_exif_jpeg, lambda: palette(b"\xff\x00"), big_png])
def test_pillow_warnings_neither_kill_nor_show(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, build: Callable[[], bytes]
) -> None:
    path = write(tmp_path / "image.png", build())
    before = list(warnings.filters)
    read_image(path)
    check_image(path)
    assert not recwarn.list
    assert warnings.filters == before


def test_threads_read_together_and_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "image.jpg", corrupt_exif_jpeg())
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                read_image(path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before


def test_jpeg_under_four_times_the_target_is_decoded_in_full(tmp_path: Path) -> None:
    noise((1023, 1100)).save(tmp_path / "image.jpg")
    full = read_image(tmp_path / "image.jpg")
    assert read_image(tmp_path / "image.jpg", min_edge=256).tobytes() == full.tobytes()


@pytest.mark.parametrize(("min_edge", "divisor"), [(256, 2), (128, 4), (64, 8), (16, 8), (257, 1)])
def test_larger_jpegs_keep_twice_the_target(tmp_path: Path, min_edge: int, divisor: int) -> None:
    two_colours().resize((1100, 1024)).save(tmp_path / "image.jpg")
    image = read_image(tmp_path / "image.jpg", min_edge=min_edge)
    assert image.size == (-(-1100 // divisor), 1024 // divisor)
    assert divisor == 1 or min(image.size) >= 2 * min_edge
    np.testing.assert_allclose(corners(image), (RED, BLUE), atol=6)


def test_reduced_decoding_turns_the_image_upright_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    two_colours().resize((1024, 512)).save(tmp_path / "image.jpg", exif=exif)
    image = read_image(tmp_path / "image.jpg", min_edge=64)
    assert image.size == (128, 256)
    np.testing.assert_allclose(corners(image), (RED, BLUE), atol=6)


@pytest.mark.parametrize("workers", [0, 2])
def test_check_images_lists_the_bad_ones_in_order(tmp_path: Path, workers: int) -> None:
    good = write(tmp_path / "good.png", save(two_colours(), format="PNG"))
    cut = write(tmp_path / "cut.jpg", save(noise(), format="JPEG")[:3000])
    os.mkfifo(tmp_path / "fifo.jpg")
    paths = [tmp_path / "fifo.jpg", *[good] * 40, cut, good, tmp_path / "gone.jpg"]
    done: list[int] = []
    assert check_images(paths, workers=workers, progress=done.append) == [
        SkippedFile(tmp_path / "fifo.jpg", "is a named pipe, not a file"),
        SkippedFile(cut, "is truncated"),
        SkippedFile(tmp_path / "gone.jpg", "does not exist"),
    ]
    assert sum(done) == len(paths)
    assert check_images([], workers=workers) == []


def test_a_file_that_kills_its_process_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path / "good.png", save(two_colours(), format="PNG"))
    killer = write(tmp_path / "killer.png", save(two_colours(), format="PNG"))
    truly_check = images.check_image

    def check(path: Path) -> None:
        if path == killer:
            os.kill(os.getpid(), signal.SIGKILL)
        truly_check(path)

    monkeypatch.setattr(images, "check_image", check)  # forked workers inherit it
    found = check_images([*[good] * 20, killer, *[good] * 20], workers=2)
    assert found == [SkippedFile(killer, "the process that decoded it died")]


def test_spawned_processes_check_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawning = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))
    monkeypatch.setattr(images, "ProcessPoolExecutor", spawning)
    good = write(tmp_path / "good.png", save(two_colours(), format="PNG"))
    bad = write(tmp_path / "bad.jpg", b"no image")
    found = check_images([good] * 3 + [bad], workers=1)
    assert found == [SkippedFile(bad, "is not an image in a supported format")]


def test_files_too_large_to_be_images_are_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "huge.png", save(two_colours(), format="PNG"))
    os.truncate(path, MAX_FILE_BYTES)  # takes no space: what follows is a hole
    assert read_image(path).size == (64, 48)
    os.truncate(path, 10**12)
    expected = "has 1,000,000 MB, more than the 512 MB allowed"
    assert reason(path) == expected
    with pytest.raises(ImageError, match=expected):
        check_image(path)


def test_mutated_images_are_read_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = [save(noise(), format=kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
    path = tmp_path / "image.bin"
    refused = 0
    for number in range(300):
        content = bytearray(kinds[number % len(kinds)])
        for position in rng.integers(0, min(len(content), 600), 3):
            content[position] ^= 1 << rng.integers(8)
        try:
            assert read_image(write(path, bytes(content))).mode == "RGB"
        except ImageError:
            refused += 1
    assert 30 < refused < 290
