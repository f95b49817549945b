"""Splits that are not apart: one that is another or lies within it, or has files of another."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from vtrain.data.image_sets import LabelledImages
from vtrain.data.tars import find_status
from vtrain.errors import DataError
from vtrain.system.files import path_exists, real_path
from vtrain.system.text import one_line


def describe_nesting(one: Path, other: Path) -> str | None:
    """How one source of images is the other or lies in it, links followed; None if it does not."""
    one, other = real_path(one), real_path(other)
    if one == other or (path_exists(one) and path_exists(other) and one.samefile(other)):
        return "is the same as"
    if other in one.parents and one.is_dir() | (not other.is_dir()):
        return "lies in"
    if one in other.parents and other.is_dir() | (not one.is_dir()):
        return "holds"
    return None


def require_apart(splits: Mapping[str, LabelledImages]) -> None:
    """Make sure that no image is in two splits, under whatever names.

    Folders without links to files are compared as folders, which costs nothing for their images.

    Raises:
        DataError: one is.
    """
    for (name, images), (later, others) in combinations(splits.items(), 2):
        if images.root == others.root:  # one was held out of the other
            continue
        places, other_places = images.places, others.places
        if places is not None and other_places is not None and places.isdisjoint(other_places):
            continue
        there = {identity for identity, _ in _identify(images)}
        shared = [path for identity, path in _identify(others) if identity in there]
        if shared:
            raise DataError(
                f"data.{later}: {len(shared)} of its {len(others)} images are in data.{name} as "
                f"well, such as {one_line(Path(shared[0]))}",
                "give each image to one split: results on images that a model was made with look "
                "better than they are",
            )


def _identify(images: LabelledImages) -> Iterator[tuple[tuple[int, int, int], str]]:
    """What tells one file or member of an archive from any other, and its path."""
    for path in images.paths.texts():
        try:
            status = find_status(path)
        except (OSError, ValueError):  # whoever reads it says so
            continue
        yield (status.st_dev, status.st_ino, status.offset), path
