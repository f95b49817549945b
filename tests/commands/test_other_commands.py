"""vtrain backbones, init, config, schema, sample and env."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.program import VTRAIN, Program, assert_refused, environment
from tests.helpers.tiny import break_image, draw_labelled
from vtrain.models.zoo import backbone_names, find_backbone
from vtrain.runs.settings import load_settings

# --- backbones -----------------------------------------------------------------------------------


def test_backbones_off_a_terminal_are_whole_lines(empty: Path, program: Program) -> None:
    done = program("backbones")
    assert done.code == 0
    header, *rows = done.out.splitlines()
    assert header.split()[:6] == ["backbone", "params", "GFLOPs", "px", "top-1", "MB"]
    assert [row.split()[0] for row in rows] == list(backbone_names())
    for row in rows:
        assert row.endswith(find_backbone(row.split()[0]).note)
    assert done.talk == ["vtrain backbones NAME shows the weights, options and stages of one"]
    assert program("backbones", "-q").err == ""


def test_backbones_json(empty: Path, program: Program) -> None:
    result = json.loads(program("backbones", "--json").out)
    assert list(result) == ["schema", "backbones"]
    assert [each["name"] for each in result["backbones"]] == list(backbone_names())
    resnet = next(each for each in result["backbones"] if each["name"] == "resnet18")
    assert (resnet["params"], resnet["image_size"]) == (11_689_512, 224)
    assert {"gflops", "top1", "file_size_mb", "weights", "stages", "note"} <= set(resnet)


def test_one_backbone(empty: Path, program: Program) -> None:
    done = program("backbones", "resnet50")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("resnet50: ")
    assert "25.6 M parameters, 4.09 G multiply-adds at 224 px" in done.out
    assert "weights: IMAGENET1K_V2 (default, 98 MB, ImageNet top-1 80.9 %)" in done.out
    assert "also IMAGENET1K_V1" in done.out
    rows = done.out.splitlines()[-5:]
    assert [row.split()[0] for row in rows] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert rows[-1].split()[1] == "2048x7x7"


def test_one_backbone_as_json(empty: Path, program: Program) -> None:
    result = json.loads(program("backbones", "vit_b_16", "--image-size", "384", "--json").out)
    assert (result["schema"], result["name"]) == (1, "vit_b_16")
    assert len(result["stages"]) == 13
    assert set(result["stages"][0]) == {"name", "shape", "params", "multiply_adds"}
    assert result["stages"][1]["shape"] == [768, 24, 24]
    assert any("make 577" in fact for fact in result["facts"])


def test_backbone_that_does_not_exist(empty: Path, program: Program) -> None:
    assert_refused(program("backbones", "resnet5"), 2, "did you mean resnet50?")
    assert_refused(program("backbones", "vit_b_16", "--image-size", "100"), 2, "multiple of 16")


# --- init and config -----------------------------------------------------------------------------


def test_init_writes_a_config_that_fit_takes(folder: Path, program: Program) -> None:
    done = program("init", "images", "-o", "my config.yaml", "--backbone", "simple_cnn")
    assert (done.code, done.out) == (0, "my config.yaml\n")
    assert done.talk[0] == "images: 18 train, 6 val"
    assert done.talk[-1] == "next: vtrain fit 'my config.yaml'"
    assert load_settings(Path("my config.yaml")).config.model.backbone == "simple_cnn"
    assert program("fit", "my config.yaml", "--dry-run").code == 0
    assert program("init", "images/", "-q").err == ""
    assert Path("images.yaml").exists()


def test_init_refuses(folder: Path, program: Program) -> None:
    before = Path("tiny.yaml").read_text()
    assert_refused(program("init", "images", "-o", "tiny.yaml"), 2, "tiny.yaml exists already")
    assert Path("tiny.yaml").read_text() == before
    assert_refused(program("init", "images", "--backbone", "resnet5"), 2, "did you mean resnet50?")
    assert_refused(program("init", "nix"), 3, "nix")
    Path("void").mkdir()
    assert_refused(program("init", "void"), 3, "void")
    assert not Path("images.yaml").exists()


def test_config_says_where_each_value_came_from(folder: Path, program: Program) -> None:
    done = program("config", "tiny.yaml", "train.epochs=7")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^  epochs: 7 +# command line$", done.out, re.MULTILINE)
    assert re.search(r"^  backbone: simple_cnn +# tiny.yaml:2$", done.out, re.MULTILINE)
    assert re.search(r"^seed: 0 +# default$", done.out, re.MULTILINE)
    Path("again.yaml").write_text(done.out)
    again = load_settings(Path("again.yaml")).config
    assert again == load_settings(Path("tiny.yaml"), ["train.epochs=7"]).config


def test_config_as_json(folder: Path, program: Program) -> None:
    result = json.loads(program("config", "tiny.yaml", "optim.lr=1e-4", "--json").out)
    assert list(result) == ["schema", "config", "origins"]
    assert result["schema"] == 1
    assert result["config"]["optim"]["lr"] == 1e-4
    assert result["origins"]["optim.lr"] == "command line"
    assert result["origins"]["model.weights"] == "tiny.yaml:2"


def test_hostile_values_in_a_config(folder: Path, program: Program) -> None:
    draw_labelled(Path("images/a\x1b[31m"), {"ant": 1})
    for form in ([], ["--json"]):
        done = program("config", "tiny.yaml", 'data.test="images/a\\e[31m"', *form)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out
        assert "images/a" in done.out


# --- schema, sample, env -------------------------------------------------------------------------


def test_schema_is_one_json_object(empty: Path, program: Program) -> None:
    done = program("schema")
    assert (done.code, done.err) == (0, "")
    schema: dict[str, Any] = json.loads(done.out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"model", "data", "optim", "train", "freeze", "seed"} <= set(schema["properties"])


def test_sample(empty: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.data.example_set.TRAIN_IMAGES", 2)
    monkeypatch.setattr("vtrain.data.example_set.VAL_IMAGES", 1)
    done = program("sample", "shapes")
    assert (done.code, done.out) == (0, "shapes\n")
    assert done.talk[0] == "shapes/train: 10 images of circle, cross, square, star, triangle"
    assert_refused(program("sample", "shapes"), 2, "the folder shapes is not empty")
    assert program("sample", "more", "-q").err == ""


def test_env(empty: Path, program: Program) -> None:
    done = program("env")
    assert (done.code, done.err) == (0, "")
    names = [line.partition(": ")[0] for line in done.out.splitlines()]
    assert {"vtrain", "python", "packages", "devices", "threads"} <= set(names)
    assert "None" not in done.out
    result = json.loads(program("env", "--json").out)
    assert result["schema"] == 1
    assert list(result)[1:] == names
    assert "torch" in result["packages"]


# --- pipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["schema", "backbones", "backbones --json", "-h"])
def test_head_ends_a_command_quietly(empty: Path, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*VTRAIN, *command.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:] == []
    assert "error" not in done.stderr


def test_unreadable_headers_do_not_stop_init(folder: Path, program: Program) -> None:
    break_image(Path("images/train/ant/bad.jpg"))
    assert program("init", "images").code == 0
