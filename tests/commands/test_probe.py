"""vtrain probe: the ranking as a table, as JSON and as a page, and what is left out."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vtrain.inference.cross_validation
import vtrain.results.probe
import vtrain.results.probe_speed
from tests.helpers.program import Program, TerminalProgram, assert_refused, without_styles
from tests.helpers.tiny import break_image, draw_labelled
from vtrain.inference.cross_validation import CrossValidation, cross_validate

TINY = ("-b", "simple_cnn:none", "-b", "separable_cnn:none")
KEYS = [
    "schema", "folder", "split", "classes", "images_found", "images", "images_held_out", "folds",
    "majority", "device", "backbones", "left_out", "recommended", "recommendation", "overrides",
    "failures", "seconds", "complete",
]  # fmt: skip
COLOURS = {"ant": (220, 40, 40), "bee": (40, 220, 40), "cow": (40, 40, 220)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little time for measuring and fitting; weights and features of this test alone."""
    monkeypatch.setattr(vtrain.results.probe_speed, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(vtrain.results.probe_speed, "ROUND_IMAGES", 8)
    monkeypatch.setattr(vtrain.inference.cross_validation, "PENALTIES", (1.0, 0.01))
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


@pytest.fixture
def photos(empty: Path) -> Path:
    """24 images whose colour tells the class."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = Path("photos") / name
        folder.mkdir(parents=True)
        for index in range(8):
            pixels = np.array(colour) + random.integers(-35, 36, (40, 44, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return Path("photos")


def probe_json(program: Program, *arguments: str) -> dict[str, Any]:
    done = program("probe", *arguments, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


# --- what it says --------------------------------------------------------------------------------


def test_table_plot_and_what_to_type(photos: Path, program: Program) -> None:
    done = program("probe", "photos", *TINY)
    assert done.code == 0
    header, *rows = done.out.splitlines()
    assert header.split() == [
        "backbone", "linear", "95", "%", "kNN", "images/s", "params", "GFLOPs", "px",
    ]  # fmt: skip
    assert {row.split()[0] for row in rows[:2]} == {"simple_cnn:none", "separable_cnn:none"}
    assert "best" in rows[0]
    assert "linear probe, %" in done.out
    *_, recommended, command = done.out.splitlines()
    assert recommended.startswith("recommended: s")
    assert command.startswith("next: vtrain fit CONFIG model.backbone=s")
    assert command.endswith("_cnn model.weights=none")
    assert done.talk[0] == "2 backbones on 24 images of photos (3 classes)"
    assert done.talk[1].startswith("1/2 separable_cnn:none: ")  # the cheaper one first
    assert "24 images of 3 classes, 5 folds" in done.err
    assert "most frequent class alone: 33.3 %" in done.err


def test_json(photos: Path, program: Program) -> None:
    found = probe_json(program, "photos", *TINY)
    assert list(found) == KEYS
    assert (found["schema"], found["split"], found["complete"]) == (1, None, True)
    assert (found["images"], found["images_found"], found["images_held_out"]) == (24, 24, 24)
    assert found["classes"] == ["ant", "bee", "cow"]
    assert found["majority"] == pytest.approx(1 / 3)
    accuracies = [each["accuracy"] for each in found["backbones"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.8
    assert found["recommended"] in {each["model"] for each in found["backbones"]}
    assert found["overrides"][0].startswith("model.backbone=")
    for each in found["backbones"]:
        low, high = each["interval"]
        assert 0 <= low <= each["accuracy"] <= high <= 1
        assert np.mean(each["fold_accuracies"]) == pytest.approx(each["accuracy"], abs=0.02)
        assert len(each["penalties"]) == found["folds"] == 5
        assert each["images_per_second"] > 0
        assert (each["weights"], each["stored"], each["image_size"]) == ("none", False, 64)


def test_features_are_kept_and_give_the_same(photos: Path, program: Program) -> None:
    first, again = (probe_json(program, "photos", *TINY)["backbones"] for _ in range(2))
    assert [each["stored"] for each in again] == [True, True]
    figures = ("model", "accuracy", "knn_accuracy", "fold_accuracies", "penalties")
    for key in figures:
        assert sorted(str(each[key]) for each in first) == sorted(str(each[key]) for each in again)


def test_the_training_split_is_used_and_said(photos: Path, program: Program) -> None:
    Path("both").mkdir()
    photos.rename("both/train")
    draw_labelled(Path("both/val"), {"ant": 2, "bee": 2, "cow": 2})
    done = program("probe", "both", *TINY[:2], "--json")
    assert done.code == 0
    assert done.talk[0] == "both holds splits: probing both/train, and nothing else"
    found = json.loads(done.out)
    assert (found["split"], found["images"]) == ("both/train", 24)


def test_a_sample_has_each_class_in_its_share(photos: Path, program: Program) -> None:
    found = probe_json(program, "photos", *TINY[:2], "--images", "12")
    assert (found["images"], found["images_found"], found["images_held_out"]) == (12, 24, 12)
    assert found["majority"] == pytest.approx(1 / 3)


def test_page_is_whole_and_safe(empty: Path, program: Program) -> None:
    draw_labelled(Path("<b>photos"), {"<script>alert(1)</script>".replace("/", "-"): 6, "bee": 6})
    done = program("probe", "<b>photos", *TINY, "-o", "probe.html")
    assert done.code == 0, done.err
    assert done.talk[-1] == "page: probe.html"
    page = Path("probe.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert "<script" not in page
    assert "<b>photos" not in page
    assert "&lt;b&gt;photos" in page
    assert "simple_cnn:none" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_fits_the_terminal(photos: Path, terminal: TerminalProgram, columns: int) -> None:
    code, shown = terminal("probe", "photos", *TINY, "-q", columns=columns)
    assert code == 0
    lines = without_styles(shown).splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("recommended: "))
    assert max(map(len, lines[:end])) <= columns
    assert ("GFLOPs" in shown) == (columns == 200)
    assert ("kNN" in shown) == (columns >= 80)
    assert lines[1].startswith("s")
    assert lines[2].startswith("s")  # nothing is folded


def test_quiet_leaves_the_data(photos: Path, program: Program) -> None:
    done = program("probe", "photos", *TINY[:2], "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("next: ")


def test_noise_is_not_recommended(empty: Path, program: Program) -> None:
    draw_labelled(Path("noise"), {"ant": 9, "bee": 8})
    done = program("probe", "noise", *TINY[:2])
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("recommended: none of these: they do no better")
    found = probe_json(program, "noise", *TINY[:2])
    assert (found["recommended"], found["overrides"]) == (None, [])


# --- what is left out ----------------------------------------------------------------------------


def test_unreadable_images_are_skipped_and_said(photos: Path, program: Program) -> None:
    for number in range(4):
        break_image(Path(f"photos/ant/bad\n{number}.jpg"))
    done = program("probe", "photos", *TINY, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["images"], len(found["failures"])) == (24, 4)
    assert found["failures"][0]["path"] == "photos/ant/bad\n0.jpg"
    warned = [line for line in done.talk if line.startswith("warning: skipped ")]
    assert len(warned) == 4
    assert warned[0].startswith("warning: skipped photos/ant/bad\\n0.jpg: ")
    assert warned[3] == "warning: skipped 1 more images that cannot be read"


def test_what_exceeds_the_budget_is_named(
    photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([1e6, 1e-3])
    monkeypatch.setattr(vtrain.results.probe, "measure_rate", lambda *_: next(rates))
    done = program("probe", "photos", *TINY, "--budget", "50s", "--batch-size", "4", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert [each["model"] for each in found["backbones"]] == ["separable_cnn:none"]
    (left,) = found["left_out"]
    assert (left["model"], left["kind"]) == ("simple_cnn:none", "budget")
    assert left["reason"].startswith("would take about ")
    assert "2/2 simple_cnn:none: left out: would take about" in done.err


def test_budget_by_the_work_of_those_before(
    photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vtrain.results.probe, "measure_rate", lambda *_: 1e-9)
    refused = program("probe", "photos", *TINY, "--budget", "5", "--batch-size", "4")
    assert_refused(refused, 2, "no backbone could be probed", "raise --budget")
    assert "would take about" in refused.err


def test_ctrl_c_shows_what_is_there(
    photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupt(*arguments: Any, **more: Any) -> CrossValidation:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_validate(*arguments, **more)

    monkeypatch.setattr(vtrain.results.probe, "cross_validate", interrupt)
    done = program("probe", "photos", *TINY, "-o", "probe.html")
    assert done.code == 130
    assert done.out.splitlines()[1].startswith("separable_cnn:none ")
    assert "simple_cnn:none" not in done.out
    assert "error: stopped with 1 of the backbones left" in done.err
    assert "Traceback" not in done.err
    assert "Stopped before all backbones were tried" in Path("probe.html").read_text()


def test_ctrl_c_before_anything_is_there(
    photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vtrain.results.probe, "measure_rate", interrupt)
    assert_refused(program("probe", "photos", *TINY), 130, "interrupted")


def test_a_damaged_weights_file_costs_only_its_backbone(photos: Path, program: Program) -> None:
    Path("bad.pth").write_bytes(b"no weights")
    done = program("probe", "photos", *TINY[:2], "-b", "separable_cnn:bad.pth")
    assert done.code == 4
    assert done.out.splitlines()[1].startswith("simple_cnn:none ")
    assert "error: 1 of the backbones could not be probed:" in done.err
    assert "  separable_cnn:bad.pth: " in done.err


# --- refusals ------------------------------------------------------------------------------------


def test_wrong_words_are_found_before_any_work(photos: Path, program: Program) -> None:
    typo = program("probe", "photos", *TINY, "-b", "resnet81")
    assert_refused(typo, 2, "unknown backbone 'resnet81', did you mean resnet18?")
    assert "1/" not in typo.err
    assert_refused(program("probe", "photos", "-b", "simple_cnn"), 2, "simple_cnn:none")
    assert_refused(program("probe", "photos", "-b", "resnet18:"), 2, "resnet18:none")
    assert_refused(program("probe", "photos", "-b", "resnet18:IMAGENET1K_V9"), 2, "IMAGENET1K_V1")
    assert_refused(program("probe", "photos", "-b", "resnet18:no.pth"), 4, "no.pth")
    for budget in ("soon", "0", "5 days", "-1"):
        assert_refused(program("probe", "photos", f"--budget={budget}"), 2, "--budget 5m or 90s")
    assert_refused(program("probe", "photos", *TINY, "-o", "photos"), 2, "is a folder")
    assert_refused(program("probe", "photos", *TINY, "-o", "nix/x.html"), 2, "mkdir -p nix")


def test_default_backbones_are_not_downloaded(
    photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("vtrain.models.downloads.urlopen", refuse)
    refused = program("probe", "photos")
    assert_refused(refused, 4, "the weights of none of the default backbones are here")
    assert "resnet50" in refused.err
    assert "hint: --download fetches them (34" in refused.err


def test_folders_that_cannot_be_probed(photos: Path, program: Program) -> None:
    assert_refused(program("probe", "nix", *TINY), 3, "nix")
    draw_labelled(Path("one"), {"ant": 5})
    assert_refused(program("probe", "one", *TINY), 3, "one class")
    draw_labelled(Path("few"), {"ant": 4, "bee": 1})
    assert_refused(program("probe", "few", *TINY), 3, "fewer than two classes", "hint: ")
    for name in ("ant", "bee"):
        break_image(Path(f"broken/{name}/1.jpg"))
        break_image(Path(f"broken/{name}/2.jpg"))
    assert_refused(
        program("probe", "broken", *TINY), 3, "none of the 4 images in broken is readable"
    )


def test_class_with_one_image_is_said(photos: Path, program: Program) -> None:
    draw_labelled(photos, {"lonely": 1})
    done = program("probe", "photos", *TINY[:2], "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["images"], found["images_held_out"]) == (25, 24)
    assert "warning: nothing can be held out of classes with a single image: 'lonely'" in done.err
