"""How sure a measured accuracy or F1 is, and whether two models differ on the same images.

Shares of images (accuracy, precision, recall) get Wilson's score interval: a resampled share is
binomial, and the percentile interval of that is [1, 1] for a class whose three images are all
right, and too narrow for few images (Brown, Cai and DasGupta 2001, "Interval estimation for a
binomial proportion", Statistical Science 16(2), recommend Wilson's up to 40 and find it good
beyond). F1, and differences between two models, have no such formula: they are resampled (Efron
and Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13: the percentile interval).

Drawing N of N images with replacement and counting them by cell is one multinomial draw over the
cells that are not empty. That is exact, and costs as many numbers as there are such cells.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vtrain.inference.calibration import CalibrationBin

Interval = tuple[float, float]
Counts = NDArray[np.int64]
Shares = NDArray[np.float64]

BLOCK_NUMBERS = 1 << 20  # drawn at once: some 8 MB for each array of a block
FEW_IN_CELL = 16  # in a cell
EXACT_BINOMIAL = 10_000  # up to here binomial coefficients are computed as whole numbers
NEGLIGIBLE = 1e-18


@dataclass(frozen=True, slots=True)
class ConfusionIntervals:
    """Confidence intervals (0 to 1) of what a confusion matrix gives.

    `precision` and `recall` have one interval for each class, in the order of the matrix, None
    where they are undefined: for a class that was never predicted, or has no image.
    """

    accuracy: Interval
    macro_f1: Interval
    precision: tuple[Interval | None, ...]
    recall: tuple[Interval | None, ...]
    level: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What model B has more than model A on the same images (-1 to 1), and its interval."""

    difference: float
    interval: Interval


def wilson_interval(hits: int, count: int, *, level: float = 0.95) -> Interval:
    """The score interval of a share `hits / count`, 0 to 1; (0, 1) without images.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22.
    """
    low, high = _wilson(np.array([hits]), np.array([count]), level)[0]
    return float(low), float(high)


def macro_f1(counts: ArrayLike) -> float:
    """Mean F1 (0 to 1) of the classes that occur in a confusion matrix `[C, C]`.

    The same as `ConfusionMatrix.macro_f1`, for counts that are on no device.
    """
    matrix = np.asarray(counts, dtype=np.int64)
    parts = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return float(_macro_f1(*(part[None] for part in parts))[0])


