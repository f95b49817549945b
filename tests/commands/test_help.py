"""Help, version, typing errors, and what the shell completes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import vtrain.cli
from tests.helpers.program import Program, assert_refused, run_process
from vtrain.commands.options import complete_backbones, complete_models
from vtrain.commands.usage_errors import OTHER_NAMES
from vtrain.models.zoo import backbone_names

CONTRACT = {
    "fit": "CONFIG [KEY=VALUE ...]",
    "evaluate": "FOLDER",
    "compare": "RUN RUN...",
    "predict": "PATH...",
    "embed": "PATH... OUT.npy",
    "neighbors": "QUERY EMBEDDINGS.npy",
    "suspects": "[RUN]",
    "explain": "PATH...",
    "report": "[RUN]",
    "runs": "[FOLDER]",
    "backbones": "[NAME]",
    "probe": "FOLDER",
    "init": "FOLDER",
    "check": "CONFIG|FOLDER [KEY=VALUE ...]",
    "config": "CONFIG [KEY=VALUE ...]",
    "schema": "",
    "sample": "FOLDER",
    "cache": "",
    "env": "",
}
JSON_COMMANDS = (
    *("fit", "evaluate", "compare", "predict", "embed", "neighbors", "suspects", "explain", "runs"),
    *("backbones", "probe", "check", "config", "cache", "env"),
)


def find_examples(text: str) -> list[str]:
    """The example lines of a help text, without what stands beside them."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("  vtrain ")]
    return [re.split(r"\s{2,}| > ", line)[0] for line in lines]


def parse(words: list[str]) -> None:
    """Parse a command line without running it; raises what Typer raises."""
    group: Any = typer.main.get_command(vtrain.cli.app)
    command = group.commands[words[0]]
    with group.make_context("vtrain", words) as context:
        command.make_context(words[0], words[1:], parent=context).close()


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", CONTRACT)
def test_help_of_each_command(program: Program, command: str, option: str) -> None:
    done = program(command, option)
    assert (done.code, done.err) == (0, "")
    usage = f"Usage: vtrain {command} {CONTRACT[command]}".rstrip()
    assert done.out.splitlines()[0] == f"{usage} [OPTIONS]"
    for name in ("-q, --quiet", "--debug", "-h, --help"):
        assert name in done.out
    assert ("--json" in done.out) == (command in JSON_COMMANDS)


@pytest.mark.parametrize("command", CONTRACT)
def test_examples_come_first_and_are_valid(program: Program, command: str) -> None:
    text = program(command, "-h").out
    examples = find_examples(text)
    assert examples
    before = text.partition("Arguments:")[0].partition("Options:")[0]
    assert all(example in before for example in examples)
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["vtrain", command]
        parse(words[1:])


@pytest.mark.parametrize("command", ["", *CONTRACT])
def test_help_fits_80_columns(program: Program, command: str) -> None:
    text = program(*command.split(), "-h").out
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("PATH...", "").replace("RUN...", "").replace(
        "[ARGS]...", ""
    ).replace(" ...]", "")


