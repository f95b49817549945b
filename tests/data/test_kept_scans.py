"""What scans keep: used again exactly as long as nothing has changed, harmless when damaged."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.told import Told
from vtrain.data import kept_scans, walk
from vtrain.data.folders import scan_images, scan_labelled
from vtrain.data.kept_scans import Listing

FILES = ("a/1.png", "a/deep/2.png", "b/3.png", "b/notes.txt")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache; the clock ticks so fast that what was just written can be kept."""
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_scans, "MIN_ENTRIES", 0)
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 0)
    return tmp_path / "cache" / "scans"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for file in FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    settle()
    return root


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that are truly read."""
    folders = []
    truly_read = walk._read_folder

    def read(folder: str) -> Listing:
        folders.append(Path(folder).name)
        return truly_read(folder)

    monkeypatch.setattr(walk, "_read_folder", read)
    return folders


def settle() -> None:
    """Let the clock of the file system tick."""
    time.sleep(0.02)


def scan(root: Path, said: list[str] | None = None) -> tuple[list[str], list[str]]:
    """Names of images and of skipped files."""
    images = scan_labelled(root, reporter=Told(said))
    return [os.fsdecode(place) for place in images.paths.encoded_names()], [
        f"{each.path.relative_to(root)} {each.reason}" for each in images.skipped
    ]


def test_unchanged_folders_are_not_read_again(root: Path, cache: Path, listed: list[str]) -> None:
    first = scan(root)
    assert sorted(listed) == ["a", "b", "deep", "set"]
    assert first == (
        ["a/1.png", "a/deep/2.png", "b/3.png"],
        ["b/notes.txt is not named like an image"],
    )
    (kept,) = cache.iterdir()
    before = kept.stat().st_mtime_ns
    listed.clear()
    assert scan(root) == first
    assert list(scan_images(root)[0].names()) == first[0]
    assert listed == []
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "read_again"),
    [
        (lambda root: (root / "a/deep/9.png").touch(), ["deep"]),
        (lambda root: (root / "b/3.png").unlink(), ["b"]),
        (lambda root: (root / "b/3.png").rename(root / "a/4.png"), ["a", "b"]),
        (lambda root: (root / "b/3.png").rename(root / "b/4.png"), ["b"]),
        (lambda root: (root / "b/notes.txt").rename(root / "b/notes.png"), ["b"]),
        (lambda root: (root / "c").mkdir() or (root / "c/5.png").touch(), ["c", "set"]),
        (lambda root: (root / "a/deep").chmod(0o700), ["deep"]),
    ],
)
def test_a_changed_folder_alone_is_read_again(
    root: Path,
    cache: Path,
    listed: list[str],
    change: Callable[[Path], object],
    read_again: list[str],
) -> None:
    (root / "b/8.png").touch()
    settle()
    scan(root)
    change(root)
    settle()
    listed.clear()
    found = scan(root)
    assert sorted(listed) == read_again
    shutil.rmtree(cache)
    assert scan(root) == found


def test_a_folder_of_the_same_times_put_in_anothers_place(root: Path, listed: list[str]) -> None:
    scan(root)
    times = (root / "b").stat()
    (root / "b").rename(root.parent / "old")
    (root / "b").mkdir()
    (root / "b/new.png").touch()
    os.utime(root / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert scan(root)[0][-1] == "b/new.png"


def test_what_links_lead_to_is_looked_at_every_time(root: Path, listed: list[str]) -> None:
    target, folder = root.parent / "target.png", root.parent / "pool"
    target.touch()
    folder.mkdir()
    (root / "b/link.png").symlink_to(target)
    (root / "b/pool").symlink_to(folder)
    settle()
    found, _ = scan(root)
    assert "b/link.png" in found
    target.unlink()
    (folder / "7.png").touch()
    listed.clear()
    found, skipped = scan(root)
    assert "b/link.png" not in found
    assert "b/pool/7.png" in found
    assert "b/link.png is a broken link" in skipped
    assert listed == ["pool"]


def test_a_folder_that_has_just_changed_is_not_trusted(
    root: Path, cache: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 3_600_000_000_000)
    scan(root)
    assert not cache.exists()
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 0)
    scan(root)
    (root / "a/deep/9.png").touch()
    settle()
    scan(root)
    listed.clear()
    assert "a/deep/9.png" in scan(root)[0]
    assert listed == []


def test_a_folder_from_the_future_is_not_trusted(root: Path, listed: list[str]) -> None:
    tomorrow = time.time() + 86_400
    os.utime(root / "b", (tomorrow, tomorrow))
    scan(root)
    listed.clear()
    scan(root)
    assert listed == ["b"]


def test_folders_that_cannot_be_read_are_tried_again(
    root: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truly_scan = os.scandir
    denied = str(root / "a/deep")

    def deny(path: str) -> object:
        if path == denied:
            raise PermissionError(13, "Permission denied", path)
        return truly_scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", deny)
        assert "a/deep cannot be read (permission denied)" in scan(root)[1]
    assert scan(root) == scan(root)
    assert "a/deep/2.png" in scan(root)[0]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "other root"])
def test_damaged_and_foreign_files_are_ignored_and_replaced(
    root: Path, cache: Path, listed: list[str], damage: str
) -> None:
    expected = scan(root)
    (kept,) = cache.iterdir()
    content = bytearray(kept.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    elif damage == "cut":
        del content[-5:]
    elif damage == "empty":
        content.clear()
    elif damage == "text":
        content[:] = b"[1, 2, 3]"
    elif damage == "other root":
        other = root.with_name("other")
        shutil.copytree(root, other)
        settle()
        scan(other)
        content[:] = next(file for file in cache.iterdir() if file != kept).read_bytes()
    kept.write_bytes(content)
    listed.clear()
    assert scan(root) == expected
    assert len(listed) == 4
    listed.clear()
    assert scan(root) == expected
    assert listed == []


def test_other_rules_make_it_worthless(
    root: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(root)
    listed.clear()
    monkeypatch.setattr(kept_scans, "RULES", [".tga"])
    scan(root)
    assert len(listed) == 4


def test_a_cache_that_cannot_be_written_is_said_and_no_harm(root: Path, cache: Path) -> None:
    expected = scan(root)
    shutil.rmtree(cache)
    cache.touch()  # where the folder should be
    said: list[str] = []
    assert scan(root, said) == expected
    (message,) = said
    assert message.startswith(f"the scan is not kept for next time: {cache}: ")


def test_small_folders_leave_nothing_behind(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_scans, "MIN_ENTRIES", 100)
    scan(root)
    assert not cache.exists()


def test_any_name_survives(root: Path, listed: list[str]) -> None:
    for name in ("é.png", "line\nend.png", 'quote".png', os.fsdecode(b"\xff.png"), " .png"):
        (root / "a" / name).touch()
    settle()
    expected = scan(root)
    listed.clear()
    assert scan(root) == expected
    assert len(expected[0]) == 8
    assert listed == []


def test_a_root_is_known_under_any_of_its_names(
    root: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scan(root)
    listed.clear()
    monkeypatch.chdir(root)
    assert list(map(os.fsdecode, scan_labelled(Path()).paths.encoded_names())) == expected[0]
    (root.parent / "link").symlink_to(root)
    assert scan(root.parent / "link")[0] == expected[0]
    assert listed == []


@pytest.mark.soak
def test_a_hundred_thousand_files(tmp_path: Path) -> None:
    for number in range(100):
        folder = tmp_path / "set" / f"class{number:03}"
        folder.mkdir(parents=True)
        for file in range(1000):
            (folder / f"{file:06}.jpg").touch()
    settle()
    first = scan_labelled(tmp_path / "set")
    started = time.perf_counter()
    assert scan_labelled(tmp_path / "set") == first
    assert time.perf_counter() - started < 5
    assert len(first) == 100_000
