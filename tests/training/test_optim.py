"""Optimisers, parameter groups and their rates, by their effect on the weights."""

import copy
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import CPU, build_tiny_model
from vtrain.config.keys import OptimConfig
from vtrain.models.classifier import Classifier
from vtrain.models.freezing import FROZEN, TRAINED, ParamRule, match_rules
from vtrain.training.learning_rates import head_learning_rate, set_learning_rates
from vtrain.training.optim import build_optimizer, build_param_groups


def build(
    config: OptimConfig, *tables: tuple[ParamRule, ...]
) -> tuple[Classifier, torch.optim.Optimizer]:
    classifier = build_tiny_model(("ant", "bee")).classifier
    groups = build_param_groups(
        classifier,
        [match_rules(classifier, rules) for rules in tables or ((TRAINED,),)],
        config,
        backbone_lr=config.backbone_lr or 1e-4,
    )
    return classifier, build_optimizer(groups, classifier, config, CPU)


def step_with_gradient(classifier: Classifier, optimizer: torch.optim.Optimizer, by: float) -> None:
    for parameter in classifier.parameters():
        parameter.grad = torch.full_like(parameter, by)
    optimizer.step()


def snapshot(classifier: Classifier) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in classifier.named_parameters()}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_shrinks_weights_and_leaves_norms_and_biases_alone(
    name: Literal["adamw", "sgd"],
) -> None:
    config = OptimConfig(optimizer=name, lr=0.1, backbone_lr=0.01, weight_decay=0.5)
    classifier, optimizer = build(config)
    torch.manual_seed(0)
    with torch.no_grad():  # fresh biases are zero, which no decay would change
        for parameter in classifier.parameters():
            parameter.normal_()
    before = snapshot(classifier)
    step_with_gradient(classifier, optimizer, 0.0)
    # Nesterov momentum 0.9 counts the first gradient 1.9 times.
    gain = 1.9 if name == "sgd" else 1.0
    decayed = set()
    for key, parameter in classifier.named_parameters():
        rate = 0.1 if key.startswith("head.") else 0.01
        if not torch.equal(parameter, before[key]):
            decayed.add(key)
            torch.testing.assert_close(parameter.detach(), before[key] * (1 - rate * 0.5 * gain))
    weights = {
        f"{path}.weight"
        for path, module in classifier.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    assert decayed == weights
    assert any(key.endswith("bias") for key in before)


def test_adamw_moves_by_the_rate_of_each_part() -> None:
    # The first step of Adam has the size of the learning rate, whatever the gradient is.
    config = OptimConfig(lr=1e-2, backbone_lr=1e-4, weight_decay=0.0)
    classifier, optimizer = build(config)
    before = snapshot(classifier)
    step_with_gradient(classifier, optimizer, -3.0)
    for key, parameter in classifier.named_parameters():
        rate = 1e-2 if key.startswith("head.") else 1e-4
        moved = parameter.detach() - before[key]
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 2.0), (0.9, 1.9 + 2.71)])
def test_sgd_with_nesterov_momentum_closed_form(momentum: float, expected: float) -> None:
    config = OptimConfig(
        optimizer="sgd", lr=0.1, backbone_lr=0.1, momentum=momentum, weight_decay=0.0
    )
    classifier, optimizer = build(config)
    before = snapshot(classifier)
    for _ in range(2):
        step_with_gradient(classifier, optimizer, 1.0)
    # Momentum buffers 1 and 1 + m; each step takes the gradient plus m times the buffer.
    for key, parameter in classifier.named_parameters():
        moved = before[key] - parameter.detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * expected))


def test_rates_of_a_phase_are_its_peaks_times_the_factor() -> None:
    probe = (ParamRule("head", 1.0), FROZEN)
    tuned = (ParamRule("stem", 0.5), TRAINED)
    config = OptimConfig(lr=1.0, backbone_lr=0.1)
    _, optimizer = build(config, probe, tuned)

    def rates() -> dict[str, set[float]]:
        found: dict[str, set[float]] = {}
        for group in optimizer.param_groups:
            found.setdefault(group["stage"], set()).add(group["lr"])
        return found

    set_learning_rates(optimizer, 0, 0.5)
    assert rates() == {"stem": {0.0}, "block1": {0.0}, "block2": {0.0}, "block3": {0.0},
                       "head": {0.5}}  # fmt: skip
    set_learning_rates(optimizer, 1, 0.25)
    assert rates() == {"stem": {0.0125}, "block1": {0.025}, "block2": {0.025},
                       "block3": {0.025}, "head": {0.25}}  # fmt: skip


def test_shown_rate_is_that_of_the_head_or_the_highest_without_one() -> None:
    config = OptimConfig(lr=0.01, backbone_lr=0.1, layer_decay=0.5)
    _, optimizer = build(config)
    set_learning_rates(optimizer, 0, 0.5)
    assert head_learning_rate(optimizer) == 0.005
    _, optimizer = build(config, (ParamRule("head", None), TRAINED))
    set_learning_rates(optimizer, 0, 0.5)
    assert head_learning_rate(optimizer) == 0.05


def test_parameters_without_gradients_stay_where_they_are() -> None:
    config = OptimConfig(lr=0.1, backbone_lr=0.1, weight_decay=0.5)
    classifier, optimizer = build(config)
    before = snapshot(classifier)
    for parameter in classifier.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for key, parameter in classifier.named_parameters():
        assert torch.equal(parameter, before[key]) == (not key.startswith("head.")), key


def test_state_survives_saving_and_keeps_its_rates() -> None:
    config = OptimConfig(lr=0.1, backbone_lr=0.01)
    classifier, optimizer = build(config)
    set_learning_rates(optimizer, 0, 0.3)
    step_with_gradient(classifier, optimizer, 1.0)
    saved: dict[str, Any] = copy.deepcopy(optimizer.state_dict())
    other, restored = build(OptimConfig(lr=9.0, backbone_lr=9.0))
    other.load_state_dict(classifier.state_dict())
    restored.load_state_dict(saved)
    for each, model in ((optimizer, classifier), (restored, other)):
        set_learning_rates(each, 0, 0.2)
        step_with_gradient(model, each, -2.0)
    for one, two in zip(classifier.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert math.isclose(head_learning_rate(restored), 0.02)
