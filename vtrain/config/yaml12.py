"""Reads YAML with the scalars of YAML 1.2, and remembers where every key and value stands.

PyYAML follows YAML 1.1: `1e-3` is a string there, `no` is false, `010` is eight, `2024-01-01` a
date, and of two equal keys the last one wins without a word. Here the core schema of YAML 1.2
(https://yaml.org/spec/1.2.2/#103-core-schema) holds, and equal keys are an error.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vtrain.errors import ConfigError
from vtrain.system.text import clip

KeyPath = tuple[str | int, ...]

# Generous for a person, and little enough that the slowest text at the limit takes under a second.
MAX_BYTES = 250_000
MAX_DEPTH = 32
MAX_INT_BITS = 1024  # as floats; Python refuses to write integers of many digits
MAX_NODES = 5_000  # aliases count each time they are used, so that a few lines cannot grow to GB

_TAG = "tag:yaml.org,2002:"
_CORE_TAGS = tuple(_TAG + kind for kind in ("null", "bool", "int", "float", "str"))
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"
)
_LINE_END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # as PyYAML counts lines
_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_NO_COLON = "expected 'key: value'; is a colon or the space after it missing?"
# PyYAML's wording → what the user should look for.
_HELP = {
    "mapping values are not allowed here": (
        "a second ': ' on one line; or the indentation does not match the lines above"
    ),
    "found character '\\t' that cannot start any token": "a tab; YAML is indented with spaces",
    "could not find expected ':'": _NO_COLON,
    "second occurrence": "an anchor of this name stands above already",
    "but found another document": "a second document begins here; one config per file",
    "expected <block end>, but found '<block mapping start>'": (
        "the indentation does not match the lines above"
    ),
    "expected <block end>, but found '<block sequence start>'": (
        "the indentation does not match the lines above"
    ),
}
# Where these go wrong on a later line, the line where they began is the one to look at.
_OPENED = {
    "while scanning a simple key": None,
    "while scanning a quoted scalar": "a quote that is never closed",
    "while parsing a flow sequence": "a '[' that is never closed, or a comma missing after it",
    "while parsing a flow mapping": "a '{' that is never closed, or a comma missing after it",
}


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Line and column of a token, both from 1, the column in characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake inside a document that can be read on: `key` is the path of the value it is in."""

    position: Position
    key: KeyPath
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the position of each part.

    `keys` and `values` map the path of each value, such as `("model", "head", "type")` or
    `("freeze", 0)`, to the position of its key and of itself; keys are strings as written.
    """

    data: Any
    keys: dict[KeyPath, Position] = field(default_factory=dict)
    values: dict[KeyPath, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """The pure-Python loader (the C one dies on deep nesting) with YAML 1.2's resolvers."""

    yaml_implicit_resolvers: dict[str | None, Any] = {}  # noqa: RUF012  # PyYAML's own attribute

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.count = 0
        # Start and last line of the last plain scalar that began a line and went on in another.
        self.long_plain: tuple[Position, int] | None = None

    def fetch_plain(self) -> None:
        start, first = self.get_mark(), self.pointer
        super().fetch_plain()
        last_line = self.tokens[-1].end_mark.line + 1
        if last_line > start.line + 1 and not self.buffer[first - start.column : first].strip(" -"):
            self.long_plain = _position(start), last_line

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803  # PyYAML's name
        # The scanner reads far ahead of `compose_node`, more slowly with every open bracket.
        if self.flow_level >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH or self.count > MAX_NODES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            what = _TOO_DEEP if self.depth > MAX_DEPTH else f"over {MAX_NODES} values"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern.pattern})\Z"), None)


def load_yaml(path: Path, *, source: str) -> tuple[Document, str]:
    """The document in a file, and its text; `source` is how messages call the file.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8 text, too large, or not valid YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES:,} bytes; this is not a config")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A byte order mark is not part of what was decoded.
        line, column = _line_column(bytes(error.object[: error.start]).decode("utf-8"))
        raise ConfigError(
            f"{source}:{line}:{column}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            "this is not a text file, or saved in another encoding"
        ) from error
    return parse_yaml(text, source=source), text


def parse_yaml(text: str, *, source: str) -> Document:
    """The one document in `text`; `source` is the file name that error messages start with.

    Raises:
        ConfigError: `text` is not valid YAML; duplicate keys and the like are in `problems`.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _Builder().build(node)
    except yaml.reader.ReaderError as error:
        line, column = _line_column(text[: error.position])
        where = f"{source}:{line}:{column}"
        character = f"U+{int(error.character):04X}"
        raise ConfigError(f"{where}: character {character} is not allowed in YAML") from error
    except yaml.MarkedYAMLError as error:
        position, problem = _describe_syntax_error(error, loader)
        where = f"{source}:{position.line}:{position.column}"
        raise ConfigError(f"{where}: not valid YAML: {shorten_line(problem, 300)}") from error
    except Exception as error:  # PyYAML lets ValueError, AttributeError and others through
        line, column = (loader.line + 1, loader.column + 1) if loader else (1, 1)
        problem = shorten_line(str(error), 300)
        raise ConfigError(f"{source}:{line}:{column}: not valid YAML: {problem}") from error


