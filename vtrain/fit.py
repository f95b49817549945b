"""Training, whole: phases, validation, checkpoints, and the proof that frozen stayed frozen."""

import math
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtrain.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from vtrain.config import LoadedConfig, dump_config, flatten_config
from vtrain.console import Console
from vtrain.data.loaders import (
    Batch,
    EpochBatchSampler,
    build_eval_loader,
    build_train_loader,
    worker_troubles,
)
from vtrain.data.transforms import (
    EvalTransform,
    TrainTransform,
    build_batch_mix,
    normalize_images,
)
from vtrain.errors import (
    DataError,
    DivergedError,
    InterruptedRunError,
    ModelError,
    StoppedError,
    UsageError,
    VtrainError,
)
from vtrain.evaluate import (
    ModelEvaluation,
    build_result,
    evaluate_model,
    list_predictions,
    write_predictions_csv,
)
from vtrain.files import sweep_temporaries, write_json, write_text
from vtrain.models.freezing import (
    find_scheduled_phases,
    frozen_digests,
    summarize_stages,
    verify_frozen,
)
from vtrain.models.model_file import ModelFile, load_model_file, save_model
from vtrain.plan import FitPlan, build_plan, data_facts, show_plan, show_stages
from vtrain.records import EpochMetrics, EvaluationResult, FitResult, LabelledImages, to_plain
from vtrain.run_folder import (
    CHECKPOINT_NAME,
    CONFIG_NAME,
    LOG_NAME,
    MODEL_NAME,
    RESOLVED_NAME,
    RESULT_NAME,
    choose_run_dir,
    claim_run_dir,
    find_changes,
    load_result,
    lock_run,
    require_same_run,
    save_result,
)
from vtrain.runtime import (
    StopRequest,
    describe_environment,
    explain_torch_error,
    place_model,
)
from vtrain.tensor_files import find_non_finite, shorten_names
from vtrain.training.ema import ModelEma
from vtrain.training.inference import compute_outputs
from vtrain.training.loop import StepReport, TrainLoop, TrainState
from vtrain.training.losses import balanced_class_weights, build_loss
from vtrain.training.metric_log import TensorBoardLog, write_metrics
from vtrain.training.optim import build_optimizer, build_schedule, head_learning_rate
from vtrain.training.precision import Precision


