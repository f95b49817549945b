import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss
from torch import Tensor, nn

from tests.helpers.tiny import CPU, break_image, build_tiny_model, draw_image, draw_labelled, poison
from tests.helpers.told import Told
from vtrain.data.batches import Batch
from vtrain.data.image_sets import LabelledImages, PackedPaths
from vtrain.errors import DataError, ModelError
from vtrain.inference.forward import Outputs, compute_outputs, prepare_for_inference
from vtrain.inference.scores import ModelEvaluation, evaluate_model
from vtrain.models.precision import Precision
from vtrain.results.evaluate import describe_match, evaluate
from vtrain.results.inputs import PredictInput
from vtrain.results.predict import predict
from vtrain.runs.evaluation_files import (
    EvaluationResult,
    ImagePrediction,
    evaluation_json,
    write_predictions_csv,
)
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.reporter import SILENT

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
COUNTS = {"ant": 4, "bee": 3, "cat": 5, "dog": 2, "eel": 3, "fox": 1}


def run(
    folder: Path, model: LoadedModel, *, batch_size: int = 4
) -> tuple[EvaluationResult, list[ImagePrediction], list[str]]:
    said: list[str] = []
    result, rows = evaluate(folder, model, batch_size=batch_size, workers=0, reporter=Told(said))
    return result, rows, said


def test_metrics_agree_with_the_predictions_of_predict(tmp_path: Path) -> None:
    model = build_tiny_model(CLASSES)
    paths = draw_labelled(tmp_path, COUNTS)
    result, rows, said = run(tmp_path, model)
    answers = list(predict([PredictInput(str(p)) for p in paths], model, top_k=6, workers=0))
    labels = [path.parent.name for path in paths]
    guesses = [[each.name for each in answer.predictions] for answer in answers]
    top = [names[0] for names in guesses]

    assert said == []
    assert len({row.prediction for row in rows}) > 1
    assert result.count == len(paths) == 18
    assert [row.path for row in rows] == paths
    assert [row.label for row in rows] == labels
    assert [row.correct for row in rows] == [a == b for a, b in zip(labels, top, strict=True)]
    assert result.top1 == pytest.approx(np.mean([row.correct for row in rows]))
    assert result.top5 == pytest.approx(
        np.mean([label in names[:5] for label, names in zip(labels, guesses, strict=True)])
    )
    assert result.macro_f1 == pytest.approx(
        f1_score(labels, top, average="macro", zero_division=0), abs=1e-12
    )
    probabilities = [
        [
            next(each.probability for each in answer.predictions if each.name == name)
            for name in CLASSES
        ]
        for answer in answers
    ]
    assert result.loss == pytest.approx(log_loss(labels, probabilities, labels=CLASSES), rel=1e-5)
    assert [sum(row) for row in result.confusion_matrix] == list(COUNTS.values())
    assert [each.support for each in result.per_class] == list(COUNTS.values())


@pytest.mark.parametrize("batch_size", [1, 4, 5, 32])
def test_predict_and_evaluate_say_the_same(tmp_path: Path, batch_size: int) -> None:
    model = build_tiny_model(CLASSES)
    paths = draw_labelled(tmp_path, COUNTS)
    _, rows, _ = run(tmp_path, model, batch_size=4)
    inputs = [PredictInput(str(path)) for path in paths]
    answers = list(predict(inputs, model, batch_size=batch_size, workers=0))
    # Equal batches are equal bit for bit. Other batch sizes make torch choose other float32
    # kernels: on real weights that moved probabilities by up to 3e-6.
    tolerance = 0.0 if batch_size == 4 else 1e-5
    for row, answer in zip(rows, answers, strict=True):
        best = answer.predictions[0]
        assert str(row.path) == answer.path
        assert row.prediction == best.name
        assert abs(row.probability - best.probability) <= tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prepared_models_say_the_same_in_both(tmp_path: Path, precision: str) -> None:
    model = build_tiny_model(CLASSES)
    classifier = prepare_for_inference(model.classifier, Precision(precision, CPU))
    model = replace(model, classifier=classifier, precision=precision)
    paths = draw_labelled(tmp_path, COUNTS)
    result, rows, _ = run(tmp_path, model)
    inputs = [PredictInput(str(path)) for path in paths]
    for row, answer in zip(rows, predict(inputs, model, batch_size=4, workers=0), strict=True):
        best = answer.predictions[0]
        assert (row.prediction, row.probability) == (best.name, best.probability)
    assert len({row.probability for row in rows}) > 1
    assert result.top1 == sum(row.correct for row in rows) / len(rows)


