"""The cache folder: where it is, what it holds, and what goes first when room is needed."""

import json
import os
import time
from pathlib import Path

import pytest

from vtrain.system.cache_folder import (
    FEATURES,
    SCANS,
    clear_cache,
    find_cache_folder,
    list_cache,
    make_room,
)


def make_store(root: Path, name: str, *, size: int, age: float = 0.0) -> Path:
    """A store of `size` bytes that was used `age` seconds ago."""
    folder = root / FEATURES / name
    folder.mkdir(parents=True)
    (folder / "block-1.safetensors").write_bytes(bytes(size))
    touch(folder, age)
    return folder


def touch(folder: Path, age: float) -> None:
    then = time.time() - age
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"VTRAIN_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/vtrain"),
        ({"HOME": "/c"}, "/c/.cache/vtrain"),
        ({"VTRAIN_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/vtrain"),
    ],
)
def test_where_it_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("VTRAIN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_cache_folder() == Path(expected)


def test_list_measures_and_sorts(tmp_path: Path) -> None:
    old = make_store(tmp_path, "old", size=10, age=500)
    new = make_store(tmp_path, "new", size=20, age=5)
    (new / "facts.json").write_text(json.dumps({"backbone": "vit"}))
    (tmp_path / SCANS).mkdir()
    (tmp_path / SCANS / "one").write_bytes(bytes(7))
    touch(tmp_path / SCANS, 50)
    (tmp_path / FEATURES / "stray.txt").write_text("no store")
    entries = list_cache(tmp_path)
    assert [entry.folder for entry in entries] == [new, tmp_path / SCANS, old]
    assert [entry.size for entry in entries] == [20 + len('{"backbone": "vit"}'), 7, 10]
    assert entries[0].facts == {"backbone": "vit"}
    assert entries[2].last_used == pytest.approx(time.time() - 500, abs=30)
    assert list_cache(tmp_path / "none") == []


def test_room_is_made_from_what_rested_longest(tmp_path: Path) -> None:
    oldest, middle, newest = (
        make_store(tmp_path, name, size=100, age=age)
        for name, age in (("c", 300), ("a", 200), ("b", 100))
    )
    features, new = tmp_path / FEATURES, tmp_path / FEATURES / "new"
    assert make_room(features, needed=50, limit=350, keep={new}) == []
    assert [each.folder for each in make_room(features, needed=51, limit=350, keep={new})] == [
        oldest
    ]
    assert not oldest.exists()
    removed = make_room(features, needed=150, limit=250, keep={middle})
    assert [(each.folder, each.size) for each in removed] == [(newest, 100)]
    assert middle.exists()


def test_the_store_that_is_built_stays_though_it_is_the_oldest(tmp_path: Path) -> None:
    own = make_store(tmp_path, "own", size=100, age=900)
    other = make_store(tmp_path, "other", size=100)
    removed = make_room(tmp_path / FEATURES, needed=1000, limit=10, keep={own})
    assert [each.folder for each in removed] == [other]
    assert own.exists()
    assert make_room(tmp_path / "none", needed=1000, limit=10, keep={own}) == []


def test_a_store_that_another_run_has_just_made_is_the_newest(tmp_path: Path) -> None:
    old = make_store(tmp_path, "old", size=100, age=100)
    just_made = tmp_path / FEATURES / "just-made"
    just_made.mkdir()
    own = tmp_path / FEATURES / "own"
    removed = make_room(tmp_path / FEATURES, needed=10, limit=50, keep={own})
    assert [each.folder for each in removed] == [old]
    assert just_made.exists()


def test_clear_by_age(tmp_path: Path) -> None:
    old = make_store(tmp_path, "old", size=10, age=2 * 86_400)
    new = make_store(tmp_path, "new", size=10)
    assert clear_cache(tmp_path, unused_days=3) == []
    assert [each.folder for each in clear_cache(tmp_path, unused_days=1)] == [old]
    assert [each.folder for each in clear_cache(tmp_path)] == [new]
    assert not old.exists()
    assert not new.exists()
    assert clear_cache(tmp_path) == []
