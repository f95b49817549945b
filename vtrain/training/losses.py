"""The training loss: cross-entropy with label smoothing and class weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def build_loss(
    *, label_smoothing: float, class_weights: Sequence[float] | None, device: torch.device
) -> nn.Module:
    """Cross-entropy of logits `[B, C]` against labels `[B]` or soft labels `[B, C]`, mean over B.

    Label smoothing after Szegedy et al. 2016, arXiv:1512.00567.
    """
    # torch's own takes the mean over images, which is also that over the parts of a step.
    if class_weights is None:
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    weight = torch.tensor(class_weights, dtype=torch.float32, device=device)
    return WeightedCrossEntropy(weight, label_smoothing)


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with class weights `[C]`, divided by the number of images.

    torch's own mean divides by the weights of the batch, so that they cancel in a batch of one
    class, and batches could not be added up to a larger one.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, label_smoothing: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)  # goes to the device with the module
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits `[B, C]` and labels `[B]` or `[B, C]` -> mean loss, a scalar."""
        # A sum first, so that the division is by images and not by weights.
        total = nn.functional.cross_entropy(
            logits,
            labels,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / len(logits)
