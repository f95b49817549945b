"""Configs with a mistake: each must be refused with the right lines, in one report, and fast.

Most stand in `wrong_configs.txt`; here are those that are no plain text.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import vtrain.cli
from tests.faults.case import Case
from tests.helpers.program import VTRAIN, environment
from vtrain.config.yaml12 import MAX_BYTES

TABLE = Path(__file__).with_suffix(".txt")
BASE = """\
model:
  backbone: resnet18
data:
  train: images/train
  val: images/val
"""
HINT = "hint: vtrain schema lists every key with its default and meaning"
# Nine aliases of nine aliases, nine times over: 3,486,784,401 values in nine lines.
BILLION_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
NOT_UTF_8 = "is not UTF-8; this is not a text file, or saved in another encoding"
MISSING = (
    "c.yaml:1:1: data.train: missing; such as train: data/flowers/train",
    "c.yaml:1:1: data.val: no validation images; set data.val to a folder, or val_fraction: 0.2",
    "c.yaml:1:1: model.backbone: missing; such as backbone: resnet50",
)
PROCESS_SECONDS = 20.0


@dataclass(slots=True)
class Wrong:
    """What `c.yaml` contains, what is given on the command line, and what stderr must be.

    `lines` are all of stderr where the first begins with `error: `; else those of the report
    between the one that counts them and the hint. `path` is what is given as the config.
    """

    name: str
    content: bytes
    lines: list[str] = field(default_factory=list)
    settings: Sequence[str] = ()
    path: str = "c.yaml"

    @property
    def talk(self) -> list[str]:
        """Stderr, line by line."""
        if self.lines[0].startswith("error: "):
            return self.lines
        more = re.fullmatch(r"and (\d+) more", self.lines[-1])
        number = len(self.lines) - 1 + int(more[1]) if more else len(self.lines)
        count = "1 mistake" if number == 1 else f"{number} mistakes"
        return [f"error: {count} in {self.path}", *self.lines, HINT]


def top(name: str, text: str, *lines: str) -> Wrong:
    """`text` below a config that is right, from line 6."""
    return Wrong(name, (BASE + text).encode(), list(lines))


def setting(name: str, given: str, *lines: str) -> Wrong:
    """A setting on the command line beside a config that is right."""
    return Wrong(name, BASE.encode(), list(lines), (given,))


def whole(name: str, content: bytes, *lines: str) -> Wrong:
    """All of a file."""
    return Wrong(name, content, list(lines))


# What is no text, or what nobody could see in one.
SPECIAL = [
    top(
        "tab",
        "optim:\n\tlr: 1\n",
        "error: c.yaml:7:1: not valid YAML: a tab; YAML is indented with spaces",
    ),
    top(
        "tab after a space",
        "optim:\n  lr: 1\n \tmomentum: 0\n",
        "error: c.yaml:8:2: not valid YAML: a tab; YAML is indented with spaces",
    ),
    top(
        "space that only looks like one",
        "seed:\xa05\n",
        "error: c.yaml:6:1: not valid YAML: expected 'key: value'; "
        "is a colon or the space after it missing?",
    ),
    top(
        "byte order mark in the middle",
        "\ufeffsede: 1\n",
        r"c.yaml:6:1: \ufeffsede: unknown key; did you mean seed?",
    ),
    top(
        "more mistakes than anyone reads",
        "".join(f"x{i}: 1\n" for i in range(150)),
        *(
            f"c.yaml:{6 + i}:1: x{i}: unknown key; "
            "known here: run_dir, seed, model, freeze, data, optim, train"
            for i in range(100)
        ),
        "and 50 more",
    ),
    whole(
        "billion laughs",
        BILLION_LAUGHS.encode(),
        "error: c.yaml:1:20: not valid YAML: an alias within itself, or too many aliases",
    ),
    whole(
        "40,000 braces",
        b"{a: " * 40_000,
        "error: c.yaml:1:129: not valid YAML: nested more than 32 levels deep",
    ),
    whole(
        "staircase",
        "\n".join(" " * i + "a:" for i in range(400)).encode(),
        "error: c.yaml:32:32: not valid YAML: nested more than 32 levels deep",
    ),
    whole("empty file", b"", *MISSING),
    whole("UTF-16", "seed: 1\n".encode("utf-16"), f"error: c.yaml:1:1: byte 0xff {NOT_UTF_8}"),
    whole("Latin-1", "# Größe\n".encode("latin-1"), f"error: c.yaml:1:5: byte 0xf6 {NOT_UTF_8}"),
    whole(
        "Latin-1 behind a byte order mark",
        b"\xef\xbb\xbfseed: 1\n# Gr\xf6\xdfe\n",
        f"error: c.yaml:2:5: byte 0xf6 {NOT_UTF_8}",
    ),
    whole(
        "Latin-1 behind line ends of old Macs",
        b"seed: 1\r# Gr\xf6\xdfe\r",
        f"error: c.yaml:2:5: byte 0xf6 {NOT_UTF_8}",
    ),
    whole(
        "control character behind line ends of old Macs",
        b"seed: 1\rrun_dir: \x01\r",
        "error: c.yaml:2:10: character U+0001 is not allowed in YAML",
    ),
    whole("PNG", b"\x89PNG\r\n\x1a\n\0\0", f"error: c.yaml:1:1: byte 0x89 {NOT_UTF_8}"),
    whole("overlong UTF-8", b"seed: \xc0\xaf\n", f"error: c.yaml:1:7: byte 0xc0 {NOT_UTF_8}"),
    whole(
        "cut within a character",
        "run_dir: ü".encode()[:-1],
        f"error: c.yaml:1:10: byte 0xc3 {NOT_UTF_8}",
    ),
    whole(
        "surrogate in UTF-8",
        b"run_dir: \xed\xa0\x80\n",
        f"error: c.yaml:1:10: byte 0xed {NOT_UTF_8}",
    ),
    whole(
        "checkpoint",
        b"PK\x03\x04\0\0\x08\x08",
        "error: c.yaml:1:3: character U+0003 is not allowed in YAML",
    ),
    whole("NUL", b"seed: \0\n", "error: c.yaml:1:7: character U+0000 is not allowed in YAML"),
    whole(
        "escape", b"seed: \x1b[31m\n", "error: c.yaml:1:7: character U+001B is not allowed in YAML"
    ),
    whole(
        "larger than allowed",
        b"#" * (MAX_BYTES + 1),
        "error: c.yaml: larger than 250,000 bytes; this is not a config",
    ),
    whole(
        "byte order mark and a mistake",
        b"\xef\xbb\xbfsede: 1\n" + BASE.encode(),
        "c.yaml:1:1: sede: unknown key; did you mean seed?",
    ),
    whole(
        "line ends of Windows and a mistake",
        f"{BASE}sede: 1\n".replace("\n", "\r\n").encode(),
        "c.yaml:6:1: sede: unknown key; did you mean seed?",
    ),
    whole(
        "line ends of old Macs and a mistake",
        f"{BASE}sede: 1\n".replace("\n", "\r").encode(),
        "c.yaml:6:1: sede: unknown key; did you mean seed?",
    ),
    setting(
        "setting with an escape",
        "seed=\x1b[31m1",
        r"command line: seed=\x1b[31m1: character U+001B is not allowed in YAML",
    ),
    setting(
        "setting with an escape in its key",
        "se\x1b[31med=1",
        r"command line: se\x1b[31med=1: expected key=value, such as train.epochs=5",
    ),
    setting(
        "setting with a newline and a key",
        "seed=1\ntrain.epochs: 5",
        r"command line: seed=1\ntrain.epochs: 5: not valid YAML: expected 'key: value'; "
        "is a colon or the space after it missing?",
    ),
    setting(
        "setting with a newline",
        "seed=1\n2",
        r"command line: seed=1\n2: got '1 2', expected a whole number from 0 to 4294967295",
    ),
    setting(
        "setting with two documents",
        "seed=1\n---\n2",
        r"command line: seed=1\n---\n2: not valid YAML: "
        "a second document begins here; one config per file",
    ),
    setting(
        "setting with tabs",
        "seed=\t\t",
        r"command line: seed=\t\t: got null, expected a whole number from 0 to 4294967295",
    ),
    setting(
        "setting with a byte that is not UTF-8",
        "seed=\udcff",
        r"command line: seed=\udcff: character U+DCFF is not allowed in YAML",
    ),
]
# A file whose name looks like a line of its own, in red.
STRANGE = "a\nerror: \x1b[31m.yaml"


def cases(full: bool) -> Iterator[Case]:
    """Each wrong config: in a process of its own, whose time counts, or in this one."""
    wrong = [*read_table(), *SPECIAL]
    for number, each in enumerate(wrong):
        command = ("config", "fit")[number % 2]
        handle = refuse_in_a_process if full else refuse_here
        yield Case(each.name, partial(handle, command, each))
    yield Case("name of the config with a newline", refuse_strange_name)
    if not full:  # in the table, the time shows it
        yield Case("nothing heavy is imported", partial(refuse_lightly, wrong[::9]))


def read_table() -> list[Wrong]:
    """The cases of `wrong_configs.txt`, whose head explains the form."""
    wrong: list[Wrong] = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        sign, text = line[:4], expand(line[4:])
        if not line or line.startswith("#"):
            continue
        if sign == "  | ":
            wrong[-1].content += f"{text}\n".encode()
        elif sign == "  $ ":
            wrong[-1].settings = shlex.split(text)
        elif sign == "  @ ":
            wrong[-1].path = text
        elif sign == "  > ":
            wrong[-1].lines.append(text)
        else:
            wrong.append(Wrong(line, b""))
    return [place(each) for each in wrong]


def expand(text: str) -> str:
    """`⟨ab*3⟩` as `ababab`."""
    return re.sub(r"⟨(.+?)\*(\d+)⟩", lambda match: match[1] * int(match[2]), text)


def place(wrong: Wrong) -> Wrong:
    """Put the lines of a case where its name says."""
    name, _, where = wrong.name.removesuffix(")").partition(" (")
    text = wrong.content.decode()
    above, below = BASE.split("data:")
    content = {
        "": BASE + text,
        "model": f"{above}{indent(text)}data:{below}",
        "data": BASE + indent(text),
        "file": text,
    }[where]
    return Wrong(name, content.encode(), wrong.lines, wrong.settings, wrong.path)


def indent(text: str) -> str:
    """Each line two columns to the right."""
    return "".join(f"  {line}\n" for line in text.splitlines())


def make_folder(folder: Path, wrong: Wrong) -> None:
    """The config, and what the paths in configs lead to."""
    (folder / "c.yaml").write_bytes(wrong.content)
    for name in ("images/train", "images/val"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("notes.md", "images.zip"):
        (folder / name).touch()
    for name in ("pipe", "pipe.tar", "pipe.csv", "pipe.pth"):
        if not (folder / name).exists():
            os.mkfifo(folder / name)
    if not (folder / "loop").is_symlink():
        (folder / "loop").symlink_to("loop")


def refuse_here(command: str, wrong: Wrong, folder: Path) -> None:
    """The command refuses it in this process."""
    make_folder(folder, wrong)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = vtrain.cli.main([command, wrong.path, *wrong.settings])
    told = err.getvalue().replace(str(folder), "HERE")
    check(command, code, out.getvalue(), told, wrong.talk)


def refuse_in_a_process(command: str, wrong: Wrong, folder: Path) -> None:
    """`python -m vtrain` refuses it."""
    make_folder(folder, wrong)
    done = run_in(folder, *VTRAIN, command, wrong.path, *wrong.settings)
    told = os.fsdecode(done.stderr).replace(str(folder), "HERE")
    check(command, done.returncode, os.fsdecode(done.stdout), told, wrong.talk)


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end in a folder; nothing waits for a terminal or a pipe."""
    return subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=PROCESS_SECONDS,
        check=False,
    )


