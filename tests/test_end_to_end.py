"""The whole way of a user, as real processes: init, fit, evaluate, predict, embed."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vtrain.cli
from tests.helpers.tiny import draw_labelled
from vtrain.system.reporter import SILENT

SOURCE = Path(vtrain.cli.__file__).parents[1]
COUNTS = {"ant": 6, "bee": 7, "cow": 5}
VAL_COUNTS = {"ant": 3, "bee": 2, "cow": 4}


def run(*arguments: str) -> str:
    """Run vtrain as a process that must succeed; its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "vtrain", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_from_a_folder_of_images_to_predictions_and_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_labelled(Path("photos/train"), COUNTS)
    draw_labelled(Path("photos/val"), VAL_COUNTS)

    assert run("init", "photos", "--backbone", "simple_cnn") == "photos.yaml\n"
    out = run("fit", "photos.yaml", "train.epochs=3", "train.device=cpu", "data.batch_size=8")
    assert out == "runs/photos-001\n"
    result = json.loads(Path("runs/photos-001/result.json").read_text())
    written = read_csv(Path("runs/photos-001/predictions-val.csv"))

    # Without -m: the newest finished run. The model file alone is enough, wherever it lies.
    evaluated = json.loads(run("evaluate", "photos/val", "--json"))
    model = Path("elsewhere/flowers.safetensors")
    model.parent.mkdir()
    Path("runs/photos-001/model.safetensors").rename(model)
    # The batches of the run, for the same bits: other batches round float32 in another way.
    predicted = run("predict", "photos/val", "-m", str(model), "--json", "--batch-size", "8")
    rows = [json.loads(line) for line in predicted.splitlines()]

    # Predict, evaluate and the run itself agree on every image.
    assert evaluated["count"] == len(rows) == len(written) == 9
    assert evaluated["top1"] == result["val_top1"]
    correct = 0
    matrix = np.zeros((3, 3), int)
    for row, line in zip(rows, written, strict=True):
        best = row["predictions"][0]
        assert (str(Path(row["path"]).absolute()), best["class"]) == (
            line["path"],
            line["prediction"],
        )
        assert best["probability"] == float(line["probability"])
        assert Path(row["path"]).parent.name == line["label"]
        assert int(line["correct"]) == (line["label"] == best["class"])
        correct += int(line["correct"])
        classes = evaluated["classes"]
        matrix[classes.index(line["label"]), classes.index(best["class"])] += 1
    assert correct / 9 == pytest.approx(result["val_top1"])
    assert matrix.tolist() == evaluated["confusion_matrix"]
    assert {row["class"]: row["support"] for row in evaluated["per_class"]} == VAL_COUNTS

    # The features of the last layer lead to the same classes.
    run("embed", "photos/val", "logits.npy", "-m", str(model), "--layer", "logits")
    logits = np.load("logits.npy")
    index = read_csv(Path("logits.csv"))
    assert [line["path"] for line in index] == [row["path"] for row in rows]
    for row, values in zip(rows, logits, strict=True):
        assert evaluated["classes"][int(values.argmax())] == row["predictions"][0]["class"]


def test_evaluation_rows_equal_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Target E4, with images of many sizes and kinds and another batch than in training."""
    import torch

    from vtrain.results.evaluate import evaluate
    from vtrain.results.inputs import PredictInput
    from vtrain.results.predict import predict
    from vtrain.runs.model_argument import load_model

    monkeypatch.chdir(tmp_path)
    draw_labelled(Path("photos/train"), COUNTS)
    draw_labelled(Path("photos/val"), {"ant": 13, "bee": 11, "cow": 12})
    Path("c.yaml").write_text(
        "model: {backbone: separable_cnn, weights: none}\nfreeze: none\n"
        "data: {train: photos/train, val: photos/val, image_size: 48, batch_size: 5, workers: 0}\n"
        "train: {epochs: 1, device: cpu}\n"
    )
    assert vtrain.cli.main(["fit", "c.yaml", "-q", "run_dir=run"]) == 0
    model = load_model("run", device=torch.device("cpu"), reporter=SILENT)
    _, evaluated = evaluate(Path("photos/val"), model, batch_size=5, workers=0, reporter=SILENT)
    written = read_csv(Path("run/predictions-val.csv"))
    inputs = [PredictInput(str(row.path)) for row in evaluated]
    predicted = predict(inputs, model, top_k=1, batch_size=5, workers=0)
    for row, line, answer in zip(evaluated, written, predicted, strict=True):
        (best,) = answer.predictions
        assert answer.path == str(row.path) == str(Path(line["path"]).relative_to(Path.cwd()))
        assert best.name == row.prediction == line["prediction"]
        assert best.probability == row.probability == float(line["probability"])
