"""vtrain report: one page of a run, on demand and at the end of every fit."""

import json
from pathlib import Path

import pytest

import vtrain.pages.report.report
from tests.helpers.browser import check_source
from tests.helpers.program import Program, TerminalProgram, assert_refused


def test_newest_run_is_the_default(folder: Path, program: Program) -> None:
    assert not Path("runs/tiny-001/report.html").exists()
    done = program("report")
    assert done.code == 0
    assert done.out == "runs/tiny-001/report.html\n"
    assert done.talk[0] == "run: runs/tiny-001"
    assert done.talk[-1].endswith("model card: runs/tiny-001/model-card.md")
    assert check_source(Path("runs/tiny-001/report.html")) == []


def test_quiet_and_elsewhere(folder: Path, program: Program) -> None:
    done = program("report", "runs/tiny-001", "-o", "page.html", "-q")
    assert (done.code, done.out, done.err) == (0, "page.html\n", "")
    assert Path("page-model-card.md").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["runs/tiny-002"], 2, ["runs/tiny-002 is no run folder: not there"]),
        (["tiny.yaml"], 2, ["tiny.yaml is no run folder: not a folder"]),
        (["images"], 2, ["images is no run folder: it holds none of"]),
        (["runs/tiny-001", "-o", "x.pdf"], 2, ["x.pdf does not end with .html", "write to x.html"]),
        (["runs/tiny-001", "-o", "nix/x.html"], 2, ["mkdir -p nix"]),
        (["runs/tiny-001", "--outptu", "x.html"], 2, ["did you mean --output?"]),
    ],
)
def test_refused(
    folder: Path, program: Program, arguments: list[str], code: int, parts: list[str]
) -> None:
    assert_refused(program("report", *arguments), code, *parts)


def test_no_run_at_all(empty: Path, program: Program) -> None:
    done = program("report")
    assert_refused(
        done, 4, "no finished run below runs/", "vtrain fit CONFIG`, or name a run folder"
    )


def test_every_fit_ends_with_its_report(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "train.epochs=1", "train.report=true")
    assert done.code == 0
    assert "report: runs/tiny-002/report.html" in done.talk
    assert "report: runs/tiny-002/report.html" in Path("runs/tiny-002/log.txt").read_text()
    assert Path("runs/tiny-002/model-card.md").exists()
    page = Path("runs/tiny-002/report.html").read_text()
    assert "has not finished" not in page
    assert "6 images cannot show a difference between two models" in page


def test_no_report_where_none_is_wanted(folder: Path, program: Program) -> None:
    done = program("fit", "tiny.yaml", "train.epochs=1", "train.report=false")
    assert done.code == 0
    assert "report" not in done.err
    assert not Path("runs/tiny-002/report.html").exists()


def test_a_run_does_not_fail_for_its_report(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run_dir: Path, **_: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(vtrain.pages.report.report, "write_report", fail)
    done = program("fit", "tiny.yaml", "train.report=true", "train.epochs=1")
    assert done.code == 0
    assert done.out == "runs/tiny-002\n"
    assert "warning: the report could not be written: ValueError('a mistake of ours')" in done.err
    assert "again: vtrain report runs/tiny-002" in done.err
    assert json.loads(Path("runs/tiny-002/result.json").read_text())["epochs"] == 1


def test_a_stopped_run_has_a_report_too(folder: Path, program: Program) -> None:
    Path("runs/tiny-001/result.json").unlink()
    Path("runs/tiny-001/predictions-val.csv").unlink()
    done = program("report", "runs/tiny-001")
    assert done.code == 0
    assert "no predictions-val.csv. Make it with: vtrain fit CONFIG --resume" in done.err
    page = Path("runs/tiny-001/report.html").read_text()
    assert "This run has not finished: 2 epochs so far" in page


def test_pictures_of_a_run_from_elsewhere(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("images")
    done = program("report", "../runs/tiny-001")
    assert done.code == 0
    assert "pictures are missing" not in done.err
    assert "data:image" in Path("../runs/tiny-001/report.html").read_text()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_on_a_terminal(folder: Path, terminal: TerminalProgram, columns: int) -> None:
    code, shown = terminal("report", columns=columns)
    assert code == 0
    assert shown.splitlines()[-1] == "runs/tiny-001/report.html"
    assert "\x1b" not in shown
