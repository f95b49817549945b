"""How many images fit into the memory of a device at once."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from vtrain.runtime import is_out_of_memory
from vtrain.training.precision import Precision

SMALLEST = 2  # BatchNorm cannot train on one image
STATES_PER_WEIGHT = 2  # AdamW keeps two moments for each weight that it trains


def find_batch_size(fits: Callable[[int], bool], wanted: int) -> int:
    """The largest of `wanted`, a half of it, a quarter and so on that fits; at least 2."""
    size = wanted
    while size > SMALLEST and not fits(size):
        size = max(SMALLEST, size // 2)
    return size


def can_train(classifier: nn.Module, size: int, *, image_size: int, precision: Precision) -> bool:
    """Whether forward and backward pass of `size` images fit next to the optimiser's state.

    Works on a copy of the classifier with its freeze as it is; nothing of it changes.
    """
    try:
        _take_step(copy.deepcopy(classifier), size, image_size, precision)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if precision.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _take_step(model: nn.Module, size: int, image_size: int, precision: Precision) -> None:
    device = precision.device
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = torch.empty(trained * STATES_PER_WEIGHT, device=device)
    images = torch.zeros(size, 3, image_size, image_size, device=device)
    model.train()
    with precision.autocast():
        logits = model(images.to(memory_format=torch.channels_last))
    logits.float().sum().backward()
    del state
