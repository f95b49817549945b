"""Training by several processes on the CPU: the result of one process, and how it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import vtrain.cli
from tests.helpers.program import environment
from tests.helpers.tiny import draw_labelled
from vtrain.runs.checkpoint import load_checkpoint
from vtrain.system.tensor_files import load_tensors

CONFIG = """
model: {backbone: simple_cnn, weights: none, options: {width_mult: 0.25}, batch_norm: frozen}
freeze: none
data: {train: images/train, val: images/val, image_size: 32, workers: 0}
optim: {optimizer: sgd, lr: 1e-2, backbone_lr: 1e-2}
train: {epochs: 4, device: cpu, precision: fp32, label_smoothing: 0}
"""
HEAD_ALONE = "freeze=[{pattern: head, lr_scale: 1.0}, {pattern: '*', lr_scale: null}]"
TIMEOUT = 120.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 24 training and 7 validation images of three classes."""
    monkeypatch.chdir(tmp_path)
    draw_labelled(Path("images/train"), {"ant": 8, "bee": 9, "cow": 7})
    draw_labelled(Path("images/val"), {"ant": 2, "bee": 3, "cow": 2}, seed=500)
    Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def start(processes: int, *arguments: str) -> subprocess.Popen[str]:
    """`torchrun -m vtrain fit tiny.yaml …`."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "vtrain", "fit", "tiny.yaml", *arguments],
        env=environment(VTRAIN_CACHE=os.environ["VTRAIN_CACHE"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(processes: int, *arguments: str) -> str:
    """Train by so many processes; what they said on stderr."""
    with start(processes, *arguments) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1, "the run folder, once"
    assert "warning" not in err.lower(), err
    return err


def run_alone(*arguments: str) -> None:
    assert vtrain.cli.main(["fit", "tiny.yaml", "-q", *arguments]) == 0


def read_metrics(run_dir: str) -> list[dict[str, Any]]:
    lines = Path(run_dir, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def largest_difference(one: str, other: str, name: str = "model.safetensors") -> float:
    first, second = (load_tensors(Path(run_dir, name))[0] for run_dir in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def assert_same_metrics(one: str, other: str, names: Sequence[str], *, rel: float = 0) -> None:
    for left, right in zip(read_metrics(one), read_metrics(other), strict=True):
        for name in names:
            assert left[name] == pytest.approx(right[name], rel=rel, abs=0), name


def test_two_processes_train_what_one_does() -> None:
    settings = ("model.head.dropout=0", "data.augment=light", "train.save_every_steps=2")
    said = run(2, "run_dir=two", *settings, "data.batch_size=2", "train.accumulate=2")
    run_alone("run_dir=one", *settings, "data.batch_size=4", "train.accumulate=2")
    assert said.count("phase finetune") == 1, "the first process alone talks"
    assert "2 processes" in said
    assert largest_difference("two", "one") < 1e-5
    assert_same_metrics("two", "one", ("epoch", "step", "val_top1", "val_macro_f1"))
    assert_same_metrics("two", "one", ("train_loss", "val_loss"), rel=1e-5)
    assert {path.name for path in Path("two").iterdir()} == {
        path.name for path in Path("one").iterdir()
    }
    labels = [
        Path(run_dir, "predictions-val.csv").read_text().splitlines() for run_dir in ("two", "one")
    ]
    assert len(labels[0]) == len(labels[1]) == 8, "no padding is counted"


@pytest.mark.soak
def test_three_processes_share_the_features() -> None:
    settings = (HEAD_ALONE, "data.augment=none", "model.head.dropout=0")
    run(3, "run_dir=three", *settings, "data.batch_size=2")
    run_alone("run_dir=one", *settings, "data.batch_size=6", "train.cache=off")
    assert largest_difference("three", "one") < 1e-5
    assert_same_metrics("three", "one", ("step", "val_top1"))
    cache = Path(os.environ["VTRAIN_CACHE"])
    facts = json.loads(max(cache.glob("features/*/facts.json"), key=os.path.getmtime).read_text())
    assert facts["layer"] == "penultimate"


@pytest.mark.soak
def test_two_hosts_need_no_common_run_folder_or_cache(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for host in ("one", "two"):
        shutil.copytree("images", f"{host}/images")
        shutil.copy("tiny.yaml", f"{host}/tiny.yaml")
    torchrun = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test"]
    torchrun.append(f"--rdzv-endpoint=127.0.0.1:{port}")
    arguments = ["-m", "vtrain", "fit", "tiny.yaml", HEAD_ALONE, "data.augment=none"]
    arguments += ["data.batch_size=3", "run_dir=run"]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *torchrun, *arguments],
            cwd=folder / host,
            env=environment(VTRAIN_CACHE=str(folder / host / "cache")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in ("one", "two")
    ]
    ended = [host.communicate(timeout=TIMEOUT) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], ended
    assert sorted(out for out, _ in ended) == ["", "run\n"]
    written = [path for path in (Path("one/run"), Path("two/run")) if path.exists()]
    assert len(written) == 1, "the first process alone writes"
    assert len((written[0] / "predictions-val.csv").read_text().splitlines()) == 8


def test_signal_to_one_process_stops_all_and_resume_is_exact() -> None:
    # Batch norms are trained here: what is validated and saved has the statistics of the first.
    settings = ("data.batch_size=2", "train.epochs=7", "model.batch_norm=train", "train.ema=0.9")
    with start(2, "run_dir=parts", *settings) as process:
        wait_for(Path("parts/metrics.jsonl"))
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[-1]), signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert "stopped at step" in err
    step = load_checkpoint(Path("parts/last.ckpt")).state.step
    assert 0 < step < 7 * 4
    run(2, "run_dir=parts", *settings, "--resume")
    run(2, "run_dir=whole", *settings)
    assert largest_difference("parts", "whole") == 0
    assert_same_metrics("parts", "whole", ("step", "val_loss", "val_top1"))
    result = json.loads(Path("whole/result.json").read_text())
    best = read_metrics("whole")[result["best_epoch"] - 1]
    assert (best["val_top1"], best["val_macro_f1"]) == (result["val_top1"], result["val_macro_f1"])


@pytest.mark.soak
def test_resume_with_another_number_of_processes_is_refused_once() -> None:
    run_alone("run_dir=one", "data.batch_size=2", "train.epochs=1")
    settings = ("run_dir=one", "data.batch_size=2", "train.epochs=2", "--resume")
    with start(2, *settings) as process:
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert err.count("cannot be resumed") == 1
    assert "processes: 1 -> 2" in err


def test_process_that_dies_ends_the_others_with_a_message() -> None:
    settings = ("data.batch_size=2", "train.epochs=2000", "train.save_every_steps=5")
    with start(2, "run_dir=parts", *settings) as process:
        wait_for(Path("parts/model.safetensors"))
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert torch.is_tensor(load_tensors(Path("parts/model.safetensors"))[0]["head.2.bias"])
    assert "cannot go on: another ended" in err or "SIGTERM received" in err, err
    assert "unexpected" not in err


@pytest.mark.soak
def test_sync_batch_norm_needs_gpus() -> None:
    with start(2, "model.batch_norm=sync", "data.batch_size=2") as process:
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert err.count("model.batch_norm: sync needs GPUs") == 1


def wait_for(path: Path) -> None:
    until = time.monotonic() + TIMEOUT
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)
