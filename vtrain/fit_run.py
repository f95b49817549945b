"""One run in its folder: epochs, validation, checkpoints, and the proof of what stayed frozen."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vtrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vtrain.checkpoint_content import check_fit
from vtrain.config import dump_config, flatten_config
from vtrain.console import Console, one_line
from vtrain.data.loaders import Batch
from vtrain.distributed import ProcessGroup
from vtrain.errors import DivergedError, ModelError, VtrainError
from vtrain.evaluate import ModelEvaluation
from vtrain.files import write_json, write_text
from vtrain.final_evaluation import FinalEvaluation
from vtrain.loop_builder import (
    build_loop,
    build_sampler,
    count_saved_bytes,
    count_steps,
    set_phase,
)
from vtrain.models.classifier import Classifier
from vtrain.models.freezing import (
    frozen_digests,
    summarize_stages,
    verify_frozen,
)
from vtrain.models.model_file import ModelFile, load_model_file, save_model
from vtrain.phase import PhaseBuilder
from vtrain.plan import FitPlan, run_facts, show_stages
from vtrain.plan_record import build_plan_record
from vtrain.profile import PROFILE_NAME, build_profile, show_profile
from vtrain.records import EpochMetrics, FitResult, to_plain
from vtrain.run_folder import (
    CHECKPOINT_NAME,
    CONFIG_NAME,
    DAMAGED_NAME,
    MODEL_NAME,
    PREVIOUS_NAME,
    RESOLVED_NAME,
    RESULT_NAME,
    require_disk_space,
    save_result,
)
from vtrain.run_record import DATA_NAME, ENVIRONMENT_NAME, PLAN_NAME
from vtrain.runtime import describe_environment, place_model
from vtrain.signals import StopRequest, build_stop_error
from vtrain.tensor_files import find_non_finite, load_tensors, shorten_names
from vtrain.training.loop import NotFiniteError, StepReport, TrainState
from vtrain.training.metric_log import TensorBoardLog, write_metrics
from vtrain.training.optim import head_learning_rate
from vtrain.training.stopwatch import Stopwatch

# Epochs on stored features take milliseconds: a checkpoint after each would take longer. What a
# kill loses is computed again, to the same bits.
SAVE_SECONDS = 10.0
MOST_LEFT_OUT = 10  # steps of a run whose loss was not finite


def describe_machine(plan: FitPlan) -> dict[str, Any]:
    """What the last bits of a result depend on, besides config and data."""
    return {
        "device": plan.device.type,
        "precision": plan.precision,
        "threads": torch.get_num_threads(),
        "processes": plan.group.world_size,
        "batch_size": plan.batch_size,
    }


@dataclass(frozen=True, slots=True)
class BestModel:
    """The best weights so far and their metrics, until they are written."""

    state: dict[str, Tensor]
    metrics: EpochMetrics


class StopVote:
    """Whether to stop, agreed on by all processes at the same step: a signal may reach one alone.

    The question of one step is answered at the next, so that nobody waits for the answer.
    """

    def __init__(self, group: ProcessGroup, stop: StopRequest) -> None:
        self._group, self._stop = group, stop
        self._asked: tuple[Tensor, Callable[[], None]] | None = None

    def is_decided(self) -> bool:
        """To be called by all processes after every step."""
        if self._group.world_size == 1:
            return self._stop.received is not None
        votes = torch.tensor(int(self._stop.received is not None))
        asked, self._asked = self._asked, (votes, self._group.start_sum(votes))
        if asked is None:
            return False
        asked[1]()
        return bool(asked[0].item())


class FitRun:
    """One run in its folder: a plan, the loop's objects, and where it is."""

    def __init__(
        self,
        plan: FitPlan,
        run_dir: Path,
        console: Console,
        stop: StopRequest,
        *,
        profile: bool = False,
    ) -> None:
        config = plan.config
        self.plan, self.run_dir, self.console, self.stop = plan, run_dir, console, stop
        self.planned_epochs = config.train.epochs
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        self.frozen: dict[str, str] = {}
        self.best: BestModel | None = None
        self.saved: float | None = None  # when, in this process
        self.saved_step: int | None = None
        self.vote = StopVote(plan.group, stop)
        self.stopwatch = Stopwatch(plan.device, enabled=profile)
        self.sampler = build_sampler(plan)
        self.state = TrainState()
        self.work = PhaseBuilder(plan, console, self._stop_if_asked)
        self.loop = build_loop(plan, self.state, self.stopwatch, notify=console.warn)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.plan.group.is_main

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last may gather fewer batches than the others."""
        return count_steps(self.plan, self.sampler)

    def write_description(self) -> None:
        """Write what the run is into its folder."""
        if not self.is_main:
            return
        loaded = self.plan.loaded
        write_text(self.run_dir / CONFIG_NAME, loaded.text)
        write_json(self.run_dir / DATA_NAME, self.plan.data)
        self._write_settings()

    def _write_settings(self) -> None:
        loaded = self.plan.loaded
        write_text(self.run_dir / RESOLVED_NAME, dump_config(loaded.config, loaded.origins))
        choices = {
            **describe_machine(self.plan),
            "inference_precision": self.plan.inference_precision,
            "workers": self.plan.workers,
            "accumulate": self.plan.accumulate,
        }
        environment = {**describe_environment(), "choices": choices}
        write_json(self.run_dir / ENVIRONMENT_NAME, environment)
        record = build_plan_record(self.plan, steps_per_epoch=self.steps_per_epoch)
        write_json(self.run_dir / PLAN_NAME, record)

    # --- phases and epochs -------------------------------------------------------------------

    def require_disk_space(self) -> None:
        """Find out before training whether everything can be saved.

        Raises:
            ResourceError: the disk is too full.
        """
        if not self.is_main:
            return
        checkpoint, model = count_saved_bytes(self.plan, self.loop)
        require_disk_space(self.run_dir, checkpoint_bytes=checkpoint, model_bytes=model)

    def train(self) -> None:
        """Run the epochs that are left."""
        with ExitStack() as stack:
            tensorboard = None
            if self.plan.config.train.tensorboard and self.is_main:
                tensorboard = TensorBoardLog(self.run_dir, purge_step=self.state.epoch + 1)
                stack.callback(tensorboard.close)
            try:
                self._run_to_the_end(tensorboard)
            except (VtrainError, RuntimeError):
                # What diverges, or misses an image, has not yet written the best of short epochs.
                if self.best is not None and self.is_main:
                    with suppress(VtrainError):  # the first error is the one to tell
                        self._save_best(self.best)
                raise

    def _run_to_the_end(self, tensorboard: TensorBoardLog | None) -> None:
        """Run the phases; where a loss is not finite, and that is wanted, go back and on."""
        if self.plan.config.train.on_nan == "rollback" and self.saved_step is None:
            self._save()
        while True:
            try:
                self._run_phases(tensorboard)
                if self.best is not None:  # made up for, with no epoch left
                    self._save()
                return
            except NotFiniteError as error:
                self._name_images(error)
                if not self._can_leave_out(error.step):
                    raise
                step, message = error.step, error.message
            self._roll_back(step)
            self.console.warn(
                f"{message}: going on from step {self.state.step}, leaving step {step} out"
            )

    def _name_images(self, error: NotFiniteError) -> None:
        """Add the images of the step to the message, and all of them to the log."""
        paths = [one_line(self.plan.splits.train.paths[each]) for each in error.positions]
        if paths:
            error.message += f", whose images are {shorten_names(paths, limit=5)}"
            self.console.log_only(f"images of step {error.step}: {', '.join(paths)}")

    def _can_leave_out(self, step: int) -> bool:
        wanted = self.plan.config.train.on_nan == "rollback"
        # An epoch without a single step has no loss.
        epoch = [
            each for each in self.state.left_out if self._epoch_of(each) == self._epoch_of(step)
        ]
        room = len(epoch) + 1 < self.steps_per_epoch
        return wanted and room and len(self.state.left_out) < MOST_LEFT_OUT

    def _epoch_of(self, step: int) -> int:
        return (step - 1) // self.steps_per_epoch

    def _roll_back(self, step: int) -> None:
        """Go back to the last checkpoint, to come to this point again without `step`."""
        group, checkpoint = self.plan.group, None
        with group.together():
            if self.is_main:
                checkpoint = load_checkpoint(self.run_dir / CHECKPOINT_NAME)
        left_out = sorted({*self.state.left_out, step})
        self.best = None
        self._load_state(group.broadcast(checkpoint))
        self.state.left_out = left_out

    def _run_phases(self, tensorboard: TensorBoardLog | None) -> None:
        first = 0
        for index, phase in enumerate(self.plan.phases):
            stop = first + phase.epochs
            if self.state.epoch < stop and not self._stopped_early():
                self._enter_phase(index, first)
                self._run_phase(stop, tensorboard)
            first = stop

    def _enter_phase(self, index: int, first_epoch: int) -> None:
        plan = self.plan
        set_phase(self.loop, plan, index, self.steps_per_epoch)
        if (self.state.epoch, self.state.batch) == (first_epoch, 0):
            # Else the digests were restored: they are from when the phase began.
            self.frozen = frozen_digests(plan.classifier)
            if index:
                stages = summarize_stages(plan.classifier, plan.groups, index)
                show_stages(plan.phases[index], stages, self.console)

    def _run_phase(self, stop_epoch: int, tensorboard: TensorBoardLog | None) -> None:
        with self.stopwatch.section("features"):
            work = self.work.enter(self.plan.phases[self.loop.phase], self.sampler)
        if self.plan.config.train.compile:
            work.model.compile()
        self.loop.model, self.loop.prepare = self._share_gradients(work.model), work.prepare
        try:
            while self.state.epoch < stop_epoch and not self._stopped_early():
                metrics = self._run_epoch(work.batches)
                self._end_epoch(metrics, stop_epoch)
                if tensorboard is not None:
                    tensorboard.write(metrics)
        finally:
            work.close()

    def _share_gradients(self, model: torch.nn.Module) -> torch.nn.Module:
        """The same model; with several processes, one that averages gradients over them."""
        plan = self.plan
        if plan.group.world_size == 1:
            return model
        devices = [plan.device] if plan.device.type == "cuda" else None
        # Otherwise gradients are summed in another order from the second step on, and in the first
        # step after a resume once more in the first one.
        return DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=True
        )

    def _run_epoch(self, batches: Iterable[Batch]) -> EpochMetrics:
        state, started = self.state, time.perf_counter()
        images_before = state.image_count
        self.sampler.set_epoch(state.epoch, start_batch=state.batch)
        label = f"epoch {state.epoch + 1}/{self.plan.config.train.epochs}"
        with self.console.progress(len(self.plan.splits.train), label) as bar:
            bar.initial = bar.n = images_before  # of a resumed epoch; they do not count as speed
            waited = self.loop.run_epoch(
                batches,
                self.sampler.batch_sizes(),
                lambda report: self._on_step(report, bar),
            )
        train_seconds = time.perf_counter() - started
        self._agree_on_buffers()
        evaluation = self._validate()
        return EpochMetrics(
            phase=self.plan.phases[self.loop.phase].name,
            epoch=state.epoch + 1,
            step=state.step,
            lr=head_learning_rate(self.loop.optimizer),
            train_loss=state.loss_sum / state.image_count,
            val_loss=evaluation.loss,
            val_top1=evaluation.top1,
            val_macro_f1=evaluation.macro_f1,
            images_per_second=(state.image_count - images_before) / train_seconds,
            data_wait=waited / train_seconds,
            seconds=time.perf_counter() - started,
        )

    def _agree_on_buffers(self) -> None:
        """Let all processes evaluate one model: each has gathered BatchNorm statistics of its own.

        Those of the first process count, as they do for the next step and for what is saved.
        """
        group = self.plan.group
        if group.world_size == 1:
            return
        average = [] if self.loop.ema is None else [self.loop.ema.model]
        for model in [self.plan.classifier, *average]:
            buffers = dict(model.named_buffers())
            first = group.broadcast({name: buffer.cpu() for name, buffer in buffers.items()})
            for name, buffer in buffers.items():
                buffer.copy_(first[name])

    def _on_step(self, report: StepReport, bar: Any) -> None:
        bar.update(report.images - bar.n)
        if report.loss is not None:
            bar.set_postfix_str(
                f"loss {report.loss:.3f}, lr {report.lr:.1e}, wait {report.data_wait:.0%}",
                refresh=False,
            )
        every = self.plan.config.train.save_every_steps
        if self.vote.is_decided():
            self._stop()
        if every is not None and self.state.step % every == 0:
            self._save()

    def _stop_if_asked(self) -> None:
        """Between batches that are not trained on.

        Several processes have different numbers of these: they stop after the next step instead.
        """
        if self.stop.received is not None and self.plan.group.world_size == 1:
            self._stop()

    def _stop(self) -> None:
        """Save and raise; only where the state is consistent."""
        self.loop.sync()  # while time still runs: what diverged is gone back from
        self.stop.finish()
        self._save()
        self.plan.group.barrier()  # torchrun ends all as soon as one has gone
        message = f"stopped at step {self.state.step}, saved in {self.run_dir}"
        # Of several processes another may have got the signal.
        raise build_stop_error(self.stop.received or signal.SIGTERM, message, self.resume_hint)

    @property
    def resume_hint(self) -> str:
        """How to go on with this run."""
        named = "" if self.plan.config.run_dir else f" run_dir={self.run_dir}"
        return f"continue with the same command and --resume{named}"

    @contextmanager
    def stopped_at_once(self) -> Iterator[None]:
        """Explain a stop that does not wait for the end of a step."""
        try:
            yield
        except KeyboardInterrupt as error:
            kept = (
                f"its checkpoint is of step {self.saved_step}"
                if self.saved_step is not None
                else "it has no checkpoint yet"
            )
            message = f"stopped {self.run_dir} at once: {kept}"
            raise build_stop_error(error, message, self.resume_hint) from error

    def _end_epoch(self, metrics: EpochMetrics, stop_epoch: int) -> None:
        state = self.state
        # A tie in accuracy is decided by the loss.
        best = (metrics.val_top1, -metrics.val_loss) > (state.best_top1, -state.best_loss)
        state.epoch, state.batch = metrics.epoch, 0
        state.loss_sum, state.image_count = 0.0, 0
        state.history.append(to_plain(metrics))
        is_last = state.epoch == stop_epoch or self._stopped_early()
        if is_last:
            self._verify_frozen()
        due = is_last or self.saved is None or time.perf_counter() - self.saved >= SAVE_SECONDS
        if best:
            self._note_best(metrics, copy=not due)
        if due:
            self._save()
        self.console.say_epoch(metrics, self.plan.config.train.epochs, best=best)

    def _stopped_early(self) -> bool:
        # Counted in the last phase alone: a probe that has settled is what the next phase is for.
        patience = self.plan.config.train.early_stop
        before_last = sum(phase.epochs for phase in self.plan.phases[:-1])
        since = self.state.epoch - max(self.state.best_epoch, before_last)
        return patience is not None and since >= patience

    def _verify_frozen(self) -> None:
        if self._best_candidate is not self.plan.classifier:
            verify_frozen(self._best_candidate, self.frozen)  # the average, which is what is saved
        count = verify_frozen(self.plan.classifier, self.frozen)
        if count:
            self.console.say(f"frozen: all {count} frozen tensors are bit for bit as loaded")

    # --- validation --------------------------------------------------------------------------

    @property
    def _best_candidate(self) -> Classifier:
        ema = self.loop.ema
        return self.plan.classifier if ema is None else cast(Classifier, ema.model)

    def _validate(self) -> ModelEvaluation:
        with self.stopwatch.section("validation"):
            evaluation = self.work.validate(self._best_candidate)
        if not math.isfinite(evaluation.loss):
            raise DivergedError(
                f"the validation loss is not finite after step {self.state.step}",
                "lower optim.lr and optim.backbone_lr, or set train.precision=fp32",
            )
        return evaluation

    # --- saving and restoring ----------------------------------------------------------------

    def _note_best(self, metrics: EpochMetrics, *, copy: bool) -> None:
        """Take the weights as they are now for the best so far; they are written with the rest."""
        self.state.best_top1, self.state.best_loss = metrics.val_top1, metrics.val_loss
        self.state.best_epoch = metrics.epoch
        state = self._best_candidate.state_dict()
        if names := find_non_finite(state):
            raise DivergedError(
                f"the weights are not finite after step {self.state.step}: {shorten_names(names)}",
                "lower optim.lr and optim.backbone_lr, or set train.precision=fp32",
            )
        if copy:
            state = {name: tensor.clone() for name, tensor in state.items()}
        self.best = BestModel(state, metrics)

    def _save(self) -> None:
        """Write what is to be kept; all processes call this together, the first one writes."""
        self.loop.sync()
        with self.stopwatch.section("saving"):
            self._write_state()
        self.saved = time.perf_counter()
        self.saved_step = self.state.step

    def _write_state(self) -> None:
        self.state.seconds = self.seconds_before + time.perf_counter() - self.started
        best, self.best = self.best, None
        if not self.is_main:
            return
        if best is not None:
            # Before the checkpoint: a run that is killed in between repeats this epoch.
            self._save_best(best)
        loop, plan = self.loop, self.plan
        save_checkpoint(
            self.run_dir / CHECKPOINT_NAME,
            Checkpoint(
                model=plan.classifier.state_dict(),
                ema=loop.ema.model.state_dict() if loop.ema is not None else None,
                optimizer=loop.optimizer.state_dict(),
                scaler=loop.precision.scaler.state_dict(),
                state=self.state,
                planned_epochs=self.planned_epochs,
                frozen=self.frozen,
                config=flatten_config(plan.config),
                data=run_facts(plan),
                machine=describe_machine(plan),
            ),
        )
        write_metrics(self.run_dir, self.state.history)

    def _save_best(self, best: BestModel) -> None:
        plan = self.plan
        environment = describe_environment()
        save_model(
            self.run_dir / MODEL_NAME,
            best.state,
            ModelFile(
                backbone=plan.spec.name,
                options=dict(plan.config.model.options),
                pretrained_input=plan.pretrained_input,
                head=plan.config.model.head.model_dump(),
                classes=plan.splits.classes,
                preprocessing=plan.preprocessing,
                config=plan.config.model_dump(mode="json"),
                metrics=to_plain(best.metrics),
                versions={"vtrain": environment["vtrain"], **environment["packages"]},
            ),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was saved.

        Raises:
            ModelError: the checkpoint does not fit the model.
        """
        self._load_state(checkpoint)
        self._require_best()
        self.planned_epochs = checkpoint.planned_epochs
        self.seconds_before = checkpoint.state.seconds
        if self.is_main:
            (self.run_dir / RESULT_NAME).unlink(missing_ok=True)
            self._write_settings()
            write_metrics(self.run_dir, self.state.history)
        self.console.say(
            f"resumed {self.run_dir} after epoch {self.state.epoch}, batch {self.state.batch} "
            f"(step {self.state.step})"
        )
        if self._stopped_early():
            self.console.say(
                f"the run stopped early after epoch {self.state.epoch}; raise train.early_stop to "
                "train on"
            )

    def _load_state(self, checkpoint: Checkpoint) -> None:
        loop = self.loop
        try:
            check_fit(
                checkpoint,
                loop.optimizer,
                batches=len(self.sampler),
                averaged=loop.ema is not None,
            )
            self.plan.classifier.load_state_dict(checkpoint.model)
            if loop.ema is not None and checkpoint.ema is not None:
                loop.ema.model.load_state_dict(checkpoint.ema)
            loop.optimizer.load_state_dict(checkpoint.optimizer)
            if checkpoint.machine["precision"] == self.plan.precision:
                loop.precision.scaler.load_state_dict(checkpoint.scaler)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelError(
                f"{self.run_dir / CHECKPOINT_NAME} does not fit the model: {error}",
                "start a new run with another run_dir",
            ) from error
        self.state = loop.state = checkpoint.state
        self.frozen = dict(checkpoint.frozen)
        self.saved_step = self.state.step

    def _require_best(self) -> None:
        """Make up for a best model whose file is missing or damaged, as far as that can be done."""
        state, problem = self.state, None
        if self.is_main and state.best_epoch:
            try:
                load_tensors(self.run_dir / MODEL_NAME)
            except ModelError as error:
                problem = error.message
        problem = self.plan.group.broadcast(problem)
        if problem is None:
            return
        # Early stopping counts from here.
        state.best_epoch, state.best_top1, state.best_loss = state.epoch, -1.0, math.inf
        if state.batch == 0:  # these are the weights that the last row of metrics is about
            self._note_best(EpochMetrics(**state.history[-1]), copy=True)
        self.console.warn(
            f"the best model so far is lost ({problem}): the best from epoch "
            f"{state.epoch + (state.batch > 0)} on is kept"
        )

    # --- the end -----------------------------------------------------------------------------

    def finish(self) -> FitResult:
        """Evaluate the saved best model as every later command will, and mark the run as done."""
        with self.stopwatch.section("final evaluation"):
            classifier, description = self._load_best()
            final = FinalEvaluation(self.work, classifier, self.run_dir)
            splits = self.plan.splits
            val = final.evaluate_val(splits.train, splits.val)
            test = None if splits.test is None else final.evaluate_test(splits.test)
            if description is not None:
                final.save_model(description)
        result = FitResult(
            run_dir=self.run_dir,
            best_epoch=self.state.best_epoch,
            val_top1=val.top1,
            val_macro_f1=val.macro_f1,
            test_top1=test.top1 if test is not None else None,
            epochs=self.state.epoch,
            planned_epochs=self.plan.config.train.epochs,
            seconds=self.seconds_before + time.perf_counter() - self.started,
        )
        if self.is_main:
            for name in (PREVIOUS_NAME, DAMAGED_NAME):
                (self.run_dir / name).unlink(missing_ok=True)
            save_result(self.run_dir, result)
            self._write_report()
            self._report_profile()
        return result

    def _write_report(self) -> None:
        """Write the page of the run; the run is done, whatever comes of that."""
        if not self.plan.config.train.report:
            return
        # Templates and charts are loaded at the end alone.
        from vtrain.heat_maps import draw_heat_maps
        from vtrain.report import write_report

        try:
            with self.stopwatch.section("report"):
                heat_maps = draw_heat_maps(self.run_dir, device=self.plan.device)
                result = write_report(self.run_dir, heat_maps=heat_maps)
        except Exception as error:
            reason = error.message if isinstance(error, VtrainError) else repr(error)
            again = f"vtrain report {one_line(self.run_dir)}"
            self.console.warn(f"the report could not be written: {reason:.300}; again: {again}")
        else:
            self.console.say(f"report: {one_line(result.page)}")

    def _report_profile(self) -> None:
        if self.stopwatch.enabled:
            profile = build_profile(self.stopwatch.seconds, time.perf_counter() - self.started)
            write_json(self.run_dir / PROFILE_NAME, profile)
            show_profile(profile, self.plan, self.console)

    def _load_best(self) -> tuple[Classifier, ModelFile | None]:
        """What was saved, in every process; only the first sees the folder, and its description."""
        group, classifier = self.plan.group, self.plan.classifier
        description = None
        with group.together():
            if self.is_main:
                classifier, description = load_model_file(self.run_dir / MODEL_NAME)
        if group.world_size > 1:
            classifier.load_state_dict(group.broadcast(classifier.state_dict()))
        place_model(classifier, self.plan.device)
        return classifier, description
