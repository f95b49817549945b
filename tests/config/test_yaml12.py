"""YAML 1.2 scalars, positions, and everything that must be refused with a place."""

import math
import random
import re
import string
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtrain.config.yaml12 import (
    MAX_BYTES,
    MAX_NODES,
    Position,
    format_scalar,
    load_yaml,
    parse_value,
    parse_yaml,
)
from vtrain.errors import ConfigError


def parse(text: str) -> Any:
    document = parse_yaml(text, source="f.yaml")
    assert document.problems == []
    return document.data


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("-0.25e+2", -25.0),
        ("1e999", math.inf),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        (".nan", math.nan),
        ("12", 12),
        ("+12", 12),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("0o8", "0o8"),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1,000", "1,000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("no", "no"),
        ("No", "No"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("nil", "nil"),
        ("none", "none"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("!!int '3'", 3),
        ("!!float 3", 3.0),
        ("<<", "<<"),
        ("=", "="),
        ("until:layer3", "until:layer3"),
        ("[1, no, 1e-3]", [1, "no", 1e-3]),
        ("{a: ~, b: {c: 0x10}}", {"a": None, "b": {"c": 16}}),
        ("no: 1\n1: 2\ntrue: 3", {"no": 1, "1": 2, "true": 3}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ],
)
def test_core_schema(text: str, expected: object) -> None:
    data = parse(text)
    assert same(data, expected)


def test_positions_of_keys_and_values() -> None:
    text = (
        "# comment\nmodel:\n  head: {type: mlp,\n    hidden: 5}\n"
        "freeze:\n  - {pattern: 'ü', b: 1}\n"
    )
    document = parse_yaml(text, source="f")
    assert document.keys["model",] == Position(2, 1)
    assert document.values["model",] == Position(3, 3)
    assert document.keys["model", "head", "hidden"] == Position(4, 5)
    assert document.values["model", "head", "hidden"] == Position(4, 13)
    assert document.values["freeze", 0] == Position(6, 5)
    # Columns count characters, not bytes.
    assert document.keys["freeze", 0, "b"] == Position(6, 20)


@pytest.mark.parametrize(
    ("text", "where", "fragment"),
    [
        ("a: b: c", "f.yaml:1:5", "a second ': ' on one line"),
        ("train:\n  epochs:10\n  lr: 1", "f.yaml:2:3", "a colon or the space after it missing"),
        ("model\n  backbone: a", "f.yaml:1:1", "a colon or the space after it missing"),
        ("a:\n\tb: 1", "f.yaml:2:1", "a tab"),
        ("a: 1\nb\nc: 2", "f.yaml:2:1", "expected 'key: value'"),
        ("a: [1, 2", "f.yaml:1:4", "'[' that is never closed"),
        ("m: {a: 1\nb: 2", "f.yaml:1:4", "'{' that is never closed"),
        ("a: [1, 2}", "f.yaml:1:9", "expected ',' or ']', but found '}'"),
        ("a: 'x\nb: 1", "f.yaml:1:4", "a quote that is never closed"),
        ("a:\n    b: 1\n  c: 2", "f.yaml:3:3", "the indentation does not match"),
        ("a:\n  b: 1\n   c: 2", "f.yaml:3:5", "the indentation does not match"),
        ('a: "\\q"', "f.yaml:1:6", "unknown escape character 'q'"),
        ("a: *x", "f.yaml:1:4", "undefined alias 'x'"),
        ("a: @x", "f.yaml:1:4", "'@'"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1", "one config per file"),
        ("a: \x00", "f.yaml:1:4", "U+0000"),
        ("ä: 1\nb: \ud800", "f.yaml:2:4", "U+D800"),
        ("a: &x [*x]", "f.yaml:1:4", "an alias within itself"),
        ("[" * 100, "f.yaml:1:33", "nested more than 32 levels"),
        ("%YAML 3.0\n---\na: 1", "f.yaml:1:1", "incompatible YAML document"),
    ],
)
def test_syntax_errors_have_a_place(text: str, where: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, source="f.yaml")
    assert caught.value.message.startswith(where + ": ")
    assert fragment in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "position", "key", "fragment"),
    [
        ("a: 1\nb: 2\na: 3", (3, 1), ("a",), "set twice, first in line 1"),
        ("x: {a: 1, 'a': 2}", (1, 11), ("x", "a"), "set twice"),
        ("1: a\n'1': b", (2, 1), ("1",), "set twice"),
        ("? [a, b]\n: 1", (1, 3), (), "a key must be a single word"),
        ("a: !!python/object:os.system ls", (1, 4), ("a",), "!!python/object:os.system"),
        ("a: !env HOME", (1, 4), ("a",), "tag !env is not allowed"),
        ("a: !!binary aGk=", (1, 4), ("a",), "!!binary"),
        ("a: !!timestamp 2024-01-01", (1, 4), ("a",), "!!timestamp"),
        ("a: !!set {b}", (1, 4), ("a",), "!!set"),
        ("a: !!int x", (1, 4), ("a",), "'x' cannot be read as int"),
        ("a: " + "9" * 5000, (1, 4), ("a",), "cannot be read as int"),
        ('a: "\\ud800"', (1, 4), ("a",), "cannot be read as str"),
        ('a: "x\\0y"', (1, 4), ("a",), "cannot be read as str"),
    ],
)
def test_problems_let_the_rest_be_read(
    text: str, position: tuple[int, int], key: tuple[str, ...], fragment: str
) -> None:
    document = parse_yaml(text, source="f")
    (problem,) = document.problems
    assert problem.position == Position(*position)
    assert problem.key == key
    assert fragment in problem.text
    assert len(problem.text) < 200


