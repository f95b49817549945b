"""Turns what pydantic refuses into lines that say where, what was got and what is allowed."""

import re
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vtrain.config.allowed import (
    Schema,
    describe_allowed,
    find_choices,
    find_subschema,
    known_keys,
)
from vtrain.config.keys import FitConfig
from vtrain.config.source import SECTIONS, ConfigSource, Mistake, dotted
from vtrain.config.yaml12 import KeyPath, format_scalar, is_string, shorten_line
from vtrain.errors import ConfigError, suggest
from vtrain.system.text import clip

MAX_LINES = 100  # of a report: nobody mends more at once, and generated files can have thousands
MAX_LINE = 600  # characters

# Names that other tools give to our keys.
OTHER_NAMES = {
    "amp": "train.precision",
    "arch": "model.backbone",
    "architecture": "model.backbone",
    "augmentation": "data.augment",
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "checkpoint": "model.weights",
    "clip_grad": "train.clip_norm",
    "grad_accum": "train.accumulate",
    "grad_clip": "train.clip_norm",
    "gpu": "train.device",
    "img_size": "data.image_size",
    "imgsz": "data.image_size",
    "input_size": "data.image_size",
    "learning_rate": "optim.lr",
    "max_epochs": "train.epochs",
    "n_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "num_workers": "data.workers",
    "opt": "optim.optimizer",
    "output": "run_dir",
    "output_dir": "run_dir",
    "patience": "train.early_stop",
    "pretrained": "model.weights",
    "random_seed": "seed",
    "scheduler": "optim.schedule",
    "smoothing": "train.label_smoothing",
    "train_dir": "data.train",
    "val_dir": "data.val",
    "val_split": "data.val_fraction",
    "validation": "data.val",
    "warmup": "optim.warmup_epochs",
    "wd": "optim.weight_decay",
}

# What YAML 1.1 took for booleans.
OLD_TRUE, OLD_FALSE = ("yes", "on", "y"), ("no", "off", "n")


def validate_source(source: ConfigSource) -> tuple[FitConfig, set[str]]:
    """The config in `source`; mistakes are added to `source`.

    Also returns the dotted keys that are wrong or missing. The config has their defaults instead
    (placeholders where a key is required), so that everything else can still be checked.
    """
    data = source.data
    if not isinstance(data, dict):
        source.add((), f"got {show(data)}, expected lines of 'key: value'{_colon_hint(data)}")
        data = {}
    data = {**{section: {} for section in SECTIONS}, **data}
    try:
        return FitConfig.model_validate(data), set()
    except ValidationError as error:
        broken = _add_mistakes(source, data, error)
    return FitConfig.model_validate(_without(data, broken)), {dotted(path) for path in broken}


def _add_mistakes(source: ConfigSource, data: Any, error: ValidationError) -> set[KeyPath]:
    schema = FitConfig.model_json_schema()
    broken: set[KeyPath] = set()
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        about_key = each["type"] in ("extra_forbidden", "missing")
        path = _real_path(each["loc"], schema, unknown=each["type"] == "extra_forbidden")
        path, value = (path, None) if about_key else _follow(data, path)
        if path in broken:  # one mistake, refused by several branches of a union
            continue
        broken.add(path)
        if each["type"] == "extra_forbidden":
            text = f"unknown key{_suggest_key(path, schema)}"
        elif each["type"] == "missing":
            part = find_subschema(path, schema) or {}
            text = f"missing; such as {path[-1]}: {format_scalar(part.get('examples', [None])[0])}"
        else:
            text = describe_value(path, value, schema)
        source.add(path, text, key=about_key)
    return broken


def _real_path(loc: KeyPath, schema: Schema, *, unknown: bool) -> KeyPath:
    """`loc` without the names of union branches that pydantic puts into it."""
    path: KeyPath = ()
    for part in loc:
        if find_subschema((*path, part), schema) is not None:
            path = (*path, part)
    return (*path, loc[-1]) if unknown else path


def _follow(data: Any, path: KeyPath) -> tuple[KeyPath, Any]:
    """As much of `path` as there is in `data`, and the value there: `head: mlp` has no type."""
    value = data
    for depth, part in enumerate(path):
        if not isinstance(value, (dict, list)):
            return path[:depth], value
        value = value[part]  # type: ignore[index]  # an int where it is a list
    return path, value


