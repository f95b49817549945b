"""How images are read and checked; every kind of image is in tests/faults/image_kinds.py."""

import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.helpers.pictures import (
    BLUE,
    GREEN,
    RED,
    corners,
    noise,
    palette,
    save,
    two_colours,
)
from vtrain.data import file_pool, images
from vtrain.data.file_pool import map_images
from vtrain.data.image_sets import SkippedFile
from vtrain.data.images import MAX_FILE_BYTES, check_image, read_image
from vtrain.errors import ImageError
from vtrain.system.reporter import Count, Progress


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    return caught.value.message


def big_png() -> bytes:
    """90 megapixels: Pillow warns from 89.5 on."""
    return save(Image.new("1", (9500, 9500)), format="PNG")


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


def find_bad(
    paths: Sequence[Path], *, workers: int, bar: Progress | None = None
) -> list[SkippedFile]:
    """The images that cannot be read, and why."""
    reasons = map_images(check_image, paths, workers=workers, bar=bar)
    found = zip(paths, reasons, strict=True)
    return [SkippedFile(path, reason) for path, reason in found if isinstance(reason, str)]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_found_in_order(tmp_path: Path, workers: int) -> None:
    good = write(tmp_path / "good.png", save(two_colours(), format="PNG"))
    cut = write(tmp_path / "cut.jpg", save(noise(), format="JPEG")[:3000])
    os.mkfifo(tmp_path / "fifo.jpg")
    paths = [tmp_path / "fifo.jpg", *[good] * 40, cut, good, tmp_path / "gone.jpg"]
    bar = Count(len(paths))
    assert find_bad(paths, workers=workers, bar=bar) == [
        SkippedFile(tmp_path / "fifo.jpg", "is a named pipe, not a file"),
        SkippedFile(cut, "is truncated"),
        SkippedFile(tmp_path / "gone.jpg", "does not exist"),
    ]
    assert bar.n == len(paths)
    assert find_bad([], workers=workers) == []


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process that decoded it died"),
        (lambda: time.sleep(600), "reading it takes more than 1 s"),
    ],
)
def test_a_file_that_is_the_end_of_its_process_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], reason: str
) -> None:
    good = write(tmp_path / "good.png", save(two_colours(), format="PNG"))
    killer = write(tmp_path / "killer.png", save(two_colours(), format="PNG"))
    truly_open = images._open_regular

    def open_image(path: Path) -> AbstractContextManager[BinaryIO]:
        if path == killer:
            act()
        return truly_open(path)

    monkeypatch.setattr(images, "_open_regular", open_image)  # forked workers inherit it
    for name in ("_CHECK_SECONDS", "_APART_SECONDS"):
        monkeypatch.setattr(file_pool, name, 1.0)
    found = find_bad([*[good] * 20, killer, *[good] * 20], workers=2)
    assert found == [SkippedFile(killer, reason)]


def test_spawned_processes_check_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawning = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))
    monkeypatch.setattr(file_pool, "ProcessPoolExecutor", spawning)
    good = write(tmp_path / "good.png", save(two_colours(), format="PNG"))
    bad = write(tmp_path / "bad.jpg", b"no image")
    found = find_bad([good] * 3 + [bad], workers=1)
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
