"""Training, whole: a plan, a folder for the run, and the run; or going on with an earlier one."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from vtrain.checkpoint import Checkpoint, load_last_checkpoint
from vtrain.config import LoadedConfig, flatten_config
from vtrain.console import Console
from vtrain.distributed import ALONE, ProcessGroup
from vtrain.dry_run import Forecast, Outline, build_outline, measure
from vtrain.errors import ModelError, VtrainError
from vtrain.files import sweep_temporaries
from vtrain.fit_run import FitRun, describe_machine
from vtrain.phase import PhaseBuilder
from vtrain.plan import FitPlan, build_plan, run_facts, show_plan
from vtrain.records import FitResult
from vtrain.run_folder import (
    LOG_NAME,
    MODEL_NAME,
    choose_run_dir,
    claim_run_dir,
    find_changes,
    has_run,
    load_result,
    lock_run,
    require_new_run,
    require_same_run,
)
from vtrain.runtime import explain_torch_error, find_device, keep_freed_memory
from vtrain.signals import StopRequest, build_stop_error
from vtrain.tensor_files import load_tensors

Value = TypeVar("Value")
Resume = bool | Literal["auto"]


def fit(
    loaded: LoadedConfig,
    *,
    resume: Resume = False,
    profile: bool = False,
    console: Console,
    group: ProcessGroup = ALONE,
) -> FitResult:
    """Train what the config describes into a run folder.

    `resume` goes on with an earlier run; `auto` does so where there is one.

    `profile` measures where the time goes, says so at the end, and writes `profile.json`.

    All processes of `group` call this together and get the same result; the first one alone reads
    and writes the run folder.

    Raises:
        VtrainError: with the exit code of what went wrong; a stopped run can be resumed.
    """
    keep_freed_memory()
    device = find_device(group.choose_device(loaded.config.train.device))
    with _stopped_outside(), explained_errors(), group.joined(device), group.explained():
        return _fit(loaded, _Job(console, group, profile), resume)


def dry_run(
    loaded: LoadedConfig,
    *,
    console: Console,
    on_plan: Callable[[Outline], None],
    group: ProcessGroup = ALONE,
) -> tuple[Outline, Forecast]:
    """Plan a new run and time a step of each phase; writes no run folder and no features.

    `on_plan` gets the plan before the first step. All processes of `group` call this together;
    each measures by itself.

    Raises:
        VtrainError: what would end the run before its first epoch does.
    """
    keep_freed_memory()
    device = find_device(group.choose_device(loaded.config.train.device))
    try:
        with explained_errors(), group.joined(device), group.explained():
            run_dir = _first_alone(
                group,
                lambda: choose_run_dir(loaded.config.run_dir, loaded.name, resume=False),
            )
            plan = _plan(loaded, console, group)
            outline = build_outline(plan, run_dir)
            on_plan(outline)
            with group.together():
                return outline, measure(plan, run_dir, console)
    except KeyboardInterrupt as error:
        raise build_stop_error(error, "stopped: nothing was written") from error


@dataclass(frozen=True, slots=True)
class _Job:
    """What all steps of a command share."""

    console: Console
    group: ProcessGroup
    profile: bool


@contextmanager
def _stopped_outside() -> Iterator[None]:
    """Explain a stop outside of the run itself: while the images are checked, for instance."""
    try:
        yield
    except KeyboardInterrupt as error:
        hint = "the same command with --resume auto goes on with a run, or starts it"
        raise build_stop_error(
            error, "stopped outside of training: nothing is lost", hint
        ) from error


def _fit(loaded: LoadedConfig, job: _Job, resume: Resume) -> FitResult:
    console, group = job.console, job.group
    # Also before the plan is made, which can take long: nobody should wait for a wrong name.
    config = loaded.config

    def choose() -> Path | None:
        """The run to go on with, None where a new one is to be started."""
        going_on = has_run(config.run_dir, loaded.name) if resume == "auto" else resume
        chosen = choose_run_dir(config.run_dir, loaded.name, resume=going_on)
        return chosen if going_on else None

    run_dir = _first_alone(group, choose)
    if run_dir is not None:
        with _locked(run_dir, console, group):
            return _resume(loaded, run_dir, job)
    plan = _plan(loaded, console, group)
    new = _first_alone(group, lambda: claim_run_dir(config.run_dir, loaded.name))
    with _locked(new, console, group):
        _first_alone(group, lambda: require_new_run(new))
        return _run(plan, new, None, job)


def _first_alone(group: ProcessGroup, call: Callable[[], Value]) -> Value:
    """What the first process gets from `call`, in all of them."""
    value: Value | None = None
    with group.together():
        if group.is_main:
            value = call()
    found: Value = group.broadcast(value)
    return found


def _plan(
    loaded: LoadedConfig,
    console: Console,
    group: ProcessGroup,
    checkpoint: Checkpoint | None = None,
) -> FitPlan:
    # The first alone: it may have to download weights, and what it finds out of the images is kept.
    with group.together(main_first=True):
        plan = build_plan(
            loaded,
            console,
            planned_epochs=checkpoint.planned_epochs if checkpoint else None,
            planned_batch=checkpoint.machine.get("batch_size") if checkpoint else None,
            group=group,
        )
        # Before a run folder is made, and also for a plan that is only shown.
        PhaseBuilder(plan, console, on_batch=lambda: None).check_phases()
    return plan.with_batch_size(min(group.gather(plan.batch_size)))


@contextmanager
def _locked(run_dir: Path, console: Console, group: ProcessGroup) -> Iterator[None]:
    with ExitStack() as stack:
        with group.together():
            if group.is_main:
                stack.enter_context(lock_run(run_dir, notify=console.say))
        yield


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors of torch into ours, where the cause is known."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        explained = explain_torch_error(error)
        if explained is None:
            raise
        raise explained from error


def _resume(loaded: LoadedConfig, run_dir: Path, job: _Job) -> FitResult:
    console, group = job.console, job.group
    checkpoint, finished = _first_alone(group, lambda: _read_run(run_dir, console))
    if checkpoint is None and finished is not None:
        return finished
    if checkpoint is None:
        console.say(f"{run_dir} holds no checkpoint yet: starting from the beginning")
        return _run(_plan(loaded, console, group), run_dir, None, job)
    now = flatten_config(loaded.config)
    # A key that is newer than the checkpoint had no other value than its default.
    new = {key for key in now if key not in checkpoint.config and loaded.origins[key] == "default"}
    changes = find_changes(
        checkpoint.config, {key: value for key, value in now.items() if key not in new}
    )
    done = checkpoint.state.epoch
    with group.together():
        allowed = require_same_run(run_dir, config=changes, data=[], epochs_done=done)
    longer = any(change.name in ("train.epochs", "train.early_stop") for change in allowed)
    if finished is not None and not longer:
        return finished
    for change in allowed:
        console.say(f"changed since the run was started: {change}")
    plan = _plan(loaded, console, group, checkpoint)
    data = [
        change
        for change in find_changes(checkpoint.data, run_facts(plan))
        if change.name in checkpoint.data or not change.name.startswith("preprocessing.")
    ]
    machine = find_changes({"processes": 1, **checkpoint.machine}, describe_machine(plan))
    # Another number of processes makes other batches, and so another run.
    processes = [change for change in machine if change.name == "processes"]
    with group.together():
        require_same_run(run_dir, config=[], data=[*data, *processes], epochs_done=done)
    for change in machine:
        console.warn(f"{change}: results can differ in the last bits")
    return _run(plan, run_dir, checkpoint, job)


def _read_run(run_dir: Path, console: Console) -> tuple[Checkpoint | None, FitResult | None]:
    """The checkpoint of a run and, where it has finished, its result."""
    result = load_result(run_dir)
    if result is not None:
        try:
            load_tensors(run_dir / MODEL_NAME)
        except ModelError:  # it is made up for where the run goes on
            result = None
    return load_last_checkpoint(run_dir, warn=console.warn), result


def _run(plan: FitPlan, run_dir: Path, checkpoint: Checkpoint | None, job: _Job) -> FitResult:
    console = job.console
    with ExitStack() as stack:
        if plan.group.is_main:
            sweep_temporaries(run_dir)
            stack.enter_context(console.logging_to(run_dir / LOG_NAME))
        stack.enter_context(_logged_errors(console))
        stack.enter_context(explained_errors())
        stack.enter_context(plan.group.explained())
        stop = stack.enter_context(StopRequest(console.say, once=plan.group.world_size == 1))
        run = FitRun(plan, run_dir, console, stop, profile=job.profile)
        stack.enter_context(run.stopped_at_once())
        if checkpoint is None:
            run.write_description()
            show_plan(plan, console)
        else:
            run.restore(checkpoint)
        with plan.group.together():
            run.require_disk_space()
        run.train()
        return run.finish()


@contextmanager
def _logged_errors(console: Console) -> Iterator[None]:
    """What ends a run stands in its log; the terminal gets it from the command line."""
    try:
        yield
    except VtrainError as error:
        console.log_only(f"error: {error.message}")
        if error.hint:
            console.log_only(f"hint: {error.hint}")
        raise
    except Exception:
        console.log_only(traceback.format_exc())
        raise
