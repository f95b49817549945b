"""Tiny whole runs in the working directory, and what it means that two are the same."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import draw_labelled
from vtrain.checkpoint import load_checkpoint
from vtrain.config import LoadedConfig, load_config
from vtrain.console import Console
from vtrain.errors import InterruptedRunError, StoppedError
from vtrain.fit import Resume, fit
from vtrain.fit_run import FitRun
from vtrain.records import FitResult
from vtrain.tensor_files import load_tensors

TIMES = ("images_per_second", "data_wait", "seconds")
CONFIG = """
model: {backbone: simple_cnn, weights: none, options: {width_mult: 0.25}}
freeze: none
data: {train: images/train, val: images/val, image_size: 32, batch_size: 4, workers: 0}
optim: {lr: 3e-3, backbone_lr: 3e-3}
train: {epochs: 2, device: cpu, precision: fp32, report: false}
"""


def draw_tiny_data() -> None:
    """Write 18 training and 6 validation images of three classes, and `tiny.yaml`, here."""
    draw_labelled(Path("images/train"), {"ant": 6, "bee": 7, "cow": 5})
    draw_labelled(Path("images/val"), {"ant": 2, "bee": 2, "cow": 2})
    Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")


def load(*overrides: str) -> LoadedConfig:
    return load_config(Path("tiny.yaml"), overrides)


def run(*overrides: str, resume: Resume = False) -> FitResult:
    result = fit(load(*overrides), resume=resume, console=Console(quiet=True))
    assert result is not None
    return result


def run_until(
    monkeypatch: pytest.MonkeyPatch, step: int, *overrides: str, number: int = signal.SIGTERM
) -> None:
    """Train and get a real signal during optimiser step `step`."""
    original = FitRun._on_step

    def interrupt(self: FitRun, report: Any, bar: Any) -> None:
        if self.state.step == step:
            os.kill(os.getpid(), number)
        original(self, report, bar)

    with monkeypatch.context() as patch:
        patch.setattr(FitRun, "_on_step", interrupt)
        expected = InterruptedRunError if number == signal.SIGINT else StoppedError
        with pytest.raises(expected, match=f"stopped at step {step}, saved in"):
            run(*overrides)


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def read_model(run_dir: Path) -> dict[str, Tensor]:
    return load_tensors(run_dir / "model.safetensors")[0]


def assert_same_run(one: Path, other: Path) -> None:
    """Same bits in the best model and the last one, same metrics, same predictions."""
    assert read_rows(one) == read_rows(other)
    for before, after in (
        (read_model(one), read_model(other)),
        (load_checkpoint(one / "last.ckpt").model, load_checkpoint(other / "last.ckpt").model),
    ):
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name
    for name in ("predictions-val.csv", "data.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
