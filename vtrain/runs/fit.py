"""Training, whole: a plan, a folder for the run, and the run; or going on with an earlier one."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from vtrain.config.input_paths import INPUT_PATHS
from vtrain.config.load import LoadedConfig
from vtrain.errors import VtrainError
from vtrain.runs.checkpoint import Checkpoint
from vtrain.runs.epochs import FitRun
from vtrain.runs.final_evaluation import evaluate_best
from vtrain.runs.folder import (
    DAMAGED_NAME,
    LOG_NAME,
    PREVIOUS_NAME,
    Change,
    FitResult,
    choose_run_dir,
    claim_run_dir,
    has_run,
    lock_run,
    require_new_run,
    save_result,
)
from vtrain.runs.metric_log import require_tensorboard
from vtrain.runs.plan import FitPlan, build_plan
from vtrain.runs.plan_text import show_plan
from vtrain.runs.profile import PROFILE_NAME, build_profile, show_profile
from vtrain.runs.resume import load_run, require_same_config, require_same_data, resume_run
from vtrain.runs.saved_state import write_description
from vtrain.runs.stopping import has_stopped_early
from vtrain.runs.stored_features import StoredFeatures
from vtrain.system.files import sweep_temporaries
from vtrain.system.json_csv import write_json
from vtrain.system.log_file import logged_to
from vtrain.system.machine import explain_torch_error, find_device, keep_freed_memory
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import Reporter
from vtrain.system.signals import StopRequest, build_stop_error

Value = TypeVar("Value")
Resume = bool | Literal["auto"]
# What a finished run goes on for when it has changed.
EXTENDING = ("train.epochs", "train.early_stop")


def fit(
    loaded: LoadedConfig,
    *,
    resume: Resume = False,
    profile: bool = False,
    reporter: Reporter,
    processes: Processes = ALONE,
) -> FitResult:
    """Train what the config describes into a run folder.

    `resume` goes on with an earlier run; `auto` does so where there is one.

    `profile` measures where the time goes, says so at the end, and writes `profile.json`.

    All `processes` call this together and get the same result; the first one alone reads
    and writes the run folder.

    Raises:
        VtrainError: with the exit code of what went wrong; a stopped run can be resumed.
    """
    keep_freed_memory()
    device = find_device(processes.choose_device(loaded.config.train.device))
    with _stopped_outside(), explained_errors(), processes.joined(device), processes.explained():
        return _fit(loaded, _Options(reporter, processes, profile), resume)


@dataclass(frozen=True, slots=True)
class _Options:
    """What all steps of a command share."""

    reporter: Reporter
    processes: Processes
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


def _fit(loaded: LoadedConfig, job: _Options, mode: Resume) -> FitResult:
    reporter, processes = job.reporter, job.processes
    # Also before the plan is made, which can take long: nobody should wait for a wrong name.
    config = loaded.config

    def choose() -> Path | None:
        """The run to go on with, None where a new one is to be started."""
        going_on = has_run(config.run_dir, loaded.name) if mode == "auto" else mode
        chosen = choose_run_dir(config.run_dir, loaded.name, resume=going_on)
        return chosen if going_on else None

    run_dir = first_alone(processes, choose)
    if run_dir is not None:
        with _locked(run_dir, reporter, processes):
            checkpoint, finished = first_alone(processes, lambda: load_run(run_dir, reporter))
            changes: list[Change] = []
            with processes.together():
                if checkpoint is not None:
                    changes = require_same_config(loaded, run_dir, checkpoint)
            if finished is not None and not {each.name for each in changes} & set(EXTENDING):
                return finished
            # First in the list, and said once it is clear that they are the same.
            moved = [change for change in changes if change.name in INPUT_PATHS]
            for change in changes[len(moved) :]:
                reporter.say(f"changed since the run was started: {change}")
            if checkpoint is None:
                reporter.say(f"{run_dir} holds no checkpoint yet: starting from the beginning")
            plan = make_plan(loaded, reporter, processes, checkpoint)
            if checkpoint is not None:
                require_same_data(plan, run_dir, checkpoint, moved, reporter)
            return _run(plan, run_dir, checkpoint, job)
    plan = make_plan(loaded, reporter, processes)
    new = first_alone(processes, lambda: claim_run_dir(config.run_dir, loaded.name))
    with _locked(new, reporter, processes):
        first_alone(processes, lambda: require_new_run(new))
        return _run(plan, new, None, job)


def first_alone(processes: Processes, call: Callable[[], Value]) -> Value:
    """What the first process gets from `call`, in all of them."""
    value: Value | None = None
    with processes.together():
        if processes.is_main:
            value = call()
    found: Value = processes.broadcast(value)
    return found


def make_plan(
    loaded: LoadedConfig,
    reporter: Reporter,
    processes: Processes,
    checkpoint: Checkpoint | None = None,
) -> FitPlan:
    """The plan that all processes follow; a `checkpoint` fixes its phases and its batch size.

    Raises:
        VtrainError: what the config asks for cannot be had.
    """
    # The first alone: it may have to download weights, and what it finds out of the images is kept.
    with processes.together(main_first=True):
        if loaded.config.train.tensorboard:
            require_tensorboard()
        plan = build_plan(
            loaded,
            reporter,
            planned_epochs=checkpoint.planned_epochs if checkpoint else None,
            planned_batch=checkpoint.machine.get("batch_size") if checkpoint else None,
            processes=processes,
        )
        # Before a run folder is made, and also for a plan that is only shown.
        StoredFeatures(plan, reporter).check_phases()
    return plan.with_batch_size(min(processes.gather(plan.batch_size)))


@contextmanager
def _locked(run_dir: Path, reporter: Reporter, processes: Processes) -> Iterator[None]:
    with ExitStack() as stack:
        with processes.together():
            if processes.is_main:
                stack.enter_context(lock_run(run_dir, reporter=reporter))
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


def _run(plan: FitPlan, run_dir: Path, checkpoint: Checkpoint | None, job: _Options) -> FitResult:
    """Describe or resume the run, train, evaluate the best model, and mark the run as done."""
    processes, reporter = plan.processes, job.reporter
    with ExitStack() as stack:
        if processes.is_main:
            sweep_temporaries(run_dir)
            reporter = stack.enter_context(logged_to(run_dir / LOG_NAME, reporter))
        stack.enter_context(_logged_errors(reporter))
        stack.enter_context(explained_errors())
        stack.enter_context(processes.explained())
        stop = stack.enter_context(StopRequest(reporter, once=processes.world_size == 1))
        run = FitRun(plan, run_dir, reporter, stop, profile=job.profile)
        saved = run.saved
        stack.enter_context(run.stopped_at_once())
        if checkpoint is not None:
            resume_run(saved, checkpoint)
            if has_stopped_early(plan, saved.state):
                reporter.say(
                    f"the run stopped early after epoch {saved.state.epoch}; raise "
                    "train.early_stop to train on"
                )
        else:
            if processes.is_main:
                write_description(plan, run_dir, steps_per_epoch=saved.steps_per_epoch)
            show_plan(plan, reporter)
        with processes.together():
            if processes.is_main:
                saved.require_disk_space()
        run.train()
        with run.stopwatch.section("final evaluation"):
            val, test = evaluate_best(run.validation, run_dir)
        result = FitResult(
            run_dir=run_dir,
            best_epoch=saved.state.best_epoch,
            val_top1=val.top1,
            val_macro_f1=val.macro_f1,
            test_top1=test.top1 if test is not None else None,
            epochs=saved.state.epoch,
            planned_epochs=plan.config.train.epochs,
            seconds=saved.seconds,
        )
        if processes.is_main:
            for name in (PREVIOUS_NAME, DAMAGED_NAME):
                (run_dir / name).unlink(missing_ok=True)
            save_result(run_dir, result)
            if job.profile:
                seconds = time.perf_counter() - saved.started
                profile = build_profile(run.stopwatch.seconds, seconds)
                write_json(run_dir / PROFILE_NAME, profile)
                show_profile(profile, plan, reporter)
        return result


@contextmanager
def _logged_errors(reporter: Reporter) -> Iterator[None]:
    """What ends a run stands in its log; the terminal gets it from the command line."""
    try:
        yield
    except VtrainError as error:
        reporter.log(f"error: {error.message}")
        if error.hint:
            reporter.log(f"hint: {error.hint}")
        raise
    except Exception:
        reporter.log(traceback.format_exc())
        raise
