"""A run from its first epoch to its last: phases, epochs, and what happens after each."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vtrain.errors import DivergedError, VtrainError
from vtrain.models.freezing import frozen_digests
from vtrain.runs.metric_log import EpochMetrics, TensorBoardLog
from vtrain.runs.phases import PhaseWork, enter_phase
from vtrain.runs.plan import FitPlan
from vtrain.runs.plan_text import show_stages
from vtrain.runs.resume import roll_back
from vtrain.runs.saved_state import SavedState
from vtrain.runs.stopping import StopVote, has_stopped_early
from vtrain.runs.stored_features import StoredFeatures
from vtrain.runs.trainer_setup import build_phase_run, build_sampler, build_trainer
from vtrain.runs.validation import Validation
from vtrain.system.json_csv import to_plain
from vtrain.system.processes import Processes
from vtrain.system.reporter import Interruptible, Reporter
from vtrain.system.signals import StopRequest, build_stop_error
from vtrain.system.tensor_files import shorten_names
from vtrain.system.text import format_duration, one_line
from vtrain.training.learning_rates import head_learning_rate
from vtrain.training.loss_watch import NotFiniteError
from vtrain.training.state import TrainState
from vtrain.training.step import PhaseRun
from vtrain.training.stopwatch import Stopwatch

# Epochs on stored features take milliseconds: a checkpoint after each would take longer. What a
# kill loses is computed again, to the same bits.
SAVE_SECONDS = 10.0
MOST_LEFT_OUT = 10  # steps of a run whose loss was not finite


class FitRun:
    """One run in its folder: what trains it, what it has saved, and how it is stopped.

    All processes call the methods together.
    """

    def __init__(
        self,
        plan: FitPlan,
        run_dir: Path,
        reporter: Reporter,
        request: StopRequest,
        *,
        profile: bool = False,
    ) -> None:
        self.plan, self.run_dir, self.reporter, self.request = plan, run_dir, reporter, request
        self.vote = StopVote(plan.processes, request)
        self.stopwatch = Stopwatch(plan.device, enabled=profile)
        self.sampler = build_sampler(plan)
        self.trainer = build_trainer(plan, self.stopwatch, reporter)
        self.saved = SavedState(
            plan, run_dir, self.trainer, reporter, plan.config.train.epochs, len(self.sampler)
        )
        self.stored = StoredFeatures(plan, Interruptible(reporter, self._stop_between_batches))
        self.validation = Validation(plan, self.stored)
        self.tensorboard: TensorBoardLog | None = None

    @property
    def state(self) -> TrainState:
        """Where the run is."""
        return self.trainer.state

    # --- phases ------------------------------------------------------------------------------

    def train(self) -> None:
        """Run the epochs that are left; where a loss is not finite, and that is wanted, go back.

        Raises:
            VtrainError: what ends the run; its best model is saved.
        """
        if self.plan.config.train.on_nan == "rollback" and self.saved.saved_step is None:
            self.saved.save()
        with self._tensorboard(), self._best_kept():
            while True:
                try:
                    self._run_phases()
                    break
                except NotFiniteError as error:
                    self._name_images(error)
                    if not self._can_leave_out(error.step):
                        raise
                    step, message = error.step, error.message
                roll_back(self.saved, step)
                self.reporter.warn(
                    f"{message}: going on from step {self.state.step}, leaving step {step} out"
                )
            if self.saved.best is not None:  # made up for, with no epoch left
                self.saved.save()

    def _run_phases(self) -> None:
        first = 0
        for index, phase in enumerate(self.plan.phases):
            if self.state.epoch < first + phase.epochs and not has_stopped_early(
                self.plan, self.state
            ):
                self._run_phase(index, first)
            first += phase.epochs

    def _run_phase(self, index: int, first: int) -> None:
        """Freeze, note what must not change, train and validate; `first` epochs lie before it."""
        plan, state, phase = self.plan, self.state, self.plan.phases[index]
        plan.apply_freeze(phase)
        if (state.epoch, state.batch) == (first, 0):
            # Else the digests were restored: they are from when the phase began.
            self.saved.frozen = frozen_digests(plan.classifier)
            if index:
                show_stages(phase, plan.summarize_stages(index), self.reporter)
        self.validation = Validation(plan, self.stored)  # lets go of the features of the last one
        with self.stopwatch.section("features"):
            work = enter_phase(plan, phase, self.sampler, self.stored, self.reporter)
        self.validation = work.validate
        try:
            run = build_phase_run(plan, index, work, self.saved.steps_per_epoch)
            self._run_epochs(work, run, first + phase.epochs)
        finally:
            work.close()

    # --- epochs ------------------------------------------------------------------------------

    def _run_epochs(self, work: PhaseWork, run: PhaseRun, stop: int) -> None:
        """Train epoch after epoch up to epoch `stop`; validate, prove, save and tell after each."""
        plan, state, epochs = self.plan, self.state, self.plan.config.train.epochs
        while state.epoch < stop and not has_stopped_early(plan, state):
            metrics = self._run_epoch(work, run)
            # A tie in accuracy is decided by the loss.
            best = (metrics.val_top1, -metrics.val_loss) > (state.best_top1, -state.best_loss)
            state.epoch, state.batch = metrics.epoch, 0
            state.loss_sum, state.image_count = 0.0, 0
            state.history.append(to_plain(metrics))
            is_last = state.epoch == stop or has_stopped_early(plan, state)
            if is_last:
                self.saved.verify_frozen()
            saved_at = self.saved.saved_at
            due = saved_at is None or time.perf_counter() - saved_at >= SAVE_SECONDS
            if best:
                self.saved.note_best(metrics, copy=not (due or is_last))
            if due or is_last:
                self.saved.save()
            self.reporter.say_fitting(describe_epoch(metrics, epochs), " best" if best else "")
            if self.tensorboard is not None:
                self.tensorboard.write(metrics)

    def _run_epoch(self, work: PhaseWork, run: PhaseRun) -> EpochMetrics:
        """Train on the rest of an epoch, then validate."""
        plan, state, trainer, started = self.plan, self.state, self.trainer, time.perf_counter()
        images_before, every = state.image_count, plan.config.train.save_every_steps
        self.sampler.set_epoch(state.epoch, start_batch=state.batch)
        sizes = self.sampler.batch_sizes()
        label = f"epoch {state.epoch + 1}/{plan.config.train.epochs}"
        waited = 0.0
        with self.reporter.progress(len(plan.splits.train), label) as bar:
            bar.initial = bar.n = images_before  # of a resumed epoch; they do not count as speed
            for report in trainer.train_epoch(run, work.batches, sizes):
                waited = report.waited
                bar.update(report.images - bar.n)
                if report.loss is not None:
                    share = waited / report.seconds
                    bar.set_postfix_str(
                        f"loss {report.loss:.3f}, lr {report.lr:.1e}, wait {share:.0%}",
                        refresh=False,
                    )
                if self.vote.is_decided():
                    self._stop()
                if every is not None and state.step % every == 0:
                    self.saved.save()
        train_seconds = time.perf_counter() - started
        if plan.processes.world_size > 1:
            agree_on_buffers(self.saved, plan.processes)
        with self.stopwatch.section("validation"):
            evaluation = work.validate(self.saved.candidate)
        if not math.isfinite(evaluation.loss):
            raise DivergedError(
                f"the validation loss is not finite after step {state.step}",
                "lower optim.lr and optim.backbone_lr, or set train.precision=fp32",
            )
        return EpochMetrics(
            phase=plan.phases[run.index].name,
            epoch=state.epoch + 1,
            step=state.step,
            lr=head_learning_rate(trainer.optimizer),
            train_loss=state.loss_sum / state.image_count,
            val_loss=evaluation.loss,
            val_top1=evaluation.top1,
            val_macro_f1=evaluation.macro_f1,
            images_per_second=(state.image_count - images_before) / train_seconds,
            data_wait=waited / train_seconds,
            seconds=time.perf_counter() - started,
        )

    # --- what goes wrong ---------------------------------------------------------------------

    @contextmanager
    def _tensorboard(self) -> Iterator[None]:
        if not (self.plan.config.train.tensorboard and self.plan.processes.is_main):
            yield
            return
        self.tensorboard = TensorBoardLog(self.run_dir, purge_step=self.state.epoch + 1)
        try:
            yield
        finally:
            self.tensorboard.close()

    @contextmanager
    def _best_kept(self) -> Iterator[None]:
        """Write the best of short epochs also when the run ends badly: they are saved seldom."""
        try:
            yield
        except (VtrainError, RuntimeError):
            with suppress(VtrainError):  # the first error is the one to tell
                self.saved.save_best()
            raise

    def _name_images(self, error: NotFiniteError) -> None:
        """Add the images of the step to the message, and all of them to the log."""
        paths = [one_line(self.plan.splits.train.paths[each]) for each in error.positions]
        if paths:
            error.message += f", whose images are {shorten_names(paths, limit=5)}"
            self.reporter.log(f"images of step {error.step}: {', '.join(paths)}")

    def _can_leave_out(self, step: int) -> bool:
        left_out, steps = self.state.left_out, self.saved.steps_per_epoch
        same_epoch = [each for each in left_out if (each - 1) // steps == (step - 1) // steps]
        # An epoch without a single step has no loss.
        room = len(same_epoch) + 1 < steps and len(left_out) < MOST_LEFT_OUT
        return self.plan.config.train.on_nan == "rollback" and room

    # --- stopping ----------------------------------------------------------------------------

    def _stop_between_batches(self) -> None:
        if self.vote.is_decided_alone():
            self._stop()

    def _stop(self) -> None:
        """Save and raise; only where the state is consistent."""
        self.trainer.sync()  # while time still runs: what diverged is gone back from
        self.request.finish()
        self.saved.save()
        self.plan.processes.barrier()  # torchrun ends all as soon as one has gone
        message = f"stopped at step {self.state.step}, saved in {self.run_dir}"
        # Of several processes another may have got the signal.
        raise build_stop_error(self.request.received or signal.SIGTERM, message, self.resume_hint)

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
            step = self.saved.saved_step
            kept = (
                f"its checkpoint is of step {step}"
                if step is not None
                else "it has no checkpoint yet"
            )
            message = f"stopped {self.run_dir} at once: {kept}"
            raise build_stop_error(error, message, self.resume_hint) from error


def agree_on_buffers(saved: SavedState, processes: Processes) -> None:
    """Let all processes evaluate one model: each has gathered BatchNorm statistics of its own.

    Those of the first process count, as they do for the next step and for what is saved.
    """
    classifier = saved.plan.classifier
    models = [classifier] if saved.candidate is classifier else [classifier, saved.candidate]
    for model in models:
        buffers = dict(model.named_buffers())
        first = processes.broadcast({name: buffer.cpu() for name, buffer in buffers.items()})
        for name, buffer in buffers.items():
            buffer.copy_(first[name])


def describe_epoch(metrics: EpochMetrics, epochs: int) -> list[str]:
    """The facts of the line that stands for one epoch, what matters most first."""

    def format_loss(loss: float) -> str:
        return f"{loss:.4f}" if loss < 1e4 else f"{loss:.2e}"

    return [
        f"epoch {metrics.epoch:>{len(str(epochs))}}/{epochs} {metrics.phase}",
        f"top-1 {metrics.val_top1:.4f}",
        f"F1 {metrics.val_macro_f1:.4f}",
        f"val loss {format_loss(metrics.val_loss)}",
        f"train loss {format_loss(metrics.train_loss)}",
        format_duration(metrics.seconds),
        f"{metrics.images_per_second:.0f} img/s",
        f"wait {metrics.data_wait:.0%}",
        f"lr {metrics.lr:.2e}",
    ]
