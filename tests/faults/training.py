"""Runs that are killed or stopped, and the same ones undisturbed."""

import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.faults.command import Command
from tests.faults.processes import make_shared_folder, run_to_end
from tests.helpers.runs import read_rows
from tests.helpers.tiny import draw_labelled
from vtrain.runs.checkpoint import Checkpoint, load_checkpoint
from vtrain.system.tensor_files import load_tensors

CONFIG = """
model: {{backbone: simple_cnn, weights: {weights}, options: {{width_mult: 0.25}}, head: {head}}}
freeze: {freeze}
data: {{train: {images}/train, val: {images}/val, image_size: 32, batch_size: 4{data}}}
optim: {{lr: 3e-3, backbone_lr: 3e-3}}
train: {{epochs: 4, device: cpu{train}}}
"""
DROPOUT = "{type: mlp, hidden: 8, dropout: 0.3}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained: parts of a config."""

    name: str
    freeze: str = "none"  # other policies start from the weights of the first recipe
    head: str = "linear"
    data: str = ""
    train: str = ""


RECIPES = (
    Recipe("plain", data=", workers: 0", train=", precision: fp32"),
    Recipe(
        "workers, bf16, dropout, EMA",
        head=DROPOUT,
        data=", workers: 2",
        train=", precision: bf16, ema: 0.9, save_every_steps: 2",
    ),
    Recipe(
        "accumulation, mixup, erasing",
        data=", workers: 0, mixup: 0.4, erasing: 0.3, augment: trivial",
        train=", precision: fp32, accumulate: 2, save_every_steps: 1",
    ),
    Recipe(
        "phases, stored features",
        freeze="lp-ft",
        head=DROPOUT,
        data=", workers: 0",
        train=", precision: fp32, save_every_steps: 3",
    ),
    Recipe(
        "gradual, no cache, workers, sampler",
        freeze="gradual",
        data=", workers: 1, balance: sampler",
        train=", precision: bf16, cache: 'off', clip_norm: null",
    ),
    Recipe(
        "linear probe on stored views",
        freeze="head",
        data=", workers: 0, augment: light",
        train=", precision: fp32, cache_views: 3, save_every_steps: 2, epochs: 6",
    ),
)


@cache
def images() -> Path:
    """13 training and 6 validation images of three classes."""
    folder = make_shared_folder("images")
    draw_labelled(folder / "train", {"ant": 4, "bee": 5, "cow": 4})
    draw_labelled(folder / "val", {"ant": 2, "bee": 2, "cow": 2})
    return folder


def build_fit(recipe: Recipe, folder: Path, *overrides: str, **more: Any) -> Command:
    """`vtrain fit` of a recipe into `folder/run`, going on with what is there."""
    weights = "none" if recipe.freeze == "none" else undisturbed(RECIPES[0])[0]
    text = CONFIG.format(
        weights=weights,
        head=recipe.head,
        freeze=recipe.freeze,
        images=images(),
        data=recipe.data,
        train=recipe.train.replace(", epochs: 6", ""),
    )
    if "epochs: 6" in recipe.train:
        text = text.replace("epochs: 4", "epochs: 6")
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    environ = {"VTRAIN_CACHE": str(folder / "cache"), **more.pop("environ", {})}
    arguments = ("fit", "c.yaml", "run_dir=run", "--resume", "auto", *overrides)
    return Command(arguments, folder, environ, **more)


@cache
def undisturbed(recipe: Recipe) -> tuple[Path, float]:
    """The folder of a run that nothing happened to, and the seconds it took."""
    folder = make_shared_folder("undisturbed")
    started = time.perf_counter()
    code, text = run_to_end(build_fit(recipe, folder))
    assert code == 0, text
    return folder / "run", time.perf_counter() - started


def require_same(recipe: Recipe, run: Path) -> None:
    """Raise AssertionError unless a run came to what the undisturbed one did, to the bit."""
    expected, _ = undisturbed(recipe)
    assert read_rows(run) == read_rows(expected), "metrics differ"
    for name in ("model", "ema", "optimizer"):
        _require_equal(name, _part(run, name), _part(expected, name))
    one, other = (load_tensors(each / "model.safetensors")[0] for each in (run, expected))
    _require_equal("best model", one, other)
    for name in ("predictions-val.csv", "data.json"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), f"{name} differs"
    results = [json.loads((each / "result.json").read_text()) for each in (run, expected)]
    for key in ("best_epoch", "val_top1", "val_macro_f1", "epochs"):
        assert results[0][key] == results[1][key], f"{key} differs"
    left = [path.name for path in run.iterdir() if path.name.startswith(".")]
    assert not left, f"left over: {left}"
    assert not (run / "previous.ckpt").exists()


def _part(run: Path, name: str) -> Any:
    checkpoint: Checkpoint = load_checkpoint(run / "last.ckpt")
    return getattr(checkpoint, name)


def _require_equal(place: str, one: Any, other: Any) -> None:
    """Compare nested tables, lists and tensors bit by bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), f"{place} differs"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), f"{place}: other names"
        for key, value in one.items():
            _require_equal(f"{place} {key}", value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other), f"{place}: another length"
        for index, pair in enumerate(zip(one, other, strict=True)):
            _require_equal(f"{place} {index}", *pair)
    else:
        assert one == other, f"{place} differs"
