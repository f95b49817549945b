"""Facts of images: what is odd about a file, and that none is read twice."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.data.test_checked import settle
from tests.tiny import break_image, draw_image
from vtrain.data import images, inspection, manifest
from vtrain.data.checked import CheckedFiles, read_facts
from vtrain.data.inspection import (
    FACTS,
    Inspection,
    Trait,
    find_wrong_suffixes,
    format_name,
    hash_pixels,
    inspect_image,
    inspect_images,
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "CLOCK_TICK_NS", 0)
    for number in range(3):
        draw_image(tmp_path / f"set/{number}.png", seed=number)
    settle()
    return tmp_path / "set"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are truly read."""
    names: list[str] = []

    def inspect(path: Path) -> bytes:
        names.append(path.name)
        return inspect_image(path)

    monkeypatch.setattr(inspection, "inspect_image", inspect)
    return names


def look(root: Path, *, workers: int = 0) -> Inspection:
    done: list[int] = []
    said: list[str] = []
    paths = sorted(root.iterdir())
    result = inspect_images(
        paths,
        root,
        count=len(paths),
        choose_workers=lambda _: workers,
        progress=done.append,
        notify=said.append,
    )
    assert sum(done) == len(paths)
    assert said == []
    return result


def test_images_are_read_once(root: Path, read: list[str]) -> None:
    first = look(root)
    assert (first.read, first.known, first.bad) == (3, 0, [])
    second = look(root)
    assert (second.read, second.known) == (0, 3)
    assert second.facts.tobytes() == first.facts.tobytes()
    draw_image(root / "1.png", seed=9)
    settle()
    third = look(root)
    assert (third.read, third.known) == (1, 2)
    assert read == ["0.png", "1.png", "2.png", "1.png"]
    assert third.facts["digest"][1] != first.facts["digest"][1]
    assert look(root).known == 3


def test_training_need_not_check_them_again(root: Path) -> None:
    look(root)
    known = CheckedFiles(root, count=3, notify=lambda _: None)
    facts = read_facts(sorted(root.iterdir()), workers=0)
    assert known.find_unknown(facts.keys).tolist() == []


def test_damaged_facts_count_as_nothing(root: Path, tmp_path: Path) -> None:
    before = look(root)
    (kept,) = (tmp_path / "cache/scans").glob("inspected-*")
    content = kept.read_bytes()
    for damaged in (content[:-100], content[:90] + b"?" + content[91:], b"", b"x" * 500):
        kept.write_bytes(damaged)
        after = look(root)
        assert after.known == 0
        assert after.facts.tobytes() == before.facts.tobytes()
        assert look(root).known == 3


def test_unreadable_images_are_named_each_time(root: Path) -> None:
    bad = break_image(root / "1.png")
    settle()
    for known in (0, 2):
        found = look(root)
        assert [(each.path, each.reason) for each in found.bad] == [(bad, "is truncated")]
        assert found.readable.tolist() == [True, False, True]
        assert found.known == known


def test_a_file_that_kills_its_process_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truly = images._open

    def kill(file: io.BufferedReader) -> object:
        if b"die" in file.read(3):
            os.kill(os.getpid(), signal.SIGKILL)
        file.seek(0)
        return truly(file)

    monkeypatch.setattr(images, "_open", kill)
    (root / "1.png").write_bytes(b"die")

    def run_apart(call: Callable[[], object], *, timeout: float) -> str | None:
        path = call.args[1]  # type: ignore[attr-defined]
        return "the process that decoded it died" if path.name == "1.png" else None

    monkeypatch.setattr(images, "run_apart", run_apart)
    found = look(root, workers=1)
    assert [(e.path.name, e.reason) for e in found.bad] == [
        ("1.png", "the process that decoded it died")
    ]
    assert found.readable.tolist() == [True, False, True]


def save(path: Path, image: Image.Image, **options: object) -> int:
    """Save an image; its traits."""
    image.save(path, **options)  # type: ignore[arg-type]
    return int(np.frombuffer(inspect_image(path), FACTS)["traits"][0])


def test_what_is_odd_about_a_file(tmp_path: Path) -> None:
    plain = Image.open(draw_image(tmp_path / "x.png", size=(40, 30)))
    assert save(tmp_path / "a.jpg", plain) == 0
    assert save(tmp_path / "a.png", plain) == 0
    assert save(tmp_path / "b.jpg", plain.convert("CMYK")) == Trait.CMYK
    assert save(tmp_path / "c.png", plain.convert("RGBA")) == Trait.TRANSPARENT
    assert save(tmp_path / "d.png", plain.convert("P")) == Trait.PALETTE
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
    assert save(tmp_path / "e.png", deep) == Trait.DEEP
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert save(tmp_path / "f.jpg", plain, exif=exif) == Trait.TURNED
    facts = np.frombuffer(inspect_image(tmp_path / "f.jpg"), FACTS)[0]
    assert (facts["width"], facts["height"]) == (30, 40)
    frames = [plain, plain.rotate(90)]
    for suffix in ("gif", "webp", "png", "tif"):
        path = tmp_path / f"g.{suffix}"
        traits = save(path, plain, save_all=True, append_images=frames[1:])
        assert traits & Trait.ANIMATED, suffix


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = (b"\0" + b"\1\2" * 6) * 2
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip
    facts = np.frombuffer(inspect_image(path), FACTS)
    assert facts["traits"][0] == Trait.DEEP


def test_suffixes_of_other_formats(root: Path) -> None:
    (root / "0.png").rename(root / "0.jpg")
    Image.open(root / "1.png").save(root / "1.png", "JPEG")
    (root / "2.png").rename(root / "2")
    found = look(root)
    paths = sorted(root.iterdir())
    assert [paths[i].name for i in find_wrong_suffixes(paths, found)] == ["0.jpg", "1.png"]
    assert format_name(int(found.facts["format"][0])) == "PNG"


def test_pixels_are_compared_as_they_are_seen(tmp_path: Path) -> None:
    path = draw_image(tmp_path / "a.png")
    Image.open(path).save(tmp_path / "b.bmp")
    Image.open(path).rotate(90, expand=True).save(tmp_path / "c.png")
    first, second, third = (hash_pixels(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    assert first == second != third
