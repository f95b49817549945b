"""Labels ranked by disagreement: planted errors come first, and nothing is made up."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from tests.helpers.told import Told
from vtrain.inference.cross_validation import assign_folds, choose_penalty
from vtrain.results import suspect_labels
from vtrain.results.suspect_labels import (
    SuspectRanking,
    find_nearest,
    rank_suspects,
    vote,
)
from vtrain.system.reporter import Count

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def draw_clusters(counts: list[int], *, dim: int = 16, seed: int = 0) -> tuple[Floats, Ints]:
    """Features around one centre for each class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = 2 * random.normal(size=(len(counts), dim))
    features = centres[labels] + random.normal(size=(len(labels), dim))
    return features.astype(np.float32), labels


def plant(labels: Ints, count: int, *, seed: int = 1) -> tuple[Ints, Ints]:
    """Labels of which `count` are wrong, and the positions of these."""
    random = np.random.default_rng(seed)
    wrong = random.choice(len(labels), count, replace=False)
    planted = labels.copy()
    planted[wrong] = (planted[wrong] + 1 + random.integers(0, labels.max(), count)) % (
        labels.max() + 1
    )
    return planted, wrong


def test_planted_errors_come_first_with_the_right_suggestion() -> None:
    features, truth = draw_clusters([40, 30, 50])
    labels, wrong = plant(truth, 10)
    ranking = rank_suspects(features, labels)
    assert set(ranking.order[:10].tolist()) == set(wrong.tolist())
    np.testing.assert_array_equal(ranking.suggested[wrong], truth[wrong])
    np.testing.assert_array_equal(ranking.labels, labels)
    assert (np.diff(ranking.scores[ranking.order]) <= 0).all()
    assert sorted(ranking.order.tolist()) == list(range(120))
    own, best = ranking.label_probability, ranking.suggested_probability
    np.testing.assert_allclose(ranking.scores, (1 + best - own) / 2)
    assert ((own >= 0) & (best >= 0) & (own + best <= 1 + 1e-9)).all()
    assert ranking.neighbors.shape[0] == 120
    same = labels[ranking.neighbors] == labels[:, None]
    np.testing.assert_array_equal(ranking.agreeing, same.sum(axis=1))


def test_the_same_input_gives_the_same_ranking() -> None:
    features, labels = draw_clusters([20, 20], dim=4)
    one, other = (rank_suspects(features, labels) for _ in range(2))
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.order, other.order)


def test_a_second_model_can_find_what_the_first_has_learnt_by_heart() -> None:
    features, truth = draw_clusters([40, 40])
    labels, wrong = plant(truth, 6)
    learnt = np.empty_like(features)  # clusters of the labels as they are, wrong ones and all
    learnt[np.argsort(labels)], _ = draw_clusters(np.bincount(labels).tolist(), seed=2)
    assert len(set(rank_suspects(learnt, labels).order[:6].tolist()) & set(wrong.tolist())) <= 1
    both = rank_suspects(learnt, labels, also=[features])
    assert set(both.order[:6].tolist()) == set(wrong.tolist())


def test_out_of_fold_probabilities_are_those_of_scikit_learn() -> None:
    features, truth = draw_clusters([25, 20, 15], dim=5)
    labels, _ = plant(truth, 6)
    parts = assign_folds(labels.tolist())
    tensors = torch.from_numpy(features), torch.from_numpy(labels)
    penalty = choose_penalty(*tensors, 3, seed=0)
    found = suspect_labels._predict_out_of_fold(*tensors, parts, 3, Count()).numpy()
    for part in range(5):
        asked = parts.numpy() == part
        known = features[~asked].astype(np.float64)
        mean, scale = known.mean(axis=0), known.std(axis=0)
        oracle = LogisticRegression(C=1 / (penalty * (~asked).sum()), tol=1e-8, max_iter=5000)
        oracle.fit((known - mean) / scale, labels[~asked])
        expected = oracle.predict_proba((features[asked] - mean) / scale)
        np.testing.assert_allclose(found[asked], expected, atol=1e-3)


def test_neighbors_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspect_labels, "BLOCK", 7)
    features, labels = draw_clusters([12, 13])
    found = find_nearest(torch.from_numpy(features), 4)
    oracle = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features - features.mean(axis=0))
    expected = oracle.kneighbors(return_distance=False)[:, :4]
    np.testing.assert_array_equal(found.numpy(), expected)
    votes = vote(found, torch.from_numpy(labels), 2)
    agreeing = (labels[expected] == 0).sum(axis=1)
    np.testing.assert_allclose(votes[:, 0], (agreeing + 0.5) / 5)


def judge(features: Floats, labels: list[int]) -> SuspectRanking:
    ranking = rank_suspects(features, labels)
    judged = np.isfinite(ranking.scores)
    assert set(np.flatnonzero(judged).tolist()) == set(ranking.order.tolist())
    return ranking


def test_the_only_image_of_a_class_cannot_be_judged() -> None:
    features, labels = draw_clusters([8, 1, 8])
    ranking = judge(features, labels.tolist())
    assert len(ranking.order) == 16
    assert 8 not in ranking.order


@pytest.mark.parametrize(
    ("labels", "judged"),
    [([0], 0), ([0, 1], 0), ([0, 0], 0), ([0, 0, 1], 2), ([4, 9, 4], 2), ([0, 1, 2], 0)],
)
def test_hardly_any_images(labels: list[int], judged: int) -> None:
    features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    ranking = judge(features, labels)
    assert len(ranking.order) == judged
    assert set(ranking.suggested.tolist()) <= set(labels)


def test_features_that_are_all_the_same_are_no_evidence() -> None:
    ranking = judge(np.ones((12, 4), dtype=np.float32), [0, 1] * 6)
    assert len(ranking.order) == 12
    assert np.isfinite(ranking.scores).all()


def test_five_hundred_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspect_labels, "FOLDS", 2)
    features, truth = draw_clusters([3] * 500, dim=16)
    labels, wrong = plant(truth, 20)
    told = Told()
    ranking = rank_suspects(features, labels, reporter=told)
    assert len(set(ranking.order[:40].tolist()) & set(wrong.tolist())) >= 15
    assert told.shown[-1] == (3, 3)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((3, 2)), [0, 1], r"\(3, 2\) and labels \(2,\)"),
        (np.ones(3), [0, 1, 0], r"expected \[N, D\]"),
        (np.ones((0, 2)), [], "N at least 1"),
        (np.full((2, 2), np.nan), [0, 1], "not finite"),
        (np.ones((2, 2)), [0, -1], "below 0"),
    ],
)
def test_what_does_not_fit_is_refused(features: Floats, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_suspects(features, labels)
