"""The config as text: resolved YAML, the commented reference, and the JSON Schema."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from vtrain.config.allowed import Schema, describe_allowed, find_subschema
from vtrain.config.keys import FitConfig, flatten_config
from vtrain.config.yaml12 import format_scalar

WIDTH = 96
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_HEADER = """\
Every key of a vtrain config with its default, what is allowed, and what it does. Only
model.backbone, data.train and one of data.val and data.val_fraction must be given; the values
of required keys are examples. Generated from vtrain/config/keys.py.
"""


def json_schema() -> dict[str, Any]:
    """JSON Schema of the config, for editors that complete and check YAML."""
    schema = FitConfig.model_json_schema()
    return {"$schema": DIALECT, **schema, "title": "vtrain fit config"}


def dump_config(config: FitConfig, origins: Mapping[str, str] | None = None) -> str:
    """YAML that loads back to exactly `config`; `origins` become comments beside the values."""
    lines = []
    flat = flatten_config(config)
    for key, indent, name in _walk(flat):
        if key not in flat:
            lines.append(f"{indent}{name}:")
            continue
        first, *rest = _leaf_lines(f"{indent}{name}:", flat[key], indent)
        origin = (origins or {}).get(key)
        if origin is not None:
            shown = origin if origin.isprintable() else ascii(origin)
            first = f"{first:<40}  # {shown}"
        lines += [first, *rest]
    return "\n".join(lines) + "\n"


def reference_yaml() -> str:
    """`configs/reference.yaml`: every key with its default, what is allowed, and its effect."""
    schema = FitConfig.model_json_schema()
    flat = flatten_config(FitConfig.model_validate(_examples(schema)))
    lines = _comment(_HEADER.replace("\n", " "), "")
    for key, indent, name in _walk(flat):
        part = find_subschema(tuple(key.split(".")), schema) or {}
        above = _comment(part["description"], indent)
        if key in flat:
            start = "Required" if "examples" in part and "default" not in part else "Allowed"
            above += _comment(f"{start}: {describe_allowed(key, part, schema)}", indent)
            below = _leaf_lines(f"{indent}{name}:", flat[key], indent)
        else:
            below = [f"{indent}{name}:"]
        lines += ["", *above, *below]
    return "\n".join(lines) + "\n"


def _walk(flat: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(dotted key, indent, name) of every line, sections before what is in them."""
    seen: set[str] = set()
    for key in flat:
        parts = key.split(".")
        for depth in range(len(parts)):
            section = ".".join(parts[: depth + 1])
            if section not in seen:
                seen.add(section)
                yield section, "  " * depth, parts[depth]


def _leaf_lines(start: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, list):  # freeze rules
        lines = [start]
        for rule in value:
            pairs = [f"{name}: {format_scalar(each)}" for name, each in rule.items()]
            lines += [f"{indent}  - {pairs[0]}", *(f"{indent}    {pair}" for pair in pairs[1:])]
        return lines if value else [f"{start} []"]
    if isinstance(value, dict):  # model.options
        pairs = [f"{format_scalar(name)}: {format_scalar(each)}" for name, each in value.items()]
        return [start, *(f"{indent}  {pair}" for pair in pairs)] if pairs else [f"{start} {{}}"]
    return [f"{start} {format_scalar(value)}"]


def _comment(text: str, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _examples(schema: Schema) -> dict[str, dict[str, Any]]:
    """The required keys, with their examples as values."""
    data: dict[str, dict[str, Any]] = {}
    for section in schema["required"]:
        part = find_subschema((section,), schema) or {}
        data[section] = {name: part["properties"][name]["examples"][0] for name in part["required"]}
    return data
