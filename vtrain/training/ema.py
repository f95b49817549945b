"""Exponential moving average of a model's parameters and buffers."""

from copy import deepcopy

import torch
from torch import nn


class ModelEma:
    """A second model whose floating-point tensors follow `model` slowly.

    After step t each tensor becomes `d * average + (1 - d) * current` with
    `d = min(decay, (1 + t) / (10 + t))`, so that the random start is forgotten quickly (the
    warm-up of TensorFlow's ExponentialMovingAverage). Integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = deepcopy(model).eval().requires_grad_(False)

    # After each optimizer step, so that the average has seen as many as the weights.
    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards `model` after optimizer step `step` (the first is 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average, current = self.model.state_dict(), model.state_dict()
        for name, value in average.items():
            source = current[name].detach()
            if value.dtype.is_floating_point:
                # Exact where both are equal, so that frozen tensors stay bit for bit; lerp_ would
                # turn -0.0 into 0.0.
                value.sub_(value - source, alpha=1 - decay)
            else:
                value.copy_(source)
