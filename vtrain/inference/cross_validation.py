"""How well features tell classes apart: linear probe and nearest neighbours, cross-validated."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vtrain.inference.logistic import ProbeProblem
from vtrain.system.machine import mix_seed
from vtrain.system.reporter import SILENT, Reporter

FOLDS = 5
NEIGHBOURS = 10
# From strong to weak; on standardised features the best one nearly always lies inside.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
INNER_PARTS = 5  # one of them judges the penalties
NOT_ASKED = -1  # the fold of an image that is always trained on
_FOLD_STREAM, _INNER_STREAM = 41, 42  # separate what is drawn here from other draws of a seed
Neighbours = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What a probe says of images that it was not trained on.

    `asked` are the positions of the images with a prediction, int64 `[M]`; `linear` and `knn` say
    whether it is right, bool `[M]`. `fold_accuracies` are those of the linear probe, `penalties`
    what it was regularised with, both by fold.
    """

    asked: Tensor
    linear: Tensor
    knn: Tensor
    fold_accuracies: tuple[float, ...]
    penalties: tuple[float, ...]


def assign_folds(labels: Sequence[int], *, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """The fold of each image, int64 `[N]`: each class is spread evenly, in a random order.

    A class with fewer images than folds is in some of them only. One with a single image is in
    none (`NOT_ASKED`): it can be trained on, but nothing is left to ask. There are at most as many
    folds as the largest class has images.
    """
    truth = torch.tensor(labels, dtype=torch.int64)
    folds = min(folds, int(truth.bincount().max())) if len(truth) else folds
    generator = torch.Generator().manual_seed(mix_seed(seed, _FOLD_STREAM))
    assigned = torch.full((len(truth),), NOT_ASKED)
    turn = 0  # goes on from class to class: small classes would all fill the first folds
    for label in sorted(set(labels)):
        members = torch.nonzero(truth == label).flatten()
        if len(members) < 2:
            continue
        order = torch.randperm(len(members), generator=generator)
        assigned[members[order]] = (torch.arange(len(members)) + turn) % folds
        turn += len(members)
    return assigned


def cross_validate(
    features: Tensor,
    labels: Sequence[int],
    folds: Tensor,
    *,
    seed: int = 0,
    reporter: Reporter = SILENT,
    label: str = "probing",
) -> CrossValidation:
    """Train both probes on all folds but one and ask them about that one, for each fold.

    The penalty of the linear probe is the one of `PENALTIES` with the smallest cross-entropy on a
    fifth of the training images, which is then trained on as well.

    Args:
        features: float `[N, D]`, finite, on the CPU.
        labels: `[N]`, from 0.
        folds: `[N]`, see `assign_folds`; at least two folds.
        seed: of the inner splits.
        reporter: shows the folds.
        label: what they are shown as.
    """
    present = {label: place for place, label in enumerate(sorted(set(labels)))}
    dense = torch.tensor([present[label] for label in labels])  # others would cost time
    linear, knn = torch.zeros(len(dense)).bool(), torch.zeros(len(dense)).bool()
    accuracies: list[float] = []
    penalties: list[float] = []
    count = int(folds.max()) + 1
    with reporter.progress(count, label, unit="fold") as bar:
        for fold in range(count):
            asked, trained = folds == fold, folds != fold
            training = features[trained], dense[trained]
            inner_seed = mix_seed(seed, _INNER_STREAM, fold)
            penalty = choose_penalty(*training, len(present), seed=inner_seed)
            probe = ProbeProblem(*training, len(present)).solve(penalty)
            right = probe.compute_logits(features[asked]).argmax(dim=1) == dense[asked]
            linear[asked] = right
            knn[asked] = predict_neighbours(features[asked], training, len(present)) == dense[asked]
            accuracies.append(float(right.double().mean()))
            penalties.append(penalty)
            bar.update(1)
    asked = torch.nonzero(folds != NOT_ASKED).flatten()
    return CrossValidation(asked, linear[asked], knn[asked], tuple(accuracies), tuple(penalties))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread of torch's, as suits thousands of small matrix products.

    Threads that meet after each of them lose more than they gain, eightfold where other programs
    want the cores as well. The result is then also the same for any number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_penalty(features: Tensor, labels: Tensor, num_classes: int, *, seed: int) -> float:
    """The penalty with the smallest cross-entropy on a part that is left out of training.

    The middle one where every class has one image only.
    """
    parts = assign_folds(labels.tolist(), folds=INNER_PARTS, seed=seed)
    judged = parts == 0
    if not judged.any() or judged.all():
        return PENALTIES[len(PENALTIES) // 2]
    problem = ProbeProblem(features[~judged], labels[~judged], num_classes)
    best, least = PENALTIES[0], math.inf
    probe = None
    for penalty in PENALTIES:
        probe = problem.solve(penalty, probe)  # found from the one before
        logits = probe.compute_logits(features[judged])
        loss = float(torch.nn.functional.cross_entropy(logits, labels[judged]))
        if loss > least:
            break  # the loss falls and then rises
        best, least = penalty, loss
    return best


def predict_neighbours(
    features: Tensor, training: Neighbours, num_classes: int, *, k: int = NEIGHBOURS
) -> Tensor:
    """Class of `[M, D]` features by vote of the k nearest training features, int64 `[M]`.

    Nearest by cosine; of classes with as many votes the more similar ones win. `training` are
    features `[N, D]` and labels `[N]`; fewer than k of them all vote.
    """
    known, labels = training
    unit = torch.nn.functional.normalize
    similarity = unit(features.double(), dim=1) @ unit(known.double(), dim=1).T
    nearest, places = similarity.topk(min(k, len(known)), dim=1)
    votes = torch.zeros(len(features), num_classes, dtype=torch.float64)
    # A similarity is at most 1: scaled down, all of them together weigh less than one vote.
    votes.scatter_add_(1, labels[places], 1 + nearest / (4 * k))
    return votes.argmax(dim=1)


def standard_error(right: Tensor) -> float:
    """Of an accuracy, from what was right `[M]`: that of a share of M independent images."""
    share = float(right.double().mean())
    return math.sqrt(share * (1 - share) / len(right))
