"""Runs commands for fault suites: in this process, in no particular folder, without fixtures."""

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from PIL import Image

import vtrain.cli
from tests.helpers.program import Outcome
from tests.helpers.tiny import build_tiny_model
from vtrain.config.preprocessing import Preprocessing
from vtrain.models.model_file import ModelFile, save_model

IMAGE_SIZE = 32
TRAINING = f"""
model: {{backbone: simple_cnn, weights: none, options: {{width_mult: 0.25}}}}
freeze: none
data: {{DATA, image_size: {IMAGE_SIZE}, batch_size: 4, workers: 0, augment: none}}
train: {{epochs: 1, device: cpu, precision: fp32}}
"""


def run(folder: Path, *arguments: str | Path, stdin: bytes = b"") -> Outcome:
    """Run a command with a cache folder in `folder`; bytes that are no text become surrogates."""
    out, err = io.BytesIO(), io.BytesIO()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {"VTRAIN_CACHE": str(folder / "cache")}))
        stdout, stderr = _open_text(out, "strict"), _open_text(err, "backslashreplace")
        stack.enter_context(redirect_stdout(stdout))
        stack.enter_context(redirect_stderr(stderr))
        stack.enter_context(
            mock.patch.object(sys, "stdin", _open_text(io.BytesIO(stdin), "strict"))
        )
        code = vtrain.cli.main([str(argument) for argument in arguments])
        stdout.flush()
        stderr.flush()
    texts = (os.fsdecode(stream.getvalue()) for stream in (out, err))
    return Outcome(code, *texts)


def _open_text(stream: io.BytesIO, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8", errors=errors, newline="")


@cache
def draw_png(seed: int) -> bytes:
    """A small image in one colour, another for each seed."""
    stream = io.BytesIO()
    colour = (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256)
    Image.new("RGB", (24, 20), colour).save(stream, "PNG")
    return stream.getvalue()


def place(path: Path, content: bytes | None = None) -> Path:
    """Write a file, by default an image, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw_png(len(path.name)) if content is None else content)
    return path


def write_config(folder: Path, data: Mapping[str, str]) -> Path:
    """A config of a tiny training in `folder`, with `data` in its section `data`."""
    entries = ", ".join(f"{key}: {json.dumps(value)}" for key, value in data.items())
    path = folder / "config.yaml"
    run_dir = json.dumps(str(folder / "run"))
    path.write_text(f"run_dir: {run_dir}\n{TRAINING.replace('DATA', entries)}", encoding="utf-8")
    return path


def write_model(folder: Path, classes: Sequence[str]) -> Path:
    """A model file of untrained weights for `classes`."""
    path = folder / "model.safetensors"
    path.write_bytes(_pack_model(tuple(classes)))
    return path


@cache
def _pack_model(classes: tuple[str, ...]) -> bytes:
    model = build_tiny_model(classes)
    with TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        save_model(
            path,
            model.classifier.state_dict(),
            ModelFile(
                backbone="simple_cnn",
                options={},
                pretrained_input=False,
                head={"type": "linear"},
                classes=classes,
                preprocessing=Preprocessing(IMAGE_SIZE, IMAGE_SIZE),
                config={},
                metrics={},
                versions={},
            ),
        )
        return path.read_bytes()
