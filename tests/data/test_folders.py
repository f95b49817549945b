"""Scanning folders with and without surprises."""

import os
import random
import socket
import unicodedata
from pathlib import Path

import pytest

from vtrain.data.folders import EMPTY_CLASS, find_splits, scan_images, scan_labelled
from vtrain.data.image_names import IMAGE_SUFFIXES
from vtrain.data.image_sets import LabelledImages, PackedPaths
from vtrain.data.splits import hold_out
from vtrain.errors import DataError


def make(root: Path, *files: str) -> Path:
    """Empty files below `root`, folders where a name ends in a slash; scanning opens nothing."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.touch()
    return root


def names(images: LabelledImages) -> list[tuple[str, str]]:
    """Class and path below the root of every image."""
    return [
        (images.classes[label], path.relative_to(images.root).as_posix())
        for path, label in zip(images.paths, images.labels, strict=True)
    ]


def notes(images: LabelledImages) -> dict[str, str]:
    return {s.path.relative_to(images.root).as_posix(): s.reason for s in images.skipped}


def error_of(
    root: Path, *, classes: list[str] | None = None, name: str = "data.train"
) -> DataError:
    with pytest.raises(DataError) as caught:
        scan_labelled(root, classes=classes, name=name)
    return caught.value


def test_images_come_sorted_by_class_and_path(tmp_path: Path) -> None:
    files = ["b/2.png", "b/10.png", "a/z.jpg", "a/deep/er/y.jpg", "B/x.gif", "a/deep/a.bmp"]
    random.Random(0).shuffle(files)
    images = scan_labelled(make(tmp_path, *files))
    assert images.classes == ("B", "a", "b")
    assert names(images) == [
        ("B", "B/x.gif"),
        ("a", "a/deep/a.bmp"),
        ("a", "a/deep/er/y.jpg"),
        ("a", "a/z.jpg"),
        ("b", "b/10.png"),
        ("b", "b/2.png"),
    ]
    assert images.skipped == ()


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_suffixes_count_in_any_case(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, f"a/lower{suffix}", f"a/UPPER{suffix.upper()}", "b/x.png")
    assert len(scan_labelled(tmp_path)) == 3


def test_hidden_names_do_not_exist(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png", "a/._1.png", ".git/x.png", ".ipynb_checkpoints/")
    make(tmp_path, "__MACOSX/a/1.png", "a/.ipynb_checkpoints/1-checkpoint.png", "b/.DS_Store")
    images = scan_labelled(tmp_path)
    assert names(images) == [("a", "a/1.png"), ("b", "b/1.png")]
    assert images.skipped == ()


def test_what_is_not_used_is_listed_with_a_reason(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png", "a/labels.csv", "stray.jpg", "README.md", "b/png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "b" / "gone.png").symlink_to("nowhere")
    (tmp_path / "b" / "self.png").symlink_to("self.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a" / "s.png"))
        images = scan_labelled(tmp_path)
    assert len(images) == 2
    assert notes(images) == {
        "README.md": "is not named like an image",
        "a/labels.csv": "is not named like an image",
        "a/pipe.png": "is a named pipe",
        "a/s.png": "is a socket",
        "b/gone.png": "is a broken link",
        "b/png": "is not named like an image",
        "b/self.png": "cannot be read (too many levels of symbolic links)",
        "stray.jpg": "lies outside the class folders",
    }
    assert list(notes(images)) == sorted(notes(images))


def test_loops_of_links_end(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/2.png", "a/sub/3.png")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "other").symlink_to("../a")
    (tmp_path / "b" / "inner").symlink_to("../a/sub")
    images = scan_labelled(tmp_path)
    assert names(images) == [("a", "a/1.png"), ("a", "a/sub/3.png"), ("b", "b/2.png")]
    assert set(notes(images)) == {"a/self", "a/up", "b/inner", "b/other"}
    assert set(notes(images).values()) == {"leads to a folder that is scanned already"}


def test_a_link_steals_no_images_from_the_folder_that_they_lie_in(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/deep/2.png")
    (tmp_path / "a" / "early").symlink_to("../b/deep")  # a is scanned before b
    assert names(scan_labelled(tmp_path)) == [("a", "a/1.png"), ("b", "b/deep/2.png")]


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    make(tmp_path / "pool", "1.png", "more/2.png", "class/3.png")
    root = make(tmp_path / "root", "a/", "b/4.png")
    (root / "a" / "file.png").symlink_to(tmp_path / "pool" / "1.png")
    (root / "a" / "folder").symlink_to(tmp_path / "pool" / "more")
    (root / "a" / "same").symlink_to(tmp_path / "pool" / "more")
    (root / "c").symlink_to(tmp_path / "pool" / "class")
    images = scan_labelled(root)
    assert names(images) == [
        ("a", "a/file.png"),
        ("a", "a/folder/2.png"),
        ("b", "b/4.png"),
        ("c", "c/3.png"),
    ]
    assert notes(images) == {"a/same": "leads to a folder that is scanned already"}


def test_two_class_folders_that_are_one_are_an_error(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "c").symlink_to("a")
    error = error_of(tmp_path)
    assert error.message == f"data.train: class folders without images in {tmp_path}: 'c'"
    assert error.hint is not None
    assert "c leads to a folder that is scanned already" in error.hint


def test_unicode_twins_are_an_error(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    make(tmp_path, f"{composed}/1.png", "tea/1.png")
    if (tmp_path / decomposed).exists():
        pytest.skip("this file system normalises names")
    make(tmp_path, f"{decomposed}/1.png")
    error = error_of(tmp_path)
    assert "both the class 'caf\u00e9'" in error.message
    assert r"'cafe\u0301' and 'caf\xe9'" in error.message


def test_class_names_are_composed_and_val_matches_them(tmp_path: Path) -> None:
    train = make(tmp_path / "train", "cafe\u0301/1.png", "tea/1.png")
    val = make(tmp_path / "val", "caf\u00e9/2.png")
    images = scan_labelled(train)
    assert images.classes == ("caf\u00e9", "tea")
    held_out = scan_labelled(val, classes=images.classes, name="data.val")
    assert held_out.labels == (0,)
    assert unicodedata.is_normalized("NFC", held_out.classes[0])


def test_val_is_matched_by_name_and_keeps_the_order_of_the_classes(tmp_path: Path) -> None:
    val = make(tmp_path, "zebra/1.png", "ant/2.png", "bee/")
    images = scan_labelled(val, classes=["zebra", "bee", "cat", "ant"], name="data.val")
    assert images.classes == ("zebra", "bee", "cat", "ant")
    assert images.class_counts() == [1, 0, 0, 1]
    assert images.labels == (0, 3)


def test_class_only_in_val_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "dog/1.png", "eel/1.png")
    error = error_of(tmp_path, classes=["a", "b"], name="data.val")
    assert error.message == (
        f"data.val: {tmp_path} has classes that training does not have: 'dog', 'eel'"
    )
    assert error.hint == "the classes are 'a', 'b'; folders are matched to them by name"


def test_val_without_images_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "a/note.txt")
    error = error_of(tmp_path, classes=["a", "b"], name="data.val")
    assert error.message == f"data.val: no images in {tmp_path}"


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/", "c/.hidden.png", "e/1.png", "f/g/")
    images = scan_labelled(tmp_path)
    assert images.classes == ("a", "e")
    assert notes(images) == dict.fromkeys(["b", "c", "f"], EMPTY_CLASS)
    make(tmp_path, "c/.hidden.png", "d/notes.txt", "x/notes.txt")
    error = error_of(tmp_path)
    message = f"data.train: class folders without images in {tmp_path}: 'd', 'x'"
    assert error.message == message
    reason = "d/notes.txt is not named like an image"
    assert error.hint == f"{reason}; add images or remove the folders"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "has no class folders"),
        (("1.jpg", "2.jpg"), "has no class folders"),
        (("only/1.jpg",), "has one class folder only, 'only'"),
        ((".hidden/1.jpg", "only/1.jpg"), "has one class folder only, 'only'"),
    ],
)
def test_roots_without_two_classes_are_errors(
    tmp_path: Path, files: tuple[str, ...], expected: str
) -> None:
    error = error_of(make(tmp_path, *files))
    assert error.message == f"data.train: {tmp_path} {expected}"
    assert error.hint == f"expected one folder for each class: {tmp_path}/<class>/<image>"


def test_roots_that_are_no_folders_are_errors(tmp_path: Path) -> None:
    make(tmp_path, "file.jpg")
    assert error_of(tmp_path / "none").message == f"data.train: there is no folder {tmp_path}/none"
    assert error_of(tmp_path / "none").hint == f"there is no none in {tmp_path}"
    others = "a .tar file or a list (.csv .tsv .txt .jsonl .ndjson)"
    message = f"data.train: {tmp_path}/file.jpg is a file, expected a folder, {others}"
    assert error_of(tmp_path / "file.jpg").message == message
    assert "null byte" in error_of(Path("a\0b")).message
    (tmp_path / "loop").symlink_to("loop")
    assert "too many levels" in error_of(tmp_path / "loop").message
    with pytest.raises(DataError, match="folder: there is no folder"):
        scan_images(tmp_path / "none")


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Test"])
def test_parent_of_splits_says_what_to_type(tmp_path: Path, val: str) -> None:
    make(tmp_path, "train/a/1.png", "train/b/1.png", f"{val}/a/1.png", "README.md")
    error = error_of(tmp_path)
    assert error.message == f"data.train: {tmp_path} holds splits, not classes"
    assert error.hint == f"use data.train={tmp_path}/train data.val={tmp_path}/{val}"
    error = error_of(tmp_path, classes=["a", "b"], name="data.val")
    assert error.hint == f"use {tmp_path}/{val} instead"


def test_splits_are_found_under_their_usual_names(tmp_path: Path) -> None:
    make(tmp_path, "Training/a/1.png", "valid/a/1.png", "test/a/1.png", ".git/")
    splits = find_splits(tmp_path)
    assert splits is not None
    found = (splits.train, splits.val, splits.test)
    assert found == (tmp_path / "Training", tmp_path / "valid", tmp_path / "test")


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.png", "bus/1.png"),
        ("training_shoes/1.png", "test tube/1.png"),
        ("valid/1.png", "invalid/1.png"),
    ],
)
def test_classes_that_happen_to_be_named_like_splits_are_classes(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    assert find_splits(make(tmp_path, *files)) is None


def deny(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the listing of one folder fail as it does without permission, for root as well."""
    truly_scan = os.scandir

    def scan(path: str) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", path)
        return truly_scan(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_unreadable_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1.png", "b/1.png", "b/locked/2.png")
    deny(monkeypatch, tmp_path / "b" / "locked")
    images = scan_labelled(tmp_path)
    assert notes(images) == {"b/locked": "cannot be read (permission denied)"}
    deny(monkeypatch, tmp_path / "b")
    error = error_of(tmp_path)
    assert "'b'" in error.message
    assert error.hint is not None
    assert "b cannot be read (permission denied)" in error.hint
    deny(monkeypatch, tmp_path)
    message = f"{tmp_path} cannot be read (permission denied)"
    assert error_of(tmp_path).message == f"data.train: {message}"
    with pytest.raises(DataError, match="cannot be read") as caught:
        scan_images(tmp_path)
    assert caught.value.message == f"folder: {message}"


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    try:
        (tmp_path / "a" / os.fsdecode(b"\xff.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert os.fsencode(scan_labelled(tmp_path).paths[1].name) == b"\xff.png"


def test_images_at_any_depth_come_sorted(tmp_path: Path) -> None:
    make(tmp_path, "z.png", "a/b/c.jpg", "a/2.PNG", "a/notes.txt", ".hidden/1.png", "m/1.gif")
    (tmp_path / "m" / "up").symlink_to("..")
    paths, skipped = scan_images(tmp_path)
    relative = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert relative == ["a/2.PNG", "a/b/c.jpg", "m/1.gif", "z.png"]
    assert [entry.path.name for entry in skipped] == ["notes.txt", "up"]
    paths, skipped = scan_images(make(tmp_path / "empty", "x/"))
    assert len(paths) == len(skipped) == 0


def labelled(counts: list[int]) -> LabelledImages:
    root = Path("root")
    pairs = [(f"{c}/{i}.png", c) for c, n in enumerate(counts) for i in range(n)]
    names, labels = zip(*pairs, strict=True)
    paths = PackedPaths(root, names)
    return LabelledImages(root, tuple(map(str, range(len(counts)))), paths, labels)


def split_stratified(
    images: LabelledImages, fraction: float, *, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    found, _ = hold_out(images, {"val": fraction}, seed=seed)
    return found["train"], found["val"]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.2, [20, 1, 1, 1, 0]),
        (0.01, [1, 1, 1, 1, 0]),
        (0.5, [50, 2, 2, 1, 0]),
        (0.99, [99, 4, 2, 1, 0]),
    ],
)
def test_split_leaves_every_class_on_both_sides(fraction: float, expected: list[int]) -> None:
    images = labelled([100, 5, 3, 2, 1])
    train, val = split_stratified(images, fraction, seed=0)
    assert val.class_counts() == expected
    assert sorted([*train.paths, *val.paths]) == sorted(images.paths)
    assert train.classes == val.classes == images.classes


def test_split_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    images = labelled([50, 50])
    _, val = split_stratified(images, 0.2, seed=0)
    shuffled = images.subset(random.Random(0).sample(range(100), 100))
    assert set(split_stratified(shuffled, 0.2, seed=0)[1].paths) == set(val.paths)
    assert set(split_stratified(images, 0.2, seed=1)[1].paths) != set(val.paths)
    # The order of the images is kept on both sides.
    assert list(val.paths) == [path for path in images.paths if path in set(val.paths)]


def test_split_does_not_depend_on_where_the_root_is(tmp_path: Path) -> None:
    files = [f"{c}/{i}.png" for c in "ab" for i in range(20)]
    first = scan_labelled(make(tmp_path / "one", *files))
    second = scan_labelled(make(tmp_path / "two" / "deeper", *files))
    assert names(split_stratified(first, 0.3, seed=5)[1]) == names(
        split_stratified(second, 0.3, seed=5)[1]
    )
