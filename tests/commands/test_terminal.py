"""On a terminal there are bars and colours, and nothing that a file is called can reach it raw."""

import csv
import io
import re
from pathlib import Path

import pytest

from tests.helpers.program import (
    Terminal,
    TerminalProgram,
    lasting_lines,
    without_styles,
)
from tests.helpers.tiny import break_image, draw_image
from vtrain.models.zoo import backbone_names

BAR = re.compile(r"epoch 1/2: +\d+%\|[^|]*\| \d+/18 \[[^\]]*img/s")


def test_training_shows_a_bar_and_one_line_per_epoch(
    folder: Path, terminal: TerminalProgram
) -> None:
    code, text = terminal("fit", "tiny.yaml", columns=100)
    assert code == 0
    assert BAR.search(text)
    lines = lasting_lines(text)
    assert len([line for line in lines if re.match(r"epoch \d/2 finetune", line)]) == 2
    assert lines[-1] == "runs/tiny-002"
    # The bar is gone in the end: every line that stays is text.
    assert not any("%|" in line for line in lines)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_dumb_terminal_has_neither_bars_nor_escapes(
    folder: Path, terminal: TerminalProgram, env: dict[str, str]
) -> None:
    code, text = terminal("fit", "tiny.yaml", env=env)
    assert code == 0
    assert "\x1b" not in text
    assert "\r" not in text
    assert len(re.findall(r"^epoch \d/2 finetune", text, re.MULTILINE)) == 2


def test_no_color_keeps_the_bar_without_escapes(folder: Path, terminal: TerminalProgram) -> None:
    code, text = terminal("fit", "tiny.yaml", columns=100, env={"NO_COLOR": "1"})
    assert code == 0
    assert BAR.search(text)
    assert "\x1b" not in text


def test_quiet_has_no_bar(folder: Path, terminal: TerminalProgram) -> None:
    assert terminal("fit", "tiny.yaml", "-q") == (0, "runs/tiny-002\n")


@pytest.mark.parametrize("command", ["evaluate images/val", "embed images o.npy"])
def test_other_commands_show_a_bar(folder: Path, terminal: TerminalProgram, command: str) -> None:
    code, text = terminal(*command.split())
    assert code == 0
    bar = re.compile(r"\r(evaluating|embedding): ")
    assert bar.search(text)
    assert not any("img/s" in line for line in lasting_lines(text))
    code, text = terminal(*command.split(), "-q")
    assert code == 0
    assert "\r" not in text


def test_predictions_are_not_mixed_with_a_bar(folder: Path, terminal: TerminalProgram) -> None:
    code, text = terminal("predict", "images/val")
    assert code == 0
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "model: runs/tiny-001/model.safetensors, fp32"
    assert len(lines) == 7
    assert all(line.startswith("images/val/") for line in lines[1:])


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_lines_fit_the_terminal(folder: Path, terminal: TerminalProgram, columns: int) -> None:
    _, text = terminal("backbones", columns=columns)
    rows = without_styles(text).splitlines()
    assert max(map(len, rows)) <= max(columns, 66)
    assert len(rows) == len(backbone_names()) + 2  # the heading, and what to type next
    assert all(name in text for name in backbone_names())
    assert ("when to use it" in text) == (columns >= 80)
    _, text = terminal("fit", "tiny.yaml", "train.epochs=1", columns=columns)
    (epoch,) = [line for line in lasting_lines(text) if line.startswith("epoch 1/1")]
    assert len(epoch) <= columns
    assert "top-1" in epoch
    assert ("lr " in epoch) == (columns == 200)


def test_errors_are_red_and_hints_plain(empty: Path, terminal: TerminalProgram) -> None:
    code, text = terminal("fit", "nix.yaml")
    assert code == 2
    assert text.startswith("\x1b[1;31merror: nix.yaml: no such file\x1b[0m\nhint: ")
    code, text = terminal("fit", "nix.yaml", env={"NO_COLOR": "1"})
    assert text.startswith("error: nix.yaml: no such file\nhint: ")


def test_bar_and_ctrl_c_of_a_real_process(folder: Path) -> None:
    process = Terminal(
        "fit", "tiny.yaml", "train.epochs=20", "train.save_every_steps=1", "data.workers=1",
        columns=100,
    )  # fmt: skip
    process.read_until("epoch  1/20 finetune")
    assert re.search(r"epoch 1/20: +\d+%\|[^|]*\| \d+/18 \[", process.text)
    process.press("\x03")
    assert process.finish() == 130
    assert "SIGINT received: finishing this step, then saving" in process.text
    assert "error: stopped at step" in process.text
    assert "--resume" in process.text.splitlines()[-1]
    assert "Traceback" not in process.text
    assert Path("runs/tiny-002/last.ckpt").exists()
    assert not Path("runs/tiny-002/result.json").exists()


HOSTILE = ("[/].png", "[a].png", "a\x1b[31mb.png", "two\nlines.png", "\u202egnp.png", "\udcff.png")


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]], ids=["text", "csv", "json"])
def test_hostile_file_names(folder: Path, terminal: TerminalProgram, form: list[str]) -> None:
    for number, name in enumerate(HOSTILE):
        draw_image(Path("odd") / name, seed=number)
    code, text = terminal("predict", "odd", "-q", *form)
    assert code == 0
    rows = text.removesuffix("\n").split("\n")
    assert all(row.isprintable() for row in rows)
    if form == ["--csv"]:
        rows = [",".join(row) for row in csv.reader(io.StringIO(text))][1:]
    assert len(rows) == len(HOSTILE)
    assert "odd/[/].png" in text
    assert "odd/[a].png" in text
    assert "\ufffd" not in text


def test_hostile_names_in_talk(folder: Path, terminal: TerminalProgram) -> None:
    for name in HOSTILE:
        break_image(Path("odd") / name)
    for command in (["embed", "odd", "o.npy"], ["predict", "odd/[/].png"], ["evaluate", "odd"]):
        code, text = terminal(*command, env={"NO_COLOR": "1"})
        assert code == 3
        shown = lasting_lines(text)
        assert all(char.isprintable() for line in shown for char in line)
        assert not any(line.startswith("lines.png") for line in shown)


def test_hostile_class_names(folder: Path, terminal: TerminalProgram) -> None:
    names = {"ant": "[red][a]", "bee": "b\x1b[2Je", "cow": "=cmd|' C'!A0"}
    for split in ("train", "val"):
        for old, new in names.items():
            (Path("images") / split / old).rename(Path("images") / split / new)
    code, text = terminal("fit", "tiny.yaml", "train.epochs=1", env={"NO_COLOR": "1"})
    assert code == 0
    code, text = terminal("evaluate", "images/val", env={"NO_COLOR": "1"})
    assert code == 0
    rows = lasting_lines(text)
    assert {row.split("  ")[0] for row in rows} >= {"[red][a]", "b\\x1b[2Je", "=cmd|' C'!A0"}
    for form in ([], ["--csv"], ["--json"]):
        code, text = terminal("predict", "images/val", "-q", *form)
        assert code == 0
        assert "\x1b" not in text
        assert "[red][a]" in text
