"""Paths that a config names: what each is relative to, and what `~` and `$NAME` stand for.

A path that was written in the file is relative to the file's folder, one on the command line to the
working directory. From here on all are absolute: a run can be gone on with from anywhere.
"""

import os
import re
from pathlib import Path
from typing import Any

from vtrain.config.keys import FitConfig
from vtrain.config.run_files import MODEL_NAME, RESOLVED_NAME, RUNS
from vtrain.config.source import ConfigSource, Place, dotted
from vtrain.config.yaml12 import KeyPath, format_scalar
from vtrain.system.files import describe_unreachable, path_exists
from vtrain.system.text import clip

INPUT_PATHS = (
    "model.weights",
    "data.train",
    "data.val",
    "data.test",
    "data.exclude",
    "data.root",
    "data.names",
)
WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
_OUTPUT = "run_dir"  # relative to the working directory, wherever it was written
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def looks_like_path(weights: str, folder: Path) -> bool:
    """Whether `model.weights` names a file or folder, and not weights that are published."""
    if weights in ("none", "DEFAULT") or weights.startswith("IMAGENET1K_"):
        return False
    written_so = any(sign in weights for sign in "/\\") or weights.startswith((".", "~"))
    return written_so or weights.endswith(WEIGHTS_SUFFIXES) or path_exists(folder / weights)


def settle_paths(source: ConfigSource) -> set[str]:
    """Expand every path in `source`, and make those of inputs absolute.

    What is wrong with them is added to `source`; returns the dotted keys of those that are.
    """
    broken = set()
    for key in (*INPUT_PATHS, _OUTPUT):
        path = tuple(key.split("."))
        *above, name = path
        section: Any = source.data
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        value = section.get(name) if isinstance(section, dict) else None
        if not isinstance(value, str) or not value or "://" in value:
            continue
        try:
            section[name] = _settle(source, path, value)
        except ValueError as error:
            source.add(path, str(error))
            broken.add(key)
    return broken


def dump_without_folders(config: FitConfig) -> dict[str, Any]:
    """A config to give away: of paths, which are of this machine alone, the last part is left."""
    plain = config.model_dump(mode="json")
    for key in (*INPUT_PATHS, _OUTPUT):
        *above, name = key.split(".")
        section = plain[above[0]] if above else plain
        if section[name] is not None:
            section[name] = Path(section[name]).name
    return plain


def shorten_paths(source: ConfigSource, place: Place, text: str) -> str:
    """`text` with paths as they would be written at `place`, so that a hint can be followed."""
    base = Path.cwd() if place.is_override else source.folder
    for depth, folder in enumerate([base, *base.parents[:-1]][:3]):
        itself = re.escape(str(base)) + r"(?![^\s;:,?])"
        start = rf"(?<![^\s'\"])(?!{itself}){re.escape(f'{folder}/')}(?=\S)"
        text = re.sub(start, "../" * depth, text)
    return text


def _settle(source: ConfigSource, path: KeyPath, value: str) -> str:
    """The path `value` in full.

    Raises:
        ValueError: it cannot be expanded, or is only where it is not looked for.
    """
    here, beside = Path.cwd(), source.folder
    overridden = source.find_place(path).is_override
    base, other = (here, beside) if overridden else (beside, here)
    if dotted(path) == _OUTPUT:
        return _expand(value, here)
    value = _expand(value, base)
    if dotted(path) == "model.weights" and not any(
        looks_like_path(value, each) for each in (base, other)
    ):
        run = here / RUNS / value
        if value not in ("none", "DEFAULT") and path_exists(run / MODEL_NAME):
            write = format_scalar(os.path.relpath(run, base.resolve()))
            raise ValueError(f"got {value}; for the weights of that run write {write}")
        return value
    found = _join(base, value)
    if path_exists(Path(found)):
        return found
    if (
        not overridden
        and source.name.endswith("config.yaml")
        and path_exists(beside / RESOLVED_NAME)
    ):
        raise ValueError(
            f"{value} is not in {beside}, where this copy of a config lies; use {RESOLVED_NAME} "
            "beside it"
        )
    if not path_exists(other / value):
        return found
    places = f"the working directory {here}", f"the folder of the config {beside}"
    first, second = places if overridden else reversed(places)
    # Links on the way are followed: `..` leads out of where they end.
    write = os.path.relpath(_join(other, value), base.resolve())
    raise ValueError(f"{value} is not in {first}; it is in {second}: write {format_scalar(write)}")


def _expand(value: str, base: Path) -> str:
    """`value` with the home folder and the variables that it names, unless it is there as it is."""
    if path_exists(base / value):
        return value
    for found in _VARIABLE.finditer(value):
        if not os.environ.get(name := found[1] or found[2]):
            state = "empty" if name in os.environ else "not set"
            raise ValueError(f"got {value}, and the variable {name} is {state}; write it out")
    filled = _VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], value)
    if not filled.startswith("~"):
        return filled
    try:
        return str(Path(filled).expanduser())
    except RuntimeError as error:
        user = clip(filled.partition("/")[0])
        raise ValueError(f"got {value}, and {user} is no home folder") from error


def _join(base: Path, value: str) -> str:
    """`value` below `base` without `.` and `..`, unless that is, or may be, another place."""
    whole = base / value
    short = Path(os.path.abspath(whole))  # noqa: PTH100 - links stay as they are
    if path_exists(whole):
        return str(short if path_exists(short) and whole.samefile(short) else whole)
    return str(whole if describe_unreachable(whole) else short)