def test_help_of_the_program(program: Program) -> None:
    done = program("-h")
    assert (done.code, done.err) == (0, "")
    assert program("--help") == done
    listed = re.findall(r"^  (\w+)  ", done.out.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(CONTRACT)
    for example in find_examples(done.out):
        parse(shlex.split(example)[1:])


def test_nothing_typed_shows_the_help_as_talk(program: Program) -> None:
    done = program()
    assert_refused(done, 2, "Commands:", "error: no command was given", "hint: start with: vtrain")
    assert done.talk[-1].startswith("hint: ")


def test_version(program: Program) -> None:
    done = program("--version")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(r"vtrain (\d+\.\d+\S*|\(not installed.*\))\n", done.out)


def test_module_runs_as_a_process(empty: Path) -> None:
    done = run_process("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("vtrain ")
    assert run_process("nonsense").code == 2


# --- typing errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "error", "hint"),
    [
        ("fit", "missing argument 'CONFIG'", "vtrain fit CONFIG [KEY=VALUE ...] [OPTIONS]"),
        ("fit --resme", "no such option: --resme, did you mean --resume?", "vtrain fit CONFIG"),
        ("fit c.yaml --epochs 3", "no such option: --epochs", "such as train.epochs=5"),
        ("config c.yaml --lr 1", "no such option: --lr", "such as train.epochs=5"),
        ("pedict x.jpg", "no such command 'pedict', did you mean 'predict'?", "vtrain --help"),
        ("evalute x", "no such command 'evalute', did you mean 'evaluate'?", "vtrain --help"),
        ("train c.yaml", "no such command 'train'", "try: vtrain fit"),
        ("test photos", "no such command 'test'", "try: vtrain evaluate"),
        ("help", "no such command 'help'", "try: vtrain --help"),
        ("qqq", "no such command 'qqq'", "try: vtrain --help"),
        ("--versio", "no such option: --versio, did you mean --version?", "vtrain --help"),
        ("predict", "missing argument 'PATH...'", "vtrain predict PATH... [OPTIONS]"),
        (
            "predict x --top-k",
            "option '--top-k' requires an argument",
            "try: vtrain predict --help",
        ),
        ("predict x --top-k many", "invalid value for '--top-k' / '-k'", "vtrain predict PATH..."),
        ("predict x --top-k 0", "greater than or equal to 1", "vtrain predict PATH..."),
        ("predict x --modle y", "no such option: --modle, did you mean --model?", "-h"),
        ("embed photos", "only photos was given", "vtrain embed PATH... OUT.npy"),
        ("evaluate a b", "unexpected extra argument", "vtrain evaluate FOLDER"),
        ("predict x --json --csv", "--json and --csv were both given", "choose one"),
        ("backbones --image-size 64", "--image-size needs the NAME of a backbone", ""),
    ],
)
def test_typing_errors_say_what_to_type(
    empty: Path, program: Program, typed: str, error: str, hint: str
) -> None:
    done = program(*typed.split())
    assert_refused(done, 2, error)
    assert len(done.talk) == (2 if hint else 1)
    if hint:
        assert done.talk[1].startswith("hint: ")
        assert hint in done.talk[1]


def test_names_from_other_tools_lead_to_commands_that_exist() -> None:
    for other, ours in OTHER_NAMES.items():
        assert other not in CONTRACT
        assert ours.split()[0] in {*CONTRACT, "--help", "--version"}


def test_hostile_command_line_cannot_reach_the_terminal(program: Program) -> None:
    for typed in (["\x1b[31mred"], ["fit", "--\x1b]0;title\x07"], ["fit", "\udcff"], ["\u202egnp"]):
        done = program(*typed)
        assert_refused(done, 2)
        assert all(char.isprintable() for line in done.talk for char in line)


# --- completion ----------------------------------------------------------------------------------


def complete(line: str) -> list[str]:
    """What bash would offer at the end of a line."""
    words = line.split(" ")
    done = run_process(
        env={
            "_VTRAIN_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
    )
    assert (done.code, done.err) == (0, "")
    return done.out.split()


def test_completion_functions(folder: Path) -> None:
    assert complete_backbones("") == list(backbone_names())
    assert complete_backbones("resnet1") == ["resnet18", "resnet101", "resnet152"]
    assert complete_models("runs/") == ["runs/tiny-001"]
    assert complete_models("alex") == ["alexnet"]
    Path("runs/tiny-001/result.json").unlink()
    assert complete_models("runs/") == []


def test_completion_without_runs(empty: Path) -> None:
    assert complete_models("runs") == []


def test_bash_completes_commands_backbones_and_runs(folder: Path) -> None:
    assert complete("vtrain e") == ["evaluate", "embed", "explain", "env"]
    assert complete("vtrain backbones vgg16") == ["vgg16", "vgg16_bn"]
    assert complete("vtrain predict x.jpg -m runs/") == ["runs/tiny-001"]
    assert "--resume" in complete("vtrain fit --re")
    assert complete("vtrain init photos --backbone alex") == ["alexnet"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(empty: Path, shell: str) -> None:
    done = run_process(env={"_VTRAIN_COMPLETE": f"source_{shell}"})
    assert (done.code, done.err) == (0, "")
    assert "_VTRAIN_COMPLETE" in done.out
    assert "vtrain" in done.out


def test_completion_leaves_heavy_modules_alone(empty: Path) -> None:
    done = run_process(
        env={
            "_VTRAIN_COMPLETE": "complete_bash",
            "COMP_WORDS": "vtrain predict -m res",
            "COMP_CWORD": "3",
            "PYTHONPROFILEIMPORTTIME": "1",
        }
    )
    assert "resnet18" in done.out
    modules = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "vtrain.models.zoo" in modules
    assert not modules & {"torch", "torchvision", "numpy", "PIL"}
