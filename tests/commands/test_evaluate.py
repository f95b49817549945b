"""vtrain evaluate: the numbers as JSON and as a table."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.program import Program, assert_refused
from tests.helpers.tiny import break_image, draw_labelled

KEYS = [
    "schema", "top1", "top1_interval", "top5", "macro_f1", "macro_f1_interval", "weighted_f1",
    "loss", "count", "calibration", "warnings", "per_class", "confusion_matrix", "classes",
    "failures",
]  # fmt: skip


def test_json_as_in_the_contract(folder: Path, program: Program) -> None:
    done = program("evaluate", "images/val", "--json")
    assert (done.code, done.err) == (0, "model: runs/tiny-001/model.safetensors, fp32\n")
    result = json.loads(done.out)
    assert list(result) == KEYS
    assert (result["schema"], result["count"], result["failures"]) == (1, 6, [])
    assert result["classes"] == ["ant", "bee", "cow"]
    assert [list(row) for row in result["per_class"]] == [
        ["class", "precision", "recall", "f1", "support", "precision_interval", "recall_interval"]
    ] * 3
    assert list(result["calibration"]) == [
        *("temperature", "ece", "ece_raw", "ece_held_out", "bins", "bins_raw")
    ]
    low, high = result["top1_interval"]
    assert 0 <= low <= result["top1"] <= high <= 1
    assert result["warnings"][0].startswith("6 images cannot show a difference")
    assert [row["support"] for row in result["per_class"]] == [2, 2, 2]
    matrix = result["confusion_matrix"]
    assert [sum(row) for row in matrix] == [2, 2, 2]  # rows are true classes
    assert sum(matrix[i][i] for i in range(3)) / 6 == pytest.approx(result["top1"])
    assert result["top5"] == 1
    trained = json.loads(Path("runs/tiny-001/result.json").read_text())
    assert result["top1"] == trained["val_top1"]
    assert result["macro_f1"] == pytest.approx(trained["val_macro_f1"])


def test_matrix_is_printed_row_by_row(folder: Path, program: Program) -> None:
    lines = program("evaluate", "images/val", "--json").out.splitlines()
    start = lines.index('  "confusion_matrix": [')
    assert all(line.startswith("    [") for line in lines[start + 1 : start + 4])


def test_table(folder: Path, program: Program) -> None:
    done = program("evaluate", "images/val")
    first, intervals, calibration, header, *rows = done.out.splitlines()
    assert first.startswith("top-1 0.")
    assert first.endswith(", 6 images")
    assert re.fullmatch(
        r"95 % intervals: top-1 0\.\d\d to [01]\.\d\d, macro F1 0\.\d\d to [01]\.\d\d; "
        r"weighted F1 0\.\d{4}",
        intervals,
    )
    assert re.fullmatch(
        r"calibration error 0\.\d{4}, 0\.\d{4} without the temperature \d+\.\d{3}", calibration
    )
    assert header.split() == ["class", "precision", "95", "%", "recall", "95", "%", "F1", "images"]
    assert [row.split()[0] for row in rows] == ["ant", "bee", "cow"]
    assert all(row.split()[-1] == "2" for row in rows)
    assert all(line == line.rstrip() for line in done.out.splitlines())
    model, few, less, *never = done.talk
    assert model == "model: runs/tiny-001/model.safetensors, fp32"
    assert few.startswith("warning: 6 images cannot show a difference between two models")
    assert less == "warning: fewer than 10 images of ant, bee, cow: see their intervals"
    assert all(line.startswith("warning: never predicted: ") for line in never)


def test_warnings_of_json_are_in_the_object_alone(folder: Path, program: Program) -> None:
    done = program("evaluate", "images/val", "--json")
    assert "warning" not in done.err
    assert json.loads(done.out)["warnings"]


def test_raw_leaves_the_temperature_out(folder: Path, program: Program) -> None:
    plain = json.loads(program("evaluate", "images/val", "--json").out)["calibration"]
    raw = json.loads(program("evaluate", "images/val", "--json", "--raw").out)["calibration"]
    assert plain["temperature"] != 1
    assert (raw["temperature"], raw["ece"]) == (1, raw["ece_raw"])
    assert (raw["ece_raw"], raw["bins_raw"]) == (plain["ece_raw"], plain["bins_raw"])


def test_views_are_averaged_with_tta(folder: Path, program: Program) -> None:
    plain = json.loads(program("evaluate", "images/val", "--json").out)
    averaged = json.loads(program("evaluate", "images/val", "--json", "--tta").out)
    assert averaged["count"] == plain["count"]
    assert averaged["loss"] != plain["loss"]


@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["", "quiet"])
def test_unreadable_image_is_named_and_counts_in_nothing(
    folder: Path, program: Program, quiet: list[str]
) -> None:
    bad = break_image(Path("images/val/ant/two\nlines.jpg"))
    done = program("evaluate", "images/val", "--json", *quiet)
    assert done.code == 3
    result = json.loads(done.out)
    assert result["count"] == 6
    assert [each["path"] for each in result["failures"]] == [str(bad)]
    error = done.err.partition("error: ")[2].splitlines()
    assert error[0] == "1 of 7 images could not be used:"
    assert error[1].startswith("  images/val/ant/two\\nlines.jpg: ")
    assert error[2].startswith("hint: ")
    assert ("model: " in done.err) != bool(quiet)


def test_folders_that_cannot_be_evaluated(folder: Path, program: Program) -> None:
    assert_refused(program("evaluate", "nix"), 3, "nix")
    hint = "vtrain evaluate FOLDER -m tiny-001"
    assert_refused(program("evaluate", "tiny.yaml"), 2, "tiny.yaml is a config", hint)
    assert_refused(program("evaluate", "images"), 3, "images", "hint: ")
    draw_labelled(Path("images/val"), {"dog": 1})
    assert_refused(program("evaluate", "images/val"), 3, "dog")


def test_class_without_images_is_said_and_not_shown(folder: Path, program: Program) -> None:
    for path in Path("images/val/cow").iterdir():
        path.unlink()
    done = program("evaluate", "images/val")
    assert done.code == 0
    assert "cow" in done.err
    assert "cow" not in done.out
