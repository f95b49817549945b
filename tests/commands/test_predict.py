"""vtrain predict: one answer or one reason for every input, in text, JSON and CSV."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vtrain.cli
from tests.helpers.program import Program, assert_refused, environment
from tests.helpers.runs import CONFIG
from tests.helpers.tiny import break_image, draw_image, draw_labelled
from vtrain.system.tensor_files import load_tensors, save_tensors

KEYS = ["schema", "path", "status", "predictions", "error", "answer", "rejected", "distance"]
CLASSES = {"ant", "bee", "cow"}
IMAGES = [
    "images/val/ant/000.jpg",
    "images/val/ant/001.png",
    "images/val/bee/000.jpg",
    "images/val/bee/001.png",
    "images/val/cow/000.jpg",
    "images/val/cow/001.png",
]


def give_stdin(patch: pytest.MonkeyPatch, content: bytes) -> None:
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def mix_good_and_bad() -> list[str]:
    """Inputs of every kind and the start of the reason for each, None for good images."""
    break_image(Path("broken.jpg"))
    Path("notes.txt").write_text("gone.png\n")
    Path("nothing").mkdir()
    return ["nix.jpg", IMAGES[0], "broken.jpg", "nothing", IMAGES[5], "notes.txt", "*.gif", ""]


def read_json(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_text_has_a_line_for_each_image(folder: Path, program: Program) -> None:
    done = program("predict", "images/val", "-m", "runs/tiny-001")
    assert (done.code, done.err) == (0, "model: runs/tiny-001/model.safetensors, fp32\n")
    lines = done.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == IMAGES
    for line in lines:
        answers = line.partition(": ")[2].partition("; unlike the training images")[0].split(", ")
        assert {answer.split()[0] for answer in answers} == CLASSES
        assert sum(float(answer.split()[1]) for answer in answers) == pytest.approx(100, abs=0.2)


def test_json_lines_as_in_the_contract(folder: Path, program: Program) -> None:
    done = program("predict", *mix_good_and_bad(), "--json", "-m", "runs/tiny-001")
    assert done.code == 3
    rows = read_json(done.out)
    assert [row["path"] for row in rows] == mix_inputs()
    for row in rows:
        assert list(row) == KEYS
        assert row["schema"] == 1
        if row["path"] in IMAGES:
            assert (row["status"], row["error"]) == ("ok", None)
            assert {each["class"] for each in row["predictions"]} == CLASSES
            assert all(set(each) == {"class", "probability"} for each in row["predictions"])
            values = [each["probability"] for each in row["predictions"]]
            assert values == sorted(values, reverse=True)
            assert sum(values) == pytest.approx(1)
        else:
            assert (row["status"], row["predictions"]) == ("error", [])
            assert row["error"]
    errors = ["error: 6 of 8 inputs could not be used", "hint: their lines say why"]
    assert done.talk[-2:] == errors


def mix_inputs() -> list[str]:
    """Their paths in the answers: a list stands for its lines."""
    return ["nix.jpg", IMAGES[0], "broken.jpg", "nothing", IMAGES[5], "gone.png", "*.gif", ""]


def test_csv_rows(folder: Path, program: Program) -> None:
    done = program("predict", *mix_good_and_bad(), "--csv", "--top-k", "2", "-m", "runs/tiny-001")
    assert done.code == 3
    header, *rows = csv.reader(io.StringIO(done.out))
    assert ",".join(header) == (
        "path,status,class_1,probability_1,class_2,probability_2,error,answer,rejected,distance"
    )
    assert [row[0] for row in rows] == mix_inputs()
    assert all(len(row) == len(header) for row in rows)
    assert [row[1] for row in rows] == ["error", "ok", "error", "error", "ok", *["error"] * 3]
    assert all(bool(row[6]) == (row[1] == "error") for row in rows)
    assert all(float(row[3]) >= float(row[5]) for row in rows if row[1] == "ok")


def test_text_of_bad_inputs(folder: Path, program: Program) -> None:
    done = program("predict", *mix_good_and_bad(), "-m", "runs/tiny-001")
    assert done.code == 3
    lines = done.out.splitlines()
    assert len(lines) == 8
    assert lines[0] == "nix.jpg: error: no such file or folder"
    assert lines[2].startswith("broken.jpg: error: ")
    assert lines[3].startswith("nothing: error: the folder holds no images")
    assert lines[6] == "*.gif: error: no file matches this pattern"


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_quiet_still_says_that_inputs_failed(folder: Path, program: Program, form: str) -> None:
    done = program("predict", "nix.jpg", IMAGES[0], form, "-q")
    assert done.code == 3
    assert done.talk == ["error: 1 of 2 inputs could not be used", "hint: their lines say why"]


def test_list_on_stdin(folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = draw_image(Path("a b [1].png"))
    give_stdin(monkeypatch, f"{IMAGES[3]}\r\n\n{odd}\n{IMAGES[0]}".encode())
    done = program("predict", IMAGES[5], "-", "--json")
    assert done.code == 0
    assert [row["path"] for row in read_json(done.out)] == [
        IMAGES[5],
        IMAGES[3],
        str(odd),
        IMAGES[0],
    ]


def test_empty_list_on_stdin(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_stdin(monkeypatch, b"")
    assert_refused(program("predict", "-", "--json", "-q"), 2, "stdin is empty")


def test_output_files_hold_the_same_lines_as_stdout(folder: Path, program: Program) -> None:
    asked = ["predict", *mix_good_and_bad(), "-m", "runs/tiny-001", "-q"]
    for name, form in (("o.jsonl", "--json"), ("o.csv", "--csv")):
        printed = program(*asked, form)
        done = program(*asked, "-o", name)
        assert (done.code, done.out) == (3, f"{name}: 8 answers\n")
        assert done.talk == ["error: 6 of 8 inputs could not be used", "hint: their lines say why"]
        content = Path(name).read_bytes()
        assert content.decode() == printed.out
        Path(name).write_bytes(content[: 2 * len(content) // 3])
        assert program(*asked, "-o", name, "--resume").out == f"{name}: 8 answers\n"
        assert Path(name).read_bytes() == content


def test_output_options_that_do_not_fit_are_refused(folder: Path, program: Program) -> None:
    assert_refused(program("predict", "x", "--resume"), 2, "--resume needs the --output FILE")
    assert_refused(program("predict", "x", "-o", "o.txt"), 2, "o.txt", "add --json or --csv")
    assert_refused(program("predict", "x", "-o", "o.csv", "--json"), 2, "--json", "o.csv")
    assert_refused(program("predict", IMAGES[0], "-o", "no/o.csv"), 2, "mkdir -p no")
    program("predict", IMAGES[0], "-o", "o.csv", "-q")
    done = program("predict", IMAGES[1], "-o", "o.csv", "--resume", "-q")
    assert_refused(done, 2, "its answer 1 answers", IMAGES[0], IMAGES[1])


@pytest.mark.parametrize("workers", [[], ["--workers", "0"], ["--workers", "2"]], ids=str)
def test_answers_come_while_stdin_stays_open(folder: Path, workers: list[str]) -> None:
    command = [sys.executable, "-m", "vtrain", "predict", "-", "--json", "-q", *workers]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for names in ([IMAGES[0]], ["nix.jpg", *IMAGES[1:4]], ["nix.jpg"], [IMAGES[5]]):
            process.stdin.write("".join(f"{name}\n" for name in names))
            process.stdin.flush()
            answers = [json.loads(process.stdout.readline()) for _ in names]
            assert [each["path"] for each in answers] == names
            assert [each["status"] == "ok" for each in answers] == [n in IMAGES for n in names]
        process.stdin.close()
        assert process.stdout.read() == ""
    assert process.returncode == 3


def test_newest_finished_run_is_the_default_and_is_named(folder: Path, program: Program) -> None:
    done = program("predict", IMAGES[0])
    assert (done.code, done.err) == (0, "model: runs/tiny-001/model.safetensors, fp32\n")
    assert program("fit", "tiny.yaml", "-q").code == 0
    assert program("predict", IMAGES[0]).err == "model: runs/tiny-002/model.safetensors, fp32\n"
    Path("runs/tiny-002/result.json").unlink()  # as if it had been stopped
    assert program("predict", IMAGES[0]).err == "model: runs/tiny-001/model.safetensors, fp32\n"
    assert program("predict", IMAGES[0], "-q").err == ""


@pytest.mark.parametrize("command", ["predict x.jpg", "evaluate images", "embed images o.npy"])
def test_no_finished_run(empty: Path, program: Program, command: str) -> None:
    draw_image(Path("images/a/x.png"))
    done = program(*command.split())
    assert_refused(
        done, 4, "error: no finished run below runs/", "vtrain fit CONFIG", "-m resnet50"
    )
    assert len(done.talk) == 2


def test_model_file_folder_and_backbone(folder: Path, program: Program) -> None:
    by_folder = program("predict", "images/val", "--csv", "-m", "runs/tiny-001").out
    by_file = program("predict", "images/val", "--csv", "-m", "runs/tiny-001/model.safetensors").out
    assert by_folder == by_file
    done = program("predict", IMAGES[0], "-m", "simple_cnn:none", "--json")
    assert done.code == 0
    assert len(read_json(done.out)[0]["predictions"]) == 5


def test_top_k(folder: Path, program: Program) -> None:
    for asked, given in ((1, 1), (3, 3), (50, 3)):
        done = program("predict", IMAGES[0], "--json", "-k", str(asked))
        assert len(read_json(done.out)[0]["predictions"]) == given


def test_batches_and_workers_change_nothing(folder: Path, program: Program) -> None:
    one = read_json(program("predict", "images", "--json").out)
    other = read_json(program("predict", "images", "--json", "--batch-size", "5").out)
    assert [row["path"] for row in one] == [row["path"] for row in other]
    for before, after in zip(one, other, strict=True):
        for first, second in zip(before["predictions"], after["predictions"], strict=True):
            assert first["class"] == second["class"]
            assert first["probability"] == pytest.approx(second["probability"], abs=1e-5)


def test_file_names_survive_json_and_csv(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    names = [
        b"\xff.png",
        b"a\x1b[1mb.png",
        "\u202egnp.png".encode(),
        b"=cmd.png",
        b"two\nlines.png",
    ]
    for number, name in enumerate(names):
        draw_image(Path(os.fsdecode(name)), seed=number)
    asked = [os.fsdecode(name) for name in names]
    assert vtrain.cli.main(["predict", *asked, "--json"]) == 0
    rows = read_json(capfdbinary.readouterr().out.decode("ascii"))
    assert [os.fsencode(row["path"]) for row in rows] == names
    assert vtrain.cli.main(["predict", *asked, "--csv"]) == 0
    text = capfdbinary.readouterr().out.decode("utf-8", "surrogateescape")
    paths = [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert paths == [name if name != "=cmd.png" else "'=cmd.png" for name in asked]
    assert vtrain.cli.main(["predict", *asked]) == 0
    lines = capfdbinary.readouterr().out.decode("ascii").splitlines()
    assert len(lines) == len(names)
    assert all(line.isprintable() for line in lines)


def test_reader_that_leaves_early(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As in `vtrain predict images | head -1`.
    reader, writer = os.pipe()
    os.close(reader)
    talk = io.StringIO()
    with open(writer, "w", encoding="utf-8") as stream:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", talk)
        assert vtrain.cli.main(["predict", "images"]) == 0
    assert talk.getvalue() == "model: runs/tiny-001/model.safetensors, fp32\n"


@pytest.mark.parametrize("command", ["predict IMAGE", "evaluate images/val", "embed IMAGE o.npy"])
def test_precision_is_chosen_and_said(folder: Path, program: Program, command: str) -> None:
    arguments = command.replace("IMAGE", IMAGES[0]).split()
    for precision, said in (("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")):
        done = program(*arguments, "--precision", precision)
        expected = f"model: runs/tiny-001/model.safetensors, {said}"
        assert (done.code, done.talk[0]) == (0, expected)
        assert all(line.startswith("warning: ") for line in done.talk[1:])


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_precision_that_cannot_be(folder: Path, program: Program, precision: str) -> None:
    done = program("predict", IMAGES[0], "--precision", precision, "--device", "cpu")
    assert_refused(done, 2, "precision", precision)


# --- answers that are unknown --------------------------------------------------------------------


def ask(program: Program, *options: str, form: str = "--json") -> Any:
    done = program("predict", "images/val", "-m", "runs/tiny-001", "-q", form, *options)
    assert done.code == 0, done
    return read_json(done.out) if form == "--json" else done.out


def test_answers_below_a_confidence_are_unknown(folder: Path, program: Program) -> None:
    plain = ask(program)
    assert [row["answer"] for row in plain] == [row["predictions"][0]["class"] for row in plain]
    assert {row["rejected"] for row in plain} == {None}
    values = sorted(row["predictions"][0]["probability"] for row in plain)
    bound = (values[2] + values[3]) / 2
    rows = ask(program, "--min-confidence", str(bound))
    for row, before in zip(rows, plain, strict=True):
        unsure = row["predictions"][0]["probability"] < bound
        assert row["rejected"] == ("confidence" if unsure else None)
        assert row["answer"] == ("unknown" if unsure else before["answer"])
        assert row["predictions"] == before["predictions"]
    assert sum(row["answer"] == "unknown" for row in rows) == 3
    assert len({row["answer"] for row in ask(program, "--min-confidence", "1")}) == 1
    assert ask(program, "--min-confidence", "0") == plain


def test_answers_beyond_a_distance_are_unknown(folder: Path, program: Program) -> None:
    plain = ask(program)
    bound = sorted(row["distance"] for row in plain)[3]
    rows = ask(program, "--max-distance", str(bound), "--min-confidence", "1")
    far = [row["distance"] > bound for row in rows]
    assert sum(far) == 2
    assert [row["rejected"] for row in rows] == ["distance" if d else "confidence" for d in far]
    assert {row["answer"] for row in rows} == {"unknown"}


def test_unknown_in_text_and_csv(folder: Path, program: Program) -> None:
    text = program("predict", "images/val", "-q", "--min-confidence", "1").out
    assert all(": unknown: " in line and " %" in line for line in text.splitlines())
    assert "not sure" in text
    far = program("predict", "images/val", "-q", "--max-distance", "0").out
    assert all(
        ": unknown: too far; " in line or ": unknown: unlike the training images (distance " in line
        for line in far.splitlines()
    )
    table = ask(program, "--min-confidence", "1", form="--csv")
    for row in csv.DictReader(io.StringIO(table)):
        assert (row["status"], row["answer"], row["rejected"]) == ("ok", "unknown", "confidence")
        assert row["class_1"] in CLASSES
        assert float(row["distance"]) > 0


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv"])
def test_unknown_answers_in_a_file_that_is_resumed(
    folder: Path, program: Program, name: str
) -> None:
    command = ["predict", "images", "-q", "-o", name, "--batch-size", "4"]
    bounds = ["--min-confidence", "0.3", "--max-distance", "0.9"]
    assert program(*command, *bounds).code == 0
    whole = Path(name).read_bytes()
    assert b"unknown" in whole
    lines = whole.splitlines(keepends=True)
    for kept in (b"".join(lines[:9]), b"".join(lines[:10]) + lines[10][:7]):
        Path(name).write_bytes(kept)
        assert program(*command, *bounds, "--resume").code == 0
        assert Path(name).read_bytes() == whole
    Path(name).write_bytes(b"".join(lines[:9]))
    other = program(*command, "--min-confidence", "1", "--resume")
    assert_refused(other, 2, f"cannot resume {name}", "the same inputs, model and options")
    assert Path(name).read_bytes() == b"".join(lines[:9])


@pytest.mark.parametrize("model", ["simple_cnn:none", "untrained"])
def test_distance_of_a_model_that_knows_none(folder: Path, program: Program, model: str) -> None:
    if model == "untrained":
        model = "runs/tiny-001/model.safetensors"
        tensors, metadata = load_tensors(Path(model))
        del tensors["novelty.bank"]
        described = json.loads(metadata["vtrain"]) | {"novelty": None}
        save_tensors(Path(model), tensors, {"vtrain": json.dumps(described)})
    done = program("predict", IMAGES[0], "-m", model, "--max-distance", "1")
    assert_refused(done, 2, "does not know its training images", "leave --max-distance out")
    done = program("predict", IMAGES[0], "-m", model, "--min-confidence", "1", "--json")
    (row,) = read_json(done.out)
    assert (row["distance"], row["answer"], row["rejected"]) == (None, "unknown", "confidence")


@pytest.mark.parametrize(
    "bounds",
    [
        ["--min-confidence", "1.5"],
        ["--min-confidence", "-0.1"],
        ["--min-confidence", "nan"],
        ["--max-distance", "-1"],
        ["--max-distance", "nan"],
        ["--max-distance", "far"],
    ],
)
def test_bounds_that_cannot_be(folder: Path, program: Program, bounds: list[str]) -> None:
    done = program("predict", IMAGES[0], *bounds)
    assert (done.code, done.out) == (2, "")
    assert bounds[0].removeprefix("--") in done.err


def test_raw_and_views(folder: Path, program: Program) -> None:
    plain, raw, views = ask(program), ask(program, "--raw"), ask(program, "--tta")

    def best(rows: list[dict[str, Any]]) -> list[float]:
        return [row["predictions"][0]["probability"] for row in rows]

    assert best(raw) != best(plain)
    assert [row["answer"] for row in raw] == [row["answer"] for row in plain]
    assert best(views) != best(plain)
    for rows in (raw, views):
        assert [row["distance"] for row in rows] == [row["distance"] for row in plain]
    for row in views:
        assert sum(each["probability"] for each in row["predictions"]) == pytest.approx(1)
    assert best(ask(program, "--tta", "--raw")) != best(views)


def test_a_class_called_unknown(empty: Path, program: Program) -> None:
    for split, count in {"train": 6, "val": 2}.items():
        draw_labelled(Path("images", split), {"known": count, "unknown": count})
    Path("tiny.yaml").write_text(CONFIG)
    assert program("fit", "tiny.yaml", "-q", "train.epochs=1", "run_dir=runs/tiny-001").code == 0
    sure, unsure = ask(program), ask(program, "--min-confidence", "1")
    assert {row["rejected"] for row in sure} == {None}
    for row in sure:
        assert row["answer"] == row["predictions"][0]["class"]
    assert {(row["answer"], row["rejected"]) for row in unsure} == {("unknown", "confidence")}
