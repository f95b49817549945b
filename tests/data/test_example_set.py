"""The sample data set: the same for everybody, small, and what the repository holds."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vtrain.data.example_set import SHAPES, TRAIN_IMAGES, VAL_IMAGES, draw_sample
from vtrain.data.folders import scan_labelled
from vtrain.data.image_sets import LabelledImages
from vtrain.errors import ExitCode, ResourceError, UsageError

COMMITTED = Path(__file__).parents[2] / "data" / "shapes"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledImages, LabelledImages]:
    return draw_sample(tmp_path_factory.mktemp("sample") / "new" / "shapes")


def read_tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_the_sample_scans_as_what_it_says(drawn: tuple[LabelledImages, LabelledImages]) -> None:
    train, val = drawn
    assert scan_labelled(train.root) == train
    assert scan_labelled(val.root, classes=train.classes, name="data.val") == val
    assert train.classes == SHAPES
    assert train.class_counts() == [TRAIN_IMAGES] * 5
    assert val.class_counts() == [VAL_IMAGES] * 5
    assert (train.root.name, val.root.name) == ("train", "val")


def test_the_sample_is_small_and_no_picture_comes_twice(
    drawn: tuple[LabelledImages, LabelledImages],
) -> None:
    contents = read_tree(drawn[0].root.parent)
    assert sum(map(len, contents.values())) < 1_000_000
    assert len(set(contents.values())) == len(contents) == 5 * (TRAIN_IMAGES + VAL_IMAGES)
    with Image.open(drawn[0].paths[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))


def test_the_same_seed_draws_the_same_bytes(
    drawn: tuple[LabelledImages, LabelledImages], tmp_path: Path
) -> None:
    first = read_tree(drawn[0].root.parent)
    np.random.seed(3)
    draw_sample(tmp_path / "again")
    assert read_tree(tmp_path / "again") == first
    (tmp_path / "other").mkdir()
    draw_sample(tmp_path / "other", seed=1)
    other = read_tree(tmp_path / "other")
    assert other.keys() == first.keys()
    assert not any(other[name] == first[name] for name in first)


def shrink(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.resize((12, 12))).ravel()


def test_neither_colour_nor_place_tells_the_shape(
    drawn: tuple[LabelledImages, LabelledImages],
) -> None:
    """The nearest class mean of the pixels, a classifier that sees no shapes, stays near chance."""
    train, val = (
        np.stack([shrink(path) for path in part.paths]).astype(np.float64) for part in drawn
    )
    labels = np.array(drawn[0].labels)
    means = np.stack([train[labels == label].mean(0) for label in range(5)])
    nearest = ((val[:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == np.array(drawn[1].labels)).mean() < 0.4


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty") as caught:
        draw_sample(tmp_path)
    assert caught.value.hint == "name a new folder for the sample"
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
    with pytest.raises(UsageError, match="is a file, expected a new or empty folder"):
        draw_sample(tmp_path / "keep.txt")


def test_a_disk_error_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ResourceError, match="no space left"):
        draw_sample(tmp_path / "shapes")


@pytest.mark.parametrize("place", ["file.txt/shapes", "x" * 300, "nul\0byte"])
def test_a_folder_that_cannot_be_created_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(UsageError, match=r"cannot (write|create)") as caught:
        draw_sample(tmp_path / place)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_folder_that_is_closed_to_us_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        draw_sample(tmp_path / "shapes")


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="the repository's data folder is not here")
def test_the_repository_holds_what_the_command_draws(
    drawn: tuple[LabelledImages, LabelledImages],
) -> None:
    root = drawn[0].root.parent
    committed, fresh = read_tree(COMMITTED), read_tree(root)
    assert committed.keys() == fresh.keys()
    for name in fresh:
        with Image.open(COMMITTED / name) as first, Image.open(root / name) as second:
            # Other builds of libjpeg round differently; the picture is the same.
            difference = np.asarray(first).astype(int) - np.asarray(second).astype(int)
        assert np.abs(difference).mean() < 2
