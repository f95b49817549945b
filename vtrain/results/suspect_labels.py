"""Labels ranked by how much features speak against them: a list for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from vtrain.inference.cross_validation import (
    FOLDS,
    NOT_ASKED,
    assign_folds,
    choose_penalty,
    one_thread,
)
from vtrain.inference.logistic import ProbeProblem
from vtrain.system.reporter import SILENT, Progress, Reporter

# Of 20 planted errors 10 found up to two fewer on flowers, and one more on sign-digits.
JUDGING_NEIGHBOURS = 5
# Similarities that are computed at a time: [BLOCK, N] float32.
BLOCK = 1024

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SuspectRanking:
    """What other images say about the label of each of N images; labels are given as numbers.

    `order` `[M]` are the positions of the images that could be judged, the most suspect first; the
    others are the only ones of their class. By position, all `[N]`: `labels` as given; `suggested`
    the most probable class besides the label; `label_probability` and `suggested_probability`
    those of these two, from 0 to 1; `scores`, from 0 (the label is certain) to 1 (the suggestion
    is), NaN where it could not be judged; `neighbors` `[N, k]` positions of the most similar
    images, the nearest first, `agreeing` how many of these have the same label.
    """

    order: Indices
    labels: Indices
    suggested: Indices
    scores: Numbers
    label_probability: Numbers
    suggested_probability: Numbers
    neighbors: Indices
    agreeing: Indices


def rank_suspects(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    also: Sequence[ArrayLike] = (),
    reporter: Reporter = SILENT,
) -> SuspectRanking:
    """Rank labels by disagreement with predictions that were made without them.

    Each image is judged by two classifiers that have not seen it: logistic regression trained on
    the other folds, and its most similar other images. The mean of their probabilities is p, and
    the score `(1 + p[suggested] - p[label]) / 2`: the margin by which confident learning ranks
    (Northcutt et al. 2021, doi:10.1613/jair.1.12125). Such a score is no probability of an error:
    rare kinds of images score high as well, and people have to look.

    Args:
        features: float `[N, D]`, finite.
        labels: whole numbers `[N]`, at least 0.
        also: features `[N, D']` of the same images by other models, which judge as well. A model
            that was trained on these labels may have learnt the wrong ones by heart; its backbone
            before that has not.
        reporter: shows how far it is.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    views, truth = _check([features, *also], labels)
    classes, dense = torch.unique(truth, return_inverse=True)  # classes without images cost nothing
    parts = assign_folds(dense.tolist(), folds=FOLDS, seed=0)
    judged = parts != NOT_ASKED
    probabilities = torch.zeros(len(truth), len(classes), dtype=torch.float64)
    with reporter.progress(len(views) * (FOLDS + 1), "comparing", unit="step") as bar:
        for view in views:
            nearest = find_nearest(view, JUDGING_NEIGHBOURS)
            bar.update(1)
            probabilities += vote(nearest, dense, len(classes))
            probabilities += _predict_out_of_fold(view, dense, parts, len(classes), bar)
    return _rank(probabilities / (2 * len(views)), classes, dense, judged, nearest)


def _check(features: Sequence[ArrayLike], labels: ArrayLike) -> tuple[list[Tensor], Tensor]:
    truth = torch.from_numpy(np.array(labels, dtype=np.int64))
    views = [torch.from_numpy(np.array(each, dtype=np.float32)) for each in features]
    for view in views:
        if view.ndim != 2 or truth.shape != (len(view),) or not len(truth):
            shapes = f"features {tuple(view.shape)} and labels {tuple(truth.shape)}"
            raise ValueError(f"{shapes}: expected [N, D] and [N], N at least 1")
        if not torch.isfinite(view).all():
            raise ValueError("features are not finite")
    if int(truth.min()) < 0:
        raise ValueError("labels below 0")
    return views, truth


def find_nearest(features: Tensor, k: int) -> Tensor:
    """The `min(k, N - 1)` most similar other rows of `[N, D]` by cosine, the nearest first."""
    unit = functional.normalize(features - features.mean(dim=0), dim=1)
    found = []
    for first in range(0, len(unit), BLOCK):
        block = unit[first : first + BLOCK]
        similarity = block @ unit.T
        own = torch.arange(len(block))
        similarity[own, first + own] = -torch.inf  # nobody is asked about himself
        found.append(similarity.topk(min(k, len(unit) - 1), dim=1).indices)
    return torch.cat(found)


def vote(neighbors: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Probabilities `[N, C]` from the labels `[N]` of neighbours `[N, k]`.

    One vote is divided among the classes, so that none is impossible.
    """
    votes = torch.full((len(labels), num_classes), 1 / num_classes, dtype=torch.float64)
    ones = torch.ones(neighbors.shape, dtype=torch.float64)
    votes.scatter_add_(1, labels[neighbors], ones)
    return votes / votes.sum(dim=1, keepdim=True)


def _predict_out_of_fold(
    features: Tensor,
    labels: Tensor,
    parts: Tensor,
    num_classes: int,
    bar: Progress,
) -> Tensor:
    """Probabilities `[N, C]` of each image by a regression on the other folds; 0 where not asked.

    One penalty serves all folds: to choose it for each would take five times as long.
    """
    probabilities = torch.zeros(len(labels), num_classes, dtype=torch.float64)
    with one_thread():
        penalty = choose_penalty(features, labels, num_classes, seed=0)
        for part in range(int(parts.max()) + 1):
            asked = parts == part
            trained = ~asked
            if asked.any() and trained.any():
                problem = ProbeProblem(features[trained], labels[trained], num_classes)
                logits = problem.solve(penalty).compute_logits(features[asked])
                probabilities[asked] = logits.softmax(dim=1)
            bar.update(1)
    return probabilities


def _rank(
    probabilities: Tensor, classes: Tensor, labels: Tensor, judged: Tensor, neighbors: Tensor
) -> SuspectRanking:
    rows = torch.arange(len(labels))
    own = probabilities[rows, labels]
    others = probabilities.clone()
    others[rows, labels] = -1.0
    best, suggested = others.max(dim=1)
    if len(classes) == 1:  # there is nothing else that it could be
        best, judged = torch.zeros_like(own), torch.zeros_like(judged)
    scores = torch.where(judged, (1 + best - own) / 2, torch.nan)
    order = torch.nonzero(judged).flatten()
    order = order[torch.argsort(scores[order], descending=True, stable=True)]
    agreeing = (labels[neighbors] == labels[:, None]).sum(dim=1)
    return SuspectRanking(
        order=order.numpy(),
        labels=classes[labels].numpy(),
        suggested=classes[suggested].numpy(),
        scores=scores.numpy(),
        label_probability=own.numpy(),
        suggested_probability=best.numpy(),
        neighbors=neighbors.numpy(),
        agreeing=agreeing.numpy(),
    )