def test_first_of_two_equal_keys_is_kept() -> None:
    assert parse_yaml("a: 1\na: 2", source="f").data == {"a": 1}


def test_merge_keys_do_not_merge() -> None:
    assert parse("x: {<<: {a: 1}}") == {"x": {"<<": {"a": 1}}}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "- a\n" * 100_000,
        "\n".join(" " * i + "a:" for i in range(1000)),
        BOMB,
    ],
    ids=["brackets", "braces", "dashes", "question marks", "long list", "staircase", "bomb"],
)
def test_bombs_are_refused_quickly(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"^f:\d+:\d+: not valid YAML: "):
        parse_yaml(text, source="f")
    assert time.perf_counter() - start < 5


def test_as_many_values_as_allowed() -> None:
    assert len(parse("[" + "1," * (MAX_NODES - 1) + "]")) == MAX_NODES - 1


def test_random_text_is_read_or_refused_with_a_place() -> None:
    rng = random.Random(0)
    alphabet = "ab1 :-[]{}#&*!|>'\"%@`,?\n\n  \t~.\\ü"
    for _ in range(1500):
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 25)))
        message = refusal(text)
        place = re.match(r"f:(\d+):(\d+): ", message)
        assert message == "" or place, text
        if place:
            assert 1 <= int(place[1]) <= text.count("\n") + 2
            assert int(place[2]) >= 1


def refusal(text: str) -> str:
    try:
        parse_yaml(text, source="f")
    except ConfigError as error:
        return error.message
    return ""


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_bytes(b"a: 1\nb: \x89PNG\r\n")
    with pytest.raises(ConfigError, match=r"^shown:2:4: byte 0x89 is not UTF-8"):
        load_yaml(path, source="shown")


def test_file_too_large(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=rf"shown: larger than {MAX_BYTES:,} bytes"):
        load_yaml(path, source="shown")


def test_file_with_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: no\r\n")
    document, text = load_yaml(path, source="f")
    assert document.data == {"a": 1, "b": "no"}
    assert document.keys["b",] == Position(2, 1)
    assert text.startswith("a: 1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5),
        ("", None),
        ("[a, 1]", ["a", 1]),
        ("{a: no}", {"a": "no"}),
        ("'#1'", "#1"),
        ("a#b", "a#b"),
    ],
)
def test_value_on_the_command_line(text: str, expected: object) -> None:
    assert same(parse_value(text).data, expected)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [("# x", "begins a comment"), ("folder #1", "begins a comment"), ("[1", "not valid YAML")],
)
def test_bad_value_on_the_command_line(text: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_value(text)
    assert fragment in caught.value.message
    assert not caught.value.message.startswith("value:")


WORDS = ["no", "yes", "On", "null", "~", "true", "1e-3", "1_000", "010", "0x1F", "1:30", ".inf"]
WORDS += [
    "2024-01-01",
    "",
    " ",
    " a",
    "a ",
    "a: b",
    "a #b",
    "#",
    "- a",
    "[a]",
    "{a}",
    "'",
    '"',
    "\\",
]
WORDS += ["&a", "*a", "!a", "%a", "@a", "`a", "a\nb", "\t", "\x07", "é", "\u2028", "a:", ":a", "y"]
WORDS += [
    "---",
    "...",
    "?",
    "-",
    "<<",
    "=",
    "C:\\x",
    "until:layer3",
    "../x y",
    "\U0001f600",
    "\x85",
]


def random_text(rng: random.Random) -> str:
    alphabet = string.printable + "éß\u2028\x85\u00a0\U0001f600"
    return "".join(rng.choices(alphabet, k=rng.randrange(0, 12)))


def test_strings_survive_being_written_and_read() -> None:
    rng = random.Random(1)
    for text in [*WORDS, *(random_text(rng) for _ in range(1000))]:
        written = format_scalar(text)
        assert "\n" not in written
        for line in (f"k: {written}", f"k: {written}  # origin", f"k:\n  - {written}"):
            data = parse(line)["k"]
            assert (data[0] if isinstance(data, list) else data) == text, written
        assert parse(f"{{{written}: 1}}") == {text: 1}


def test_numbers_survive_being_written_and_read() -> None:
    rng = random.Random(2)
    numbers: list[float] = [
        0,
        -0.0,
        1e-5,
        1e16,
        1e300,
        5e-324,
        math.inf,
        -math.inf,
        math.nan,
        10**30,
    ]
    numbers += [rng.randrange(-(10**9), 10**9) for _ in range(300)]
    numbers += [rng.uniform(-1, 1) * 10.0 ** rng.randrange(-30, 30) for _ in range(300)]
    for number in numbers:
        assert same(parse(format_scalar(number)), number)


def test_readers_of_yaml_1_1_see_the_same() -> None:
    values = [True, None, 1e-5, 1e22, 3, 0.1, *(w for w in WORDS if w.isascii())]
    for value in values:
        assert same(yaml.safe_load(format_scalar(value)), value)
