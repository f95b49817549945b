"""What every command says of the images in one folder."""

import csv
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

import vtrain.cli
from tests.helpers.tiny import draw_image
from vtrain.errors import ExitCode
from vtrain.system.text import printable

CLASSES = ("ant", "bee")
GOOD_OF_EACH = 3
CONFIG = """
run_dir: {root}/run
model: {{backbone: simple_cnn, weights: none, options: {{width_mult: 0.25}}}}
freeze: none
data: {{train: {images}, val: {val}, image_size: 32, batch_size: 16, workers: 0}}
train: {{epochs: 1, device: cpu, precision: fp32, cache: off}}
"""


@dataclass(frozen=True, slots=True)
class Survey:
    """Of each command, the reasons of the images that it met by their places, None for good ones.

    `unlisted` are the files that no command takes for images, and why, as the run's record has it.
    """

    commands: dict[str, dict[str, str | None]]
    unlisted: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Done:
    code: int
    out: bytes
    err: str


def survey(root: Path, fill: Callable[[Path, str], None]) -> Survey:
    """Train on a folder of images, then let every command read them.

    Args:
        root: an empty folder.
        fill: puts images into a class folder; it gets that and the name of the class.
    """
    images, val = root / "images", root / "val"
    for number, name in enumerate(CLASSES):
        for index in range(GOOD_OF_EACH):
            draw_image(images / name / f"0-good-{index}.png", seed=10 * number + index)
        draw_image(val / name / "0.png", seed=10 * number)
        fill(images / name, name)
    config = root / "kinds.yaml"
    config.write_text(CONFIG.format(root=root, images=images, val=val), encoding="utf-8")
    with mock.patch.dict(os.environ, {"VTRAIN_CACHE": str(root / "cache")}):
        refused = _list_refused(_run("fit", config))
        skipping = _run("fit", config, "data.on_bad_image=skip")
        assert skipping.code == 0, skipping.err
        record = json.loads((root / "run/data.json").read_text(encoding="utf-8"))
        bad = {each["path"]: each["reason"] for each in record["bad_images"]}
        commands = {
            "predict --json": _predict_json(images, root),
            "predict --csv": _predict_csv(images, root),
            "embed": _embed(images, root),
            "evaluate": {},
            "fit": {},
            "fit, skipping": {},
        }
        paths = list(commands["predict --json"])
        commands["evaluate"] = dict.fromkeys(paths) | _evaluate(images, root, len(paths))
        commands["fit"] = {path: refused.pop(_as_shown(path), None) for path in paths}
        commands["fit, skipping"] = dict.fromkeys(paths) | bad
        assert not refused, refused
        assert record["train"]["count"] == len(paths) - len(bad)
        _init(images, root, len(paths))
    start = len(f"{images}/")
    below = {
        name: {path[start:]: reason for path, reason in reasons.items()}
        for name, reasons in commands.items()
    }
    unlisted = {each["path"][start:]: each["reason"] for each in record["train"]["skipped"]}
    return Survey(below, unlisted)


def _run(*arguments: object) -> _Done:
    """Run a command in this process, every warning an error."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        mock.patch.object(sys, "stdout", io.TextIOWrapper(out, "utf-8", write_through=True)),
        mock.patch.object(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        code = vtrain.cli.main([str(each) for each in arguments])
        return _Done(code, out.getvalue(), err.getvalue().decode())


def _list_refused(done: _Done) -> dict[str, str]:
    """Paths, as they are shown, and reasons in the error of a `fit`."""
    assert done.code == ExitCode.DATA, done.err
    assert done.out == b""
    lines = [line[2:] for line in done.err.splitlines() if line.startswith("  ")]
    return {path: reason for path, _, reason in (line.partition(": ") for line in lines)}


def _as_shown(path: str) -> str:
    return printable(path)


def _predict_json(images: Path, root: Path) -> dict[str, str | None]:
    done = _run("predict", images, "--json", "-m", root / "run")
    answers = [json.loads(line) for line in done.out.splitlines()]
    for answer in answers:
        assert bool(answer["predictions"]) == (answer["error"] is None), answer
    assert done.code == (ExitCode.DATA if any(each["error"] for each in answers) else 0), done.err
    return {answer["path"]: answer["error"] for answer in answers}


def _predict_csv(images: Path, root: Path) -> dict[str, str | None]:
    done = _run("predict", images, "--csv", "-m", root / "run")
    text = io.StringIO(os.fsdecode(done.out), newline="")
    return {row["path"]: row["error"] or None for row in csv.DictReader(text)}


def _embed(images: Path, root: Path) -> dict[str, str | None]:
    _run("embed", images, root / "out.npy", "-m", root / "run")
    with (root / "out.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    reasons = {
        row["path"]: None if row["status"] == "ok" else row["status"].removeprefix("error: ")
        for row in rows
    }
    features = np.load(root / "out.npy")
    assert np.isnan(features).any(axis=1).tolist() == [bool(each) for each in reasons.values()]
    return reasons


def _evaluate(images: Path, root: Path, count: int) -> dict[str, str | None]:
    done = _run("evaluate", images, "--json", "-m", root / "run")
    result = json.loads(done.out)
    failures = {each["path"]: each["error"] for each in result["failures"]}
    assert result["count"] == count - len(failures)
    return failures


def _init(images: Path, root: Path, count: int) -> None:
    """Counts files and reads some headers, and refuses none."""
    done = _run("init", images, "-o", root / "init.yaml")
    assert done.code == 0, done.err
    assert f"images: {count} train" in (root / "init.yaml").read_text(encoding="utf-8")


@contextmanager
def silence_required() -> Iterator[None]:
    """Neither a warning nor a word from Python or from a C library."""
    text = io.StringIO()
    with (
        tempfile.TemporaryFile() as file,
        redirect_stdout(text),
        redirect_stderr(text),
        # pytest has handlers for everything; elsewhere an error without one is printed.
        mock.patch.object(logging.getLogger("PIL"), "propagate", False),
    ):
        with _descriptors_to(file.fileno()), warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
        file.seek(0)
        spilled = file.read()[:200]
    assert not spilled, f"a library wrote {spilled!r}"
    assert not text.getvalue(), f"wrote {text.getvalue()!r:.200}"


@contextmanager
def _descriptors_to(target: int) -> Iterator[None]:
    """File descriptors 1 and 2, which C libraries write to."""
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(target, number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def same_in_all(survey: Survey, path: str) -> Sequence[str]:
    """The commands that do not say of an image what `predict --json` says."""
    first = survey.commands["predict --json"][path]
    return [
        f"{name}: {reasons.get(path, 'not met')!r}, not {first!r}"
        for name, reasons in survey.commands.items()
        if path not in reasons or reasons[path] != first
    ]
