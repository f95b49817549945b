"""The images of a run: train, validation and test splits, scanned, matched by class and checked."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vtrain.config.keys import DataConfig
from vtrain.data.class_names import rename_classes
from vtrain.data.exclusion import Exclusion, exclude_images
from vtrain.data.folders import EMPTY_CLASS, scan_labelled, scan_training
from vtrain.data.formats import describe_unread, split_foreign
from vtrain.data.groups import (
    Groups,
    choose_sides,
    describe_frames,
    find_groups,
    require_groups_apart,
)
from vtrain.data.image_checks import Sizes, inspect_images
from vtrain.data.image_sets import LabelledImages, SkippedFile
from vtrain.data.layouts import describe_class_names
from vtrain.data.leaks import Leak, find_leaks
from vtrain.data.lists import layout_of
from vtrain.data.overlaps import require_apart
from vtrain.data.tars import find_status
from vtrain.data.workers import resolve_workers
from vtrain.errors import DataError
from vtrain.system.files import path_exists
from vtrain.system.json_csv import to_plain
from vtrain.system.reporter import SILENT, Forwarding, Reporter
from vtrain.system.text import enumerate_names, one_line


@dataclass(frozen=True, slots=True)
class HeldOutGroups:
    """How many groups each split got, of those that `by` makes."""

    by: str
    counts: dict[str, int]

    def describe(self) -> str:
        """One line for the plan."""
        parts = ", ".join(f"{count:,} in {name}" for name, count in self.counts.items())
        return f"groups: {parts} (data.group: {one_line(self.by)}); none is in two splits"


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits of a run; all have the same classes in the same order.

    `bad_images` could not be read and are in no split. `checked` images were read to find them,
    `known` ones were found good before and are unchanged. `sizes` of the images in bytes, by split,
    are known once they were checked, `leaks` as well. `exclusion` tells what `data.exclude` left
    out, `class_ids` are the names of classes in folders and lists where `data.names` gives them
    others, `groups` how many groups of `data.group` each split has, `notes` are warnings about the
    way in which images were held out.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    bad_images: tuple[SkippedFile, ...] = ()
    checked: int = field(default=0, compare=False)
    known: int = field(default=0, compare=False)
    sizes: dict[str, Sizes] = field(default_factory=dict, compare=False, repr=False)
    exclusion: Exclusion | None = None
    leaks: tuple[Leak, ...] = ()
    groups: HeldOutGroups | None = None
    class_ids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What makes results on these splits too good, a line each."""
        return [*self.notes, *(each.message for each in self.leaks)]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels index them."""
        return self.train.classes

    def describe_check(self) -> str:
        """How many images were checked, and how many did not need to be."""
        known = f", {self.known} known to be good and unchanged" if self.known else ""
        return f"{self.checked} checked{known}"

    def named(self) -> dict[str, LabelledImages]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "val": self.val}
        return splits if self.test is None else {**splits, "test": self.test}


def scan_splits(config: DataConfig, *, seed: int, reporter: Reporter) -> Splits:
    """Scan the folders of a config and hold out validation images if asked to; opens no image.

    Raises:
        DataError: a folder, or the list of `data.exclude`, cannot be used.
    """
    once = _OneWarning(reporter)
    layout = layout_of(config)
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    wanted = {name: fraction for name, fraction in fractions.items() if fraction is not None}
    ungrouped = (config.group or config.columns.group) is None and bool(wanted)
    found = scan_training(Path(config.train), layout=layout, hint_group=ungrouped, reporter=once)
    classes, layout = found["train"].classes, replace(layout, split=None)
    for name in ("val", "test"):
        source = getattr(config, name)
        _require_one_source(config, name, found)
        if source is not None:
            found[name] = scan_labelled(
                Path(source),
                classes=classes,
                name=f"data.{name}",
                layout=layout,
                reporter=once,
            )
    groups = find_groups(found["train"], config, reporter) if wanted else None
    held_out, held_groups = hold_out(
        found["train"], wanted, seed=seed, groups=groups, reporter=reporter
    )
    notes = () if groups or not wanted else describe_frames(found["train"])
    found |= held_out
    splits = Splits(
        found["train"], found["val"], found.get("test"), groups=held_groups, notes=notes
    )
    require_apart(splits.named())
    require_groups_apart(splits.named(), config)
    if config.exclude is not None:
        # After the split: a held-out image stays held out, whatever else is left out.
        splits = _leave_out(splits, Path(config.exclude), reporter)
    _say_surprises(splits, reporter)
    if config.names is not None:
        names = rename_classes(classes, Path(config.names), reporter)
        renamed = {name: replace(each, classes=names) for name, each in splits.named().items()}
        splits = replace(_with_images(splits, renamed), class_ids=classes)
    return splits


def _require_one_source(config: DataConfig, name: str, found: Mapping[str, LabelledImages]) -> None:
    """Refuse lines of a split in the list of `data.train` beside a key for it, or neither."""
    keys = [key for key in (name, f"{name}_fraction") if getattr(config, key) is not None]
    if name in found and keys:
        raise DataError(
            f"data.train: {one_line(config.train)} has {len(found[name])} lines of {name} in its "
            f"column of splits, and data.{keys[0]} is set as well",
            f"keep one of them: set data.{keys[0]} to null, or leave the lines out of the list",
        )
    if name == "val" and name not in found and not keys:
        raise DataError(
            f"no validation images: {one_line(config.train)} has no lines of val",
            "set data.val to a folder or list, or data.val_fraction=0.2; or mark lines as val in a "
            "column of the list called split",
        )


def _leave_out(splits: Splits, path: Path, reporter: Reporter) -> Splits:
    kept, exclusion = exclude_images(splits.named(), path)
    counts = ", ".join(f"{count} {name}" for name, count in exclusion.counts.items())
    reporter.say(f"data.exclude: {one_line(exclusion.path)} leaves out {counts} images")
    if exclusion.unmatched:
        reporter.warn(describe_unmatched(exclusion))
    return replace(_with_images(splits, kept), exclusion=exclusion)


def _with_images(splits: Splits, named: dict[str, LabelledImages]) -> Splits:
    return replace(splits, train=named["train"], val=named["val"], test=named.get("test"))


class _OneWarning(Forwarding):
    """Warns once of the same: it may hold for every split."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(reporter)
        self.warned: set[str] = set()

    def warn(self, message: str) -> None:
        """Each message once."""
        if message not in self.warned:
            self.warned.add(message)
            super().warn(message)


