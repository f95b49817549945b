import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tests.helpers.tiny import CPU, break_image, build_tiny_model, draw_image, poison
from tests.helpers.told import Told
from vtrain.commands.predict import format_prediction
from vtrain.data.images import read_image
from vtrain.data.transforms import EvalTransform, normalize_images
from vtrain.errors import UsageError
from vtrain.results.inputs import FoundInputs, PredictInput
from vtrain.results.predict import (
    ClassProbability,
    Prediction,
    predict,
    prediction_csv_header,
    prediction_csv_row,
    prediction_json,
)
from vtrain.system.reporter import SILENT

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def find(*arguments: str, stdin: bytes = b"") -> list[PredictInput]:
    return list(FoundInputs(arguments, io.BytesIO(stdin), reporter=SILENT))


def inputs_of(*paths: Path) -> list[PredictInput]:
    return [PredictInput(str(path)) for path in paths]


# --- inputs


def test_arguments_keep_their_order_and_repeat(tmp_path: Path) -> None:
    b, a = draw_image(tmp_path / "b.png"), draw_image(tmp_path / "a.png")
    found = find(str(b), str(a), str(b))
    assert found == inputs_of(b, a, b)


def test_folder_stands_for_its_images_at_any_depth_sorted(tmp_path: Path) -> None:
    paths = [draw_image(tmp_path / name) for name in ("z.png", "deep/er/a.jpg", "b.png")]
    (tmp_path / "notes.txt").write_text("no image")
    assert [each.path for each in find(str(tmp_path))] == sorted(map(str, paths))


def test_skipped_files_of_a_folder_are_said(tmp_path: Path) -> None:
    draw_image(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    said: list[str] = []
    list(FoundInputs([str(tmp_path)], io.BytesIO(), reporter=Told(said)))
    assert len(said) == 1
    assert "1 skipped" in said[0]
    assert "notes.txt" in said[0]


def test_glob_matches_sorted_and_a_literal_name_wins(tmp_path: Path) -> None:
    paths = [draw_image(tmp_path / name) for name in ("2.png", "1.png", "x/3.png")]
    assert find(str(tmp_path / "*.png")) == inputs_of(paths[1], paths[0])
    assert find(str(tmp_path / "**" / "3*")) == inputs_of(paths[2])
    odd = draw_image(tmp_path / "[12].png")
    assert find(str(odd)) == inputs_of(odd)


def test_standard_input_lists_paths_literally(tmp_path: Path) -> None:
    odd = draw_image(tmp_path / "[1] *.png")
    draw_image(tmp_path / "1.png")
    other = tmp_path / "missing.png"
    text = f"{odd}\r\n\n{other}\n{tmp_path / '*.png'}".encode()
    found = find("-", stdin=text)
    assert [each.path for each in found] == [str(odd), str(other), str(tmp_path / "*.png")]
    assert [each.error is None for each in found] == [True, False, False]


def test_standard_input_takes_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    path = Path(os.fsdecode(name))
    draw_image(tmp_path / "plain.png").rename(path)
    assert find("-", stdin=name + b"\n") == inputs_of(path)


def test_arguments_that_stand_for_nothing_are_errors_in_their_place(tmp_path: Path) -> None:
    image = draw_image(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    arguments = [
        "",
        str(tmp_path / "nothing.png"),
        str(tmp_path / "*.gif"),
        str(tmp_path / "empty"),
        str(tmp_path / "link.png"),
        "x" * 5000,
        "nul\0byte",
        str(image),
    ]
    found = find(*arguments)
    assert [each.path for each in found] == arguments
    assert [bool(each.error) for each in found] == [True] * 7 + [False]
    assert found[1].error == "no such file or folder"
    assert found[2].error == "no file matches this pattern"
    assert found[3].error == "the folder holds no images"


# --- predictions


def test_every_input_is_answered_in_order_and_bad_ones_say_why(tmp_path: Path) -> None:
    model = build_tiny_model(CLASSES)
    good = [draw_image(tmp_path / f"{index}.png", seed=index) for index in range(5)]
    bad = break_image(tmp_path / "bad.jpg")
    text = tmp_path / "text.png"
    text.write_text("hello")
    paths = [good[0], bad, good[1], good[0], text, good[2], good[3], bad, good[4]]
    inputs = inputs_of(*paths)
    inputs.insert(3, PredictInput("nowhere.png", "no such file or folder"))
    answers = list(predict(inputs, model, batch_size=2, workers=0))

    assert [each.path for each in answers] == [each.path for each in inputs]
    assert [each.error is None for each in answers] == [
        each.error is None and Path(each.path) not in (bad, text) for each in inputs
    ]
    assert all(bool(each.predictions) != bool(each.error) for each in answers)
    assert answers[3].error == "no such file or folder"
    alone = {path: next(predict(inputs_of(path), model, workers=0)) for path in good}
    assert len({each.predictions for each in alone.values()}) == 5
    for answer in answers:
        if answer.error is None:
            expected = alone[Path(answer.path)].predictions
            assert [each.name for each in answer.predictions] == [each.name for each in expected]
            # float32 rounds differently in batches of another size, see test_evaluate.py
            assert [each.probability for each in answer.predictions] == pytest.approx(
                [each.probability for each in expected], abs=1e-5
            )


def test_only_bad_inputs_give_only_errors(tmp_path: Path) -> None:
    bad = [break_image(tmp_path / f"{index}.jpg") for index in range(3)]
    inputs = [PredictInput("gone", "no such file or folder"), *inputs_of(*bad)]
    answers = list(predict(inputs, build_tiny_model(CLASSES), batch_size=2, workers=0))
    assert len(answers) == 4
    assert all(each.error and not each.predictions for each in answers)
    only_missing = list(predict(inputs[:1], build_tiny_model(CLASSES), workers=0))
    assert [each.error for each in only_missing] == ["no such file or folder"]


def test_probabilities_are_the_softmax_of_the_models_logits(tmp_path: Path) -> None:
    model = build_tiny_model(CLASSES)
    path = draw_image(tmp_path / "a.jpg", size=(200, 120))
    pixels = EvalTransform(model.preprocessing)(read_image(path))[None]
    with torch.inference_mode():
        images = normalize_images(pixels, model.preprocessing, device=CPU)
        expected = model.classifier(images)[0].double().softmax(dim=0)
    (answer,) = predict(inputs_of(path), model, top_k=len(CLASSES), workers=0)
    probabilities = [each.probability for each in answer.predictions]
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert probabilities == sorted(probabilities, reverse=True)
    for each in answer.predictions:
        index = CLASSES.index(each.name)
        assert each.probability == pytest.approx(expected[index].item(), abs=1e-6)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (7, 7), (100, 7)])
