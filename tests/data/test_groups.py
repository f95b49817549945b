"""Groups stay whole: which of them are held out, and what the shares of the classes are then."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.told import Told
from vtrain.config.keys import DataConfig
from vtrain.data.groups import Groups, find_groups
from vtrain.data.image_sets import LabelledImages, PackedPaths
from vtrain.data.leaks import find_leaks
from vtrain.data.splits import hold_out
from vtrain.errors import DataError
from vtrain.system.reporter import SILENT

ROOT = Path("set")


def label(places: Sequence[str], groups: Sequence[str] | None = None) -> LabelledImages:
    """Images by their paths, of classes that the first folder names."""
    places = sorted(places)
    classes = sorted({place.split("/")[0] for place in places})
    labels = tuple(classes.index(place.split("/")[0]) for place in places)
    paths = PackedPaths(ROOT, places)
    return LabelledImages(
        ROOT, tuple(classes), paths, labels, (), None if groups is None else tuple(groups)
    )


def draw_groups(seed: int) -> tuple[LabelledImages, Groups]:
    """Up to forty groups of one to thirty images, of which some hold several classes."""
    draw = random.Random(seed)
    classes = draw.randint(2, 5)
    places = [
        f"c{draw.choice(own)}/g{group}_{number}.png"
        for group in range(draw.randint(8, 40))
        for own in [draw.sample(range(classes), draw.choice([1, 1, 1, 2]))]
        for number in range(draw.choice([1, 2, 5, 10, 30]))
    ]
    images = label(
        [*places, *(f"c{each}/own{each}{n}_0.png" for each in range(classes) for n in range(2))]
    )
    config = DataConfig(train="set", val_fraction=0.2, group=r"/(\w+)_")
    groups = find_groups(images, config, SILENT)
    assert groups is not None
    return images, groups


def group_names(images: LabelledImages) -> set[str]:
    return {name.split("/")[1].split("_")[0] for name in images.paths.names()}


@pytest.mark.parametrize("seed", range(30))
def test_groups_stay_whole_and_every_class_is_everywhere(seed: int) -> None:
    images, groups = draw_groups(seed)
    found, counts = hold_out(images, {"val": 0.2}, seed=seed, groups=groups)
    train, val = found["train"], found["val"]
    assert sorted([*train.paths, *val.paths]) == list(images.paths)
    assert not group_names(train) & group_names(val)
    assert counts is not None
    assert counts.counts == {"train": len(group_names(train)), "val": len(group_names(val))}
    # Each class has at least two groups of its own: one image on either side can be had.
    assert min(train.class_counts()) > 0
    assert min(val.class_counts()) > 0
    # A group has thirty images at most: no class is further from its share than half of one.
    for part, whole in zip(val.class_counts(), images.class_counts(), strict=True):
        assert abs(part - 0.2 * whole) <= 15


def test_many_small_groups_are_split_as_asked() -> None:
    images = label([f"{c}/g{g}_{n}.png" for c in "ab" for g in range(50) for n in range(4)])
    groups = find_groups(images, DataConfig(train="set", group=r"(./g\d+)"), SILENT)
    found, _ = hold_out(images, {"val": 0.2, "test": 0.1}, seed=0, groups=groups)
    counts = {name: each.class_counts() for name, each in found.items()}
    assert counts == {"train": [140, 140], "val": [40, 40], "test": [20, 20]}


def test_groups_do_not_depend_on_the_order_but_on_the_seed() -> None:
    images, _ = draw_groups(3)
    config = DataConfig(train="set", val_fraction=0.2, group=r"/(\w+)_")
    order = random.Random(0).sample(range(len(images)), len(images))

    def choose(images: LabelledImages, seed: int) -> set[Path]:
        groups = find_groups(images, config, SILENT)
        return set(hold_out(images, {"val": 0.2}, seed=seed, groups=groups)[0]["val"].paths)

    assert choose(images, 0) == choose(images.subset(order), 0)
    assert len({frozenset(choose(images, seed)) for seed in range(5)}) > 1


def test_a_column_of_a_list_names_groups_and_may_leave_some_out() -> None:
    places = [f"{c}/{n}.png" for c in "ab" for n in range(8)]
    images = label(places, [f"p{n // 2}" if n < 14 else "" for n in range(16)])
    told: list[str] = []
    config = DataConfig(train="list.csv", val_fraction=0.25, group="patient")
    groups = find_groups(images, config, Told(told))
    assert groups is not None
    assert groups.ids == [*(n // 2 for n in range(14)), 7, 8]
    assert len(told) == 1
    assert "2 of 16 images are in no group of patient, such as b/6.png" in told[0]


def test_nothing_can_be_held_out_of_two_groups_that_hold_a_class_each() -> None:
    images = label(["a/x_0.png", "a/x_1.png", "b/x_2.png", "a/y_0.png", "c/y_1.png"])
    groups = find_groups(images, DataConfig(train="set", group="/([xy])_"), SILENT)
    with pytest.raises(DataError, match="makes 2 groups of 5 images, and none can go to val"):
        hold_out(images, {"val": 0.2}, seed=0, groups=groups)


def test_without_groups_the_split_is_what_it_always_was() -> None:
    """A run that was started by an earlier version is resumed with its images."""
    draw = random.Random(0)
    images = label([f"c{draw.randrange(3)}/{draw.randrange(10**6)}.jpg" for _ in range(50)])
    found, _ = hold_out(images, {"val": 0.2}, seed=4)
    names = "\n".join(found["val"].paths.names())
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "e3323f6b3cf2a3ad"
    both, _ = hold_out(images, {"val": 0.2, "test": 0.2}, seed=4)
    assert both["val"] == found["val"]


@pytest.mark.parametrize(("size", "expected"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1))])
def test_small_classes_fill_train_first(size: int, expected: tuple[int, ...]) -> None:
    images = label([*(f"a/{n}.png" for n in range(size)), *(f"b/{n}.png" for n in range(20))])
    found, _ = hold_out(images, {"val": 0.2, "test": 0.2}, seed=0)
    assert tuple(each.class_counts()[0] for each in found.values()) == expected


def test_equal_files_are_counted_across_splits_and_classes() -> None:
    splits = {
        "train": label(["a/0.png", "a/1.png", "b/2.png"]),
        "val": label(["a/3.png", "b/4.png", "b/5.png"]),
        "test": label(["a/6.png", "b/7.png"]),
    }
    digests = {
        name: np.array([text.encode().ljust(16) for text in texts], "S16").view("V16")
        for name, texts in (("train", "xyz"), ("val", "xxw"), ("test", "wv"))
    }
    found = find_leaks(splits, digests, held_out=("train", "val"))
    assert [(each.kind, each.count) for each in found] == [
        ("leaked", 2),
        ("leaked", 1),
        ("conflicting_labels", 5),
    ]
    assert "2 images of val are also in train" in found[0].message
    assert found[0].paths == (ROOT / "a/3.png", ROOT / "a/0.png")
    assert found[1].paths == (ROOT / "a/6.png", ROOT / "b/5.png")
    assert "data.group=duplicates" in found[0].message
    assert "--write-list" in found[1].message
