"""What the folders of a data set are: splits, classes, or no more than a way to these.

Folders are told by their names and by what they hold. Where two readings are likely none is taken.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias

from vtrain.data.formats import is_picture
from vtrain.data.image_names import compose, is_hidden
from vtrain.system.text import enumerate_names, one_line, quote_path

TRAIN, VAL, TEST = "train", "val", "test"
_KINDS = {
    TRAIN: ("train", "training", "trn", "trainval"),
    VAL: ("val", "valid", "validation", "dev", "eval", "evaluation", "holdout"),
    TEST: ("test", "testing", "tst"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
# What may stand beside the name of a split, or hold one, and says nothing of what is inside.
_FILLERS = (
    "archive|cropped|data|dataset|datasets|dir|folder|folders|full|image|images|img|imgs|jpeg|"
    "jpegimages|jpg|labeled|labelled|my|new|original|photo|photos|pic|pics|picture|pictures|png|"
    "raw|resized|set|sets|small|split|splits|sub|the"
)
_FILLER = re.compile(rf"\d+|{_FILLERS}")
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|[\W_]+")
_GLUED = re.compile(rf"({'|'.join(_KIND_OF)})({_FILLERS})?")
# Folders over which the images of every class may be spread.
_SERIES = re.compile(r"(?i)(fold|batch|part|session|split|cam|camera|chunk)[\W_]*\d+|(19|20)\d\d")
_DEPTH = 8  # folders in folders that are looked through
_LIVE_DEPTH = 3  # folders in folders in which an image is sought to tell whether there is one


class Peek(NamedTuple):
    """Whether a folder holds an image itself, and its subfolders, all of them if it holds none."""

    image: bool
    folders: tuple[str, ...]


Look: TypeAlias = Callable[[str], Peek]  # at a folder below the root, "" for the root itself


@dataclass(frozen=True, slots=True)
class Layout:
    """How the folders below a root are read; places are below it, with slashes.

    `base` is where class folders or splits lie. `splits` are the places of splits by kind, those
    with a name of the kind; the splits of `flat` hold images without class folders. `remarks` are
    guesses that the user should know of, `doubt` says why there is no reading, and what to do.
    """

    base: str = ""
    splits: tuple[tuple[str, str], ...] = ()
    flat: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    doubt: tuple[str, str] | None = None


def split_kind(name: str) -> str | None:
    """`train`, `val` or `test` for a name that says so and nothing else: `seg_train` does not."""
    found = _read_name(name)
    return found[0] if found and _says_nothing(found[1]) else None


def _read_name(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a name speaks of, and its other words; None where it speaks of none."""
    words = [word.lower() for word in _WORDS.split(name) if word]
    hits = [match and match[1] for match in map(_GLUED.fullmatch, words)]
    kinds = {_KIND_OF[hit] for hit in hits if hit}
    if len(kinds) > 1 and kinds != {TRAIN, VAL}:  # train_val is the part that is not the test
        return None
    rest = tuple(word for word, hit in zip(words, hits, strict=True) if not hit)
    return (TRAIN if TRAIN in kinds else kinds.pop(), rest) if kinds else None


def _says_nothing(words: Iterable[str]) -> bool:
    return all(map(_FILLER.fullmatch, words))


def find_kinds(names: Iterable[str]) -> dict[str, str]:
    """Those of some sibling names that are named like splits, with their kinds.

    Other words in a name are no hindrance if a sibling of another kind has them as well:
    `seg_train` beside `seg_test`, but not `training_shoes` beside `boots`.
    """
    read = {name: found for name in names if (found := _read_name(name))}
    kinds_with: dict[tuple[str, ...], set[str]] = {}
    for kind, rest in read.values():
        kinds_with.setdefault(rest, set()).add(kind)
    return {
        name: kind
        for name, (kind, rest) in read.items()
        if _says_nothing(rest) or len(kinds_with[rest]) > 1
    }


def look_at_folders(root: Path) -> Look:
    """Looks below a folder on disk, into each folder once and no further than its first image."""

    @cache
    def look(place: str) -> Peek:
        folders = []
        try:
            with os.scandir(root / place) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file() and is_picture(entry.path):
                        return Peek(True, tuple(sorted(folders)))
        except OSError:  # whoever reads it says so
            return Peek(False, ())
        return Peek(False, tuple(sorted(folders)))

    return look


