"""A folder with drawn images and a finished run of a tiny model, fresh for each test."""

import shutil
from pathlib import Path

import pytest

import vtrain.cli
from tests.cli.program import Program, TerminalProgram
from tests.tiny import draw_labelled

CONFIG = """
model: {backbone: simple_cnn, weights: none, options: {width_mult: 0.25}}
freeze: none
data: {train: images/train, val: images/val, image_size: 32, batch_size: 4, workers: 0}
optim: {lr: 3e-3, backbone_lr: 3e-3}
train: {epochs: 2, device: cpu, precision: fp32}
"""


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs commands in this process."""
    return Program(capsys)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> TerminalProgram:
    """Runs commands in this process, on a pseudo-terminal."""
    return TerminalProgram(monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 training and 6 validation images of three classes, `tiny.yaml`, and `runs/tiny-001`."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        draw_labelled(Path("images/train"), {"ant": 6, "bee": 7, "cow": 5})
        draw_labelled(Path("images/val"), {"ant": 2, "bee": 2, "cow": 2})
        Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")
        assert vtrain.cli.main(["fit", "tiny.yaml", "-q"]) == 0
    return root


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained folder as the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