def test_classes_match_by_name_and_gaps_are_said(tmp_path: Path) -> None:
    model = build_tiny_model(CLASSES)
    everything, part = tmp_path / "all", tmp_path / "part"
    draw_labelled(everything, COUNTS)
    for name in ("bee", "eel"):
        (part / name).parent.mkdir(exist_ok=True)
        (everything / name).rename(part / name)
    result, rows, said = run(part, model)
    assert {row.label for row in rows} == {"bee", "eel"}
    assert [sum(row) for row in result.confusion_matrix] == [0, 3, 0, 0, 3, 0]
    assert result.classes == CLASSES
    assert len(said) == 1
    assert "4 of the model's 6 classes have no images" in said[0]
    assert "ant, cat, dog, fox" in said[0]


def test_a_class_that_the_model_lacks_is_an_error(tmp_path: Path) -> None:
    draw_labelled(tmp_path, {"ant": 1, "zebra": 1})
    with pytest.raises(DataError, match="zebra"):
        run(tmp_path, build_tiny_model(CLASSES))


def test_classes_of_one_name_take_the_first_and_count_once(tmp_path: Path) -> None:
    draw_labelled(tmp_path, {"crane": 3, "bee": 2})
    result, rows, said = run(tmp_path, build_tiny_model(("bee", "crane", "ant", "crane")))
    assert result.count == len(rows) == 5
    assert [sum(row) for row in result.confusion_matrix] == [2, 3, 0, 0]
    assert any("'crane' is the name of 2" in line and "number 1" in line for line in said)
    assert sum(row.correct for row in rows) == round(result.top1 * 5)


def test_unreadable_images_are_named_and_count_nowhere(tmp_path: Path) -> None:
    model = build_tiny_model(CLASSES)
    draw_labelled(tmp_path, COUNTS)
    expected, expected_rows, _ = run(tmp_path, model, batch_size=1)
    bad = [break_image(tmp_path / "ant" / "0.jpg"), break_image(tmp_path / "fox" / "zz.png")]
    result, rows, _ = run(tmp_path, model, batch_size=1)
    assert [each.path for each in result.failures] == bad
    assert all(each.reason for each in result.failures)
    assert [list(astuple(row)[:-1]) for row in rows] == [
        list(astuple(row)[:-1]) for row in expected_rows
    ]  # without the distances, which are NaN
    assert result.count == expected.count
    assert (result.top1, result.loss) == (expected.top1, expected.loss)
    assert result.confusion_matrix == expected.confusion_matrix


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    bad = break_image(tmp_path / "ant" / "a.jpg")
    with pytest.raises(DataError, match=str(bad)):
        run(tmp_path, build_tiny_model(CLASSES))
    bad.unlink()
    with pytest.raises(DataError, match="no images"):
        run(tmp_path, build_tiny_model(CLASSES))


def test_not_finite_output_is_a_model_error(tmp_path: Path) -> None:
    paths = draw_labelled(tmp_path, {"ant": 2})
    with pytest.raises(ModelError, match="not finite for 2 of 2 images") as caught:
        run(tmp_path, poison(build_tiny_model(CLASSES)))
    assert str(paths[0]) in caught.value.message


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    draw_labelled(tmp_path, COUNTS)
    break_image(tmp_path / "ant" / "0.jpg")
    seen: list[tuple[int, int]] = []
    evaluate(
        tmp_path, build_tiny_model(CLASSES), batch_size=5, workers=0, reporter=Told(shown=seen)
    )
    assert seen == [(5, 19), (10, 19), (15, 19), (19, 19)]


# --- the part that training shares


