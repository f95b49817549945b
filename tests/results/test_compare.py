"""Runs compared by their answers for the same images."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.made_runs import answer, answers, write_run
from vtrain.errors import DataError, ModelError, UsageError
from vtrain.results.compare import LEVEL, Comparison, compare_runs, format_points
from vtrain.system.json_csv import to_plain
from vtrain.system.terminal import format_json

TWO = ("ant", "bee")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_pair(right_a: str, right_b: str) -> list[Path]:
    return [
        write_run(Path("runs/a"), answers(TWO, right_a)),
        write_run(Path("runs/b"), answers(TWO, right_b), seed=1),
    ]


def text_of(comparison: Comparison) -> str:
    return comparison.differences[0].text


# --- verdicts ------------------------------------------------------------------------------------


def test_a_better_run() -> None:
    found = compare_runs(write_pair("x" * 60 + "." * 40, "x" * 90 + "." * 10))
    difference = found.differences[0]
    assert (found.count, found.runs[0].top1, found.runs[1].top1) == (100, 0.6, 0.9)
    assert difference.verdict == "better"
    assert difference.p == pytest.approx(2.0**-29)
    assert difference.p_corrected == difference.p
    assert len(difference.right_in_run_only) == 30
    assert difference.right_in_baseline_only == ()
    assert text_of(found).startswith(
        "runs/b is better than runs/a: +30.0 points of top-1, 95 % interval +2"
    )
    assert text_of(found).endswith("p < 0.001")
    assert found.warnings == ()
    assert found.notes == ()


def test_a_worse_run() -> None:
    found = compare_runs(write_pair("x" * 20, "x" * 10 + "." * 10))
    assert found.differences[0].verdict == "worse"
    assert text_of(found).startswith("runs/b is worse than runs/a: -50.0 points")


def test_what_chance_explains_is_no_difference() -> None:
    found = compare_runs(write_pair("x" * 50 + "...." + "xx" + "." * 44, "x" * 54 + "." * 46))
    assert found.differences[0].verdict == "unclear"
    text = text_of(found)
    assert text.startswith("No difference between runs/b and runs/a can be shown: +2.0 points")
    assert "p = 0.69" in text
    assert "at least" not in text
    assert found.notes == (
        "100 images tell differences from about 10 points on; more images show smaller ones",
    )


def test_identical_answers() -> None:
    found = compare_runs(write_pair("xx.x", "xx.x"))
    assert text_of(found).endswith("can be shown: both are right on the same images")
    assert found.differences[0].p == 1.0


@pytest.mark.parametrize(("a", "b"), [("...", "xxx"), ("x", "."), ("..", ".."), ("xxx", "xxx")])
def test_few_images(a: str, b: str) -> None:
    found = compare_runs(write_pair(a, b))
    assert found.differences[0].verdict == "unclear"
    if a != b:
        images = f"{len(a)} images" if len(a) > 1 else "1 image"
        assert f"right on {images}, and it takes at least 6 to show one" in text_of(found)
    for run in found.runs:
        assert run.top1_interval[0] <= run.top1 <= run.top1_interval[1]


def test_several_runs_are_corrected_by_holm() -> None:
    runs = write_pair("x" * 40 + "." * 20, "x" * 46 + "." * 14)
    runs.append(write_run(Path("runs/c"), answers(TWO, "x" * 60)))
    found = compare_runs(runs)
    assert [each.verdict for each in found.differences] == ["better", "better"]
    assert found.differences[0].p == pytest.approx(2 * 0.5**6)
    assert found.differences[0].p_corrected == found.differences[0].p  # the larger of two
    assert found.differences[1].p_corrected == 2 * found.differences[1].p
    assert text_of(found).endswith("p = 0.031 (corrected)")
    assert any("corrected for 2 comparisons with runs/a (Holm)" in each for each in found.notes)


def test_scores_are_those_of_the_common_images() -> None:
    rows = answers(TWO, "x.xxx.")
    runs = [write_run(Path("a"), rows), write_run(Path("b"), rows[:4], digest="other")]
    found = compare_runs(runs)
    assert (found.count, found.runs[0].top1, found.runs[1].top1) == (4, 0.75, 0.75)
    assert [run.left_out for run in found.runs] == [2, 0]
    assert found.warnings[0].startswith("left out, because not all runs have them: 2 of a (val")
    assert any(each.startswith("epochs were chosen by different") for each in found.warnings)


def test_changes_by_class_and_images_by_sureness() -> None:
    rows = [
        answer("0", "ant", "bee", 0.6),
        answer("1", "ant", "bee", 0.8),
        answer("2", "bee", "bee"),
    ]
    other = [answer("0", "ant", "ant"), answer("1", "ant", "ant"), answer("2", "bee", "ant")]
    found = compare_runs([write_run(Path("a"), rows), write_run(Path("b"), other)]).differences[0]
    assert [(row.class_, row.gained, row.lost) for row in found.per_class] == [
        ("ant", 2, 0), ("bee", 0, 1)
    ]  # fmt: skip
    assert [each.path.name for each in found.right_in_run_only] == ["1", "0"]
    assert found.macro_f1.difference == pytest.approx(0.4 - 0.25)


# --- data and settings ---------------------------------------------------------------------------


def test_settings_and_data_that_differ() -> None:
    runs = write_pair("x.", "xx")
    write_run(Path("runs/b"), answers(TWO, "xx"), seed=5, train_digest="other")
    found = compare_runs(runs)
    assert [(each.key, each.values) for each in found.settings] == [
        ("seed", {"runs/a": 0, "runs/b": 5})
    ]
    assert found.warnings == (
        "trained on different images (runs/a: 9 images in images/train; runs/b: 9 images in "
        "images/train)",
    )


def test_the_same_images_below_another_root() -> None:
    rows = answers(TWO, "x.x.")
    moved = [replace(row, path=Path("/mnt") / row.path) for row in rows]
    runs = [
        write_run(Path("a"), rows), write_run(Path("b"), moved, root="/mnt/images/val")
    ]  # fmt: skip
    assert compare_runs(runs).count == 4
    write_run(Path("b"), moved, root="/mnt/images/val", digest="others")
    with pytest.raises(DataError, match="no validation image is in all 2 runs") as caught:
        compare_runs(runs)
    assert "a: 4 images in images/val\n" in caught.value.message
    assert "b: 4 images in /mnt/images/val" in caught.value.message


def test_one_folder_named_in_two_ways() -> None:
    rows = answers(TWO, "x.x.")
    whole = [replace(row, path=Path.cwd() / row.path) for row in rows]
    runs = [
        write_run(Path("a"), rows),
        write_run(Path("b"), whole[:3], root=str(Path.cwd() / "images/val"), digest="fewer"),
    ]
    assert compare_runs(runs).count == 3


def test_models_with_different_classes() -> None:
    runs = [
        write_run(Path("a"), answers(TWO, "xxxx")),
        write_run(Path("b"), answers(("ant", "bee"), "xx.."), classes=("ant", "cow")),
    ]
    found = compare_runs(runs)
    assert found.warnings == (
        "b knows classes that a does not: 'cow'", "a knows classes that b does not: 'bee'"
    )  # fmt: skip


def test_labels_must_agree() -> None:
    rows = answers(TWO, "xxxx")
    other = [replace(rows[0], label="bee", correct=False), *rows[1:]]
    runs = [write_run(Path("a"), rows), write_run(Path("b"), other)]
    with pytest.raises(DataError, match="1 of 4 common images have another label in b than in a"):
        compare_runs(runs)


def test_an_image_listed_twice_counts_once() -> None:
    rows = answers(TWO, "x.x.")
    runs = [write_run(Path("a"), [*rows, rows[0]]), write_run(Path("b"), rows)]
    found = compare_runs(runs)
    assert found.count == 4
    assert found.runs[0].left_out == 1


# --- what cannot be compared ---------------------------------------------------------------------


def test_unusable_runs() -> None:
    a, b = write_pair("x.", "xx")
    for runs, message in (
        ([a], "one run alone"),
        ([a, a], "given twice"),
        ([a, Path("runs/../runs/a")], "given twice, the other time as runs/a"),
        ([a, Path("nix")], "nix is no run folder: not there"),
        ([a, Path("runs")], "runs is no run folder: it holds none of"),
    ):
        with pytest.raises(UsageError, match=message):
            compare_runs(runs)
    with pytest.raises(ModelError, match="trained without a test split"):
        compare_runs([a, b], split="test")
    write_run(Path("c"), None, finished=False)
    with pytest.raises(ModelError, match=r"c holds no predictions-val\.csv: the run") as got:
        compare_runs([a, Path("c")])
    command = "vtrain fit c/config.resolved.yaml run_dir=c --resume"
    assert got.value.hint == f"wait until it has, or go on with it: {command}"


def test_damaged_runs() -> None:
    a, b = write_pair("x.", "xx")
    (b / "metrics.jsonl").write_text("no json")
    (b / "data.json").write_text("[]")
    (b / "result.json").unlink()
    found = compare_runs([a, b])
    assert found.count == 2
    assert found.runs[1].best_epoch is None
    assert any("has not finished" in each for each in found.warnings)
    assert any("data.json cannot be read" in each for each in found.warnings)
    assert found.settings[0].key == "seed"
    for content in ("", "path,label\n", "path,label,prediction,probability,correct\nx,y,z,?,1\n"):
        (b / "predictions-val.csv").write_text(content)
        with pytest.raises(ModelError, match=r"runs/b/predictions-val\.csv"):
            compare_runs([a, b])
    (b / "predictions-val.csv").write_text("path,label,prediction,probability,correct\nval/x.pn")
    with pytest.raises(ModelError, match=r"damaged: 0\.correct is ''"):
        compare_runs([a, b])


def test_test_split() -> None:
    rows = answers(TWO, "x.x.")
    runs = [Path("a"), Path("b")]
    for run_dir in runs:
        write_run(run_dir, rows)
        write_run(run_dir, rows, split="test")
    assert compare_runs(runs, split="test").split == "test"
    assert any("--split test" in each for each in compare_runs(runs).notes)
    assert not any("--split test" in each for each in compare_runs(runs, split="test").notes)


# --- as text and JSON ----------------------------------------------------------------------------


def test_json_holds_everything_and_is_valid() -> None:
    runs = write_pair("x.x.", "xxx.")
    found = to_plain(compare_runs(runs))
    assert json.loads(format_json(found)) == found
    assert (found["level"], found["baseline"]) == (LEVEL, "runs/a")
    difference = found["differences"][0]
    assert [each["path"] for each in difference["right_in_run_only"]] == [
        str(Path("images/val/bee/001.jpg"))
    ]
    assert difference["right_in_baseline_only"] == []
    assert found["settings"] == [{"key": "seed", "values": {"runs/a": 0, "runs/b": 1}}]
    assert found["runs"][0]["val_top1_by_epoch"] == [0.5, 0.75]


def test_the_same_answers_give_the_same_figures() -> None:
    runs = write_pair("x.x.xx.xxx", "xxx.x.x..x")
    assert to_plain(compare_runs(runs)) == to_plain(compare_runs(runs))


def test_points() -> None:
    assert [format_points(each) for each in (0.035, -0.004, 0.0, -0.0001)] == [
        "+3.5", "-0.4", "0.0", "0.0"
    ]  # fmt: skip
