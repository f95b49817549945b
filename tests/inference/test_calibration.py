"""Temperatures and distances: what is known is found, and what is odd is no trap."""

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import CPU, build_tiny_model
from vtrain.data.transforms import normalize_images
from vtrain.inference.calibration import (
    FAMILIAR,
    Novelty,
    build_novelty,
    fit_temperature,
    scale_to_length_one,
    set_threshold,
)
from vtrain.inference.forward import compute_averaged, compute_both, compute_probabilities
from vtrain.inference.statistics import expected_calibration_error

CLASSES = ("ant", "bee", "cow")


def draw_logits(
    temperature: float, count: int = 4000, classes: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits `[N, C]` and labels whose probabilities are right at this temperature."""
    generator = torch.Generator().manual_seed(seed)
    honest = 2 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(honest.softmax(dim=1), 1, generator=generator)[:, 0]
    return honest * temperature, labels


def loss_at(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return torch.nn.functional.cross_entropy(logits.double() / temperature, labels).item()


# --- the temperature -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7, 6.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = draw_logits(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("temperature", [0.3, 1.7, 6.0])
def test_calibration_error_falls_also_on_other_images(temperature: float) -> None:
    logits, labels = draw_logits(temperature)
    others, their_labels = draw_logits(temperature, seed=1)
    found = fit_temperature(logits, labels)

    def error(at: float) -> float:
        top = compute_probabilities(others, at).max(dim=1)
        correct = (top.indices == their_labels).numpy()
        return expected_calibration_error(top.values.numpy(), correct)[0]

    assert error(found) < 0.03 < error(1.0)


@pytest.mark.parametrize("count", [1, 3, 10, 100, 1000])
@pytest.mark.parametrize("sign", [1, -1], ids=["right", "wrong"])
def test_loss_is_no_worse_than_without(count: int, sign: int) -> None:
    logits, labels = draw_logits(2.0, count)
    found = fit_temperature(sign * logits, labels)
    assert loss_at(sign * logits, labels, found) <= loss_at(sign * logits, labels, 1.0) + 1e-12


def test_a_handful_of_right_answers_proves_no_certainty() -> None:
    labels = torch.arange(6) % 3
    right = 3.0 * torch.nn.functional.one_hot(labels, 3).float()
    assert 0.3 < fit_temperature(right, labels) < 1
    assert 1 < fit_temperature(-right, labels) < 8
    # Many of them do, up to the end of the range.
    many = right.repeat(1000, 1), labels.repeat(1000)
    assert 0.05 <= fit_temperature(*many) < 0.3


def test_images_that_say_nothing_leave_the_temperature_at_one() -> None:
    assert fit_temperature(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 1
    assert fit_temperature(torch.zeros(9, 1), torch.zeros(9, dtype=torch.int64)) == pytest.approx(1)
    equal = torch.zeros(9, 4), torch.arange(9) % 4
    assert fit_temperature(*equal) == pytest.approx(1, abs=1e-4)


def test_more_logits_than_are_needed_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw_logits(1.7, count=8000)
    monkeypatch.setattr("vtrain.inference.calibration._MOST_LOGITS", 10_000)
    assert fit_temperature(logits, labels) == pytest.approx(1.7, rel=0.08)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_odd_logits_do_not_stop_the_search(value: float) -> None:
    logits, labels = draw_logits(1.0, count=20)
    logits[3, 1] = value
    assert 0.04 < fit_temperature(logits, labels) < 21


# --- the distance --------------------------------------------------------------------------------


def draw_features(count: int, seed: int, direction: int = 0) -> Tensor:
    features = 0.1 * torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    features[:, direction] += 1
    return features


def make_novelty() -> Novelty:
    novelty = build_novelty(draw_features(200, 0))
    return set_threshold(novelty, novelty.distances(draw_features(400, 1)))


def test_near_features_are_familiar_and_far_ones_are_not() -> None:
    novelty = make_novelty()
    near = novelty.distances(draw_features(400, 2))
    far = novelty.distances(draw_features(400, 3, direction=5))
    assert (near < 1).float().mean().item() == pytest.approx(FAMILIAR, abs=0.03)
    assert near.max() < far.min()
    assert far.min() > 1


def test_the_unit_is_what_the_threshold_says() -> None:
    plain = build_novelty(draw_features(200, 0))
    assert plain.threshold == 1
    val = draw_features(400, 1)
    own = plain.distances(val)
    novelty = set_threshold(plain, own)
    assert novelty.threshold == pytest.approx(torch.quantile(own.double(), FAMILIAR).item())
    assert torch.equal(novelty.distances(val), own / novelty.threshold)
    assert (novelty.distances(val) <= 1).float().mean().item() == pytest.approx(FAMILIAR, abs=0.005)
    again = set_threshold(novelty, novelty.distances(val))
    assert again.threshold == pytest.approx(novelty.threshold)


def test_distances_are_those_of_the_definition() -> None:
    bank, features = draw_features(50, 0), draw_features(7, 1)
    novelty = build_novelty(bank)
    expected = torch.cdist(scale_to_length_one(features).double(), novelty.bank.double())
    fifth = expected.sort(dim=1).values[:, 4]
    assert torch.allclose(novelty.distances(features).double(), fifth, atol=1e-3)
    # The length of features means nothing.
    assert torch.allclose(novelty.distances(100 * features), novelty.distances(features))


def test_the_bank_survives_being_stored_as_float16() -> None:
    bank = build_novelty(draw_features(50, 0)).bank
    assert bank.dtype == torch.float32
    assert torch.equal(bank.half().float(), bank)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_training_images_than_neighbors(count: int) -> None:
    novelty = build_novelty(draw_features(count, 0))
    assert torch.isfinite(novelty.distances(draw_features(3, 1))).all()


def test_images_all_alike_leave_a_threshold_above_zero() -> None:
    same = torch.ones(8, 16)
    novelty = build_novelty(same)
    novelty = set_threshold(novelty, novelty.distances(same))
    assert novelty.threshold > 0
    assert torch.isfinite(novelty.distances(same)).all()
    assert (novelty.distances(draw_features(2, 0)) > 1).all()


def test_features_of_zeros_have_a_distance() -> None:
    novelty = make_novelty()
    assert torch.isfinite(novelty.distances(torch.zeros(2, 16))).all()


def test_nothing_to_set_a_threshold_from() -> None:
    assert set_threshold(build_novelty(torch.ones(2, 4)), torch.zeros(0)).threshold == 1


# --- several views -------------------------------------------------------------------------------


def test_views_of_a_mirrored_image_are_the_same() -> None:
    model = build_tiny_model(CLASSES)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)

    def average(some: Tensor, temperature: float) -> Tensor:
        outputs = compute_averaged(
            model.classifier, some, model.preprocessing, CPU, temperature=temperature
        )
        return outputs.logits.softmax(dim=1)

    for temperature in (1.0, 2.5):
        one, other = average(images, temperature), average(images.flip(3), temperature)
        assert torch.allclose(one, other, atol=1e-5)
    plain = compute_both(model.classifier, images, model.preprocessing, CPU)
    assert not torch.allclose(one, plain.logits.softmax(dim=1), atol=1e-3)


def test_probabilities_of_views_are_averaged_at_the_temperature() -> None:
    """All views of an even image are alike."""
    model = build_tiny_model(CLASSES)
    even = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    plain = compute_both(model.classifier, even, model.preprocessing, CPU)
    averaged = compute_averaged(model.classifier, even, model.preprocessing, CPU, temperature=3.0)
    expected = compute_probabilities(plain.logits, 3.0)
    assert torch.allclose(averaged.logits.double().softmax(dim=1), expected, atol=1e-5)
    assert plain.features is not None
    assert averaged.features is not None
    assert torch.equal(averaged.features, plain.features)


def test_features_are_what_the_head_sees() -> None:
    model = build_tiny_model(CLASSES)
    images = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8)
    outputs = compute_both(model.classifier, images, model.preprocessing, CPU)
    normalized = normalize_images(images, model.preprocessing, device=CPU)
    with torch.inference_mode():
        assert torch.equal(outputs.logits, model.classifier(normalized))
        assert outputs.features is not None
        assert torch.equal(outputs.features, model.classifier.forward_features(normalized))
