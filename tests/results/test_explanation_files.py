"""The folder that `explain` fills: names, nothing overwritten, an index in every case."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtrain.errors import InterruptedRunError, UsageError
from vtrain.results.explain import Explanation, Placement
from vtrain.results.explanation_files import (
    WrittenExplanation,
    require_empty_folder,
    write_explanations,
)

PLACE = Placement(16, 8, 4.0, 0.0, 12.0, 8.0)


def explained(path: str) -> Explanation:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    return Explanation(
        path, Image.new("RGB", (8, 8)), values, (2, 2), "bee", 0.75, "bee", 0.75, PLACE
    )


def write(folder: Path, *explanations: Explanation) -> list[WrittenExplanation]:
    shown: list[WrittenExplanation] = []
    write_explanations(folder, explanations, about={"model": "tiny"}, show=shown.append)
    return shown


def read_index(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "explanations.json").read_text())
    return found


def test_files_of_one_image(tmp_path: Path) -> None:
    folder = tmp_path / "deep/seen"
    done = write_explanations(
        folder,
        [explained("photos/a.b.jpg"), Explanation("c.jpg", error="is damaged")],
        about={"model": "tiny"},
        show=lambda _: None,
    )
    assert (done.count, done.failed, done.index) == (2, 1, folder / "explanations.json")
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.b.map.npy",
        "a.b.overlay.png",
        "explanations.json",
    ]
    values = np.load(folder / "a.b.map.npy", allow_pickle=False)
    assert (values.shape, values.dtype) == ((8, 8), np.float32)
    with Image.open(folder / "a.b.overlay.png") as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (8, 8), "RGB")
    index = read_index(folder)
    assert (index["schema"], index["model"], index["complete"]) == (1, "tiny", True)
    good, bad = index["images"]
    assert (good["path"], good["status"]) == ("photos/a.b.jpg", "ok")
    assert (good["overlay"], good["map"]) == ("a.b.overlay.png", "a.b.map.npy")
    assert (good["image_size"], good["box"]) == ([16, 8], [4.0, 0.0, 12.0, 8.0])
    assert bad == {"schema": 1, "path": "c.jpg", "status": "error", "error": "is damaged"}


def test_equal_names_get_numbers(tmp_path: Path) -> None:
    paths = ["a/1.jpg", "b/1.jpg", "1-2.jpg", "c/1.png", "A/B.jpg", "a/b.jpg"]
    shown = write(tmp_path / "o", *map(explained, paths))
    names = [each.overlay.name for each in shown if each.overlay]
    assert names == [f"{n}.overlay.png" for n in ("1", "1-2", "1-2-2", "1-3", "B", "b-2")]
    assert len(list((tmp_path / "o").iterdir())) == 2 * len(paths) + 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("-rf.jpg", "rf"),
        (".hidden.png", "hidden"),
        ("a\x1b[1m\n.png", "a__1m_"),
        ("\udcff.png", "_"),
        ("\u202egnp.png", "_gnp"),
        ("caf\u00e9 \u82b1 (1).jpg", "caf\u00e9 \u82b1 (1)"),
        ("...", "image"),
        ("shard.tar/x/7.jpg", "7"),
        ("a;$(b)`|&*?<>'\".jpg", "a__(b)_________"),
        ("\u82b1" * 60 + ".jpg", "\u82b1" * 33),
        ("../../etc/passwd", "passwd"),
    ],
)
def test_hostile_names_become_harmless(tmp_path: Path, path: str, name: str) -> None:
    (shown,) = write(tmp_path / "o", explained(path))
    assert shown.overlay == tmp_path / "o" / f"{name}.overlay.png"
    assert shown.overlay.is_file()
    assert read_index(tmp_path / "o")["images"][0]["path"] == path


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    kept = tmp_path / "full/mine.txt"
    kept.write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty: it has mine\.txt"):
        write(tmp_path / "full", explained("a.jpg"))
    assert [path.name for path in kept.parent.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="it is not a folder"):
        require_empty_folder(kept)
    with pytest.raises(UsageError, match="cannot write"):
        write(kept / "below", explained("a.jpg"))
    (tmp_path / "empty").mkdir()
    assert len(write(tmp_path / "empty", explained("a.jpg"))) == 1


def test_index_of_interrupted_work(tmp_path: Path) -> None:
    def give() -> Iterator[Explanation]:
        yield explained("a.jpg")
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="interrupted: 1 done, listed in"):
        write_explanations(tmp_path / "o", give(), about={}, show=lambda _: None)
    index = read_index(tmp_path / "o")
    assert index["complete"] is False
    assert [each["path"] for each in index["images"]] == ["a.jpg"]


def test_no_images(tmp_path: Path) -> None:
    assert write(tmp_path / "o") == []
    assert read_index(tmp_path / "o")["images"] == []
