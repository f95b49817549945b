"""Images that belong together, such as those of one animal or video, and who is held out then."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

from vtrain.config.keys import DataConfig
from vtrain.data.config_checks import find_group_column
from vtrain.data.duplicates import Group, group_images
from vtrain.data.image_checks import Inspection, hash_all_pixels, inspect_images
from vtrain.data.image_sets import LabelledImages
from vtrain.data.workers import resolve_workers
from vtrain.errors import DataError
from vtrain.system.reporter import Reporter
from vtrain.system.text import enumerate_names, one_line, quote_path

_SMALLER_FOLDERS = (
    "expected folders of a video, animal or day below the class folder, or a regular expression on "
    "file names, such as data.group='(clip[0-9]+)_'"
)
_ALONE = "\0"  # before the path of an image that belongs to no group but its own

# Frames of a video: at least so many files whose names differ in one number, mostly by one step.
_MIN_FRAMES = 10
_LOOKED_AT = 20_000  # images whose names are looked at, in blocks of neighbours
_BLOCK = 1_000
# What stands before the number, and the number.
_FRAME = re.compile(r"(.*?)(\d+)\D*", re.DOTALL)
# What must stand before it: cameras and collectors number all files of a class in one row.
_ONE_OF_MANY = re.compile(r"\d|frame|slice|clip|video|scene|shot", re.IGNORECASE)

Counts = list[list[tuple[int, int]]]  # of each group: its classes, with its images of them


@dataclass(frozen=True, slots=True)
class Groups:
    """What each image belongs to: `ids[i]` indexes `names`; `by` is the setting that says so."""

    by: str
    ids: list[int]
    names: list[str]


def find_groups(images: LabelledImages, config: DataConfig, reporter: Reporter) -> Groups | None:
    """The groups of training images that the config asks for, if it does.

    Raises:
        DataError: no image is in any.
    """
    by, places = config.group or config.columns.group, list(images.paths.names())
    if by is None:
        return None
    if by == "duplicates":
        found = _find_duplicates(images, config, reporter)
    else:
        found = list(name_groups(images, config))
        alone = found.count(None)
        told = f"data.group: {alone:,} of {len(found):,} images are in no group of {one_line(by)}"
        if alone == len(found):
            hint = f"expected one in paths such as {one_line(_portable(places[0]))}"
            raise DataError(told, hint)
        if alone:
            first = one_line(places[found.index(None)])
            reporter.warn(f"{told}, such as {first}; each of them is taken by itself")
    numbers: dict[str, int] = {}
    ids = [
        numbers.setdefault(_ALONE + _portable(place) if name is None else name, len(numbers))
        for name, place in zip(found, places, strict=True)
    ]
    return Groups(by, ids, list(numbers))


def name_groups(images: LabelledImages, config: DataConfig) -> Iterator[str | None]:
    """The group of each image by its name or its line in a list; None: it is in none."""
    if find_group_column(config) is not None:
        if images.groups is None:  # no list
            return iter([None] * len(images))
        return (name or None for name in images.groups)
    places = map(_portable, images.paths.names())
    if config.group == "folder":
        return (place.rpartition("/")[0] for place in places)
    search = re.compile(config.group or "").search
    return (match[1] if (match := search(place)) else None for place in places)


def _portable(place: str) -> str:
    return place if os.sep == "/" else place.replace(os.sep, "/")


def _find_duplicates(
    images: LabelledImages, config: DataConfig, reporter: Reporter
) -> list[str | None]:
    """Images that are the same, or nearly so, have one name; all are read for it, once."""
    choose_workers = partial(resolve_workers, config.workers)
    with reporter.progress(len(images), "looking for duplicates") as bar:
        inspection = inspect_images(
            images.paths,
            images.root,
            count=len(images),
            with_facts=True,
            choose_workers=choose_workers,
            bar=bar,
            reporter=reporter,
        )
    names: list[str | None] = [None] * len(images)
    for group in group_inspected(inspection, images.paths.__getitem__, choose_workers):
        for member in group.members:
            names[member] = _portable(images.paths.name(group.members[0]))
    return names


def group_inspected(
    inspection: Inspection, find_path: Callable[[int], Path], choose_workers: Callable[[int], int]
) -> list[Group]:
    """Groups of readable images that are the same, or nearly so, by their positions."""
    positions = np.flatnonzero(inspection.readable)
    facts, places = inspection.facts[positions], positions.tolist()

    def hash_some(asked: Sequence[int]) -> list[bytes | None]:
        paths = [find_path(places[each]) for each in asked]
        return hash_all_pixels(paths, choose_workers=choose_workers)

    sizes = np.stack([facts["width"], facts["height"]], axis=1)
    found = group_images(facts["digest"], facts["thumb"], sizes, hash_pixels=hash_some)
    return [replace(group, members=tuple(places[m] for m in group.members)) for group in found]


def require_groups_apart(splits: Mapping[str, LabelledImages], config: DataConfig) -> None:
    """Refuse splits that share groups, where names tell them.

    Raises:
        DataError: they do.
    """
    by = config.group or config.columns.group
    if by in (None, "folder", "duplicates"):  # other folders are other groups
        return
    groups = {name: {*name_groups(images, config)} - {None} for name, images in splits.items()}
    names = list(groups)
    for first, second in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        shared = sorted(filter(None, groups[first] & groups[second]))
        if shared:
            count = f"{len(shared):,} group{'s are' if len(shared) > 1 else ' is'}"
            raise DataError(
                f"data.group: {count} both in {first} and in {second}: {enumerate_names(shared)}",
                f"keep all images of a group in one of them, or hold out images of data.train: "
                f"data.{second}=null data.{second}_fraction=0.2",
            )


def choose_sides(
    images: LabelledImages,
    groups: Groups,
    fractions: Mapping[str, float],
    *,
    seed: int,
    reporter: Reporter,
) -> dict[str, list[int]]:
    """Numbers of the groups that go to each split of `fractions`.

    The shares of the classes come as near to the fractions as whole groups allow; some images of
    every class stay, and some go, where it has groups enough. A hash of the seed and the name
    decides which. The first split takes from one end of that order, the second from the other.

    Raises:
        DataError: nothing can be held out.
    """
    counts, totals = _count_images(images, groups), images.class_counts()
    left, free = list(totals), sorted(range(len(counts)), key=partial(_rank, groups.names, seed))
    chosen: dict[str, list[int]] = {}
    for split, fraction in fractions.items():
        chosen[split] = _take_groups(counts, free, [fraction * total for total in totals], left)
        taken = {*chosen[split]}
        free = [group for group in reversed(free) if group not in taken]
        if not taken:
            raise DataError(
                f"data.group: {one_line(groups.by)} makes {len(counts)} groups of {len(images):,} "
                f"images, and none can go to {split}: every class must keep some in train",
                _SMALLER_FOLDERS if groups.by == "folder" else "name smaller groups",
            )
    spread = Counter(label for group in counts for label, _ in group)
    whole = [images.classes[label] for label in sorted(spread) if spread[label] == 1]
    if whole:
        one = "one group, which stays" if len(whole) == 1 else "one group each, which stay"
        reporter.warn(f"data.group: the images of {enumerate_names(whole)} are {one} in train")
    return chosen


def _rank(names: Sequence[str], seed: int, group: int) -> bytes:
    name = names[group].encode("utf-8", "surrogateescape")
    return blake2b(b"%d/%b" % (seed, name), digest_size=16).digest()


def _count_images(images: LabelledImages, groups: Groups) -> Counts:
    classes = len(images.classes)
    codes = np.array(groups.ids, np.int64) * classes + np.array(images.labels, np.int64)
    found, numbers = np.unique(codes, return_counts=True)
    counts: Counts = [[] for _ in groups.names]
    for code, count in zip(found.tolist(), numbers.tolist(), strict=True):
        counts[code // classes].append((code % classes, count))
    return counts


def _take_groups(
    counts: Counts, free: Sequence[int], wanted: Sequence[float], left: list[int]
) -> list[int]:
    """Groups whose images together are about `wanted` of each class; takes them from `left`."""
    have, taken = [0] * len(wanted), bytearray(len(counts))

    def fits(group: int) -> bool:
        """Whether no class gets more than it should."""
        return all(have[label] + count <= wanted[label] + 0.5 for label, count in counts[group])

    def cost(group: int) -> float:
        """How much further from `wanted` it leads, each class in its own measure."""
        return sum(
            count * (count + 2 * (have[label] - wanted[label])) / wanted[label]
            for label, count in counts[group]
        )

    def take(group: int) -> bool:
        if taken[group] or any(count >= left[label] for label, count in counts[group]):
            return False  # a class loses not all of its images
        taken[group] = 1
        for label, count in counts[group]:
            have[label] += count
            left[label] -= count
        return True

    # Whole groups that fit, then those that lead nearer though beyond, and at last, for a class
    # that got nothing so far, the one that leads the least away.
    for group in free:
        if fits(group):
            take(group)
    if any(number + 0.5 < share for number, share in zip(have, wanted, strict=True)):
        for group in free:
            if not taken[group] and cost(group) < 0:
                take(group)
    of_class: dict[int, list[int]] = {}
    for group in free if 0 in have else ():
        for label, _ in counts[group]:
            if not have[label]:
                of_class.setdefault(label, []).append(group)
    for label, able in of_class.items():
        if not have[label]:
            any(map(take, sorted(able, key=cost)))
    return [group for group in free if taken[group]]


def describe_frames(images: LabelledImages) -> tuple[str, ...]:
    """What is said of file names that look like frames of a few videos, if they do.

    Frames differ in the last number of their names, by even steps; a class has two or more rows of
    them, which something else numbers or names. Cameras and collectors make one row, or uneven
    ones.
    """
    numbers: dict[tuple[int, str], set[int]] = {}
    looked_at = 0
    for start in range(0, len(images), max(_BLOCK, len(images) * _BLOCK // _LOOKED_AT)):
        for index in range(start, min(start + _BLOCK, len(images))):
            looked_at += 1
            match = _FRAME.fullmatch(_portable(images.paths.name(index)).rpartition(".")[0])
            if match is not None:
                key = images.labels[index], match[1]
                numbers.setdefault(key, set()).add(int(match[2]))
    rows = {key: len(each) for key, each in numbers.items() if _is_row(key[1], each)}
    of_class = Counter(label for label, _ in rows)
    rows = {key: count for key, count in rows.items() if of_class[key[0]] > 1}
    if 2 * sum(rows.values()) < max(looked_at, 1):
        return ()
    prefixes = sorted({prefix for _, prefix in rows})
    first = next(name for name in images.paths.names() if _portable(name).startswith(prefixes[0]))
    group = quote_path(f"data.group={_choose_group(prefixes)}")
    return (
        f"file names look like frames of a few videos, such as {one_line(first)}: frames of one "
        f"are nearly the same, and a result on some is too good where others were trained on; "
        f"{group} keeps those of a video on one side",
    )


def _is_row(prefix: str, numbers: set[int]) -> bool:
    """Whether files are frames of one video, by what stands before their numbers."""
    if len(numbers) < _MIN_FRAMES or not _ONE_OF_MANY.search(prefix.partition("/")[2] or prefix):
        return False
    steps = Counter(later - earlier for earlier, later in pairwise(sorted(numbers)))
    return 2 * max(steps.values()) >= len(numbers) - 1


def _choose_group(prefixes: Sequence[str]) -> str:
    """The `data.group` that tells prefixes apart."""
    folders = {prefix.rpartition("/")[0] for prefix in prefixes}
    if len(folders) == len(prefixes):
        return "folder"
    forms = {re.sub(r"[0-9]+", "[0-9]+", re.escape(each.rpartition("/")[2])) for each in prefixes}
    head, digits, tail = min(forms).rpartition("[0-9]+")
    pattern = f"({head}{digits}){tail}[0-9]"
    # Names after a folder that holds the same digits, or of several forms: all before the number.
    told = {match[1] for each in prefixes if (match := re.search(pattern, f"{each}0"))}
    if len(forms) > 1 or len(told) < len({each.rpartition("/")[2] for each in prefixes}):
        return r"([^/]*[^/0-9])[0-9]+[^/0-9]*\.[^.]*$"
    return pattern
