"""Going on with a run: what must be as it was, and what a checkpoint restores."""

import math
from collections.abc import Sequence
from pathlib import Path

from vtrain.config.input_paths import INPUT_PATHS, looks_like_path
from vtrain.config.keys import flatten_config
from vtrain.config.load import LoadedConfig
from vtrain.config.run_files import CHECKPOINT_NAME, MODEL_NAME
from vtrain.errors import ModelError
from vtrain.runs.checkpoint import Checkpoint, check_fit, load_checkpoint, load_last_checkpoint
from vtrain.runs.folder import (
    RESULT_NAME,
    Change,
    FitResult,
    find_changes,
    load_result,
    require_same_run,
)
from vtrain.runs.metric_log import EpochMetrics, write_metrics
from vtrain.runs.plan import FitPlan
from vtrain.runs.plan_text import run_facts
from vtrain.runs.record import DATA_NAME
from vtrain.runs.saved_state import SavedState, describe_machine, write_settings
from vtrain.system.files import path_exists
from vtrain.system.json_csv import write_json
from vtrain.system.reporter import Reporter
from vtrain.system.tensor_files import load_tensors
from vtrain.system.text import one_line

_IMAGES = ("data.train", "data.val", "data.test")


def load_run(run_dir: Path, reporter: Reporter) -> tuple[Checkpoint | None, FitResult | None]:
    """The checkpoint of a run and, where it has finished, its result.

    Raises:
        ModelError: neither its last checkpoint nor the one before can be used.
    """
    result = load_result(run_dir)
    if result is not None:
        try:
            load_tensors(run_dir / MODEL_NAME)
        except ModelError:  # it is made up for where the run goes on
            result = None
    return load_last_checkpoint(run_dir, reporter), result


def require_same_config(
    loaded: LoadedConfig, run_dir: Path, checkpoint: Checkpoint
) -> list[Change]:
    """The changes of a config since a run was started, which are allowed.

    Inputs may lie elsewhere: `require_same_data` finds out whether they are the same.

    Raises:
        UsageError: one is not.
    """
    now = flatten_config(loaded.config)
    # A key that is newer than the checkpoint had no other value than its default.
    new = {key for key in now if key not in checkpoint.config and loaded.origins[key] == "default"}
    changes = find_changes(
        checkpoint.config, {key: value for key, value in now.items() if key not in new}
    )
    moved = [change for change in changes if _has_moved(change)]
    others = [change for change in changes if change not in moved]
    done = checkpoint.state.epoch
    return [*moved, *require_same_run(run_dir, config=others, data=[], epochs_done=done)]


def _has_moved(change: Change) -> bool:
    """Whether a setting is the path of something that may well be the same, at another place."""
    if change.name not in INPUT_PATHS or change.before is None or change.now is None:
        return False
    if change.name != "model.weights":
        return True
    # Nothing tells whether weights are the same, and a resumed run has those of its checkpoint:
    # what is still there was replaced on purpose.
    both_paths = Path(change.now).is_absolute() and looks_like_path(change.before, Path())
    return both_paths and (not path_exists(Path(change.before)) or not _differs(change))


def _differs(change: Change) -> bool:
    return Path(change.before).absolute() != Path(change.now)


def require_same_data(
    plan: FitPlan,
    run_dir: Path,
    checkpoint: Checkpoint,
    moved: Sequence[Change],
    reporter: Reporter,
) -> None:
    """Refuse other images or processes than a run was started with; warn of another machine.

    `moved` are inputs that lie elsewhere than then, which is said.

    Raises:
        UsageError: they differ.
    """
    data = [
        change
        for change in find_changes(checkpoint.data, run_facts(plan))
        if change.name in checkpoint.data or not change.name.startswith("preprocessing.")
    ]
    machine = find_changes({"processes": 1, **checkpoint.machine}, describe_machine(plan))
    # Another number of processes makes other batches, and so another run.
    number = [change for change in machine if change.name == "processes"]
    with plan.processes.together():
        done, refused = checkpoint.state.epoch, [*data, *number]
        if refused:
            refused = [*filter(_differs, moved), *refused]
        require_same_run(run_dir, config=[], data=refused, epochs_done=done)
    for change in filter(_differs, moved):
        same = "; the same images" if change.name in _IMAGES else ""
        places = f"{change.show(change.before)} -> {change.show(change.now)}"
        reporter.say(f"{change.name} moved: {places}{same}")
    for change in machine:
        reporter.warn(f"{change}: results can differ in the last bits")


