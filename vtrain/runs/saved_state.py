"""What a run writes while it trains: its description, its checkpoint and its best model."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vtrain.config.dump import dump_config
from vtrain.config.input_paths import dump_without_folders
from vtrain.config.keys import flatten_config
from vtrain.config.run_files import CHECKPOINT_NAME, MODEL_NAME, RESOLVED_NAME
from vtrain.errors import DivergedError
from vtrain.inference.calibration import MAX_BANK
from vtrain.models.classifier import Classifier
from vtrain.models.freezing import verify_frozen
from vtrain.models.model_file import ModelFile, save_model
from vtrain.runs.checkpoint import Checkpoint, save_checkpoint
from vtrain.runs.folder import CONFIG_NAME, require_disk_space
from vtrain.runs.metric_log import EpochMetrics, write_metrics
from vtrain.runs.plan import FitPlan
from vtrain.runs.plan_text import build_plan_record, run_facts
from vtrain.runs.record import DATA_NAME, ENVIRONMENT_NAME, PLAN_NAME
from vtrain.system.files import write_text
from vtrain.system.json_csv import to_plain, write_json
from vtrain.system.machine import describe_environment
from vtrain.system.reporter import Reporter
from vtrain.system.tensor_files import find_non_finite, shorten_names
from vtrain.training.optim import optimizer_bytes
from vtrain.training.state import TrainState
from vtrain.training.step import Trainer


@dataclass(frozen=True, slots=True)
class BestModel:
    """The best weights so far and their metrics, until they are written."""

    state: dict[str, Tensor]
    metrics: EpochMetrics


def describe_machine(plan: FitPlan) -> dict[str, Any]:
    """What the last bits of a result depend on, besides config and data."""
    return {
        "device": plan.device.type,
        "precision": plan.precision,
        "threads": torch.get_num_threads(),
        "processes": plan.processes.world_size,
        "batch_size": plan.batch_size,
    }


def write_description(plan: FitPlan, run_dir: Path, *, steps_per_epoch: int) -> None:
    """Write what a new run is into its folder."""
    write_text(run_dir / CONFIG_NAME, plan.loaded.text)
    write_json(run_dir / DATA_NAME, plan.data)
    write_settings(plan, run_dir, steps_per_epoch=steps_per_epoch)


def write_settings(plan: FitPlan, run_dir: Path, *, steps_per_epoch: int) -> None:
    """Write what may differ when a run is resumed: settings, machine and plan."""
    loaded = plan.loaded
    # With it `vtrain fit config.resolved.yaml --resume` finds the run.
    config = loaded.config.model_copy(update={"run_dir": str(run_dir.absolute())})
    write_text(run_dir / RESOLVED_NAME, dump_config(config, loaded.origins))
    choices = {
        **describe_machine(plan),
        "inference_precision": plan.inference_precision,
        "workers": plan.workers,
        "accumulate": plan.accumulate,
    }
    write_json(run_dir / ENVIRONMENT_NAME, {**describe_environment(), "choices": choices})
    write_json(run_dir / PLAN_NAME, build_plan_record(plan, steps_per_epoch=steps_per_epoch))


@dataclass(slots=True)
class SavedState:
    """The checkpoint and the best model of a run.

    All processes call the methods together, the first alone writes. `saved_at` is when, on this
    process's clock, and `saved_step` of which step the checkpoint is; None before the first.
    `frozen` are the digests of the tensors that the current phase must not change.
    """

    plan: FitPlan
    run_dir: Path
    trainer: Trainer
    reporter: Reporter
    planned_epochs: int
    batches_per_epoch: int
    started: float = field(default_factory=time.perf_counter)
    seconds_before: float = 0.0
    frozen: dict[str, str] = field(default_factory=dict)
    best: BestModel | None = None
    saved_at: float | None = None
    saved_step: int | None = None

    @property
    def state(self) -> TrainState:
        """Where the run is."""
        return self.trainer.state

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last may gather fewer batches than the others."""
        return -(-self.batches_per_epoch // self.plan.accumulate)

    @property
    def seconds(self) -> float:
        """How long the run has taken, over all its processes' lives."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def candidate(self) -> Classifier:
        """What is validated and saved: the classifier, or the average of its weights."""
        ema = self.trainer.ema
        return self.plan.classifier if ema is None else cast(Classifier, ema.model)

    def require_disk_space(self) -> None:
        """Find out before training whether everything can be saved.

        Raises:
            ResourceError: the disk is too full.
        """
        checkpoint, model = count_saved_bytes(self.plan, self.trainer)
        require_disk_space(self.run_dir, checkpoint_bytes=checkpoint, model_bytes=model)

    def verify_frozen(self) -> None:
        """Prove that what a phase has frozen is what it was when the phase began.

        Raises:
            ModelError: it is not.
        """
        if self.candidate is not self.plan.classifier:
            verify_frozen(self.candidate, self.frozen)  # the average, which is what is saved
        count = verify_frozen(self.plan.classifier, self.frozen)
        if count:
            self.reporter.say(f"frozen: all {count} frozen tensors are bit for bit as loaded")

    # --- saving ------------------------------------------------------------------------------

    def note_best(self, metrics: EpochMetrics, *, copy: bool) -> None:
        """Take the weights as they are now for the best so far; they are written with the rest.

        Raises:
            DivergedError: they are not finite.
        """
        self.state.best_top1, self.state.best_loss = metrics.val_top1, metrics.val_loss
        self.state.best_epoch = metrics.epoch
        weights = self.candidate.state_dict()
        if names := find_non_finite(weights):
            raise DivergedError(
                f"the weights are not finite after step {self.state.step}: {shorten_names(names)}",
                "lower optim.lr and optim.backbone_lr, or set train.precision=fp32",
            )
        if copy:
            weights = {name: tensor.clone() for name, tensor in weights.items()}
        self.best = BestModel(weights, metrics)

    def save(self) -> None:
        """Write what is to be kept."""
        self.trainer.sync()
        with self.trainer.stopwatch.section("saving"):
            self.state.seconds = self.seconds
            # Before the checkpoint: a run that is killed in between repeats this epoch.
            self.save_best()
            if self.plan.processes.is_main:
                save_checkpoint(self.run_dir / CHECKPOINT_NAME, self._build_checkpoint())
                write_metrics(self.run_dir, self.state.history)
        self.saved_at = time.perf_counter()
        self.saved_step = self.state.step

    def save_best(self) -> None:
        """Write the best weights, if they are not written yet."""
        best, self.best = self.best, None
        if best is None or not self.plan.processes.is_main:
            return
        plan, environment = self.plan, describe_environment()
        save_model(
            self.run_dir / MODEL_NAME,
            best.state,
            ModelFile(
                backbone=plan.spec.name,
                options=dict(plan.config.model.options),
                pretrained_input=plan.pretrained_input,
                head=plan.config.model.head.model_dump(),
                classes=plan.splits.classes,
                class_ids=plan.splits.class_ids,
                preprocessing=plan.preprocessing,
                config=dump_without_folders(plan.config),
                metrics=to_plain(best.metrics),
                versions={"vtrain": environment["vtrain"], **environment["packages"]},
            ),
        )

    def _build_checkpoint(self) -> Checkpoint:
        trainer, plan = self.trainer, self.plan
        return Checkpoint(
            model=plan.classifier.state_dict(),
            ema=trainer.ema.model.state_dict() if trainer.ema is not None else None,
            optimizer=trainer.optimizer.state_dict(),
            scaler=trainer.precision.scaler.state_dict(),
            state=self.state,
            planned_epochs=self.planned_epochs,
            frozen=self.frozen,
            config=flatten_config(plan.config),
            data=run_facts(plan),
            machine=describe_machine(plan),
        )


def count_saved_bytes(plan: FitPlan, trainer: Trainer) -> tuple[int, int]:
    """Bytes of a checkpoint and of a finished model, once every parameter has been stepped."""
    model = sum(tensor.nbytes for tensor in plan.classifier.state_dict().values())
    copies = 1 if trainer.ema is None else 2
    rows = min(len(plan.splits.train), MAX_BANK)
    bank = rows * plan.classifier.feature_dim * torch.float16.itemsize
    return copies * model + optimizer_bytes(trainer.optimizer), model + bank
