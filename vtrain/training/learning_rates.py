"""Learning rates: the peak of each part of the network, and the schedule, a function of steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vtrain.config.keys import FitConfig, OptimConfig
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.classifier import HEAD, Classifier

# Peak rates of a pretrained backbone under AdamW, where the user gives none: of most families, and
# of those that lose what they know at it.
BACKBONE_LR, GENTLE_LR = 3e-4, 5e-5

Shape = Callable[[float], float]


def choose_backbone_lr(config: FitConfig, spec: BackboneSpec) -> float:
    """The peak rate below the head: what the config says, else what suits the backbone's family."""
    if config.optim.backbone_lr is not None:
        return config.optim.backbone_lr
    if config.model.weights == "none":
        return config.optim.lr  # nothing is worth keeping: it learns as fast as the head
    return GENTLE_LR if spec.is_gentle else BACKBONE_LR


def stage_factor(classifier: Classifier, stage: str, layer_decay: float | None) -> float:
    """1 for the last stage, times `layer_decay` for each stage further down."""
    if layer_decay is None or stage == HEAD:
        return 1.0
    names = [each.name for each in classifier.spec.stages]
    # After Clark et al. 2020, arXiv:2003.10555: the lower a layer, the more general its features.
    exponent = len(names) - 1 - names.index(stage)
    return float(layer_decay**exponent)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor between 0 and 1 for every optimizer step of a phase.

    `total_steps` and `warmup_steps` count from the phase's first step; during warm-up the factor
    rises linearly to 1, then `name` shapes the rest: `cosine` (Loshchilov and Hutter 2017,
    arXiv:1608.03983), `linear` to 0, `constant`, or `step` (times `gamma` every `step_size` steps).
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    step_size: int = 1
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        """The factor for optimizer step `step`, the first being 0."""
        # From above 0, so that the first step learns, to below 1, so that the peak comes after it.
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        after = step - self.warmup_steps
        if self.name == "step":
            return self.gamma ** (after // self.step_size)
        # The last step still moves: progress reaches 1 one step after the end.
        progress = min(1.0, after / max(1, self.total_steps - self.warmup_steps))
        return SHAPES[self.name](progress)


SHAPES: dict[str, Shape] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "constant": lambda _: 1.0,
}


def build_schedule(config: OptimConfig, *, steps_per_epoch: int, epochs: int) -> Schedule:
    """The schedule of a phase of `epochs` epochs; warm-up takes at most half of it."""
    # Half at most: a run of a few epochs would otherwise never reach its peak rate.
    total = steps_per_epoch * epochs
    return Schedule(
        name=config.schedule,
        total_steps=total,
        warmup_steps=min(round(config.warmup_epochs * steps_per_epoch), total // 2),
        step_size=max(1, round(config.step_epochs * steps_per_epoch)),
        gamma=config.step_gamma,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, phase: int, factor: float) -> None:
    """Give every group its peak rate in `phase` times `factor`."""
    # Set, not multiplied: the rate depends on the step alone, whatever it was before.
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lrs"][phase] * factor


def head_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the head's groups now, or the highest of all where the head is frozen."""
    rates = [group["lr"] for group in optimizer.param_groups if group["stage"] == "head"]
    return float(max(rates or [group["lr"] for group in optimizer.param_groups]))
