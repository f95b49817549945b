"""What can be wrong with a data set: each kind of finding, how bad it is, and what to do then."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vtrain.data.exclusion import Exclusion
from vtrain.data.folders import EMPTY_CLASS
from vtrain.data.formats import (
    BY_REASON,
    count_files,
    describe_group,
    find_classes,
    group_foreign,
    split_foreign,
)
from vtrain.data.image_checks import Inspection, Trait, find_wrong_suffixes, format_name
from vtrain.data.image_sets import LabelledImages, SkippedFile
from vtrain.data.splits import describe_unmatched
from vtrain.runs.starter_config import IMBALANCE, LARGE_EDGE, LONG_SIDE
from vtrain.system.text import enumerate_names, one_line

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
FEW_TRAINING_IMAGES = (
    10  # training images of a class; with fewer, what is learnt of it is mostly chance
)

# Kind → how bad it is, and what to do. In the order in which findings are shown.
KINDS: dict[str, tuple[Severity, str]] = {
    "unreadable": ("error", "repair or remove them, or leave them out with data.exclude"),
    "empty_class": ("error", "add images of it, or remove the class"),
    "conflicting_labels": (
        "error",
        "find out which class is right; until then leave all of them out with data.exclude",
    ),
    "leaked": (
        "error",
        "leave the training copies out with data.exclude: a result on images that were trained on "
        "is too good",
    ),
    "duplicates": ("warning", "keep one of each: the others only count it more than once"),
    "similar": ("warning", "look at them: the model sees hardly any difference"),
    "few_images": ("warning", "add images of them: what is learnt of so few is mostly chance"),
    "missing_class": ("warning", "add some: without them nothing is measured of these classes"),
    "unsupported": ("warning", ""),  # each format has advice of its own
    "imbalance": (
        "warning",
        "set data.balance to sampler or loss, and look at the macro F1 rather than at the top-1",
    ),
    "tiny": (
        "warning",
        "use larger images, or a smaller data.image_size: these are enlarged more than twice, and "
        "blurred",
    ),
    "elongated": ("warning", "cut them to what matters: the model sees their centre square only"),
    "unmatched_exclusion": ("warning", "correct or remove the entries of the list"),
    "near_duplicates": ("note", "nothing has to be done; few different images teach little"),
    "unused_files": ("note", "nothing has to be done, if they are not meant to be trained on"),
    "wrong_suffix": ("note", "rename them: vtrain looks inside, other programs may not"),
    "large": ("note", "shrink the files once: reading them takes longer than training on them"),
    "deep": ("note", "nothing has to be done: their values are scaled to 8 bits"),
    "transparent": ("note", "nothing has to be done: white is put behind them"),
    "cmyk": ("note", "nothing has to be done: they are converted to RGB, if not colour-exactly"),
    "palette": ("note", "nothing has to be done: they are converted to RGB"),
    "turned": ("note", "nothing has to be done: vtrain turns them, other programs may not"),
    "animated": ("note", "nothing has to be done: the first frame alone counts"),
    "excluded": ("note", "nothing has to be done"),
}
_TRAITS = (
    ("deep", Trait.DEEP, "have more than 8 bits a channel"),
    ("transparent", Trait.TRANSPARENT, "have transparency or an alpha channel"),
    ("cmyk", Trait.CMYK, "have CMYK colours"),
    ("palette", Trait.PALETTE, "have a palette"),
    ("turned", Trait.TURNED, "are turned upright by EXIF"),
    ("animated", Trait.ANIMATED, "have several frames or pages"),
)


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image of a group: its split, and its class where there are classes."""

    path: Path
    split: str
    class_: str | None

    @property
    def place(self) -> tuple[str, str | None]:
        """Its split and class."""
        return self.split, self.class_


