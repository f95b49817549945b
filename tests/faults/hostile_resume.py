"""Checkpoints that are well formed, but of no run that could be resumed where they lie."""

import atexit
import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import vtrain.cli
from tests.helpers.forking import fork, wait
from tests.helpers.tiny import draw_labelled
from vtrain.errors import ExitCode
from vtrain.system.torch_files import load_torch, save_torch

CONFIG = """
run_dir: run
model: {backbone: simple_cnn, weights: none, options: {width_mult: 0.1}}
freeze: none
data: {train: images, val: others, image_size: 32, batch_size: 4, workers: 0}
optim: {lr: 3e-3, backbone_lr: 3e-3}
train: {epochs: 1, device: cpu, precision: fp32, ema: 0.9}
"""
Change = Callable[[dict[str, Any]], None]


def resumed_runs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What `vtrain fit --resume` is given, and refuses."""
    for name, change in CHANGES.items():
        yield name, partial(resume_changed, change)


@cache
def train() -> Path:
    """A folder with images, a config and a finished run of one epoch; trained in a child."""
    root = Path(tempfile.mkdtemp(prefix="vtrain-resume-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    draw_labelled(root / "images", {"ant": 4, "bee": 4})
    draw_labelled(root / "others", {"ant": 4, "bee": 4}, seed=500)
    (root / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    assert wait(fork(partial(run_whole, root))) == 0
    return root


def run_whole(folder: Path) -> None:
    """Train."""
    assert run(folder, "fit", "tiny.yaml", "-q") == 0


def run(folder: Path, *arguments: str) -> int:
    """The exit code of a command in a folder, of a child so that nothing of it stays."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(make_stream()):
        return vtrain.cli.main(arguments)


def make_stream() -> io.TextIOWrapper:
    """A stream such as `sys.stdout`, with bytes below its text."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def resume_changed(change: Change, folder: Path) -> None:
    """Resume for one more epoch from a changed checkpoint: exit 4, with one line that says why."""
    shutil.copytree(train(), folder / "copy")
    path = folder / "copy" / "run" / "last.ckpt"
    content = load_torch(path)
    change(content)
    save_torch(path, content)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir() if each != path}
    with contextlib.redirect_stderr(make_stream()) as stream:
        code = run(folder / "copy", "fit", "tiny.yaml", "--resume", "train.epochs=2")
        stream.seek(0)
        said = stream.read()
    assert code == ExitCode.MODEL, f"{code}: {said[-400:]}"
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    kept = path.parent / "model.safetensors"
    assert kept.read_bytes() == before[kept.name]


def change_first_state(value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["optimizer"]["state"][0]["exp_avg"] = value

    return change


def change_group(name: str, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["optimizer"]["param_groups"][0][name] = value

    return change


def change_state(**values: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["state"] |= values

    return change


def drop_group(content: dict[str, Any]) -> None:
    content["optimizer"]["param_groups"].pop()


def add_state(content: dict[str, Any]) -> None:
    content["optimizer"]["state"][999] = {"exp_avg": torch.ones(3)}


def reshape_model(content: dict[str, Any]) -> None:
    content["model"] = {name: each[..., None] for name, each in content["model"].items()}


def drop_average(content: dict[str, Any]) -> None:
    content["ema"] = None


def reshape_average(content: dict[str, Any]) -> None:
    content["ema"] = {name: each[..., None] for name, each in content["ema"].items()}


CHANGES: dict[str, Change] = {
    "moments of another shape": change_first_state(torch.ones(7)),
    "moments that are a number": change_first_state("text"),
    "text as momentum": change_group("betas", "text"),
    "text as weight decay": change_group("weight_decay", "text"),
    "text as learning rates": change_group("peak_lrs", "text"),
    "a group too few": drop_group,
    "state of an unknown parameter": add_state,
    "tensors of another shape": reshape_model,
    "an average of another shape": reshape_average,
    "no average": drop_average,
    "a batch beyond the epoch": change_state(batch=10**6, image_count=5),
    "a batch without images": change_state(batch=1, image_count=0),
    "a history of other columns": change_state(history=[{"epoch": 1}]),
}
