"""Configs changed at random: each loads, or is refused with a report that a person can use."""

import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

from tests.faults.case import Case
from vtrain.config.dump import dump_config
from vtrain.config.yaml12 import MAX_BYTES, MAX_NODES
from vtrain.errors import ConfigError
from vtrain.runs.settings import load_settings

CONFIGS = Path(__file__).parents[2] / "configs"
HINT = "vtrain schema lists every key with its default and meaning"
PER_CASE = 10
SECONDS = 5.0  # for one config, read twice
MAX_REPORT = 50_000  # characters

# Values that are likely to be taken for something else, one a line.
NASTY = r"""
0
-0
-1
1e400
.nan
.inf
0x1F
0o17
010
1_000
1:30
2024-01-01
99999999999999999999
1e-3x
true
yes
off
null
~
None
auto
''
"
[]
{}
[a]
{a: 1}
{a: {b: {c: d}}}
- a
---
...
? a
|
>
>-2
@a
`a
#
]
}
<<: *a
*a
&a
!!int
!!str 1
!!python/object:os.system
!env
! x
%a
"\e[31m"
"\0"
"\ud800"
"\u202e"
 1
﻿1
../..
/
~/x
/dev/null
/dev/zero
until:
until:layer3
resnet50
simple_cnn
mlp
head
lp-ft
cuda:999
DEFAULT
IMAGENET1K_V1
[{pattern: '*', lr_scale: 1}]
[{pattern: '[', lr_scale: null}]
""".strip().split("\n")
NASTY += ["9" * 5000, "0x" + "f" * 5000, "x" * 20_000, "*" * 500 + "b", "[" * 400, "{a: " * 60]
SYNTAX = ["\t", " ", "\n", ":", ": ", "- ", "#", " #", "'", '"', "[", "]", "{", "}", ",", "&a "]
SYNTAX += [
    "*a",
    "!",
    "!!",
    "|",
    ">",
    "%",
    "@",
    "`",
    "?",
    "? ",
    "\r",
    "---\n",
    "...\n",
    "\\",
    "\x00",
]


def cases(full: bool) -> Iterator[Case]:
    """The same configs in both forms, more of them in the long one."""
    for number in range(50 if full else 12):
        first = number * PER_CASE
        name = f"seeds {first} to {first + PER_CASE - 1}"
        yield Case(name, partial(try_seeds, range(first, first + PER_CASE)))
    for name, text in bombs().items():
        yield Case(name, partial(try_config, text.encode(), name))


