"""The plan of a run in words, for the terminal and for `plan.json`."""

from pathlib import Path
from typing import Any

import torch

from vtrain.models.freezing import Phase, StageSummary
from vtrain.runs.plan import FitPlan
from vtrain.system.json_csv import to_plain
from vtrain.system.reporter import Reporter
from vtrain.system.text import format_count, one_line


def run_facts(plan: FitPlan) -> dict[str, Any]:
    """What must be the same when a run is resumed, besides its config: data and preprocessing."""
    facts: dict[str, Any] = {"classes": ", ".join(map(one_line, plan.splits.classes))}
    for name in plan.splits.named():
        facts[f"data.{name} count"] = plan.data[name]["count"]
        facts[f"data.{name} files"] = plan.data[name]["sha256"][:12]
    if plan.splits.exclusion is not None:
        facts["images left out by data.exclude"] = plan.splits.exclusion.digest[:12]
    for name, value in to_plain(plan.preprocessing).items():
        facts[f"preprocessing.{name}"] = value
    return facts


def show_plan(plan: FitPlan, reporter: Reporter) -> None:
    """Say what will be trained, on what, and how."""
    show_facts(plan, reporter)
    show_phases(plan, reporter)


def show_facts(plan: FitPlan, reporter: Reporter) -> None:
    """Data, input, model and batches, a line each."""
    splits, config = plan.splits, plan.config
    low, high = min(splits.train.class_counts()), max(splits.train.class_counts())
    each = f"{low}" if low == high else f"{low} to {high}"
    reporter.say(
        f"data: {len(splits.train)} train, {len(splits.val)} val"
        + (f", {len(splits.test)} test" if splits.test is not None else "")
        + f" images of {len(splits.classes)} classes ({each} per class)"
        + f"; {splits.describe_check()}"
    )
    if splits.groups is not None:
        reporter.say(splits.groups.describe())
    for text in splits.warnings:
        reporter.warn(text)
    pre = plan.preprocessing
    reporter.say(
        f"input: {pre.crop}x{pre.crop} px (resize {pre.resize}, {pre.interpolation}), "
        f"augmentation {', '.join(sorted({plan.augment(phase) for phase in plan.phases}))}"
    )
    reporter.say(
        f"model: {plan.spec.name}, weights {one_line(Path(config.model.weights))}, "
        f"on {plan.device}, {plan.precision}, loader workers: {plan.workers}, "
        f"threads: {torch.get_num_threads()}"
        + (f", {plan.processes.world_size} processes" if plan.processes.world_size > 1 else "")
    )
    if config.data.batch_size == "auto":
        reporter.say(
            f"batches: {plan.batch_size} images at once, {plan.accumulate} batches in a step"
        )


def show_phases(plan: FitPlan, reporter: Reporter, *, every: bool = False) -> None:
    """The table of stages of each phase, or of the first one where there are many."""
    for index, phase in enumerate(plan.phases):
        plan.apply_freeze(phase)
        if index == 0 or every or len(plan.phases) <= 3:
            show_stages(phase, plan.summarize_stages(index), reporter)


def show_stages(phase: Phase, stages: list[StageSummary], reporter: Reporter) -> None:
    """The table of stages of a phase: parameters, trainable, peak learning rate, BatchNorm."""
    total = sum(stage.parameters for stage in stages)
    trainable = sum(stage.trainable for stage in stages)
    reporter.table(
        ("stage", "parameters", "trainable", "learning rate", "BatchNorm"),
        [
            (
                stage.name,
                format_count(stage.parameters),
                format_count(stage.trainable) if stage.trainable else "frozen",
                format_rates(stage.learning_rates),
                stage.batch_norm,
            )
            for stage in stages
        ],
        title=f"phase {phase.name}, {phase.epochs} epoch{'s' if phase.epochs > 1 else ''}: "
        f"trains {format_count(trainable)} "
        f"of {format_count(total)} parameters",
        right=(1, 2, 3),
    )


def format_rates(rates: tuple[float, float] | None) -> str:
    """One rate, or the lowest and highest."""
    if rates is None:
        return "-"
    low, high = rates
    return f"{low:.2e}" if low == high else f"{low:.2e} to {high:.2e}"


def build_plan_record(plan: FitPlan, *, steps_per_epoch: int) -> dict[str, Any]:
    """The plan as plain data; the freeze of the last phase stays applied to its classifier."""
    phases = []
    for index, phase in enumerate(plan.phases):
        plan.apply_freeze(phase)
        phases.append(
            {
                "name": phase.name,
                "epochs": phase.epochs,
                "augmentation": plan.augment(phase),
                "stages": to_plain(plan.summarize_stages(index)),
            }
        )
    return {
        "schema": 1,
        "backbone": plan.spec.name,
        "weights": plan.config.model.weights,
        "device": str(plan.device),
        "precision": plan.precision,
        "batch_size": plan.batch_size,
        "accumulate": plan.accumulate,
        "steps_per_epoch": steps_per_epoch,
        "preprocessing": to_plain(plan.preprocessing),
        "phases": phases,
    }
