"""Predictions in files: the same as on stdout, and resumed where they were cut off."""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.helpers.tiny import break_image, build_tiny_model, draw_image
from tests.helpers.told import Told
from vtrain.errors import InterruptedRunError, ResourceError, UsageError
from vtrain.results.inputs import PredictInput
from vtrain.results.predict import (
    predict,
    prediction_csv_header,
    prediction_csv_row,
    prediction_json,
)
from vtrain.results.prediction_files import (
    FileForm,
    WrittenPredictions,
    choose_form,
    write_predictions,
)
from vtrain.system.json_csv import format_csv_row

CLASSES = ("ant", "=bee", "cat", "dog", "eel", "fox")
FORMS: tuple[FileForm, ...] = ("json", "csv")


@pytest.fixture
def inputs(tmp_path: Path) -> list[PredictInput]:
    """Five images and three errors, with names that CSV has to quote."""
    names = ("a.png", "=b.png", 'two\nlines,\r".png', "d.png", os.fsdecode(b"caf\xe9.png"))
    folder = tmp_path / "images"
    for number in range(5):
        draw_image(folder / f"{number}.png", seed=number).rename(folder / names[number])
    good = [PredictInput(str(folder / name)) for name in names]
    gone = PredictInput("=gone", "no such file or folder")
    bad = PredictInput(str(break_image(folder / "bad.png")))
    return [gone, *good[:2], bad, *good[2:4], gone, good[4]]


def write(
    output: Path,
    inputs: list[PredictInput],
    form: FileForm,
    *,
    seed: int = 0,
    top_k: int = 2,
    resume: bool = False,
) -> WrittenPredictions:
    return write_predictions(
        output,
        inputs,
        build_tiny_model(CLASSES, seed=seed),
        form=form,
        top_k=top_k,
        batch_size=2,
        workers=0,
        resume=resume,
    )


def test_file_holds_what_predict_says(tmp_path: Path, inputs: list[PredictInput]) -> None:
    model = build_tiny_model(CLASSES)
    answers = list(predict(inputs, model, top_k=2, batch_size=2, workers=0))
    assert write(tmp_path / "o.jsonl", inputs, "json") == WrittenPredictions(8, 3)
    lines = (tmp_path / "o.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line) for line in lines] == [prediction_json(each) for each in answers]
    assert write(tmp_path / "o.csv", inputs, "csv") == WrittenPredictions(8, 3)
    rows: list[Sequence[object]] = [prediction_csv_header(2)]
    rows += [prediction_csv_row(each, 2) for each in answers]
    expected = "".join(f"{format_csv_row(row)}\n" for row in rows)
    assert (tmp_path / "o.csv").read_bytes() == expected.encode("utf-8", "surrogateescape")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "images",
        "o.csv",
        "o.csv.vtrain.json",
        "o.jsonl",
        "o.jsonl.vtrain.json",
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_off_anywhere_is_resumed_to_the_same_bytes(
    tmp_path: Path, inputs: list[PredictInput], form: FileForm
) -> None:
    output = tmp_path / "out"
    whole = write(output, inputs, form)
    content = output.read_bytes()
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")]
    cuts = {0, 1, *ends, *(end + 1 for end in ends), *(end + 30 for end in ends[:-1])}
    for cut in sorted(cuts):
        output.write_bytes(content[:cut])
        assert write(output, inputs, form, resume=True) == whole, cut
        assert output.read_bytes() == content, cut


@pytest.mark.parametrize("form", FORMS)
def test_other_inputs_and_other_models_are_not_mixed(
    tmp_path: Path, inputs: list[PredictInput], form: FileForm
) -> None:
    output = tmp_path / "out"
    write(output, inputs[:5], form)
    before = output.read_bytes()
    for other, message in (
        ([*inputs[:4], inputs[5]], "answer 5 answers .*, the input is"),
        (inputs[:4], "answer 5 .* there is no such input"),
        (inputs[1:], "answer 1 "),
    ):
        with pytest.raises(UsageError, match=f"(?s){message}") as caught:
            write(output, other, form, resume=True)
        assert "without --resume" in (caught.value.hint or "")
    with pytest.raises(UsageError, match=r"(?s)other work:.*  model_digest: .* -> "):
        write(output, inputs, form, seed=1, resume=True)
    with pytest.raises(UsageError, match="other work:\n  top_k: 2 -> 3"):
        write(output, inputs, form, top_k=3, resume=True)
    with pytest.raises(UsageError, match="other work:\n  form: "):
        write(output, inputs, "csv" if form == "json" else "json", resume=True)
    assert output.read_bytes() == before


@pytest.mark.parametrize("changed", ["classes", "temperature", "precision"])
def test_a_model_of_the_same_weights_can_be_another(
    tmp_path: Path, inputs: list[PredictInput], changed: str
) -> None:
    values: dict[str, Any] = {
        "classes": tuple(reversed(CLASSES)),
        "temperature": 2.0,
        "precision": "bf16",
    }
    output = tmp_path / "out.csv"
    write(output, inputs[:5], "csv")
    model = build_tiny_model(CLASSES)
    # A model file that was moved is the same.
    moved = replace(model, source="elsewhere")
    asked: dict[str, Any] = {"form": "csv", "top_k": 2, "workers": 0, "resume": True}
    write_predictions(output, inputs, moved, **asked)
    with pytest.raises(UsageError, match="model_digest: "):
        write_predictions(output, inputs, replace(model, **{changed: values[changed]}), **asked)


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"{}", b'{"schema": 1, "model": 3}', b"\xff"]
)
def test_answers_of_which_nothing_tells_the_model_are_not_resumed(
    tmp_path: Path, inputs: list[PredictInput], content: bytes | None
) -> None:
    output, sidecar = tmp_path / "out.csv", tmp_path / "out.csv.vtrain.json"
    write(output, inputs[:5], "csv")
    before = output.read_bytes()
    sidecar.unlink()
    if content is not None:
        sidecar.write_bytes(content)
    found = "is missing" if content is None else "is damaged"
    with pytest.raises(UsageError, match=rf"out\.csv\.vtrain\.json, .*, {found}") as caught:
        write(output, inputs, "csv", resume=True)
    assert "start afresh without --resume" in (caught.value.hint or "")
    assert output.read_bytes() == before
    output.unlink()
    assert write(output, inputs, "csv").count == 8
    assert write(output, inputs, "csv", resume=True).count == 8


