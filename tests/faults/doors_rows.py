"""A row for every input, as people have them."""

import csv
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.faults.commands import run, write_model
from tests.faults.door import Door, put, put_classes, write
from tests.helpers.program import Outcome

MODEL = ("-m", "model.safetensors")
PREDICT = ("--json", "-q", "--workers", "0", *MODEL)
EMBED = ("-q", "--workers", "0", *MODEL)
FIVE = ("base/cat/0.png", "base/gone.png", "base/dog/1.png", "base/cat/0.png", "base/dog/2.png")
GONE = [1]


def set_up(*more: Callable[[], object]) -> Callable[[], None]:
    """Two classes of three images in `base`, a model that knows them, and what else is needed."""

    def build() -> None:
        put_classes("base", 3)
        write_model(Path(), ("cat", "dog"))
        for each in more:
            each()

    return build


def listing(name: str, *lines: str) -> Callable[[], object]:
    """Write a list."""
    return lambda: write(name, "".join(f"{line}\n" for line in lines))


def pack_images(name: str) -> Callable[[], object]:
    """Write a tar of the images of `base`, without that folder."""

    def build() -> None:
        with tarfile.open(name, "w") as archive:
            for each in FOUND_IN_LIST:
                archive.add(f"base/{each}", each)

    return build


def move_embedded() -> None:
    """Embed, then give the model another name and move the array to another folder."""
    assert run(Path.cwd(), "embed", "base", "o.npy", *EMBED).code == 0
    put("q.png", seed=99)
    Path("model.safetensors").rename("other.safetensors")
    Path("there").mkdir()
    for each in ("o.npy", "o.csv", "o.json"):
        Path(each).rename(f"there/{each}")


def answers(*paths: str, failed: Sequence[int] = ()) -> Callable[[Path, Outcome], None]:
    """Check that there is one answer for each path, in order, and which ones failed."""
    errors = [row in failed for row in range(len(paths))]

    def check(folder: Path, outcome: Outcome) -> None:
        rows = [json.loads(line) for line in outcome.out.splitlines()]
        found = [each["path"].removeprefix(f"{folder}/") for each in rows]
        assert found == list(paths), found
        assert [each["status"] == "error" for each in rows] == errors, rows
        assert all(bool(each["predictions"]) != bool(each["error"]) for each in rows), rows

    return check


def rows(
    *paths: str, failed: Sequence[int] = (), labels: Sequence[str] | None = None
) -> Callable[[Path, Outcome], None]:
    """Check the array in `o.npy`, NaN where a row failed, and the index beside it."""
    errors = [row in failed for row in range(len(paths))]

    def check(_folder: Path, _outcome: Outcome) -> None:
        with Path("o.csv").open(newline="") as stream:
            index = list(csv.DictReader(stream))
        assert [each["path"] for each in index] == list(paths), index
        assert [each["status"] != "ok" for each in index] == errors, index
        found = [each["label"] for each in index] if "label" in index[0] else None
        assert found == (None if labels is None else list(labels)), found
        values = np.load("o.npy")
        assert np.isnan(values).all(axis=1).tolist() == errors
        assert np.isnan(values).any(axis=1).tolist() == errors

    return check


def evaluated(count: int, *failed: str) -> Callable[[Path, Outcome], None]:
    """Check how many images count, and which ones could not be read."""

    def check(_folder: Path, outcome: Outcome) -> None:
        result = json.loads(outcome.out)
        assert result["count"] == count, result["count"]
        assert [each["path"] for each in result["failures"]] == list(failed), result["failures"]

    return check