def parse_value(text: str) -> Document:
    """The value in `text`, read like the right side of a key: a scalar, `[a, b]` or `{a: b}`.

    Raises:
        ConfigError: `text` is not valid YAML; the message has no position.
    """
    try:
        document = parse_yaml(text, source="value")
    except ConfigError as error:
        raise ConfigError(re.sub(r"^value:\d+:\d+: ", "", error.message)) from error
    data = document.data
    if "#" in text and (data is None or (isinstance(data, str) and "#" not in data)):
        raise ConfigError("'#' begins a comment; put the value in quotes")
    return document


def format_scalar(value: str | float | bool | None) -> str:
    """One line of YAML that `parse_yaml` reads back as exactly `value`, of the same type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _format_float(value)
    return value if _is_plain(value) else _quote(value)


def _format_float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    # YAML 1.1 needs the dot to see a number.
    return text if "." in text else text.replace("e", ".0e")


def _is_plain(text: str) -> bool:
    """Whether `text` needs no quotes, for readers of YAML 1.1 as well as 1.2."""
    if not re.fullmatch(r"(\.{0,2}/|[A-Za-z_])([\w./+@%~-]|:(?=[\w./]))*", text, re.ASCII):
        return False
    return not re.fullmatch(r"(?i:null|true|false|yes|no|on|off|y|n)", text)


def is_string(text: str) -> bool:
    """Whether `text` without quotes is read as a string."""
    return not any(pattern.fullmatch(text) for pattern in (_NULL, _BOOL, _INT, _FLOAT))


def _quote(text: str) -> str:
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    escaped = "".join(_escape(character) for character in text)
    return f'"{escaped}"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\U{code:08x}"


def _line_column(before: str) -> tuple[int, int]:
    """Position of the character that follows `before`."""
    *above, line = _LINE_END.split(before)
    return len(above) + 1, len(line) + 1


def _position(mark: yaml.Mark | None) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)


def _describe_syntax_error(
    error: yaml.MarkedYAMLError, loader: _Loader | None
) -> tuple[Position, str]:
    position = _position(error.problem_mark or error.context_mark)
    problem = str(error.problem or error.context)
    text = _HELP.get(problem) or problem.replace("but got", "but found")
    for end in ("'<stream end>'", "'\\x00'"):
        text = text.replace(end, "the end of the file")
    start, last_line = (loader and loader.long_plain) or (position, 0)
    if problem.startswith("mapping values") and last_line == position.line:
        # `epochs:10` and the key in the next line were taken for one text over two lines.
        return start, _NO_COLON
    opened = _position(error.context_mark)
    at_end = "end of stream" in text or "end of the file" in text
    if error.context in _OPENED and (opened.line < position.line or at_end):
        return opened, _OPENED[error.context] or text
    return position, text


class _Builder:
    """Turns PyYAML's nodes into a `Document`."""

    def __init__(self) -> None:
        self.document = Document(None)
        self.nodes = 0

    def build(self, root: yaml.Node | None) -> Document:
        document = self.document
        data = None if root is None else self._value(root, ())
        return Document(data, document.keys, document.values, document.problems)

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        # A node that contains itself through an alias is stopped by its depth.
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem="an alias within itself, or too many aliases", problem_mark=node.start_mark
            )
        self.document.values[path] = _position(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, path, "seq")
            return [self._value(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._check_tag(node, path, "map")
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(key_node, path, "a key must be a single word")
                continue
            key = str(key_node.value)
            if not _is_sane(key):
                self._add(key_node, path, f"{clip(ascii(key))} cannot be a key")
                continue
            if key in mapping:
                first = self.document.keys[*path, key]
                self._add(key_node, (*path, key), f"set twice, first in line {first.line}")
                continue
            self.document.keys[*path, key] = _position(key_node.start_mark)
            mapping[key] = self._value(value_node, (*path, key))
        return mapping

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        if node.tag not in _CORE_TAGS:
            self._add(node, path, f"tag {_short_tag(node.tag)} is not allowed here")
            return node.value
        kind = node.tag.removeprefix(_TAG)
        try:
            return _convert_scalar(kind, node.value)
        except ValueError:
            self._add(node, path, f"{clip(node.value)!r} cannot be read as {kind}")
            return None

    def _check_tag(self, node: yaml.Node, path: KeyPath, kind: str) -> None:
        if node.tag != _TAG + kind:
            self._add(node, path, f"tag {_short_tag(node.tag)} is not allowed here")

    def _add(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.document.problems.append(Problem(_position(node.start_mark), path, text))


def _short_tag(tag: str) -> str:
    return clip("!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag)


def shorten_line(text: str, width: int) -> str:
    """`text` without anything that a terminal acts on, its middle left out where it is longer."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = width // 2
    return line if len(line) <= width else f"{line[:half]} ... {line[-half:]}"


def _convert_scalar(kind: str, text: str) -> str | float | bool | None:
    """The value of a scalar.

    Raises:
        ValueError: `text` is not a `kind`, which an explicit tag or a huge number can bring about.
    """
    if kind == "str":
        if not _is_sane(text):
            raise ValueError(text)
        return text
    pattern = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}[kind]
    if not pattern.fullmatch(text) and not (kind == "float" and _INT.fullmatch(text)):
        raise ValueError(kind)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        number = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if number.bit_length() > MAX_INT_BITS:
            raise ValueError(kind)
        return number
    return float(text.replace(".", "", 1) if text.lower().endswith(("inf", "nan")) else text)


def _is_sane(text: str) -> bool:
    """Escapes can spell NUL and lone surrogates, which no file name and no terminal can take."""
    return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)


def walk_paths(data: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of `data` and of everything in it."""
    yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from walk_paths(value, (*path, key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from walk_paths(value, (*path, i))
