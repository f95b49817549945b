"""The report of a run: from all of its files, from some of them, and from strange ones."""

import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.browser import check_page, check_source
from tests.helpers.report_runs import HOSTILE, build_epochs, change_json, write_run
from vtrain.errors import UsageError
from vtrain.pages.report.embedding_map import principal_components, project
from vtrain.pages.report.galleries import (
    find_label_errors,
    find_least_sure,
    find_shown_images,
    find_strangest,
    find_worst,
)
from vtrain.pages.report.model_card import escape_markdown
from vtrain.pages.report.report import ReportResult, write_report
from vtrain.pages.thumbnails import Thumbnail, make_thumbnail
from vtrain.runs.evaluation_files import ImagePrediction
from vtrain.runs.metric_log import write_metrics
from vtrain.system.json_csv import to_plain, write_csv

NAMES = ("ant", "bee", "cow")


def read(result: ReportResult) -> str:
    return result.page.read_text(encoding="utf-8")


def predict(
    label: str, prediction: str, probability: float, given: float = math.nan, second: float = 0.0
) -> ImagePrediction:
    path = Path(f"{label}-{prediction}-{probability}.jpg")
    right = label == prediction
    return ImagePrediction(
        path, label, prediction, probability, right, probability if right else given, "b", second
    )


# --- what is found -------------------------------------------------------------------------------


def test_worst_and_least_sure() -> None:
    rows = [
        predict("a", "a", 0.9),
        predict("a", "b", 0.7),
        predict("a", "b", 0.95),
        predict("a", "a", 0.5, second=0.49),
        predict("a", "b", math.nan),
    ]
    assert [each.probability for each in find_worst(rows, 2)] == [0.95, 0.7]
    assert [each.probability for each in find_least_sure(rows, 1)] == [0.5]
    far = [replace(rows[0], distance=each) for each in (1.5, math.nan, 0.9, 3.0)]
    assert [each.distance for each in find_strangest(far, 9)] == [3.0, 1.5]


def test_label_errors_by_the_rule_of_the_paper() -> None:
    """Thresholds: a (0.9 + 0.8 + 0.1) / 3 = 0.6, b (0.7 + 0.5 + 0.3) / 3 = 0.5."""
    rows = [
        predict("a", "a", 0.9),
        predict("a", "a", 0.8),
        predict("a", "b", 0.55, given=0.1),  # b is probable: at least 0.5
        predict("b", "b", 0.7),
        predict("b", "b", 0.5),
        predict("b", "a", 0.58, given=0.3),  # a is not: below 0.6
        predict("b", "a", 0.99),  # nothing is known of its label
    ]
    assert [each.label for each in find_label_errors(rows, 9)] == ["a"]


def test_map_is_that_of_a_whole_decomposition() -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((120, 40)) @ np.diag(np.linspace(3, 0.1, 40))
    values -= values.mean(axis=0)
    places, singular = principal_components(values)
    left, exact, _ = np.linalg.svd(values, full_matrices=False)
    np.testing.assert_allclose(singular, exact[:2], rtol=1e-6)
    np.testing.assert_allclose(np.abs(places), np.abs(left[:, :2] * exact[:2]), atol=1e-3)
    assert (places[np.abs(places).argmax(axis=0), [0, 1]] > 0).all()
    found = project(values, range(120))
    assert found is not None
    assert found.explained == pytest.approx((exact[:2] ** 2).sum() / (exact**2).sum(), rel=1e-6)


def test_map_leaves_out_what_is_not_finite() -> None:
    values = np.eye(5)
    values[2, 2] = np.nan
    found = project(values, [10, 11, 12, 13, 14])
    assert found is not None
    assert found.rows == (10, 11, 13, 14)
    assert project(np.ones((9, 4)), range(9)) is None
    assert project(np.ones((2, 4)), range(2)) is None
    assert project(np.full((9, 4), np.inf), range(9)) is None


# --- a whole run ---------------------------------------------------------------------------------


