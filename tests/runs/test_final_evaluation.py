"""The end of a run: what it writes, and that later commands say the same."""

import csv
import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from tests.helpers.runs import assert_same_run, draw_tiny_data, read_model, run
from tests.helpers.tiny import CPU, build_tiny_model, draw_labelled
from vtrain.data.folders import scan_labelled
from vtrain.data.splits import sample_classes
from vtrain.errors import ModelError
from vtrain.models.model_file import BANK, read_model_file
from vtrain.results.evaluate import evaluate
from vtrain.results.inputs import PredictInput
from vtrain.results.predict import Answering, Prediction, predict
from vtrain.runs.evaluation_files import ImagePrediction, evaluation_json, read_predictions
from vtrain.runs.final_evaluation import FinalEvaluation
from vtrain.runs.model_argument import LoadedModel, load_model
from vtrain.system.json_csv import to_plain
from vtrain.system.reporter import SILENT
from vtrain.system.tensor_files import load_tensors

A = Path("runs/a")
VAL = Path("images/val")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny data and a config."""
    monkeypatch.chdir(tmp_path)
    draw_tiny_data()
    return tmp_path


def load(run_dir: Path = A) -> LoadedModel:
    return load_model(str(run_dir), device=CPU, reporter=SILENT)


def evaluate_as_users_do(folder: Path, **options: Any) -> tuple[Any, list[ImagePrediction]]:
    folder = folder.absolute()  # as runs write paths
    return evaluate(folder, load(), batch_size=4, workers=0, reporter=SILENT, **options)


def predict_as_users_do(rows: list[ImagePrediction], answering: Answering) -> list[Prediction]:
    inputs = [PredictInput(str(row.path)) for row in rows]
    return list(predict(inputs, load(), batch_size=4, workers=0, answering=answering))


def read_evaluation(split: str = "val") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((A / f"evaluation-{split}.json").read_text())
    return found


def read_features(split: str = "val") -> dict[str, torch.Tensor]:
    return load_tensors(A / f"features-{split}.safetensors")[0]


# --- what is written -----------------------------------------------------------------------------


def test_files_of_a_split_fit_each_other() -> None:
    run("run_dir=runs/a")
    with (A / "predictions-val.csv").open(newline="") as stream:
        header, *cells = csv.reader(stream)
    assert header == [
        *("path", "label", "prediction", "probability", "correct", "label_probability"),
        *("second", "second_probability", "distance"),
    ]
    assert all(all(row) for row in cells)
    rows, found = read_predictions(A, "val"), read_evaluation()
    assert len(rows) == found["count"] == 6
    assert found["top1"] == sum(row.correct for row in rows) / 6
    for row in rows:
        assert row.second != row.prediction
        assert row.correct == (row.label == row.prediction)
        assert 0 < row.second_probability <= row.probability < 1
        assert row.label_probability <= row.probability
        assert row.distance > 0
    features = read_features()
    assert features["rows"].tolist() == list(range(6))
    assert features["features"].shape == (6, load().classifier.feature_dim)
    assert features["features"].dtype == torch.float16


def test_features_are_those_of_their_rows() -> None:
    run("run_dir=runs/a")
    rows, stored = read_predictions(A, "val"), read_features()
    model = load()
    assert model.novelty is not None
    distances = model.novelty.distances(stored["features"]).tolist()
    assert distances == pytest.approx([row.distance for row in rows], rel=0.01)


def test_features_of_some_images_name_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    run("run_dir=runs/a")
    everything = read_features()
    monkeypatch.setattr("vtrain.runs.final_evaluation._FEATURES_KEPT", 2)
    run("run_dir=runs/a", "train.epochs=2", resume=True)  # nothing is done: the run has finished
    assert len(read_features()["rows"]) == 6
    (A / "result.json").unlink()
    run("run_dir=runs/a", resume=True)
    some = read_features()
    assert some["rows"].tolist() == [0, 3]
    assert torch.equal(some["features"], everything["features"][some["rows"]])


def test_model_file_holds_temperature_and_bank() -> None:
    run("run_dir=runs/a")
    described, bank = read_model_file(A / "model.safetensors"), read_model(A)[BANK]
    assert described.temperature == read_evaluation()["calibration"]["temperature"] != 1
    assert described.novelty is not None
    assert described.novelty.threshold > 0
    assert (len(bank), bank.dtype) == (18, torch.float16)
    assert torch.allclose(bank.float().norm(dim=1), torch.ones(18), atol=2e-3)


def test_a_threshold_leaves_five_percent_beyond_it() -> None:
    draw_labelled(VAL, {"ant": 20, "bee": 20, "cow": 20})
    run("run_dir=runs/a", "train.epochs=1")
    far = [row.distance > 1 for row in read_predictions(A, "val")]
    assert (len(far), sum(far)) == (60, 3)


# --- what later commands say ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [[], ["train.cache=off"], ["train.precision=bf16"]])
def test_evaluate_and_predict_say_the_same(settings: list[str]) -> None:
    run("run_dir=runs/base", "train.epochs=1")
    run("run_dir=runs/a", "model.weights=runs/base", "freeze=head", *settings)
    rows = read_predictions(A, "val")
    result, again = evaluate_as_users_do(VAL)
    assert [astuple(row) for row in again] == [astuple(row) for row in rows]
    stored, now = read_evaluation(), json.loads(json.dumps(evaluation_json(result)))
    assert stored["calibration"].pop("ece_held_out") is not None
    assert now["calibration"].pop("ece_held_out") is None
    assert now == stored
    for row, answer in zip(rows, predict_as_users_do(rows, Answering()), strict=True):
        first, second = answer.predictions[:2]
        assert (first.name, first.probability) == (row.prediction, row.probability)
        assert (second.name, second.probability) == (row.second, row.second_probability)
        assert answer.distance == row.distance


def test_raw_probabilities_are_those_without_the_temperature() -> None:
    run("run_dir=runs/a")
    temperature = load().temperature
    result, rows = evaluate_as_users_do(VAL, raw=True)
    assert result.calibration.temperature == 1
    assert result.calibration.ece == result.calibration.ece_raw
    assert result.calibration.ece_raw == read_evaluation()["calibration"]["ece_raw"]
    calibrated = predict_as_users_do(rows, Answering())
    raw = predict_as_users_do(rows, Answering(raw=True))
    for row, one, other in zip(rows, raw, calibrated, strict=True):
        assert one.predictions[0].probability == row.probability
        values = {each.name: math.log(each.probability) for each in one.predictions}
        scaled = {name: math.exp(value / temperature) for name, value in values.items()}
        for each in other.predictions:
            expected = scaled[each.name] / sum(scaled.values())
            assert each.probability == pytest.approx(expected, rel=1e-6)
        assert one.distance == other.distance


def test_the_test_split_has_the_temperature_of_val() -> None:
    draw_labelled(Path("images/test"), {"ant": 4, "bee": 3, "cow": 5})
    run("run_dir=runs/a", "data.test=images/test")
    val, test = read_evaluation(), read_evaluation("test")
    assert test["count"] == 12
    assert test["calibration"]["temperature"] == val["calibration"]["temperature"] != 1
    assert test["calibration"]["ece_held_out"] is None
    assert val["calibration"]["ece_held_out"] is not None
    rows = read_predictions(A, "test")
    assert [astuple(row) for row in evaluate_as_users_do(Path("images/test"))[1]] == [
        astuple(row) for row in rows
    ]
    assert len(read_features("test")["rows"]) == 12


def test_weighted_f1_and_calibration_against_other_code() -> None:
    draw_labelled(VAL, {"ant": 25, "bee": 5, "cow": 12})
    run("run_dir=runs/a")
    rows, found = read_predictions(A, "val"), read_evaluation()
    labels, predictions = [row.label for row in rows], [row.prediction for row in rows]
    for name in ("weighted", "macro"):
        expected = f1_score(labels, predictions, average=name, zero_division=0)
        assert found[f"{name}_f1"] == pytest.approx(expected)
    calibration = found["calibration"]
    confidences = np.array([row.probability for row in rows])
    correct = np.array([row.correct for row in rows])
    error = 0.0
    for each in calibration["bins"]:
        own = (confidences > each["low"]) & (confidences <= each["high"])
        assert own.sum() == each["count"]
        if own.any():
            error += own.mean() * abs(correct[own].mean() - confidences[own].mean())
    assert calibration["ece"] == pytest.approx(error)
    assert 0 <= calibration["ece_held_out"] < 0.5
    mean = np.mean([-math.log(row.label_probability) for row in rows])
    assert mean <= found["loss"] + 1e-9  # fitted on these images


# --- odd runs ------------------------------------------------------------------------------------


def test_a_finished_run_that_goes_on_is_calibrated_anew() -> None:
    run("run_dir=runs/a", "train.epochs=1")
    first = load().temperature
    result = run("run_dir=runs/a", "train.epochs=6", resume=True)
    whole = run("run_dir=runs/b", "train.epochs=6")
    assert result.epochs == 6
    assert result.best_epoch == 1 or load().temperature != first
    assert load().temperature == read_evaluation()["calibration"]["temperature"]
    assert evaluate_as_users_do(VAL)[0].top1 == result.val_top1
    assert whole.epochs == 6


@pytest.mark.parametrize("moment", ["evaluate_val", "save_model"])
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "head"])
def test_a_run_killed_at_its_end_comes_to_the_same(
    monkeypatch: pytest.MonkeyPatch, moment: str, frozen: bool
) -> None:
    settings = []
    if frozen:
        run("run_dir=runs/base", "train.epochs=1")
        settings = ["model.weights=runs/base", "freeze=head"]
    whole = run("run_dir=runs/whole", *settings)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FinalEvaluation, moment, die)
        with pytest.raises(Killed):
            run("run_dir=runs/a", *settings)
    assert load().novelty is None
    run("run_dir=runs/a", *settings, resume=True)
    assert_same_run(whole.run_dir, A)
    for name in ("evaluation-val.json", "features-val.safetensors"):
        assert (A / name).read_bytes() == (whole.run_dir / name).read_bytes()
    described = (read_model_file(each / "model.safetensors") for each in (A, whole.run_dir))
    one, other = map(to_plain, described)
    for name in ("temperature", "novelty", "classes", "preprocessing"):
        assert one[name] == other[name]


def test_more_logits_than_are_held_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.runs.final_evaluation._MOST_LOGITS", 9)
    run("run_dir=runs/a")
    found = read_evaluation()["calibration"]
    assert found["temperature"] != 1
    assert found["ece_held_out"] is None  # some of the images have helped
    result, rows = evaluate_as_users_do(VAL)
    assert result.calibration.temperature == found["temperature"]
    assert [row.probability for row in rows] == [
        row.probability for row in read_predictions(A, "val")
    ]


def test_logits_are_scored_in_parts_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    run("run_dir=runs/a")
    before = (A / "predictions-val.csv").read_bytes()
    (A / "result.json").unlink()
    monkeypatch.setattr("vtrain.inference.scores._SCORED_AT_ONCE", 7)
    run("run_dir=runs/a", resume=True)
    assert (A / "predictions-val.csv").read_bytes() == before


def test_one_validation_image_and_one_of_each_class_in_training() -> None:
    draw_labelled(Path("few/train"), {"ant": 1, "bee": 1})
    draw_labelled(Path("few/val"), {"bee": 1})
    few = ["data.train=few/train", "data.val=few/val", "data.batch_size=2"]
    run("run_dir=runs/a", *few)
    model, (row,) = load(), read_predictions(A, "val")
    assert 0.05 < model.temperature < 20
    assert model.novelty is not None
    assert len(model.novelty.bank) == 2
    assert row.distance == pytest.approx(1)
    assert read_evaluation()["warnings"]


def test_one_class(tmp_path: Path) -> None:
    draw_labelled(tmp_path / "one", {"ant": 2})
    model = build_tiny_model(("ant",))
    result, rows = evaluate(tmp_path / "one", model, workers=0, reporter=SILENT)
    assert (result.top1, result.macro_f1, result.weighted_f1, result.loss) == (1, 1, 1, 0)
    assert [(row.probability, row.second) for row in rows] == [(1, ""), (1, "")]
    assert all(math.isnan(row.second_probability) for row in rows)
    assert result.calibration is not None
    assert (result.calibration.ece, result.calibration.temperature) == (0, 1)
    answering = Answering(min_confidence=1.0)
    (answer,) = predict([PredictInput(str(rows[0].path))], model, workers=0, answering=answering)
    assert (answer.answer, answer.rejected) == ("ant", None)


def test_logits_that_are_not_finite_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FinalEvaluation.evaluate_val

    def poison(self: FinalEvaluation, *arguments: Any) -> Any:
        with torch.no_grad():
            for parameter in self.classifier.head.parameters():
                parameter.fill_(math.nan)
        return original(self, *arguments)

    monkeypatch.setattr(FinalEvaluation, "evaluate_val", poison)
    with pytest.raises(ModelError, match="not finite for 6 of 6 images"):
        run("run_dir=runs/a")
    assert not (A / "evaluation-val.json").exists()
    assert not (A / "result.json").exists()


def test_weights_of_a_run_leave_its_bank_behind() -> None:
    run("run_dir=runs/a", "train.epochs=1")
    run("run_dir=runs/b", "train.epochs=1", "model.weights=runs/a/model.safetensors")
    assert len(read_model(Path("runs/b"))[BANK]) == 18
    draw_labelled(Path("other/train"), {"dog": 3, "eel": 3})
    draw_labelled(Path("other/val"), {"dog": 1, "eel": 1})
    other = ["data.train=other/train", "data.val=other/val", "model.weights=runs/a"]
    run("run_dir=runs/c", "train.epochs=1", *other)
    assert len(read_model(Path("runs/c"))[BANK]) == 6


# --- the sample of the training images -----------------------------------------------------------


def test_a_sample_takes_of_each_class_as_equally_many_as_there_are() -> None:
    draw_labelled(Path("many"), {"ant": 9, "bee": 2, "cow": 5})
    images = scan_labelled(Path("many"), reporter=SILENT)
    assert sample_classes(images, 16) is images
    for most, counts in {1: [1, 0, 0], 3: [1, 1, 1], 8: [3, 2, 3], 15: [8, 2, 5]}.items():
        sample = sample_classes(images, most)
        assert list(sample.class_counts()) == counts
        assert list(sample.paths) == sorted(sample.paths)
    some = sample_classes(images, 8)
    assert list(sample_classes(images, 8).paths) == list(some.paths)
    assert list(sample_classes(images, 8, seed=1).paths) != list(some.paths)
    assert set(sample_classes(images, 3).paths) <= set(some.paths)
