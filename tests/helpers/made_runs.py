"""Run folders as `fit` leaves them, with answers that a test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtrain.runs.evaluation_files import ImagePrediction, write_predictions_csv
from vtrain.system.json_csv import write_json

CONFIG = "model: {{backbone: simple_cnn, weights: none}}\nfreeze: none\nseed: {seed}\n{more}"
DATA = "data: {train: images/train, val: images/val}\n"


def answer(name: str, label: str, prediction: str, probability: float = 0.9) -> ImagePrediction:
    """What a model says of `images/val/<label>/<name>`."""
    path = Path("images/val") / label / name
    return ImagePrediction(path, label, prediction, probability, label == prediction)


def answers(labels: Sequence[str], right: str) -> list[ImagePrediction]:
    """Images of the labels in turn; a model has those right whose letter in `right` is `x`."""
    rows = []
    for index, mark in enumerate(right):
        label = labels[index % len(labels)]
        wrong = labels[(index + 1) % len(labels)]
        rows.append(answer(f"{index:03}.jpg", label, label if mark == "x" else wrong))
    return rows


def write_run(
    run_dir: Path,
    rows: Sequence[ImagePrediction] | None,
    *,
    split: str = "val",
    classes: Sequence[str] = ("ant", "bee"),
    root: str = "images/val",
    digest: str = "v",
    train_digest: str = "t",
    seed: int = 0,
    curve: Sequence[float] = (0.5, 0.75),
    finished: bool = True,
) -> Path:
    """Write what `compare` reads of a run; `rows` None leaves the predictions out."""
    run_dir.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(seed=seed, more=DATA)
    (run_dir / "config.resolved.yaml").write_text(config, encoding="utf-8")
    data: dict[str, Any] = {"schema": 1, "classes": list(classes), "bad_images": []}
    data["train"] = {"root": "images/train", "count": 9, "sha256": train_digest}
    for name in {"val", split}:
        data[name] = {"root": root, "count": len(rows or ()), "sha256": digest}
    write_json(run_dir / "data.json", data)
    write_json(run_dir / "env.json", {"vtrain": "0"})
    lines = [json.dumps(_epoch(number, top1)) for number, top1 in enumerate(curve, 1)]
    (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if rows is not None:
        write_predictions_csv(run_dir / f"predictions-{split}.csv", rows)
    if finished:
        result = {"best_epoch": 1, "epochs": len(curve), "planned_epochs": len(curve)}
        scores = {"val_top1": 0.5, "val_macro_f1": 0.5, "test_top1": None, "seconds": 61.0}
        write_json(run_dir / "result.json", {"schema": 1, **result, **scores})
    return run_dir


def _epoch(number: int, top1: float) -> dict[str, Any]:
    names = ("lr", "train_loss", "val_loss", "images_per_second", "data_wait", "seconds")
    plain = dict.fromkeys(names, 1.0)
    scores = {"val_top1": top1, "val_macro_f1": top1}
    return {"phase": "finetune", "epoch": number, "step": number, **plain, **scores}
