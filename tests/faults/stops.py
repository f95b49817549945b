"""Signals to a training process: it saves, says how to go on, leaves nothing running, in time."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.case import Case
from tests.faults.command import set_value, signal_at
from tests.faults.processes import Running, run_to_end, started
from tests.faults.training import RECIPES, Recipe, build_fit, require_same, undisturbed
from vtrain.runs.checkpoint import load_checkpoint
from vtrain.system.signals import GRACE_SECONDS
from vtrain.training.step import Trainer

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
SECONDS = 10.0
SOURCE = Path(__file__).parents[2]
# Where a command is while it waits for nothing of ours.
POINTS = (
    ("vtrain.runs.fit", "choose_run_dir", 1),
    ("vtrain.runs.plan", "scan_splits", 1),
    ("vtrain.runs.plan", "check_splits", 1),
    ("vtrain.runs.fit", "claim_run_dir", 1),
    ("vtrain.runs.fit", "write_description", 1),
    ("vtrain.runs.stopping", "StopVote.is_decided", 3),
    ("vtrain.runs.validation", "Validation.__call__", 2),
    ("vtrain.runs.saved_state", "save_checkpoint", 2),
    ("vtrain.runs.epochs", "enter_phase", 1),
    ("vtrain.runs.fit", "evaluate_best", 1),
    ("vtrain.runs.fit", "save_result", 1),
    ("vtrain.inference.feature_store", "BlockWriter.add", 1),
)
SHORT_RANDOM, FULL_RANDOM = 4, 120
STARTS = (0.05, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0)  # seconds


def cases(full: bool) -> Iterator[Case]:
    """Named points, random moments, twice, and processes that have hardly begun."""
    for number, point in enumerate(POINTS if full else POINTS[1::2]):
        chosen = NUMBERS if full else [NUMBERS[number % len(NUMBERS)]]
        for each in chosen:
            recipe = RECIPES[(number + each) % len(RECIPES)]
            group = (number + each) % 2 == 0
            title = f"{each.name} before call {point[2]} of {point[1]}, {_to(group)}, {recipe.name}"
            send = partial(signal_at, *point, number=each, group=group)
            yield Case(title, partial(_at_point, recipe=recipe, number=each, send=send))
    for seed in range(FULL_RANDOM if full else SHORT_RANDOM):
        recipe = RECIPES[seed % len(RECIPES)]
        yield Case(f"moment {seed}, {recipe.name}", partial(_at_random, recipe=recipe, seed=seed))
    for each in NUMBERS if full else NUMBERS[-1:]:
        yield Case(f"{each.name} twice", partial(_twice, number=each))
    grace = GRACE_SECONDS if full else 1.0
    yield Case("a step that never ends", partial(_in_a_long_step, grace=grace))
    for number, seconds in enumerate(STARTS if full else STARTS[2:3]):
        each = NUMBERS[number % len(NUMBERS)]
        title = f"{each.name} {seconds:g} s after the start of Python"
        yield Case(title, partial(_while_starting, seconds=seconds, number=each))
    if full:
        for each in (signal.SIGTERM, signal.SIGINT):
            yield Case(f"{each.name} to torchrun", partial(_under_torchrun, number=each))


def _to(group: bool) -> str:
    return "to the group" if group else "to it alone"


def _expected_code(number: int) -> int:
    return 130 if number == signal.SIGINT else 75


def _at_point(folder: Path, *, recipe: Recipe, number: int, send: partial[None]) -> None:
    with started(build_fit(recipe, folder, before=send)) as running:
        # 0: not every recipe gets to every point.
        _require_stopped(running, number, running.wait())
    _resume(folder, recipe)


def _at_random(folder: Path, *, recipe: Recipe, seed: int) -> None:
    generator = random.Random(seed)
    number = NUMBERS[seed % len(NUMBERS)]
    _, duration = undisturbed(recipe)
    with started(build_fit(recipe, folder)) as running:
        until = time.monotonic() + generator.uniform(0.0, duration)
        while running.is_running and time.monotonic() < until:
            time.sleep(0.002)
        running.wait_for(lambda: running.has_begun, "the start of vtrain")
        running.send(number, group=seed % 2 == 0)
        sent = time.monotonic()
        code = running.wait()
        assert time.monotonic() - sent < SECONDS, running.text()
        _require_stopped(running, number, code)
    _resume(folder, recipe)


def _require_stopped(running: Running, number: int, code: int) -> None:
    text = running.text()
    assert code in (_expected_code(number), 0), f"exit code {code}: {text}"
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text
    if code and "error:" in text:
        assert "stopped" in text or "interrupted" in text, text
        assert "hint: " in text, text
    running.require_no_others()


def _twice(folder: Path, *, number: int) -> None:
    """The second signal does not wait for the end of a step; the checkpoint is the last one."""
    recipe = RECIPES[2]
    before = partial(_hang_in_step, step=6)
    with started(build_fit(recipe, folder, before=before)) as running:
        running.wait_for(lambda: (folder / "hangs").exists(), "the step that hangs")
        running.send(number)
        running.wait_for(lambda: "finishing this step" in running.text(), "the answer")
        time.sleep(0.5 if number == signal.SIGINT else 2.2)  # sooner it would be an echo
        sent = time.monotonic()
        running.send(number)
        code = running.wait()
        assert time.monotonic() - sent < SECONDS / 2
        assert code == _expected_code(number), running.text()
        assert "stopped run at once: its checkpoint is of step 5" in running.text()
        running.require_no_others()
    assert load_checkpoint(folder / "run" / "last.ckpt").state.step == 5
    _resume(folder, recipe)


def _in_a_long_step(folder: Path, *, grace: float) -> None:
    """One signal is enough: after some seconds the step is given up."""
    recipe = RECIPES[2]
    before = partial(_hang_in_step, step=6, grace=grace)
    with started(build_fit(recipe, folder, before=before)) as running:
        running.wait_for(lambda: (folder / "hangs").exists(), "the step that hangs")
        sent = time.monotonic()
        running.send(signal.SIGTERM)
        assert running.wait() == 75, running.text()
        assert time.monotonic() - sent < SECONDS
        assert "its checkpoint is of step 5" in running.text()
    _resume(folder, recipe)


def _hang_in_step(step: int, grace: float = GRACE_SECONDS) -> None:
    set_value("vtrain.system.signals", "GRACE_SECONDS", grace)
    original = Trainer.take_step

    def hang(self: Trainer, *arguments: Any, **named: Any) -> None:
        if self.state.step + 1 == step:
            Path("hangs").touch()
            while True:
                time.sleep(0.01)
        original(self, *arguments, **named)

    Trainer.take_step = hang  # type: ignore[method-assign]


def _while_starting(folder: Path, *, seconds: float, number: int) -> None:
    """A whole new process, in which Python and torch are still being loaded."""
    recipe = RECIPES[0]
    command = build_fit(recipe, folder)
    with subprocess.Popen(
        [sys.executable, "-m", "vtrain", *command.arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "VTRAIN_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        preexec_fn=_heed_signals,
    ) as process:
        _wait_for_python(process)
        time.sleep(seconds)
        process.send_signal(number)
        sent = time.monotonic()
        text, _ = process.communicate(timeout=60)
    assert time.monotonic() - sent < SECONDS, text
    assert process.returncode in (_expected_code(number), 0), f"{process.returncode}: {text}"
    assert "Traceback" not in text, text
    _resume(folder, recipe)


def _heed_signals() -> None:
    """Undo what a parent in the background, or under nohup, has ignored."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)