@pytest.mark.parametrize("form", FORMS)
def test_a_finished_file_is_left_as_it_is(
    tmp_path: Path, inputs: list[PredictInput], form: FileForm
) -> None:
    output = tmp_path / "out"
    whole = write(output, inputs, form)
    content = output.read_bytes()
    for each in inputs:
        Path(each.path).unlink(missing_ok=True)  # nothing is read again
    assert write(output, inputs, form, resume=True) == whole
    assert output.read_bytes() == content


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [b"my notes\nand more\n", b"1\n", b'a,"b"c\nd\n', b"{}\n"])
@pytest.mark.parametrize("has_sidecar", [True, False])
def test_other_files_are_not_appended_to(
    tmp_path: Path, inputs: list[PredictInput], form: FileForm, content: bytes, has_sidecar: bool
) -> None:
    output = tmp_path / "out"
    if has_sidecar:
        write(output, inputs, form)
    output.write_bytes(content)
    with pytest.raises(UsageError, match="cannot resume"):
        write(output, inputs, form, resume=True)
    assert output.read_bytes() == content


def test_without_resume_a_file_is_refused_and_nothing_to_resume_starts(
    tmp_path: Path, inputs: list[PredictInput]
) -> None:
    output = tmp_path / "out.csv"
    write(output, inputs, "csv", resume=True)
    whole = output.read_bytes()
    with pytest.raises(UsageError, match="exists already") as caught:
        write(output, inputs[:3], "csv")
    assert "--resume" in (caught.value.hint or "")
    assert output.read_bytes() == whole
    output.write_bytes(b"")  # nothing that could get lost
    write(output, inputs[:3], "csv")
    assert whole.startswith(output.read_bytes())
    assert len(output.read_bytes().splitlines()) == 4


def test_interrupt_keeps_the_answers_and_says_how_to_go_on(
    tmp_path: Path, inputs: list[PredictInput]
) -> None:
    output = tmp_path / "out.jsonl"

    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="not complete") as caught:
        write_predictions(
            output,
            inputs,
            build_tiny_model(CLASSES),
            form="json",
            batch_size=2,
            workers=0,
            reporter=Told(on_update=stop),
        )
    assert "--resume" in (caught.value.hint or "")
    assert len(output.read_bytes().splitlines()) == 5
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_full_disk_says_how_to_go_on(
    tmp_path: Path, inputs: list[PredictInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("vtrain.results.prediction_files._encode", Mock(side_effect=full))
    with pytest.raises(ResourceError, match="no space left") as caught:
        write(tmp_path / "out.csv", inputs, "csv")
    assert "--resume" in (caught.value.hint or "")


def test_outputs_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    def explode() -> Iterator[PredictInput]:
        raise AssertionError("an input was looked for")
        yield

    for output, message in ((tmp_path, "a folder"), (tmp_path / "no" / "x.csv", "does not exist")):
        with pytest.raises(UsageError, match=message):
            write_predictions(output, explode(), build_tiny_model(CLASSES), form="csv")


@pytest.mark.parametrize(
    ("name", "as_json", "as_csv", "form"),
    [
        ("o.jsonl", False, False, "json"),
        ("o.CSV", False, False, "csv"),
        ("o.txt", True, False, "json"),
        ("o", False, True, "csv"),
        ("o.csv", False, True, "csv"),
    ],
)
def test_form_by_suffix_or_option(name: str, as_json: bool, as_csv: bool, form: str) -> None:
    assert choose_form(Path(name), as_json=as_json, as_csv=as_csv) == form


def test_form_that_is_not_clear_is_refused() -> None:
    with pytest.raises(UsageError, match=r"neither \.jsonl nor \.csv"):
        choose_form(Path("o.txt"), as_json=False, as_csv=False)
    with pytest.raises(UsageError, match="--json was given, but output"):
        choose_form(Path("o.csv"), as_json=True, as_csv=False)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 200_000,
        '{"path": "a", "predictions": [{"class": "ant", "probability": 1}], "error": null}',
    ],
    ids=["lists within lists", "no status"],
)
def test_other_json_is_no_part_of_predictions(tmp_path: Path, line: str) -> None:
    output = tmp_path / "out.jsonl"
    inputs = [PredictInput("a", "no such file")]
    write(output, inputs, "json")
    output.write_text(f"{line}\n")
    with pytest.raises(UsageError, match="something else than predictions as json"):
        write(output, inputs, "json", resume=True)
    assert output.read_text() == f"{line}\n"
