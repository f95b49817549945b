"""The one path from uint8 images to logits and features that every command takes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtrain.data.transforms import normalize_images
from vtrain.records import Preprocessing
from vtrain.training.metrics import rank_classes, sum_dtype

Forward = Callable[[Tensor], Tensor]
NOT_FINITE = "the model's output for this image is not finite"


@torch.inference_mode()
def compute_outputs(
    forward: Forward, images: Tensor, preprocessing: Preprocessing, device: torch.device
) -> Tensor:
    """Float32 outputs `[B, ...]` on the device of uint8 images `[B, 3, H, W]`, B at least 1.

    `forward` gets normalised float32 images, channels last.
    """
    return forward(normalize_images(images, preprocessing, device=device)).float()


def find_top_classes(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `min(k, C)` most probable classes of logits `[B, C]`, as class indices and probabilities.

    Both are `[B, min(k, C)]` and on the device. The softmax is taken in float64 where the device
    has it, the order from the logits, so that probabilities that round to 0 or 1 tie in no case.
    """
    ranked = rank_classes(logits, k)
    probabilities = logits.to(sum_dtype(logits.device)).softmax(dim=1)
    return ranked, probabilities.gather(1, ranked)


def find_finite_rows(outputs: Tensor) -> Tensor:
    """Whether each row of `[B, ...]` has neither NaN nor infinity; bool `[B]` on the device."""
    return torch.isfinite(outputs).flatten(1).all(dim=1)


def find_model_device(module: nn.Module) -> torch.device:
    """The device of the module's parameters."""
    return next(module.parameters()).device