def test_everything_stands_on_the_page(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "hand-001", NAMES)
    result = write_report(run_dir)
    text = read(result)
    assert result.page == run_dir / "report.html"
    assert result.size == result.page.stat().st_size < 200_000
    assert result.seconds < 5
    for part in (
        "validation top-1", "validation macro F1", "best epoch", "simple_cnn",
        "Validation: a warning of the evaluation", "Accuracy on the validation images",
        "Confusion matrix", "Recall of each class", "Most frequent mistakes", "Surest mistakes",
        "Least sure", "Likely label errors", "Unlike the training images",
        "Expected calibration error",
        "12.0 % before and 2.0 % after temperature scaling (temperature 1.250); "
        "3.0 % at a temperature that is fitted without the image",
        "first principal components", "Phase probe: 2 epochs", "1.00e-03", "250 images/s (median)",
        "Settings that are not the default", "All settings", "Versions and machine",
        "config.resolved.yaml run_dir=", "vtrain predict IMAGE -m",
    ):  # fmt: skip
        assert part in text, part
    assert check_source(result.page) == []
    assert "has not finished" not in text


def test_pictures_that_are_gone_are_told_of(tmp_path: Path) -> None:
    result = write_report(write_run(tmp_path / "hand-001", NAMES, pictures=2))
    text = read(result)
    assert "no picture" in text
    assert any("pictures are missing" in each for each in result.missing)
    assert "`vtrain report" in text


def test_heat_maps_stand_beside_their_images(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "hand-001", NAMES, pictures=60)
    shown = find_shown_images(run_dir)
    assert 0 < len(shown) <= 12
    picture = make_thumbnail(shown[0])
    assert picture is not None
    heat_map = Thumbnail(f"{picture.uri}AAAA", picture.width, picture.height)
    text = read(write_report(run_dir, heat_maps={shown[0]: heat_map}))
    assert f'src="{heat_map.uri}"' in text
    assert "What the prediction rests on" in text
    assert "What the prediction rests on" not in read(write_report(run_dir))