def _wait_for_python(process: "subprocess.Popen[str]") -> None:
    """Wait until the process answers signals by itself, which takes it some 20 ms."""
    mask = 1 << (signal.SIGUSR1 - 1)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = status.partition("SigCgt:")[2].split()[0]
        if int(caught, 16) & mask:
            return
        time.sleep(0.002)


def _under_torchrun(folder: Path, *, number: int) -> None:
    """Both processes stop at the same step; torchrun hands a signal on."""
    recipe = RECIPES[0]
    command = build_fit(recipe, folder, "train.save_every_steps=1")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vtrain"]
    environ = {**os.environ, "PYTHONPATH": str(SOURCE), "VTRAIN_CACHE": str(folder / "cache")}
    outcomes = []
    for stop in (True, False):
        with subprocess.Popen(
            [*line, *command.arguments, "train.epochs=30"],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            preexec_fn=_heed_signals,
        ) as process:
            if stop:
                deadline = time.monotonic() + 90
                while not (folder / "run" / "last.ckpt").exists() and process.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                os.killpg(process.pid, number)
            text, _ = process.communicate(timeout=120)
        outcomes.append(text)
    assert "saved in run" in outcomes[0], outcomes[0]
    assert process.returncode == 0, outcomes[1]
    assert "resumed run after epoch" in outcomes[1], outcomes[1]


def _resume(folder: Path, recipe: Recipe) -> None:
    code, text = run_to_end(build_fit(recipe, folder))
    assert code == 0, text
    require_same(recipe, folder / "run")