def _without(data: dict[str, Any], broken: set[KeyPath]) -> dict[str, Any]:
    data = deepcopy(data)
    for path in broken:
        # One wrong rule makes the whole freeze list unusable.
        path = ("freeze",) if path[0] == "freeze" else path
        parent: Any = data
        for part in path[:-1]:
            parent = parent.get(part) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(path[-1], None)
    data.setdefault("model", {}).setdefault("backbone", "resnet18")
    data.setdefault("data", {}).setdefault("train", ".")
    return data


def describe_value(path: KeyPath, value: Any, schema: Schema) -> str:
    """`got …, expected …`, with a suggestion where one is close."""
    key = re.sub(r"\[\d+\]", "[]", dotted(path))
    if key.startswith("model.options."):
        key = "model.options[]"
    part = find_subschema(path, schema) or {}
    suggestion = _suggest_value(value, part, find_choices(part, schema))
    return f"got {show(value)}, expected {describe_allowed(key, part, schema)}{suggestion}"


def show(value: Any) -> str:
    """A value as the user would write it, short and on one line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if not isinstance(value, str):
        return clip(format_scalar(value))
    if not value:
        return "an empty string"
    return clip(repr(value) if is_string(value) else f"the string {value!r}")


def _suggest_value(value: Any, part: Schema, choices: list[str]) -> str:
    if part.get("type") == "object":
        return _colon_hint(value)
    if part.get("type") == "boolean" and isinstance(value, str):
        if value.lower() in OLD_TRUE + OLD_FALSE:
            return f"; did you mean {format_scalar(value.lower() in OLD_TRUE)}?"
        return ""
    if value is None or value is False:
        return "; did you mean none?" if "none" in choices else ""
    return suggest(value.lower(), choices, lead="; ") if isinstance(value, str) else ""


def _colon_hint(value: Any) -> str:
    """`epochs:10` is a string, not a key with a value."""
    if isinstance(value, str) and re.match(r"[\w-]+:\S", value):
        return "; is a space missing after the colon?"
    return ""


def _suggest_key(path: KeyPath, schema: Schema) -> str:
    *parents, last = path
    name = str(last).lower().replace("-", "_").strip()
    prefix = dotted((*parents, ""))
    if parents[:1] == ["freeze"]:
        keys, siblings, elsewhere = [], ["pattern", "lr_scale"], []
    else:
        keys = known_keys(schema)
        depth = prefix.count(".")
        siblings = [
            k[len(prefix) :] for k in keys if k.startswith(prefix) and k.count(".") == depth
        ]
        elsewhere = [key for key in keys if key.rsplit(".", 1)[-1] == name]
    if name == "<<":
        return "; YAML 1.2 has no merge keys, write out what it stands for"
    if name in siblings:
        return f"; did you mean {name}?"
    if not parents and "." in name and name in keys:
        section, _, rest = name.partition(".")
        return f"; dots are for the command line, in a file write {rest} below {section}"
    for other in (*elsewhere, OTHER_NAMES.get(name)):
        if other and parents[:1] != ["freeze"]:
            return f"; did you mean {other}?"
    return suggest(name, siblings, lead="; ") or f"; known here: {', '.join(siblings)}"


def raise_report(source: ConfigSource) -> None:
    """Raise one error with every mistake in `source`, sorted by place; without any, return.

    Raises:
        ConfigError: there are mistakes.
    """
    if not source.mistakes:
        return
    # The first thing said about a value is the most exact one.
    first = {(mistake.place, mistake.key): mistake for mistake in reversed(source.mistakes)}
    mistakes = sorted(first.values(), key=lambda mistake: (mistake.place, mistake.key))
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    lines = [f"{count} in {source.name}", *map(_format_mistake, mistakes[:MAX_LINES])]
    if len(mistakes) > MAX_LINES:
        lines.append(f"and {len(mistakes) - MAX_LINES} more")
    raise ConfigError(
        "\n".join(lines), "vtrain schema lists every key with its default and meaning"
    )


def _format_mistake(mistake: Mistake) -> str:
    key, label = clip(mistake.key), mistake.place.label
    known = not key or label.startswith(f"command line: {key}=")
    line = f"{label}: {mistake.text}" if known else f"{label}: {key}: {mistake.text}"
    # Keys, names and paths can hold anything of any length, but a mistake is one line.
    return shorten_line(line, MAX_LINE)


@dataclass(frozen=True, slots=True)
class KeyMistake:
    """A mistake about the value at `path`; shown at `at` where that value is only a default."""

    path: KeyPath
    text: str
    at: KeyPath = ()
