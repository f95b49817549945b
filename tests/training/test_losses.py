"""The training loss against direct computation."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tests.helpers.tiny import CPU
from vtrain.data.sampler import balanced_class_weights
from vtrain.training.losses import build_loss


def logits_and_labels(images: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(images, classes, dtype=torch.float64), torch.arange(images) % classes


def reference(logits: Tensor, targets: Tensor, weights: list[float], smoothing: float) -> float:
    """Mean over images of -sum over classes of weight · smoothed target · log p."""
    classes = logits.shape[1]
    smooth = targets * (1 - smoothing) + smoothing / classes
    log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
    return float(-(torch.tensor(weights, dtype=torch.float64) * smooth * log_p).sum(dim=1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 1.5, 2.0]])
@pytest.mark.parametrize("soft", [False, True])
def test_mean_over_images(smoothing: float, weights: list[float] | None, soft: bool) -> None:
    logits, labels = logits_and_labels()
    targets = one_hot(labels, 4).double()
    loss = build_loss(label_smoothing=smoothing, class_weights=weights, device=CPU)
    if soft:
        targets = 0.3 * targets + 0.7 * targets.roll(1, dims=0)
    found = loss.double()(logits, targets if soft else labels)
    expected = reference(logits, targets, weights or [1.0] * 4, smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 1.5, 2.0]])
def test_losses_of_parts_add_up_to_that_of_the_whole(weights: list[float] | None) -> None:
    # Else accumulated gradients would not be those of one large batch.
    logits, labels = logits_and_labels(images=7)
    loss = build_loss(label_smoothing=0.1, class_weights=weights, device=CPU).double()
    parts = sum(len(p) * loss(logits[p], labels[p]) for p in (torch.arange(4), torch.arange(4, 7)))
    assert float(parts / 7) == pytest.approx(float(loss(logits, labels)), rel=1e-9)


def test_weight_counts_in_a_batch_of_one_class() -> None:
    logits, labels = torch.zeros(3, 2), torch.ones(3, dtype=torch.int64)
    loss = build_loss(label_smoothing=0.0, class_weights=[0.25, 4.0], device=CPU)
    assert float(loss(logits, labels)) == pytest.approx(4.0 * math.log(2))


def test_loss_of_half_precision_logits_is_computed_in_full() -> None:
    logits, labels = logits_and_labels()
    half = logits.to(torch.bfloat16)
    for weights in (None, [1.0, 1.0, 1.0, 1.0]):
        loss = build_loss(label_smoothing=0.0, class_weights=weights, device=CPU)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss(half, labels)
        assert found.dtype == torch.float32
        exact = reference(half.double(), one_hot(labels, 4).double(), [1.0] * 4, 0.0)
        assert float(found) == pytest.approx(exact, rel=1e-6)


def test_balanced_weights_are_inverse_to_the_counts() -> None:
    counts = [10, 30, 60]
    weights = balanced_class_weights(counts)
    assert weights == pytest.approx([100 / 30, 100 / 90, 100 / 180])
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) / 100 == pytest.approx(1)


def test_balanced_weights_of_equal_classes_are_1() -> None:
    assert balanced_class_weights([7, 7, 7]) == [1.0, 1.0, 1.0]


def test_class_without_images_weighs_nothing() -> None:
    assert balanced_class_weights([4, 0, 12]) == pytest.approx([2.0, 0.0, 2 / 3])
