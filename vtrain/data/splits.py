"""The images of a run: train, validation and test splits, scanned, matched by class and checked."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vtrain.config.keys import DataConfig
from vtrain.data.exclusion import Exclusion, exclude_images
from vtrain.data.folders import scan_labelled
from vtrain.data.formats import describe_unread, split_foreign
from vtrain.data.image_checks import Sizes, inspect_images
from vtrain.data.image_sets import LabelledImages, SkippedFile
from vtrain.data.tars import find_status
from vtrain.data.workers import resolve_workers
from vtrain.errors import DataError
from vtrain.system.json_csv import to_plain
from vtrain.system.reporter import Forwarding, Reporter
from vtrain.system.text import enumerate_names, one_line


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits of a run; all have the same classes in the same order.

    `bad_images` could not be read and are in no split. `checked` images were read to find them,
    `known` ones were found good before and are unchanged. `sizes` of the images in bytes, by split,
    are known once they were checked. `exclusion` tells what `data.exclude` left out.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    bad_images: tuple[SkippedFile, ...] = ()
    checked: int = field(default=0, compare=False)
    known: int = field(default=0, compare=False)
    sizes: dict[str, Sizes] = field(default_factory=dict, compare=False, repr=False)
    exclusion: Exclusion | None = None

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
    train = scan_labelled(Path(config.train), name="data.train", reporter=once)
    if config.val is not None:
        val = scan_labelled(Path(config.val), classes=train.classes, name="data.val", reporter=once)
    else:
        assert config.val_fraction is not None  # the config has exactly one of the two
        train, val = split_stratified(train, config.val_fraction, seed=seed)
        val = replace(val, skipped=())  # both have those of the folder: say them once
    test = None
    if config.test is not None:
        test = scan_labelled(
            Path(config.test), classes=train.classes, name="data.test", reporter=once
        )
    splits = Splits(train, val, test)
    if config.exclude is not None:
        # After the split: a held-out image stays held out, whatever else is left out.
        kept, exclusion = exclude_images(splits.named(), Path(config.exclude))
        splits = Splits(kept["train"], kept["val"], kept.get("test"), exclusion=exclusion)
        counts = ", ".join(f"{count} {name}" for name, count in exclusion.counts.items())
        reporter.say(f"data.exclude: {one_line(exclusion.path)} leaves out {counts} images")
        if exclusion.unmatched:
            reporter.warn(describe_unmatched(exclusion))
    _say_surprises(splits, reporter)
    return splits


class _OneWarning(Forwarding):
    """Warns once: the same may hold for every split."""

    warned = False

    def warn(self, message: str) -> None:
        """The first message alone."""
        if not self.warned:
            self.warned = True
            super().warn(message)


def describe_unmatched(exclusion: Exclusion) -> str:
    """How many entries of a list match no image, and the first of them (there is at least one)."""
    count = len(exclusion.unmatched)
    entries = "1 entry matches" if count == 1 else f"{count} entries match"
    first = one_line(exclusion.unmatched[0])
    return f"data.exclude: {entries} no image; the first is {first}"


def _say_surprises(splits: Splits, reporter: Reporter) -> None:
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
    if bad and config.on_bad_image == "error":
        lines = "".join(f"\n  {one_line(each.path)}: {each.reason}" for each in bad)
        raise DataError(
            f"{len(bad)} of {total} images cannot be read:{lines}",
            "repair or remove them, or set data.on_bad_image=skip to train without them",
        )
    for each in bad:
        reporter.warn(f"skipped {one_line(each.path)}: {each.reason}")
    _require_images(named)
    return replace(
        splits,
        train=named["train"],
        val=named["val"],
        test=named.get("test"),
        bad_images=tuple(bad),
        checked=sum(each.read for each in found.values()),
        known=sum(each.known for each in found.values()),
        sizes={name: each.sizes[each.readable] for name, each in found.items()},
    )


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


def split_stratified(
    images: LabelledImages, fraction: float, *, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Split off `fraction` of each class (0 to 1, rounded) for validation: (train, val).

    A class with at least two images gets at least one on each side; a single image stays in train.
    Which images go is decided by a hash of the seed and the path below the root, so neither the
    order of the file system nor other files matter.
    """
    held_out = bytearray(len(images))
    for members in _shuffle_classes(images, seed):
        wanted = round(len(members) * fraction)
        count = min(max(wanted, 1), len(members) - 1)
        for index in members[:count]:
            held_out[index] = 1
    train = array("Q", (index for index, held in enumerate(held_out) if not held))
    val = array("Q", (index for index, held in enumerate(held_out) if held))
    return images.subset(train), images.subset(val)


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
