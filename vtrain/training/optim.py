"""Optimisers over parameter groups whose peak rates differ from phase to phase."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vtrain.config import OptimConfig
from vtrain.training.schedules import Schedule


def build_optimizer(
    groups: Sequence[Mapping[str, Any]], config: OptimConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) or SGD with Nesterov momentum."""
    fused = device.type in ("cpu", "cuda", "mps")
    parameters = [dict(group) for group in groups]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, fused=fused)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        fused=fused,
    )


def build_schedule(config: OptimConfig, *, steps_per_epoch: int, epochs: int) -> Schedule:
    """The schedule of a phase of `epochs` epochs; warm-up takes at most half of it."""
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
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lrs"][phase] * factor


def head_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the head's groups now, or the highest of all where the head is frozen."""
    rates = [group["lr"] for group in optimizer.param_groups if group["stage"] == "head"]
    return float(max(rates or [group["lr"] for group in optimizer.param_groups]))


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the state of an optimiser will take once every parameter has been stepped."""
    copies = 2 if isinstance(optimizer, torch.optim.AdamW) else 1  # two moments, or the momentum
    parameters = (each for group in optimizer.param_groups for each in group["params"])
    return copies * sum(int(parameter.nbytes) for parameter in parameters)