class Recorder(nn.Module):
    """Logits from the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.mean(dim=(2, 3)))
        return logits


def draw_batches(sizes: list[int]) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(3)
    start = 0
    for size in sizes:
        yield Batch(
            inputs=torch.randint(256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator),
            labels=torch.randint(4, (size,), generator=generator),
            positions=torch.arange(start, start + size),
            failures=(),
        )
        start += size


def gather(module: Recorder, batches: Iterable[Batch]) -> ModelEvaluation:
    preprocessing = build_tiny_model(CLASSES).preprocessing
    return evaluate_model(
        lambda images: Outputs(compute_outputs(module, images, preprocessing, CPU)),
        batches,
        num_classes=4,
        device=CPU,
    )


def test_evaluate_model_leaves_gradients_alone() -> None:
    module = Recorder().eval()
    evaluation = gather(module, draw_batches([5, 5, 2]))
    assert evaluation.positions.tolist() == list(range(12))
    assert not torch.is_inference_mode_enabled()
    module(torch.ones(1, 3, 8, 8)).sum().backward()
    assert module.linear.weight.grad is not None


def test_evaluate_model_takes_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    module = Recorder()
    (whole,) = draw_batches([12])
    single = gather(module, [whole])
    with torch.inference_mode():
        inputs = (whole.inputs.float() / 255 - 0.5) / 0.5
        expected = nn.functional.cross_entropy(module(inputs), whole.labels).item()
    assert single.loss == pytest.approx(expected, abs=1e-6)


def test_evaluate_model_reports_not_finite_logits_without_raising() -> None:
    module = Recorder()
    with torch.no_grad():
        module.linear.bias.fill_(math.inf)
    evaluation = gather(module, draw_batches([3, 2]))
    assert evaluation.non_finite == (0, 1, 2, 3, 4)
    assert math.isnan(evaluation.loss)


def test_evaluate_model_without_images() -> None:
    evaluation = gather(Recorder(), [])
    assert evaluation.positions.tolist() == []
    assert math.isnan(evaluation.top1)


# --- files and JSON


def test_predictions_csv(tmp_path: Path) -> None:
    folder = tmp_path / "=val"
    draw_labelled(folder, {"ant": 2, "bee": 1})
    _, rows, _ = run(folder, build_tiny_model(CLASSES))
    write_predictions_csv(tmp_path / "out.csv", rows)
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == [str(row.path) for row in rows]
    assert [row["label"] for row in table] == ["ant", "ant", "bee"]
    assert [row["prediction"] for row in table] == [row.prediction for row in rows]
    assert [float(row["probability"]) for row in table] == [row.probability for row in rows]
    assert [row["correct"] == "1" for row in table] == [row.correct for row in rows]


def test_json_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    draw_labelled(tmp_path, COUNTS)
    bad = break_image(tmp_path / "ant" / "bad.png")
    result, _, _ = run(tmp_path, build_tiny_model(CLASSES))
    data = json.loads(json.dumps(evaluation_json(result), allow_nan=False))
    assert data["schema"] == 1
    for key in ("top1", "top5", "macro_f1", "loss", "count"):
        assert data[key] == getattr(result, key)
    assert data["classes"] == list(CLASSES)
    assert [row["class"] for row in data["per_class"]] == list(CLASSES)
    assert list(data["per_class"][0]) == [
        *("class", "precision", "recall", "f1", "support"),
        *("precision_interval", "recall_interval"),
    ]
    assert np.array(data["confusion_matrix"]).shape == (6, 6)
    assert [each["path"] for each in data["failures"]] == [str(bad)]


def test_many_missing_classes_are_counted_not_listed(tmp_path: Path) -> None:
    paths = PackedPaths(tmp_path, [draw_image(tmp_path / "a.png").name])
    classes = tuple(f"class {index}" for index in range(1000))
    (message,) = describe_match(LabelledImages(tmp_path, classes, paths, (3,)))
    assert "999 of the model's 1000 classes" in message
    assert len(message) < 200


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_a_model_on_cuda_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr("vtrain.results.evaluate.find_model_device", lambda _: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader = Mock(side_effect=InterruptedError)
    monkeypatch.setattr("vtrain.results.evaluate.build_eval_loader", loader)
    path = draw_image(tmp_path / "ant" / "a.png")
    with pytest.raises(InterruptedError):
        evaluate(path.parent.parent, build_tiny_model(CLASSES), reporter=SILENT)
    assert loader.call_args.kwargs["pin_memory"] is (device == "cuda")
