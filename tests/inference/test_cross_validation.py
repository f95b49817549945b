"""Folds, and what both probes say of the images that are held out."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.helpers.told import Told
from vtrain.inference.cross_validation import (
    FOLDS,
    NEIGHBOURS,
    NOT_ASKED,
    PENALTIES,
    assign_folds,
    choose_penalty,
    cross_validate,
    one_thread,
    predict_neighbours,
)


def draw_classes(
    counts: list[int], *, dim: int = 6, gap: float = 4.0
) -> tuple[torch.Tensor, list[int]]:
    random = torch.Generator().manual_seed(0)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    centres = gap * torch.eye(len(counts), dim)
    return centres[labels] + torch.randn(len(labels), dim, generator=random), labels


# --- folds ---------------------------------------------------------------------------------------


def test_each_class_is_spread_evenly() -> None:
    labels = [0] * 12 + [1] * 31 + [2] * 5
    folds = assign_folds(labels)
    assert sorted(set(folds.tolist())) == list(range(FOLDS))
    for label in range(3):
        members = folds[torch.tensor(labels) == label]
        counts = members.bincount(minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    whole = folds.bincount()
    assert whole.max() - whole.min() <= 1
    assert torch.equal(folds, assign_folds(labels))
    assert not torch.equal(folds, assign_folds(labels, seed=1))


def test_small_classes_are_held_out_one_by_one() -> None:
    labels = [0] * 20 + [1] * 2 + [2]
    folds = assign_folds(labels)
    assert folds[20] != folds[21]
    assert folds[22] == NOT_ASKED
    assert folds[:22].min() == 0


def test_never_more_folds_than_the_largest_class_has_images() -> None:
    assert int(assign_folds([0, 0, 0, 1, 1]).max()) + 1 == 3
    assert sorted(assign_folds([0, 0, 1, 1]).tolist()) == [0, 0, 1, 1]


# --- cross-validation ----------------------------------------------------------------------------


def test_classes_far_apart_are_told_apart() -> None:
    features, labels = draw_classes([20, 15, 10])
    folds = assign_folds(labels)
    told = Told()
    result = cross_validate(features, labels, folds, reporter=told)
    assert told.shown[-1] == (FOLDS, FOLDS)
    assert result.asked.tolist() == list(range(45))
    assert result.linear.double().mean() > 0.95
    assert result.knn.double().mean() > 0.9
    sizes = folds.bincount().double()
    weighted = (sizes * torch.tensor(result.fold_accuracies)).sum() / 45
    assert weighted == pytest.approx(float(result.linear.double().mean()))
    again = cross_validate(features, labels, folds)
    assert torch.equal(result.linear, again.linear)
    assert result.penalties == again.penalties


def test_noise_is_no_better_than_chance() -> None:
    features, labels = draw_classes([30, 30], gap=0.0)
    result = cross_validate(features, labels, assign_folds(labels))
    assert result.linear.double().mean() == pytest.approx(0.5, abs=0.2)
    assert max(result.penalties) >= 1.0


def test_classes_with_one_or_two_images() -> None:
    features, labels = draw_classes([12, 2, 1, 1])
    result = cross_validate(features, labels, assign_folds(labels))
    assert result.asked.tolist() == list(range(14))
    assert len(result.linear) == len(result.knn) == 14


def test_labels_may_have_gaps() -> None:
    features, labels = draw_classes([9, 8])
    moved = [7 if label else 3 for label in labels]
    result = cross_validate(features, moved, assign_folds(moved))
    assert result.linear.double().mean() > 0.9


def test_penalty_where_nothing_can_be_left_out() -> None:
    features, labels = draw_classes([1, 1, 1])
    penalty = choose_penalty(features, torch.tensor(labels), 3, seed=0)
    assert penalty == PENALTIES[len(PENALTIES) // 2]


# --- nearest neighbours --------------------------------------------------------------------------


def test_neighbours_vote_as_in_scikit_learn() -> None:
    features, labels = draw_classes([25, 25, 25], gap=1.0)
    known = torch.arange(75) % 3 != 0
    truth = torch.tensor(labels)
    ours = predict_neighbours(features[~known], (features[known], truth[known]), 3)
    theirs = KNeighborsClassifier(n_neighbors=NEIGHBOURS, metric="cosine")
    theirs.fit(features[known].numpy(), truth[known].numpy())
    shares = np.sort(theirs.predict_proba(features[~known].numpy()), axis=1)
    clear = shares[:, -1] > shares[:, -2]  # ties are broken in another way
    assert clear.sum() > 15
    expected = theirs.predict(features[~known].numpy())
    np.testing.assert_array_equal(ours.numpy()[clear], expected[clear])


def test_of_as_many_votes_the_more_similar_ones_win() -> None:
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    asked = torch.tensor([[2.0, 1.0], [1.0, 2.0], [-1.0, -2.0]])
    assert predict_neighbours(asked, (known, torch.tensor([0, 1])), 2).tolist() == [0, 1, 0]


def test_threads_are_given_back_also_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with one_thread():
            assert torch.get_num_threads() == 1
            raise KeyboardInterrupt

    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
