"""Hostile names of classes and files, through everything that vtrain prints and writes."""

import atexit
import csv
import html
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.case import Case, NotPossible
from tests.faults.commands import draw_png, place, run, write_config, write_model
from tests.helpers.program import Outcome, TerminalProgram, lasting_lines, without_styles
from vtrain.models.model_file import read_model_file
from vtrain.runs.settings import load_settings
from vtrain.system.text import HARMLESS, printable

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
MAX_NAME = 255  # bytes

# Whether a name can be that of a folder is found out; where not, it comes from a list.
NAMES: Mapping[str, str] = {
    "plain": "plain",
    # markup of the library that draws tables
    "closing markup": "[/]",
    "bold markup": "[bold]x[/bold]",
    "link markup": "[link=https:example.org]x[/link]",
    "unknown markup": "[/nothing] \\[x]",
    # what terminals obey
    "colour": "\x1b[31mred",
    "clear screen": "\x1b[2J\x1b[H",
    "hyperlink": "\x1b]8;;http:x\x1b\\click\x1b]8;;\x1b\\",
    "window title": "\x1b]0;owned\x07",
    "device control": '\x1bP$q"p\x1b\\',
    "lone escape at the end": "end\x1b",
    "8-bit control": "\x9b31m\x9d0;x\x9c",
    "bell and backspace": "bell\x07 abc\x08\x08\x08xyz",
    "carriage return": "shown\rover",
    "line feed": "two\nlines",
    "forged error": "x\nerror: all is lost\nhint: rm -rf",
    "forged continuation": "x\n  y.png: cannot be read",
    "tab": "a\tb",
    "other line ends": "a\x0bb\x0cc\x1cd\x1ee\x85f",
    "unit separators and delete": "\x01\x02\x1f\x7f",
    # Unicode
    "right-to-left override": "\u202egnp.exe\u202c",
    "isolates": "\u2066\u2067x\u2069",
    "zero width": "a\u200bb\u2060c\u00ad",
    "byte order mark": "\ufeffbom",
    "line separators": "a\u2028b\u2029c",
    "combining flood": "Z" + 80 * "\u0336\u0300",
    "family emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "wide": "猫の写真",
    "not text": os.fsdecode(b"\xff\xfe\x80"),
    "surrogate as bytes": os.fsdecode(b"\xed\xa0\x80"),
    "private and unassigned": "\ue000\U000e0001\U0010fffd",
    "255 bytes": 255 * "n",
    "5,000 characters": 5000 * "n",
    "equal when case is folded 1": "straße",
    "equal when case is folded 2": "STRASSE",
    # spreadsheets and CSV
    "formula =": "=cmd|' C'!A0",
    "formula +": "+1+1",
    "formula -": "-1-1",
    "formula @": "@SUM(A1)",
    "formula after a tab": "\t=1",
    "formula after a carriage return": "\r=1",
    "formula after a line feed": "\n=1",
    "quoted formula": "'=1",
    "twice quoted formula": "''=1",
    "wide formula": "\uff1d1",
    "number": "-5",
    "exponent": "1e3",
    "quotes and commas": 'a,"b";\'c\'""',
    "quote": '"',
    # HTML, JSON, templates
    "script": "<script>alert(1)",
    "end of script": "<\u2215script><!--</x>",
    "entities": "&lt;&amp;\"'",
    "templates": "{{ 7*7 }} {% raw %} ${x} <%= 1 %>",
    "prototype": "__proto__",
    "NaN": "NaN",
    # shells, formats, systems
    "option": "--json",
    "dash": "-",
    "home": "~",
    "variables": "$HOME `id` $(id) %PATH%",
    "formats": "%s %d {0} {x!r} \\n \\x1b",
    "backslashes": "..\\..\\x\\",
    "glob": "*?[a-z]**",
    "devices of Windows": "con",
    "spaces": " a  b ",
    "dots": "..",
    "hidden": ".hidden",
    "path": "../a/b",
    "null byte": "a\0b",
    "SQL": "'; DROP TABLE images;--",
    # YAML
    "null": "null",
    "true": "true",
    "no": "no",
    "list item": "- a",
    "mapping": "a: b # c",
    "anchor": "&a *b !!python/object:os.system",
    "document": "---",
}


