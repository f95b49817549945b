"""Intervals and tests of scores, against enumeration and plain resampling."""

import itertools
import math
import time

import numpy as np
import pytest
from sklearn.metrics import f1_score

from vtrain.inference import statistics
from vtrain.inference.statistics import (
    bootstrap_confusion,
    expected_calibration_error,
    holm,
    macro_f1,
    mcnemar,
    paired_bootstrap,
    paired_bootstrap_macro_f1,
    smallest_visible_difference,
    wilson_interval,
)

MATRIX = np.array([[30, 5, 0, 0], [4, 20, 2, 0], [0, 0, 12, 0], [0, 0, 0, 0]])


def expand(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of the images that a matrix counts."""
    rows, columns = np.nonzero(matrix)
    counts = matrix[rows, columns]
    return np.repeat(rows, counts), np.repeat(columns, counts)


# --- confusion matrices --------------------------------------------------------------------------


def plain_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Macro F1, class by class: scikit-learn's takes milliseconds a call."""
    rows = []
    for each in np.union1d(labels, predictions):
        is_label, is_answer = labels == each, predictions == each
        rows.append(2 * (is_label & is_answer).sum() / (is_label.sum() + is_answer.sum()))
    return float(np.mean(rows))


def test_the_plain_f1_is_that_of_scikit_learn() -> None:
    labels, predictions = expand(MATRIX)
    expected = f1_score(labels, predictions, average="macro")
    assert plain_f1(labels, predictions) == pytest.approx(expected)
    assert macro_f1(MATRIX) == pytest.approx(expected)


@pytest.mark.parametrize("few", [0, 4, 100])
def test_f1_intervals_are_those_of_drawing_images(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, predictions = expand(MATRIX)
    generator = np.random.default_rng(7)
    chosen = generator.integers(len(labels), size=(2000, len(labels)))
    drawn = [plain_f1(labels[each], predictions[each]) for each in chosen]
    macro = np.percentile(drawn, [2.5, 97.5])
    monkeypatch.setattr(statistics, "FEW_IN_CELL", few)
    found = bootstrap_confusion(MATRIX, samples=4000)
    assert found.macro_f1 == pytest.approx(macro, abs=0.015)


def test_shares_have_wilson_intervals_and_undefined_ones_none() -> None:
    found = bootstrap_confusion(MATRIX, samples=50)
    assert found.accuracy == wilson_interval(62, 73)
    assert found.recall == (
        wilson_interval(30, 35), wilson_interval(20, 26), wilson_interval(12, 12), None
    )  # fmt: skip
    assert found.precision[2] == wilson_interval(12, 14)
    assert found.precision[3] is None


def test_the_interval_of_a_perfect_model_is_no_point() -> None:
    found = bootstrap_confusion(np.diag([10, 10]))
    assert found.accuracy == found.macro_f1
    assert found.accuracy[0] == pytest.approx(0.8389, abs=1e-4)
    assert found.accuracy[1] == 1.0


@pytest.mark.parametrize("matrix", [[[3]], [[0, 0], [0, 1]], [[0, 2], [0, 0]], [[0, 1], [1, 1]]])
def test_tiny_matrices_have_ordered_finite_intervals(matrix: list[list[int]]) -> None:
    found = bootstrap_confusion(matrix, samples=20)
    every = (found.accuracy, found.macro_f1, *found.recall, *found.precision)
    for interval in filter(None, every):
        assert 0 <= interval[0] <= interval[1] <= 1


def test_the_same_seed_gives_the_same_however_blocks_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = bootstrap_confusion(MATRIX, samples=30)
    monkeypatch.setattr(statistics, "BLOCK_NUMBERS", 100)
    assert bootstrap_confusion(MATRIX, samples=30) == one
    assert bootstrap_confusion(MATRIX, samples=30, seed=1) != one


@pytest.mark.parametrize("matrix", [[[0]], [[1, 2]], [1, 2], np.zeros((0, 0))])
def test_no_intervals_without_images(matrix: object) -> None:
    with pytest.raises(ValueError, match="square matrix with images"):
        bootstrap_confusion(matrix)  # type: ignore[arg-type]


def test_a_million_images_and_a_thousand_classes_stay_cheap() -> None:
    generator = np.random.default_rng(0)
    matrix = np.diag(np.full(1000, 900))
    np.add.at(matrix, tuple(generator.integers(1000, size=(2, 10_000))), 10)
    before = time.process_time()
    bootstrap_confusion(matrix, samples=20)
    assert time.process_time() - before < 2


def test_wilson_interval_equals_its_roots() -> None:
    """Its limits p solve |hits/n - p| = z sqrt(p (1 - p) / n)."""
    for hits, count in ((0, 5), (1, 10), (97, 100), (50, 50)):
        for p in wilson_interval(hits, count):
            gap = abs(hits / count - p)
            assert gap == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / count), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


# --- two models ----------------------------------------------------------------------------------


def pair(both: int, only_a: int, only_b: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, none])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, none])
    return a, b


