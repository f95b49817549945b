"""What trains a plan: sampler, trainer, and the schedule of each phase."""

import torch
from torch.nn.parallel import DistributedDataParallel

from vtrain.data.sampler import EpochBatchSampler, balanced_class_weights
from vtrain.data.transforms import build_batch_mix
from vtrain.models.freezing import find_scheduled_phases
from vtrain.models.precision import Precision
from vtrain.runs.phases import PhaseWork
from vtrain.runs.plan import FitPlan
from vtrain.system.reporter import Reporter
from vtrain.training.ema import ModelEma
from vtrain.training.learning_rates import Schedule, build_schedule
from vtrain.training.losses import build_loss
from vtrain.training.optim import build_optimizer
from vtrain.training.state import TrainState
from vtrain.training.step import PhaseRun, Trainer
from vtrain.training.stopwatch import Stopwatch


def build_sampler(plan: FitPlan) -> EpochBatchSampler:
    """What each epoch of a plan draws, of which this process gets its part."""
    config, train = plan.config, plan.splits.train
    weights = None
    if config.data.balance == "sampler":
        by_class = balanced_class_weights(train.class_counts())
        weights = [by_class[label] for label in train.labels]
    return EpochBatchSampler(
        num_images=len(train),
        batch_size=plan.batch_size * plan.processes.world_size,
        seed=config.seed,
        weights=weights,
        rank=plan.processes.rank,
        world_size=plan.processes.world_size,
    )


def count_steps(plan: FitPlan, sampler: EpochBatchSampler) -> int:
    """Optimiser steps of an epoch; the last may gather fewer batches than the others."""
    return -(-len(sampler) // plan.accumulate)


def build_trainer(plan: FitPlan, stopwatch: Stopwatch, reporter: Reporter) -> Trainer:
    """The trainer of a plan at its first step."""
    config = plan.config
    return Trainer(
        classifier=plan.classifier,
        optimizer=build_optimizer(plan.param_groups, plan.classifier, config.optim, plan.device),
        precision=Precision(plan.precision, plan.device),
        loss=_build_loss(plan),
        state=TrainState(),
        seed=config.seed,
        accumulate=plan.accumulate,
        clip_norm=config.train.clip_norm,
        batch_mix=build_batch_mix(config.data.mixup, config.data.cutmix, len(plan.splits.classes)),
        ema=ModelEma(plan.classifier, config.train.ema) if config.train.ema else None,
        processes=plan.processes,
        stopwatch=stopwatch,
        reporter=reporter,
    )


def _build_loss(plan: FitPlan) -> torch.nn.Module:
    weights = None
    if plan.config.data.balance == "loss":
        weights = balanced_class_weights(plan.splits.train.class_counts())
    return build_loss(
        label_smoothing=plan.config.train.label_smoothing,
        class_weights=weights,
        device=plan.device,
    )


def find_schedule(plan: FitPlan, index: int, steps_per_epoch: int) -> tuple[int, Schedule]:
    """The first step of the schedule that phase `index` is in, counted from 0, and the schedule."""
    scheduled = find_scheduled_phases(plan.phases, index)
    before = sum(phase.epochs for phase in plan.phases[: scheduled.start])
    schedule = build_schedule(
        plan.config.optim,
        steps_per_epoch=steps_per_epoch,
        epochs=sum(phase.epochs for phase in plan.phases[scheduled]),
    )
    return steps_per_epoch * before, schedule


def build_phase_run(plan: FitPlan, index: int, work: PhaseWork, steps_per_epoch: int) -> PhaseRun:
    """How the trainer runs a phase: its model, parameters and learning rates."""
    first_step, schedule = find_schedule(plan, index, steps_per_epoch)
    model = work.model
    if plan.config.train.compile:
        model.compile()
    if plan.processes.world_size > 1:
        # Without the views gradients are summed in another order from the second step on, and in
        # the first step after a resume once more in the first one.
        model = DistributedDataParallel(
            model,
            device_ids=[plan.device] if plan.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
        )
    parameters = [each for each in plan.classifier.parameters() if each.requires_grad]
    return PhaseRun(index, model, parameters, work.prepare, schedule, first_step)
