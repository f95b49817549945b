"""What `plan.json` of a run folder says: the phases of a run and what each of them trains."""

from typing import Any

from vtrain.data.image_sets import to_plain
from vtrain.models.freezing import Phase, StageSummary
from vtrain.runs.plan import FitPlan


def build_plan_record(plan: FitPlan, *, steps_per_epoch: int) -> dict[str, Any]:
    """The plan as plain data; the freeze of the last phase stays applied to its classifier."""
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
        "phases": [_describe_phase(plan, index) for index in range(len(plan.phases))],
    }


def _describe_phase(plan: FitPlan, index: int) -> dict[str, Any]:
    phase: Phase = plan.phases[index]
    plan.apply_freeze(phase)
    stages = plan.summarize_stages(index)
    return {
        "name": phase.name,
        "epochs": phase.epochs,
        "augmentation": plan.augment(phase),
        "stages": [_describe_stage(stage) for stage in stages],
    }


def _describe_stage(stage: StageSummary) -> dict[str, Any]:
    rates = stage.learning_rates
    return {
        "name": stage.name,
        "parameters": stage.parameters,
        "trainable": stage.trainable,
        "learning_rates": None if rates is None else list(rates),
        "batch_norm": stage.batch_norm,
    }