def fit(
    loaded: LoadedConfig, *, resume: bool = False, dry_run: bool = False, console: Console
) -> FitResult | None:
    """Train what the config describes into a run folder; with `dry_run` only show the plan.

    Raises:
        VtrainError: with the exit code of what went wrong; a stopped run can be resumed.
    """
    if dry_run and resume:
        raise UsageError(
            "--dry-run and --resume were both given", "leave one out: a plan is of a new run"
        )
    with explained_errors():
        if dry_run:
            show_plan(build_plan(loaded, console), console)
            return None
        # Also before the plan is made, which can take long: nobody should wait for a wrong name.
        run_dir = choose_run_dir(loaded.config.run_dir, loaded.name, resume=resume)
        if resume:
            with lock_run(run_dir, notify=console.say):
                return _resume(loaded, run_dir, console)
        plan = build_plan(loaded, console)
        run_dir = claim_run_dir(loaded.config.run_dir, loaded.name)
        with lock_run(run_dir, notify=console.say):
            return _run(plan, run_dir, None, console)


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors of torch and of its loader workers into ours, where the cause is known."""
    try:
        with worker_troubles():
            yield
    except (RuntimeError, ValueError) as error:
        explained = explain_torch_error(error)
        if explained is None:
            raise
        raise explained from error


def _resume(loaded: LoadedConfig, run_dir: Path, console: Console) -> FitResult:
    path = run_dir / CHECKPOINT_NAME
    if not path.exists():
        console.say(f"{run_dir} holds no checkpoint yet: starting from the beginning")
        return _run(build_plan(loaded, console), run_dir, None, console)
    checkpoint = load_checkpoint(path)
    now = flatten_config(loaded.config)
    # A key that is newer than the checkpoint had no other value than its default.
    new = {key for key in now if key not in checkpoint.config and loaded.origins[key] == "default"}
    changes = find_changes(
        checkpoint.config, {key: value for key, value in now.items() if key not in new}
    )
    done = checkpoint.state.epoch
    allowed = require_same_run(run_dir, config=changes, data=[], epochs_done=done)
    finished = load_result(run_dir)
    longer = any(change.name in ("train.epochs", "train.early_stop") for change in allowed)
    if finished is not None and not longer:
        return _already_finished(run_dir, finished)
    for change in allowed:
        console.say(f"changed since the run was started: {change}")
    plan = build_plan(loaded, console, planned_epochs=checkpoint.planned_epochs)
    data = find_changes(checkpoint.data, data_facts(plan.data))
    require_same_run(run_dir, config=[], data=data, epochs_done=done)
    for change in find_changes(checkpoint.machine, describe_machine(plan)):
        console.warn(f"{change}: results can differ in the last bits")
    return _run(plan, run_dir, checkpoint, console)


def _already_finished(run_dir: Path, result: dict[str, Any]) -> FitResult:
    fields = {name: result[name] for name in FitResult.__dataclass_fields__ if name in result}
    return FitResult(**{**fields, "run_dir": run_dir, "already_finished": True})


def describe_machine(plan: FitPlan) -> dict[str, Any]:
    """What the last bits of a result depend on, besides config and data."""
    return {
        "device": plan.device.type,
        "precision": plan.precision,
        "threads": torch.get_num_threads(),
    }


def _run(
    plan: FitPlan, run_dir: Path, checkpoint: Checkpoint | None, console: Console
) -> FitResult:
    sweep_temporaries(run_dir)
    with (
        console.logging_to(run_dir / LOG_NAME),
        _logged_errors(console),
        explained_errors(),
        StopRequest(console.say) as stop,
    ):
        run = FitRun(plan, run_dir, console, stop)
        if checkpoint is None:
            run.write_description()
            show_plan(plan, console)
        else:
            run.restore(checkpoint)
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


class FitRun:
    """One run in its folder: a plan, the loop's objects, and where it is."""

    def __init__(self, plan: FitPlan, run_dir: Path, console: Console, stop: StopRequest) -> None:
        config = plan.config
        self.plan, self.run_dir, self.console, self.stop = plan, run_dir, console, stop
        self.planned_epochs = config.train.epochs
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        self.frozen: dict[str, str] = {}
        self.sampler = self._build_sampler()
        self.state = TrainState()
        optimizer = build_optimizer(plan.groups, config.optim, plan.device)
        if config.train.compile:
            plan.classifier.compile()
        self.loop = TrainLoop(
            classifier=plan.classifier,
            optimizer=optimizer,
            precision=Precision(plan.precision, plan.device),
            loss=self._build_loss(),
            normalize=self._normalize,
            batch_mix=build_batch_mix(
                config.data.mixup, config.data.cutmix, len(plan.splits.classes)
            ),
            ema=ModelEma(plan.classifier, config.train.ema) if config.train.ema else None,
            device=plan.device,
            seed=config.seed,
            accumulate=config.train.accumulate,
            clip_norm=config.train.clip_norm,
            state=self.state,
        )

    def _build_sampler(self) -> EpochBatchSampler:
        config, train = self.plan.config, self.plan.splits.train
        weights = None
        if config.data.balance == "sampler":
            by_class = balanced_class_weights(train.class_counts())
            weights = [by_class[label] for label in train.labels]
        return EpochBatchSampler(
            num_images=len(train),
            batch_size=config.data.batch_size,
            seed=config.seed,
            weights=weights,
        )

    def _build_loss(self) -> torch.nn.Module:
        config = self.plan.config
        weights = None
        if config.data.balance == "loss":
            weights = balanced_class_weights(self.plan.splits.train.class_counts())
        return build_loss(
            label_smoothing=config.train.label_smoothing,
            class_weights=weights,
            device=self.plan.device,
        )

    def _normalize(self, images: Tensor) -> Tensor:
        return normalize_images(images, self.plan.preprocessing, device=self.plan.device)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last may gather fewer batches than the others."""
        return -(-len(self.sampler) // self.plan.config.train.accumulate)

    def write_description(self) -> None:
        """Write what the run is into its folder."""
        loaded = self.plan.loaded
        write_text(self.run_dir / CONFIG_NAME, loaded.text)
        write_json(self.run_dir / "data.json", self.plan.data)
        self._write_settings()

    def _write_settings(self) -> None:
        loaded = self.plan.loaded
        write_text(self.run_dir / RESOLVED_NAME, dump_config(loaded.config, loaded.origins))
        write_json(self.run_dir / "env.json", describe_environment())

    # --- phases and epochs -------------------------------------------------------------------

    def train(self) -> None:
        """Run the epochs that are left."""
        with ExitStack() as stack:
            tensorboard = None
            if self.plan.config.train.tensorboard:
                tensorboard = TensorBoardLog(self.run_dir, purge_step=self.state.epoch + 1)
                stack.callback(tensorboard.close)
            self._run_phases(tensorboard)

    def _run_phases(self, tensorboard: TensorBoardLog | None) -> None:
        first = 0
        for index, phase in enumerate(self.plan.phases):
            stop = first + phase.epochs
            if self.state.epoch < stop and not self._stopped_early():
                self._enter_phase(index, first)
                self._run_phase(stop, tensorboard)
            first = stop

    def _enter_phase(self, index: int, first_epoch: int) -> None:
        plan, loop = self.plan, self.loop
        phase = plan.phases[index]
        plan.apply_freeze(phase)
        scheduled = find_scheduled_phases(plan.phases, index)
        loop.phase = index
        loop.first_step = self.steps_per_epoch * sum(
            each.epochs for each in plan.phases[: scheduled.start]
        )
        loop.schedule = build_schedule(
            plan.config.optim,
            steps_per_epoch=self.steps_per_epoch,
            epochs=sum(each.epochs for each in plan.phases[scheduled]),
        )
        if (self.state.epoch, self.state.batch) == (first_epoch, 0):
            # Else the digests were restored: they are from when the phase began.
            self.frozen = frozen_digests(plan.classifier)
            if index:
                show_stages(
                    phase, summarize_stages(plan.classifier, plan.groups, index), self.console
                )

    def _run_phase(self, stop_epoch: int, tensorboard: TensorBoardLog | None) -> None:
        plan = self.plan
        phase = plan.phases[self.loop.phase]
        transform = TrainTransform(
            plan.preprocessing, preset=plan.augment(phase), erasing=plan.config.data.erasing
        )
        train_loader = build_train_loader(
            plan.splits.train,
            transform,
            sampler=self.sampler,
            workers=plan.workers,
            seed=plan.config.seed,
            pin_memory=plan.device.type == "cuda",
        )
        while self.state.epoch < stop_epoch and not self._stopped_early():
            metrics = self._run_epoch(train_loader)
            self._end_epoch(metrics, stop_epoch)
            if tensorboard is not None:
                tensorboard.write(metrics)

    def _run_epoch(self, train_loader: Any) -> EpochMetrics:
        state, started = self.state, time.perf_counter()
        images_before = state.image_count
        self.sampler.set_epoch(state.epoch, start_batch=state.batch)
        label = f"epoch {state.epoch + 1}/{self.plan.config.train.epochs}"
        with self.console.progress(len(self.plan.splits.train), label) as bar:
            bar.initial = bar.n = images_before  # of a resumed epoch; they do not count as speed
            waited = self.loop.run_epoch(
                require_readable(train_loader, self.plan.splits.train),
                self.sampler.batch_sizes(),
                lambda report: self._on_step(report, bar),
            )
        train_seconds = time.perf_counter() - started
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

    def _on_step(self, report: StepReport, bar: Any) -> None:
        bar.update(report.images - bar.n)
        if report.loss is not None:
            bar.set_postfix_str(
                f"loss {report.loss:.3f}, lr {report.lr:.1e}, wait {report.data_wait:.0%}",
                refresh=False,
            )
        every = self.plan.config.train.save_every_steps
        self._stop_if_asked()
        if every is not None and self.state.step % every == 0:
            self._save()

    def _stop_if_asked(self) -> None:
        """Save and raise if a signal has come; only where the state is consistent."""
        if self.stop.received is None:
            return
        self._save()
        message = f"stopped at step {self.state.step}, saved in {self.run_dir}"
        hint = "continue with the same command and --resume"
        if self.plan.config.run_dir is None:
            hint += f" run_dir={self.run_dir}"
        if self.stop.received == signal.SIGINT:
            raise InterruptedRunError(message, hint)
        raise StoppedError(message, hint)

    def _end_epoch(self, metrics: EpochMetrics, stop_epoch: int) -> None:
        state = self.state
        # A tie in accuracy is decided by the loss.
        best = (metrics.val_top1, -metrics.val_loss) > (state.best_top1, -state.best_loss)
        if best:
            state.best_top1, state.best_loss = metrics.val_top1, metrics.val_loss
            state.best_epoch = metrics.epoch
        state.epoch, state.batch = metrics.epoch, 0
        state.loss_sum, state.image_count = 0.0, 0
        state.history.append(to_plain(metrics))
        self.loop.watch = None
        if state.epoch == stop_epoch or self._stopped_early():
            self._verify_frozen()
        if best:
            # Before the checkpoint: a run that is killed in between repeats this epoch.
            self._save_best(metrics)
        self._save()
        write_metrics(self.run_dir, state.history)
        self.console.say_epoch(metrics, self.plan.config.train.epochs, best=best)

    def _stopped_early(self) -> bool:
        # Counted in the last phase alone: a probe that has settled is what the next phase is for.
        patience = self.plan.config.train.early_stop
        before_last = sum(phase.epochs for phase in self.plan.phases[:-1])
        since = self.state.epoch - max(self.state.best_epoch, before_last)
        return patience is not None and since >= patience

    def _verify_frozen(self) -> None:
        # What is saved may be the average of the weights, not the weights themselves.
        verify_frozen(self._best_candidate, self.frozen)
        count = verify_frozen(self.plan.classifier, self.frozen)
        if count:
            self.console.say(f"frozen: all {count} frozen tensors are bit for bit as loaded")

    # --- validation --------------------------------------------------------------------------

    @property
    def _best_candidate(self) -> Any:
        return self.plan.classifier if self.loop.ema is None else self.loop.ema.model

    def _validate(self) -> ModelEvaluation:
        evaluation = self._evaluate(self._best_candidate, self.plan.splits.val, "validation")
        if not math.isfinite(evaluation.loss):
            raise DivergedError(
                f"the validation loss is not finite after step {self.state.step}",
                "lower optim.lr and optim.backbone_lr, or set train.precision=fp32",
            )
        return evaluation

    def _evaluate(self, classifier: Any, images: LabelledImages, label: str) -> ModelEvaluation:
        batches = build_eval_loader(
            images.paths,
            images.labels,
            EvalTransform(self.plan.preprocessing),
            batch_size=self.plan.config.data.batch_size,
            workers=self.plan.workers,
            pin_memory=self.plan.device.type == "cuda",
        )
        with self.console.progress(len(images), label) as bar:

            def advance(count: int) -> None:
                bar.update(count)
                self._stop_if_asked()

            was_training = classifier.training
            classifier.eval()
            try:
                return evaluate_model(
                    partial(
                        compute_outputs,
                        classifier,
                        preprocessing=self.plan.preprocessing,
                        device=self.plan.device,
                    ),
                    require_readable(batches, images),
                    num_classes=len(images.classes),
                    device=self.plan.device,
                    on_batch=advance,
                )
            finally:
                classifier.train(was_training)

    # --- saving and restoring ----------------------------------------------------------------

    def _save(self) -> None:
        self.loop.sync()
        loop, plan = self.loop, self.plan
        self.state.seconds = self.seconds_before + time.perf_counter() - self.started
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
                data=data_facts(plan.data),
                machine=describe_machine(plan),
            ),
        )

    def _save_best(self, metrics: EpochMetrics) -> None:
        plan = self.plan
        if names := find_non_finite(self._best_candidate.state_dict()):
            raise DivergedError(
                f"the weights are not finite after step {self.state.step}: {shorten_names(names)}",
                "lower optim.lr and optim.backbone_lr, or set train.precision=fp32",
            )
        environment = describe_environment()
        save_model(
            self.run_dir / MODEL_NAME,
            self._best_candidate,
            ModelFile(
                backbone=plan.spec.name,
                options=dict(plan.config.model.options),
                pretrained_input=plan.pretrained_input,
                head=plan.config.model.head.model_dump(),
                classes=plan.splits.classes,
                preprocessing=plan.preprocessing,
                config=plan.config.model_dump(mode="json"),
                metrics=to_plain(metrics),
                versions={"vtrain": environment["vtrain"], **environment["packages"]},
            ),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was saved.

        Raises:
            ModelError: the checkpoint does not fit the model.
        """
        loop = self.loop
        try:
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
        self.planned_epochs = checkpoint.planned_epochs
        self.seconds_before = checkpoint.state.seconds
        self.frozen = dict(checkpoint.frozen)
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

    # --- the end -----------------------------------------------------------------------------

    def finish(self) -> FitResult:
        """Evaluate the saved best model as every later command will, and mark the run as done."""
        classifier, _ = load_model_file(self.run_dir / MODEL_NAME)
        place_model(classifier, self.plan.device)
        val = self._final_evaluation(classifier, "val", self.plan.splits.val)
        test = None
        if self.plan.splits.test is not None:
            test = self._final_evaluation(classifier, "test", self.plan.splits.test)
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
        save_result(self.run_dir, result)
        return result

    def _final_evaluation(
        self, classifier: Any, name: str, images: LabelledImages
    ) -> EvaluationResult:
        evaluation = self._evaluate(classifier, images, f"final {name}")
        write_predictions_csv(
            self.run_dir / f"predictions-{name}.csv", list_predictions(evaluation, images)
        )
        return build_result(evaluation, images)


def require_readable(batches: Iterable[Batch], images: LabelledImages) -> Iterator[Batch]:
    """The batches as they come, as long as every image in them could be read.

    Raises:
        DataError: an image was readable before training and is not now.
    """
    for batch in batches:
        for position, reason in batch.failures:
            raise DataError(
                f"{images.paths[position]} was readable before training and is not now: {reason}",
                "restore the file, then continue with --resume",
            )
        yield batch