def bootstrap_confusion(
    counts: ArrayLike,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> ConfusionIntervals:
    """Intervals of everything that a confusion matrix `[C, C]` of whole numbers gives.

    Rows are true classes, columns predicted ones. Macro F1 is that of
    `ConfusionMatrix.macro_f1`: over the classes that occur in a resample. Where no image is wrong,
    resampling knows of no error: it gets the accuracy's interval then.

    Raises:
        ValueError: the matrix is not square, or has no image.
    """
    matrix = np.asarray(counts, dtype=np.int64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.sum() < 1:
        raise ValueError(f"expected a square matrix with images, got shape {matrix.shape}")
    hits, labelled, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    accuracy = wilson_interval(int(hits.sum()), int(matrix.sum()), level=level)
    macro = accuracy
    if hits.sum() < matrix.sum():
        rows, columns = (index.astype(np.int64) for index in np.nonzero(matrix))
        cells, scores = matrix[rows, columns], _Scores(rows, columns)
        width = len(cells) + 3 * scores.num_classes
        drawn = [scores.macro_f1(block) for block in _draw(cells, samples, seed, width=width)]
        macro = _percentiles(np.concatenate(drawn), level)
    precision = _class_intervals(hits, predicted, level)
    recall = _class_intervals(hits, labelled, level)
    return ConfusionIntervals(accuracy, macro, precision, recall, level)


def paired_bootstrap(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Accuracy of B less that of A, both `[N]` bool on the same images in the same order.

    The same images are drawn for both, so that what is hard for both does not widen the interval.
    Where both are right on the same images, resampling knows of no difference: the limits are
    then the largest share of images on which they may differ and yet show none among N
    (Clopper and Pearson 1934).

    Raises:
        ValueError: no images, or not as many for both.
    """
    a, b = _paired(correct_a, correct_b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    difference = (only_b - only_a) / len(a)
    if not only_a and not only_b:
        limit = 1 - ((1 - level) / 2) ** (1 / len(a))
        return PairedDifference(0.0, (-limit, limit))
    cells = np.array([only_a, only_b, len(a) - only_a - only_b], dtype=np.int64)
    drawn = np.concatenate(list(_draw(cells, samples, seed, width=3)))
    return PairedDifference(difference, _percentiles((drawn[:, 1] - drawn[:, 0]) / len(a), level))


def paired_bootstrap_macro_f1(
    labels: ArrayLike,
    predictions_a: ArrayLike,
    predictions_b: ArrayLike,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Macro F1 of B less that of A: class indices `[N]` of the same images in the same order.

    Raises:
        ValueError: no images, or not as many everywhere.
    """
    given = (labels, predictions_a, predictions_b)
    columns = [np.asarray(column, dtype=np.int64) for column in given]
    shape = columns[0].shape
    if any(each.shape != shape for each in columns) or len(shape) != 1 or not shape[0]:
        raise ValueError("expected as many labels as predictions, and at least one")
    cells, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    scores = [_Scores(cells[0], cells[1]), _Scores(cells[0], cells[2])]

    def differences(drawn: Counts) -> Shares:
        a, b = (each.macro_f1(drawn) for each in scores)
        return b - a

    width = len(counts) + 3 * scores[0].num_classes
    drawn = [differences(block) for block in _draw(counts, samples, seed, width=width)]
    interval = _percentiles(np.concatenate(drawn), level)
    return PairedDifference(float(differences(counts[None])[0]), interval)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, float]:
    """Images that A alone has right, images that B alone has right, exact two-sided p.

    Under the hypothesis that both are equally good, those on which exactly one is right fall to
    either side like a fair coin: p is the binomial probability of a split as uneven as this one
    (McNemar 1947, Psychometrika 12, in its exact form).

    Raises:
        ValueError: no images, or not as many for both.
    """
    a, b = _paired(correct_a, correct_b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, few = only_a + only_b, min(only_a, only_b)
    if n <= EXACT_BINOMIAL:
        own: float = math.comb(n, few) / 2**n
    else:
        own = math.exp(
            math.lgamma(n + 1) - math.lgamma(few + 1) - math.lgamma(n - few + 1) - n * math.log(2)
        )
    tail, term = own, own
    for k in range(few, 0, -1):  # C(n, k - 1) / C(n, k) = k / (n - k + 1)
        term *= k / (n - k + 1)
        tail += term
        if term < NEGLIGIBLE * tail:
            break
    return only_a, only_b, min(1.0, 2 * tail)


def holm(p_values: list[float]) -> list[float]:
    """Correct p values for having asked as many questions; in the same order.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6. Below 0.05 now means: with all answers together, a chance of 5 % at most that
    any claimed difference is none.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def smallest_visible_difference(n: int, accuracy: float, *, level: float = 0.95) -> float:
    """Difference of accuracy (0 to 1) between two models below which `n` images say nothing.

    Half the width of Wilson's interval for one model of that accuracy: 0.042 for 200 images and
    90 %. It is a rule of thumb: two models differ by sqrt(2 (1 - r)) times as much by chance,
    with r the correlation of their errors, which is about a half for two good models of the same
    images; on other images (r = 0) it is 1.4 times this.

    Raises:
        ValueError: no images, or an accuracy outside 0 to 1.
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"expected images and an accuracy from 0 to 1, got {n} and {accuracy}")
    z = _quantile(level)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return half / (1 + z * z / n)


def expected_calibration_error(
    confidences: ArrayLike, correct: ArrayLike, bins: int = 15
) -> tuple[float, tuple[CalibrationBin, ...]]:
    """Mean gap (0 to 1) between confidence and accuracy, over bins of equal width.

    Guo et al. 2017, "On calibration of modern neural networks" (arXiv:1706.04599), equation 3.
    `confidences` `[N]` are probabilities of the predicted classes, `correct` `[N]` tells whether
    these are the labels. Bins without images are left out; the confidence 0 belongs to the first.

    Raises:
        ValueError: no images, not as many of both, or a confidence outside 0 to 1.
    """
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    if sure.shape != right.shape or sure.ndim != 1 or not len(sure):
        raise ValueError("expected as many confidences as answers, and at least one")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("expected confidences from 0 to 1")
    edges = np.arange(bins + 1) / bins
    places = np.searchsorted(edges[1:-1], sure, side="left")  # above low, at most high
    counts = np.bincount(places, minlength=bins)
    sums = np.bincount(places, weights=sure, minlength=bins)
    hits = np.bincount(places, weights=right, minlength=bins)
    table = tuple(
        CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(counts[i]),
            confidence=float(sums[i] / counts[i]),
            accuracy=float(hits[i] / counts[i]),
        )
        for i in range(bins)
        if counts[i]
    )
    return float(np.abs(sums - hits).sum() / len(sure)), table


# --- parts ---------------------------------------------------------------------------------------


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _wilson(hits: Counts, counts: Counts, level: float) -> Shares:
    """Intervals `[K, 2]` of `hits / counts`, each `[K]`."""
    z = _quantile(level)
    n = np.maximum(counts, 1).astype(np.float64)
    share = hits / n
    middle = share + z * z / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    # The formula ends exactly at 0 and at 1 there, and rounding makes it end beside them.
    low = np.where((hits == 0) | (counts == 0), 0.0, low)
    high = np.where((hits == counts) | (counts == 0), 1.0, high)
    return np.stack([low, high], axis=1)


def _class_intervals(hits: Counts, counts: Counts, level: float) -> tuple[Interval | None, ...]:
    rows = zip(_wilson(hits, counts, level).tolist(), counts.tolist(), strict=True)
    return tuple((low, high) if count else None for (low, high), count in rows)


def _percentiles(values: Shares, level: float) -> Interval:
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _draw(counts: Counts, samples: int, seed: int, *, width: int) -> Iterator[Counts]:
    """Blocks `[B, K]` of resampled `counts` `[K]`, `samples` rows in all.

    `width` numbers are held for each row. Cells of a few images, of which large matrices have tens
    of thousands, are first drawn as one; drawing their images one by one is faster than cells.
    """
    # Two streams, so that the draws do not depend on how they are cut into blocks.
    cells, places = np.random.default_rng(seed).spawn(2)
    total = int(counts.sum())
    large, small = np.flatnonzero(counts > FEW_IN_CELL), np.flatnonzero(counts <= FEW_IN_CELL)
    images = np.repeat(small, counts[small])
    shares = np.append(counts[large], len(images)) / total
    rows = max(1, BLOCK_NUMBERS // width)
    for start in range(0, samples, rows):
        pooled = cells.multinomial(total, shares, size=min(rows, samples - start))
        drawn = np.zeros((len(pooled), len(counts)), dtype=np.int64)
        for row, number in zip(drawn, pooled[:, -1], strict=True):
            if number:
                chosen = images[places.integers(len(images), size=number)]
                row += np.bincount(chosen, minlength=len(counts))
        drawn[:, large] = pooled[:, :-1]
        yield drawn


class _Scores:
    """Scores of resampled cells: images of class `labels[k]` predicted as `predictions[k]`.

    Classes that occur nowhere are left out.
    """

    def __init__(self, labels: Counts, predictions: Counts) -> None:
        classes, places = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
        self.num_classes = len(classes)
        rows, columns = np.split(places.reshape(-1), 2)
        right = np.flatnonzero(rows == columns)
        self._labelled = _group_sum(rows, self.num_classes)
        self._predicted = _group_sum(columns, self.num_classes)
        self._right = right
        self._hits = _group_sum(rows[right], self.num_classes)

    def macro_f1(self, drawn: Counts) -> Shares:
        """Macro F1 `[S]` of cells `[S, K]`."""
        hits = self._hits(drawn[:, self._right])
        return _macro_f1(hits, self._labelled(drawn), self._predicted(drawn))


def _macro_f1(hits: Counts, labelled: Counts, predicted: Counts) -> Shares:
    """Macro F1 `[S]` of images right, labelled and predicted by class, each `[S, C]`."""
    met = labelled + predicted
    f1 = 2 * hits / np.maximum(met, 1)
    mean: Shares = f1.sum(axis=1) / (met > 0).sum(axis=1)
    return mean


def _group_sum(groups: NDArray[np.intp], num_groups: int) -> Callable[[Counts], Counts]:
    """A function that adds the columns of `[S, K]` by group: `[S, num_groups]`."""
    order = np.argsort(groups, kind="stable")
    used, starts = np.unique(groups[order], return_index=True)

    def add(values: Counts) -> Counts:
        sums = np.zeros((len(values), num_groups), dtype=np.int64)
        if len(used):
            sums[:, used] = np.add.reduceat(values[:, order], starts, axis=1)
        return sums

    return add


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    a, b = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError("expected answers of both models for the same images, and at least one")
    return a, b
