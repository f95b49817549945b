"""A folder with drawn images and a finished run of a tiny model, fresh for each test."""

import shutil
from pathlib import Path

import pytest

import vtrain.cli
from tests.helpers.program import Program, TerminalProgram
from tests.helpers.runs import draw_tiny_data


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
        draw_tiny_data()
        assert vtrain.cli.main(["fit", "tiny.yaml", "-q"]) == 0
    return root


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained folder as the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("runs/*/*.*"):
        if path.suffix in (".yaml", ".json", ".csv"):  # as if it had been trained here
            path.write_text(path.read_text().replace(str(trained), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
