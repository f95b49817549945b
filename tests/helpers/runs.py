"""Tiny whole runs in the working directory, and what it means that two are the same."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import draw_labelled
from vtrain.config.load import LoadedConfig
from vtrain.errors import InterruptedRunError, StoppedError
from vtrain.runs.checkpoint import load_checkpoint
from vtrain.runs.fit import Resume, fit
from vtrain.runs.folder import FitResult
from vtrain.runs.settings import load_settings
from vtrain.system.reporter import SILENT, Interruptible, Progress, Reporter
from vtrain.system.tensor_files import load_tensors
from vtrain.system.terminal import Console

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
    draw_labelled(Path("images/val"), {"ant": 2, "bee": 2, "cow": 2}, seed=500)
    Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")


def load(*overrides: str) -> LoadedConfig:
    return load_settings(Path("tiny.yaml"), overrides)


class Watcher(Console):
    """A reporter that remembers what was said, and acts at points of a run.

    `on_step` gets the number of steps taken so far here, as each is reported; `on_epoch` the number
    of epochs. `on_progress` gets the label of every other progress before it counts on.
    """

    def __init__(
        self,
        *,
        on_step: Callable[[int], object] | None = None,
        on_epoch: Callable[[int], object] | None = None,
        on_progress: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(quiet=True)
        self.on_step, self.on_epoch, self.on_progress = on_step, on_epoch, on_progress
        self.steps = self.epochs = 0
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    def say_fitting(self, facts: Sequence[str], end: str = "") -> None:
        self.epochs += 1
        if self.on_epoch is not None:
            self.on_epoch(self.epochs)

    def _check(self, label: str) -> None:
        if not label.startswith("epoch "):
            if self.on_progress is not None:
                self.on_progress(label)
            return
        self.steps += 1
        if self.on_step is not None:
            self.on_step(self.steps)

    @contextmanager
    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> Iterator[Progress]:
        with Interruptible(SILENT, lambda: self._check(label)).progress(total, label) as progress:
            yield progress


def run(*overrides: str, resume: Resume = False, reporter: Reporter | None = None) -> FitResult:
    return fit(load(*overrides), resume=resume, reporter=reporter or Console(quiet=True))


def run_until(step: int, *overrides: str, number: int = signal.SIGTERM) -> None:
    """Train and get a real signal during optimizer step `step`."""

    def interrupt(steps: int) -> None:
        if steps == step:
            os.kill(os.getpid(), number)

    expected = InterruptedRunError if number == signal.SIGINT else StoppedError
    with pytest.raises(expected, match=f"stopped at step {step}, saved in"):
        run(*overrides, reporter=Watcher(on_step=interrupt))


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
        assert _read_text(one / name) == _read_text(other / name)


def _read_text(path: Path) -> str:
    """A file of a run without the folder that its images lie in."""
    data = json.loads((path.parent / "data.json").read_text())
    folder = os.path.commonpath([data["train"]["root"], data["val"]["root"]])
    return path.read_text().replace(folder, "images")
