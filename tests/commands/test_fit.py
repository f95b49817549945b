"""vtrain fit: what it prints where, and how a run is stopped and continued."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.program import (
    Program,
    TerminalProgram,
    assert_refused,
    lasting_lines,
    read_lines,
    start_process,
    wait_for_line,
    without_styles,
)
from vtrain.errors import ExitCode
from vtrain.runs.profile import SECTIONS

EPOCH = re.compile(
    r"epoch +\d+/\d+ \w+  top-1 0\.\d{4}  F1 0\.\d{4}  val loss \d+\.\d{4}  train loss \d+\.\d{4}"
    r"  [\d.]+ s  \d+ img/s  wait \d+%  lr \d\.\d\de-\d\d( best)?"
)


def test_stdout_is_the_run_folder_and_stderr_the_story(folder: Path, program: Program) -> None:
    shutil.copytree("images/val", "images/test")
    done = program("fit", "tiny.yaml", "data.test=images/test")
    assert done.code == 0
    assert done.out == "runs/tiny-002\n"
    assert "18 train, 6 val, 6 test images of 3 classes" in done.err
    epochs = read_lines(done.talk, "epoch")
    assert len(epochs) == 2
    assert all(EPOCH.fullmatch(line) for line in epochs), epochs
    assert re.search(
        r"^runs/tiny-002 took [\d.]+ s: best epoch \d, val top-1 0\.\d{4}, macro F1 0\.\d{4}, "
        r"test top-1 0\.\d{4}$",
        done.err,
        re.MULTILINE,
    )
    assert done.talk[-1] == "next: vtrain predict IMAGE -m runs/tiny-002"
    assert "\r" not in done.err
    assert "\x1b" not in done.err


def test_the_log_has_what_was_said(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml")
    log = Path("runs/tiny-002/log.txt").read_text()
    plain = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in log.splitlines()]
    said = [line for line in done.talk if not line.startswith(("runs/", "next: "))]
    assert plain == said
    assert any(line.startswith("phase finetune, 2 epochs") for line in plain)


def test_quiet_run_says_nothing_but_its_log_does(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "--quiet")
    assert (done.code, done.out, done.err) == (0, "runs/tiny-002\n", "")
    assert len(re.findall(" epoch ", Path("runs/tiny-002/log.txt").read_text())) == 2


def test_overrides_reach_the_run(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "train.epochs=1", "run_dir=runs/mine", "seed=7", "-q")
    assert done.out == "runs/mine\n"
    rows = Path("runs/mine/metrics.jsonl").read_text().splitlines()
    assert len(rows) == 1
    assert "seed: 7" in Path("runs/mine/config.resolved.yaml").read_text()


def test_dry_run_shows_the_plan_and_writes_nothing(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "--dry-run")
    assert (done.code, done.out) == (0, "")
    assert "block1" in done.err
    assert read_lines(done.talk, "time: about ")
    assert "would write: runs/tiny-002, its model to runs/tiny-002/model.safetensors" in done.err
    assert not read_lines(done.talk, "epoch")
    assert [path.name for path in Path("runs").iterdir()] == ["tiny-001"]


def test_dry_run_as_json(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "--dry-run", "--json")
    assert done.code == 0
    record = json.loads(done.out)
    assert (record["schema"], record["run_dir"]) == (1, "runs/tiny-002")
    assert [phase["name"] for phase in record["phases"]] == ["finetune"]
    assert "phase finetune" not in done.err


def test_dry_run_of_nothing_else(folder: Path, program: Program) -> None:
    both = program("fit", "tiny.yaml", "--dry-run", "--resume")
    assert_refused(both, 2, "--dry-run and --resume were both given")
    assert_refused(program("fit", "tiny.yaml", "--dry-run", "--profile"), 2, "--profile")
    assert_refused(program("fit", "tiny.yaml", "--json"), 2, "--json was given without --dry-run")
    taken = program("fit", "tiny.yaml", "--dry-run", "run_dir=runs/tiny-001")
    assert_refused(taken, 2, "runs/tiny-001 exists already")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_dry_run_on_a_terminal_keeps_to_its_columns(
    folder: Path, terminal: TerminalProgram, columns: int
) -> None:
    code, shown = terminal("fit", "tiny.yaml", "--dry-run", columns=columns)
    assert code == 0
    lines = [without_styles(line) for line in lasting_lines(shown)]
    first, last = lines.index("learning rate"), lines.index("o head   x backbone")
    plot = lines[first : last + 1]
    assert len(plot) >= 12
    assert max(map(len, plot)) == min(columns, 100)
    assert any("│" in line for line in plot)
    rows = [line for line in lines if line.startswith(("phase ", "finetune ", "block1 "))]
    tables = [row for row in rows if not row.startswith("phase finetune")]
    assert max(map(len, tables)) <= columns


def test_dry_run_is_stopped_by_ctrl_c(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vtrain.training.step.Trainer.train_epoch", interrupt)
    done = program("fit", "tiny.yaml", "--dry-run")
    assert done.code == ExitCode.INTERRUPTED
    assert done.talk[-1] == "error: stopped: nothing was written"
    assert [path.name for path in Path("runs").iterdir()] == ["tiny-001"]


def test_existing_run_folder(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "run_dir=runs/tiny-001")
    assert_refused(done, 2, "runs/tiny-001 exists already", "--resume")


def test_resume_of_a_finished_run_changes_nothing(folder: Path, program: Program) -> None:
    before = Path("runs/tiny-001/model.safetensors").read_bytes()
    done = program("fit", "tiny.yaml", "--resume")
    assert (done.code, done.out) == (0, "runs/tiny-001\n")
    assert "runs/tiny-001 was finished already: best epoch" in done.err
    assert Path("runs/tiny-001/model.safetensors").read_bytes() == before
    longer = program("fit", "tiny.yaml", "--resume", "train.epochs=3")
    assert (longer.code, len(read_lines(longer.talk, "epoch"))) == (0, 1)


def test_nothing_to_resume(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "--resume", "run_dir=runs/other")
    assert_refused(done, 2, "nothing to resume", "hint: start without --resume")


def test_sigterm_saves_the_run_and_resume_ends_it(folder: Path, program: Program) -> None:
    # Saving at every step makes the epochs long enough to hit one.
    slow = "train.save_every_steps=1"
    with start_process("fit", "tiny.yaml", "train.epochs=20", slow) as process:
        wait_for_line(process, "epoch  1/20")
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.STOPPED, err
    assert out == ""
    assert "SIGTERM received: finishing this step, then saving" in err
    assert re.search(r"^error: stopped at step \d+, saved in runs/tiny-002$", err, re.MULTILINE)
    assert err.splitlines()[-1].startswith("hint: continue with the same command and --resume")
    assert "Traceback" not in err
    done = program("fit", "tiny.yaml", "train.epochs=20", "--resume")
    assert (done.code, done.out) == (0, "runs/tiny-002\n")
    assert "resumed runs/tiny-002 after epoch" in done.err
    rows = Path("runs/tiny-002/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(1, 21))


@pytest.mark.soak
@pytest.mark.parametrize("delay", [number / 5 for number in range(1, 25)])
def test_ctrl_c_at_any_moment_is_no_traceback(folder: Path, delay: float) -> None:
    arguments = ("fit", "tiny.yaml", "train.epochs=500", "data.workers=2")
    with start_process(*arguments, session=True) as process:
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)  # loader workers get it as well
        out, err = process.communicate(timeout=60)
    # Python ends itself by the signal where it hit an exec() of an import; shells call that 130.
    assert process.returncode in (ExitCode.INTERRUPTED, -signal.SIGINT), err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.soak  # tests/system/test_terminal.py has it without a process
def test_run_outlives_the_reader_of_its_talk(folder: Path) -> None:
    # As in `vtrain fit tiny.yaml 2>&1 | head -1`: training must not die of it.
    with start_process("fit", "tiny.yaml") as process:
        wait_for_line(process, "data: ")
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(timeout=60) == 0
    assert Path("runs/tiny-002/result.json").exists()
    assert "epoch 2/2" in Path("runs/tiny-002/log.txt").read_text()


def test_profile_of_a_real_run(folder: Path, program: Program) -> None:
    settings = ("train.epochs=1", "train.report=true")
    done = program("fit", "tiny.yaml", "--profile", "run_dir=runs/p", *settings)
    assert done.code == 0, done.err
    title = next(line for line in done.talk if line.startswith("profile of "))
    rows = done.talk[done.talk.index(title) + 2 :]
    assert [row.split()[0] for row in rows[:3]] == ["features", "wait", "transfer"]
    profile = json.loads((folder / "runs/p/profile.json").read_text())
    assert set(profile["seconds"]) == {*SECTIONS, "other"}
    assert sum(profile["seconds"].values()) == pytest.approx(profile["total"])
    assert profile["seconds"]["forward"] > 0
