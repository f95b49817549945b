"""`vtrain check`: what is found, what is said of it, and what the user can do then."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.data.test_tars import pack
from tests.helpers.program import (
    Program,
    Terminal,
    TerminalProgram,
    assert_refused,
    run_process,
    without_styles,
)
from tests.helpers.tiny import break_image, draw_image

CONFIG = "model: {backbone: simple_cnn, weights: none}\nfreeze: none\ndata: {train: set/train, val: set/val, workers: 0}\n"  # noqa: E501


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 6 validation images of two classes, in which nothing is wrong."""
    root = tmp_path_factory.mktemp("drawn")
    for label, name in enumerate(("ant", "bee")):
        for number in range(15):
            path = root / ("train" if number < 12 else "val") / name / f"{number:02}.png"
            draw_image(path, seed=100 * label + number, size=(160, 150))
    return root


@pytest.fixture(autouse=True)
def folder(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the drawn images, `set`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(drawn, tmp_path / "set")
    return tmp_path


def find(program: Program, *arguments: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit code, the whole JSON, and its findings by kind."""
    done = program("check", *arguments, "--json")
    whole = json.loads(done.out)
    return done.code, whole, {each["kind"]: each for each in whole["findings"]}


def group_paths(finding: dict[str, Any]) -> list[list[str]]:
    return [[image["path"] for image in group["images"]] for group in finding["groups"]]


def test_nothing_found(program: Program) -> None:
    done = program("check", "set", "-o", "check.html")
    assert (done.code, done.talk) == (0, ["page: check.html"])
    assert done.out.splitlines() == [
        "set/train: 24 train images of 2 classes",
        "set/val: 6 val images of 2 classes",
        "30 images read; input 224 px",
        "nothing found",
    ]
    page = Path("check.html").read_text()
    assert "Nothing found: every image can be read" in page
    assert "Images of each class" in page
    for word in ("Errors", "Warnings", "Notes", "<script"):
        assert word not in page


def plant() -> None:
    break_image(Path("set/train/ant/broken.jpg"))
    Path("set/train/bee/empty.png").touch()
    shutil.copy("set/train/ant/00.png", "set/val/ant/copy.png")
    Image.open("set/train/bee/01.png").resize((140, 130)).save("set/val/bee/small.jpg")
    ImageOps.mirror(Image.open("set/train/bee/02.png")).save("set/train/ant/mirror.png")
    shutil.copy("set/train/bee/03.png", "set/train/bee/again.png")


def test_what_would_spoil_a_result_ends_with_3(program: Program) -> None:
    plant()
    code, whole, found = find(program, "set")
    assert code == 3
    assert whole["counts"] == {"error": 3, "warning": 1, "note": 0}
    broken = ["set/train/ant/broken.jpg", "set/train/bee/empty.png"]
    assert found["unreadable"]["paths"] == broken
    assert found["unreadable"]["reasons"] == ["is truncated", "is an empty file"]
    assert group_paths(found["leaked"]) == [
        ["set/train/ant/00.png", "set/val/ant/copy.png"],
        ["set/train/bee/01.png", "set/val/bee/small.jpg"],
    ]
    assert [each["same"] for each in found["leaked"]["groups"]] == ["bytes", "near"]
    assert group_paths(found["conflicting_labels"]) == [
        ["set/train/ant/mirror.png", "set/train/bee/02.png"]
    ]
    labels = [image["class"] for image in found["conflicting_labels"]["groups"][0]["images"]]
    assert labels == ["ant", "bee"]
    assert group_paths(found["duplicates"]) == [["set/train/bee/03.png", "set/train/bee/again.png"]]
    assert found["duplicates"]["severity"] == "warning"


def test_the_table_says_what_was_found_and_what_to_do(program: Program) -> None:
    plant()
    done = program("check", "set")
    assert done.code == 3
    assert (
        "2 of 36 images cannot be read, such as set/train/ant/broken.jpg is truncated" in done.out
    )
    assert "  set/train/bee/empty.png: is an empty file" in done.out
    assert "  set/train/ant/00.png = set/val/ant/copy.png  (bytes)" in done.out
    assert done.talk[-2:] == [
        "error: set would spoil a result: unreadable, conflicting_labels, leaked",
        "hint: vtrain check set --write-list exclude.txt lists what to leave out",
    ]
    assert any("with -o check.html" in line for line in done.talk)


def test_a_list_of_what_to_leave_out_makes_the_data_sound(program: Program) -> None:
    plant()
    Path("c.yaml").write_text(CONFIG)
    done = program("check", "c.yaml", "--write-list", "exclude.txt")
    assert done.code == 3
    assert done.talk[-1] == "hint: leave them out with data.exclude=exclude.txt"
    assert "exclude.txt: 7 images to leave out" in done.talk
    listed = [each for each in Path("exclude.txt").read_text().splitlines() if each[0] != "#"]
    assert listed == [
        "set/train/ant/broken.jpg",
        "set/train/bee/empty.png",
        "set/train/ant/mirror.png",
        "set/train/bee/02.png",
        "set/train/ant/00.png",
        "set/train/bee/01.png",
        "set/train/bee/again.png",
    ]
    code, whole, found = find(program, "c.yaml", "data.exclude=exclude.txt")
    assert code == 0
    assert list(found) == ["excluded"]
    assert found["excluded"]["message"] == "exclude.txt leaves out 7 train, 0 val images"
    assert whole["splits"]["train"]["per_class"] == {"ant": 11, "bee": 10}
    done = program("fit", "c.yaml", "data.exclude=exclude.txt", "--dry-run", "data.batch_size=4")
    assert done.code == 0
    assert "data.exclude: exclude.txt leaves out 7 train, 0 val images" in done.err


def test_entries_that_match_nothing(program: Program) -> None:
    Path("c.yaml").write_text(CONFIG)
    Path("list.txt").write_text("set/train/ant/99.png\n")
    _, _, found = find(program, "c.yaml", "data.exclude=list.txt")
    assert found["unmatched_exclusion"]["paths"] == ["set/train/ant/99.png"]
    done = program("fit", "c.yaml", "data.exclude=list.txt", "--dry-run", "data.batch_size=4")
    assert "1 entry matches no image; the first is set/train/ant/99.png" in done.err


def test_a_list_that_is_not_there_is_a_mistake_in_the_config(program: Program) -> None:
    Path("c.yaml").write_text(CONFIG)
    Path("exclude.txt").touch()
    for command in ("check", "fit", "config"):
        done = program(command, "c.yaml", "data.exclude=exclude.text")
        assert_refused(
            done, 2, "data.exclude=exclude.text: no such file", "did you mean exclude.txt?"
        )
    done = program("config", "c.yaml", "data.exclude=set")
    assert_refused(done, 2, "set is a folder, expected a text file")


def test_a_resumed_run_leaves_out_the_same_images(program: Program) -> None:
    Path("c.yaml").write_text(CONFIG + "run_dir: runs/x\n")
    Path("list.txt").write_text("set/train/ant/00.png\n")
    words = ("c.yaml", "data.batch_size=4", "train.epochs=1", "-q")
    assert program("fit", *words, "data.exclude=list.txt").code == 0
    data = json.loads(Path("runs/x/data.json").read_text())
    assert (data["train"]["count"], data["train"]["excluded"]) == (23, 1)
    assert data["exclude"] == str(Path("list.txt").absolute())
    more = (*words, "train.epochs=2", "--resume")
    assert_refused(program("fit", *more), 2, "data.exclude: list.txt -> None")
    Path("list.txt").write_text("set/train/ant/01.png\n")
    done = program("fit", *more, "data.exclude=list.txt")
    assert_refused(done, done.code, "images left out by data.exclude")


def test_classes_and_sizes(program: Program) -> None:
    for path in sorted(Path("set/train/bee").iterdir())[1:]:
        path.unlink()
    shutil.rmtree("set/val/bee")
    draw_image(Path("set/train/ant/tiny.png"), seed=900, size=(60, 50))
    draw_image(Path("set/train/ant/long.png"), seed=901, size=(600, 150))
    draw_image(Path("set/train/ant/gray.png"), seed=902, size=(150, 150)).rename(
        "set/train/ant/gray.jpg"
    )
    Path("set/train/ant/notes.txt").touch()
    code, whole, found = find(program, "set")
    assert code == 0
    assert whole["image_size"] == 224
    assert {kind: each["severity"] for kind, each in found.items()} == {
        "few_images": "warning",
        "missing_class": "warning",
        "imbalance": "warning",
        "tiny": "warning",
        "elongated": "warning",
        "unused_files": "note",
        "wrong_suffix": "note",
    }
    assert found["few_images"]["message"] == "1 class has fewer than 10 images in train: 'bee'"
    assert found["missing_class"]["message"] == "1 class has no image in val: 'bee'"
    assert found["tiny"]["paths"] == ["set/train/ant/tiny.png"]
    assert found["elongated"]["paths"] == ["set/train/ant/long.png"]
    assert "which is PNG" in found["wrong_suffix"]["message"]
    assert "tiny" not in find(program, "set", "--image-size", "96")[2]


def test_a_class_of_which_nothing_is_left(program: Program) -> None:
    for path in Path("set/train/bee").iterdir():
        break_image(path)
    _, _, found = find(program, "set")
    assert found["empty_class"]["classes"] == ["bee"]
    shutil.rmtree("set/val")
    shutil.rmtree("set/train/bee")
    Path("set/train/bee").mkdir()
    code, _, found = find(program, "set/train")
    assert code == 3
    assert found["empty_class"]["message"] == "1 class has no readable image in images: 'bee'"


def test_images_that_training_skips_by_itself(program: Program) -> None:
    break_image(Path("set/train/ant/broken.jpg"))
    Path("c.yaml").write_text(CONFIG)
    code, _, found = find(program, "c.yaml", "data.on_bad_image=skip")
    assert (code, found["unreadable"]["severity"]) == (0, "warning")
    assert find(program, "c.yaml")[0] == 3


@pytest.mark.parametrize("kind", ["folder", "plain", "tar", "list"])
def test_other_sources(program: Program, kind: str) -> None:
    shutil.copy("set/train/ant/00.png", "set/train/ant/copy.png")
    sources = {"folder": "set/train", "plain": "set/train/ant", "tar": "x.tar", "list": "x.csv"}
    pack("x.tar", "ant/1.jpg", "ant/2.jpg", "bee/3.jpg", "bee/4.jpg")
    lines = (f"set/train/ant/{name}.png,ant\n" for name in ("00", "copy", "01"))
    Path("x.csv").write_text("".join(lines) + "set/train/bee/00.png,bee\n")
    _, whole, found = find(program, sources[kind])
    assert list(whole["splits"]) == ["images"]
    labelled = whole["splits"]["images"]["per_class"] is not None
    assert labelled == (kind != "plain")
    assert ("few_images" in found) == (kind in ("tar", "list"))
    if kind != "tar":
        assert len(group_paths(found["duplicates"])) == 1
    assert program("check", sources[kind], "-q", "-o", "page.html").code in (0, 3)
    assert ("Images of each class" in Path("page.html").read_text()) == labelled


def test_a_second_look_reads_nothing(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.data.kept_scans.CLOCK_TICK_NS", 0)
    assert "30 images read; input" in program("check", "set").out
    again = program("check", "set")
    assert "0 images read, 30 known and unchanged; input" in again.out


def test_a_list_replaces_nothing_else(program: Program) -> None:
    plant()
    Path("c.yaml").write_text(CONFIG)
    Path("mine.txt").write_text("set/train/ant/00.png\n")
    for name, part in (
        ("c.yaml", "no list of vtrain check"),
        ("mine.txt", "no list of vtrain check"),
        ("nix/list.txt", "folder nix does not exist"),
        ("set", "is a folder"),
    ):
        done = program("check", "c.yaml", "--write-list", name)
        assert_refused(done, 2, part)
        assert done.out == ""
    assert Path("c.yaml").read_text() == CONFIG
    assert program("check", "c.yaml", "--write-list", "list.txt").code == 3
    assert program("check", "c.yaml", "--write-list", "list.txt").code == 3  # its own, once more
    listed = Path("list.txt").read_text()
    done = program("check", "c.yaml", "data.exclude=list.txt", "--write-list", "list.txt")
    assert_refused(done, 2, "would replace the list that data.exclude names")
    assert Path("list.txt").read_text() == listed


def test_files_are_written_though_nobody_reads_the_table(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant()

    def close(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("vtrain.commands.check.print_line", close)
    program("check", "set", "--write-list", "list.txt", "-o", "check.html")
    assert Path("list.txt").exists()
    assert Path("check.html").exists()


def test_held_out_images_can_leak(program: Program) -> None:
    Path("c.yaml").write_text(CONFIG.replace("val: set/val", "val_fraction: 0.5"))
    for number in range(4):
        shutil.copy(f"set/train/ant/{number:02}.png", f"set/train/ant/copy{number}.png")
    code, _, found = find(program, "c.yaml")
    assert (code, {each for each in found if found[each]["severity"] == "error"}) == (3, {"leaked"})
    program("check", "c.yaml", "--write-list", "list.txt", "-q")
    code, _, found = find(program, "c.yaml", "data.exclude=list.txt")
    assert (code, "leaked" in found, "duplicates" in found) == (0, False, False)


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["sett"], 3, ["no folder sett", "did you mean set?"]),
        (["nix.yaml"], 2, ["nix.yaml"]),
        (["set/train/ant/00.png"], 3, ["is a file, expected a folder"]),
        (["set", "data.val=x"], 2, ["data.val=x need a config", "vtrain init"]),
        (["set", "--image-size", "8"], 2, ["--image-size"]),
        (["set", "-o", "nix/check.html"], 2, ["mkdir -p nix"]),
        (["set", "-o", "check.pdf"], 2, ["check.pdf does not end with .html"]),
    ],
)
def test_refusals(program: Program, words: list[str], code: int, parts: list[str]) -> None:
    assert_refused(program("check", *words), code, *parts)


def test_a_config_says_the_size_itself(program: Program) -> None:
    Path("c.yaml").write_text(CONFIG)
    assert_refused(program("check", "c.yaml", "--image-size", "96"), 2, "data.image_size=96")
    assert find(program, "c.yaml", "data.image_size=96")[1]["image_size"] == 96


def test_an_empty_folder(program: Program) -> None:
    Path("nothing").mkdir()
    assert_refused(program("check", "nothing"), 3, "nothing")


def test_hostile_names(program: Program) -> None:
    name = os.fsdecode(b"<script>\x1b[31m\xff 'x'.png")
    for copy in (f"set/train/ant/{name}", f"set/val/ant/{name}"):
        shutil.copy("set/train/ant/00.png", copy)
    done = run_process("check", "set", "-o", "check.html", "--write-list", "list.txt")
    assert done.code == 3
    assert "\x1b" not in done.out + done.err
    page = Path("check.html").read_text()
    assert "\x1b" not in page
    assert "<script" not in page
    assert "&lt;script&gt;\\x1b[31m" in page
    Path("c.yaml").write_text(CONFIG)
    done = run_process("check", "c.yaml", "data.exclude=list.txt")
    assert done.code == 0, done.err


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_table_fits_the_terminal(terminal: TerminalProgram, columns: int) -> None:
    plant()
    code, shown = terminal("check", "set", columns=columns)
    assert code == 3
    table = without_styles(shown).partition("severity")[2].partition("unreadable:")[0]
    assert max(map(len, table.splitlines())) <= columns
    assert re.search(r"^error +2 +2 of 36 images", table, re.MULTILINE)


def test_similar_images_by_a_model(program: Program) -> None:
    shutil.copy("set/train/ant/00.png", "set/train/ant/copy.png")
    code, _, found = find(program, "set", "--embeddings", "-m", "resnet18:none")
    assert code == 0
    assert group_paths(found["duplicates"]) == [["set/train/ant/00.png", "set/train/ant/copy.png"]]
    # Of random weights; what is known to be the same is not said again.
    assert {group["same"] for group in found["similar"]["groups"]} == {"features"}
    known = {"set/train/ant/00.png", "set/train/ant/copy.png"}
    assert not any(set(each) <= known for each in group_paths(found["similar"]))
    assert_refused(program("check", "set", "-m", "resnet18:none"), 2, "--model is for --embeddings")


def test_ctrl_c_ends_it(folder: Path) -> None:
    for number in range(300):
        shutil.copy("set/train/ant/00.png", f"set/train/ant/copy{number}.png")
    done = Terminal("check", "set", "--workers", "1")
    done.read_until("checking images")
    done.press("\x03")
    assert done.finish() == 130
    assert "Traceback" not in done.text
    assert "interrupted" in done.text


def test_the_page_shows_what_was_found(program: Program) -> None:
    plant()
    assert program("check", "set", "-o", "check.html", "-q").code == 3
    page = Path("check.html").read_text()
    for text in ("Errors", "the same file", "nearly the same", "set/train/ant/broken.jpg",
                 "is an empty file", "train, ant"):  # fmt: skip
        assert text in page
    assert page.count("data:image/jpeg;base64,") >= 8
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
