"""Splits of a run: matched by class, checked before training, described in data.json."""

import io
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny import break_image, draw_labelled
from vtrain.config.keys import DataConfig
from vtrain.data import kept_scans
from vtrain.data.splits import (
    Splits,
    check_splits,
    describe_splits,
    scan_splits,
    split_digest,
)
from vtrain.errors import DataError, ExitCode
from vtrain.system.json_csv import write_json
from vtrain.system.terminal import Console

COUNTS = {"ant": 4, "bee": 6, "cow": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw_labelled(Path("train"), COUNTS)
    return tmp_path


def load(*, seed: int = 0, said: io.StringIO | None = None, **settings: Any) -> Splits:
    if "val_fraction" not in settings:
        settings.setdefault("val", "val")
    config = DataConfig(train="train", **{"workers": 0, **settings})
    console = Console(stream=said or io.StringIO())
    return check_splits(scan_splits(config, seed=seed, reporter=console), config, reporter=console)


def test_splits_share_classes_by_name() -> None:
    draw_labelled(Path("val"), {"bee": 1, "cow": 1})  # without a folder for ants
    draw_labelled(Path("test"), {"ant": 1})
    said = io.StringIO()
    splits = load(test="test", said=said)
    assert splits.classes == ("ant", "bee", "cow")
    assert list(splits.named()) == ["train", "val", "test"]
    assert splits.val.labels == (1, 2)
    assert splits.test is not None
    assert splits.test.labels == (0,)
    assert "data.val has no images of 'ant'" in said.getvalue()
    assert "data.test has no images of 'bee', 'cow'" in said.getvalue()
    assert "data.train" not in said.getvalue()


def test_a_long_list_of_missing_classes_is_cut_and_counted() -> None:
    draw_labelled(Path("train"), {f"class{number}": 1 for number in range(8)})
    draw_labelled(Path("val"), {"ant": 1, "bee": 1, "cow": 1})
    said = io.StringIO()
    load(said=said)
    text = " ".join(said.getvalue().split())  # lines are wrapped
    assert "no images of 'class0', 'class1', 'class2', 'class3', 'class4' and 3 more" in text
    assert "class5" not in text


def test_held_out_share_is_stratified_seeded_and_disjoint() -> None:
    splits = load(val_fraction=0.5)
    assert splits.val.class_counts() == [2, 3, 1]
    assert splits.train.class_counts() == [2, 3, 1]
    paths = [*splits.train.paths, *splits.val.paths]
    assert sorted(paths) == sorted(Path("train").glob("*/*"))
    assert load(val_fraction=0.5) == splits
    assert load(val_fraction=0.5, seed=1).val.paths != splits.val.paths


def test_classes_of_one_image_leave_nothing_to_hold_out() -> None:
    shutil.rmtree("train")
    draw_labelled(Path("train"), {"ant": 1, "bee": 1})
    with pytest.raises(DataError, match=r"data\.val: no readable image is left in train"):
        load(val_fraction=0.5)


def test_class_only_in_test() -> None:
    draw_labelled(Path("val"), {"ant": 1})
    draw_labelled(Path("test"), {"ant": 1, "dog": 1})
    with pytest.raises(DataError, match="dog"):
        load(test="test")


def test_files_that_are_not_used_are_said_once() -> None:
    Path("train/ant/notes.txt").touch()
    Path("train/bee/scan.pdf").touch()
    said = io.StringIO()
    splits = load(val_fraction=0.5, said=said)
    assert len(re.findall("2 files are not used", said.getvalue())) == 1
    assert "train/ant/notes.txt" in said.getvalue()
    listed = describe_splits(splits)
    assert [each["path"] for each in listed["train"]["skipped"]] == [
        "train/ant/notes.txt",
        "train/bee/scan.pdf",
    ]
    assert listed["val"]["skipped"] == []


# --- images that cannot be read ------------------------------------------------------------------


def test_unreadable_images_of_all_splits_are_named_with_reasons() -> None:
    draw_labelled(Path("val"), {"ant": 1})
    draw_labelled(Path("test"), {"ant": 1})
    bad = [break_image(Path(split) / "ant/zzz.jpg") for split in ("train", "val", "test")]
    with pytest.raises(DataError) as caught:
        load(test="test")
    lines = caught.value.message.splitlines()
    assert lines[0] == "3 of 17 images cannot be read:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [str(path) for path in bad]
    assert all(len(line.partition(": ")[2]) > 5 for line in lines[1:])
    assert caught.value.exit_code == ExitCode.DATA
    assert "on_bad_image=skip" in (caught.value.hint or "")


def test_every_unreadable_image_is_named_however_many() -> None:
    draw_labelled(Path("val"), {"ant": 1})
    bad = [break_image(Path(f"train/bee/bad-{index:03}.jpg")) for index in range(150)]
    with pytest.raises(DataError) as caught:
        load()
    lines = caught.value.message.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [str(path) for path in bad]


def test_skipped_images_are_in_no_split_and_listed() -> None:
    draw_labelled(Path("val"), {"ant": 2})
    bad = [break_image(Path("train/ant/000.jpg")), break_image(Path("val/ant/001.png"))]
    said = io.StringIO()
    splits = load(on_bad_image="skip", said=said)
    assert splits.train.class_counts() == [3, 6, 2]
    assert splits.val.class_counts() == [1, 0, 0]
    assert [each.path for each in splits.bad_images] == bad
    assert not set(bad) & {*splits.train.paths, *splits.val.paths}
    for path in bad:
        assert re.search(rf"skipped {path}: \w+", said.getvalue())
    assert [each["path"] for each in describe_splits(splits)["bad_images"]] == list(map(str, bad))


def test_labels_stay_with_their_images_after_skipping() -> None:
    draw_labelled(Path("val"), {"ant": 1})
    break_image(Path("train/ant/002.jpg"))
    break_image(Path("train/bee/000.jpg"))
    train = load(on_bad_image="skip").train
    for path, label in zip(train.paths, train.labels, strict=True):
        assert path.parent.name == train.classes[label]


@pytest.mark.parametrize("split", ["val", "test"])
def test_split_without_a_readable_image(split: str) -> None:
    draw_labelled(Path("val"), {"ant": 1})
    draw_labelled(Path("test"), {"ant": 1})
    break_image(Path(split) / "ant/000.jpg")
    with pytest.raises(DataError, match=rf"data\.{split}: no readable image is left in {split}"):
        load(test="test", on_bad_image="skip")


def test_class_without_a_readable_image() -> None:
    draw_labelled(Path("val"), {"ant": 1})
    for path in Path("train/cow").iterdir():
        break_image(path)
    with pytest.raises(DataError, match="no readable image of class 'cow' is left in train") as e:
        load(on_bad_image="skip")
    assert "remove the class folder" in (e.value.hint or "")


def test_known_images_are_counted_and_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_labelled(Path("val"), {"ant": 1})
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 0)
    time.sleep(0.02)
    first = load()
    assert first.describe_check() == "13 checked"
    break_image(Path("train/ant/001.png"))
    second = load(on_bad_image="skip")
    assert second.describe_check() == "1 checked, 12 known to be good and unchanged"
    assert len(second.train) == len(first.train) - 1
    assert describe_splits(second)["train"]["sha256"] == split_digest(second.train)


