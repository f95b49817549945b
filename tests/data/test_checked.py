"""Images that were found good are not read again, unless anything about them has changed."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL
import pytest

from tests.data.test_shards import pack
from tests.tiny import break_image, draw_image, draw_labelled
from vtrain.data import checked, manifest
from vtrain.data.checked import CheckedFiles, CheckResult, check_unknown
from vtrain.data.folders import scan_labelled
from vtrain.data.images import check_images
from vtrain.data.manifest import kept_file
from vtrain.data.shards import find_status
from vtrain.records import SkippedFile


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images; the clock ticks so fast that what was just written can be kept."""
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "CLOCK_TICK_NS", 0)
    draw_labelled(tmp_path / "set", {"ant": 2, "bee": 2})
    settle()
    return tmp_path / "set"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are truly checked."""
    names: list[str] = []
    truly_check = check_images

    def check(
        paths: Sequence[Path], *, workers: int, progress: Callable[[int], object]
    ) -> list[SkippedFile]:
        names.extend(path.name for path in paths)
        return truly_check(paths, workers=workers, progress=progress)

    monkeypatch.setattr(checked, "check_images", check)
    return names


def settle() -> None:
    time.sleep(0.02)


def check(root: Path, said: list[str] | None = None, *, count: int = 4) -> CheckResult:
    done: list[int] = []
    images = scan_labelled(root)
    known = CheckedFiles(root, count=count, notify=(said if said is not None else []).append)
    result = check_unknown(images.paths, known, choose_workers=lambda _: 0, progress=done.append)
    assert sum(done) == len(images)
    return result


def test_good_images_are_checked_once(root: Path, read: list[str]) -> None:
    assert check(root) == CheckResult([], 4, 0)
    assert check(root) == CheckResult([], 0, 4)
    assert len(read) == 4


def test_bad_images_are_checked_every_time(root: Path, read: list[str]) -> None:
    bad = break_image(root / "ant/bad.jpg")
    settle()
    first = check(root)
    assert [each.path for each in first.bad] == [bad]
    read.clear()
    assert check(root) == CheckResult(first.bad, 1, 4)
    assert read == ["bad.jpg"]
    draw_image(bad)
    settle()
    assert check(root) == CheckResult([], 1, 4)
    assert check(root) == CheckResult([], 0, 5)


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
def test_every_change_leads_to_a_check(
    root: Path, read: list[str], change: Callable[[Path], object]
) -> None:
    check(root)
    read.clear()
    change(root / "bee/001.png")
    settle()
    check(root)
    assert read == ["001.png"]


def test_renamed_images_stay_known(root: Path, read: list[str]) -> None:
    check(root)
    read.clear()
    (root / "bee").rename(root / "wasp")
    assert check(root) == CheckResult([], 0, 4)


def test_images_that_have_just_changed_are_not_trusted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "CLOCK_TICK_NS", 3_600_000_000_000)
    assert check(root) == check(root) == CheckResult([], 4, 0)
    assert not kept_file("checked", root).exists()


def test_a_killed_check_goes_on_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_PIECE_FILES", 1)
    killed: list[Path] = []

    def die(
        paths: Sequence[Path], *, workers: int, progress: Callable[[int], object]
    ) -> list[SkippedFile]:
        if len(killed) == 2:
            raise KeyboardInterrupt
        killed.extend(paths)
        return check_images(paths, workers=workers, progress=progress)

    with monkeypatch.context() as patch:
        patch.setattr(checked, "check_images", die)
        with pytest.raises(KeyboardInterrupt):
            check(root)
    assert check(root) == CheckResult([], 2, 2)
    assert check(root) == CheckResult([], 0, 4)


@pytest.mark.parametrize("lost", [1, 8, 15])
def test_a_torn_end_costs_its_own_piece_only(
    root: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(checked, "_PIECE_FILES", 1)
    check(root)
    kept = kept_file("checked", root)
    os.truncate(kept, kept.stat().st_size - lost)
    assert check(root) == CheckResult([], 1, 3)
    assert check(root) == CheckResult([], 0, 4)


@pytest.mark.parametrize("position", [0, 20, 60, -1])
def test_damage_is_found_and_mended(root: Path, position: int) -> None:
    check(root)
    kept = kept_file("checked", root)
    content = bytearray(kept.read_bytes())
    content[position] ^= 1
    kept.write_bytes(content)
    assert check(root) == CheckResult([], 4, 0)
    assert check(root) == CheckResult([], 0, 4)


def test_another_pillow_checks_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(root)
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert check(root) == CheckResult([], 4, 0)


def test_results_that_grow_without_end_start_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "_MIN_LIMIT", 5)
    monkeypatch.setattr(checked, "_MAX_GROWTH", 1)
    for _ in range(2):
        check(root)
        (root / "ant/000.jpg").touch()
        (root / "bee/000.jpg").touch()
        settle()
    assert check(root) == CheckResult([], 4, 0)
    assert check(root) == CheckResult([], 0, 4)


def test_a_cache_that_cannot_be_written_is_said_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    said: list[str] = []
    assert check(root, said) == CheckResult([], 4, 0)
    (message,) = said
    assert message.startswith("which images are good is not kept for next time: ")
    assert check(root) == CheckResult([], 4, 0)


def test_members_of_a_tar_are_known_as_well(tmp_path: Path, read: list[str]) -> None:
    path = pack(str(tmp_path / "x.tar"), "ant/1.jpg", "bee/1.jpg", "bee/2.jpg")
    settle()
    assert check(path) == CheckResult([], 3, 0)
    assert check(path) == CheckResult([], 0, 3)
    path.touch()
    settle()
    assert check(path) == CheckResult([], 3, 0)


def test_processes_see_the_same_as_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(str(root / "bee/x.tar"), "1.jpg")
    paths = [*scan_labelled(root).paths, root / "bee/x.tar/1.jpg", root / "gone.jpg"]
    alone = checked.read_facts(paths, workers=0)
    assert alone.sizes.tolist() == [find_status(path).st_size for path in paths[:-1]] + [-1]
    assert len(set(alone.keys.tolist())) == len(paths)
    monkeypatch.setattr(checked, "_MIN_PARALLEL", 1)
    monkeypatch.setattr(checked, "_BLOCK_FILES", 4)
    shared = checked.read_facts(paths, workers=2)
    assert shared.keys.tolist() == alone.keys.tolist()
    assert shared.sizes.tolist() == alone.sizes.tolist()


def test_known_images_that_are_gone_are_bad(root: Path) -> None:
    check(root)
    images = scan_labelled(root)
    images.paths[2].unlink()
    known = CheckedFiles(root, count=4, notify=print)
    assert len(known) == 4
    result = check_unknown(images.paths, known, choose_workers=lambda _: 0, progress=print)
    assert result == CheckResult([SkippedFile(images.paths[2], "does not exist")], 1, 3)
