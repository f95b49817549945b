"""Reads the JSON Schema of the config: what is allowed where, in words."""

from typing import Any

from vtrain.config.keys import FREEZE_POLICIES, UNTIL
from vtrain.config.yaml12 import KeyPath, format_scalar

Schema = dict[str, Any]

# What is allowed, where the schema alone would not say it well; [] stands for any item.
EXPECTED = {
    "run_dir": "the path of a folder, or null",
    "model.backbone": "the name of a backbone, such as resnet50",
    "model.weights": "DEFAULT, none, an enum name such as IMAGENET1K_V1, or a path",
    "model.head": "linear, mlp, or a mapping such as {type: mlp, hidden: 512, dropout: 0.2}",
    "model.options": "a mapping such as {width_mult: 0.5}",
    "model.options[]": "a number, true or false, or text",
    "freeze": f"{', '.join(FREEZE_POLICIES)}, {UNTIL}<stage>, or a list of {{pattern, lr_scale}}",
    "freeze[]": "a mapping such as {pattern: layer4, lr_scale: 1.0}",
    "freeze[].pattern": "a stage, head, or a glob over parameter names",
    "data.train": "the path of a folder, tar or list",
    "data.val": "the path of a folder, tar or list, or null",
    "data.test": "the path of a folder, tar or list, or null",
    "data.exclude": "the path of a text file, or null",
    "data.group": "folder, duplicates, the name of a column, a regular expression, or null",
    "data.columns": "a mapping such as {path: image_id, label: breed}",
    "data.columns.path": "the name of a column, or null",
    "data.columns.label": "the name of a column, or null",
    "data.columns.split": "the name of a column, or null",
    "data.columns.group": "the name of a column, or null",
    "data.root": "the path of a folder, or null",
    "data.names": "the path of a file, or null",
    "train.device": "auto, cpu, cuda, cuda:N or mps",
}
_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)


def find_subschema(path: KeyPath, schema: Schema) -> Schema | None:
    """The part that describes the value at `path`, references resolved; None: nothing does."""
    part: Schema | None = schema
    for name in path:
        if part is None:
            return None
        part = _find_child(name, [part, *_branches(part, schema)])
        part = None if part is None else _resolve(part, schema)
    return part


def _find_child(name: str | int, branches: list[Schema]) -> Schema | None:
    for branch in branches:
        if isinstance(name, int) and "items" in branch:
            return dict(branch["items"])
        if name in branch.get("properties", ()):
            return dict(branch["properties"][name])
        # False in closed mappings, a schema in model.options.
        if isinstance(name, str) and isinstance(branch.get("additionalProperties"), dict):
            return dict(branch["additionalProperties"])
    return None


def _branches(part: Schema, schema: Schema) -> list[Schema]:
    return [_resolve(branch, schema) for branch in part.get("anyOf") or part.get("oneOf") or []]


def _resolve(part: Schema, schema: Schema) -> Schema:
    if "$ref" not in part:
        return part
    definition = schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
    return {**definition, **part}


def find_choices(part: Schema, schema: Schema) -> list[str]:
    """The words that are allowed, if it is words."""
    branches = _branches(part, schema) or [part]
    branches += [inner for branch in branches for inner in _branches(branch, schema)]
    values = [v for each in branches for v in each.get("enum", [each.get("const")])]
    return [value for value in values if isinstance(value, str)]


def known_keys(schema: Schema) -> list[str]:
    """Every dotted key, sections included, except those inside `freeze` and `model.options`."""
    keys: list[str] = []

    def visit(part: Schema, prefix: str) -> None:
        for branch in (part, *_branches(part, schema)):
            for name, child in branch.get("properties", {}).items():
                keys.append(prefix + name)
                visit(_resolve(child, schema), f"{prefix}{name}.")

    visit(schema, "")
    return keys


def describe_allowed(key: str, part: Schema, schema: Schema) -> str:
    """What `key` allows, in words; `[]` stands for any item in it."""
    return EXPECTED.get(key) or _describe(part, schema)


def _describe(part: Schema, schema: Schema) -> str:
    if branches := _branches(part, schema):
        return ", or ".join(_describe(branch, schema) for branch in branches)
    if "enum" in part or "const" in part:
        *names, last = [format_scalar(value) for value in part.get("enum", [part.get("const")])]
        return f"{', '.join(names)} or {last}" if names else last
    kinds = {
        "boolean": "true or false",
        "null": "null",
        "object": f"a mapping with keys such as {', '.join([*part.get('properties', ())][:3])}",
        "integer": f"a whole number{_describe_range(part)}",
        "number": f"a number{_describe_range(part)}",
    }
    return kinds[part["type"]]


def _describe_range(part: Schema) -> str:
    if "minimum" in part and "maximum" in part:
        return f" from {part['minimum']} to {part['maximum']}"
    bounds = [f"{words} {part[name]}" for name, words in _BOUNDS if name in part]
    return " " + " and ".join(bounds)
