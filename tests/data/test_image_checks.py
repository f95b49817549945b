"""Images are read once, unless anything about them has changed; what is odd about a file."""

import hashlib
import io
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import ExifTags, Image

from tests.data.test_tars import pack
from tests.helpers.tiny import break_image, draw_image, draw_labelled
from tests.helpers.told import Told
from vtrain.data import file_pool, image_checks, images, kept_scans
from vtrain.data.folders import scan_labelled
from vtrain.data.image_checks import (
    FACTS,
    Inspection,
    Trait,
    find_wrong_suffixes,
    format_name,
    hash_pixels,
    inspect_image,
    inspect_images,
    stat_images,
)
from vtrain.data.kept_scans import ScanFile
from vtrain.data.tars import find_status
from vtrain.system.reporter import SILENT, Count


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images; the clock ticks so fast that what was just written can be kept."""
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 0)
    draw_labelled(tmp_path / "set", {"ant": 2, "bee": 2})
    settle()
    return tmp_path / "set"


@pytest.fixture(params=[False, True], ids=["readable", "facts"])
def with_facts(request: pytest.FixtureRequest) -> bool:
    """Whether more is asked than that an image can be read."""
    return bool(request.param)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are truly read."""
    names: list[str] = []
    truly_map = file_pool.map_images

    def map_images(read: Any, paths: Sequence[Path], **named: Any) -> list[Any]:
        names.extend(path.name for path in paths)
        return truly_map(read, paths, **named)

    monkeypatch.setattr(image_checks, "map_images", map_images)
    return names


def settle() -> None:
    time.sleep(0.02)


def look(
    root: Path,
    *,
    with_facts: bool = False,
    paths: Sequence[Path] | None = None,
    workers: int = 0,
    said: list[str] | None = None,
) -> Inspection:
    bar = Count()
    messages: list[str] = []
    paths = scan_labelled(root).paths if paths is None else paths
    found = inspect_images(
        paths,
        root,
        count=len(paths),
        with_facts=with_facts,
        choose_workers=lambda _: workers,
        bar=bar,
        reporter=Told(messages if said is None else said),
    )
    assert bar.n == found.read + found.known == len(paths)
    assert found.readable.sum() == len(paths) - len(found.bad)
    assert len(found.facts) == (len(paths) if with_facts else 0)
    assert messages == []
    return found


def count(root: Path, **named: Any) -> tuple[int, int]:
    """How many images were read, and how many were known."""
    found = look(root, **named)
    return found.read, found.known


def kept_file(tmp_path: Path) -> Path:
    (kept,) = (tmp_path / "cache/scans").glob("images-*")
    return kept


def test_good_images_are_read_once(root: Path, read: list[str], with_facts: bool) -> None:
    first = look(root, with_facts=with_facts)
    assert (first.read, first.known, first.bad) == (4, 0, [])
    again = look(root, with_facts=with_facts)
    assert (again.read, again.known, again.bad) == (0, 4, [])
    assert again.facts.tobytes() == first.facts.tobytes()
    assert again.sizes.tolist() == [path.stat().st_size for path in scan_labelled(root).paths]
    assert len(read) == 4


def test_every_look_gives_the_same_digests(root: Path, read: list[str]) -> None:
    shutil.copy(root / "ant/000.jpg", root / "bee/copy.jpg")
    bad = break_image(root / "ant/bad.jpg")
    settle()
    first = look(root)
    contents = [path.read_bytes() for path in scan_labelled(root).paths]
    digests = [hashlib.sha256(content).digest()[:16] for content in contents]
    digests[[path.name for path in scan_labelled(root).paths].index(bad.name)] = bytes(16)
    again = look(root)
    assert len(read) == len(contents) + 1  # the bad one twice
    with_facts, known = look(root, with_facts=True), look(root, with_facts=True)
    for found in (first, again, with_facts, known):
        assert [each.tobytes() for each in found.digests] == digests
    assert known.facts["digest"].tobytes() == known.digests.tobytes()


def test_whose_facts_are_known_is_known_to_be_readable(root: Path, tmp_path: Path) -> None:
    assert count(root) == (4, 0)
    assert count(root, with_facts=True) == (4, 0)
    assert count(root) == count(root, with_facts=True) == (0, 4)
    kept_file(tmp_path).unlink()
    assert count(root, with_facts=True) == (4, 0)
    assert count(root) == (0, 4)


