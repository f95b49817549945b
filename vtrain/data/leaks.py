"""Equal files in several splits, or of several classes: what makes a result too good, or wrong."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vtrain.data.image_checks import Digests
from vtrain.data.image_sets import LabelledImages
from vtrain.system.text import one_line

_LEAVE_OUT = "`vtrain check CONFIG --write-list FILE` lists what to leave out with data.exclude"
_ACROSS = (("val", "train"), ("test", "train"), ("test", "val"))


@dataclass(frozen=True, slots=True)
class Leak:
    """Equal files where none should be; `paths` are the first two. `kind` is that of `check`."""

    kind: str
    count: int
    paths: tuple[Path, Path]
    message: str


def find_leaks(
    splits: Mapping[str, LabelledImages],
    digests: Mapping[str, Digests],
    *,
    held_out: Collection[str],
) -> tuple[Leak, ...]:
    """Files of equal bytes in two splits, and under two classes; `digests` of each split's images.

    Images that were changed or compressed again are for `vtrain check`. `held_out` are the splits
    whose images come from one source.
    """
    _, ids = np.unique(np.concatenate([digests[name] for name in splits]), return_inverse=True)
    ends = np.cumsum([len(images) for images in splits.values()])
    found = dict(zip(splits, np.split(ids.reshape(-1), ends[:-1]), strict=True))
    return (*_find_shared(splits, found, held_out), *_find_conflicts(splits, found))


def _find_shared(
    splits: Mapping[str, LabelledImages],
    ids: Mapping[str, NDArray[np.intp]],
    held_out: Collection[str],
) -> Iterator[Leak]:
    for name, other in _ACROSS:
        if name not in splits:
            continue
        there = np.zeros(1 + max(int(each.max()) for each in ids.values()), np.bool_)
        there[ids[other]] = True
        shared = np.flatnonzero(there[ids[name]]).tolist()
        if shared:
            second = np.flatnonzero(ids[other] == ids[name][shared[0]])[0]
            paths = splits[name].paths[shared[0]], splits[other].paths[int(second)]
            text = f"of {name} {'is' if len(shared) == 1 else 'are'} also in {other}"
            one_source = name in held_out and other in held_out
            hint = "data.group=duplicates keeps them in one" if one_source else _LEAVE_OUT
            yield _build("leaked", len(shared), text, paths, hint)


def _find_conflicts(
    splits: Mapping[str, LabelledImages], ids: Mapping[str, NDArray[np.intp]]
) -> Iterator[Leak]:
    every = np.concatenate(list(ids.values()))
    labels = np.concatenate([np.array(images.labels) for images in splits.values()])
    _, first = np.unique(every, return_index=True)
    other = np.flatnonzero(labels != labels[first[every]])
    if not len(other):
        return
    count = int(np.isin(every, every[other]).sum())
    both = int(first[every[other[0]]]), int(other[0])
    paths = [path for each in both for path in _find_path(list(splits.values()), each)]
    classes = [splits["train"].classes[labels[each]] for each in both]
    text = f"are in two classes, {one_line(classes[0])} and {one_line(classes[1])} for one"
    yield _build("conflicting_labels", count, text, (paths[0], paths[1]), _LEAVE_OUT)


def _find_path(splits: Sequence[LabelledImages], position: int) -> Iterator[Path]:
    for images in splits:
        if 0 <= position < len(images):
            yield images.paths[position]
        position -= len(images)


def _build(kind: str, count: int, text: str, paths: tuple[Path, Path], hint: str) -> Leak:
    images, (first, second) = f"image{'' if count == 1 else 's'}", map(one_line, paths)
    message = f"{count:,} {images} {text} (equal files), such as {first} and {second}; {hint}"
    return Leak(kind, count, paths, message)
