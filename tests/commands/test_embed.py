"""vtrain embed: the array, its index, and what is said about them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.program import Program, assert_refused, environment
from tests.helpers.tiny import break_image


def test_array_index_and_one_line_on_stdout(folder: Path, program: Program) -> None:
    done = program("embed", "images/val", "out.npy")
    assert (done.code, done.err) == (0, "model: runs/tiny-001/model.safetensors, fp32\n")
    features = np.load("out.npy")
    assert features.dtype == np.float32
    assert features.shape[0] == 6
    assert done.out == f"out.npy: 6x{features.shape[1]} float32, paths in out.csv\n"
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == list("012345")
    assert {row["status"] for row in rows} == {"ok"}
    assert all(Path(row["path"]).is_file() for row in rows)


def test_json(folder: Path, program: Program) -> None:
    done = program("embed", "images/val", "out.npy", "--json", "-q", "--layer", "logits")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {
        "schema": 1,
        "output": "out.npy",
        "index": "out.csv",
        "count": 6,
        "dim": [3],
        "failures": [],
    }


def test_feature_maps(folder: Path, program: Program) -> None:
    done = program("embed", "images/val", "m.npy", "--layer", "block1", "--feature-maps", "-q")
    assert done.code == 0
    assert np.load("m.npy").ndim == 4
    assert done.out.startswith("m.npy: 6x")


@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["", "quiet"])
def test_bad_image_keeps_its_row(folder: Path, program: Program, quiet: list[str]) -> None:
    bad = break_image(Path("images/val/bee/000.jpg"))
    done = program("embed", "images/val", "out.npy", *quiet)
    assert done.code == 3
    assert done.out.startswith("out.npy: 6x")
    assert "error: 1 of 6 images could not be used:" in done.err
    assert f"  {bad}: " in done.err
    features = np.load("out.npy")
    assert np.isnan(features).all(axis=1).tolist() == [False, False, True, False, False, False]
    with Path("out.csv").open(newline="") as file:
        status = [row["status"] for row in csv.DictReader(file)]
    assert [each == "ok" for each in status] == [True, True, False, True, True, True]
    assert status[2].startswith("error: ")


def test_what_is_refused_before_any_work(folder: Path, program: Program) -> None:
    assert_refused(program("embed", "images", "out.np"), 2, "out.np does not end with .npy")
    assert_refused(program("embed", "images", "no/out.npy"), 2, "mkdir -p no")
    done = program("embed", "images", "out.npy", "--layer", "blok1")
    assert_refused(done, 2, "unknown layer 'blok1'", "did you mean block1?", "hint: layers: ")
    assert_refused(program("embed", "nix", "out.npy"), 3, "nix")
    assert_refused(program("embed", "images", "out.npy", "--device", "gpu"), 2, "'gpu'", "cuda")
    assert not Path("out.npy").exists()
    assert not Path("out.csv").exists()


def test_torchrun_gives_the_bytes_of_one_process(folder: Path, program: Program) -> None:
    bad = break_image(Path("images/train/bee/000.jpg"))
    shared = ["--batch-size", "2", "--workers", "0", "-m", "runs/tiny-001"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--standalone"]
    done = subprocess.run(
        [*torchrun, "-m", "vtrain", "embed", "images", "three.npy", *shared],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # torchrun's own, for any that is not 0
    alone = subprocess.run(
        [sys.executable, "-m", "vtrain", "embed", "images", "one.npy", *shared],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert alone.returncode == 3
    assert Path("three.npy").read_bytes() == Path("one.npy").read_bytes()
    assert Path("three.csv").read_bytes() == Path("one.csv").read_bytes()
    assert done.stdout == alone.stdout.replace("one.", "three.")
    for line in alone.stderr.splitlines():
        assert done.stderr.splitlines().count(line) == 1, done.stderr  # from one process alone
    assert f"  {bad}: " in done.stderr
    assert [path.name for path in Path().glob(".*")] == []


def test_half_of_torchruns_variables_are_refused(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(program("embed", "images", "o.npy"), 2, "RANK", "torchrun")


def test_resume_is_for_the_same_work(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vtrain.results.resumable_array.PartialArray.publish", fail)
        done = program("embed", "images/val", "out.npy")
    assert_refused(done, 130, "error: interrupted", "hint: go on", "--resume", ".out.npy.partial")
    done = program("embed", "images/val", "out.npy", "--resume", "--layer", "logits")
    assert_refused(done, 2, "layer: penultimate -> logits", "without --resume")
    done = program("embed", "images/val", "out.npy", "--resume")
    assert (done.code, done.talk[-1]) == (0, "resuming: 1 of 1 blocks are there")
    assert np.load("out.npy").shape[0] == 6
