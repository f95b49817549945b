"""Lists of images that a run leaves out: written by `vtrain check`, named by `data.exclude`.

One path on each line, absolute or relative to the folder of the list. Empty lines and lines that
start with `#` do not count. A line that starts with `"` is a JSON string: so are written the paths
that would not survive as they are (line ends, spaces at an end, bytes that are not UTF-8).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtrain.data.image_names import describe_error
from vtrain.data.image_sets import LabelledImages
from vtrain.errors import DataError
from vtrain.system.files import path_exists, write_text
from vtrain.system.json_csv import format_json_line
from vtrain.system.text import one_line

_COMMENT, _QUOTE = "#", '"'


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What a list did: how many images of each split it left out, and entries that match none.

    `digest` is a hash over the paths, within their splits, that were left out.
    """

    path: Path
    counts: dict[str, int]
    unmatched: tuple[str, ...]
    digest: str


def read_exclusion(path: Path) -> list[str]:
    """The paths in a list, in order.

    Raises:
        DataError: it cannot be read, or a line in quotes is no JSON string.
    """
    entries = []
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.rstrip("\r\n")
                if text.strip() and not text.startswith(_COMMENT):
                    entries.append(_parse(text, path, number))
    except OSError as error:
        raise DataError(f"data.exclude: {one_line(path)} {describe_error(error)}") from error
    return entries


def _parse(text: str, path: Path, number: int) -> str:
    if not text.startswith(_QUOTE):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, str):
        raise DataError(
            f"{one_line(path)}:{number}: {one_line(text[:80])} starts with a quote and is no JSON "
            "string",
            "write the path in JSON, or without quotes",
        )
    return value


def write_exclusion(path: Path, sections: Iterable[tuple[str, Sequence[Path]]]) -> None:
    """Write a list of sections, each a comment and paths, those below its folder relative to it.

    Raises:
        ResourceError, UsageError: it cannot be written.
    """
    lines, folder = [], path.absolute().parent

    def shorten(each: Path) -> str:
        whole = each.absolute()
        return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)

    for comment, paths in sections:
        lines += [f"{_COMMENT} {one_line(comment)}", *map(_format, map(shorten, paths))]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _format(text: str) -> str:
    plain = text.isprintable() and text == text.strip()
    return text if plain and not text.startswith((_COMMENT, _QUOTE)) else format_json_line(text)


def exclude_images(
    splits: dict[str, LabelledImages], path: Path
) -> tuple[dict[str, LabelledImages], Exclusion]:
    """The splits without the images that a list names; all others stay where they are.

    Raises:
        DataError: the list cannot be read, or leaves a split or a class of train without images.
    """
    entries = read_exclusion(path)
    forms = [_forms(path.parent / entry) for entry in entries]
    known = {form: number for number, each in enumerate(forms) for form in each}
    matched: set[int] = set()
    kept, counts = {}, {}
    digest = hashlib.sha256()
    for name, images in splits.items():
        found = [known.get(plain, known.get(real)) for plain, real in _image_forms(images)]
        for number, place in zip(found, images.paths.encoded_names(), strict=True):
            if number is not None:
                matched.add(number)
                digest.update(b"%b\0%b\n" % (name.encode(), place))
        kept[name] = images.subset([i for i, number in enumerate(found) if number is None])
        counts[name] = len(images) - len(kept[name])
        _require_images(images, kept[name], name, path)
    missed = tuple(
        entry
        for number, entry in enumerate(entries)
        if number not in matched and not matched & {known[form] for form in forms[number]}
    )
    for entry in missed:
        _require_beside(path, entry)
    return kept, Exclusion(path, counts, missed, digest.hexdigest())


def _require_beside(path: Path, entry: str) -> None:
    """Refuse an entry that is only there from the working directory: which one is meant?"""
    if path_exists(path.parent / entry) or not path_exists(Path(entry)):
        return
    raise DataError(
        f"data.exclude: {one_line(path)}: {one_line(entry)} is in the working directory "
        f"{Path.cwd()}, not in {path.parent}, where the list is",
        "write each path relative to the list's folder, or in full",
    )


def _forms(path: Path) -> set[str]:
    """How a path may be written in full: as it is, with the links of its folder, or all, followed.

    A name that no file can have is left as it is.
    """
    try:
        whole = path.absolute()
        return {str(whole), str(whole.parent.resolve() / whole.name), str(whole.resolve())}
    except (OSError, ValueError, RuntimeError):
        return {str(path)}


def _image_forms(images: LabelledImages) -> Iterator[tuple[str, str]]:
    """Each image's path in full, as it is, and with the links of the folder that was scanned."""
    plain, real = images.paths.root.absolute(), images.paths.root.resolve()
    for name in images.paths.names():
        if name.startswith("/") or not name:  # of a list; or a root that is the image itself
            yield str(plain / name), str(real / name)
        else:
            yield f"{plain}/{name}", f"{real}/{name}"


def _require_images(before: LabelledImages, after: LabelledImages, name: str, path: Path) -> None:
    if len(before) and not len(after):
        raise DataError(f"data.exclude: {one_line(path)} leaves no image in data.{name}")
    if name != "train":
        return
    counts = zip(before.classes, before.class_counts(), after.class_counts(), strict=True)
    emptied = [label for label, had, has in counts if had and not has]
    if emptied:
        raise DataError(
            f"data.exclude: {one_line(path)} leaves no training image of class {emptied[0]!r}",
            "remove the class, or keep images of it",
        )
