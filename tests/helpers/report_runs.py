"""Run folders written by hand: everything that a report can meet, without any training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.helpers.tiny import draw_image
from vtrain.config.dump import dump_config
from vtrain.config.keys import FitConfig
from vtrain.runs.folder import FitResult, save_result
from vtrain.runs.metric_log import EpochMetrics, write_metrics
from vtrain.system.json_csv import to_plain, write_csv, write_json

HEADER = (
    "path", "label", "prediction", "probability", "correct", "label_probability", "second",
    "second_probability", "distance",
)  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    'a" onload="x',
    "{{ 7 * 7 }}",
    "| a | `b` [c](http://d) *e*",
    "x" * 250,
    "tab\tand\nline\x1b[31m\u202e",
)


def write_run(
    run_dir: Path,
    classes: Sequence[str],
    *,
    val: int = 60,
    epochs: int = 6,
    pictures: int = 3,
    never: int | None = None,
    seed: int = 0,
) -> Path:
    """A finished run with `val` validation images, of which some `pictures` files exist.

    The class `never` is not predicted for any image.
    """
    run_dir.mkdir(parents=True)
    random = np.random.default_rng(seed)
    labels = np.arange(val) % len(classes)
    probabilities = random.dirichlet(np.full(len(classes), min(0.3, 2 / len(classes))), val)
    probabilities[np.arange(val), labels] += random.uniform(0.1, 1.5, val)
    if never is not None:
        probabilities[:, never] = 0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    _write_answers(run_dir, classes, labels, probabilities, pictures)
    _write_evaluation(run_dir, classes, labels, probabilities)
    _write_facts(run_dir, classes, labels, epochs)
    features = random.standard_normal((val, 16)) + 3 * np.eye(max(len(classes), 16))[labels, :16]
    tensors: dict[str, Any] = {"features": features.astype(np.float16), "rows": np.arange(val)}
    save_file(tensors, run_dir / "features-val.safetensors")
    return run_dir


def _write_answers(
    run_dir: Path, classes: Sequence[str], labels: Any, probabilities: Any, pictures: int
) -> None:
    rows = []
    for index, (label, row) in enumerate(zip(labels.tolist(), probabilities, strict=True)):
        first, second = (int(each) for each in np.argsort(-row, kind="stable")[:2])
        path = run_dir.parent / f"images <b>/{index}.jpg"
        if index < pictures:
            draw_image(path, seed=index)
        rows.append(
            (path, classes[label], classes[first], row[first], int(label == first), row[label],
             classes[second], row[second], index / 40)
        )  # fmt: skip
    write_csv(run_dir / "predictions-val.csv", HEADER, rows)


def _write_evaluation(
    run_dir: Path, classes: Sequence[str], labels: Any, probabilities: Any
) -> None:
    predicted = probabilities.argmax(axis=1)
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (labels, predicted), 1)
    right, support, chosen = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    recall, precision = right / np.maximum(support, 1), right / np.maximum(chosen, 1)
    f1 = 2 * right / np.maximum(support + chosen, 1)
    per_class = [
        {
            "class": name, "precision": precision[i], "recall": recall[i], "f1": f1[i],
            "support": int(support[i]), "precision_interval": [precision[i] / 2, 1.0],
            "recall_interval": [recall[i] / 2, 1.0],
        }
        for i, name in enumerate(classes)
    ]  # fmt: skip
    bins = [
        {"low": i / 10, "high": (i + 1) / 10, "count": i, "confidence": i / 10 + 0.05,
         "accuracy": i / 10 if i else None}
        for i in range(10)
    ]  # fmt: skip
    top1 = float((predicted == labels).mean())
    content = {
        "schema": 1, "top1": top1, "top1_interval": [top1 - 0.05, min(top1 + 0.05, 1)],
        "top5": 1.0, "macro_f1": float(f1.mean()), "macro_f1_interval": [0.5, 0.75],
        "weighted_f1": 0.5, "loss": 0.4, "count": len(labels), "per_class": per_class,
        "confusion_matrix": matrix.tolist(), "classes": list(classes), "failures": [],
        "calibration": {
            "temperature": 1.25, "ece": 0.02, "ece_raw": 0.12, "ece_held_out": 0.03,
            "bins": bins, "bins_raw": bins,
        },
        "warnings": ["a warning of the evaluation"],
    }  # fmt: skip
    write_json(run_dir / "evaluation-val.json", json.loads(json.dumps(content, default=float)))


def _write_facts(run_dir: Path, classes: Sequence[str], labels: Any, epochs: int) -> None:
    config = {
        "model": {"backbone": "simple_cnn", "weights": "none"},
        "freeze": "none",
        "data": {"train": "images/train", "val": "images/val"},
        "train": {"epochs": epochs},
    }
    text = dump_config(FitConfig.model_validate(config))
    (run_dir / "config.resolved.yaml").write_text(text)
    write_metrics(run_dir, [to_plain(row) for row in build_epochs(epochs)])
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    val = _describe_split("images/val", classes, counts)
    train = _describe_split("images/train", classes, [4 * each for each in counts])
    write_json(
        run_dir / "data.json",
        {"schema": 1, "classes": list(classes), "train": train, "val": val, "bad_images": []},
    )
    stages = [
        {"name": "stem", "parameters": 900, "trainable": 0, "learning_rates": None,
         "batch_norm": "frozen"},
        {"name": "head", "parameters": 5130, "trainable": 5130, "learning_rates": [1e-3, 1e-3],
         "batch_norm": "-"},
    ]  # fmt: skip
    phases = [{"name": "probe", "epochs": 2, "stages": stages}]
    write_json(run_dir / "plan.json", {"schema": 1, "phases": phases})
    choices = {"device": "cpu", "precision": "fp32"}
    write_json(run_dir / "env.json", {"python": "3.11", "devices": ["cpu"], "choices": choices})
    save_result(
        run_dir, FitResult(run_dir, max(epochs - 1, 1), 0.8, 0.79, None, epochs, epochs, 12.5)
    )


def _describe_split(root: str, classes: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    return {
        "root": root,
        "count": sum(counts),
        "per_class": dict(zip(classes, counts, strict=True)),
        "sha256": "0" * 64,
        "skipped": [],
    }


def build_epochs(count: int) -> list[EpochMetrics]:
    """A course of training in two phases that gets better."""
    return [
        EpochMetrics(
            "probe" if epoch <= 2 else "finetune", epoch, 10 * epoch, 1e-3 / epoch,
            2.0 / epoch, 1.8 / epoch, 1 - 0.5 / epoch, 1 - 0.6 / epoch, 250.0, 0.1, 1.5,
        )
        for epoch in range(1, count + 1)
    ]  # fmt: skip


def change_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Replace values of a JSON object in a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
