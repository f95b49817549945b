"""Multinomial logistic regression with an L2 penalty, solved exactly: the linear probe."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MAX_ITERATIONS = 500
HISTORY = 10  # pairs of vectors from which L-BFGS builds its curvature
GRADIENT_TOLERANCE = 1e-5  # the largest entry, of the scaled problem: four digits of probability
# Directions with less variance than this share of the largest one's are rounding noise.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A linear classifier on standardised features: `mean`, `scale` `[D]`, `weight` `[D, C]`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def compute_logits(self, features: Tensor) -> Tensor:
        """[N, D] -> float64 logits [N, C]."""
        return (features.double() - self.mean) / self.scale @ self.weight + self.bias


class ProbeProblem:
    """The regression for one set of training images, ready to be solved for any penalty.

    It minimises the mean cross-entropy of `softmax(X W + b)` plus `penalty / 2 · ‖W‖²` over
    standardised features X. The penalty does not change when X is turned, so the regression is
    solved along X's singular directions, of which there are no more than images, each scaled by
    an upper bound of its curvature (Böhning 1992, doi:10.1007/BF00048682): L-BFGS then needs tens
    of steps where it would need hundreds. All of it is float64, and the same every time.

    Args:
        features: `[N, D]`, N at least 1.
        labels: int64 `[N]`, below `num_classes`.
        num_classes: C; a class without images gets a small probability.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        features = features.double()
        self._labels, self._num_classes = labels, num_classes
        self._mean = features.mean(dim=0)
        deviation = (features - self._mean).square().mean(dim=0).sqrt()
        # What does not vary is zero after centring; by what it is divided does not matter.
        steady = deviation <= 1e-9 * self._mean.abs()
        self._scale = torch.where(steady, 1.0, deviation)
        centred = torch.where(steady, 0.0, (features - self._mean) / self._scale)
        self._scores, self._directions, self._variances = _rotate(centred)

    def solve(self, penalty: float, start: LinearProbe | None = None) -> LinearProbe:
        """The minimum for one penalty (above 0), found from `start` on, a solution for another."""
        step = (0.5 * self._variances + penalty).rsqrt()[:, None]
        scaled = self._scores * step.T
        weight, bias = self._starting_point(step, start)
        rows = torch.arange(len(self._labels))
        count = len(self._labels)

        def closure() -> Tensor:
            log_p = functional.log_softmax(scaled @ weight + bias, dim=1)
            loss = -log_p[rows, self._labels].mean()
            shrink = 0.5 * penalty * (weight * step).square().sum()
            residual = log_p.exp()
            residual[rows, self._labels] -= 1.0
            residual /= count
            weight.grad = scaled.T @ residual + penalty * step.square() * weight
            bias.grad = residual.sum(dim=0)
            return loss + shrink

        with torch.no_grad():
            torch.optim.LBFGS(
                [weight, bias],
                max_iter=MAX_ITERATIONS,
                history_size=HISTORY,
                tolerance_grad=GRADIENT_TOLERANCE,
                tolerance_change=0.0,
                line_search_fn="strong_wolfe",
            ).step(closure)  # type: ignore[no-untyped-call]
        turned = self._directions @ (weight.detach() * step)
        return LinearProbe(self._mean, self._scale, turned, bias.detach())

    def _starting_point(self, step: Tensor, start: LinearProbe | None) -> tuple[Tensor, Tensor]:
        if start is None:
            weight = torch.zeros(len(self._variances), self._num_classes, dtype=torch.float64)
            bias = torch.zeros(self._num_classes, dtype=torch.float64)
        else:
            weight = self._directions.T @ start.weight / step
            bias = start.bias.clone()
        return weight.requires_grad_(), bias.requires_grad_()


def _rotate(centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates `[N, R]` along the singular directions `[D, R]`, and the variances `[R]`."""
    count, dim = centred.shape
    if dim <= count:
        variances, directions = torch.linalg.eigh(centred.T @ centred / count)
        kept = variances > RANK_TOLERANCE * variances[-1].clamp(min=1e-300)
        directions = directions[:, kept]
        return centred @ directions, directions, variances[kept]
    variances, turned = torch.linalg.eigh(centred @ centred.T / count)
    kept = variances > RANK_TOLERANCE * variances[-1].clamp(min=1e-300)
    scores = turned[:, kept] * (count * variances[kept]).sqrt()
    directions = centred.T @ (turned[:, kept] / (count * variances[kept]).sqrt())
    return scores, directions, variances[kept]
