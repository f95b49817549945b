"""How many images fit: the search, and the trial step."""

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import CPU, build_tiny_model
from vtrain.models.precision import Precision
from vtrain.training.memory import can_train, find_batch_size

FP32 = Precision("fp32", CPU)


@pytest.mark.parametrize(
    ("wanted", "limit", "found"),
    [
        (32, 1000, 32),
        (32, 32, 32),
        (32, 31, 16),
        (256, 40, 32),
        (96, 13, 12),
        (32, 0, 2),
        (2, 0, 2),
    ],
)
def test_search_halves_until_it_fits(wanted: int, limit: int, found: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert find_batch_size(fits, wanted) == found
    assert tried == sorted(tried, reverse=True)


def test_trial_leaves_the_model_alone() -> None:
    model = build_tiny_model(("ant", "bee")).classifier.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert can_train(model, 2, image_size=32, precision=FP32)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Greedy(nn.Module):
    """Runs out of memory with more than four images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean(dim=(1, 2, 3)) * self.weight


def test_trial_that_runs_out_of_memory_says_no() -> None:
    assert can_train(Greedy(), 4, image_size=8, precision=FP32)
    assert not can_train(Greedy(), 5, image_size=8, precision=FP32)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        can_train(nn.Linear(5, 1), 2, image_size=8, precision=FP32)
