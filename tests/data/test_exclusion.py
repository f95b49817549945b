"""Lists of images to leave out: what survives in them, and what they match."""

import io
import json
import os
from pathlib import Path

import pytest

from tests.data.test_tars import pack
from tests.helpers.tiny import draw_labelled
from vtrain.config.keys import DataConfig
from vtrain.data.exclusion import read_exclusion, write_exclusion
from vtrain.data.splits import Splits, check_splits, describe_splits, scan_splits
from vtrain.errors import DataError
from vtrain.system.terminal import Console

ODD = [
    "plain.jpg",
    "with space.jpg",
    " space before.jpg",
    "space behind ",
    "#hash.jpg",
    '"quoted".jpg',
    "line\nend.jpg",
    "return\r",
    "tab\there",
    "back\\slash.jpg",
    "caf\u00e9.jpg",
    "cafe\u0301.jpg",
    os.fsdecode(b"latin-\xe9.jpg"),
    "\u202edrow.jpg",
    "\x1b[31m.jpg",
    "\ufeffbom.jpg",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scan(said: io.StringIO | None = None, **settings: object) -> Splits:
    settings.setdefault("train", "train")
    if "val_fraction" not in settings:
        settings.setdefault("val", "val")
    config = DataConfig.model_validate({"workers": 0, **settings})
    console = Console(stream=said or io.StringIO())
    return check_splits(scan_splits(config, seed=0, reporter=console), config, reporter=console)


def draw() -> None:
    draw_labelled(Path("train"), {"ant": 3, "bee": 3})
    draw_labelled(Path("val"), {"ant": 2, "bee": 2})


def test_every_name_survives() -> None:
    write_exclusion(Path("list.txt"), [("a title\nof two lines", [Path(each) for each in ODD])])
    assert read_exclusion(Path("list.txt")) == ODD
    lines = Path("list.txt").read_bytes().split(b"\n")
    assert lines[:3] == [b"# a title\\nof two lines", b"plain.jpg", b"with space.jpg"]
    assert b"\x1b" not in b"".join(lines)


def test_lists_that_people_write() -> None:
    content = b'\xef\xbb\xbf# made by hand\r\n\r\na b.jpg\r\n   \nlatin-\xe9.jpg\n"c.jpg"\nlast'
    Path("list.txt").write_bytes(content)
    names = ["a b.jpg", os.fsdecode(b"latin-\xe9.jpg"), "c.jpg", "last"]
    assert read_exclusion(Path("list.txt")) == names


@pytest.mark.parametrize("line", ['"open', '{"a": 1}"', '"a" "b"', "[" * 10])
def test_quotes_that_are_none(line: str) -> None:
    Path("list.txt").write_text(f"a\n{line}\n")
    if not line.startswith('"'):
        assert read_exclusion(Path("list.txt")) == ["a", line]
        return
    with pytest.raises(DataError, match=r"list\.txt:2: .* is no JSON string"):
        read_exclusion(Path("list.txt"))


def test_listed_images_are_in_no_split(folder: Path) -> None:
    draw()
    entries = ["train/ant/000.jpg", f"{folder}/train/bee/001.png", "./val/../val/bee/000.jpg",
               "train/ant/000.jpg", "train/ant/nix.jpg", "elsewhere.jpg"]  # fmt: skip
    Path("list.txt").write_text("".join(f"{each}\n" for each in entries))
    said = io.StringIO()
    splits = scan(said, exclude="list.txt")
    assert splits.exclusion is not None
    assert splits.exclusion.counts == {"train": 2, "val": 1}
    assert splits.exclusion.unmatched == ("train/ant/nix.jpg", "elsewhere.jpg")
    assert [len(splits.train), len(splits.val)] == [4, 3]
    assert "data.exclude: list.txt leaves out 2 train, 1 val images" in said.getvalue()
    assert "2 entries match no image; the first is train/ant/nix.jpg" in said.getvalue()
    described = describe_splits(splits)
    assert (described["train"]["excluded"], described["val"]["excluded"]) == (2, 1)
    assert described["exclude"] == "list.txt"
    assert described["train"]["per_class"] == {"ant": 2, "bee": 2}
    json.dumps(described)


def test_without_a_list_nothing_is_said() -> None:
    draw()
    said = io.StringIO()
    splits = scan(said)
    assert splits.exclusion is None
    assert "exclude" not in said.getvalue()
    described = describe_splits(splits)
    assert (described["train"]["excluded"], described["exclude"]) == (0, None)


def test_links_lead_to_the_same_images(folder: Path) -> None:
    draw()
    Path("link").symlink_to("train")
    Path("list.txt").write_text(f"{folder}/train/ant/000.jpg\n")
    exclusion = scan(train="link", exclude="list.txt").exclusion
    assert exclusion is not None
    assert exclusion.counts == {"train": 1, "val": 0}
    Path("list.txt").write_text("link/ant/001.png\n")
    exclusion = scan(exclude="list.txt").exclusion
    assert exclusion is not None
    assert exclusion.counts == {"train": 1, "val": 0}


def test_images_of_tars_and_of_lists() -> None:
    draw()
    pack("x.tar", "ant/1.jpg", "ant/2.jpg", "bee/1.jpg", "bee/2.jpg")
    Path("list.txt").write_text("x.tar/ant/2.jpg\nval/bee/000.jpg\n")
    splits = scan(train="x.tar", exclude="list.txt")
    assert list(splits.train.paths) == [Path("x.tar/ant/1.jpg"), *map(
        Path, ("x.tar/bee/1.jpg", "x.tar/bee/2.jpg"))]  # fmt: skip
    whole = Path("train/bee/001.png").absolute()
    lines = ["train/ant/000.jpg,ant", "train/ant/001.png,ant", "train/bee/000.jpg,bee",
             f"{whole},bee"]  # fmt: skip
    Path("rows.csv").write_text("".join(f"{line}\n" for line in lines))
    Path("list.txt").write_text("train/bee/001.png\ntrain/ant/000.jpg\n")
    splits = scan(train="rows.csv", exclude="list.txt")
    assert list(splits.train.paths) == [Path("train/ant/001.png"), Path("train/bee/000.jpg")]


def test_held_out_images_stay_held_out() -> None:
    draw_labelled(Path("train"), {"ant": 10, "bee": 10})
    before = scan(val_fraction=0.3)
    gone = before.train.paths[0]
    Path("list.txt").write_text(f"{gone}\n")
    after = scan(val_fraction=0.3, exclude="list.txt")
    assert after.val == before.val
    assert list(after.train.paths) == list(before.train.paths)[1:]


def test_a_list_that_leaves_nothing() -> None:
    draw()
    Path("list.txt").write_text(
        "".join(f"train/ant/{n}\n" for n in ("000.jpg", "001.png", "002.jpg"))
    )
    with pytest.raises(DataError, match=r"list\.txt leaves no training image of class 'ant'"):
        scan(exclude="list.txt")
    paths = Path("val").glob("*/*")
    Path("list.txt").write_text("".join(f"{path}\n" for path in paths))
    with pytest.raises(DataError, match=r"list\.txt leaves no image in data\.val"):
        scan(exclude="list.txt")