# Those that an image can have, with a suffix behind it.
FILES = tuple(name for name in NAMES.values() if "/" not in name and "\0" not in name)
TELLING = (
    "unknown markup",
    "8-bit control",
    "forged error",
    "other line ends",
    "right-to-left override",
    "not text",
    "255 bytes",
    "formula =",
    "formula after a line feed",
    "quoted formula",
    "option",
    "glob",
    "list item",
)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a training on classes with all these names printed and wrote, and commands after it.

    `paths` of validation images are in the order of the classes, which is that of labels, and
    `listed` in the order in which commands without labels find them.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    listed: tuple[str, ...]
    fit: Outcome
    evaluation: Outcome
    table: Outcome
    text: Outcome
    lines: Outcome
    rows: Outcome
    embedding: Outcome

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.root / "run"


def as_file(name: str) -> str:
    """A file name for an image that has as much of a name as fits, and is not hidden."""
    if name.startswith("."):
        name = f"x{name}"
    content = os.fsencode(name)[: MAX_NAME - len(".png")]
    return os.fsdecode(content) + ".png"


def can_be_folder(name: str) -> bool:
    """Whether a class folder may have the name."""
    if len(os.fsencode(name)) > MAX_NAME or name.startswith("."):
        return False
    return "/" not in name and "\0" not in name


def compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@cache
def train_on_folders() -> Outputs:
    """Train on class folders with every name that one can have."""
    root = make_folder()
    names = sorted({compose(name): name for name in NAMES.values() if can_be_folder(name)}.items())
    for number, (_, name) in enumerate(names):
        place(root / "train" / name / "0.png", draw_png(number))
        place(root / "train" / name / "1.png", draw_png(number + 1))
        place(root / "val" / name / as_file(name), draw_png(number))
    paths = tuple(str(root / "val" / name / as_file(name)) for _, name in names)
    return collect(root, root / "train", root / "val", tuple(each for each, _ in names), paths)