def describe_unmatched(exclusion: Exclusion) -> str:
    """How many entries of a list match no image, and the first of them (there is at least one)."""
    count = len(exclusion.unmatched)
    entries = "1 entry matches" if count == 1 else f"{count} entries match"
    first = one_line(exclusion.unmatched[0])
    return f"data.exclude: {entries} no image; the first is {first}"


def _say_surprises(splits: Splits, reporter: Reporter) -> None:
    for remark in describe_class_names(splits.classes):
        reporter.warn(remark)
    empty = [each.path.name for each in splits.train.skipped if each.reason == EMPTY_CLASS]
    if empty:
        reporter.warn(
            f"data.train: class folders without images are left out: {enumerate_names(empty)}; the "
            "model will not know these classes"
        )
    for name, images in splits.named().items():
        counts = zip(images.classes, images.class_counts(), strict=True)
        missing = [label for label, count in counts if count == 0]
        if missing:
            reporter.warn(f"data.{name} has no images of {enumerate_names(missing)}")
        read = Counter(dict(zip(images.classes, images.class_counts(), strict=True)))
        if name == "train" and splits.val.root == images.root:  # a part of it is held out
            read.update(dict(zip(images.classes, splits.val.class_counts(), strict=True)))
        for message in describe_unread(images.skipped, images.root, read):
            reporter.warn(f"data.{name}: {message}")
        _, others = split_foreign(images.skipped)
        if others:
            reporter.warn(
                f"data.{name}: {len(others)} files are not used, such as {one_line(others[0].path)}"
                f" ({others[0].reason}); data.json in the run folder lists them"
            )


