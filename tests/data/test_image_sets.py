"""Packed paths: sequences of paths like any other, in less memory."""

import os
import pickle
from pathlib import Path

import pytest

from vtrain.data.image_sets import LabelledImages, PackedPaths, join_prefix

NAMES = ["a/1.png", "a/é.png", "b/\udcff.png", "c/x y.png"]
ROOT = Path("/data/set")
PATHS = [ROOT / name for name in NAMES]


def test_they_are_a_sequence_of_paths() -> None:
    packed = PackedPaths(ROOT, NAMES)
    assert len(packed) == 4
    assert [packed[index] for index in range(4)] == list(packed) == PATHS
    assert [packed[index] for index in range(-4, 0)] == PATHS
    assert PATHS[2] in packed
    assert packed.index(PATHS[3]) == 3
    assert list(packed.names()) == NAMES
    assert list(packed.texts()) == [str(path) for path in PATHS]
    assert list(packed.encoded_names()) == [os.fsencode(name) for name in NAMES]
    for index in (4, -5):
        with pytest.raises(IndexError):
            packed[index]


def test_they_equal_any_sequence_of_the_same_paths() -> None:
    packed = PackedPaths(ROOT, NAMES)
    assert packed == PATHS == packed
    assert tuple(PATHS) == packed
    assert packed == PackedPaths(Path("/"), [f"data/set/{name}" for name in NAMES])
    assert packed != PATHS[:3]
    assert packed != [*PATHS[:3], Path("other")]
    assert packed != 4
    assert PackedPaths(ROOT, []) == ()


def test_selections_of_selections() -> None:
    packed = PackedPaths(ROOT, NAMES)
    chosen = packed.select([3, 1, 0])
    assert chosen == [PATHS[3], PATHS[1], PATHS[0]]
    assert chosen.select([2, 1]) == [PATHS[0], PATHS[1]]
    assert chosen[-1] == PATHS[0]
    assert packed[1:3] == PATHS[1:3]
    assert packed[::-2] == PATHS[::-2]
    assert chosen[1:] == [PATHS[1], PATHS[0]]
    assert list(chosen.texts()) == [str(path) for path in chosen]
    assert pickle.loads(pickle.dumps(chosen)) == chosen


@pytest.mark.parametrize("root", [".", "/", "a", "a/b"])
def test_text_and_paths_agree(root: str) -> None:
    packed = PackedPaths(Path(root), NAMES)
    assert list(packed.texts()) == [str(path) for path in packed]
    assert join_prefix(Path(root)) == str(Path(root, "x"))[:-1]


def test_absolute_names_among_relative_ones() -> None:
    packed = PackedPaths(ROOT, ["a.png", "/b.png"], mixed=True)
    assert packed == [ROOT / "a.png", Path("/b.png")]
    assert list(packed.texts()) == ["/data/set/a.png", "/b.png"]


def test_subsets() -> None:
    images = LabelledImages(ROOT, ("a", "b", "c"), PackedPaths(ROOT, NAMES), (0, 0, 1, 2))
    part = images.subset([3, 0])
    assert part.paths == [PATHS[3], PATHS[0]]
    assert part == LabelledImages(
        ROOT, images.classes, PackedPaths(ROOT, [NAMES[3], NAMES[0]]), (2, 0)
    )
    assert list(part.paths.encoded_names()) == [b"c/x y.png", b"a/1.png"]
    assert part.class_counts() == [1, 0, 1]