def same_file(name: str, content: bytes) -> Callable[[Path, Outcome], None]:
    """Check that a file is as it was."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        assert Path(name).read_bytes() == content

    return check


def classes_in_facts(_folder: Path, _outcome: Outcome) -> None:
    """The array's columns are the model's classes."""
    assert json.loads(Path("o.json").read_text())["classes"] == ["cat", "dog"]
    assert np.load("o.npy").shape == (6, 2)


ALL = tuple(f"base/{name}/{number}.png" for name in ("cat", "dog") for number in range(3))
ALL_LABELS = ("cat",) * 3 + ("dog",) * 3
FOUND_IN_LIST = tuple(each.removeprefix("base/") for each in ALL)

LISTS = (
    Door(
        "predict: a list, of which a file is gone and one stands twice",
        set_up(listing("five.txt", *FIVE)),
        [("predict", "five.txt", *PREDICT)],
        code=3,
        said=["1 of 5 inputs could not be used"],
        check=answers(*FIVE, failed=GONE),
    ),
    Door(
        "embed: a list, of which a file is gone and one stands twice",
        set_up(listing("five.txt", *FIVE)),
        [("embed", "five.txt", "o.npy", *EMBED)],
        code=3,
        said=["1 of 5 images could not be used", "base/gone.png"],
        check=rows(*FIVE, failed=GONE),
    ),
    Door(
        "evaluate: a list, of which a file is gone",
        set_up(
            listing(
                "l.csv", "path,label", "base/cat/0.png,cat", "gone.png,cat", "base/dog/1.png,dog"
            )
        ),
        [("evaluate", "l.csv", *PREDICT)],
        code=3,
        said=["1 of 3 images could not be used"],
        check=evaluated(2, "gone.png"),
    ),
    Door(
        "predict: a list with classes, and other arguments around it",
        set_up(listing("l.csv", "path,label", "base/cat/0.png,cat", "base/gone.png,dog")),
        [("predict", "base/dog/0.png", "l.csv", "base/dog/1.png", *PREDICT)],
        code=3,
        check=answers(
            "base/dog/0.png",
            "base/cat/0.png",
            "base/gone.png",
            "base/dog/1.png",
            failed=[2],
        ),
    ),
    Door(
        "predict: a list with blank lines and a folder in it",
        set_up(listing("l.txt", "base/cat/0.png", "", "base/dog", "base/dog/1.png")),
        [("predict", "l.txt", *PREDICT)],
        code=3,
        check=answers("base/cat/0.png", "base/dog", "base/dog/1.png", failed=[1]),
    ),
    Door(
        "predict: a list of nothing",
        set_up(listing("l.txt")),
        [("predict", "l.txt", *PREDICT)],
        code=3,
        said=["the list names no images"],
        check=answers("l.txt", failed=[0]),
    ),
    Door(
        "predict: a list and a tar that are not there",
        set_up(),
        [("predict", "l.csv", "t.tar", "base/cat/0.png", *PREDICT)],
        code=3,
        said=['"error": "no such file or folder"'],
        check=answers("l.csv", "t.tar", "base/cat/0.png", failed=[0, 1]),
    ),
    Door(
        "predict: a list whose files lie below another folder",
        set_up(listing("lists/l.txt", "cat/0.png", "dog/1.png")),
        [("predict", "lists/l.txt", "--root", "base", *PREDICT)],
        check=answers("base/cat/0.png", "base/dog/1.png"),
    ),
    Door(
        "predict: columns of a list by their names",
        set_up(listing("l.csv", "kind,photo", "cat,base/cat/0.png", "dog,base/dog/1.png")),
        [("predict", "l.csv", "--columns", "path=photo,label=kind", *PREDICT)],
        check=answers("base/cat/0.png", "base/dog/1.png"),
    ),
    Door(
        "evaluate: columns of a list by their names, files below another folder",
        set_up(listing("l.csv", "kind,photo", "cat,cat/0.png", "dog,dog/1.png")),
        [("evaluate", "l.csv", "--columns", "path=photo,label=kind", "--root", "base", *PREDICT)],
        check=evaluated(2),
    ),
    Door(
        "embed: columns of a list by their names, files below another folder",
        set_up(listing("l.csv", "kind,photo", "x,cat/0.png", "y,dog/1.png")),
        [
            (
                *("embed", "l.csv", "o.npy", "--columns", "path=photo,label=kind"),
                *("--root", "base", *EMBED),
            )
        ],
        check=rows("base/cat/0.png", "base/dog/1.png", labels=["x", "y"]),
    ),
    Door(
        "predict: columns, and no list",
        set_up(),
        [("predict", "base", "--columns", "path=photo", *PREDICT)],
        code=2,
        said=["--columns", "no list"],
    ),
    Door(
        "evaluate: a root that is not there",
        set_up(listing("l.csv", "path,label", "cat/0.png,cat")),
        [("evaluate", "l.csv", "--root", "bsae", *PREDICT)],
        code=2,
        said=["--root", "no folder bsae"],
    ),
)

ON_STDIN = (
    Door(
        "predict -: lines with Windows ends, a blank one, and no end of the last",
        set_up(),
        [("predict", "-", *PREDICT)],
        stdin=b"base/cat/0.png\r\n\r\nbase/gone.png\r\nbase/dog/1.png",
        code=3,
        check=answers("base/cat/0.png", "base/gone.png", "base/dog/1.png", failed=[1]),
    ),
    Door(
        "predict -: what find -print0 says, with a line end in a name",
        set_up(lambda: put("two\nlines.png")),
        [("predict", "-", *PREDICT)],
        stdin=b"two\nlines.png\0base/gone.png\0base/dog/1.png\0",
        code=3,
        check=answers("two\nlines.png", "base/gone.png", "base/dog/1.png", failed=[1]),
    ),
    Door(
        "predict -: one path that ends with NUL",
        set_up(),
        [("predict", "-", *PREDICT)],
        stdin=b"base/dog/1.png\0",
        check=answers("base/dog/1.png"),
    ),
    Door(
        "predict -: nothing",
        set_up(),
        [("predict", "-", "-o", "o.jsonl", *MODEL)],
        code=2,
        said=["stdin is empty", "paths"],
        check=lambda folder, _: not (folder / "o.jsonl").exists() or 1 / 0,
    ),
    Door(
        "predict -: nothing, beside an image",
        set_up(),
        [("predict", "base/cat/0.png", "-", "--json", *MODEL)],
        said=["warning: stdin is empty", "base/cat/0.png"],
    ),
    Door(
        "predict -: a file with UTF-8's mark",
        set_up(),
        [("predict", "-", *PREDICT)],
        stdin=b"\xef\xbb\xbfbase/cat/0.png\r\nbase/dog/1.png\r\n",
        check=answers("base/cat/0.png", "base/dog/1.png"),
    ),
    *(
        Door(
            f"predict -: {name}",
            set_up(),
            [("predict", "-", *PREDICT)],
            stdin=content,
            code=2,
            said=["stdin holds", *said],
            check=lambda _, outcome: outcome.out == "" or 1 / 0,
        )
        for name, content, said in (
            ("a JPEG itself", b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\n", ["JPEG", "name that"]),
            ("a PNG itself", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["PNG", "name that file"]),
            ("a WebP itself", b"RIFF\x24\0\0\0WEBPVP8 \x18\0", ["WebP"]),
            ("a HEIC itself", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\x01", ["binary"]),
            ("an archive", b"PK\x03\x04\x14\0\0\0\x08\0\n", ["binary"]),
            ("UTF-16 with its mark", "\ufeffa.png\r\n".encode("utf-16-le"), ["UTF-16"]),
            ("UTF-16 without mark", "a.png\r\n".encode("utf-16-le"), ["UTF-16", "UTF-8"]),
        )
    ),
    Door(
        "predict -: names in quotes, between spaces, with backslashes",
        set_up(),
        [("predict", "-", *PREDICT)],
        stdin=b'"base/cat/0.png"\n base/cat/1.png \nbase\\cat\\2.png\nbase/dog/0.png\n',
        code=3,
        said=[
            "but there is base/cat/0.png",
            "but there is base/cat/1.png",
            "but there is base/cat/2.png",
        ],
        check=answers(
            '"base/cat/0.png"',
            " base/cat/1.png ",
            "base\\cat\\2.png",
            "base/dog/0.png",
            failed=[0, 1, 2],
        ),
    ),
    Door(
        "embed -: paths, of which one is gone",
        set_up(),
        [("embed", "-", "o.npy", *EMBED)],
        stdin=b"base/dog/1.png\nbase/gone.png\nbase/cat/0.png\n",
        code=3,
        said=["base/gone.png: no such file or folder"],
        check=rows("base/dog/1.png", "base/gone.png", "base/cat/0.png", failed=[1]),
    ),
    Door(
        "embed -: nothing",
        set_up(),
        [("embed", "-", "o.npy", *EMBED)],
        code=2,
        said=["stdin is empty"],
        check=lambda folder, _: not (folder / "o.npy").exists() or 1 / 0,
    ),
)

ARGUMENTS = (
    Door(
        "predict: a glob without a match, an empty folder, a folder of damaged images",
        set_up(
            lambda: Path("empty").mkdir(),
            lambda: write("bad/0.png", b"\x89PNG but no more"),
            lambda: write("bad/1.jpg", b""),
        ),
        [("predict", "*.gif", "empty", "bad", *PREDICT)],
        code=3,
        said=["4 of 4 inputs could not be used", "no file matches this pattern", "holds no images"],
        check=answers("*.gif", "empty", "bad/0.png", "bad/1.jpg", failed=[0, 1, 2, 3]),
    ),
    Door(
        "embed: a glob, and a file twice",
        set_up(),
        [("embed", "base/dog/[12].png", "base/cat/0.png", "base/cat/0.png", "o.npy", *EMBED)],
        check=rows("base/dog/1.png", "base/dog/2.png", "base/cat/0.png", "base/cat/0.png"),
    ),
    Door(
        "embed: two folders, a glob without a match and a file that is gone",
        set_up(lambda: put("more/a.png")),
        [("embed", "base", "more", "*.gif", "gone.png", "o.npy", *EMBED)],
        code=3,
        said=["*.gif: no file matches this pattern", "gone.png: no such file or folder"],
        check=rows(
            *(*ALL, "more/a.png", "*.gif", "gone.png"),
            failed=[7, 8],
            labels=[*ALL_LABELS, "", "", ""],
        ),
    ),
    Door(
        "embed: a folder that is not there",
        set_up(),
        [("embed", "bsae", "o.npy", *EMBED)],
        code=3,
        said=["bsae"],
        check=lambda folder, _: not (folder / "o.npy").exists() or 1 / 0,
    ),
    Door(
        "embed: the array alone",
        set_up(),
        [("embed", "o.npy", *EMBED)],
        code=2,
        said=["only o.npy was given", "PATH... OUT.npy"],
    ),
    Door(
        "embed: images alone",
        set_up(),
        [("embed", "base/cat/0.png", "base/cat/1.png", *EMBED)],
        code=2,
        said=["does not end with .npy"],
    ),
    Door(
        "embed: a list whose name the index would take",
        set_up(listing("o.csv", "path,label", "base/cat/0.png,cat")),
        [("embed", "o.csv", "o.npy", *EMBED)],
        code=2,
        said=["o.csv is an input", "another name"],
        check=same_file("o.csv", b"path,label\nbase/cat/0.png,cat\n"),
    ),
)

LABELS = (
    Door(
        "embed: class folders give labels",
        set_up(),
        [("embed", "base", "o.npy", *EMBED)],
        check=rows(*ALL, labels=ALL_LABELS),
    ),
    Door(
        "embed: splits are no labels",
        set_up(lambda: put_classes("sets/train", 1), lambda: put_classes("sets/test", 1)),
        [("embed", "sets", "o.npy", *EMBED)],
        check=rows(
            *(
                f"sets/{split}/{name}/0.png"
                for split in ("test", "train")
                for name in ("cat", "dog")
            )
        ),
    ),
    Door(
        "embed: images beside class folders, so that these are none",
        set_up(lambda: put("base/a.png")),
        [("embed", "base", "o.npy", *EMBED)],
        check=rows("base/a.png", *ALL),
    ),
    Door(
        "embed: a list gives labels, in its order",
        set_up(listing("l.csv", "path,label", "base/dog/0.png,x", "base/cat/0.png,")),
        [("embed", "l.csv", "o.npy", *EMBED)],
        check=rows("base/dog/0.png", "base/cat/0.png", labels=["x", ""]),
    ),
    Door(
        "embed: a tar gives labels",
        set_up(pack_images("t.tar")),
        [("embed", "t.tar", "o.npy", *EMBED)],
        check=rows(*(f"t.tar/{name}" for name in FOUND_IN_LIST), labels=ALL_LABELS),
    ),
    Door(
        "embed: the classes of logits",
        set_up(),
        [("embed", "base", "o.npy", "--layer", "logits", *EMBED)],
        check=classes_in_facts,
    ),
)

OUTPUTS = (
    Door(
        "predict -o: a file that is there",
        set_up(lambda: write("o.csv", "mine\n")),
        [("predict", "base", "-o", "o.csv", "-q", *MODEL)],
        code=2,
        said=["o.csv exists already", "--resume"],
        check=same_file("o.csv", b"mine\n"),
    ),
    Door(
        "predict -o: somebody's file, with --resume",
        set_up(lambda: write("o.csv", "mine\n")),
        [("predict", "base", "-o", "o.csv", "--resume", "-q", *MODEL)],
        code=2,
        said=["cannot resume o.csv", "another output"],
        check=same_file("o.csv", b"mine\n"),
    ),
    Door(
        "predict -o: a file that is finished, with --resume",
        set_up(),
        [
            ("predict", "base", "-o", "o.csv", *MODEL),
            ("predict", "base", "-o", "o.csv", "--resume", *MODEL),
        ],
        said=["o.csv: 6 answers"],
    ),
)

MOVED = (
    Door(
        "neighbors: the model has moved",
        set_up(move_embedded),
        [("neighbors", "q.png", "there/o.npy")],
        code=4,
        said=["made with model.safetensors", "-m MODEL"],
    ),
    Door(
        "neighbors: the model has moved, and is named",
        set_up(move_embedded),
        [("neighbors", "q.png", "there/o.npy", "-m", "other.safetensors", "--csv", "-k", "1")],
        said=["base/"],
        unsaid=["warning"],
    ),
    Door(
        "neighbors: another model than the array's",
        set_up(move_embedded, lambda: write_model(Path(), ("a", "b", "c"))),
        [("neighbors", "q.png", "there/o.npy")],
        code=4,
        said=["other weights", "name the model"],
    ),
    Door(
        "neighbors: the images have moved",
        set_up(move_embedded, lambda: Path("base").rename("moved")),
        [("neighbors", "0", "there/o.npy")],
        said=["no file is at any of these paths", "there/o.csv"],
    ),
)

DOORS: tuple[Door, ...] = (*LISTS, *ON_STDIN, *ARGUMENTS, *LABELS, *OUTPUTS, *MOVED)