def test_bad_images_are_read_every_time(root: Path, read: list[str], with_facts: bool) -> None:
    bad = break_image(root / "ant/bad.jpg")
    settle()
    for known in (0, 4):
        read.clear()
        found = look(root, with_facts=with_facts)
        assert [(each.path, each.reason) for each in found.bad] == [(bad, "is truncated")]
        assert found.readable.tolist() == [True, True, False, True, True]
        assert (found.read, found.known) == (5 - known, known)
        assert len(read) == 5 - known
    draw_image(bad)
    settle()
    assert count(root, with_facts=with_facts) == (1, 4)
    assert count(root, with_facts=with_facts) == (0, 5)


def rewrite_with_the_same_times(path: Path) -> None:
    times = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"123456789")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@pytest.mark.parametrize(
    "change",
    [
        rewrite_with_the_same_times,
        replace_by_another,
        lambda path: path.touch(),
        lambda path: path.chmod(0o600),
        lambda path: os.truncate(path, path.stat().st_size - 1),
    ],
)
def test_every_change_leads_to_another_look(
    root: Path, read: list[str], change: Callable[[Path], object]
) -> None:
    look(root)
    read.clear()
    change(root / "bee/001.png")
    settle()
    look(root)
    assert read == ["001.png"]


def test_facts_of_a_changed_image_are_new(root: Path) -> None:
    before = look(root, with_facts=True).facts
    draw_image(root / "ant/001.png", seed=9)
    settle()
    after = look(root, with_facts=True)
    assert (after.read, after.known) == (1, 3)
    assert (after.facts["digest"] == before["digest"]).tolist() == [True, False, True, True]
    assert look(root, with_facts=True).facts.tobytes() == after.facts.tobytes()


def test_renamed_images_stay_known(root: Path) -> None:
    look(root)
    (root / "bee").rename(root / "wasp")
    assert count(root) == (0, 4)


def test_images_that_have_just_changed_are_not_trusted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_facts: bool
) -> None:
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 3_600_000_000_000)
    assert count(root, with_facts=with_facts) == count(root, with_facts=with_facts) == (4, 0)
    assert not (tmp_path / "cache").exists()


def test_a_killed_look_goes_on_where_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, with_facts: bool
) -> None:
    monkeypatch.setattr(image_checks, "_PIECE_FILES", 1)
    truly_map = file_pool.map_images
    calls: list[object] = []

    def die(*arguments: Any, **named: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(None)
        return truly_map(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(image_checks, "map_images", die)
        with pytest.raises(KeyboardInterrupt):
            look(root, with_facts=with_facts)
    assert count(root, with_facts=with_facts) == (2, 2)
    assert count(root, with_facts=with_facts) == (0, 4)


@pytest.mark.parametrize("lost", [1, 8, 50])
def test_a_torn_end_costs_its_own_piece_only(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int, with_facts: bool
) -> None:
    monkeypatch.setattr(image_checks, "_PIECE_FILES", 1)
    look(root, with_facts=with_facts)
    kept = kept_file(tmp_path)
    os.truncate(kept, kept.stat().st_size - lost)
    assert count(root, with_facts=with_facts) == (1, 3)
    assert count(root, with_facts=with_facts) == (0, 4)


@pytest.mark.parametrize("position", [0, 20, 50, 58, 66, 82, 100, -1])
def test_damage_is_found_and_mended(
    root: Path, tmp_path: Path, position: int, with_facts: bool
) -> None:
    before = look(root, with_facts=with_facts)
    kept = kept_file(tmp_path)
    content = bytearray(kept.read_bytes())
    content[position] ^= 1
    kept.write_bytes(content)
    after = look(root, with_facts=with_facts)
    # The checksum of facts that nobody asks for does not matter.
    assert after.known == (4 if position == 82 and not with_facts else 0)
    assert after.facts.tobytes() == before.facts.tobytes()
    assert count(root, with_facts=with_facts) == (0, 4)


def test_another_pillow_reads_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(root)
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert count(root) == (4, 0)


def test_what_grows_without_end_starts_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch, with_facts: bool
) -> None:
    monkeypatch.setattr(image_checks, "_MIN_LIMIT", 5)
    monkeypatch.setattr(image_checks, "_MAX_GROWTH", 1)
    for _ in range(2):
        look(root, with_facts=with_facts)
        (root / "ant/000.jpg").touch()
        (root / "bee/000.jpg").touch()
        settle()
    assert count(root, with_facts=with_facts) == (4, 0)
    assert count(root, with_facts=with_facts) == (0, 4)


def test_a_cache_that_cannot_be_written_is_said_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_checks, "_PIECE_FILES", 1)
    (tmp_path / "cache").touch()
    said: list[str] = []
    assert count(root, said=said) == (4, 0)
    (message,) = said
    assert message.startswith("the scan is not kept for next time: ")
    assert count(root, said=said) == (4, 0)


