"""One step path for all precisions: casts, loss scaling, and the order of unscaling and clipping.

torch's gradient scaler runs on the CPU, so that fp16 is tested here although training refuses it.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.tiny import CPU
from vtrain.errors import UsageError
from vtrain.models.precision import (
    Precision,
    choose_inference_precision,
    choose_precision,
)

CUDA = torch.device("cuda")
MPS = torch.device("mps")


# --- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "bf16", "depthwise", "expected"),
    [
        (CUDA, True, False, "bf16"),
        (CUDA, True, True, "bf16"),
        (CUDA, False, False, "fp16"),
        (CPU, True, False, "bf16"),
        (CPU, True, True, "fp32"),
        (CPU, False, False, "fp32"),
        (MPS, False, False, "fp32"),
    ],
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    bf16: bool,
    depthwise: bool,
    expected: str,
) -> None:
    monkeypatch.setattr("vtrain.models.precision.has_bf16_instructions", lambda _: bf16)
    assert choose_precision("auto", device, depthwise=depthwise) == expected


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_what_was_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("vtrain.models.precision.has_bf16_instructions", lambda _: False)
    assert choose_precision(name, CPU, depthwise=True) == name
    assert choose_precision(name, CUDA, depthwise=False) == name


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.precision: fp16 .* CPU") as caught:
        choose_precision("fp16", CPU, depthwise=False)
    assert caught.value.hint == "set train.precision=auto"
    assert choose_precision("fp16", CUDA, depthwise=False) == "fp16"


@pytest.mark.parametrize(
    ("device", "bf16", "trained", "expected"),
    [
        (CUDA, True, "auto", "bf16"),
        (CUDA, False, "auto", "fp16"),
        (CPU, True, "auto", "bf16"),
        (CPU, False, "auto", "fp32"),
        (MPS, False, "auto", "fp32"),
        # what the run was trained in, where the device has it
        (CPU, True, "fp32", "fp32"),
        (CUDA, True, "fp32", "fp32"),
        (CUDA, True, "fp16", "fp16"),
        (CUDA, False, "bf16", "fp16"),
        (CPU, False, "bf16", "fp32"),
        (CPU, True, "fp16", "bf16"),
        (CPU, False, "fp16", "fp32"),
        (MPS, False, "fp16", "fp32"),
        (CPU, True, "fp8", "bf16"),
    ],
)
def test_auto_for_inference(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, bf16: bool, trained: str, expected: str
) -> None:
    monkeypatch.setattr("vtrain.models.precision.has_bf16_instructions", lambda _: bf16)
    assert choose_inference_precision("auto", device, trained=trained) == expected
    assert choose_inference_precision("fp32", device, trained=trained) == "fp32"
    assert choose_inference_precision("bf16", device, trained=trained) == "bf16"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("fp16", "precision fp16 was asked for on the CPU", "leave --precision out"),
        ("fp8", "precision 'fp8' is unknown, expected auto, fp32, bf16", None),
    ],
)
def test_inference_that_cannot_be(name: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        choose_inference_precision(name, CPU)
    assert (hint or "") in (caught.value.hint or "")


# --- casts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_forward_pass_is_cast_and_weights_are_not(name: str, dtype: torch.dtype) -> None:
    model, precision = nn.Linear(4, 2), Precision(name, CPU)
    with precision.autocast():
        output = model(torch.ones(3, 4))
    assert output.dtype == dtype
    assert model.weight.dtype == torch.float32
    precision.backward(output.float().sum())
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_full_precision_within_autocast(name: str) -> None:
    model, precision = nn.Linear(4, 2), Precision(name, CPU)
    with precision.autocast(), precision.full():
        output = model(torch.ones(3, 4))
    assert output.dtype == torch.float32
    assert torch.equal(output, model(torch.ones(3, 4)))


@pytest.mark.parametrize(("name", "scales"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_only_fp16_scales_the_loss(name: str, scales: bool) -> None:
    assert Precision(name, CPU).scaler.is_enabled() is scales


# --- the step ------------------------------------------------------------------------------------

Optimize = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, fused=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def build_problem() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, torch.randn(8, 4), 3 * torch.randn(8, 2)


def take_steps(
    name: str, optimize: Optimize, clip_norm: float | None, steps: int = 3
) -> tuple[nn.Linear, list[Tensor]]:
    """Train in fp32 arithmetic with the scaling of `name`; the weights after each step."""
    model, inputs, targets = build_problem()
    precision, optimizer = Precision(name, CPU), optimize(model)
    weights = []
    for _ in range(steps):
        precision.backward(mse_loss(model(inputs), targets))
        precision.step(optimizer, model.parameters(), clip_norm=clip_norm)
        weights.append(model.weight.detach().clone())
    return model, weights


@pytest.mark.parametrize("optimize", [sgd, adamw])
@pytest.mark.parametrize("clip_norm", [None, 0.05, 100.0])
def test_scaled_steps_equal_plain_ones(optimize: Optimize, clip_norm: float | None) -> None:
    # With clip_norm 0.05 this fails where the scaled gradients are clipped: the scale is 65536.
    _, plain = take_steps("fp32", optimize, clip_norm)
    _, scaled = take_steps("fp16", optimize, clip_norm)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_clipped_step_has_the_norm_asked_for(name: str) -> None:
    model, _, _ = build_problem()
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    trained, _ = take_steps(name, sgd, 0.05, 1)
    after = nn.utils.parameters_to_vector(trained.parameters()).detach()
    assert float((after - before).norm()) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_small_gradients_are_not_clipped(name: str) -> None:
    model, inputs, targets = build_problem()
    gradient = torch.autograd.grad(mse_loss(model(inputs), targets), model.weight)[0]
    before = model.weight.detach().clone()
    _, weights = take_steps(name, sgd, 1e6, 1)
    torch.testing.assert_close(weights[0], before - gradient)


def test_clipping_counts_only_the_parameters_given() -> None:
    model, inputs, targets = build_problem()
    precision, optimizer = Precision("fp32", CPU), sgd(model)
    before = model.weight.detach().clone()
    model.bias.grad = torch.full((2,), 1e6)
    model.bias.requires_grad_(False)
    precision.backward(mse_loss(model(inputs), targets))
    precision.step(optimizer, [p for p in model.parameters() if p.requires_grad], clip_norm=0.05)
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_overflow_skips_the_step_and_lowers_the_scale(
    optimize: Optimize, clip_norm: float | None
) -> None:
    model, inputs, targets = build_problem()
    precision, optimizer = Precision("fp16", CPU), optimize(model)
    before, scale = model.weight.detach().clone(), precision.scaler.get_scale()
    precision.backward(mse_loss(model(inputs), targets) * float("inf"))
    precision.step(optimizer, model.parameters(), clip_norm=clip_norm)
    assert torch.equal(model.weight, before)
    assert precision.scaler.get_scale() == scale / 2
    precision.backward(mse_loss(model(inputs), targets))
    precision.step(optimizer, model.parameters(), clip_norm=clip_norm)
    assert not torch.equal(model.weight, before)
    assert bool(model.weight.isfinite().all())


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_gradients_add_up_until_the_step_and_are_cleared_by_it(name: str) -> None:
    model, inputs, targets = build_problem()
    precision, optimizer = Precision(name, CPU), sgd(model)
    before = model.weight.detach().clone()
    expected = torch.autograd.grad(mse_loss(model(inputs), targets), model.weight)[0]
    for half in (slice(0, 4), slice(4, 8)):
        precision.backward(mse_loss(model(inputs[half]), targets[half]) / 2)
    precision.step(optimizer, model.parameters(), clip_norm=None)
    torch.testing.assert_close(model.weight.detach(), before - expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scale_survives_saving() -> None:
    model, inputs, targets = build_problem()
    precision, optimizer = Precision("fp16", CPU), sgd(model)
    precision.backward(mse_loss(model(inputs), targets) * float("inf"))
    precision.step(optimizer, model.parameters(), clip_norm=None)
    restored = Precision("fp16", CPU)
    restored.scaler.load_state_dict(precision.scaler.state_dict())
    assert restored.scaler.get_scale() == 32768.0
