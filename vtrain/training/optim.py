"""Optimizers over param groups, which know their peak learning rate in each phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtrain.config.keys import OptimConfig
from vtrain.models.classifier import HEAD, Classifier
from vtrain.training.learning_rates import stage_factor


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


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the state of an optimiser will take once every parameter has been stepped."""
    copies = 2 if isinstance(optimizer, torch.optim.AdamW) else 1  # two moments, or the momentum
    parameters = (each for group in optimizer.param_groups for each in group["params"])
    return copies * sum(int(parameter.nbytes) for parameter in parameters)
