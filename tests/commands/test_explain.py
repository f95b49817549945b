"""`vtrain explain` as users type it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.program import Program, TerminalProgram, assert_refused, lasting_lines
from tests.helpers.tiny import break_image, draw_image

IMAGES = ["images/val/ant/000.jpg", "images/val/bee/000.jpg"]
MODEL = "runs/tiny-001/model.safetensors"


def test_a_folder_of_images(folder: Path, program: Program) -> None:
    done = program("explain", "images/val", "-o", "seen")
    assert done.code == 0
    assert done.talk == [
        f"model: {MODEL}, fp32",
        "stage block3, 6 maps, listed in seen/explanations.json",
    ]
    lines = done.out.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("images/val/ant/000.jpg: ")
    assert lines[0].endswith(" %, seen/000.overlay.png")
    assert lines[2].endswith("seen/000-2.overlay.png")
    assert len(list(Path("seen").iterdir())) == 13
    index = json.loads(Path("seen/explanations.json").read_text())
    assert (index["method"], index["stage"], index["input_size"]) == ("Grad-CAM", "block3", 32)
    for row in index["images"]:
        values = np.load(f"seen/{row['map']}", allow_pickle=False)
        assert (values.shape, values.dtype) == ((32, 32), np.float32)
        with Image.open(f"seen/{row['overlay']}") as picture:
            assert picture.size == (32, 32)
        assert row["found"] == bool(values.any())


def test_json_is_one_object_for_each_input(folder: Path, program: Program) -> None:
    break_image(Path("bad.jpg"))
    done = program("explain", IMAGES[0], "bad.jpg", IMAGES[1], "-o", "seen", "--json")
    assert done.code == 3
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["path"] for row in rows] == [IMAGES[0], "bad.jpg", IMAGES[1]]
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert all(row["schema"] == 1 for row in rows)
    assert rows[0]["overlay"] == "seen/000.overlay.png"
    assert rows[0]["class"] == rows[0]["prediction"]
    assert rows[0]["class_probability"] == rows[0]["probability"]
    assert len(rows[0]["box"]) == 4
    assert "overlay" not in rows[1]
    assert done.talk[-2:] == [
        "error: 1 of 3 inputs could not be used",
        "hint: their lines say why",
    ]


def test_one_class_and_a_stage(folder: Path, program: Program) -> None:
    asked = ["explain", *IMAGES, "--class", "cow", "--stage", "block1"]
    done = program(*asked, "-o", "seen")
    assert done.code == 0
    assert "stage block1, 2 maps" in done.err
    assert all(": cow " in line for line in done.out.splitlines())
    rows = json.loads(Path("seen/explanations.json").read_text())["images"]
    assert [row["class"] for row in rows] == ["cow", "cow"]
    assert rows[0]["cells"] == [8, 8]


def test_what_is_not_the_prediction_says_so(folder: Path, program: Program) -> None:
    shown = set()
    for name in ("ant", "bee", "cow"):
        line = program("explain", IMAGES[0], "--class", name, "-o", name).out
        assert line.startswith(f"{IMAGES[0]}: {name} ")
        shown.add("(predicted " in line)
    assert shown == {True, False}


def test_backbone_by_name(empty: Path, program: Program) -> None:
    draw_image(Path("a.png"))
    done = program("explain", "a.png", "-o", "seen", "-m", "simple_cnn:none", "--class", "class 3")
    assert done.code == 0
    assert done.talk[0] == "model: simple_cnn:none, fp32"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--class", "bea"], ["no class 'bea', did you mean 'bee'?", "classes: ant, bee, cow"]),
        (["--stage", "block9"], ["did you mean block", "stem, block1, block2, block3"]),
        (["--device", "tpu"], ["device 'tpu' is unknown"]),
        (["--batch-size", "0"], ["--batch-size"]),
    ],
)
def test_refused_before_anything_is_written(
    folder: Path, program: Program, arguments: list[str], parts: list[str]
) -> None:
    assert_refused(program("explain", *IMAGES, "-o", "seen", *arguments), 2, *parts)
    assert not Path("seen").exists()


def test_no_output_no_model(folder: Path, program: Program) -> None:
    assert_refused(program("explain", *IMAGES), 2, "missing option", "--output")
    assert_refused(program("explain", *IMAGES, "-o", "seen", "-m", "nix"), 4, "no model 'nix'")
    assert not Path("seen").exists()


def test_nothing_is_overwritten(folder: Path, program: Program) -> None:
    assert program("explain", IMAGES[0], "-o", "seen").code == 0
    before = {path: path.read_bytes() for path in Path("seen").iterdir()}
    done = program("explain", IMAGES[1], "-o", "seen")
    assert_refused(done, 2, "the folder seen is not empty", "hint: nothing is overwritten")
    assert "model:" not in done.err  # told at once
    assert {path: path.read_bytes() for path in Path("seen").iterdir()} == before
    assert_refused(program("explain", IMAGES[1], "-o", "tiny.yaml"), 2, "it is not a folder")


def test_globs_quiet_and_unreadable_inputs(folder: Path, program: Program) -> None:
    done = program("explain", "images/val/*/000.jpg", "nix.jpg", "-o", "seen", "-q")
    assert done.code == 3
    lines = done.out.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "nix.jpg: error: no such file or folder"
    assert done.talk == ["error: 1 of 4 inputs could not be used", "hint: their lines say why"]


def test_hostile_names_stay_harmless(folder: Path, program: Program) -> None:
    for number, name in enumerate(("\x1b[31m.png", "-o.png", os.fsdecode(b"\xff.png"))):
        draw_image(Path("odd") / name, seed=number)
    done = program("explain", "odd", "-o", "seen", "-q")
    assert done.code == 0
    assert all(line.isprintable() for line in done.out.splitlines())
    names = [path.name for path in Path("seen").iterdir()]
    assert all(name.isprintable() and not name.startswith("-") for name in names)
    assert len(names) == 7


def test_on_a_terminal(folder: Path, terminal: TerminalProgram) -> None:
    for columns in (60, 200):
        shutil.rmtree("seen", ignore_errors=True)
        code, shown = terminal("explain", "images/val", "-o", "seen", columns=columns)
        assert code == 0
        lines = lasting_lines(shown)
        assert len(lines) == 8
        assert lines[-1] == "stage block3, 6 maps, listed in seen/explanations.json"