def test_paired_interval_is_that_of_drawing_images() -> None:
    a, b = pair(150, 5, 25, 20)
    generator = np.random.default_rng(3)
    chosen = generator.integers(200, size=(4000, 200))
    expected = np.percentile((b[chosen].mean(axis=1) - a[chosen].mean(axis=1)), [2.5, 97.5])
    found = paired_bootstrap(a, b)
    assert found.difference == pytest.approx(0.1)
    assert found.interval == pytest.approx(expected, abs=0.008)


def test_models_that_never_differ_may_still_differ_elsewhere() -> None:
    found = paired_bootstrap(*pair(50, 0, 0, 10))
    assert (found.difference, found.interval[0]) == (0.0, -found.interval[1])
    assert (1 - found.interval[1]) ** 60 == pytest.approx(0.025)


def test_paired_macro_f1_is_that_of_drawing_images() -> None:
    generator = np.random.default_rng(5)
    labels = generator.integers(3, size=120)
    a = np.where(generator.random(120) < 0.7, labels, generator.integers(4, size=120))
    b = np.where(generator.random(120) < 0.8, labels, generator.integers(4, size=120))

    def score(chosen: np.ndarray) -> float:
        one, other = (plain_f1(labels[chosen], each[chosen]) for each in (a, b))
        return other - one

    drawn = [score(each) for each in generator.integers(120, size=(1500, 120))]
    expected = np.percentile(drawn, [2.5, 97.5])
    found = paired_bootstrap_macro_f1(labels, a, b)
    assert found.difference == pytest.approx(score(np.arange(120)))
    assert found.interval == pytest.approx(expected, abs=0.025)


def test_mcnemar_equals_enumeration_of_all_coin_throws() -> None:
    for only_a, only_b in itertools.product(range(6), repeat=2):
        n = only_a + only_b
        uneven = abs(only_a - only_b)
        throws = [abs(n - 2 * sum(coins)) for coins in itertools.product((0, 1), repeat=n)]
        exact = sum(each >= uneven for each in throws) / len(throws)
        answers = pair(3, only_a, only_b, 2)
        assert mcnemar(*answers)[:2] == (only_a, only_b)
        assert mcnemar(*answers)[2] == pytest.approx(exact)


def test_mcnemar_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = pair(10_000, 960, 1_050, 0)
    exact = sum(math.comb(2_010, k) for k in range(961)) / 2**2_009
    assert mcnemar(*answers)[2] == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr(statistics, "EXACT_BINOMIAL", 100)
    assert mcnemar(*answers)[2] == pytest.approx(exact, rel=1e-8)
    assert mcnemar(*pair(0, 0, 100_000, 0))[2] == 0.0


@pytest.mark.parametrize("answers", [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_two_models_need_the_same_images(answers: tuple[object, object]) -> None:
    for function in (paired_bootstrap, mcnemar):
        with pytest.raises(ValueError, match="same images"):
            function(*answers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many labels"):
        paired_bootstrap_macro_f1([0], [0], [0, 1])


def test_holm_keeps_order_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.8, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_smallest_visible_difference() -> None:
    assert smallest_visible_difference(200, 0.9) == pytest.approx(0.042, abs=5e-4)
    assert smallest_visible_difference(20_000, 0.9) == pytest.approx(0.0042, abs=5e-5)
    assert smallest_visible_difference(10, 1.0) > 0.1
    with pytest.raises(ValueError, match="got 0 and"):
        smallest_visible_difference(0, 0.5)


# --- calibration ---------------------------------------------------------------------------------


def test_calibration_error_of_a_worked_example() -> None:
    ece, bins = expected_calibration_error([0.1, 0.5, 0.5, 0.9, 1.0], [0, 1, 0, 1, 1], bins=2)
    # At most 0.5: mean 1.1 / 3 against 1 / 3; above: 0.95 against 1.
    assert ece == pytest.approx((0.1 + 0.1) / 5)
    assert [(row.low, row.high, row.count) for row in bins] == [(0.0, 0.5, 3), (0.5, 1.0, 2)]
    assert bins[1].confidence == pytest.approx(0.95)
    assert bins[1].accuracy == 1.0


def test_calibration_edges_and_empty_bins() -> None:
    ece, bins = expected_calibration_error([0.0, 1.0], [False, True])
    assert ece == 0
    assert [row.count for row in bins] == [1, 1]
    assert (bins[0].low, bins[-1].high) == (0.0, 1.0)
    for wrong in ([], [1.2], [float("nan")]):
        with pytest.raises(ValueError, match="expected"):
            expected_calibration_error(wrong, [True] * len(wrong))
