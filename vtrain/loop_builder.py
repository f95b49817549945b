"""The training loop of a plan, and where its learning rate is in each phase."""

from collections.abc import Callable

import torch

from vtrain.data.loaders import EpochBatchSampler
from vtrain.data.transforms import build_batch_mix
from vtrain.models.freezing import find_scheduled_phases
from vtrain.plan import FitPlan
from vtrain.training.calibration import MAX_BANK
from vtrain.training.ema import ModelEma
from vtrain.training.loop import TrainLoop, TrainState
from vtrain.training.losses import balanced_class_weights, build_loss
from vtrain.training.optim import build_optimizer, build_schedule, optimizer_bytes
from vtrain.training.precision import Precision
from vtrain.training.schedules import Schedule
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
        batch_size=plan.batch_size * plan.group.world_size,
        seed=config.seed,
        weights=weights,
        rank=plan.group.rank,
        world_size=plan.group.world_size,
    )


def count_steps(plan: FitPlan, sampler: EpochBatchSampler) -> int:
    """Optimiser steps of an epoch; the last may gather fewer batches than the others."""
    return -(-len(sampler) // plan.accumulate)


def build_loop(
    plan: FitPlan, state: TrainState, stopwatch: Stopwatch, *, notify: Callable[[str], None]
) -> TrainLoop:
    """The loop of a plan, with a new optimiser; `set_phase` makes it ready."""
    config = plan.config
    return TrainLoop(
        classifier=plan.classifier,
        model=plan.classifier,
        optimizer=build_optimizer(plan.groups, config.optim, plan.device),
        precision=Precision(plan.precision, plan.device),
        loss=_build_loss(plan),
        prepare=lambda inputs: inputs,
        batch_mix=build_batch_mix(config.data.mixup, config.data.cutmix, len(plan.splits.classes)),
        ema=ModelEma(plan.classifier, config.train.ema) if config.train.ema else None,
        device=plan.device,
        seed=config.seed,
        accumulate=plan.accumulate,
        clip_norm=config.train.clip_norm,
        state=state,
        stopwatch=stopwatch,
        notify=notify,
        group=plan.group,
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


def set_phase(loop: TrainLoop, plan: FitPlan, index: int, steps_per_epoch: int) -> None:
    """Make the classifier and the loop train what phase `index` trains, at its rates."""
    plan.apply_freeze(plan.phases[index])
    loop.phase = index
    loop.first_step, loop.schedule = find_schedule(plan, index, steps_per_epoch)


def count_saved_bytes(plan: FitPlan, loop: TrainLoop) -> tuple[int, int]:
    """Bytes of a checkpoint and of a finished model, once every parameter has been stepped."""
    model = sum(tensor.nbytes for tensor in loop.classifier.state_dict().values())
    copies = 1 if loop.ema is None else 2
    rows = min(len(plan.splits.train), MAX_BANK)
    bank = rows * plan.classifier.feature_dim * torch.float16.itemsize
    return copies * model + optimizer_bytes(loop.optimizer), model + bank