def test_top_k_is_clamped_to_the_classes(tmp_path: Path, top_k: int, count: int) -> None:
    path = draw_image(tmp_path / "a.png")
    (answer,) = predict(inputs_of(path), build_tiny_model(CLASSES), top_k=top_k, workers=0)
    assert len({each.name for each in answer.predictions}) == count


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_refused_at_once(top_k: int) -> None:
    with pytest.raises(UsageError, match=f"top-k is {top_k}"):
        predict([], build_tiny_model(CLASSES), top_k=top_k)


def test_not_finite_output_is_an_error_and_no_class(tmp_path: Path) -> None:
    paths = [draw_image(tmp_path / f"{index}.png", seed=index) for index in range(3)]
    answers = list(predict(inputs_of(*paths), poison(build_tiny_model(CLASSES)), workers=0))
    assert len(answers) == 3
    for answer in answers:
        assert answer.predictions == ()
        assert answer.error is not None
        assert "not finite" in answer.error


def test_answers_come_as_their_batch_is_done_and_leave_no_inference_mode(tmp_path: Path) -> None:
    paths = [draw_image(tmp_path / f"{index}.png", seed=index) for index in range(3)]
    answers = predict(inputs_of(*paths), build_tiny_model(CLASSES), batch_size=1, workers=0)
    assert next(answers).error is None
    assert not torch.is_inference_mode_enabled()
    paths[2].unlink()
    assert [each.error is None for each in answers] == [True, False]


def test_no_inputs_give_no_answers() -> None:
    assert list(predict([], build_tiny_model(CLASSES), workers=0)) == []


def test_json_lines_have_the_keys_of_the_contract(tmp_path: Path) -> None:
    image, bad = draw_image(tmp_path / "a.png"), break_image(tmp_path / "b.png")
    answers = list(predict(inputs_of(image, bad), build_tiny_model(CLASSES), top_k=2, workers=0))
    good_line, bad_line = (json.loads(json.dumps(prediction_json(each))) for each in answers)
    keys = ["schema", "path", "status", "predictions", "error", "answer", "rejected", "distance"]
    assert list(good_line) == list(bad_line) == keys
    assert good_line["schema"] == 1
    assert (good_line["status"], good_line["error"]) == ("ok", None)
    assert [set(each) for each in good_line["predictions"]] == [{"class", "probability"}] * 2
    assert good_line["predictions"][0]["class"] in CLASSES
    assert good_line["answer"] == good_line["predictions"][0]["class"]
    assert (good_line["rejected"], good_line["distance"], bad_line["answer"]) == (None, None, None)
    assert (bad_line["status"], bad_line["predictions"]) == ("error", [])
    assert bad_line["path"] == str(bad)
    assert bad_line["error"]


