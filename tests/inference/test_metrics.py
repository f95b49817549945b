import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import Tensor

from vtrain.inference.metrics import (
    ClassificationMetrics,
    ConfusionMatrix,
    RunningMean,
    cross_entropies,
    rank_classes,
)

CPU = torch.device("cpu")


def draw(count: int, num_classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_classes, generator=generator)
    labels = torch.randint(num_classes, (count,), generator=generator)
    return logits, labels


def gather(logits: Tensor, labels: Tensor, batch_size: int) -> ClassificationMetrics:
    metrics = ClassificationMetrics(logits.shape[1], CPU)
    for start in range(0, len(labels), batch_size):
        rows = slice(start, start + batch_size)
        metrics.update(logits[rows], labels[rows])
    return metrics


@pytest.mark.parametrize("num_classes", [2, 7, 40])
def test_metrics_equal_scikit_learn(num_classes: int) -> None:
    logits, labels = draw(301, num_classes, seed=num_classes)
    metrics = gather(logits, labels, 32)
    predictions = logits.argmax(dim=1)
    every = list(range(num_classes))
    names = [f"class {index}" for index in every]

    assert (
        metrics.confusion.counts.tolist()
        == confusion_matrix(labels, predictions, labels=every).tolist()
    )
    assert metrics.confusion.count() == 301
    assert metrics.confusion.accuracy() == accuracy_score(labels, predictions)
    assert metrics.confusion.macro_f1() == pytest.approx(
        f1_score(labels, predictions, average="macro", zero_division=0), abs=1e-12
    )
    expected = precision_recall_fscore_support(labels, predictions, labels=every, zero_division=0)
    rows = metrics.confusion.per_class(names)
    assert [row.name for row in rows] == names
    assert [row.support for row in rows] == expected[3].tolist()
    for column, attribute in enumerate(("precision", "recall", "f1")):
        got = [getattr(row, attribute) for row in rows]
        np.testing.assert_allclose(got, expected[column], atol=1e-12)
    probabilities = logits.double().softmax(dim=1)
    assert cross_entropies(logits, labels).mean().item() == pytest.approx(
        log_loss(labels, probabilities, labels=every), rel=1e-6
    )


def test_top5_equals_scikit_learn() -> None:
    logits, labels = draw(200, 12)
    expected = top_k_accuracy_score(labels, logits, k=5, labels=list(range(12)))
    assert gather(logits, labels, 64).top_k.value() == pytest.approx(expected, abs=1e-12)


def test_top5_of_three_classes_is_top3() -> None:
    logits, labels = draw(20, 3)
    metrics = gather(logits, labels, 8)
    assert metrics.k == 3
    assert metrics.top_k.value() == 1.0


def test_macro_f1_leaves_out_only_classes_neither_labelled_nor_predicted() -> None:
    labels, predictions = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3, 1, 1])
    matrix = ConfusionMatrix(5, CPU)
    matrix.update(labels, predictions)
    # F1 of the classes 0, 1 and 3 is 2/3, 1 and 0; the classes 2 and 4 occur nowhere
    assert matrix.macro_f1() == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert matrix.macro_f1() == pytest.approx(
        f1_score(labels, predictions, average="macro", zero_division=0)
    )
    absent = matrix.per_class("abcde")[2]
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (0.0, 0.0, 0.0, 0)


def test_equal_logits_rank_in_class_order_and_first_is_argmax() -> None:
    logits = torch.zeros(3, 50)
    logits[1, 7] = logits[1, 30] = 1.0
    ranked = rank_classes(logits, 4)
    assert ranked.tolist() == [[0, 1, 2, 3], [7, 30, 0, 1], [0, 1, 2, 3]]
    assert ranked[:, 0].tolist() == logits.argmax(dim=1).tolist()
    # A model that answers the same for everything earns no top-5 hit for a late class.
    assert gather(logits, torch.tensor([40, 40, 2]), 3).top_k.value() == pytest.approx(1 / 3)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_parts_merge_to_the_same_counts(batch_size: int) -> None:
    logits, labels = draw(100, 6)
    whole = gather(logits, labels, 100)
    first, second = (gather(logits[i::2], labels[i::2], batch_size) for i in range(2))
    first.merge(second)
    assert torch.equal(first.confusion.counts, whole.confusion.counts)
    assert first.top_k.value() == whole.top_k.value()


def test_running_mean_weighs_batch_means_by_their_images() -> None:
    mean = RunningMean(CPU)
    assert math.isnan(mean.value())
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert mean.value() == 2.0
    mean.update(torch.tensor([2.0, 2.0]))
    assert mean.value() == 2.0
    mean.update(torch.tensor(float("nan")))
    assert math.isnan(mean.value())


def test_running_mean_sums_in_float64() -> None:
    mean = RunningMean(CPU)
    mean.update(torch.tensor([2.0**24, 1.0, 1.0, 1.0], dtype=torch.float32))
    assert mean.value() == (2.0**24 + 3) / 4


def test_no_images_give_nan_and_no_division_error() -> None:
    matrix = ConfusionMatrix(3, CPU)
    assert matrix.count() == 0
    assert math.isnan(matrix.accuracy())
    assert math.isnan(matrix.macro_f1())
    assert [row.f1 for row in matrix.per_class("abc")] == [0.0, 0.0, 0.0]
