"""Runs that must come to the same weights and answers: targets E2 and E6."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.images import ImageSet, list_files, prepare_photographs
from tests.benchmarks.measure import (
    VTRAIN,
    Goal,
    NotRunError,
    Row,
    Settings,
    draw_weights,
    fit_command,
    has_setting,
    run_module,
    run_process,
    suite_command,
    write_config,
)
from tests.benchmarks.processes import ENVIRONMENT, PROCESSES, PROGRAMS

BACKBONE = "resnet18"
SEED = 7
STEPS = 20
EPOCHS = 2
IMAGE_SIZE = 96  # of E6: smaller images differ as larger ones would
# Each process draws the dropout of its own part of a batch.
NO_DROPOUT = "model.head={type: linear, dropout: 0.0}"
GOAL = Goal(1e-5, at_least=False, unit="difference")


def benchmark_e2(settings: Settings) -> Iterator[Row]:
    """A linear probe on stored features and without, in fp32."""
    if not has_setting("train", "cache"):
        raise NotRunError("this version has no train.cache")
    images = prepare_photographs(settings)
    config = write_images_config(settings, images)
    runs = {}
    for cache in ("off", "features"):
        runs[cache] = settings.folder / cache
        overrides = ("freeze=head", "train.precision=fp32", f"train.epochs={2 * EPOCHS}")
        command = fit_command(
            config, runs[cache], *overrides, f"train.cache={cache}", f"seed={SEED}"
        )
        run_process(command, environment={"VTRAIN_CACHE": str(settings.folder / "cache")})
    if not list_files(settings.folder / "cache"):
        raise NotRunError("no features were stored")
    found = compare(runs["features"], runs["off"])
    yield row("E2", "linear probe with stored features; other side: without", found, settings, GOAL)


def benchmark_e6(settings: Settings) -> Iterator[Row]:
    """Two processes and one: full fine-tuning with frozen BatchNorm statistics, 20 steps."""
    images = prepare_photographs(settings)
    config = write_images_config(settings, images)
    # As many images as make ten steps an epoch; a rest below two per process joins the last batch.
    batch = images.train_count // (STEPS // EPOCHS) // 2 * 2
    for optimizer, rate in (("sgd", "1e-2"), ("adamw", "1e-4")):
        runs = {}
        for program in PROGRAMS:
            runs[program] = settings.folder / f"{program}-{optimizer}"
            command = fit_command(
                config,
                runs[program],
                *("freeze=none", "model.batch_norm=frozen", "train.precision=fp32"),
                *(NO_DROPOUT, f"data.image_size={IMAGE_SIZE}"),
                *(
                    f"train.epochs={EPOCHS}",
                    f"data.batch_size={batch // PROCESSES[program]}",
                    f"seed={SEED}",
                ),
                *(f"optim.optimizer={optimizer}", f"optim.lr={rate}", "data.workers=0"),
            )[len(VTRAIN) :]
            run_process([*PROGRAMS[program], *command], environment=ENVIRONMENT)
        found = compare(runs["two"], runs["one"])
        if found["steps"][0] != found["steps"][1]:
            raise NotRunError(f"different numbers of steps: {found['steps']}")
        what = f"{found['steps'][0]} steps of {optimizer} with batches of {batch}, two processes"
        # AdamW divides by the size of the gradient: where that is all rounding, so is the step.
        goal = GOAL if optimizer == "sgd" else None
        yield row("E6", f"{what}; other side: one", found, settings, goal)


def write_images_config(settings: Settings, images: ImageSet) -> Path:
    """The photographs with random weights."""
    return write_config(
        settings.folder / "exact.yaml",
        train=images.train,
        val=images.val,
        backbone=BACKBONE,
        weights=draw_weights(settings, BACKBONE),
    )


def compare(first: Path, second: Path) -> dict[str, Any]:
    """What `compare_runs` finds."""
    return run_module("compare_runs", [first, second]).json()


def row(
    target: str, what: str, found: dict[str, Any], settings: Settings, goal: Goal | None
) -> Row:
    """Largest difference of the weights, and which of the rest differs."""
    unequal = f"predicted classes: {found['classes_differ']} of {found['count']} differ"
    metrics = ", ".join(found["metrics_differ"]) or "none"
    return Row(
        target,
        f"{BACKBONE}, fp32, seed {SEED}: {what}; largest difference of last weights "
        f"{found['last']:.2g}",
        f"{unequal}; metrics that differ: {metrics}",
        "-",
        # The classes count like the weights: one that differs is a miss.
        max(found["best"], found["last"], float(found["classes_differ"])),
        goal,
        suite_command(target, settings),
    )
