"""What a model sees in image files: order, errors, classes, where the map lies, the picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.helpers.tiny import break_image, build_tiny_model, draw_image, poison
from tests.helpers.told import Told
from vtrain.errors import UsageError
from vtrain.models.classifier import Classifier
from vtrain.results.explain import RAMP, Explanation, Placement, explain_images, find_class, overlay
from vtrain.results.inputs import PredictInput
from vtrain.results.predict import predict
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.reporter import SILENT

CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return build_tiny_model(CLASSES)


def explain(paths: Any, model: LoadedModel, **settings: Any) -> list[Explanation]:
    return list(explain_images(paths, model, reporter=SILENT, **settings))


def test_answers_keep_the_order_of_the_inputs(tmp_path: Path, model: LoadedModel) -> None:
    first, last = draw_image(tmp_path / "z.png"), draw_image(tmp_path / "a.jpg", seed=1)
    bad = break_image(tmp_path / "bad.jpg")
    inputs = [first, str(bad), PredictInput("nix.png", "no such file"), str(last), first]
    done = explain(inputs, model, batch_size=2)
    assert [each.path for each in done] == [str(first), str(bad), "nix.png", str(last), str(first)]
    assert [each.error is None for each in done] == [True, False, False, True, True]
    assert done[2].error == "no such file"
    assert done[1].map is None
    assert done[1].image is None
    whole = explain(inputs, model)
    for one, other in zip(done, whole, strict=True):
        if one.map is not None and other.map is not None:
            np.testing.assert_allclose(one.map, other.map, atol=1e-4)


def test_an_answer_agrees_with_predict(tmp_path: Path, model: LoadedModel) -> None:
    paths = [draw_image(tmp_path / f"{seed}.png", seed=seed) for seed in range(4)]
    predicted = list(predict([PredictInput(str(path)) for path in paths], model, workers=0))
    for each, expected in zip(explain(paths, model), predicted, strict=True):
        top = expected.predictions[0]
        assert (each.prediction, each.explained) == (top.name, top.name)
        assert each.probability == pytest.approx(top.probability, abs=1e-5)
        assert each.probability == each.explained_probability
        assert each.image is not None
        assert each.map is not None
        assert each.image.size == (64, 64)
        assert each.map.shape == (64, 64)
        assert each.map.dtype == np.float32
        assert each.map.min() >= 0
        assert 0.8 < each.map.max() <= 1
        assert each.cells == (8, 8)
        assert each.found


def test_one_class_for_all(tmp_path: Path, model: LoadedModel) -> None:
    paths = [draw_image(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    own = explain(paths, model)
    for name in CLASSES:
        for each, before in zip(explain(paths, model, class_name=name), own, strict=True):
            assert each.explained == name
            assert (each.prediction, each.probability) == (before.prediction, before.probability)
            same = name == each.prediction
            assert (each.explained_probability == each.probability) == same
            assert np.array_equal(each.map, before.map) == same  # type: ignore[arg-type]


def test_inputs_are_taken_as_they_are_needed(tmp_path: Path, model: LoadedModel) -> None:
    path = draw_image(tmp_path / "a.png")
    taken = []

    def give() -> Iterator[Path]:
        for index in range(6):
            taken.append(index)
            yield path

    answers = explain_images(give(), model, batch_size=2)
    assert taken == []
    next(answers)
    assert taken == [0, 1]


def test_no_inputs(model: LoadedModel) -> None:
    assert explain([], model) == []


def test_output_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    poisoned = poison(build_tiny_model(CLASSES))
    (done,) = explain([draw_image(tmp_path / "a.png")], poisoned)
    assert done.error == "the model's output for this image is not finite"
    assert done.map is None


def test_coarse_maps_are_told_once(tmp_path: Path) -> None:
    model = build_tiny_model(CLASSES)
    small = LoadedModel(
        model.classifier, model.preprocessing.with_image_size(24), model.classes, "tiny"
    )
    said: list[str] = []
    paths = [draw_image(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    list(explain_images(paths, small, batch_size=1, reporter=Told(said)))
    assert said == [
        "the maps of block3 have only 3 x 3 cells; finer ones come from stem, block1, block2"
    ]
    list(explain_images(paths, small, stage="block1", reporter=Told(said)))
    assert len(said) == 1


# --- classes and stages --------------------------------------------------------------------------


def test_classes_by_name_and_by_number() -> None:
    assert find_class("bee", CLASSES) == 1
    assert find_class("#3", CLASSES) == 3
    assert find_class("#1", ("#1", "x")) == 0
    with pytest.raises(UsageError, match="is the name of classes 0 and 2") as caught:
        find_class("crane", ("crane", "x", "crane"))
    assert "'#0'" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["#4", "#", "#-1", "#²", "", "elk"])
def test_unknown_class(name: str) -> None:
    with pytest.raises(UsageError, match="the model knows no class") as caught:
        find_class(name, CLASSES)
    assert caught.value.hint == "classes: ant, bee, cat, dog"


def test_unknown_class_of_many() -> None:
    classes = [f"class {index}" for index in range(998)] + ["Persian cat", "tiger cat"]
    with pytest.raises(UsageError, match="did you mean 'Persian cat'") as caught:
        find_class("persian cat", classes)
    assert str(caught.value.hint).startswith("1,000 classes, ")
    assert len(str(caught.value.hint)) < 200


def test_wrong_names_are_told_before_an_image_is_read(model: LoadedModel) -> None:
    for settings in ({"class_name": "Bee"}, {"stage": "block4"}):
        with pytest.raises(UsageError, match=r"did you mean .?b"):
            explain_images(["nix.png"], model, **settings)  # type: ignore[arg-type]


# --- where the map lies --------------------------------------------------------------------------


def place(path: Path, model: LoadedModel) -> Placement:
    (done,) = explain([path], model)
    assert done.placement is not None
    return done.placement


def test_map_of_a_wide_image_covers_its_middle(tmp_path: Path, model: LoadedModel) -> None:
    found = place(draw_image(tmp_path / "a.png", size=(200, 100)), model)
    assert (found.width, found.height) == (200, 100)
    edges = (found.left, found.top, found.right, found.bottom)
    assert edges == (50.0, 0.0, 150.0, 100.0)


@pytest.mark.parametrize("orientation", [1, 6])
def test_map_lies_in_the_upright_image(
    tmp_path: Path, model: LoadedModel, orientation: int
) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    # Large enough to be decoded at a part of its size.
    Image.new("RGB", (2400, 1200)).save(path, exif=exif)
    found = place(path, model)
    size = (2400, 1200) if orientation == 1 else (1200, 2400)
    assert (found.width, found.height) == size
    assert found.right - found.left == pytest.approx(1200, abs=1)
    assert found.bottom - found.top == pytest.approx(1200, abs=1)
    assert found.left == pytest.approx(600 if orientation == 1 else 0, abs=1)


def test_box_cuts_out_what_the_model_saw(tmp_path: Path, model: LoadedModel) -> None:
    path = draw_image(tmp_path / "a.png", size=(190, 120))
    (done,) = explain([path], model)
    at = done.placement
    assert at is not None
    assert done.image is not None
    box = (at.left, at.top, at.right, at.bottom)
    cut = Image.open(path).resize(done.image.size, Image.Resampling.BILINEAR, box=box)
    difference = np.asarray(cut).astype(int) - np.asarray(done.image).astype(int)
    assert np.abs(difference).mean() < 3


# --- the picture ---------------------------------------------------------------------------------


def lightness(colour: tuple[int, int, int]) -> float:
    """CIE L*, 0 to 100, of an sRGB colour."""
    linear = [(value / 255 + 0.055) / 1.055 for value in colour]
    luminance = np.dot([0.2126, 0.7152, 0.0722], [value**2.4 for value in linear])
    return float(116 * luminance ** (1 / 3) - 16)


def test_colours_rise_evenly_in_lightness() -> None:
    steps = np.diff([lightness(colour) for colour in RAMP])
    assert steps.min() > 10
    assert steps.max() < 20


def test_overlay_is_gray_where_there_is_nothing_and_coloured_where_there_is() -> None:
    photo = Image.fromarray(np.full((40, 60, 3), (200, 30, 90), np.uint8))
    values = np.zeros((40, 60), np.float32)
    values[:, 30:] = 1
    drawn = np.asarray(overlay(photo, values)).astype(int)
    assert drawn.shape == (40, 60, 3)
    assert np.ptp(drawn[:, :30], axis=2).max() == 0
    assert (drawn[:, 30:, 0] - drawn[:, 30:, 2]).min() > 50  # yellow
    assert drawn[:, 30:].mean() > drawn[:, :30].mean() + 50


def test_explaining_leaves_the_model_as_it_was(tmp_path: Path, model: LoadedModel) -> None:
    images = torch.rand(2, 3, 64, 64)
    classifier: Classifier = model.classifier
    with torch.inference_mode():
        before = classifier(images)
    explain([draw_image(tmp_path / "a.png")], model)
    with torch.inference_mode():
        assert torch.equal(classifier(images), before)
    assert all(parameter.grad is None for parameter in classifier.parameters())
