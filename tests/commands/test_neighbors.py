"""vtrain neighbors: the nearest images, by the model that the array was made with."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.program import Program, assert_refused
from tests.helpers.tiny import break_image, draw_image
from vtrain.results import neighbors

MODEL_LINE = "model: runs/tiny-001/model.safetensors, fp32"


@pytest.fixture
def array(folder: Path, program: Program) -> np.ndarray:
    """`e.npy` of the 18 training images in the working directory."""
    assert program("embed", "images/train", "e.npy", "-q").code == 0
    return np.asarray(np.load("e.npy"))


def similarities(array: np.ndarray, row: int) -> np.ndarray:
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(unit @ unit[row])


def paths_of(array: str = "e.csv") -> list[str]:
    with Path(array).open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_a_row_or_path_needs_no_model(array: np.ndarray, program: Program) -> None:
    shutil.rmtree("runs")
    expected = [row for row in np.argsort(-similarities(array, 6), kind="stable") if row != 6][:5]
    for query in ("6", "images/train/bee/000.jpg", "./images/train/bee/000.jpg"):
        done = program("neighbors", query, "e.npy", "-k", "5", "--json")
        assert done.code == 0
        assert done.err == "query: row 6, images/train/bee/000.jpg\n"
        found = json.loads(done.out)
        assert (found["schema"], found["row"], found["metric"]) == (1, 6, "cosine")
        assert (found["count"], found["left_out"]) == (18, 0)
        assert [each["row"] for each in found["neighbors"]] == expected
        for each in found["neighbors"]:
            assert each["path"] == paths_of()[each["row"]]
            assert each["value"] == pytest.approx(similarities(array, 6)[each["row"]], abs=1e-5)


def test_an_image_is_compared_by_the_model_of_the_array(
    array: np.ndarray, program: Program
) -> None:
    shutil.copy("images/train/bee/000.jpg", "copy.jpg")
    done = program("neighbors", "copy.jpg", "e.npy", "-k", "2")
    assert (done.code, done.err) == (0, f"{MODEL_LINE}\n")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["similarity", "row", "path"]
    assert lines[1] == ["1.0000", "6", "images/train/bee/000.jpg"]
    assert len(lines) == 3
    named = program("neighbors", "copy.jpg", "e.npy", "-k", "2", "-m", "runs/tiny-001")
    assert named.out == done.out


def test_euclidean_csv_and_blocks(
    array: np.ndarray, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "BLOCK_BYTES", 5 * 4 * array.shape[1])
    done = program("neighbors", "3", "e.npy", "--metric", "euclidean", "--csv", "-k", "99", "-q")
    assert (done.code, done.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    distances = np.linalg.norm(array - array[3], axis=1)
    expected = [row for row in np.argsort(distances, kind="stable") if row != 3]
    assert [int(row["row"]) for row in rows] == expected
    assert [float(row["distance"]) for row in rows] == pytest.approx(
        distances[expected].tolist(), abs=1e-4
    )


def test_page(array: np.ndarray, program: Program) -> None:
    Path(paths_of()[1]).unlink()
    done = program("neighbors", "6", "e.npy", "-k", "17", "-o", "n.html")
    assert done.code == 0
    assert "page: n.html" in done.talk
    text = Path("n.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 17  # 16 and the query
    assert text.count("no picture") == 1
    assert "<script" not in text


def test_rows_without_features_are_left_out(folder: Path, program: Program) -> None:
    bad = break_image(Path("images/train/bee/000.jpg"))
    assert program("embed", "images/train", "e.npy", "-q").code == 3
    found = json.loads(program("neighbors", "0", "e.npy", "--json", "-k", "99").out)
    assert (found["count"], found["left_out"], len(found["neighbors"])) == (17, 1, 16)
    done = program("neighbors", "0", "e.npy")
    assert "1 of 18 rows hold no features and are left out" in done.talk
    assert_refused(program("neighbors", str(bad), "e.npy"), 3, f"row 6 of e.npy, {bad}")


def test_another_model_is_refused(array: np.ndarray, program: Program) -> None:
    draw_image(Path("new.png"), seed=3)
    assert program("fit", "tiny.yaml", "-q", "seed=1", "train.epochs=1").code == 0
    refused = program("neighbors", "new.png", "e.npy", "-m", "runs/tiny-002")
    assert_refused(refused, 4, "e.npy was made with runs/tiny-001", "with other weights than")
    shutil.rmtree("runs/tiny-001")
    Path("runs/tiny-002").rename("runs/tiny-001")  # trained anew under the old name
    assert_refused(program("neighbors", "new.png", "e.npy"), 4, "with other weights than")
    refused = program("neighbors", "new.png", "e.npy", "--layer", "logits")
    assert_refused(refused, 2, "e.npy holds features of layer penultimate, not logits")


def test_an_array_without_facts_needs_a_model(array: np.ndarray, program: Program) -> None:
    draw_image(Path("new.png"), seed=3)
    expected = program("neighbors", "new.png", "e.npy", "-q")
    Path("e.json").unlink()
    refused = program("neighbors", "new.png", "e.npy")
    assert_refused(refused, 4, "nothing says which model e.npy was made with", "-m MODEL")
    done = program("neighbors", "new.png", "e.npy", "-m", "runs/tiny-001")
    assert (done.code, done.out) == (0, expected.out)
    assert any(line.startswith("warning: e.json is missing") for line in done.talk)
    logits = ("-m", "runs/tiny-001", "--layer", "logits")
    refused = program("neighbors", "new.png", "e.npy", *logits)
    assert_refused(refused, 4, "gives 3 features of layer logits, e.npy has 32")


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["18", "e.npy"], 2, ["no row 18 in e.npy: it has 18, from 0 on"]),
        (["-1", "e.npy"], 2, ["-1"]),
        (["nix.jpg", "e.npy"], 2, ["query nix.jpg is no image file"]),
        (["x" * 5000, "e.npy"], 2, ["is no image file"]),
        (["0", "nix.npy"], 2, ["embeddings nix.npy: it does not exist"]),
        (["0", "images"], 2, ["it is a folder"]),
        (["0", "e.csv"], 3, ["e.csv is no array"]),
        (["0", "e.npy", "--csv", "--json"], 2, ["both given"]),
        (["0", "e.npy", "-o", "x.png"], 2, ["does not end with .html"]),
        (["tiny.yaml", "e.npy"], 3, ["cannot read tiny.yaml"]),
        (["0", "e.npy", "--metric", "dot"], 2, ["dot"]),
    ],
)
def test_refusals(
    array: np.ndarray, program: Program, arguments: list[str], code: int, parts: list[str]
) -> None:
    assert_refused(program("neighbors", *arguments), code, *parts)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (np.zeros((2, 3, 1, 1), dtype=np.float32), "without --feature-maps"),
        (np.zeros((2, 3)), "float64"),
        (np.zeros(3, dtype=np.float32), "expected float32 [N, D]"),
        (np.asfortranarray(np.zeros((2, 3), dtype=np.float32)), "in another order"),
        (np.zeros((2, 3), dtype=np.float32), "x.csv is missing"),
    ],
)
def test_other_arrays(empty: Path, program: Program, values: np.ndarray, part: str) -> None:
    np.save("x.npy", values)
    assert_refused(program("neighbors", "0", "x.npy"), 3, part)


@pytest.mark.parametrize("content", ["", "row,path\n", "row,path,status\n0,a,ok\n", "a\n\0\n"])
def test_a_damaged_index(array: np.ndarray, program: Program, content: str) -> None:
    Path("e.csv").write_text(content)
    assert_refused(program("neighbors", "0", "e.npy"), 3, "e.csv")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3}'])
def test_damaged_facts(array: np.ndarray, program: Program, content: str) -> None:
    Path("e.json").write_text(content)
    draw_image(Path("new.png"))
    assert_refused(program("neighbors", "new.png", "e.npy"), 3, "e.json is damaged")


def test_a_row_of_zeros_is_like_nothing() -> None:
    rows = np.array([[0, 0], [1, 0], [np.inf, 0], [np.nan, 1], [-2, 0]], dtype=np.float32)
    similarity = neighbors.measure_nearness(rows, np.array([3, 0], dtype=np.float32), "cosine")
    np.testing.assert_array_equal(similarity, [0, 1, np.nan, np.nan, -1])


def test_hostile_names(folder: Path, program: Program) -> None:
    name = "=<i>\x1b[31m\n\udcff.png"
    draw_image(Path("plain.png"))
    Path("images/train/ant").joinpath(name).write_bytes(Path("plain.png").read_bytes())
    assert program("embed", "images/train", "e.npy", "-q").code == 0
    done = program("neighbors", "plain.png", "e.npy", "-k", "1", "-o", "n.html")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert done.out.splitlines()[1].split()[0] == "1.0000"
    assert "<i>" not in Path("n.html").read_text(errors="surrogateescape")
    found = json.loads(program("neighbors", "plain.png", "e.npy", "-k", "1", "--json").out)
    assert found["neighbors"][0]["path"] == f"images/train/ant/{name}"
    assert program("neighbors", f"images/train/ant/{name}", "e.npy").code == 0
