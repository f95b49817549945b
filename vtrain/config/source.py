"""What the user wrote: one config file and the overrides, merged, each value with its place."""

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vtrain.config.yaml12 import (
    Document,
    KeyPath,
    Position,
    load_yaml,
    parse_value,
    shorten_line,
    walk_paths,
)
from vtrain.errors import ConfigError
from vtrain.system.text import clip, list_names

SUFFIXES = (".yaml", ".yml")
SECTIONS = ("model", "data", "optim", "train")
_OVERRIDE = re.compile(r"\s*(?P<key>[\w-]+(\.[\w-]+)*)\s*=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written; places sort as the user reads: file first, then overrides.

    `label` starts an error line (`configs/x.yaml:12:3`), `origin` is shown beside a value
    (`configs/x.yaml:12`).
    """

    order: tuple[int, int, int]
    label: str
    origin: str

    @property
    def is_override(self) -> bool:
        """Whether it is on the command line."""
        return self.order[0] == 1


@dataclass(frozen=True, slots=True)
class Mistake:
    """One line of the report; `key` is dotted, empty where there is none."""

    place: Place
    key: str
    text: str


@dataclass(slots=True)
class ConfigSource:
    """The merged data, the place of every key and value in it, and mistakes met while reading.

    `folder` is where the file lies.
    """

    folder: Path
    name: str
    text: str
    data: Any
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def find_place(self, path: KeyPath, *, key: bool = False) -> Place:
        """The place of the value at `path` (or of its key), or of what it would stand in."""
        first, second = (self.keys, self.values) if key else (self.values, self.keys)
        place = first.get(path) or second.get(path)
        while not place and path:
            path = path[:-1]
            place = self.keys.get(path) or self.values.get(path)
        return place or _file_place(self.name, Position(1, 1))

    def add(self, path: KeyPath, text: str, *, key: bool = False) -> None:
        """Note a mistake at `path`."""
        self.mistakes.append(Mistake(self.find_place(path, key=key), dotted(path), text))


def dotted(path: KeyPath) -> str:
    """`("freeze", 0, "pattern")` as `freeze[0].pattern`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def load_source(path: Path, overrides: Sequence[str]) -> ConfigSource:
    """Read the file at `path` and apply `key=value` overrides in their order.

    Raises:
        ConfigError: the file is missing or not valid YAML; other mistakes are kept in the source.
    """
    name = _shown_path(path)
    _require_file(path, name)
    document, text = load_yaml(path, source=name)
    source = _source_of(document, path.absolute().parent, name, text)
    for index, override in enumerate(overrides):
        _apply_override(source, override, index)
    return source


def _shown_path(path: Path) -> str:
    absolute, here = path.absolute(), Path.cwd()
    shown = absolute.relative_to(here) if absolute.is_relative_to(here) else path
    return shorten_line(str(shown), 1000)  # it starts every line of a report


def _require_file(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        candidates = [each for each in list_names(path.parent) if each.endswith(SUFFIXES)]
        close = get_close_matches(path.name, candidates, n=1, cutoff=0.5)
        advice = "write a config for a folder of images with: vtrain init FOLDER"
        if close:
            advice = f"did you mean {shorten_line(str(Path(name).with_name(close[0])), 1000)}?"
        raise ConfigError(f"{name}: no such file", advice) from error
    except (OSError, ValueError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise ConfigError(f"{clip(name)}: cannot be read: {reason}") from error
    if stat.S_ISDIR(mode):
        inside = [each for each in list_names(path) if each.endswith(SUFFIXES)]
        hint = (
            f"did you mean {shorten_line(str(Path(name) / inside[0]), 1000)}?" if inside else None
        )
        raise ConfigError(f"{name}: is a folder, expected a config file", hint)
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{name}: is not a regular file")


def _source_of(document: Document, folder: Path, name: str, text: str) -> ConfigSource:
    source = ConfigSource(
        folder,
        name,
        text,
        {} if document.data is None else document.data,
        {path: _file_place(name, position) for path, position in document.keys.items()},
        {path: _file_place(name, position) for path, position in document.values.items() if path},
    )
    for problem in document.problems:
        place = _file_place(name, problem.position)
        source.mistakes.append(Mistake(place, dotted(problem.key), problem.text))
    if isinstance(source.data, dict):
        for section in SECTIONS:
            # `optim:` with every line below it commented out
            if section in source.data and source.data[section] is None:
                source.data[section] = {}
    return source


def _file_place(name: str, position: Position) -> Place:
    return Place(
        (0, position.line, position.column),
        f"{name}:{position.line}:{position.column}",
        f"{name}:{position.line}",
    )


def _apply_override(source: ConfigSource, override: str, index: int) -> None:
    place = Place((1, index, 0), f"command line: {clip(override, 100)}", "command line")
    match = _OVERRIDE.fullmatch(override)
    if not match:
        text = "expected key=value, such as train.epochs=5"
        source.mistakes.append(Mistake(place, "", text))
        return
    path = tuple(match["key"].split("."))
    try:
        document = parse_value(match["value"].strip())
    except ConfigError as error:
        source.mistakes.append(Mistake(place, "", error.message))
        return
    for problem in document.problems:
        source.mistakes.append(Mistake(place, dotted(path + problem.key), problem.text))
    if _set_value(source, path, document.data, place):
        _set_places(source, path, document.data, place)


def _set_value(source: ConfigSource, path: KeyPath, value: Any, place: Place) -> bool:
    """Put `value` at `path`, making the sections on the way; False where something is in it."""
    if not isinstance(source.data, dict):
        return False  # the file as a whole is already a mistake
    if path[:-1] == ("model", "head"):
        _expand_head(source)
    node = source.data
    for depth, part in enumerate(path[:-1]):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            above = dotted(path[: depth + 1])
            text = f"{above} is not a mapping, so nothing in it can be set; give {above} as a whole"
            source.mistakes.append(Mistake(place, "", text))
            return False
    emptied = value is None and path[0] in SECTIONS and len(path) == 1
    node[path[-1]] = {} if emptied else value
    return True


def _expand_head(source: ConfigSource) -> None:
    """`head: mlp` becomes `head: {type: mlp}`, so that `model.head.dropout=0.2` can join it."""
    model = source.data.get("model")
    if isinstance(model, dict) and isinstance(model.get("head"), str):
        model["head"] = {"type": model["head"]}
        path: KeyPath = ("model", "head")
        source.values[*path, "type"] = source.values[path]


def _set_places(source: ConfigSource, path: KeyPath, value: Any, place: Place) -> None:
    for places in (source.keys, source.values):
        for old in [each for each in places if each[: len(path)] == path]:
            del places[old]
    for depth in range(1, len(path)):
        source.keys.setdefault(path[:depth], place)
    for each in walk_paths(value, path):
        source.keys[each] = source.values[each] = place
