"""`kill -9` of a training process: at named points of its work, and whenever it happens to come."""

import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.case import Case
from tests.faults.command import kill_at
from tests.faults.processes import run_to_end, started
from tests.faults.training import RECIPES, Recipe, build_fit, require_same, undisturbed

# Module, function, call, and whether after it.
POINTS = (
    ("vtrain.runs.fit", "claim_run_dir", 1, True),
    ("vtrain.runs.fit", "write_description", 1, True),
    ("vtrain.runs.saved_state", "save_model", 1, False),
    (
        "vtrain.runs.saved_state",
        "save_model",
        1,
        True,
    ),  # newer than the checkpoint
    ("vtrain.system.files", "_commit", 3, False),  # the new content is in a temporary file
    ("vtrain.system.files", "_keep_as", 1, True),  # two names for one checkpoint
    ("vtrain.system.files", "_keep_as", 2, False),
    ("vtrain.system.files", "sync_folder", 5, False),
    (
        "vtrain.runs.saved_state",
        "save_checkpoint",
        2,
        True,
    ),  # the metrics are older
    ("vtrain.runs.saved_state", "write_metrics", 2, True),
    ("vtrain.runs.epochs", "enter_phase", 1, True),
    ("vtrain.runs.validation", "Validation.__call__", 2, False),
    ("vtrain.runs.stopping", "StopVote.is_decided", 5, False),
    ("vtrain.runs.epochs", "describe_epoch", 3, True),
    ("vtrain.runs.fit", "evaluate_best", 1, False),
    ("vtrain.runs.fit", "save_result", 1, False),
    ("vtrain.runs.fit", "save_result", 1, True),
    ("vtrain.inference.feature_store", "BlockWriter.add", 1, True),
)
SHORT_RANDOM = 13
FULL_RANDOM = 500


def cases(full: bool) -> Iterator[Case]:
    """Every point with every recipe, and 500 random moments; or each point once, and a few."""
    for number, (module, name, call, after) in enumerate(POINTS):
        recipes = RECIPES if full else [RECIPES[number % len(RECIPES)]]
        if not full and number % 3 == 2:
            continue
        for recipe in recipes:
            when = "after" if after else "before"
            title = f"{when} call {call} of {name}, {recipe.name}"
            point = partial(kill_at, module, name, call, after=after)
            yield Case(title, partial(_kill_at_point, recipe=recipe, point=point))
    for seed in range(FULL_RANDOM if full else SHORT_RANDOM):
        recipe = RECIPES[seed % len(RECIPES)]
        yield Case(
            f"moment {seed}, {recipe.name}", partial(_kill_at_random, recipe=recipe, seed=seed)
        )


def _kill_at_point(folder: Path, *, recipe: Recipe, point: partial[None]) -> None:
    with started(build_fit(recipe, folder, before=point)) as running:
        code = running.wait()
        # Not every recipe gets to every point: one without a frozen part stores no features.
        assert code in (-signal.SIGKILL, 0), running.text()
        running.require_no_others()
    _resume(folder, recipe)


def _kill_at_random(folder: Path, *, recipe: Recipe, seed: int) -> None:
    """Kill up to three times, the command alone or all its processes."""
    generator = random.Random(seed)
    _, duration = undisturbed(recipe)
    for _ in range(generator.randint(1, 3)):
        with started(build_fit(recipe, folder)) as running:
            until = time.monotonic() + generator.uniform(0.0, 1.1 * duration)
            while running.is_running and time.monotonic() < until:
                time.sleep(0.002)
            running.send(signal.SIGKILL, group=generator.random() < 0.5)
            running.wait()
            running.require_no_others()
    _resume(folder, recipe)


def _resume(folder: Path, recipe: Recipe) -> None:
    code, text = run_to_end(build_fit(recipe, folder))
    assert code == 0, text
    assert "Traceback" not in text, text
    require_same(recipe, folder / "run")
