"""Names of classes for people to read, from a file: n01440764 is a tench."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from vtrain.config.yaml12 import load_yaml
from vtrain.data.image_names import compose, describe_error
from vtrain.errors import DataError
from vtrain.system.reporter import Reporter
from vtrain.system.text import enumerate_names, one_line

_MAPPINGS = (".json", ".yaml", ".yml")
_SEPARATORS = "\t,;"  # of a line's class and name; a space where there is none of them


def rename_classes(classes: Sequence[str], path: Path, reporter: Reporter) -> tuple[str, ...]:
    """The classes by the names that a file gives them; those that it does not name stay.

    The file is a JSON or YAML mapping, or has a class and its name on each line. Where it gives
    one name to several classes, each is followed by its class in parentheses.

    Raises:
        DataError: the file cannot be read, names none of the classes, or one as another is called.
    """
    given = dict(_read(path))
    shown = [given.get(each, each) for each in classes]
    named = [each for each in classes if each in given]
    if not named:
        raise DataError(
            f"data.names: {one_line(path)} names none of the classes {enumerate_names(classes)}",
            f"it names {enumerate_names(list(given))}; expected lines such as: "
            f"{one_line(classes[0])},NAME",
        )
    pairs = list(zip(shown, classes, strict=True))
    if clashes := [name for name, each in pairs if name != each and name in classes]:
        raise DataError(
            f"data.names: {one_line(path)} gives names that other classes have: "
            f"{enumerate_names(clashes)}",
            "choose others: a folder of such a name could be either class",
        )
    counts = Counter(shown)
    told = f"data.names: {len(named)} of {len(classes)} classes are named in {one_line(path)}"
    if len(named) < len(classes):
        reporter.warn(f"{told}; not {enumerate_names([c for c in classes if c not in given])}")
    else:
        reporter.say(told)
    return tuple(name if counts[name] == 1 else f"{name} ({each})" for name, each in pairs)


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Class and name of each entry that has both.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    hint = "expected a mapping of classes to names, or a class and its name on each line"
    if path.suffix.lower() in _MAPPINGS:
        document, _ = load_yaml(path, source=one_line(path))
        found = document.data if isinstance(document.data, dict) else {"": None}
        if document.problems or not all(isinstance(name, str) for name in found.values()):
            raise DataError(f"data.names: {one_line(path)} is no mapping of classes to names", hint)
        yield from ((compose(str(key).strip()), str(name).strip()) for key, name in found.items())
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"data.names: {one_line(path)} {describe_error(error)}", hint) from error
    first = next(filter(None, lines), "")
    separator = next((each for each in _SEPARATORS if each in first), " ")
    if path.suffix.lower() == ".txt" and separator == "," and " " in first.partition(",")[0]:
        separator = " "  # n01440764 tench, Tinca tinca
    if separator == " ":
        rows: Iterator[list[str]] = (line.split(maxsplit=1) for line in lines)
    else:
        rows = csv.reader(lines, delimiter=separator)
    for row in rows:
        if len(row) > 1 and row[0].strip() and row[1].strip():
            yield compose(row[0].strip()), row[1].strip()
