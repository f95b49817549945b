"""How sure an answer is: a temperature for the logits, and a distance from the training images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BeforeValidator
from torch import Tensor

# A number of a record: NaN is null in JSON and an empty cell in CSV.
JsonFloat = Annotated[
    float, BeforeValidator(lambda value: math.nan if value in (None, "") else value)
]

# A weak prior for the logarithm of the temperature: on a handful of validation images that are all
# right, the likelihood alone would ask for a temperature of 0. A hundred images outweigh it.
PRIOR_SCALE = 0.7
_RANGE = (math.log(0.05), math.log(20.0))
_STEPS = 60
_RATIO = (math.sqrt(5) - 1) / 2
# One number is learnt: more images make no difference, and the search goes over them many times.
_MOST_LOGITS = 20_000_000

MAX_BANK = 2_000  # training images whose features stay with the model
NEIGHBORS = 5
# Share of the validation images that count as familiar. With 0.99, two odd ones of 200 set the
# threshold: of photographs of hands, a model of flowers then found 40 %, with 0.95 it found 97 %.
FAMILIAR = 0.95


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T with which `softmax(logits / T)` fits the labels best.

    Guo et al., On Calibration of Modern Neural Networks (arXiv:1706.04599): T minimises the
    cross-entropy, here with a weak log-normal prior around 1. 1.0 without images.

    Args:
        logits: `[N, C]`, on the CPU, finite.
        labels: int64 `[N]`.
    """
    if not len(labels):
        return 1.0
    stride = -(-logits.numel() // _MOST_LOGITS)
    logits, labels = logits[::stride].double(), labels[::stride]

    def cost(log_t: float) -> float:
        scaled = logits * math.exp(-log_t)
        loss = torch.nn.functional.cross_entropy(scaled, labels, reduction="sum").item()
        return stride * loss + 0.5 * (log_t / PRIOR_SCALE) ** 2

    return math.exp(_minimise(cost, *_RANGE))


def _minimise(cost: Callable[[float], float], low: float, high: float) -> float:
    """The golden-section search for the minimum of a function with only one."""
    left, right = high - _RATIO * (high - low), low + _RATIO * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _RATIO * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _RATIO * (high - low)
            at_right = cost(right)
        if high - low < 1e-6:
            break
    return (low + high) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """How unlike the training images an image is, by its features.

    Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors (arXiv:2204.06507): the
    distance to the `neighbors`-th nearest of some training images, features scaled to length 1.

    `bank` holds those `[M, D]`, float32 rows of length 1; `threshold` is the distance beyond which
    5 % of the validation images lie.
    """

    bank: Tensor
    neighbors: int
    threshold: float

    def distances(self, features: Tensor) -> Tensor:
        """Of features `[B, D]`: float32 `[B]`; above 1 an image is unlike the training images."""
        similarity = scale_to_length_one(features) @ self.bank.T
        nearest = similarity.topk(min(self.neighbors, len(self.bank)), dim=1).values[:, -1]
        return (2 - 2 * nearest).clamp(min=0).sqrt() / self.threshold

    def to(self, device: torch.device) -> "Novelty":
        """The same on another device."""
        return Novelty(self.bank.to(device), self.neighbors, self.threshold)


def scale_to_length_one(features: Tensor) -> Tensor:
    """Rows `[B, D]` divided by their Euclidean lengths, in float32."""
    return torch.nn.functional.normalize(features.float(), dim=1)


def build_novelty(features: Tensor) -> Novelty:
    """A distance from the images of these features `[M, D]`, with the threshold 1 until it is set.

    They are kept as float16, the form in which a model file stores them.
    """
    return Novelty(scale_to_length_one(features).half().float(), NEIGHBORS, 1.0)


def set_threshold(novelty: Novelty, distances: Tensor) -> Novelty:
    """The same distance in units of the one below which 95 % of `distances` `[N]` lie."""
    threshold = float(torch.quantile(distances.double(), FAMILIAR)) if len(distances) else 1.0
    return Novelty(novelty.bank, novelty.neighbors, max(threshold * novelty.threshold, 1e-6))


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Images whose confidence is above `low` and at most `high`, their mean and their accuracy."""

    low: float
    high: float
    count: int
    confidence: JsonFloat
    accuracy: JsonFloat


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """How far probabilities are from the shares that are right: errors from 0 to 1.

    All are expected calibration errors. `ece` is that of the probabilities at `temperature`,
    `ece_raw` that without it. `ece_held_out` is what `ece` would be if no image had helped to fit
    its own temperature; None where they have not.
    """

    temperature: float
    ece: float
    ece_raw: float
    ece_held_out: float | None
    bins: tuple[CalibrationBin, ...]
    bins_raw: tuple[CalibrationBin, ...]