def bombs() -> dict[str, str]:
    """Little text that asks for much work, and much text."""
    base = "model: {backbone: resnet18}\ndata: {train: ., val: .}\n"
    laughs = "".join(f"x{i + 1}: &x{i + 1} [*x{i}, *x{i}]\n" for i in range(40))
    room = MAX_BYTES - 500
    return {
        "doubled forty times": f"{base}x0: &x0 [a]\n{laughs}",
        "list of 20,000": f"{base}freeze: [{'a,' * 20_000}]\n",
        "as many unknown keys as there may be": base
        + "".join(f"k{i}: 1\n" for i in range(MAX_NODES // 2 - 10)),
        "as many wrong rules as there may be": base
        + "freeze:\n"
        + "- {pattern: layr4, lr_scale: -1}\n" * (MAX_NODES // 5 - 10),
        "one key set a thousand times": base + "seed: 1\n" * 1000,
        "a comment to the limit": f"{base}#{'x' * room}\n",
        "blank lines to the limit": base + "\n" * room,
        "a value to the limit": f"{base}run_dir: {'x' * room}\n",
        "a quoted value to the limit": f"{base}run_dir: '{' x' * (room // 2)}'\n",
        "a folded value to the limit": f"{base}run_dir: >\n" + "  x\n" * (room // 4),
        "dashes to the limit": base + "- " * (room // 2),
        "question marks to the limit": base + "? " * (room // 2),
        "brackets to the limit": base + "[" * room,
        "anchors to the limit": base + "".join(f"a{i}: &a{i} 1\n" for i in range(2000)),
        "a pattern of many stars": f"{base}freeze: [{{pattern: '{'*a' * 5000}b', lr_scale: 1}}]\n",
    }


def try_seeds(seeds: range, folder: Path) -> None:
    """Each seed makes one config."""
    for seed in seeds:
        try_config(mutate(random.Random(seed)), f"seed {seed}", folder)


def try_config(content: bytes, name: str, folder: Path) -> None:
    """It loads and survives being written, or both tries to load it give the same fit report."""
    (folder / "c.yaml").write_bytes(content)
    started = time.perf_counter()
    # Paths in configs are relative to the working directory: the data is not there.
    with chdir(folder), alarm(SECONDS):
        first, second = report(), report()
    what = f"{name}: {content[:2000]!r}: "
    assert time.perf_counter() - started < SECONDS, what
    assert first == second, f"{what}{first!r}, and then {second!r}"
    if first is not None:
        check_report(first, content)


def report() -> str | None:
    """What `c.yaml` is refused with; None where it loads."""
    try:
        loaded = load_settings(Path("c.yaml"))
    except ConfigError as error:
        return f"{error.message}\n{error.hint}" if error.hint else error.message
    for origins in (None, loaded.origins):
        Path("again.yaml").write_text(dump_config(loaded.config, origins), encoding="utf-8")
        assert load_settings(Path("again.yaml")).config == loaded.config
    return None


def check_report(message: str, content: bytes) -> None:
    """Not empty, printable, bounded, and every place in it is in the file."""
    assert 0 < len(message) <= MAX_REPORT, f"{len(message)} characters"
    head, *lines = message.removesuffix(f"\n{HINT}").split("\n")
    count = re.fullmatch(r"(\d+) mistakes? in c\.yaml", head)
    if not count:
        assert not lines, "only a report of mistakes has several lines"
        lines = [head]
    elif more := re.fullmatch(r"and (\d+) more", lines[-1]):
        assert int(count[1]) == len(lines) - 1 + int(more[1])
        lines.pop()
    else:
        assert int(count[1]) == len(lines)
    ends = [len(line) for line in split_lines(content)]
    places = []
    for line in lines:
        assert line.isprintable(), line
        assert len(line) <= 700, f"{len(line)} characters in a line"
        place = re.match(r"c\.yaml:(\d+):(\d+): .", line)
        assert place or line.startswith("c.yaml: larger than "), line
        if place:
            row, column = int(place[1]), int(place[2])
            assert 1 <= row <= len(ends), f"{line}: the file has {len(ends)} lines"
            assert 1 <= column <= ends[row - 1] + 1, f"{line}: the line has {ends[row - 1]} columns"
            places.append((row, column))
    assert places == sorted(places), "not in the order of the file"


def split_lines(content: bytes) -> list[str]:
    """The lines as YAML counts them; after the last line end comes one that is empty."""
    text = content.decode("utf-8-sig", "replace")
    return re.split("\r\n|[\r\n\x85\u2028\u2029]", text)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """End what does not end by itself, where signals can be had."""
    if current_thread() is not main_thread():
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sources() -> list[str]:
    """Every config of the project, the reference too, and two that are short."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(CONFIGS.glob("*.yaml"))]
    # Only "." is there for all of them.
    texts = [re.sub(r"(?m)^(  (train|val|test): )[\w/-]+$", r"\1.", text) for text in texts]
    short = "model:\n  backbone: resnet18\ndata:\n  train: .\n  val: .\nrun_dir: x\nseed: 3\n"
    rules = "freeze:\n  - {pattern: layer4, lr_scale: 0.5}\n  - pattern: '*'\n    lr_scale: null\n"
    return [*texts, *[short] * 5, *[short + rules] * 3]


def mutate(rng: random.Random) -> bytes:
    """A config with one to six changes."""
    lines = rng.choice(sources()).split("\n")
    if len(lines) > 80 and rng.random() < 0.7:  # comments are dull, and slow to read
        lines = [line for line in lines if not line.lstrip().startswith("#")]
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        lines = rng.choice(CHANGES)(lines, rng) or [""]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return change_bytes(content, rng) if rng.random() < 0.2 else content


Change = Callable[[list[str], random.Random], list[str]]


def delete_lines(lines: list[str], rng: random.Random) -> list[str]:
    """Up to four lines are gone."""
    start = rng.randrange(len(lines))
    return lines[:start] + lines[start + rng.randint(1, 4) :]


def repeat_lines(lines: list[str], rng: random.Random) -> list[str]:
    """A few lines again somewhere else."""
    start, place = rng.randrange(len(lines)), rng.randrange(len(lines) + 1)
    return lines[:place] + lines[start : start + rng.randint(1, 4)] + lines[place:]


def swap_lines(lines: list[str], rng: random.Random) -> list[str]:
    """Two lines change places."""
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines = list(lines)
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def indent_line(lines: list[str], rng: random.Random) -> list[str]:
    """A line begins further left or right, or with a tab."""
    place = rng.randrange(len(lines))
    start = rng.choice(["", " ", "  ", "   ", "    ", "\t", " \t", "- ", "? ", " " * 200])
    return [*lines[:place], start + lines[place].lstrip(), *lines[place + 1 :]]


def replace_value(lines: list[str], rng: random.Random) -> list[str]:
    """What follows a colon is something nasty, or what follows another."""
    places = [i for i, line in enumerate(lines) if ":" in line and line.lstrip()[:1] != "#"]
    if not places:
        return lines
    place = rng.choice(places)
    other = lines[rng.choice(places)].partition(":")[2].strip()
    value = rng.choice(NASTY) if rng.random() < 0.8 else other
    return [*lines[:place], f"{lines[place].partition(':')[0]}: {value}", *lines[place + 1 :]]


def change_key(lines: list[str], rng: random.Random) -> list[str]:
    """A key with a letter too few, too many or other, or something nasty for a key."""
    place = rng.randrange(len(lines))
    key, colon, value = lines[place].partition(":")
    if not colon:
        return lines
    cut = rng.randrange(len(key) + 1)
    key = rng.choice([key[:cut] + key[cut + 1 :], key[:cut] + "x" + key[cut:], key.upper()])
    if rng.random() < 0.2:
        key = rng.choice(NASTY)
    return [*lines[:place], key + colon + value, *lines[place + 1 :]]


def insert_syntax(lines: list[str], rng: random.Random) -> list[str]:
    """A character that means something in YAML, anywhere."""
    place = rng.randrange(len(lines))
    cut = rng.randrange(len(lines[place]) + 1)
    line = lines[place][:cut] + rng.choice(SYNTAX) + lines[place][cut:]
    return [*lines[:place], line, *lines[place + 1 :]]


def splice(lines: list[str], rng: random.Random) -> list[str]:
    """The head of one config and the tail of another."""
    other = rng.choice(sources()).split("\n")
    return lines[: rng.randrange(len(lines) + 1)] + other[rng.randrange(len(other)) :]


def nest(lines: list[str], rng: random.Random) -> list[str]:
    """A part of the config is moved below another key, or into brackets."""
    place = rng.randrange(len(lines))
    if rng.random() < 0.5:
        depth = rng.choice([1, 2, 40])
        deep = [" " * i + "x:" for i in range(depth)]
        return [*lines[:place], *deep, *(" " * depth + line for line in lines[place:])]
    depth = rng.choice([1, 2, 40])
    key, _, value = lines[place].partition(":")
    wrapped = f"{key}: {'[' * depth}{value.strip()}{']' * depth}"
    return [*lines[:place], wrapped, *lines[place + 1 :]]


def use_alias(lines: list[str], rng: random.Random) -> list[str]:
    """One value is an anchor, and another its alias."""
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines = list(lines)
    lines[one] = re.sub(r": *", ": &a ", lines[one], count=1)
    lines[other] = re.sub(r":.*", ": *a", lines[other], count=1)
    return lines


CHANGES: tuple[Change, ...] = (
    delete_lines,
    repeat_lines,
    swap_lines,
    indent_line,
    replace_value,
    replace_value,
    change_key,
    insert_syntax,
    splice,
    nest,
    use_alias,
)


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes that are not UTF-8, another encoding, other line ends, or a short end."""
    changed = bytearray(content)
    kind = rng.randrange(5)
    if kind == 0 and changed:
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        place = rng.randrange(len(changed) + 1)
        changed[place:place] = rng.randbytes(rng.randint(1, 8))
    elif kind == 2:
        text = content.decode("utf-8", "replace")
        return text.encode(rng.choice(["utf-16", "latin-1", "utf-32", "cp500"]), "replace")
    elif kind == 3:
        return content.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\x0b", "\u2028".encode()]))
    else:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)
