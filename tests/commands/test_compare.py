"""`vtrain compare` as its user sees it."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers.browser import check_page, check_source
from tests.helpers.made_runs import answer, answers, write_run
from tests.helpers.program import (
    Program,
    TerminalProgram,
    assert_refused,
    lasting_lines,
    without_styles,
)
from tests.helpers.tiny import break_image, draw_image

TWO = ("ant", "bee")
HOSTILE = "<script>alert(1)</script>\x1b[31m[/]"


@pytest.fixture
def pair(empty: Path) -> tuple[str, str]:
    """Two runs on 20 images, of which the second has 8 more right, and pictures of some."""
    first = answers(TWO, "x" * 10 + "." * 10)
    write_run(Path("runs/a"), first)
    write_run(Path("runs/b"), answers(TWO, "x" * 9 + "." + "x" * 9 + "."), seed=4)
    draw_image(first[12].path)
    break_image(first[13].path)
    return "runs/a", "runs/b"


def test_what_is_shown(pair: tuple[str, str], program: Program) -> None:
    done = program("compare", *pair)
    assert done.code == 0
    assert done.out.startswith("2 runs on 20 validation images\n")
    for part in (
        "runs/a     50.0",
        "runs/b is better than runs/a: +40.0 points of top-1, 95 % interval +",
        "seed     0       4",
        "right in runs/b only: 9",
        "images/val/ant/010.jpg: ant, taken for bee (0.90)",
        "  and 6 more (--json lists all)",
        "right in runs/a only: 1",
        "top-1 on the validation images, %",
    ):
        assert part in done.out, part
    assert done.err == ""
    assert "\x1b" not in done.out


def test_quiet_and_json(pair: tuple[str, str], program: Program) -> None:
    write_run(Path("runs/b"), answers(TWO, "x" * 10 + "." * 9), train_digest="z")
    loud, quiet = program("compare", *pair, "--json"), program("compare", *pair, "--json", "-q")
    assert loud.out == quiet.out
    assert quiet.err == ""
    assert [line.partition(":")[0] for line in loud.talk] == ["warning", "warning", "note"]
    found = json.loads(quiet.out)
    assert (found["schema"], found["count"], len(found["warnings"])) == (1, 19, 2)


def test_test_split(pair: tuple[str, str], program: Program) -> None:
    assert_refused(program("compare", *pair, "--split", "test"), 4, "without a test split", "hint")
    for run in pair:
        write_run(Path(run), answers(TWO, "x.x."), split="test")
    done = program("compare", *pair, "--split", "test")
    assert done.code == 0
    assert done.out.startswith("2 runs on 4 test images\n")


@pytest.mark.parametrize(
    ("more", "code", "parts"),
    [
        ((), 2, ["one run alone cannot be compared", "vtrain compare RUN RUN"]),
        (("runs/a",), 2, ["runs/a was given twice"]),
        (("runs/nix",), 2, ["runs/nix is no run folder: not there"]),
        (("runs",), 2, ["runs is no run folder"]),
        (("runs/b", "--split", "train"), 2, ["'--split': 'train' is not one of 'val', 'test'"]),
        (
            ("runs/b", "-o", "page.pdf"),
            2,
            ["page.pdf does not end with .html", "write to page.html"],
        ),
        (("runs/b", "-o", "nix/page.html"), 2, ["mkdir -p nix"]),
        (("half",), 4, ["half holds no predictions-val.csv", "half/config.resolved.yaml"]),
        (("other",), 3, ["no validation image is in all 2 runs", "5 images in elsewhere"]),
    ],
)
def test_mistakes(
    pair: tuple[str, str], program: Program, more: tuple[str, ...], code: int, parts: list[str]
) -> None:
    write_run(Path("half"), None, finished=False)
    rows = [answer(f"other{index}.jpg", "ant", "ant") for index in range(5)]
    write_run(Path("other"), rows, root="elsewhere", digest="o")
    assert_refused(program("compare", pair[0], *more), code, *parts)


class Page(HTMLParser):
    """Text and tags of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("href", "src") or (value or "").startswith(("data:", "#"))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(pair: tuple[str, str], program: Program) -> None:
    done = program("compare", *pair, "-o", "compare.html")
    assert done.code == 0
    assert done.talk == ["page: compare.html"]
    assert check_source(Path("compare.html")) == []
    page = Page(Path("compare.html"))
    assert page.tags.count("img") == 1
    assert page.text.count("no picture") == 9  # a damaged one, and those that are not there
    assert "runs/b is better than runs/a" in page.text
    assert "Right in runs/b only: 9" in page.text
    assert "script" not in page.tags
    assert page.tags.count("svg") >= 2


def test_hostile_names(empty: Path, program: Program) -> None:
    classes = (HOSTILE, "=2+2")
    run = f"runs/{HOSTILE.replace('/', '')}"
    first = [answer(f"{HOSTILE.replace('/', '')}.jpg", "=2+2", HOSTILE)]
    write_run(Path("runs/a"), first, classes=classes)
    write_run(Path(run), [answer(first[0].path.name, "=2+2", "=2+2")], classes=classes)
    done = program("compare", "runs/a", run, "-o", "x.html")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert "=2+2, taken for <script>alert(1)</script>\\x1b[31m[/] (0.90)" in done.out
    page = Page(Path("x.html"))
    assert "script" not in page.tags
    assert "taken for <script>alert(1)</script>\\x1b[31m[/]" in page.text
    assert "\x1b" not in page.text
    assert program("compare", "runs/a", run, "--json").code == 0
    check_page(Path("x.html"))


def test_many_runs_and_classes_in_a_browser(empty: Path, program: Program) -> None:
    names = [f"class with a long name, number {index}" for index in range(60)]
    runs = []
    for index in range(8):
        right = "".join("x" if (number * (index + 3)) % 7 else "." for number in range(120))
        runs.append(f"runs/a folder with a rather long name for a run {index}")
        write_run(Path(runs[-1]), answers(names, right), seed=index, classes=names)
    assert program("compare", *runs, "-o", "x.html").code == 0
    check_page(Path("x.html"))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_terminal_widths(pair: tuple[str, str], terminal: TerminalProgram, columns: int) -> None:
    code, shown = terminal("compare", *pair, columns=columns)
    assert code == 0
    lines = lasting_lines(without_styles(shown))
    plot = lines[lines.index("top-1 on the validation images, %") :]
    assert max(map(len, plot)) <= columns
    table = lines[1 : lines.index("")]
    assert max(map(len, table)) <= columns


def test_real_runs(folder: Path, program: Program) -> None:
    more = ("seed=5", "train.epochs=1", "run_dir=runs/other")
    assert program("fit", "tiny.yaml", "-q", *more).code == 0
    done = program("compare", "runs/tiny-001", "runs/other", "-o", "page.html")
    assert done.code == 0, done.err
    assert "2 runs on 6 validation images" in done.out
    assert "train.epochs" in done.out
    assert "no picture" not in Page(Path("page.html")).text
    assert not any(line.startswith("warning") for line in done.talk)