def check_splits(splits: Splits, config: DataConfig, *, reporter: Reporter) -> Splits:
    """Read every image once, before training starts; returns the splits without bad ones.

    Images that were found good before and have not changed since are not read again.

    Raises:
        DataError: images cannot be read and `on_bad_image` is `error`, or none is left.
    """
    once = _OneWarning(reporter)
    named = splits.named()
    total = sum(map(len, named.values()))
    found = {}
    with reporter.progress(total, "checking images") as bar:
        for name, images in named.items():
            found[name] = inspect_images(
                images.paths,
                images.root,
                count=total,
                with_facts=False,
                choose_workers=partial(resolve_workers, config.workers),
                bar=bar,
                reporter=once,
            )
            if found[name].bad:
                named[name] = images.subset(np.flatnonzero(found[name].readable).tolist())
    bad = [each for inspection in found.values() for each in inspection.bad]
    hint = _hint_root(bad, splits)
    lines = _name_bad(bad, 20 if hint else 1_000)
    if bad and config.on_bad_image == "error":
        text = "".join(f"\n  {line}" for line in lines)
        raise DataError(
            f"{len(bad)} of {total} images cannot be read:{text}",
            f"repair or remove them, or set data.on_bad_image=skip to train without them{hint}",
        )
    for line in lines:
        reporter.warn(f"skipped {line}")
    _require_images(named)
    digests = {name: each.digests[each.readable] for name, each in found.items()}
    fractions = (("val", config.val_fraction), ("test", config.test_fraction))
    held_out = ["train", *(name for name, fraction in fractions if fraction)]
    return replace(
        _with_images(splits, named),
        leaks=find_leaks(named, digests, held_out=held_out),
        bad_images=tuple(bad),
        checked=sum(each.read for each in found.values()),
        known=sum(each.known for each in found.values()),
        sizes={name: each.sizes[each.readable] for name, each in found.items()},
    )


def _name_bad(bad: Sequence[SkippedFile], most: int) -> list[str]:
    """The first images that cannot be read and why, and how many more there are."""
    lines = [f"{one_line(each.path)}: {each.reason}" for each in bad[:most]]
    rest = len(bad) - len(lines)
    return [*lines, f"and {rest} more"] if rest else lines


def _hint_root(bad: Sequence[SkippedFile], splits: Splits) -> str:
    """What to look at where lists name files that are not there."""
    images = splits.named().values()
    folders = {str(each.paths.root) for each in images if each.root != each.paths.root}
    first = bad[:20]
    if not folders or sum(path_exists(each.path) for each in first) * 2 > len(first):
        return ""
    return f"; paths in lists are relative to {', '.join(sorted(folders))}: see data.root"


def _require_images(splits: dict[str, LabelledImages]) -> None:
    for name, images in splits.items():
        if not len(images):
            raise DataError(
                f"data.{name}: no readable image is left in {one_line(images.root)}",
                "check the folder, or choose another one",
            )
    train = splits["train"]
    for label, count in zip(train.classes, train.class_counts(), strict=True):
        if count == 0:
            root = one_line(train.root)
            raise DataError(
                f"data.train: no readable image of class {label!r} is left in {root}",
                "repair its images, or remove the class folder",
            )


def describe_splits(splits: Splits) -> dict[str, Any]:
    """What `data.json` holds: classes, counts, hashes and the files that are not used."""
    return {
        "schema": 1,
        "classes": list(splits.classes),
        **{
            name: {
                "root": str(images.root),
                "count": len(images),
                "per_class": dict(zip(images.classes, images.class_counts(), strict=True)),
                "sha256": split_digest(images, splits.sizes.get(name)),
                "skipped": to_plain(images.skipped),
                "excluded": splits.exclusion.counts[name] if splits.exclusion else 0,
            }
            for name, images in splits.named().items()
        },
        "bad_images": to_plain(splits.bad_images),
        "exclude": str(splits.exclusion.path) if splits.exclusion else None,
        "groups": to_plain(splits.groups),
        "leaks": to_plain(splits.leaks),
        "warnings": splits.warnings,
    }