def look_at_members(folders: Iterable[str]) -> Look:
    """Looks into archives with images in these folders."""
    inside: dict[str, set[str]] = {"": set()}
    holding = set(folders)
    for folder in holding:
        while folder:
            above, _, name = folder.rpartition("/")
            inside.setdefault(folder, set())
            inside.setdefault(above, set()).add(name)
            folder = above
    return lambda place: Peek(place in holding, tuple(sorted(inside.get(place, ()))))


def join(place: str, name: str) -> str:
    """A name in a place."""
    return f"{place}/{name}" if place else name


def read_layout(root: Path, look: Look, known: Collection[str] | None = None) -> Layout:
    """What the folders below a root are.

    Args:
        root: what messages name.
        look: what tells what a folder holds.
        known: names of classes, where they are known: a folder of such a name is one.
    """
    base, remarks = _look_through(root, look, known or ())
    names = look(base).folders
    if known is not None and {compose(name) for name in names} <= set(known):
        return Layout(base, remarks=remarks)
    found = _find_splits(root, look, base, names)
    if not (found.splits or found.doubt or known is not None):
        found = _find_classes(root, look, base, names, found.remarks)
    return Layout(
        base,
        found.splits,
        tuple(kind for kind, place in found.splits if _is_flat(look, place, found.splits)),
        remarks + found.remarks,
        found.doubt,
    )


