"""What `explain` writes: a picture and a map for each image, and an index of them all."""

import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtrain.errors import UsageError, VtrainError
from vtrain.results.explain import Explanation, overlay
from vtrain.system.files import atomic_write, write_error
from vtrain.system.json_csv import SCHEMA, to_plain, write_json
from vtrain.system.signals import build_stop_error

INDEX_NAME = "explanations.json"
LONGEST_STEM = 100  # bytes


@dataclass(frozen=True, slots=True)
class WrittenExplanation:
    """An explanation without its pixels, and the files that these went to, if there are any."""

    explanation: Explanation
    overlay: Path | None = None
    map: Path | None = None


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """How many inputs there were, and of how many there is no explanation."""

    index: Path
    count: int
    failed: int


def require_empty_folder(folder: Path) -> None:
    """Refuse to write among other files; makes nothing.

    Raises:
        UsageError: `folder` is no folder, has something in it, or cannot be looked into.
    """
    try:
        first = next(iter(sorted(folder.iterdir())), None)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(f"cannot write into {folder}: it is not a folder") from error
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from error
    if first is not None:
        raise UsageError(
            f"the folder {folder} is not empty: it has {first.name}",
            "nothing is overwritten: give a new folder, or empty this one",
        )


def write_explanations(
    folder: Path,
    explanations: Iterable[Explanation],
    *,
    about: dict[str, Any],
    show: Callable[[WrittenExplanation], object],
) -> WrittenFolder:
    """Write each explanation as it comes: `NAME.overlay.png` and `NAME.map.npy` ([H, W] float32).

    NAME is that of the image, without what file systems and shells take badly; images of one name
    get numbers: `1`, `1-2`. `explanations.json` says which is which: it has what is `about` all of
    them, and `images`, one object each as of `explanation_json`. It is written at the end, also
    where the work is interrupted; `complete` is then false. `show` gets each when it is written.

    Raises:
        UsageError: see `require_empty_folder`; or the folder cannot be made.
        ResourceError: no space left.
        StoppedError, InterruptedRunError: after a signal.
    """
    require_empty_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    index = folder / INDEX_NAME
    rows: list[dict[str, Any]] = []
    failed = 0
    head = {"schema": SCHEMA, **about}
    names = _Names()
    try:
        for each in explanations:
            written = _write_one(folder, each, names)
            rows.append(explanation_json(written, below=folder))
            failed += each.error is not None
            show(written)
    except BaseException as error:
        with suppress(VtrainError):  # the disk may be full: what ended the work says more
            write_json(index, {**head, "complete": False, "images": rows})
        if isinstance(error, KeyboardInterrupt):
            message = f"interrupted: {len(rows):,} done, listed in {index}"
            hint = "give a new folder for all of them, or only the images that are left"
            raise build_stop_error(error, message, hint) from error
        raise
    write_json(index, {**head, "complete": True, "images": rows})
    return WrittenFolder(index, len(rows), failed)


def _write_one(folder: Path, each: Explanation, names: "_Names") -> WrittenExplanation:
    if each.image is None or each.map is None:
        return WrittenExplanation(each)
    name = names.take(each.path)
    picture, values = folder / f"{name}.overlay.png", folder / f"{name}.map.npy"
    with atomic_write(picture) as stream:
        overlay(each.image, each.map).save(stream, "PNG")
    with atomic_write(values) as stream:
        np.save(stream, each.map)
    return WrittenExplanation(each, picture, values)


class _Names:
    """File names for images, each given once, whatever the case of letters."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._next: dict[str, int] = {}

    def take(self, path: str) -> str:
        """A name for the files of this image."""
        # Letters of any script, digits and `-_. +()`; nothing hidden, no option, not too long.
        kept = "".join(
            char if unicodedata.category(char)[0] in "LMN" or char in "-_. +()" else "_"
            for char in unicodedata.normalize("NFC", Path(path).stem)
        )
        stem = kept.lstrip(" .-").encode()[:LONGEST_STEM].decode("utf-8", "ignore").rstrip(" .")
        stem = stem or "image"
        key = stem.casefold()
        number = self._next.get(key, 1)
        while True:
            name = stem if number == 1 else f"{stem}-{number}"
            if name.casefold() not in self._given:
                break
            number += 1
        self._next[key] = number + 1
        self._given.add(name.casefold())
        return name


def explanation_json(written: WrittenExplanation, *, below: Path | None = None) -> dict[str, Any]:
    """The object that one line of `vtrain explain --json` holds, and one of the index.

    Files are named as they open, or by their names `below` the folder they are in. `box` has the
    edges left, top, right and bottom of the map in pixels of the upright original, whose width and
    height are `image_size`.
    """
    each = written.explanation
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "path": each.path,
        "status": "ok" if each.error is None else "error",
    }
    if each.placement is not None:
        place = each.placement
        files = [
            path.relative_to(below) if path and below else path
            for path in (written.overlay, written.map)
        ]
        row |= {
            "prediction": each.prediction,
            "probability": each.probability,
            "class": each.explained,
            "class_probability": each.explained_probability,
            "found": each.found,
            "overlay": to_plain(files[0]),
            "map": to_plain(files[1]),
            "cells": list(each.cells),
            "image_size": [place.width, place.height],
            "box": [place.left, place.top, place.right, place.bottom],
        }
    return {**row, "error": each.error}
