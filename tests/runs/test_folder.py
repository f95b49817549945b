"""Run folders: numbers, the lock, what resume refuses, and which run is the newest."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vtrain.errors import ExitCode, ModelError, RunLockedError, UsageError
from vtrain.runs.folder import (
    Change,
    FitResult,
    choose_run_dir,
    claim_run_dir,
    find_changes,
    find_newest_run,
    find_run_names,
    glob_escape,
    load_result,
    lock_run,
    require_new_run,
    require_same_run,
    save_result,
)
from vtrain.system.reporter import SILENT

RUNS = Path("runs")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        (RUNS / name).mkdir(parents=True)


# --- numbers -------------------------------------------------------------------------------------


def test_first_run_is_001() -> None:
    assert choose_run_dir(None, "flowers", resume=False) == RUNS / "flowers-001"
    assert not RUNS.exists()


def test_next_run_follows_the_highest_number_and_fills_no_gap() -> None:
    make("flowers-001", "flowers-007")
    assert choose_run_dir(None, "flowers", resume=False) == RUNS / "flowers-008"
    assert choose_run_dir(None, "flowers", resume=True) == RUNS / "flowers-007"


def test_numbers_are_compared_as_numbers() -> None:
    make("flowers-999", "flowers-1000")
    assert choose_run_dir(None, "flowers", resume=False) == RUNS / "flowers-1001"
    assert choose_run_dir(None, "flowers", resume=True) == RUNS / "flowers-1000"


def test_other_names_do_not_count() -> None:
    make("flowers-big-009", "flowers-009-old", "flower-009", "flowers-x", "flowers")
    (RUNS / "flowers-050").write_text("a file, not a run")
    assert choose_run_dir(None, "flowers", resume=False) == RUNS / "flowers-001"
    assert choose_run_dir(None, "flowers-big", resume=False) == RUNS / "flowers-big-010"


@pytest.mark.parametrize("name", ["a[1]", "what?", "x*", "[!a]"])
def test_name_with_glob_characters_matches_only_itself(name: str) -> None:
    make(f"{name}-003", "a1-009", "whatX-009", "xyz-009", "b-009")
    assert choose_run_dir(None, name, resume=False) == RUNS / f"{name}-004"


@pytest.mark.parametrize("text", ["plain", "a[1]*?", "[[]", "]", "[!x]"])
def test_escaped_text_matches_itself(text: str) -> None:
    Path(text).touch()
    Path("another").touch()
    assert [path.name for path in Path().glob(glob_escape(text))] == [text]


def test_nothing_to_resume() -> None:
    make("flowers-big-001")
    with pytest.raises(UsageError, match=r"nothing to resume: no run of flowers below runs/"):
        choose_run_dir(None, "flowers", resume=True)
    with pytest.raises(UsageError, match=r"nothing to resume: runs/a does not exist"):
        choose_run_dir("runs/a", "flowers", resume=True)


def test_given_folder_is_taken_where_it_is_new_or_empty() -> None:
    make("empty")
    assert choose_run_dir("runs/new", "flowers", resume=False) == RUNS / "new"
    assert choose_run_dir("runs/empty", "flowers", resume=False) == RUNS / "empty"
    assert choose_run_dir("runs/empty", "flowers", resume=True) == RUNS / "empty"


def test_given_folder_with_content_is_never_overwritten() -> None:
    make("full")
    (RUNS / "full" / "notes.txt").touch()
    (RUNS / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(UsageError, match=f"runs/{name} exists already") as caught:
            choose_run_dir(f"runs/{name}", "flowers", resume=False)
        assert "--resume" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="runs/full is not the folder of a run"):
        choose_run_dir("runs/full", "flowers", resume=True)


# --- the lock ------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from vtrain.runs.folder import lock_run
from vtrain.system.reporter import SILENT
with lock_run(Path(sys.argv[1]), reporter=SILENT):
    print("held", flush=True)
    time.sleep(20)
"""


def hold_elsewhere(run_dir: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock of `run_dir`."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_lock_of_another_process_is_respected_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = RUNS / "a"
    with hold_elsewhere(run_dir) as process:
        monkeypatch.setattr("vtrain.runs.folder.LOCK_WAIT_SECONDS", 0.05)
        with pytest.raises(RunLockedError, match="run folder runs/a is in use") as caught:
            lock_run(run_dir, reporter=SILENT).__enter__()
        assert caught.value.exit_code == ExitCode.LOCKED
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr("vtrain.runs.folder.LOCK_WAIT_SECONDS", 5.0)
    with lock_run(run_dir, reporter=SILENT):  # nothing has to be cleaned up by hand
        pass


def test_lock_is_free_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.runs.folder.LOCK_WAIT_SECONDS", 0.05)
    with pytest.raises(ZeroDivisionError), lock_run(RUNS / "a", reporter=SILENT):
        raise ZeroDivisionError
    with lock_run(RUNS / "a", reporter=SILENT), lock_run(RUNS / "b", reporter=SILENT):
        assert (RUNS / "a" / "run.lock").exists()


def test_folder_that_cannot_be_created() -> None:
    Path("file").touch()
    with pytest.raises(UsageError, match="cannot write file/a"):
        lock_run(Path("file/a"), reporter=SILENT).__enter__()


# --- what may change -----------------------------------------------------------------------------


def test_changes_are_found_by_name_and_sorted() -> None:
    before = {"b": 1, "a": [1, 2], "same": None, "gone": 3}
    now = {"b": 2, "a": [1, 3], "same": None, "new": 4}
    assert find_changes(before, now) == [
        Change("a", [1, 2], [1, 3]),
        Change("b", 1, 2),
        Change("gone", 3, None),
        Change("new", None, 4),
    ]
    assert find_changes(now, now) == []


def require(*config: Change, data: list[Change] | None = None, done: int = 2) -> list[Change]:
    return require_same_run(RUNS / "a", config=list(config), data=data or [], epochs_done=done)


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("data.workers", 0, 4),
        ("train.device", "cpu", "cuda"),
        ("train.save_every_steps", None, 100),
        ("train.tensorboard", False, True),
        ("train.epochs", 5, 9),
    ],
)
def test_what_does_not_change_the_result_is_allowed(name: str, before: Any, now: Any) -> None:
    change = Change(name, before, now)
    assert require(change) == [change]