def check(command: str, code: int, out: str, err: str, talk: list[str]) -> None:
    """Exit code 2, nothing on stdout, and on stderr exactly `talk`, which a terminal can take."""
    assert code == 2, f"{command} ended with {code}: {err}"
    assert out == ""
    # The hint of a wrong command line shows the command's own usage.
    expected = [line.replace("vtrain config CONFIG", f"vtrain {command} CONFIG") for line in talk]
    assert err.splitlines() == expected, f"{command}: {err!r}, not {expected!r}"
    assert err.replace("\n", "").isprintable()
    assert max(map(len, err.splitlines())) <= 700


def refuse_strange_name(folder: Path) -> None:
    """The name of a file cannot add a line to the report."""
    make_folder(folder, top("", "sede: 1\n"))
    (folder / "c.yaml").rename(folder / STRANGE)
    done = run_in(folder, *VTRAIN, "config", STRANGE)
    shown = r"a\nerror: \x1b[31m.yaml"
    mistake = f"{shown}:6:1: sede: unknown key; did you mean seed?"
    talk = [f"error: 1 mistake in {shown}", mistake, HINT]
    check("config", done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr), talk)


LIGHT = """
import contextlib, io, json, sys
import vtrain.cli
for folder, arguments in json.load(open("cases.json")):
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()) as err:
        code = vtrain.cli.main(arguments)
    assert code == 2, (arguments, err.getvalue())
    heavy = {"torch", "torchvision", "numpy", "PIL", "safetensors"} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""


def refuse_lightly(wrong: Sequence[Wrong], folder: Path) -> None:
    """No mistake costs the import of torch, also not in `fit`."""
    runs = []
    for number, each in enumerate(wrong):
        here = folder / str(number)
        here.mkdir()
        make_folder(here, each)
        command = ("fit", "config")[number % 2]
        runs.append((str(here), [command, each.path, *each.settings]))
    (folder / "cases.json").write_text(json.dumps(runs))
    done = run_in(folder, sys.executable, "-c", LIGHT)
    assert done.returncode == 0, os.fsdecode(done.stderr)
    assert done.stdout == b""
