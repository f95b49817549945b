"""`vtrain cache`: what is stored is shown and cleared, whatever the files say of themselves."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.program import Program, assert_refused

FACTS = {
    "backbone": "resnet18",
    "layer": "layer3",
    "precision": "bf16",
    "view": {"augment": "light", "seed": 0},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two stores, used 1 and 40 days ago, and scans used 3 days ago."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VTRAIN_CACHE", str(folder))
    for kind, name, days, size in (
        ("features", "new", 1, 5000),
        ("features", "old", 40, 3000),
        ("scans", "", 3, 700),
    ):
        store = folder / kind / name
        store.mkdir(parents=True)
        (store / "block-1.safetensors").write_bytes(bytes(size))
        if kind == "features":
            (store / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
        rest(store, days)
    return folder


def rest(folder: Path, days: float) -> None:
    """As if nobody had used it for so many days."""
    then = time.time() - 86_400 * days
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


def list_names(program: Program, *arguments: str) -> list[str]:
    shown = json.loads(program("cache", "--json", *arguments).out)
    return [Path(entry["folder"]).name for entry in shown["entries"]]


def test_stores_are_listed_the_last_used_first(program: Program, root: Path) -> None:
    done = program("cache")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["new", "scans", "old"]
    for part in ("resnet18", "layer3", "bf16", "light"):
        assert part in lines[-3]
    assert str(root) in done.err
    assert "removed" not in done.err
    assert program("cache", "-q").err == ""


def test_json_says_everything(program: Program, root: Path) -> None:
    done = program("cache", "--json")
    assert (done.code, done.err) == (0, "")
    shown = json.loads(done.out)
    assert (shown["schema"], shown["folder"], shown["removed"]) == (1, str(root), False)
    new, scans, old = shown["entries"]
    assert (new["kind"], scans["kind"], old["kind"]) == ("features", "scans", "features")
    assert new["facts"] == FACTS
    assert new["size"] == 5000 + len(json.dumps(FACTS))
    assert (scans["size"], scans["facts"]) == (700, {})
    assert old["last_used"] == pytest.approx(time.time() - 40 * 86_400, abs=60)


def test_clear_removes_everything(program: Program, root: Path) -> None:
    done = program("cache", "--clear")
    assert done.code == 0
    assert "removed" in done.err
    assert list((root / "features").iterdir()) == []
    assert not (root / "scans").exists()
    assert list_names(program) == []
    assert program("cache").code == program("cache", "--clear").code == 0


def test_clear_what_was_not_used_for_some_days(program: Program, root: Path) -> None:
    assert list_names(program, "--clear", "--unused-days", "50") == []
    assert list_names(program, "--clear", "--unused-days", "30") == ["old"]
    assert list_names(program) == ["new", "scans"]
    assert list_names(program, "--clear", "--unused-days", "0.5") == ["new", "scans"]
    assert list_names(program) == []


def test_days_without_clear_are_a_mistake(program: Program, root: Path) -> None:
    done = program("cache", "--unused-days", "3")
    assert_refused(done, 2, "--unused-days was given without --clear", "hint: add --clear")
    assert len(list_names(program)) == 3


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_cache_is_no_error(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    folder = tmp_path / "none"
    monkeypatch.setenv("VTRAIN_CACHE", str(folder))
    if exists:
        folder.mkdir()
    done = program("cache")
    assert (done.code, done.out) == (0, "")
    assert str(folder) in done.err
    assert program("cache", "--clear").code == 0
    assert folder.exists() == exists


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[[1, 2]]", b"3", b"null", b"\xff\xfe\x00", b'{"view": 1}',
     b'{"view": null}', b'{"backbone": NaN}', b"[" * 100_000, b'{"backbone": "\\ud800"}', None],
    ids=lambda content: repr(content[:12]) if isinstance(content, bytes) else "a folder",
)  # fmt: skip
def test_facts_that_cannot_be_read_end_nothing(program: Program, root: Path, content: Any) -> None:
    path = root / "features/new/facts.json"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    rest(path.parent, 1)
    shown = program("cache")
    assert shown.code == 0, shown
    assert shown.out.splitlines()[-3].split()[-1] == "new"
    assert list_names(program) == ["new", "scans", "old"]
    assert program("cache", "--clear").code == 0
    assert not (root / "features/new").exists()


def test_a_link_in_the_cache_is_refused_and_what_it_leads_to_is_kept(
    program: Program, root: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious.txt").write_text("mine")
    (root / "features/link").symlink_to(mine)
    assert_refused(program("cache", "--clear"), 2, "cannot remove", "link")
    assert (mine / "precious.txt").read_text() == "mine"


def test_what_another_process_removes_meanwhile_is_no_error(
    program: Program, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = shutil.rmtree

    def race(path: Path, *rest: Any, **settings: Any) -> None:
        original(path)
        original(path, *rest, **settings)

    monkeypatch.setattr("vtrain.system.cache_folder.shutil.rmtree", race)
    done = program("cache", "--clear")
    assert done.code == 0, done
    assert list_names(program) == []


def test_what_a_run_stores_is_listed(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VTRAIN_CACHE", str(folder / "cache"))
    probe = ["fit", "tiny.yaml", "model.weights=runs/tiny-001", "freeze=head"]
    for dry in ([], ["--dry-run"]):
        refused = program(*probe, *dry, "train.cache=features", "data.augment=light")
        assert_refused(refused, 2, "train.cache: features cannot be used", "data.augment=none")
    done = program(*probe, "train.cache=features")
    assert done.code == 0, done
    assert "feature cache: 24 features" in done.err
    shown = json.loads(program("cache", "--json").out)
    (store,) = (entry for entry in shown["entries"] if entry["kind"] == "features")
    assert (store["facts"]["backbone"], store["facts"]["layer"]) == ("simple_cnn", "penultimate")
    assert store["last_used"] == pytest.approx(time.time(), abs=60)
    assert program("cache", "--clear").code == 0
    assert program(*probe, "train.cache=features").code == 0