def test_moved_run_folder_is_not_worth_a_word() -> None:
    assert require(Change("run_dir", "runs/a", "runs/b")) == []


@pytest.mark.parametrize(
    "name", ["seed", "optim.lr", "data.batch_size", "train.precision", "model.backbone", "freeze"]
)
def test_what_changes_the_result_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        require(Change("data.workers", 0, 1), Change(name, "x", "y"))
    assert caught.value.message == (
        f"runs/a cannot be resumed, because this changed:\n  {name}: x -> y"
    )
    assert caught.value.exit_code == ExitCode.USAGE


def test_all_refused_changes_are_listed() -> None:
    with pytest.raises(UsageError) as caught:
        require(
            Change("seed", 0, 1),
            Change("train.epochs", 5, 4),
            data=[Change("data.train count", 18, 19)],
        )
    lines = caught.value.message.splitlines()[1:]
    assert sorted(lines) == [
        "  data.train count: 18 -> 19",
        "  seed: 0 -> 1",
        "  train.epochs: 5 -> 4",
    ]


@pytest.mark.parametrize(("before", "now", "done"), [(5, 4, 2), (5, 1, 2), (5, 6, 7)])
def test_a_run_is_never_shortened(before: int, now: int, done: int) -> None:
    with pytest.raises(UsageError, match=rf"train\.epochs: {before} -> {now}"):
        require(Change("train.epochs", before, now), done=done)


# --- results -------------------------------------------------------------------------------------

RESULT = FitResult(
    run_dir=RUNS / "a",
    best_epoch=3,
    val_top1=0.9,
    val_macro_f1=1 / 3,
    test_top1=None,
    epochs=4,
    planned_epochs=5,
    seconds=1.5,
)


def finish(name: str, *, time: int, model: bool = True) -> Path:
    run_dir = RUNS / name
    run_dir.mkdir(parents=True)
    save_result(run_dir, replace(RESULT, run_dir=run_dir))
    os.utime(run_dir / "result.json", (time, time))
    if model:
        (run_dir / "model.safetensors").touch()
    return run_dir


def test_result_comes_back_and_is_versioned() -> None:
    run_dir = finish("a", time=1)
    assert load_result(run_dir) == replace(RESULT, run_dir=run_dir, already_finished=True)
    written = json.loads((run_dir / "result.json").read_text())
    assert (written["schema"], written["run_dir"]) == (1, "runs/a")


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "7", "null", "\x00"])
def test_run_without_a_readable_result_has_not_finished(content: str | None) -> None:
    make("a")
    if content is not None:
        (RUNS / "a" / "result.json").write_text(content)
    assert load_result(RUNS / "a") is None


def test_newest_run_is_the_one_that_finished_last() -> None:
    finish("b-001", time=200)
    finish("a-002", time=300)
    finish("a-003", time=100)
    finish("z-without-model", time=900, model=False)
    make("z-unfinished")
    (RUNS / "z-unfinished" / "model.safetensors").touch()
    assert find_newest_run(RUNS) == RUNS / "a-002"
    assert find_run_names(RUNS) == [
        "a-002",
        "a-003",
        "b-001",
        "z-without-model",
    ]


@pytest.mark.parametrize("exists", [False, True])
def test_no_finished_run(exists: bool) -> None:
    if exists:
        make("a")
    with pytest.raises(ModelError, match="no finished run below runs/") as caught:
        find_newest_run(RUNS)
    assert "vtrain fit CONFIG" in (caught.value.hint or "")
    assert find_run_names(RUNS) == []


def test_what_is_no_folder_ends_the_search_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nowhere/x")
    with pytest.raises(UsageError, match="cannot create run folder link"):
        claim_run_dir("link", "c")
    Path("runs").mkdir()
    Path("runs/c-001").touch()
    assert claim_run_dir(None, "c") == Path("runs/c-002")
    Path("runs/d-001").symlink_to("nowhere")
    assert claim_run_dir(None, "d") == Path("runs/d-002")
    shutil.rmtree("runs")
    Path("runs").symlink_to("nowhere")
    with pytest.raises(UsageError, match="cannot create run folder runs/c-001"):
        claim_run_dir(None, "c")


def test_folder_that_another_start_has_used_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    require_new_run(tmp_path)
    (tmp_path / "log.txt").touch()
    with pytest.raises(UsageError, match="has been used by another run"):
        require_new_run(tmp_path)
