"""Lists of files: what they name is used, what is wrong with them is told."""

import os
from pathlib import Path

import pytest

from tests.data.test_tars import names, notes, pack
from tests.helpers.tiny import draw_labelled
from vtrain.data.folders import scan_images, scan_labelled
from vtrain.data.splits import split_digest
from vtrain.data.tars import find_status
from vtrain.errors import DataError

ROWS = [("photos/ant/000.jpg", "ant"), ("photos/bee/001.png", "bee"), ("photos/ant/001.png", "ant")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lists lie beside the photos; the working directory is another one."""
    draw_labelled(tmp_path / "data" / "photos", {"ant": 2, "bee": 2})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "data"


def make(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", "surrogateescape")
    return path


@pytest.mark.parametrize("header", [[], ["path,label"], ["\ufeffPath,Label"]])
@pytest.mark.parametrize(("name", "separator"), [("x.csv", ","), ("x.TSV", "\t"), ("x.txt", "\t")])
def test_paths_and_classes(folder: Path, name: str, separator: str, header: list[str]) -> None:
    lines = [*header, *(",".join(row) for row in ROWS), ""]
    path = make(folder, name, *(line.replace(",", separator) for line in lines))
    images = scan_labelled(path)
    assert images.classes == ("ant", "bee")
    assert names(images) == [
        ("ant", "photos/ant/000.jpg"),
        ("ant", "photos/ant/001.png"),
        ("bee", "photos/bee/001.png"),
    ]
    assert all(each.is_file() for each in images.paths)
    assert images.root == path
    paths, skipped = scan_images(path)
    assert paths == [folder / row[0] for row in ROWS]
    assert skipped == []


def test_columns_are_found_by_name(folder: Path) -> None:
    path = make(folder, "x.csv", "row,class,path", *(f"7,{c},{p}" for p, c in ROWS))
    assert scan_labelled(path).class_counts() == [2, 1]


def test_paths_alone(folder: Path) -> None:
    path = make(folder, "x.txt", *(row[0] for row in ROWS))
    assert scan_images(path)[0] == [folder / row[0] for row in ROWS]
    with pytest.raises(DataError, match=r"x\.txt names no classes, only paths"):
        scan_labelled(path)


def test_what_does_not_count_is_told(folder: Path) -> None:
    lines = [f"{path},{label}" for path, label in ROWS]
    lines += ["gone.jpg,ant", "photos/bee/000.jpg,", "./photos/ant/000.jpg,ant"]
    images = scan_labelled(make(folder, "x.csv", *lines, "photos/bee/000.jpg"))
    assert [name for _, name in names(images)] == ["gone.jpg", *sorted(row[0] for row in ROWS)]
    assert {
        Path(path).relative_to(folder).as_posix(): why for path, why in notes(images).items()
    } == {
        "photos/ant/000.jpg": "is listed before",
        "photos/bee/000.jpg": "has no class in the list",
    }


def test_two_classes_for_one_file_are_an_error(folder: Path) -> None:
    path = make(folder, "x.csv", "photos/ant/000.jpg,ant", "photos/ant/000.jpg,bee")
    with pytest.raises(DataError, match=r"000\.jpg is listed as 'ant' and as 'bee'"):
        scan_labelled(path)
    assert len(scan_images(path)[0]) == 2


def test_absolute_paths_and_paths_upwards(folder: Path) -> None:
    (folder / "lists").mkdir()
    lines = [f"{folder}/photos/ant/000.jpg,ant", "../photos/bee/001.png,bee"]
    images = scan_labelled(make(folder, "lists/x.csv", *lines))
    assert all(each.is_file() for each in images.paths)
    assert list(images.paths.texts()) == [str(each) for each in images.paths]
    assert len(split_digest(images)) == 64


def test_members_of_tars_can_be_listed(folder: Path) -> None:
    pack(str(folder / "x.tar"), "1.jpg", "2.jpg")
    images = scan_labelled(make(folder, "x.csv", "x.tar/1.jpg,ant", "x.tar/2.jpg,b"))
    assert [find_status(path).st_size > 0 for path in images.paths] == [True, True]


def test_classes_match_those_of_training(folder: Path) -> None:
    path = make(folder, "x.csv", *(f"{p},{c}" for p, c in ROWS))
    images = scan_labelled(path, classes=["zebra", "bee", "ant"], name="data.val")
    assert images.labels == (1, 2, 2)
    with pytest.raises(DataError, match=r"data\.val: .* training does not have: 'bee'"):
        scan_labelled(path, classes=["ant"], name="data.val")


def test_names_that_are_not_utf8(folder: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    try:
        (folder / "photos/ant/000.jpg").rename(folder / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    lines = (f"{name}\tant", "photos/bee/000.jpg\tbee")
    assert scan_labelled(make(folder, "x.txt", *lines)).paths[0].is_file()
    with pytest.raises(DataError, match=r"x\.csv is not UTF-8: byte 0xff in line 1, at 1"):
        scan_labelled(make(folder, "x.csv", *lines))


def test_quotes_belong_to_csv(folder: Path) -> None:
    (folder / 'a "b", c.png').touch()
    csv = make(folder, "x.csv", '"a ""b"", c.png",ant')
    txt = make(folder, "x.txt", 'a "b", c.png')
    assert scan_images(csv)[0] == scan_images(txt)[0] == [folder / 'a "b", c.png']
    with pytest.raises(DataError, match="is no list of files"):
        scan_images(make(folder, "y.csv", 'a,"b" c'))


def test_a_folder_named_like_a_list_is_a_folder(folder: Path) -> None:
    (folder / "photos").rename(folder / "photos.csv")
    assert len(scan_labelled(folder / "photos.csv")) == 4