def test_an_unusable_cache_is_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_labelled(Path("val"), {"ant": 1})
    monkeypatch.setenv("VTRAIN_CACHE", str(folder / "file"))
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 0)
    Path("file").touch()
    time.sleep(0.02)
    said = io.StringIO()
    load(said=said)
    assert said.getvalue().count("not kept for next time") == 1


# --- the description -----------------------------------------------------------------------------


def test_description_is_plain_json_with_counts() -> None:
    draw_labelled(Path("val"), {"ant": 1, "cow": 2})
    description = describe_splits(load())
    write_json(Path("data.json"), description)
    assert json.loads(Path("data.json").read_text()) == description
    assert description["schema"] == 1
    assert description["classes"] == ["ant", "bee", "cow"]
    assert description["train"]["per_class"] == COUNTS
    assert description["train"]["count"] == 12
    assert description["val"]["per_class"] == {"ant": 1, "bee": 0, "cow": 2}
    assert description["val"]["root"] == "val"
    assert "test" not in description
    assert len(description["val"]["sha256"]) == 64


def test_digest_does_not_depend_on_where_the_folder_lies() -> None:
    before = split_digest(load(val_fraction=0.5).train)
    Path("elsewhere").mkdir()
    Path("train").rename("elsewhere/photos")
    config = DataConfig(train="elsewhere/photos", val_fraction=0.5, workers=0)
    moved = scan_splits(config, seed=0, reporter=Console(quiet=True))
    assert split_digest(moved.train) == before


@pytest.mark.parametrize("change", ["rename", "resize", "remove", "add", "relabel", "class name"])
def test_digest_sees_every_change(change: str) -> None:
    draw_labelled(Path("val"), {"ant": 1})
    before = split_digest(load().train)
    image = Path("train/bee/002.jpg")
    if change == "rename":
        image.rename("train/bee/002-copy.jpg")
    elif change == "resize":
        image.write_bytes(image.read_bytes() + b"\0")
    elif change == "remove":
        image.unlink()
    elif change == "add":
        shutil.copy(image, "train/bee/100.jpg")
    elif change == "relabel":
        image.rename("train/cow/002.jpg")
    else:
        Path("train/cow").rename("train/cows")
    assert split_digest(load().train) != before