def resume_run(saved: SavedState, checkpoint: Checkpoint) -> None:
    """Take a run up where a checkpoint was saved.

    Raises:
        ModelError: the checkpoint does not fit the model.
    """
    restore(saved, checkpoint)
    _require_best(saved)
    saved.planned_epochs = checkpoint.planned_epochs
    saved.seconds_before = checkpoint.state.seconds
    state = saved.state
    if saved.plan.processes.is_main:
        (saved.run_dir / RESULT_NAME).unlink(missing_ok=True)
        write_json(saved.run_dir / DATA_NAME, saved.plan.data)  # they may lie elsewhere now
        write_settings(saved.plan, saved.run_dir, steps_per_epoch=saved.steps_per_epoch)
        write_metrics(saved.run_dir, state.history)
    saved.reporter.say(
        f"resumed {saved.run_dir} after epoch {state.epoch}, batch {state.batch} "
        f"(step {state.step})"
    )


def roll_back(saved: SavedState, step: int) -> None:
    """Go back to the last checkpoint, to come to this point again without `step`."""
    processes, checkpoint = saved.plan.processes, None
    with processes.together():
        if processes.is_main:
            checkpoint = load_checkpoint(saved.run_dir / CHECKPOINT_NAME)
    left_out = sorted({*saved.state.left_out, step})
    saved.best = None
    restore(saved, processes.broadcast(checkpoint))
    saved.state.left_out = left_out


def restore(saved: SavedState, checkpoint: Checkpoint) -> None:
    """Load weights, their average, the optimizer's moments, the loss scale and the counters.

    Nothing else is needed: the order of images, their augmentation and dropout come from the seed
    and the counters, the learning rates from the step.

    Raises:
        ModelError: the checkpoint does not fit the model.
    """
    plan, trainer, ema = saved.plan, saved.trainer, saved.trainer.ema
    try:
        check_fit(
            checkpoint, trainer.optimizer, batches=saved.batches_per_epoch, averaged=ema is not None
        )
        plan.classifier.load_state_dict(checkpoint.model)
        if ema is not None and checkpoint.ema is not None:
            ema.model.load_state_dict(checkpoint.ema)
        trainer.optimizer.load_state_dict(checkpoint.optimizer)
        if checkpoint.machine["precision"] == plan.precision:
            trainer.precision.scaler.load_state_dict(checkpoint.scaler)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"{one_line(saved.run_dir / CHECKPOINT_NAME)} does not fit the model: {error}",
            "start a new run with another run_dir",
        ) from error
    trainer.state = checkpoint.state
    saved.frozen = dict(checkpoint.frozen)
    saved.saved_step = saved.state.step


def _require_best(saved: SavedState) -> None:
    """Make up for a best model whose file is missing or damaged, as far as that can be done."""
    state, problem = saved.state, None
    if saved.plan.processes.is_main and state.best_epoch:
        try:
            load_tensors(saved.run_dir / MODEL_NAME)
        except ModelError as error:
            problem = error.message
    problem = saved.plan.processes.broadcast(problem)
    if problem is None:
        return
    # Early stopping counts from here.
    state.best_epoch, state.best_top1, state.best_loss = state.epoch, -1.0, math.inf
    if state.batch == 0:  # these are the weights that the last row of metrics is about
        saved.note_best(EpochMetrics(**state.history[-1]), copy=True)
    saved.reporter.warn(
        f"the best model so far is lost ({problem}): the best from epoch "
        f"{state.epoch + (state.batch > 0)} on is kept"
    )
