"""The moving average of a model: closed form, exactness, independence."""

import pytest
import torch
from torch import nn

from tests.helpers.tiny import build_tiny_model
from vtrain.models.freezing import FROZEN, ParamRule, apply_freeze
from vtrain.training.ema import ModelEma


class Scalar(nn.Module):
    """One parameter and a counter."""

    counter: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("counter", torch.tensor(0))


def average_of(ema: ModelEma) -> float:
    return float(ema.model.state_dict()["weight"])


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_closed_form_with_warm_up(decay: float) -> None:
    model = Scalar()
    ema = ModelEma(model, decay)
    expected = 1.0
    for step in range(1, 40):
        current = float(step % 7) - 2.5
        with torch.no_grad():
            model.weight.fill_(current)
        ema.update(model, step)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * current
        assert average_of(ema) == pytest.approx(expected, abs=1e-5)


def test_first_step_keeps_two_elevenths_of_the_start() -> None:
    model = Scalar()
    ema = ModelEma(model, 0.9999)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema.update(model, 1)
    assert average_of(ema) == pytest.approx(2 / 11)


def test_integer_buffers_are_copied() -> None:
    model = Scalar()
    ema = ModelEma(model, 0.9)
    model.counter.fill_(7)
    ema.update(model, 1)
    assert int(ema.model.state_dict()["counter"]) == 7


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9, 0.9999])
def test_equal_tensors_stay_bit_for_bit(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 200)
    with torch.no_grad():  # from denormal to huge
        model.weight.mul_(torch.logspace(-44, 38, 300))
    before = model.weight.detach().clone()
    ema = ModelEma(model, decay)
    for step in range(1, 60):
        ema.update(model, step)
    after = ema.model.state_dict()["weight"]
    assert torch.equal(after.view(torch.int32), before.view(torch.int32))


def test_average_is_a_model_of_its_own() -> None:
    model = nn.Linear(3, 2)
    ema = ModelEma(model, 0.5)
    before = {name: tensor.clone() for name, tensor in ema.model.state_dict().items()}
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.weight.add_(1)
    assert all(torch.equal(before[k], v) for k, v in ema.model.state_dict().items())
    ema.update(model, 1)
    moved = ema.model.state_dict()["weight"] - before["weight"]
    assert torch.allclose(moved, torch.full((2, 3), 9 / 11))
    assert torch.equal(ema.model.state_dict()["bias"], model.bias)


def test_update_leaves_model_and_gradients_alone() -> None:
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ModelEma(model, 0.5).update(model, 3)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.weight.grad is not None
    assert model.training


def test_frozen_classifier_is_averaged_exactly_and_the_rest_follows() -> None:
    classifier = build_tiny_model(("ant", "bee")).classifier
    apply_freeze(classifier, [ParamRule("head", 1.0), FROZEN])
    ema = ModelEma(classifier, 0.9)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    with torch.no_grad():
        for parameter in classifier.head.parameters():
            parameter.add_(1)
    ema.update(classifier, 1)
    for name, tensor in ema.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("head.")), name
    assert not any(module.training for module in ema.model.train(False).modules())
