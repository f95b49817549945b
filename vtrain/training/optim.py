"""Learning rates and optimizers: param groups, their peak rates in each phase, and the schedule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtrain.config.keys import FitConfig, OptimConfig
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.classifier import Classifier
from vtrain.models.freezing import HEAD
from vtrain.training.schedules import Schedule


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters of one stage with one weight decay and the same rates.

    `peak_lrs[p]` is the learning rate at the top of the schedule in phase p, 0 where frozen.
    """

    stage: str
    weight_decay: float
    peak_lrs: tuple[float, ...]
    names: tuple[str, ...]


def build_param_groups(
    classifier: Classifier,
    tables: Sequence[Mapping[str, float | None]],
    config: OptimConfig,
    *,
    backbone_lr: float,
) -> list[ParamGroup]:
    """Param groups for everything that any of the phases' tables (lr_scale by name) trains.

    Norms, biases and other one-dimensional parameters are never decayed, nor are position
    embeddings, class tokens and scales.
    """
    names: dict[tuple[str, float, tuple[float | None, ...]], list[str]] = {}
    # In the order of the parameters: a checkpoint knows them by their number in it.
    for name, parameter in classifier.named_parameters():
        # Over all phases at once: what a later phase thaws is in the optimizer from the start, so
        # that no phase has to build another one and lose the moments of the first.
        scales = tuple(table[name] for table in tables)
        if any(scale is not None for scale in scales):
            decay = config.weight_decay if _is_decayed(name, parameter) else 0.0
            names.setdefault((classifier.stage_of(name), decay, scales), []).append(name)
    groups = []
    for (stage, decay, scales), own in names.items():
        factor = stage_factor(classifier, stage, config.layer_decay)
        base = config.lr if stage == HEAD else backbone_lr * factor
        peaks = tuple(base * scale if scale is not None else 0.0 for scale in scales)
        groups.append(ParamGroup(stage, decay, peaks, tuple(own)))
    return groups


def choose_backbone_lr(config: FitConfig, spec: BackboneSpec) -> float:
    """The peak rate below the head: what the config says, else what suits the backbone's family."""
    if config.optim.backbone_lr is not None:
        return config.optim.backbone_lr
    # Nothing is worth keeping of random weights: they learn as fast as the head.
    return config.optim.lr if config.model.weights == "none" else spec.fine_tuning_lr


def stage_factor(classifier: Classifier, stage: str, layer_decay: float | None) -> float:
    """1 for the last stage, times `layer_decay` for each stage further down."""
    if layer_decay is None or stage == HEAD:
        return 1.0
    names = [each.name for each in classifier.spec.stages]
    # After Clark et al. 2020, arXiv:2003.10555: the lower a layer, the more general its features.
    exponent = len(names) - 1 - names.index(stage)
    return float(layer_decay**exponent)


def _is_decayed(name: str, parameter: Tensor) -> bool:
    # Decay of a scale or a shift only undoes what the norm in front of it has learnt.
    leaf = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and not leaf.startswith(
        ("class_token", "pos_embedding", "relative_position_bias", "layer_scale", "logit_scale")
    )


def find_stage_rates(groups: Sequence[ParamGroup], phase: int) -> dict[str, list[float]]:
    """The peak rates of each stage that is trained in a phase."""
    rates: dict[str, list[float]] = {}
    for group in groups:
        if group.peak_lrs[phase] > 0:
            rates.setdefault(group.stage, []).append(group.peak_lrs[phase])
    return rates


def build_optimizer(
    groups: Sequence[ParamGroup],
    classifier: Classifier,
    config: OptimConfig,
    device: torch.device,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) or SGD with Nesterov momentum."""
    # One kernel over all tensors of a group, instead of one for each; other devices have none.
    fused = device.type in ("cpu", "cuda", "mps")
    parameters = dict(classifier.named_parameters())
    # torch's own form; what it does not know is kept, also in a checkpoint.
    tables: list[dict[str, Any]] = [
        {
            "params": [parameters[name] for name in group.names],
            "names": list(group.names),
            "stage": group.stage,
            "weight_decay": group.weight_decay,
            "lr": group.peak_lrs[0],
            "peak_lrs": list(group.peak_lrs),
        }
        for group in groups
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(tables, lr=config.lr, fused=fused)
    return torch.optim.SGD(
        tables,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        fused=fused,
    )


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


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the state of an optimiser will take once every parameter has been stepped."""
    copies = 2 if isinstance(optimizer, torch.optim.AdamW) else 1  # two moments, or the momentum
    parameters = (each for group in optimizer.param_groups for each in group["params"])
    return copies * sum(int(parameter.nbytes) for parameter in parameters)
