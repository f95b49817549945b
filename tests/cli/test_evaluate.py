"""vtrain evaluate: the numbers as JSON and as a table."""

import json
from pathlib import Path

import pytest

from tests.cli.program import Program, assert_refused
from tests.tiny import break_image, draw_labelled

KEYS = [
    "schema", "top1", "top5", "macro_f1", "loss", "count", "per_class", "confusion_matrix",
    "classes", "failures",
]  # fmt: skip


def test_json_as_in_the_contract(folder: Path, program: Program) -> None:
    done = program("evaluate", "images/val", "--json")
    assert (done.code, done.err) == (0, "model: runs/tiny-001/model.safetensors, fp32\n")
    result = json.loads(done.out)
    assert list(result) == KEYS
    assert (result["schema"], result["count"], result["failures"]) == (1, 6, [])
    assert result["classes"] == ["ant", "bee", "cow"]
    assert [list(row) for row in result["per_class"]] == [
        ["class", "precision", "recall", "f1", "support"]
    ] * 3
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
    first, header, *rows = done.out.splitlines()
    assert first.startswith("top-1 0.")
    assert first.endswith(", 6 images")
    assert header.split() == ["class", "precision", "recall", "F1", "images"]
    assert [row.split()[0] for row in rows] == ["ant", "bee", "cow"]
    assert all(row.split()[-1] == "2" for row in rows)
    assert all(line == line.rstrip() for line in done.out.splitlines())


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
    assert_refused(program("evaluate", "tiny.yaml"), 3, "tiny.yaml")
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