def test_csv_rows_fit_their_header_and_lines_name_classes() -> None:
    good = Prediction("a.png", (ClassProbability("cat", 0.75), ClassProbability("50%", 0.25)))
    bad = Prediction("b.png", error="no such file or folder")
    header = prediction_csv_header(3)
    rows = [dict(zip(header, prediction_csv_row(each, 3), strict=True)) for each in (good, bad)]
    assert rows[0] == {
        "path": "a.png",
        "status": "ok",
        "class_1": "cat",
        "probability_1": 0.75,
        "class_2": "50%",
        "probability_2": 0.25,
        "class_3": None,
        "probability_3": None,
        "error": None,
        "answer": "cat",
        "rejected": None,
        "distance": None,
    }
    assert (rows[1]["status"], rows[1]["class_1"]) == ("error", None)
    assert rows[1]["error"] == "no such file or folder"
    assert format_prediction(good) == "a.png: cat 75.0 %, 50% 25.0 %"
    assert format_prediction(bad) == "b.png: error: no such file or folder"


def test_names_that_are_no_utf8_survive_json() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    line = json.dumps(prediction_json(Prediction(name, error="gone")))
    assert line.isascii()
    assert json.loads(line)["path"] == name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_a_model_on_cuda_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr("vtrain.results.predict.find_model_device", lambda _: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader = Mock(side_effect=InterruptedError)
    monkeypatch.setattr("vtrain.results.predict.build_stream_loader", loader)
    path = draw_image(tmp_path / "a.png")
    with pytest.raises(InterruptedError):
        list(predict(inputs_of(path), build_tiny_model(CLASSES), workers=0))
    assert loader.call_args.kwargs["pin_memory"] is (device == "cuda")


def test_inputs_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    paths = [draw_image(tmp_path / f"{index}.png", seed=index) for index in range(4)]
    taken = 0

    def endless() -> Iterator[PredictInput]:
        nonlocal taken
        while True:
            taken += 1
            yield PredictInput(str(paths[taken % 4]))

    answers = predict(endless(), build_tiny_model(CLASSES), batch_size=2, workers=0)
    for count in range(1, 9):
        assert next(answers).error is None
        assert taken <= count + 2


@pytest.mark.parametrize("workers", [0, 2])
def test_all_that_is_there_is_answered_before_the_next_is_waited_for(
    tmp_path: Path, workers: int
) -> None:
    paths = [draw_image(tmp_path / f"{index}.png", seed=index) for index in range(3)]
    gone = PredictInput("gone", "no such file or folder")
    answered: list[str] = []
    seen: list[int] = []

    def give() -> Iterator[PredictInput | None]:
        for some in (inputs_of(paths[0]), [gone], [gone, *inputs_of(*paths[1:])], []):
            yield from some
            yield None
            seen.append(len(answered))

    for each in predict(give(), build_tiny_model(CLASSES), workers=workers):
        answered.append(each.path)  # noqa: PERF401 -- `give` looks at it meanwhile
    assert seen == [1, 2, 5, 5]
    assert answered == [str(paths[0]), "gone", "gone", *map(str, paths[1:])]


def test_errors_without_an_image_between_them_do_not_queue_up() -> None:
    taken = 0

    def endless() -> Iterator[PredictInput]:
        nonlocal taken
        while True:
            taken += 1
            yield PredictInput(f"{taken}.png", "no such file or folder")

    answers = predict(endless(), build_tiny_model(CLASSES), workers=0)
    assert [next(answers).path for _ in range(1500)][-1] == "1500.png"
    assert taken == 2000


@pytest.mark.parametrize("batch_size", [3, 70])
def test_workers_change_no_bit_of_a_stream(tmp_path: Path, batch_size: int) -> None:
    paths = [draw_image(tmp_path / f"{index}.png", seed=index) for index in range(5)]
    bad = break_image(tmp_path / "bad.png")
    inputs = inputs_of(*[path for _ in range(14) for path in (*paths, bad)])
    inputs.insert(7, PredictInput("gone", "no such file or folder"))
    model = build_tiny_model(CLASSES)
    alone = list(predict(inputs, model, batch_size=batch_size, workers=0))
    assert list(predict(iter(inputs), model, batch_size=batch_size, workers=2)) == alone
    assert list(predict(iter(inputs), model, batch_size=batch_size)) == alone
    assert [each.path for each in alone] == [each.path for each in inputs]


def test_inputs_are_counted_a_folder_at_a_time(tmp_path: Path) -> None:
    for index in range(3):
        draw_image(tmp_path / "folder" / f"{index}.png")
    found = FoundInputs(["gone", str(tmp_path / "folder"), "gone"], io.BytesIO(), reporter=SILENT)
    assert [found.known for _ in found] == [1, 4, 4, 4, 5]
