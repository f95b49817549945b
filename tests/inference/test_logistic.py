"""The linear probe against scikit-learn's, and where a plain solver would fail."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vtrain.inference.logistic import ProbeProblem


def draw(count: int, dim: int, classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [N, D] of scales that differ a hundredfold, and labels [N]."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=random)
    centres = torch.randn(classes, dim, generator=random)
    scales = 10 ** (2 * torch.rand(dim, generator=random))
    noise = torch.randn(count, dim, generator=random)
    return (0.5 * centres[labels] + noise).relu() * scales, labels


@pytest.mark.parametrize(("count", "dim"), [(90, 12), (60, 150)], ids=["tall", "wide"])
@pytest.mark.parametrize("penalty", [3.0, 0.03])
def test_same_minimum_as_scikit_learn(count: int, dim: int, penalty: float) -> None:
    features, labels = draw(count, dim, 4)
    ours = ProbeProblem(features, labels, 4).solve(penalty)
    standard = ((features.double() - ours.mean) / ours.scale).numpy()
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=1e-9)
    # Its C weighs the sum of the losses, our penalty goes with their mean.
    theirs = LogisticRegression(C=1 / (penalty * count), tol=1e-10, max_iter=10_000)
    theirs.fit(standard, labels.numpy())
    expected = theirs.predict_proba(standard)
    got = ours.compute_logits(features).softmax(dim=1).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-4)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_.T, atol=2e-4)


def test_a_path_comes_to_the_same_as_each_penalty_alone() -> None:
    features, labels = draw(60, 100, 3)
    problem = ProbeProblem(features, labels, 3)
    solution = None
    for penalty in (10.0, 0.1, 0.01):
        solution, alone = problem.solve(penalty, solution), problem.solve(penalty)
        torch.testing.assert_close(solution.weight, alone.weight, atol=2e-3, rtol=0)


def test_same_bits_every_time() -> None:
    features, labels = draw(40, 60, 3)
    one, other = (ProbeProblem(features, labels, 3).solve(0.1) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_features_that_do_not_vary_say_nothing() -> None:
    features, labels = draw(50, 8, 3)
    dead = torch.full((50, 2), 0.1)
    with_dead = ProbeProblem(torch.cat([features, dead], dim=1), labels, 3).solve(0.1)
    without = ProbeProblem(features, labels, 3).solve(0.1)
    assert torch.equal(with_dead.weight[8:], torch.zeros(2, 3).double())
    torch.testing.assert_close(with_dead.weight[:8], without.weight, atol=1e-4, rtol=0)


def test_nothing_varies_at_all() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    probe = ProbeProblem(torch.ones(4, 5), labels, 2).solve(0.1)
    assert probe.compute_logits(torch.zeros(1, 5)).argmax() == 0  # the more frequent one


def test_a_class_without_images_is_improbable() -> None:
    features, labels = draw(40, 10, 2)
    probe = ProbeProblem(features, labels, 3).solve(0.1)
    assert torch.isfinite(probe.weight).all()
    assert probe.compute_logits(features).softmax(dim=1)[:, 2].max() < 0.01


def test_the_scale_of_features_does_not_matter() -> None:
    features, labels = draw(50, 8, 3)
    tiny = ProbeProblem(features.double() * 1e-10, labels, 3).solve(0.1)
    usual = ProbeProblem(features, labels, 3).solve(0.1)
    torch.testing.assert_close(tiny.weight, usual.weight, atol=1e-5, rtol=0)
