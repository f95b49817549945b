"""The training loss: cross-entropy with label smoothing and class weights."""

from collections.abc import Sequence

import torch
from torch import nn


def build_loss(
    *, label_smoothing: float, class_weights: Sequence[float] | None, device: torch.device
) -> nn.Module:
    """Cross-entropy of logits `[B, C]` against labels `[B]` or soft labels `[B, C]`, mean over B.

    Label smoothing after Szegedy et al. 2016, arXiv:1512.00567.
    """
    weight = None
    if class_weights is not None:
        weight = torch.tensor(class_weights, dtype=torch.float32, device=device)
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)


def balanced_class_weights(counts: Sequence[int]) -> list[float]:
    """Weights inversely proportional to the class counts, their mean over the images being 1.

    A class without images weighs 0.
    """
    present = sum(1 for count in counts if count)
    total = sum(counts)
    return [total / (present * count) if count else 0.0 for count in counts]