def split_digest(images: LabelledImages, sizes: Sizes | None = None) -> str:
    """SHA-256 over class names and each image's class, place below the root, and size in bytes.

    It tells whether a resumed run sees the same images; it does not read them. `sizes` `[N]` are
    asked for if they are not given.
    """
    digest = hashlib.sha256("\0".join(images.classes).encode("utf-8", "surrogateescape"))
    if sizes is None:
        found: Iterable[int] = (find_status(path).st_size for path in images.paths.texts())
    else:
        found = sizes.tolist()
    places = images.paths.encoded_names()
    for label, place, size in zip(images.labels, places, found, strict=True):
        digest.update(b"\n%d\0%b\0%d" % (label, place, size))
    return digest.hexdigest()


def hold_out(
    images: LabelledImages,
    fractions: Mapping[str, float],
    *,
    seed: int,
    groups: Groups | None = None,
    reporter: Reporter = SILENT,
) -> tuple[dict[str, LabelledImages], HeldOutGroups | None]:
    """Split off a share of each class (0 to 1, rounded) for each split in `fractions`.

    Returns those and what is left of `train`, and how many groups each of them got. Without groups,
    a class with images enough gets at least one in each; a single image stays in train. Which
    images go is decided by a hash of the seed and the path below the root, so neither the order of
    the file system nor other files matter. The first split takes from one end of that order and the
    second from the other: the first one's images do not depend on whether there is a second.
    """
    if not fractions:
        return {"train": images}, None
    names = ["train", *fractions]
    sides = bytearray(len(images))  # of each image: the index of its split in `names`
    counts = None
    if groups is not None:
        chosen = choose_sides(images, groups, fractions, seed=seed, reporter=reporter)
        side_of = bytearray(len(groups.names))
        for side, name in enumerate(fractions, start=1):
            for group in chosen[name]:
                side_of[group] = side
        sides = bytearray(side_of[group] for group in groups.ids)
        counts = {name: side_of.count(side) for side, name in enumerate(names)}
    else:
        for free in _shuffle_classes(images, seed):
            size = len(free)
            for side, fraction in enumerate(fractions.values(), start=1):
                count = min(max(round(size * fraction), 1), len(free) - 1)
                for index in free[:count]:
                    sides[index] = side
                free = free[count:][::-1]
    found = np.frombuffer(sides, np.uint8)
    splits = {}
    for side, name in enumerate(names):
        own = images.subset(np.flatnonzero(found == side).tolist())
        # All have the files of the folder that are not used: they are said once.
        splits[name] = replace(own, skipped=()) if side else own
    return splits, HeldOutGroups(groups.by, counts) if groups and counts else None


def sample_stratified(images: LabelledImages, count: int, *, seed: int) -> LabelledImages:
    """About `count` images, of each class in its share and at least two where it has them.

    All of them where there are no more. Unlike `sample_classes` it keeps the shares of the classes.
    Which images are taken is decided as in `split_stratified`.
    """
    if len(images) <= count:
        return images
    chosen: list[int] = []
    for members in _shuffle_classes(images, seed):
        chosen += members[: max(2, round(len(members) * count / len(images)))]
    return images.subset(sorted(chosen))


def sample_classes(images: LabelledImages, most: int, *, seed: int = 0) -> LabelledImages:
    """At most so many of the images, of each class as equally many as there are, in their order.

    A hash of the seed and the path below the root decides, as in `split_stratified`.
    """
    if len(images) <= most:
        return images
    # The first of every class, then the second of every class, and so on.
    rounds = zip_longest(*_shuffle_classes(images, seed))
    drawn = (index for each in rounds for index in each if index is not None)
    return images.subset(sorted(islice(drawn, most)))


def _shuffle_classes(images: LabelledImages, seed: int) -> Iterator[list[int]]:
    """Positions of the images of each class that has any, in the order of hashes.

    Each is one of the seed and the image's place below the root.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels):
        by_class.setdefault(label, []).append(index)
    ranks = bytearray()  # 16 bytes for each image, one behind the other
    key = f"{seed}/".encode()
    for place in images.paths.encoded_names():
        # The same on every system: between folders there is always a slash.
        portable = place if os.sep == "/" else place.replace(os.fsencode(os.sep), b"/")
        ranks += hashlib.blake2b(key + portable, digest_size=16).digest()
    for _, members in sorted(by_class.items()):
        yield sorted(members, key=lambda i: ranks[16 * i : 16 * i + 16])