@dataclass(frozen=True, slots=True)
class FoundGroup:
    """Images that are the same; `same` says how: bytes, pixels, near, or features."""

    same: str
    images: tuple[FoundImage, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that was found, what it concerns, and what to do about it.

    `paths` are the images, `reasons` belong to them where there are any; `classes` are named by
    findings about classes. `count` is the number of whatever `message` speaks of.
    """

    kind: str
    severity: Severity
    count: int
    message: str
    advice: str
    paths: tuple[Path, ...] = ()
    reasons: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    groups: tuple[FoundGroup, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """The images of all splits one behind the other, and what is known of them.

    Without classes (`labelled` is false) there is one split, and every label is 0.
    """

    splits: dict[str, LabelledImages]
    labelled: bool
    inspection: Inspection
    image_size: int

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @cached_property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits, in order."""
        return tuple(self.splits)

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        return np.cumsum([0, *map(len, self.splits.values())])

    def locate(self, position: int) -> tuple[str, LabelledImages, int]:
        """The split of an image, and its index there."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        name = self.split_names[number]
        return name, self.splits[name], position - int(self._starts[number])

    def path(self, position: int) -> Path:
        """The path of an image."""
        _, images, index = self.locate(position)
        return images.paths[index]

    def describe_image(self, position: int) -> FoundImage:
        """An image as one of a group."""
        name, images, index = self.locate(position)
        label = images.classes[images.labels[index]] if self.labelled else None
        return FoundImage(images.paths[index], name, label)

    def class_counts(self, split: str) -> list[int]:
        """Readable images of each class of a split."""
        number = self.split_names.index(split)
        readable = self.inspection.readable[self._starts[number] : self._starts[number + 1]]
        images = self.splits[split]
        labels = np.array(images.labels, np.intp)[readable]
        counts: list[int] = np.bincount(labels, minlength=len(images.classes)).tolist()
        return counts

    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shorter and longer edge of each readable image, in pixels."""
        facts = self.inspection.facts[self.inspection.readable]
        edges = np.stack([facts["width"], facts["height"]]).astype(np.int64)
        return edges.min(axis=0), edges.max(axis=0)


def build(kind: str, count: int, message: str, **more: object) -> Finding:
    """A finding of a kind, with what the table says of it."""
    severity, advice = KINDS[kind]
    return Finding(kind, severity, count, message, advice, **more)  # type: ignore[arg-type]


def plural(count: int, noun: str, verb: str = "", verbs: str = "") -> str:
    """`1 image is`, `3 images are`: a number with its noun and verb."""
    suffix = "es" if noun.endswith("s") else "s"
    words = [f"{count:,}", noun if count == 1 else noun + suffix, verb if count == 1 else verbs]
    return " ".join(filter(None, words))


def find_unreadable(bad: Sequence[SkippedFile], total: int, *, skipped: bool) -> Iterator[Finding]:
    """Damaged files; `skipped` if training leaves them out by itself."""
    if not bad:
        return
    of = f"of {total:,} {'image' if total == 1 else 'images'}"
    message = f"{len(bad):,} {of} cannot be read, such as {one_line(bad[0].path)} {bad[0].reason}"
    found = _build_listed("unreadable", bad, message)
    if skipped:
        advice = "repair them: training leaves them out (data.on_bad_image: skip)"
        found = replace(found, severity="warning", advice=advice)
    yield found


def find_unused(data: DataSet, skipped: Sequence[SkippedFile]) -> Iterator[Finding]:
    """Files of formats that are not read, each format by itself, and others that are no images.

    Empty class folders are a finding of their own.
    """
    foreign, others = split_foreign(each for each in skipped if each.reason != EMPTY_CLASS)
    counts: Counter[str] = Counter()
    for name, images in data.splits.items() if data.labelled else ():
        counts.update(dict(zip(images.classes, data.class_counts(name), strict=True)))
    root = next(iter(data.splits.values())).root
    totals = count_files(foreign, root, counts)
    for reason, files in group_foreign(foreign).items():
        found = _build_listed("unsupported", files, describe_group(reason, files, root, totals))
        classes, advice = tuple(find_classes(files, root, counts)), BY_REASON[reason].advice
        yield replace(found, advice=advice, classes=classes)
    if others:
        example = f"{one_line(others[0].path)} {others[0].reason}"
        files_are = plural(len(others), "file", "is", "are")
        yield _build_listed("unused_files", others, f"{files_are} not used, such as {example}")


def _build_listed(kind: str, files: Sequence[SkippedFile], message: str) -> Finding:
    paths, reasons = tuple(each.path for each in files), tuple(each.reason for each in files)
    return build(kind, len(files), message, paths=paths, reasons=reasons)


def find_odd_files(data: DataSet, paths: Sequence[Path]) -> Iterator[Finding]:
    """Files that are unlike most: formats, colours, suffixes."""
    traits = data.inspection.facts["traits"]
    for kind, trait, text in _TRAITS:
        yield from _found(data, kind, (traits & int(trait)) != 0, text)
    wrong = find_wrong_suffixes(paths, data.inspection)
    if wrong:
        first = wrong[0]
        inside = format_name(int(data.inspection.facts["format"][first]))
        message = (
            f"{plural(len(wrong), 'file', 'has', 'have')} the suffix of another format, such as "
            f"{one_line(paths[first])}, which is {inside}"
        )
        found = tuple(paths[each] for each in wrong)
        yield build("wrong_suffix", len(wrong), message, paths=found)


def find_odd_sizes(data: DataSet) -> Iterator[Finding]:
    """Images that are too small, too long or too large for the model's input."""
    facts = data.inspection.facts
    edges = np.stack([facts["width"], facts["height"]]).astype(np.int64)
    short, long = edges.min(axis=0), edges.max(axis=0)
    half = data.image_size / 2
    text = f"have an edge under {half:g} px, half of the model's input of {data.image_size} px"
    yield from _found(data, "tiny", short < half, text)
    yield from _found(
        data,
        "elongated",
        long >= LONG_SIDE * short,
        f"are {LONG_SIDE} or more times as long as wide",
    )
    text = f"have edges of more than {LARGE_EDGE:,} px"
    yield from _found(data, "large", short > LARGE_EDGE, text)


def _found(data: DataSet, kind: str, mask: NDArray[np.bool_], text: str) -> Iterator[Finding]:
    """A finding about the readable images for which a mask holds."""
    found = np.flatnonzero(mask & data.inspection.readable).tolist()
    if not found:
        return
    paths = tuple(map(data.path, found))
    if len(found) == 1:
        text = text.replace("have ", "has ", 1).replace("are ", "is ", 1)
    example = f", such as {one_line(paths[0])}" if len(found) > 1 else f": {one_line(paths[0])}"
    yield build(kind, len(found), f"{plural(len(found), 'image')} {text}{example}", paths=paths)


def find_class_troubles(data: DataSet) -> Iterator[Finding]:
    """Classes with few images or none, and splits that lack some."""
    if not data.labelled:
        return
    names = next(iter(data.splits.values())).classes
    first, *others = data.split_names
    counts = dict(zip(names, data.class_counts(first), strict=True))
    filled = {name: count for name, count in counts.items() if count}
    left_out = next(iter(data.splits.values())).skipped
    empty = [each.path.name for each in left_out if each.reason == EMPTY_CLASS]
    few = [name for name, count in filled.items() if count < FEW_TRAINING_IMAGES]
    troubles = [
        (
            "empty_class",
            [*(name for name in names if name not in filled), *empty],
            f"no readable image in {first}",
        ),
        ("few_images", few, f"fewer than {FEW_TRAINING_IMAGES} images in {first}"),
    ]
    for split in others:
        there = zip(names, data.class_counts(split), strict=True)
        missing = [name for name, count in there if not count]
        troubles.append(("missing_class", missing, f"no image in {split}"))
    for kind, found, text in troubles:
        if found:
            classes = plural(len(found), "class", "has", "have")
            message = f"{classes} {text}: {enumerate_names(found)}"
            yield build(kind, len(found), message, classes=tuple(found))
    if filled and max(filled.values()) >= IMBALANCE * min(filled.values()):
        low, high = min(filled, key=filled.__getitem__), max(filled, key=filled.__getitem__)
        message = (
            f"class {enumerate_names([high])} has {filled[high]:,} images in {first}, "
            f"class {enumerate_names([low])} {filled[low]:,}"
        )
        yield build("imbalance", 1, message, classes=(high, low))


def find_exclusion_remarks(exclusion: Exclusion | None) -> Iterator[Finding]:
    """What `data.exclude` did."""
    if exclusion is None:
        return
    if exclusion.unmatched:
        paths = tuple(map(Path, exclusion.unmatched))
        message = describe_unmatched(exclusion)
        yield build("unmatched_exclusion", len(paths), message, paths=paths)
    counts = ", ".join(f"{count:,} {name}" for name, count in exclusion.counts.items())
    message = f"{one_line(exclusion.path)} leaves out {counts} images"
    yield build("excluded", sum(exclusion.counts.values()), message)
