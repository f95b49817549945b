"""Tests of the extras, where they are installed."""

import io
from pathlib import Path

import pytest
from PIL import Image

from vtrain.data.formats import JPEG_XL
from vtrain.data.image_names import INSTALLED_EXTRAS, is_image_name
from vtrain.data.image_plugins import open_by_extra, read_early_size
from vtrain.data.images import MAX_PIXELS, read_image, read_whole
from vtrain.errors import ImageError

needs_heif = pytest.mark.skipif("heif" not in INSTALLED_EXTRAS, reason="needs pillow-heif")
needs_jxl = pytest.mark.skipif("jxl" not in INSTALLED_EXTRAS, reason="needs pillow-jxl-plugin")
RED = (250, 20, 20)


def draw_left_red() -> Image.Image:
    image = Image.new("RGB", (64, 40))
    image.paste(RED, (0, 0, 20, 40))
    return image


def write_turned_jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise: red goes to the top
    draw_left_red().save(path, exif=exif, quality=95)


def assert_red_on_top(path: Path) -> None:
    image = read_image(path)
    assert image.size == (40, 64)
    assert image.mode == "RGB"
    for x, y, expected in ((3, 3, RED), (36, 3, RED), (3, 60, (0, 0, 0))):
        pixel = image.getpixel((x, y))
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) < 12


@needs_heif
def test_heic_is_turned_once_whatever_it_is_called(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    write_turned_jpeg(tmp_path / "a.jpg")
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.heic", quality=95)
    assert_red_on_top(tmp_path / "a.heic")
    assert is_image_name("a.HEIC")
    assert read_whole(tmp_path / "a.heic").format == "HEIF"
    (tmp_path / "a.heic").rename(tmp_path / "phone.jpg")
    assert_red_on_top(tmp_path / "phone.jpg")


@needs_heif
def test_heic_holds_the_limits(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.new("L", (12_000, 9_000)).save(tmp_path / "a.heic")
    with pytest.raises(ImageError, match="more than the 100 megapixels"):
        read_image(tmp_path / "a.heic")
    content = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "cut.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError):
        read_image(tmp_path / "cut.heic")


@needs_jxl
@pytest.mark.filterwarnings("ignore:Using JPEG reconstruction")
def test_jpeg_xl_is_turned_as_its_kind_is(tmp_path: Path) -> None:
    open_by_extra(io.BytesIO(draw_jxl((8, 8))), JPEG_XL)
    write_turned_jpeg(tmp_path / "a.jpg")
    Image.open(tmp_path / "a.jpg").save(tmp_path / "jpeg.jxl")  # the JPEG lies within
    assert_red_on_top(tmp_path / "jpeg.jxl")
    exif = Image.Exif()
    exif[0x112] = 6
    draw_left_red().save(tmp_path / "pixels.jxl", exif=exif.tobytes())
    assert read_image(tmp_path / "pixels.jxl").size == (64, 40)  # its own header counts, not EXIF


def draw_jxl(size: tuple[int, int], *, boxes: bool = False) -> bytes:
    import pillow_jxl  # noqa: F401

    stream = io.BytesIO()
    Image.new("L", size).save(stream, "JXL", use_container=boxes, effort=1)
    return stream.getvalue()


@needs_jxl
@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize(
    "size",
    [(8, 8), (64, 40), (256, 256), (257, 3), (300, 200), (1920, 1080), (1600, 1200), (3000, 17)],
)
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(
    size: tuple[int, int], boxes: bool
) -> None:
    assert read_early_size(io.BytesIO(draw_jxl(size, boxes=boxes)), JPEG_XL) == size


def test_a_size_header_needs_no_decoder() -> None:
    assert read_early_size(io.BytesIO(bytes.fromhex("ff0a09070015880200")), JPEG_XL) == (60, 40)
    with pytest.raises(ValueError, match="no codestream"):
        read_early_size(io.BytesIO(b"\0\0\0\x0cJXL \r\n\x87\n"), JPEG_XL)


@needs_jxl
def test_jpeg_xl_holds_the_limits(tmp_path: Path) -> None:
    assert MAX_PIXELS < 12_000 * 9_000
    path = tmp_path / "a.jxl"
    content = draw_jxl((12_000, 9_000))
    path.write_bytes(content)
    with pytest.raises(ImageError, match="more than the 100 megapixels"):
        read_image(path)
    path.write_bytes(draw_jxl((64, 64))[:20])
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)