def test_card_says_what_is_known_and_what_is_not(tmp_path: Path) -> None:
    result = write_report(write_run(tmp_path / "hand-001", NAMES))
    card = result.card.read_text(encoding="utf-8")
    assert result.card == tmp_path / "hand-001/model-card.md"
    for part in (
        "# hand-001", "with 3 classes: simple\\_cnn", "random weights", "| val | top-1 |",
        "Classes: ant, bee, cow.", "There is no test set", "Licence of the model: unknown",
        "a warning of the evaluation", "```sh\nvtrain predict IMAGE -m",
    ):  # fmt: skip
        assert part in card, part
    assert "pretrained weights it started from" not in card


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b`c", r"a\|b\`c"),
        ("[x](http://y)", r"\[x\]\(http://y\)"),
        ("<b>", r"\<b\>"),
        ("1. x", r"1\. x"),
        ("- x", r"\- x"),
        ("93.5 %", "93.5 %"),
        ("-3", "-3"),
        ("a\nb", r"a\\nb"),
    ],
)
def test_names_are_no_markdown(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_output_elsewhere(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "hand-001", NAMES)
    result = write_report(run_dir, output=tmp_path / "out.html")
    assert (result.page, result.card) == (tmp_path / "out.html", tmp_path / "out-model-card.md")
    assert not (run_dir / "report.html").exists()
    with pytest.raises(UsageError, match=r"does not end in \.html"):
        write_report(run_dir, output=run_dir / "model.safetensors")
    with pytest.raises(UsageError):
        write_report(run_dir, output=tmp_path / "nowhere/out.html")


# --- runs that lack something --------------------------------------------------------------------

FILES = {
    "evaluation-val.json": "Make it with: vtrain evaluate images/val -m",
    "predictions-val.csv": "no predictions-val.csv",
    "features-val.safetensors": "no features of its validation images",
    "plan.json": "plan.json is missing",
    "env.json": "env.json is missing",
    "data.json": "does not tell which images were used",
    "config.resolved.yaml": "settings of this run cannot be read",
    "metrics.jsonl": "No epoch has been recorded yet",
    "result.json": "has not finished",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_told_of(name: str, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "hand-001", NAMES, pictures=0)
    (run_dir / name).unlink()
    result = write_report(run_dir)
    assert FILES[name] in read(result)
    assert check_source(result.page) == []
    assert result.card.stat().st_size > 500


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"classes": 3}'])
@pytest.mark.parametrize("name", [each for each in FILES if each != "result.json"])
def test_a_damaged_file_is_told_of(name: str, content: bytes, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "hand-001", NAMES, pictures=0, val=9)
    (run_dir / name).write_bytes(content)
    text = read(write_report(run_dir))
    harmless = name in ("plan.json", "env.json") and content.startswith(b'{"')
    if not harmless and not (name == "metrics.jsonl" and not content):
        assert name in text or FILES[name] in text


def test_a_run_of_which_only_metrics_are_left(tmp_path: Path) -> None:
    run_dir = tmp_path / "hand-001"
    run_dir.mkdir()
    write_metrics(run_dir, [to_plain(row) for row in build_epochs(1)])
    text = read(write_report(run_dir))
    assert "has not finished: 1 epoch so far" in text
    assert "50.0 %" in text  # of the only epoch
    assert "interval not known" not in text


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "hand-001", NAMES)
    rows = [to_plain(row) for row in build_epochs(4)]
    rows[2] |= {"train_loss": math.nan, "val_loss": math.inf, "images_per_second": 0.0}
    rows[3] |= {"train_loss": math.nan, "val_top1": math.nan, "lr": math.nan}
    write_metrics(run_dir, rows)
    change_json(run_dir / "evaluation-val.json", {"top1": None, "loss": None, "macro_f1": None})
    text = read(write_report(run_dir))
    assert "not finite in epoch 3, 4" in text
    assert ">nan" not in text.lower()
    assert "nan %" not in text.lower()


def test_probabilities_that_an_older_run_does_not_tell(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "hand-001", NAMES)
    with (run_dir / "predictions-val.csv").open(newline="") as stream:
        _, *rows = csv.reader(stream)
    header = ("path", "label", "prediction", "probability", "correct")
    write_csv(run_dir / "predictions-val.csv", header, [row[:5] for row in rows])
    text = read(write_report(run_dir))
    assert "do not tell the probability of the label" in text
    assert "Surest mistakes" in text


# --- strange runs, in a browser ------------------------------------------------------------------


def test_hostile_names_and_500_classes_in_a_browser(tmp_path: Path) -> None:
    hostile = write_run(tmp_path / "<b>hand", HOSTILE, never=2, pictures=8)
    names = [f"class {index:03}" for index in range(500)]
    many = write_run(tmp_path / "many-001", names, val=2000, pictures=2)
    pages = [tmp_path / "hostile.html", tmp_path / "many.html"]
    results = [
        write_report(run, output=page) for run, page in zip((hostile, many), pages, strict=True)
    ]
    text = read(results[0])
    assert "<script" not in text
    assert "alert(1)" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    card = results[0].card.read_text(encoding="utf-8")
    assert "<script" not in card.replace("\\<", "")
    assert results[1].size < 600_000
    assert results[1].seconds < 5
    text = read(results[1])
    assert "neighbouring classes" in text
    assert "How many classes are recognised how well" in text
    assert "the 200 lowest F1 of all" in text
    check_page(*pages)


def test_three_validation_images(tmp_path: Path) -> None:
    result = write_report(write_run(tmp_path / "few-001", ("ant", "bee", "cow", "dog"), val=3))
    text = read(result)
    assert "No val images of 1 of 4 classes, so nothing is known of them: dog" in text
    assert check_source(result.page) == []


def test_a_class_name_that_is_no_text(tmp_path: Path) -> None:
    """A folder name that is not UTF-8 comes as surrogates."""
    name = os.fsdecode(b"caf\xe9")
    result = write_report(write_run(tmp_path / "bytes-001", (name, "b")))
    assert "caf\\udce9" in read(result)
    assert json.loads((tmp_path / "bytes-001/data.json").read_text())["classes"][0] == name