def _look_through(root: Path, look: Look, known: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """The folder behind all that hold one folder and no image, and a remark if there are any."""
    base, beside = "", []
    for _ in range(_DEPTH):
        here = look(base)
        places = [join(base, name) for name in here.folders]
        if here.image or any(look(place).image for place in places):
            break
        live = places
        if len(places) > 1:
            live = [place for place in places if _holds_images(look, place)]
        if len(live) != 1 or not look(live[0]).folders:
            break
        name = live[0].rpartition("/")[2]
        # Beside folders without images it may be the one class that is not empty.
        if compose(name) in known or (len(places) > 1 and not _is_container(name)):
            break
        beside += [each for each in places if each != live[0]]
        base = live[0]
    if not base:
        return "", ()
    remark = f"{one_line(root)} holds one folder with images: looking into {one_line(root / base)}"
    if beside:
        remark += f"; {enumerate_names(beside)} without images"
    return base, (remark,)


def _is_container(name: str) -> bool:
    found = _read_name(name)
    return found is not None or _says_nothing(w.lower() for w in _WORDS.split(name) if w)


def _holds_images(look: Look, place: str, depth: int = _LIVE_DEPTH) -> bool:
    """Whether there is an image in a folder or not far below it."""
    here = look(place)
    below = (join(place, name) for name in here.folders)
    return here.image or (depth > 0 and any(_holds_images(look, each, depth - 1) for each in below))


def _is_flat(look: Look, place: str, splits: Sequence[tuple[str, str]]) -> bool:
    """Whether a split holds images without class folders, perhaps in a folder of its own."""
    names = {name for _, split in splits for name in split.split("/")}
    for _ in range(_DEPTH):
        here = look(place)
        if here.image:
            return True
        if len(here.folders) != 1:
            return False
        only = here.folders[0]
        if look(join(place, only)).image:  # test/test/1.jpg, but val/cat/1.jpg
            return only in names or _is_container(only)
        place = join(place, only)
    return False


def _find_splits(root: Path, look: Look, base: str, names: Sequence[str]) -> Layout:
    """Splits among sibling folders, or why there is doubt whether there are any."""
    kinds = find_kinds(names)
    if not kinds:
        return Layout()
    kinds = {name: kind for name, kind in kinds.items() if _holds_images(look, join(base, name))}
    others = [name for name in names if name not in kinds]
    live = [name for name in others if _holds_images(look, join(base, name))]
    branches = [name for name in kinds if not look(join(base, name)).image]
    by_kind: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        by_kind.setdefault(kind, []).append(name)
    doubt = _doubt_splits(root / base, by_kind, branches, live)
    if doubt is not None:
        return Layout(doubt=doubt)
    if TRAIN in by_kind and len(by_kind) > 1:
        splits = tuple((kind, join(base, by_kind[kind][0])) for kind in _KINDS if kind in by_kind)
        left = f"{one_line(root / base)}: {enumerate_names(others)} beside the splits: not used"
        return Layout(splits=splits, remarks=(left,) if others else ())
    if not kinds:
        return Layout()
    taken = f"{one_line(root / base)}: {enumerate_names(list(kinds))}, named like a split, is taken"
    return Layout(remarks=(f"{taken} for a class, as it lies among {enumerate_names(live)}",))


def _doubt_splits(
    root: Path,
    by_kind: dict[str, list[str]],
    branches: Sequence[str],
    live: Sequence[str],
) -> tuple[str, str] | None:
    """Why folders named like splits may be none, and what to write; None if all is clear."""
    names = list(chain(*by_kind.values()))
    if not names:
        return None
    named, here = enumerate_names(names), one_line(root)
    by_list = "write a list of paths and classes, and name it as data.train: list.csv"
    if TRAIN in by_kind and len(by_kind) > 1:
        double = [found for found in by_kind.values() if len(found) > 1]
        if not any(name in branches for name in by_kind[TRAIN]):
            among = f", among others with images, {enumerate_names(live)}" if live else ""
            return (
                f"has folders named like splits, {named}, whose images lie in no class folders"
                + among,
                f"if these are classes, or a list says the classes of images, {by_list}; "
                f"splits are {here}/{by_kind[TRAIN][0]}/<class>/<image>",
            )
        if double:
            return (
                f"has several folders for one split, {enumerate_names(double[0])}",
                f"name one of each: data.train={quote_path(root / by_kind[TRAIN][0])}",
            )
        return None  # whatever lies beside them
    first = (branches or names)[0]
    is_train = first in by_kind.get(TRAIN, ())
    if live and names == [first] and not branches and (is_train or first.lower() == "valid"):
        return None  # car/ bus/ train/, or valid/ invalid/: a class among others
    use = f"name the split to train on: data.train={quote_path(root / first)}"
    if not branches:
        use = f"expected {here}/<class>/<image>"
    if live and not is_train:
        use = f"move {quote_path(root / first)} away, and name it as data.val or data.test"
    return (
        f"has folders named like splits, {named}, with "
        + ("folders in them, " if branches else "images, ")
        + (f"beside others, {enumerate_names(live)}" if live else "and none of classes"),
        f"{use}; if it is a class, {by_list}",
    )


def _find_classes(
    root: Path, look: Look, base: str, names: Sequence[str], remarks: tuple[str, ...]
) -> Layout:
    """Doubt where no class folder holds an image and the folders in them may be the classes."""
    if look(base).image or any(look(join(base, name)).image for name in names):
        return Layout(remarks=remarks)
    inside = {name: found for name in names if (found := look(join(base, name)).folders)}
    inside = {name: inside[name] for name in inside if _holds_images(look, join(base, name))}
    below = sorted(set(chain(*inside.values())))
    here = root / base
    if len(set(find_kinds(below).values())) > 1:
        return Layout(
            doubt=(
                f"holds class folders that hold splits, {enumerate_names(below)}",
                f"expected the splits on top: {one_line(here)}/<split>/<class>/<image>",
            )
        )
    parts = [name for name in below if _is_part(name) or name in inside]
    series = len(below) > 1 and all(map(_SERIES.fullmatch, inside))
    if len(inside) < 2 or (2 * len(parts) > len(below) and not series):
        if len(below) > 1:
            said = f"{one_line(here)}: {enumerate_names(below)} are taken for parts of classes"
            remarks = (*remarks, said)
        return Layout(remarks=remarks)
    several = [name for name in inside if len(inside[name]) > 1]
    hint = f"one of them alone: data.train={quote_path(here / several[0])}; or " if several else ""
    if here.is_dir():
        first = str(here).count("/") + 2  # of the parts of a path that awk sees
        hint += (
            f"a list: find {quote_path(here)} -type f ! -name '.*' | awk -F/ "
            f"'{{print $0 \"\\t\" ${first + 1}}}' > list.txt and data.train=list.txt; ${first} "
            f"for {enumerate_names(list(inside)[:2])} as the classes"
        )
    else:
        hint += "unpack it, and write a list of paths and classes"
    return Layout(
        doubt=(
            f"holds folders, {enumerate_names(list(inside))}, without images of their own, and "
            f"the folders in these, {enumerate_names(below)}, may be the classes as well",
            hint,
        ),
        remarks=remarks,
    )


def _is_part(name: str) -> bool:
    """Whether a folder in a class folder looks like a part of the class: a number, date or id."""
    return any(char.isdigit() for char in name) or _is_container(name)


def describe_class_names(classes: Sequence[str]) -> Iterator[str]:
    """What is odd about the names of classes, for people."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            yield (
                f"classes {enumerate_names(names)} differ in upper and lower case or spaces only; "
                "if they are one class, merge them"
            )
    if "unknown" in classes:
        yield (
            "a class is called 'unknown', as is the answer of predict --min-confidence and "
            "--max-distance: JSON and CSV tell them apart by `rejected`"
        )