@cache
def train_on_lists() -> Outputs:
    """Train on lists, which can give classes the names that no folder can have."""
    root = make_folder()
    names = sorted(compose(name) for name in NAMES.values() if not can_be_folder(name))
    for split in ("train", "val"):
        rows = []
        for number, name in enumerate(names):
            rows += [(place(root / split / f"{number}-{i}.png"), name) for i in range(2)]
        with (root / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
    paths = tuple(str(root / "val" / f"{n}-{i}.png") for n in range(len(names)) for i in range(2))
    return collect(root, root / "train.csv", root / "val.csv", tuple(names), paths)


def make_folder() -> Path:
    """A folder that is removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="vtrain-names-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def collect(
    root: Path, train: Path, val: Path, classes: tuple[str, ...], paths: tuple[str, ...]
) -> Outputs:
    """Train, and run every command on the validation images."""
    config = write_config(root, {"train": str(train), "val": str(val)})
    model = root / "run"
    top = str(len(classes))
    done = Outputs(
        root=root,
        classes=classes,
        paths=paths,
        listed=paths if val.suffix else tuple(sorted(paths)),
        fit=run(root, "fit", config),
        evaluation=run(root, "evaluate", val, "-m", model, "--json"),
        table=run(root, "evaluate", val, "-m", model),
        text=run(root, "predict", val, "-m", model, "-k", top),
        lines=run(root, "predict", val, "-m", model, "-k", top, "--json"),
        rows=run(root, "predict", val, "-m", model, "-k", top, "--csv"),
        embedding=run(root, "embed", val, root / "o.npy", "-m", model),
    )
    for name in Outputs.__dataclass_fields__:
        each = getattr(done, name)
        assert not isinstance(each, Outcome) or each.code == 0, (name, each)
    return done


# --- what has to hold ----------------------------------------------------------------------------


def check_shown(text: str) -> None:
    """Nothing but lines of printable characters, none of which starts like one that vtrain says."""
    for line in text.split("\n"):
        odd = [char for char in line if not (char.isprintable() or char in HARMLESS)]
        assert not odd, (odd, line)
    text.encode("utf-8")


def check_html(text: str) -> None:
    """What a page holds of a text: it has an encoding, and no character that makes markup."""
    escaped = html.escape(text)
    escaped.encode("utf-8")
    assert not set("<>\"'") & set(escaped)


def check_cell(cell: str, name: str) -> None:
    """A cell gives the name back, and is no formula to a spreadsheet."""
    assert not cell.startswith(FORMULA_STARTS) or NUMBER.fullmatch(cell), cell
    assert unguard(cell) == name


def unguard(cell: str) -> str:
    """The text of a cell that may have got a `'` to be no formula."""
    inner = cell.lstrip("'")
    return cell[1:] if cell.startswith("'") and inner.startswith(FORMULA_STARTS) else cell


def read_csv(content: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content, newline="")))


def read_file(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def handle_class(name: str, folder: Path) -> None:
    """One class among all: its name comes through everything, and nothing obeys it."""
    outputs = train_on_folders() if can_be_folder(name) else train_on_lists()
    name = compose(name)
    number = outputs.classes.index(name)
    check_descriptions(outputs, name, number)
    check_predictions(outputs, name, number)
    check_files(outputs, name, number)
    shown = printable(name, keep="")
    check_html(shown)
    rows = outputs.table.out.splitlines()
    assert len(rows) == 4 + len(outputs.classes)  # three lines of numbers over all, and a heading
    assert sum(row.startswith(shown.rstrip()) for row in rows[4:]) >= 1
    answers = outputs.text.out.splitlines()
    assert len(answers) == len(outputs.paths)
    assert all(f"{shown} " in answer for answer in answers)


def check_descriptions(outputs: Outputs, name: str, number: int) -> None:
    """Data, model and metrics name the class as it is called."""
    data = json.loads(read_file(outputs.run / "data.json"))
    assert data["classes"][number] == name
    assert data["train"]["per_class"][name] == 2
    assert read_model_file(outputs.run / "model.safetensors").classes == outputs.classes
    result = json.loads(outputs.evaluation.out)
    assert result["classes"][number] == result["per_class"][number]["class"] == name
    assert sum(result["confusion_matrix"][number]) == result["per_class"][number]["support"] > 0


def check_predictions(outputs: Outputs, name: str, number: int) -> None:
    """Each line of JSON and each row of CSV has the class once."""
    lines = outputs.lines.out.removesuffix("\n").split("\n")
    assert len(lines) == len(outputs.lines.out.splitlines()) == len(outputs.paths)
    for line, path in zip(lines, outputs.listed, strict=True):
        assert line.isascii()
        assert line.isprintable()
        check_html(line)
        answer = json.loads(line)
        assert answer["path"] == path
        assert [each["class"] for each in answer["predictions"]].count(name) == 1
    _, *rows = read_csv(outputs.rows.out)
    assert [unguard(row[0]) for row in rows] == list(outputs.listed)
    for row in rows:
        (cell,) = [cell for cell in row[2:-4:2] if unguard(cell) == name]
        check_cell(cell, name)


def check_files(outputs: Outputs, name: str, number: int) -> None:
    """The files of a run, and the index of features."""
    _, *rows = read_csv(read_file(outputs.run / "predictions-val.csv"))
    own = [row for row in rows if unguard(row[1]) == name]
    result = json.loads(outputs.evaluation.out)
    assert len(own) == result["per_class"][number]["support"]
    for row in own:
        check_cell(row[0], outputs.paths[rows.index(row)])
        check_cell(row[1], name)
        assert unguard(row[2]) in outputs.classes
    _, *index = read_csv(read_file(outputs.root / "o.csv"))
    assert [unguard(row[1]) for row in index] == list(outputs.listed)


def handle_file(name: str, folder: Path) -> None:
    """One file: predicted by its name, named when it is damaged or not used, and in a config."""
    file = as_file(name)
    image = place(folder / "images" / file)
    check_named_inputs(folder, image)
    check_damaged(file)
    check_strays(folder, file)
    check_strange_folder(folder, file.removesuffix(".png"))


def check_named_inputs(folder: Path, image: Path) -> None:
    """An image by its path as an argument and in a list, which holds no line ends."""
    model = write_model(folder, ("ant", "bee"))
    listed = b"" if "\n" in image.name else os.fsencode(image) + b"\n"
    answers = 2 if listed else 1
    command = ("predict", image, "-", "-m", model)
    done = run(folder, *command, "--json", stdin=listed)
    assert done.code == 0, done
    paths = [json.loads(line)["path"] for line in done.out.splitlines()]
    assert paths == answers * [str(image)]
    done = run(folder, *command, stdin=listed)
    check_shown(done.out)
    assert done.out.count("\n") == answers
    # Relative, the name itself comes first: as a formula, an option, or the list on stdin.
    with chdir(image.parent):
        done = run(folder, "predict", "-m", model, "--csv", "--", image.name)
    assert done.code == 0, done
    ((cell, *_),) = read_csv(done.out)[1:]
    check_cell(cell, image.name)


@dataclass(frozen=True, slots=True)
class Damages:
    """What commands said of a folder in which an image with each of the names is damaged."""

    bad: Path
    fit: Outcome
    skipping: Outcome
    facts: dict[str, Any]
    evaluation: Outcome
    embedding: Outcome
    index: list[list[str]]


@cache
def damage_all() -> Damages:
    """Sixteen good images in two splits, and the damaged ones beside them."""
    root = make_folder()
    data = root / "data"
    make_good(data)
    bad = data / "train" / "a"
    for name in FILES:
        place(bad / as_file(name), b"no image")
    config = write_config(root, {"train": str(data / "train"), "val": str(data / "val")})
    model = write_model(root, ("a", "b"))
    fit = run(root, "fit", config)
    skipping = run(root, "fit", config, "data.on_bad_image=skip")
    assert (fit.code, skipping.code) == (3, 0), (fit, skipping)
    evaluation = run(root, "evaluate", data / "train", "-m", model, "--json")
    embedding = run(root, "embed", data / "train", root / "o.npy", "-m", model)
    assert (evaluation.code, embedding.code) == (3, 3), (evaluation, embedding)
    facts = json.loads(read_file(root / "run" / "data.json"))
    index = read_csv(read_file(root / "o.csv"))
    return Damages(bad, fit, skipping, facts, evaluation, embedding, index)


def make_good(data: Path) -> None:
    for split in ("train", "val"):
        for number in range(8):
            place(data / split / "ab"[number % 2] / f"{number}.png", draw_png(number))


def check_damaged(file: str) -> None:
    """A damaged image is named once and on one line, and by its own name in data."""
    all_of_them = damage_all()
    path = str(all_of_them.bad / file)
    shown = printable(path, keep="")
    for done, start in ((all_of_them.fit, "  "), (all_of_them.skipping, "warning: skipped ")):
        assert len([line for line in done.talk if line.startswith(f"{start}{shown}: ")]) == 1
    assert [each["path"] for each in all_of_them.facts["bad_images"]].count(path) == 1
    failures = json.loads(all_of_them.evaluation.out)["failures"]
    assert [each["path"] for each in failures].count(path) == 1
    ((_, _, status, _),) = [row for row in all_of_them.index if unguard(row[1]) == path]
    assert status.startswith("error: ")


def show_damages(folder: Path) -> None:
    """Each damaged image takes a line of its own, and none looks like anything else."""
    all_of_them = damage_all()
    outcomes = (all_of_them.fit, all_of_them.skipping, all_of_them.evaluation)
    for done in (*outcomes, all_of_them.embedding):
        check_shown(done.out)
        check_shown(done.err)
    count = len({*map(as_file, FILES)})
    error, *lines, hint = all_of_them.fit.talk
    assert error == f"error: {count} of {count + 16} images cannot be read:"
    assert hint.startswith("hint: repair or remove them")
    assert len(lines) == count
    assert all(line.startswith(f"  {all_of_them.bad}/") for line in lines)
    start = "warning: skipped "
    warnings = [line for line in all_of_them.skipping.talk if line.startswith(start)]
    assert len(warnings) == count
    for done in (all_of_them.evaluation, all_of_them.embedding):
        error, *lines, more, hint = [
            line for line in done.talk if line.startswith(("error: ", "  ", "hint: "))
        ]
        assert (len(lines), more) == (20, f"  and {count - 20} more")


def check_strays(folder: Path, file: str) -> None:
    """A file that is not used and a class that is not known are named on one line."""
    data = folder / "data"
    make_good(data)
    stray = place(data / "val" / "a" / f"{file[:40]}.txt", b"")
    shown = printable(str(stray), keep="")
    config = write_config(folder, {"train": str(data / "train"), "val": str(data / "val")})
    done = run(folder, "evaluate", data / "val", "-m", write_model(folder, ("a", "b")))
    check_shown(done.err)
    _, skipped, *warnings = done.talk
    assert skipped == f"{data}/val: 1 skipped, the first is {shown}: is not named like an image"
    assert all(line.startswith("warning: ") for line in warnings)
    done = run(folder, "fit", config, "--dry-run")
    assert done.code == 0, done
    check_shown(done.err)
    warning = (
        f"warning: data.val: 1 files are not used, such as {shown} (is not named like an image)"
    )
    assert done.talk[0].startswith(warning)
    (data / "val" / "a").rename(data / "val" / f"{file[:40]}.x")
    done = run(folder, "fit", config, "--dry-run")
    assert done.code == 3, done
    check_shown(done.err)
    assert len(done.talk) == 2
    assert f"'{printable(compose(f'{file[:40]}.x'), keep='')}'" in done.talk[0]


def check_strange_folder(folder: Path, name: str) -> None:
    """A folder with the name as data: configs that `init` writes load back to it."""
    data = folder / f"{name}."
    for number in range(4):
        place(data / "ab"[number % 2] / f"{number}.png")
    config = folder / "init.yaml"
    done = run(folder, "init", data, "-o", config)
    check_shown(done.err)
    lost = run(folder, "evaluate", data / "a", "-m", folder / "model.safetensors")
    assert lost.code == 3, lost
    check_shown(lost.err)
    assert len(lost.talk) == 3
    try:
        str(data).encode("utf-8")
    except UnicodeEncodeError:
        assert done.code == 2, done
        assert "is not valid UTF-8, which a config cannot hold" in done.err
        assert not config.exists()
        return
    assert done.code == 0, done
    check_shown(read_file(config))
    assert load_settings(config, []).config.data.train == str(data)
    others = run(folder, "evaluate", data, "-m", write_model(folder, ("a", "b", "c")))
    assert others.code == 0, others
    check_shown(others.err)
    assert len([line for line in others.talk if not line.startswith("warning: ")]) == 2
    done = run(folder, "config", config)
    check_shown(done.out)
    resolved = place(folder / "resolved.yaml", done.out.encode("utf-8"))
    assert load_settings(resolved, []).config == load_settings(config, []).config


# --- all at once ---------------------------------------------------------------------------------


def show_lines(train: Callable[[], Outputs], folder: Path) -> None:
    """Of what is printed and logged nothing is more than a line of text."""
    outputs = train()
    commands = (outputs.fit, outputs.table, outputs.text, outputs.embedding, outputs.evaluation)
    for done in commands:
        check_shown(done.out)
        check_shown(done.err)
    check_shown(read_file(outputs.run / "data.json"))
    check_shown(read_file(outputs.run / "config.resolved.yaml"))
    for line in read_file(outputs.run / "log.txt").removesuffix("\n").split("\n"):
        assert STAMP.match(line)
        check_shown(line)


def show_on_terminal(folder: Path) -> None:
    """On a terminal nothing but styles is sent besides text, and no name ends a line early."""
    outputs = train_on_folders()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTRAIN_CACHE", str(folder))
        terminal = TerminalProgram(patch)
        for command in ("evaluate", "predict"):
            code, text = terminal(
                command, str(outputs.root / "val"), "-m", str(outputs.run), columns=200
            )
            assert code == 0
            for line in lasting_lines(without_styles(text)):
                check_shown(line)
            assert "\x1b]" not in text


def name_classes_in_comment(folder: Path) -> None:
    """The classes in the comment of a new config end no line of it."""
    outputs = train_on_folders()
    config = folder / "init.yaml"
    done = run(folder, "init", outputs.root, "-o", config)
    if done.code:  # the run folder lies there as well
        done = run(folder, "init", outputs.root / "train", "-o", config)
    assert done.code == 0, done
    text = read_file(config)
    check_shown(text)
    head = text.split("\n\n")[0].split("\n")
    assert all(line.startswith("# ") for line in head)
    load_settings(config, [])


def answer_by_foreign_model(folder: Path) -> None:
    """A model file with class names that are no Unicode text, nor bytes that a file can have."""
    image = place(folder / "image.png")
    for name in ("\ud800", "\udc00x", "a\udfff"):
        model = write_model(folder, (name, "ant"))
        done = run(folder, "predict", image, "-m", model, "--json")
        assert (done.code, done.out) == (4, ""), done
        assert "the model's description is damaged" in done.err, done
        check_shown(done.err)


def resume_predictions(form: str, folder: Path) -> None:
    """A file of answers that was cut off anywhere is gone on with: its names are recognised."""
    outputs = train_on_folders()
    names = sorted({*map(as_file, FILES)})
    for name in names:
        place(folder / "images" / name)
    output = folder / f"o.{form}"
    command = ("predict", "-m", outputs.run, "-o", output, "--batch-size", "8")
    with chdir(folder / "images"):
        done = run(folder, *command, "--", *names)
        assert (done.code, done.out) == (0, f"{output}: {len(names)} answers\n"), done
        content = output.read_bytes()
        for end in range(len(content) // 7, len(content), len(content) // 3):
            output.write_bytes(content[:end])
            done = run(folder, *command, "--resume", "--", *names)
            assert done.code == 0, done
            assert output.read_bytes() == content


def log_to_tensorboard(folder: Path) -> None:
    """Class names are no tags."""
    if importlib.util.find_spec("tensorboard") is None:
        raise NotPossible("the package tensorboard is not installed")
    outputs = train_on_folders()
    config = outputs.root / "config.yaml"
    done = run(folder, "fit", config, f"run_dir={folder}/board", "train.tensorboard=true")
    assert done.code == 0, done


def cases(full: bool) -> Iterator[Case]:
    """Every name as a class and as a file, and what takes all at once; some files in short."""
    for title, name in NAMES.items():
        yield Case(f"class: {title}", partial(handle_class, name))
        if name in FILES and (full or title in TELLING):
            yield Case(f"file: {title}", partial(handle_file, name))
    yield Case("all class folders in lines", partial(show_lines, train_on_folders))
    yield Case("all listed classes in lines", partial(show_lines, train_on_lists))
    yield Case("all damaged files in lines", show_damages)
    for form in ("csv", "jsonl"):
        yield Case(f"all files in predictions as {form}", partial(resume_predictions, form))
    yield Case("all classes on a terminal", show_on_terminal)
    yield Case("all classes in a new config", name_classes_in_comment)
    yield Case("class names that are no text", answer_by_foreign_model)
    yield Case("class names for TensorBoard", log_to_tensorboard)