def test_a_cache_that_can_only_be_read_is_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(root)
    draw_image(root / "ant/new.png", seed=9)
    settle()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    truly_open = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *a, **n: (truly_open if "r" in mode else refuse)(
            path, mode, *a, **n
        ),
    )
    said: list[str] = []
    assert count(root, said=said) == (1, 4)
    folder = tmp_path / "cache/scans"
    assert said == [f"the scan is not kept for next time: {folder}: Read-only file system"]


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    files = [ScanFile("images", tmp_path, ()) for _ in range(3)]
    assert [file.read() for file in files] == [[], [], []]
    files[0].add(b"lost", reporter=SILENT)
    files[1].add(b"b", b"values", reporter=SILENT)  # each began when there was nothing
    files[0].add(b"a", reporter=SILENT)
    assert ScanFile("images", tmp_path, ()).read() == [(b"b", b"values"), (b"a", b"")]
    assert ScanFile("images", tmp_path, ()).read(values=False) == [(b"b", b""), (b"a", b"")]
    assert ScanFile("images", tmp_path, "others").read() == []


def test_members_of_a_tar_are_known_as_well(tmp_path: Path) -> None:
    path = pack(str(tmp_path / "x.tar"), "ant/1.jpg", "bee/1.jpg", "bee/2.jpg")
    settle()
    assert count(path) == (3, 0)
    assert count(path) == (0, 3)
    path.touch()
    settle()
    assert count(path) == (3, 0)


def test_processes_see_the_same_as_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(str(root / "bee/x.tar"), "1.jpg")
    paths = [*scan_labelled(root).paths, root / "bee/x.tar/1.jpg", root / "gone.jpg"]
    keys, sizes = stat_images(paths, workers=0)
    assert sizes.tolist() == [find_status(path).st_size for path in paths[:-1]] + [-1]
    assert len(set(keys.tolist())) == len(paths)
    monkeypatch.setattr(image_checks, "_MIN_PARALLEL", 1)
    monkeypatch.setattr(image_checks, "_BLOCK_FILES", 4)
    shared = stat_images(paths, workers=2)
    assert shared[0].tolist() == keys.tolist()
    assert shared[1].tolist() == sizes.tolist()


def test_known_images_that_are_gone_are_bad(root: Path) -> None:
    look(root)
    paths = scan_labelled(root).paths
    paths[2].unlink()
    found = look(root, paths=paths)
    assert [(each.path, each.reason) for each in found.bad] == [(paths[2], "does not exist")]
    assert (found.read, found.known) == (1, 3)


def test_a_file_that_kills_its_process_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, with_facts: bool
) -> None:
    truly = images._open

    def kill(file: io.BufferedReader) -> object:
        if b"die" in file.read(3):
            os.kill(os.getpid(), signal.SIGKILL)
        file.seek(0)
        return truly(file)

    monkeypatch.setattr(images, "_open", kill)
    (root / "bee/000.jpg").write_bytes(b"die")

    def run_apart(call: Callable[[], object], *, timeout: float) -> str | None:
        path = call.args[1]  # type: ignore[attr-defined]
        return "the process that decoded it died" if path.parts[-2:] == ("bee", "000.jpg") else None

    monkeypatch.setattr(file_pool, "run_apart", run_apart)
    found = look(root, workers=1, with_facts=with_facts)
    assert [(e.path.name, e.reason) for e in found.bad] == [
        ("000.jpg", "the process that decoded it died")
    ]
    assert found.readable.tolist() == [True, True, False, True]


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


def test_suffixes_of_other_formats(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    for name in ("0", "1", "2"):
        draw_image(folder / f"{name}.png")
    (folder / "0.png").rename(folder / "0.jpg")
    Image.open(folder / "1.png").save(folder / "1.png", "JPEG")
    (folder / "2.png").rename(folder / "2")
    paths = sorted(folder.iterdir())
    found = look(folder, paths=paths, with_facts=True)
    assert [paths[i].name for i in find_wrong_suffixes(paths, found)] == ["0.jpg", "1.png"]
    assert format_name(int(found.facts["format"][0])) == "PNG"


def test_pixels_are_compared_as_they_are_seen(tmp_path: Path) -> None:
    path = draw_image(tmp_path / "a.png")
    Image.open(path).save(tmp_path / "b.bmp")
    Image.open(path).rotate(90, expand=True).save(tmp_path / "c.png")
    first, second, third = (hash_pixels(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    assert first == second != third
