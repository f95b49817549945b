"""vtrain suspects: the ranking in every form, the page, and runs that cannot be asked."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.program import Program, TerminalProgram, assert_refused, without_styles
from tests.helpers.tiny import break_image, draw_image

RUN = "runs/tiny-001"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_table_csv_and_json_say_the_same(folder: Path, program: Program) -> None:
    table = program("suspects", "--top", "4")
    assert table.code == 0
    assert table.talk == [
        f"run: {RUN}",
        f"model: {RUN}/model.safetensors, fp32",
        "the 4 most suspect of 18 labels (train): a ranking to look through, no verdict",
    ]
    assert table.out.splitlines()[0].split()[:2] == ["score", "label"]
    plain = program("suspects", RUN, "--top", "4", "-q", "--json")
    assert (plain.code, plain.err) == (0, "")
    found = json.loads(plain.out)
    assert (found["schema"], found["count"], found["judged"]) == (1, 18, 18)
    assert found["notes"] == found["failures"] == []
    suspects = found["suspects"]
    assert [each["rank"] for each in suspects] == [1, 2, 3, 4]
    scores = [each["score"] for each in suspects]
    assert scores == sorted(scores, reverse=True)
    for line, each in zip(table.out.splitlines()[1:], suspects, strict=True):
        assert line.split()[0] == f"{each['score']:.3f}"
        assert line.split()[-1] == each["path"]
        assert Path(each["path"]).parent.name == each["label"] != each["suggested"]
        assert all(other["label"] != each["label"] for other in each["against"])
    rows = list(csv.DictReader(io.StringIO(program("suspects", "--csv", "--top", "4").out)))
    assert [row["path"] for row in rows] == [each["path"] for each in suspects]
    assert list(rows[0]) == [
        *("rank", "path", "split", "label", "suggested", "score", "label_probability"),
        *("suggested_probability", "neighbors", "neighbors_agreeing"),
    ]


@pytest.mark.parametrize(("split", "count"), [("val", 6), ("both", 24)])
def test_splits(folder: Path, program: Program, split: str, count: int) -> None:
    rows = json.loads(program("suspects", "--split", split, "--json").out)["suspects"]
    assert len(rows) == count
    assert {row["split"] for row in rows} == ({"val"} if split == "val" else {"train", "val"})
    assert all(f"images/{row['split']}/" in row["path"] for row in rows)


def test_page(folder: Path, program: Program) -> None:
    done = program("suspects", "--top", "3", "-o", "page.html")
    assert done.code == 0
    assert "page: page.html" in done.talk
    text = Path("page.html").read_text()
    assert text.count('<li class="suspect">') == 3
    assert "no verdict" in text
    assert text.count("data:image/jpeg;base64,") > 3
    assert "<script" not in text


def test_hostile_names(folder: Path, program: Program) -> None:
    bad = "=<b>\x1b[31m\n&"
    for split in ("train", "val"):
        Path(f"images/{split}/bee").rename(f"images/{split}/{bad}")
    shutil.rmtree(RUN)
    assert program("fit", "tiny.yaml", "-q", "train.epochs=1").code == 0
    done = program("suspects", "-o", "page.html")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert len(done.out.splitlines()) == 19
    text = Path("page.html").read_text()
    assert "<b>" not in text
    assert "=&lt;b&gt;\\x1b[31m\\n&amp;" in text
    rows = list(csv.DictReader(io.StringIO(program("suspects", "--csv").out, newline="")))
    assert any(row["label"] == f"'{bad}" for row in rows)
    assert {row["suggested"] for row in rows} <= {"ant", "cow", f"'{bad}"}


def test_changed_and_damaged_images_are_said(folder: Path, program: Program) -> None:
    bad = break_image(Path("images/train/bee/000.jpg"))
    draw_image(Path("images/train/cow/new.png"), seed=7)
    done = program("suspects", "--top", "2")
    assert done.code == 0
    assert (
        "warning: data.train has changed since the run was made: 18 images then, 19 now"
        in done.talk
    )
    assert any(line.startswith(f"warning: left out {bad}: ") for line in done.talk)
    assert any(line.startswith("1 of 19 images cannot be judged") for line in done.talk)


def test_the_only_image_of_a_class_is_not_accused(folder: Path, program: Program) -> None:
    for path in list(Path("images").glob("*/cow/*"))[1:]:
        path.unlink()
    Path("images/val/cow").mkdir(exist_ok=True)
    found = json.loads(program("suspects", "--split", "both", "--json").out)
    labels = {each["label"] for each in found["suspects"]}
    assert labels == {"ant", "bee"}
    assert found["count"] - found["judged"] == 1


def test_images_that_moved(folder: Path, program: Program) -> None:
    Path("images").rename("elsewhere")
    done = program("suspects", RUN)
    assert_refused(
        done,
        3,
        f"error: the images of {RUN} are not where they were: ",
        "hint: put them back, or start a run with the images as they are now",
    )


def test_a_run_without_a_model_yet(folder: Path, program: Program) -> None:
    Path(RUN, "model.safetensors").unlink()
    assert_refused(
        program("suspects", RUN), 4, f"{RUN} holds no model.safetensors", "hint: ", "--resume"
    )


def test_a_run_without_its_config(folder: Path, program: Program) -> None:
    Path(RUN, "config.resolved.yaml").unlink()
    assert_refused(program("suspects", RUN), 4, "does not say what it was trained on")


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["nix"], 2, ["nix is no run folder"]),
        (["images"], 2, ["images is no run folder"]),
        (["-o", "page.txt"], 2, ["does not end with .html"]),
        (["-o", "nix/page.html"], 2, ["mkdir -p nix"]),
        (["--csv", "--json"], 2, ["--json and --csv were both given"]),
        (["--split", "test"], 2, ["test"]),
        (["--top", "0"], 2, ["--top"]),
    ],
)
def test_refusals(
    folder: Path, program: Program, arguments: list[str], code: int, parts: list[str]
) -> None:
    assert_refused(program("suspects", *arguments), code, *parts)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_terminal(folder: Path, terminal: TerminalProgram, columns: int) -> None:
    code, shown = terminal("suspects", "--top", "3", columns=columns)
    assert code == 0
    lines = [line.rpartition("\r")[2] for line in without_styles(shown).splitlines()]
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("score")) :]
    assert max(map(len, table)) <= columns
