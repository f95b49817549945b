"""Features of images by a model: the same as the model's own, stored, with bad images named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.runs import Watcher
from tests.helpers.tiny import break_image, build_tiny_model, draw_image, draw_labelled
from vtrain.data.images import read_image
from vtrain.data.transforms import EvalTransform
from vtrain.inference.forward import compute_outputs
from vtrain.results.features import Features, compute_features
from vtrain.runs.model_argument import LoadedModel, load_model
from vtrain.system.reporter import SILENT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_labelled(tmp_path_factory.mktemp("images"), {"ant": 3, "bee": 4})


class Talk(Watcher):
    """What was said, warned of and shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        super().__init__(on_progress=self.shown.append)

    def compute(self, paths: list[Path], model: LoadedModel, limit: float = 1.0) -> Features:
        return compute_features(
            paths, model, batch_size=2, workers=0, cache_limit_gb=limit, reporter=self
        )


def features_one_by_one(paths: list[Path], model: LoadedModel) -> np.ndarray:
    transform = EvalTransform(model.preprocessing)
    images = torch.stack([transform(read_image(path)) for path in paths])
    forward = model.classifier.forward_features
    return compute_outputs(forward, images, model.preprocessing, torch.device("cpu")).numpy()


def test_features_are_the_models_own_and_are_read_again(cache: Path, paths: list[Path]) -> None:
    model, talk = build_tiny_model("ab"), Talk()
    first = talk.compute(paths, model)
    assert talk.shown == ["computing features"] * 4  # of at most two images
    assert first.values.dtype == np.float32
    assert first.positions.tolist() == list(range(7))
    np.testing.assert_allclose(first.values, features_one_by_one(paths, model), atol=1e-5)
    talk.shown.clear()
    again = talk.compute(paths[::-1], model)
    assert talk.shown == []
    np.testing.assert_array_equal(again.values, first.values[::-1])
    assert talk.warned == []
    assert cache.is_dir()


def test_unreadable_images_are_left_out_and_named(
    cache: Path, paths: list[Path], tmp_path: Path
) -> None:
    bad = break_image(tmp_path / "bad.jpg")
    gone = tmp_path / "gone.jpg"
    given = [bad, *paths[:3], gone, paths[3], bad]
    model = build_tiny_model("ab")
    for limit in (1.0, 1e-9):  # with the cache, and without
        for _ in range(2):
            features = Talk().compute(given, model, limit)
            assert features.positions.tolist() == [1, 2, 3, 5]
            assert [position for position, _ in features.failures] == [0, 4, 6]
            np.testing.assert_allclose(
                features.values, features_one_by_one(paths[:4], model), atol=1e-5
            )


def test_nothing_readable_gives_no_rows(cache: Path, tmp_path: Path) -> None:
    model = build_tiny_model("ab")
    for given in ([], [break_image(tmp_path / "bad.jpg")]):
        features = Talk().compute(given, model)
        assert len(features) == 0
        assert features.values.shape == (0, model.classifier.feature_dim)


def test_an_image_that_changed_is_computed_again(cache: Path, tmp_path: Path) -> None:
    model, path = build_tiny_model("ab"), draw_image(tmp_path / "x.png")
    before = Talk().compute([path], model)
    draw_image(path, seed=1)
    after = Talk().compute([path], model)
    assert not np.allclose(before.values, after.values)


def test_another_model_has_features_of_its_own(cache: Path, paths: list[Path]) -> None:
    one = Talk().compute(paths, build_tiny_model("ab"))
    other = Talk().compute(paths, build_tiny_model("ab", seed=1))
    assert not np.allclose(one.values, other.values)


def test_a_store_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[Path]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "file"))
    model, talk = build_tiny_model("ab"), Talk()
    features = talk.compute(paths, model)
    assert len(features) == 7
    assert talk.shown == ["computing features"] * 4  # of at most two images
    (warning,) = talk.warned
    assert warning.startswith("feature cache: ")
    assert "training" not in warning


def test_rows_that_are_not_finite_are_failures(cache: Path, paths: list[Path]) -> None:
    model = build_tiny_model("ab")
    with torch.no_grad():
        for parameter in model.classifier.backbone.parameters():
            parameter.fill_(float("nan"))
    for _ in range(2):  # stored or not
        features = Talk().compute(paths[:2], model)
        assert len(features) == 0
        assert [reason for _, reason in features.failures] == [
            "the model's output for this image is not finite"
        ] * 2


def test_a_head_on_the_map_has_pooled_features(cache: Path, paths: list[Path]) -> None:
    model = load_model(
        "squeezenet1_1:none",
        device=torch.device("cpu"),
        precision="fp32",
        reporter=SILENT,
    )
    features = Talk().compute(paths[:2], model)
    assert features.values.shape == (2, 512)
    np.testing.assert_allclose(
        features.values, features_one_by_one(paths[:2], model), rtol=1e-4, atol=1e-4
    )
