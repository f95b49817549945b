"""Folders with surprises: which images a command takes, with which labels, and what it says."""

import csv
import json
import os
import shutil
import socket
import stat
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, chdir, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from tests.faults.case import Case, NotPossible
from tests.faults.commands import draw_png, place, run, write_config, write_model
from tests.helpers.program import Outcome
from vtrain.data import image_checks, walk
from vtrain.data.folders import EMPTY_CLASS, scan_images, scan_labelled
from vtrain.data.formats import BY_REASON, NAMELESS
from vtrain.data.kept_scans import Listing
from vtrain.results import embed, evaluate, inputs
from vtrain.runs.epochs import FitRun

ANT_AND_BEE = {"ant": 4, "bee": 4}
SCANNED = "leads to a folder that is scanned already"
NO_IMAGE = "is not named like an image"
OUTSIDE = "lies outside the class folders"
NOBODY = 65_534
MANY_CLASSES = (200, 10_000)
OTHER_COMMANDS = ("evaluate", "embed", "predict", "init")


@dataclass(frozen=True, slots=True)
class Surprise:
    """A change to plain data in `train` and `val`, and what has to come of it.

    `train` and `val` are the images of each class, `skipped` the files below `train` that are not
    used and why. `code` is what `fit` ends with, `said` parts of what it says. `codes` are those of
    other commands where they differ: only `fit` looks at `val`, and to `fit` a wrong path is a
    mistake in its config. `words` are parts of what the others that fail have to say. `settings`
    go to `fit`. `{data}` stands for the folder.
    """

    name: str
    prepare: Callable[[Path], object]
    train: Mapping[str, int] = field(default_factory=lambda: ANT_AND_BEE)
    val: Mapping[str, int] = field(default_factory=lambda: {"ant": 2, "bee": 2})
    skipped: Mapping[str, str] = field(default_factory=dict)
    code: int = 0
    said: Sequence[str] = ()
    codes: Mapping[str, int] = field(default_factory=dict)
    settings: Sequence[str] = ()
    words: Sequence[str] = ()


def make_plain(data: Path) -> None:
    """Two classes of four training and two validation images."""
    for split, count in (("train", 4), ("val", 2)):
        for name in ANT_AND_BEE:
            for number in range(count):
                place(data / split / name / f"{number}.png", draw_png(number + 10 * count))


def move(old: str, new: str) -> Callable[[Path], object]:
    """Rename something in the data."""
    return lambda data: (data / old).rename(data / new)


def link(name: str, target: str) -> Callable[[Path], object]:
    """A symbolic link in the data."""
    return lambda data: (data / name).symlink_to(target.format(data=data))


def put(*names: str, content: bytes | None = None) -> Callable[[Path], object]:
    """Files in the data, folders where a name ends in a slash."""

    def prepare(data: Path) -> None:
        for name in names:
            if name.endswith("/"):
                (data / name).mkdir(parents=True)
            else:
                place(data / name, content)

    return prepare


def steps(*each: Callable[[Path], object]) -> Callable[[Path], object]:
    """One change after another."""

    def prepare(data: Path) -> None:
        for step in each:
            step(data)

    return prepare


def remove(name: str) -> Callable[[Path], object]:
    """Remove a folder with all that is in it."""

    return lambda data: shutil.rmtree(data / name)


def make_odd_files(data: Path) -> None:
    os.mkfifo(data / "train/ant/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(data / "train/ant/socket.png"))


def make_device(data: Path) -> None:
    try:
        os.mknod(data / "train/ant/null.png", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError as error:
        raise NotPossible("devices are made by root alone") from error


def save_as(name: str, form: str) -> Callable[[Path], object]:
    """An image in another format."""

    def prepare(data: Path) -> None:
        from PIL import Image, features

        if form == "AVIF" and not features.check("avif"):
            raise NotPossible("this Pillow writes no AVIF")
        Image.new("RGB", (24, 20), "red").save(data / name, form)

    return prepare


def rename_class(*, train: str, val: str) -> Callable[[Path], object]:
    """Other names for the class ant in both splits."""
    return steps(move("train/ant", f"train/{train}"), move("val/ant", f"val/{val}"))


def write_tar(*names: str) -> Callable[[Path], object]:
    """A tar of images, `train.tar`."""

    def prepare(data: Path) -> None:
        with tarfile.open(data / "train.tar", "w") as archive:
            for number, name in enumerate(names):
                member = tarfile.TarInfo(name)
                content = draw_png(number)
                member.size = len(content)
                archive.addfile(member, BytesIO(content))

    return prepare


def write_list(text: str, *, encoding: str = "utf-8") -> Callable[[Path], object]:
    """A list of images, `train.csv`; `{data}` is the folder that it lies in."""

    return lambda data: place(data / "train.csv", text.format(data=data).encode(encoding))


LISTED = "".join(
    f"train/{name}/{number}.png,{name}\n" for name in ANT_AND_BEE for number in range(4)
)
TARRED = [f"{name}/{number}.png" for name in ANT_AND_BEE for number in range(4)]
FROM_TAR = ("data.train={data}/train.tar",)
FROM_LIST = ("data.train={data}/train.csv",)
TRAIN_IS_FINE = dict.fromkeys(OTHER_COMMANDS, 0)
NO_PATH = {"evaluate": 3, "embed": 3, "predict": 3, "init": 3}
NO_CLASS_FOLDERS = "{data}/train has no class folders"

SURPRISES = (
    Surprise("nothing unusual", lambda data: None),
    # --- links -----------------------------------------------------------------------------------
    Surprise(
        "loops of links",
        steps(
            link("train/ant/self", "."), link("train/ant/up", ".."), link("train/bee/o", "../ant")
        ),
        skipped={"ant/self": SCANNED, "ant/up": SCANNED, "bee/o": SCANNED},
        said=("data.train: 3 files are not used, such as {data}/train/ant/self",),
    ),
    Surprise(
        "class folder is a link",
        steps(move("train/ant", "elsewhere"), link("train/ant", "{data}/elsewhere")),
    ),
    Surprise(
        "link to a pool of images in a class",
        steps(put("pool/a.png", "pool/b.png"), link("train/bee/more", "{data}/pool")),
        train={"ant": 4, "bee": 6},
    ),
    Surprise(
        "the same folder linked twice",
        steps(
            put("pool/a.png"),
            link("train/ant/x", "{data}/pool"),
            link("train/bee/y", "{data}/pool"),
        ),
        train={"ant": 5, "bee": 4},
        skipped={"bee/y": SCANNED},
    ),
    Surprise(
        "two classes are one folder",
        link("train/cat", "ant"),
        code=3,
        said=("class folders without images in {data}/train: 'cat'", f"cat {SCANNED}"),
        codes={"evaluate": 3, "embed": 0, "predict": 0},
    ),
    Surprise(
        "hard links to one image in a class",
        lambda data: os.link(data / "train/ant/0.png", data / "train/ant/again.png"),
        train={"ant": 5, "bee": 4},
    ),
    Surprise(
        "broken and circular links to images",
        steps(link("train/ant/gone.png", "nowhere.png"), link("train/ant/loop.png", "loop.png")),
        skipped={
            "ant/gone.png": "is a broken link",
            "ant/loop.png": "cannot be read (too many levels of symbolic links)",
        },
    ),
    Surprise(
        "class folder is a broken link",
        link("train/cat", "nowhere"),
        skipped={"cat": "is a broken link"},
        said=("{data}/train/cat (is a broken link)",),
    ),
    # --- what is no regular file -----------------------------------------------------------------
    Surprise(
        "named pipe and socket in a class",
        make_odd_files,
        skipped={"ant/pipe.png": "is a named pipe", "ant/socket.png": "is a socket"},
        said=("2 files are not used",),
    ),
    Surprise("device in a class", make_device, skipped={"ant/null.png": "is a device"}),
    Surprise(
        "folder that is named like an image",
        put("train/ant/0.png.d/5.png", "train/ant/x.png/6.png"),
        train={"ant": 6, "bee": 4},
    ),
    # --- what systems leave behind ---------------------------------------------------------------
    Surprise(
        "files of macOS and Jupyter",
        put(
            "train/ant/._1.png",
            "train/ant/.DS_Store",
            "train/__MACOSX/ant/1.png",
            "train/.ipynb_checkpoints/",
            "train/bee/.ipynb_checkpoints/1-checkpoint.png",
            "train/.hidden/",
        ),
    ),
    Surprise(
        "files of Windows",
        put("train/ant/Thumbs.db", "train/desktop.ini", content=b"?"),
    ),
    Surprise(
        "texts and tables next to images",
        put("train/ant/a.txt", "train/ant/a.csv", "train/bee/b.json", content=b"{}"),
        skipped={"ant/a.txt": NO_IMAGE, "ant/a.csv": NO_IMAGE, "bee/b.json": NO_IMAGE},
        said=("data.train: 3 files are not used",),
    ),
    # --- classes ---------------------------------------------------------------------------------
    Surprise(
        "empty class in train",
        put("train/cat/"),
        skipped={"cat": EMPTY_CLASS},
        said=("data.train: class folders without images are left out: 'cat'",),
        codes={"evaluate": 3},
    ),
    Surprise(
        "class missing in val",
        remove("val/ant"),
        val={"ant": 0, "bee": 2},
        said=("data.val has no images of 'ant'",),
    ),
    Surprise(
        "class empty in val",
        steps(remove("val/ant"), put("val/ant/")),
        val={"ant": 0, "bee": 2},
        said=("data.val has no images of 'ant'",),
    ),
    Surprise(
        "class only in val",
        put("val/cat/1.png"),
        code=3,
        said=("{data}/val has classes that training does not have: 'cat'", "'ant', 'bee'"),
        codes=TRAIN_IS_FINE,
    ),
    Surprise(
        "class names differ by case",
        rename_class(train="ant", val="Ant"),
        code=3,
        said=("{data}/val has classes that training does not have: 'Ant'",),
        codes=TRAIN_IS_FINE,
    ),
    Surprise(
        "class names differ by a space at the end",
        rename_class(train="ant", val="ant "),
        code=3,
        said=("{data}/val has classes that training does not have: 'ant '",),
        codes=TRAIN_IS_FINE,
    ),
    Surprise(
        "class names end with a space",
        rename_class(train="ant ", val="ant "),
        train={"ant ": 4, "bee": 4},
        val={"ant ": 2, "bee": 2},
    ),
    Surprise(
        "class names differ by normalisation",
        rename_class(train="cafe\u0301", val="caf\u00e9"),
        train={"bee": 4, "caf\u00e9": 4},
        val={"bee": 2, "caf\u00e9": 2},
    ),
    Surprise(
        "two classes are one by normalisation",
        steps(move("train/ant", "train/cafe\u0301"), put("train/caf\u00e9/1.png")),
        code=3,
        said=("two folders in {data}/train are both the class 'caf\u00e9'",),
        codes={"embed": 0, "predict": 0},
    ),
    Surprise(
        "names of config syntax",
        rename_class(train="a=b: #c 'd' \"e\"", val="a=b: #c 'd' \"e\""),
        train={"a=b: #c 'd' \"e\"": 4, "bee": 4},
        val={"a=b: #c 'd' \"e\"": 2, "bee": 2},
    ),
    Surprise(
        "single class",
        remove("train/bee"),
        code=3,
        said=("{data}/train has one class folder only, 'ant'", "{data}/train/<class>/<image>"),
        codes={"evaluate": 0, "embed": 0, "predict": 0},
    ),
    # --- other layouts ---------------------------------------------------------------------------
    Surprise(
        "folders within a class",
        put("train/ant/2024/may/1.png", "train/ant/2024/2.png"),
        train={"ant": 6, "bee": 4},
    ),
    Surprise(
        "classes one level deeper",
        steps(move("train", "deep"), put("train/"), move("deep", "train/images")),
        said=("{data}/train holds one folder with images: looking into {data}/train/images",),
    ),
    Surprise(
        "images next to class folders",
        put("train/1.png", "train/2.png"),
        skipped={"1.png": OUTSIDE, "2.png": OUTSIDE},
        said=("data.train: 2 files are not used, such as {data}/train/1.png",),
    ),
    Surprise(
        "images without classes",
        steps(remove("train"), put("train/1.png", "train/2.png")),
        code=3,
        said=(NO_CLASS_FOLDERS, "{data}/train/<class>/<image>"),
        codes={"embed": 0, "predict": 0},
    ),
    Surprise(
        "the parent of train and val",
        lambda data: None,
        settings=("data.train={data}",),
        code=2,
        said=("lies in data.train", "an image would be in both splits"),
        codes={"evaluate": 3, "embed": 0, "predict": 0, "init": 0},
        words=("{data} holds splits, not classes",),
    ),
    Surprise(
        "train and val are one folder",
        lambda data: None,
        settings=("data.val={data}/train",),
        code=2,
        said=("{data}/train is the same as data.train",),
        codes=TRAIN_IS_FINE,
    ),
    Surprise(
        "val within train",
        move("val", "train/val"),
        settings=("data.val={data}/train/val",),
        code=2,
        said=("{data}/train/val lies in data.train",),
        codes={"evaluate": 3, "embed": 0, "predict": 0, "init": 3},
    ),
    Surprise(
        "the same image in train and val",
        lambda data: place(data / "val/ant/0.png", (data / "train/ant/0.png").read_bytes()),
    ),
    # --- suffixes --------------------------------------------------------------------------------
    Surprise(
        "suffixes in upper and mixed case",
        put("train/ant/A.PNG", "train/ant/B.Png"),
        train={"ant": 6, "bee": 4},
    ),
    Surprise(
        "image without a suffix",
        put("train/ant/image"),
        skipped={"ant/image": NAMELESS.reason},
        said=("1 image without a suffix beside images that have one is not read (1 of 5 files",),
    ),
    Surprise(
        "rarer suffixes",
        steps(
            save_as("train/ant/a.gif", "GIF"),
            save_as("train/ant/a.jfif", "JPEG"),
            save_as("train/ant/a.jpeg", "JPEG"),
            save_as("train/ant/a.tif", "TIFF"),
            save_as("train/ant/a.avif", "AVIF"),
        ),
        train={"ant": 9, "bee": 4},
    ),
    Surprise(
        "suffix of another format",
        save_as("train/ant/a.jpg", "PNG"),
        train={"ant": 5, "bee": 4},
    ),
    Surprise(
        "file of 0 bytes",
        put("train/ant/empty.png", content=b""),
        code=3,
        said=(
            "1 of 13 images cannot be read",
            "  {data}/train/ant/empty.png: ",
            "on_bad_image=skip",
        ),
        codes={"init": 0},
    ),
    # --- paths -----------------------------------------------------------------------------------
    Surprise(
        "folder with a typing error",
        lambda data: None,
        settings=("data.train={data}/tarin",),
        code=2,
        said=("no such folder: {data}/tarin; did you mean {data}/train?",),
        codes=NO_PATH,
        words=("there is no folder {data}/tarin", "hint: did you mean {data}/train?"),
    ),
    Surprise(
        "no such folder",
        lambda data: None,
        settings=("data.train={data}/pictures/of/animals",),
        code=2,
        said=("no such folder: {data}/pictures/of/animals; there is no pictures in {data}",),
        codes=NO_PATH,
        words=("there is no folder {data}/pictures/of", "hint: there is no pictures in {data}"),
    ),
    Surprise(
        "folder is a file",
        put("photos.png"),
        settings=("data.train={data}/photos.png",),
        code=2,
        said=("{data}/photos.png is a file, expected a folder",),
        codes={**NO_PATH, "embed": 0, "predict": 0},
        words=("{data}/photos.png is a file, expected a folder",),
    ),
    Surprise(
        "folder is empty",
        steps(remove("train"), put("train/")),
        code=3,
        said=(NO_CLASS_FOLDERS,),
        words=("{data}/train",),
    ),
    Surprise(
        "folder is a broken link",
        link("linked", "{data}/nowhere"),
        settings=("data.train={data}/linked",),
        code=2,
        said=("no such folder: {data}/linked; {data}/linked is a broken link to {data}/nowhere",),
        codes=NO_PATH,
        words=("hint: {data}/linked is a broken link to {data}/nowhere",),
    ),
    Surprise(
        "folder is a link to itself",
        link("linked", "linked"),
        settings=("data.train={data}/linked",),
        code=2,
        said=("cannot be read: too many levels of symbolic links",),
        codes=NO_PATH,
        words=("cannot be read (too many levels of symbolic links)",),
    ),
    Surprise(
        "folder is a named pipe",
        lambda data: os.mkfifo(data / "pipe"),
        settings=("data.train={data}/pipe",),
        code=2,
        said=("{data}/pipe is not a regular file, expected a folder",),
        codes=NO_PATH,
        words=("{data}/pipe is not a regular file, expected a folder",),
    ),
    Surprise(
        "tar is a named pipe",
        lambda data: os.mkfifo(data / "train.tar"),
        settings=FROM_TAR,
        code=2,
        said=("{data}/train.tar is not a regular file, expected a folder",),
        codes=NO_PATH,
        words=("{data}/train.tar is not a regular file, expected a folder",),
    ),
    Surprise(
        "path with too long a name",
        lambda data: None,
        settings=("data.train={data}/" + 256 * "n",),
        code=2,
        said=("cannot be read: file name too long",),
        codes=NO_PATH,
        words=("cannot be read (file name too long)",),
    ),
    Surprise(
        "path of more than 4,096 bytes",
        lambda data: None,
        settings=("data.train={data}" + 600 * "/train/..",),
        code=2,
        said=("cannot be read: file name too long",),
        codes=NO_PATH,
        words=("cannot be read (file name too long)",),
    ),
    Surprise(
        "names of 255 bytes",
        steps(
            rename_class(train=255 * "n", val=255 * "n"),
            put(f"train/{255 * 'n'}/{251 * 'f'}.png"),
        ),
        train={"bee": 4, 255 * "n": 5},
        val={"bee": 2, 255 * "n": 2},
    ),
    Surprise(
        "name of 255 bytes that is no text",
        lambda data: place(data / "train/ant" / os.fsdecode(251 * b"\xff" + b".png")),
        train={"ant": 5, "bee": 4},
    ),
    Surprise(
        "characters of patterns in the path",
        steps(put("[a]*?/"), move("train", "[a]*?/[!b]"), link("a", "train")),
        settings=("data.train={data}/[a]*?/[!b]",),
    ),
    # --- tars and lists --------------------------------------------------------------------------
    Surprise("tar of class folders", write_tar(*TARRED), settings=FROM_TAR),
    Surprise(
        "tar with members outside of classes",
        write_tar(*TARRED, "stray.png"),
        settings=FROM_TAR,
        skipped={"stray.png": OUTSIDE},
    ),
    Surprise(
        "tar without classes",
        write_tar("1.png", "2.png"),
        settings=FROM_TAR,
        code=3,
        said=("no images in {data}/train.tar", "members named <class>/<image>", OUTSIDE),
        codes={"embed": 0, "predict": 0},
    ),
    Surprise("list of images", write_list(LISTED), settings=FROM_LIST),
    Surprise(
        "list with the marks of Windows",
        write_list("\ufeffpath,label\n" + LISTED.replace("\n", "\r\n")),
        settings=FROM_LIST,
    ),
    Surprise(
        "list with images that are not there",
        write_list(LISTED + "train/ant/none.png,ant\n"),
        settings=FROM_LIST,
        code=3,
        codes={"init": 0},
        said=("1 of 13 images cannot be read", "{data}/train/ant/none.png: does not exist"),
    ),
    Surprise(
        "list with absolute and relative paths",
        steps(
            put("more/ant/7.png", "more/ant/8.png"),
            write_list(LISTED + "{data}/more/ant/7.png,ant\n../{data.name}/more/ant/8.png,ant\n"),
        ),
        settings=FROM_LIST,
        train={"ant": 6, "bee": 4},
    ),
    Surprise(
        "list with a null byte",
        write_list(LISTED + "train/ant/\0.png,ant\n"),
        settings=FROM_LIST,
        code=3,
        said=("a path with a null byte, which no file has",),
    ),
    Surprise(
        "list in another encoding",
        write_list(LISTED.replace("ant\n", "ämsel\n"), encoding="latin-1"),
        settings=FROM_LIST,
        code=3,
        said=("{data}/train.csv is not UTF-8: byte 0xe4 in line",),
    ),
)


# --- what a surprise has to come to --------------------------------------------------------------


def handle(surprise: Surprise, folder: Path) -> None:
    """Run the commands that take such data, and compare what they do and say."""
    data = folder / "data"
    make_plain(data)
    surprise.prepare(data)
    settings = [each.format(data=data) for each in surprise.settings]
    given = dict(each.split("=", 1) for each in settings)
    train = Path(given.get("data.train", data / "train"))
    val = Path(given.get("data.val", data / "val"))
    config = write_config(folder, {"train": str(data / "train"), "val": str(data / "val")})
    done = run(folder, "fit", config, "--dry-run", *settings)
    check_words(done, surprise.code, [part.format(data=data) for part in surprise.said])
    assert not (folder / "run").exists()
    if surprise.code == 0:
        check_counts(done, surprise)
        check_labels(train, val, surprise)
    check_other_commands(folder, train, surprise)


def check_words(done: Outcome, code: int, said: Sequence[str]) -> None:
    assert done.code == code, done
    assert "Traceback" not in done.err
    for part in said:
        assert part in done.err, (part, done.err)
    errors = [line for line in done.talk if line.startswith("error: ")]
    assert len(errors) == (code != 0), done.err
    if code:
        assert "error: unexpected" not in done.err, done.err
        assert done.out == ""


def check_counts(done: Outcome, surprise: Surprise) -> None:
    """What a plan says of the data."""
    total = [sum(counts.values()) for counts in (surprise.train, surprise.val)]
    found = f"data: {total[0]} train, {total[1]} val images of {len(surprise.train)} classes"
    assert found in done.err, done.err
    others = [reason for reason in surprise.skipped.values() if reason not in BY_REASON]
    used = f"data.train: {len(others)} files are not used"
    assert (used in done.err) == bool(others), done.err
    assert ("not used" in done.err) == bool(others), done.err


def check_labels(train: Path, val: Path, surprise: Surprise) -> None:
    """Classes, the class of each image by the folder it lies in, and what is not used."""
    images = scan_labelled(train)
    assert images.classes == tuple(sorted(surprise.train))
    held_out = scan_labelled(val, classes=images.classes)
    for split, counts in ((images, surprise.train), (held_out, surprise.val)):
        assert dict(zip(split.classes, split.class_counts(), strict=True)) == counts
        for path, label in zip(split.paths, split.labels, strict=True):
            below = path.parts if split.root.is_file() else path.relative_to(split.root).parts
            assert split.classes[label] in [unicodedata.normalize("NFC", part) for part in below]
            assert path.is_file() or split.root.name.endswith(".tar")
    base = train.parent if train.suffix == ".csv" else train
    skipped = {str(each.path.relative_to(base)): each.reason for each in images.skipped}
    assert skipped == surprise.skipped


def check_other_commands(folder: Path, train: Path, surprise: Surprise) -> None:
    """Other commands find the same images in the same folder, or refuse it as `fit` does."""
    model = write_model(folder, sorted(surprise.train))
    array = folder / "o.npy"
    commands: dict[str, Sequence[str | Path]] = {
        "evaluate": (train, "-m", model, "--json"),
        "embed": (train, array, "-m", model),
        "predict": (train, "-m", model, "--csv"),
        "init": (train, "-o", folder / "init.yaml"),
    }
    done = {name: run(folder, name, *arguments) for name, arguments in commands.items()}
    for name, each in done.items():
        expected = surprise.codes.get(name, surprise.code)
        assert each.code == expected, (name, each)
        assert "Traceback" not in each.err
        assert "unexpected" not in each.err, each.err
        if each.code:
            assert each.err.count("error: ") == 1, each.err
        if each.code and name != "predict":  # which says it of each input, on stdout
            for part in surprise.words:
                assert part.format(data=folder / "data") in each.err, (name, each.err)
    if surprise.code == 0 and surprise.codes.get("evaluate", 0) == 0:
        result = json.loads(done["evaluate"].out)
        supports = {row["class"]: row["support"] for row in result["per_class"]}
        assert supports == dict(surprise.train)
        if done["init"].code == 0:
            assert f"classes: {len(surprise.train)}, " in done["init"].err
    if done["embed"].code == 0:
        check_paths(train, read_column(array.with_suffix(".csv").read_bytes(), 1), surprise)
        rows = os.fsencode(done["predict"].out)
        check_paths(train, read_column(rows, 0), surprise)


def check_paths(train: Path, paths: Sequence[str], surprise: Surprise) -> None:
    """Every image once, in order; beyond those of the classes only what lies outside of them."""
    expected = [str(path) for path in scan_images(train)[0]] if train.is_dir() else paths
    assert list(paths) == list(expected)
    if surprise.code == 0:
        strays = {name for name, reason in surprise.skipped.items() if reason == OUTSIDE}
        assert len(paths) == sum(surprise.train.values()) + len(strays)


def read_column(content: bytes, column: int) -> list[str]:
    """A column of a CSV file without its heading."""
    rows = csv.reader(content.decode("utf-8", "surrogateescape").splitlines())
    return [row[column] for row in rows][1:]


# --- without permission --------------------------------------------------------------------------


def forbid_writing(data: Path) -> None:
    for path in (*data.glob("*/*"), *data.glob("*"), data):
        path.chmod(0o555)


LOCKED = (
    Surprise(
        "class folder without permission",
        steps(put("train/cat/1.png"), lambda data: (data / "train/cat").chmod(0)),
        code=3,
        said=("without images in {data}/train: 'cat'", "cat cannot be read (permission denied)"),
        codes={"embed": 0, "predict": 0},
    ),
    Surprise(
        "folder in a class without permission",
        steps(put("train/ant/more/1.png"), lambda data: (data / "train/ant/more").chmod(0)),
        skipped={"ant/more": "cannot be read (permission denied)"},
        said=("{data}/train/ant/more (cannot be read (permission denied))",),
    ),
    Surprise(
        "folder that can be listed and not entered",
        lambda data: (data / "train/bee").chmod(0o444),
        code=3,
        said=("4 of 12 images cannot be read", "  {data}/train/bee/0.png: cannot be read (perm"),
        codes={"init": 0},
    ),
    Surprise(
        "image without permission",
        lambda data: (data / "train/ant/0.png").chmod(0),
        code=3,
        said=("1 of 12 images cannot be read", "  {data}/train/ant/0.png: "),
        codes={"init": 0},
    ),
    Surprise(
        "training folder without permission",
        lambda data: (data / "train").chmod(0),
        code=3,
        said=("{data}/train cannot be read (permission denied)", "check its permissions"),
        words=("{data}/train cannot be read (permission denied)", "check its permissions"),
    ),
    Surprise(
        "data that cannot be written",
        forbid_writing,
    ),
)


def handle_locked(surprise: Surprise, folder: Path) -> None:
    """As somebody to whom permissions matter, in a folder that they can reach."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
            stack.callback(os.seteuid, 0)
        if not os.access(name, os.W_OK, effective_ids=True):
            raise NotPossible(f"{name} is out of reach for other users")
        try:
            handle(surprise, Path(name))
        finally:
            for place_ in sorted(Path(name).rglob("*")):
                with suppress(OSError):
                    place_.chmod(0o755)


# --- folders that change -------------------------------------------------------------------------


def vanish_during_scan(folder: Path) -> None:
    """A class folder goes after the root was listed, and before its own turn."""
    data = folder / "data"
    make_plain(data)
    config = write_config(folder, {"train": str(data / "train"), "val": str(data / "val")})
    with after_listing(data / "train", lambda: shutil.rmtree(data / "train/bee")):
        done = run(folder, "fit", config, "--dry-run")
    gone = "bee cannot be read (no such file or directory)"
    check_words(done, 3, ("without images in", "'bee'", gone))


def vanish_within_class(folder: Path) -> None:
    """A folder within a class goes: the rest is taken, and the folder named."""
    data = folder / "data"
    make_plain(data)
    place(data / "train/ant/more/1.png")
    config = write_config(folder, {"train": str(data / "train"), "val": str(data / "val")})
    with after_listing(data / "train/ant", lambda: shutil.rmtree(data / "train/ant/more")):
        done = run(folder, "fit", config, "--dry-run")
    check_words(done, 0, ("data: 8 train", f"1 files are not used, such as {data}/train/ant/more"))


def after_listing(folder: Path, change: Callable[[], object]) -> AbstractContextManager[object]:
    """Change something as soon as `folder` has been listed."""
    truly_read = walk._read_folder

    def read(path: str) -> Listing:
        listing = truly_read(path)
        if Path(path) == folder:
            change()
        return listing

    return mock.patch.object(walk, "_read_folder", read)


def vanish_before_check(folder: Path) -> None:
    """An image goes between scan and check: it is named, or left out if it may be."""
    data = folder / "data"
    make_plain(data)
    gone = data / "train/ant/0.png"
    config = write_config(folder, {"train": str(data / "train"), "val": str(data / "val")})
    truly_inspect = image_checks.inspect_images

    def inspect(*arguments: Any, **named: Any) -> Any:
        gone.unlink(missing_ok=True)
        return truly_inspect(*arguments, **named)

    with mock.patch("vtrain.data.splits.inspect_images", inspect):
        done = run(folder, "fit", config, "--dry-run")
        check_words(done, 3, ("1 of 12 images cannot be read", f"  {gone}: does not exist"))
        place(gone)
        done = run(folder, "fit", config, "--dry-run", "data.on_bad_image=skip")
    check_words(done, 0, (f"skipped {gone}: does not exist", "data: 7 train"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def replace_by_text(path: Path) -> None:
    path.write_text("no image")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": empty,
    "cut": cut,
    "replaced by text": replace_by_text,
    "replaced by a folder": replace_by_folder,
    "replaced by a pipe": replace_by_pipe,
    "replaced by a broken link": replace_by_broken_link,
}


TELLING_CHANGES = ("deleted", "replaced by a pipe")


def change_during_training(change: Callable[[Path], object], folder: Path) -> None:
    """A training image changes after it was checked: training ends and names it."""
    data = folder / "data"
    make_plain(data)
    image = data / "train/bee/2.png"
    config = write_config(folder, {"train": str(data / "train"), "val": str(data / "val")})
    truly_train = FitRun.train

    def train(self: FitRun) -> None:
        change(image)
        truly_train(self)

    with mock.patch.object(FitRun, "train", train):
        done = run(folder, "fit", config)
    said = (f"{image} was readable before training and is not now: ", "continue with --resume")
    check_words(done, 3, said)
    assert f"error: {image} was readable" in (folder / "run/log.txt").read_text()
    restore(image)
    check_words(run(folder, "fit", config, "--resume"), 0, ("holds no checkpoint yet",))


def restore(image: Path) -> None:
    """An image again, whatever took its place."""
    image.rmdir() if image.is_dir() else image.unlink(missing_ok=True)
    place(image)


def change_other_commands(change: Callable[[Path], object], folder: Path) -> None:
    """An image changes between scan and reading: every command names it and answers the others."""
    data = folder / "data"
    make_plain(data)
    image = data / "train/bee/2.png"
    model = write_model(folder, sorted(ANT_AND_BEE))
    array = folder / "o.npy"
    commands: dict[str, tuple[Any, Sequence[str | Path]]] = {
        "evaluate": (evaluate, (data / "train", "-m", model, "--json")),
        "embed": (embed, (data / "train", array, "-m", model)),
        "predict": (inputs, (data / "train", "-m", model, "--json")),
    }
    for name, (module, arguments) in commands.items():
        scan = {evaluate: "scan_labelled", embed: "scan_with_labels"}.get(module, "scan_images")
        truly_scan = getattr(module, scan)

        def find(*given: Any, scan_now: Any = truly_scan, **named: Any) -> Any:
            found = scan_now(*given, **named)
            change(image)
            return found

        with mock.patch.object(module, scan, find):
            done = run(folder, name, *arguments)
        assert done.code == 3, (name, done)
        assert "Traceback" not in done.err
        if name == "evaluate":
            (failure,) = json.loads(done.out)["failures"]
            assert failure["path"] == str(image)
            assert json.loads(done.out)["count"] == 7
        elif name == "embed":
            statuses = read_column(array.with_suffix(".csv").read_bytes(), 2)
            assert [status == "ok" for status in statuses] == [*6 * [True], False, True]
        else:
            rows = [json.loads(line) for line in done.out.splitlines()]
            bad = [row["path"] for row in rows if row["status"] == "error"]
            assert (len(rows), bad) == (8, [str(image)])
        if name != "predict":
            assert f"  {image}: " in done.err
        restore(image)


# --- where and how many --------------------------------------------------------------------------


def work_in_the_folder(folder: Path) -> None:
    """The working directory itself, and paths relative to it."""
    data = folder / "data"
    make_plain(data)
    model = write_model(folder, sorted(ANT_AND_BEE))
    with chdir(data / "train"):
        done = run(folder, "evaluate", ".", "-m", model, "--json")
        assert (done.code, json.loads(done.out)["count"]) == (0, 8)
        done = run(folder, "predict", ".", "-m", model, "--csv")
        paths = read_column(done.out.encode(), 0)
        assert paths == [f"{name}/{number}.png" for name in ANT_AND_BEE for number in range(4)]
        assert run(folder, "embed", ".", folder / "o.npy", "-m", model).code == 0
        assert read_column((folder / "o.csv").read_bytes(), 1) == paths
        done = run(folder, "init", ".", "-o", folder / "init.yaml")
        assert "images: 8 train" in done.err
        config = write_config(folder, {"train": "data/train", "val": "data/val"})
        done = run(folder, "fit", config, "data.train=.", "data.val=../val", "--dry-run")
        check_words(done, 0, ("data: 8 train, 4 val",))


def scan_many_classes(count: int, folder: Path) -> None:
    """So many class folders, of one image each in both splits, and a few empty ones in train."""
    data = folder / "data"
    for split in ("train", "val"):
        for number in range(count):
            place(data / split / f"class {number:05}" / "1.png")
    config = write_config(folder, {"train": str(data / "train"), "val": str(data / "val")})
    done = run(folder, "fit", config, "--dry-run")
    check_words(done, 0, (f"data: {count} train, {count} val images of {count} classes (1 per",))
    assert f"classes: {count}, 1 training" in run(folder, "init", data, "-o", folder / "i.yaml").err
    shutil.rmtree(data / "val" / "class 00007")
    done = run(folder, "fit", config, "--dry-run")
    check_words(done, 0, ("data.val has no images of 'class 00007'\n",))
    for number in range(count // 2):
        (data / "train" / f"empty {number:05}").mkdir()
    done = run(folder, "fit", config, "--dry-run")
    check_words(done, 0, ("'empty 00000', 'empty 00001'", f"and {count // 2 - 5} more"))


def cases(full: bool) -> Iterator[Case]:
    """Every surprise; the short form has fewer changes and classes."""
    for surprise in SURPRISES:
        yield Case(surprise.name, partial(handle, surprise))
    for surprise in LOCKED:
        yield Case(surprise.name, partial(handle_locked, surprise))
    yield Case("class folder that vanishes during the scan", vanish_during_scan)
    yield Case("folder in a class that vanishes during the scan", vanish_within_class)
    yield Case("image that vanishes after the scan", vanish_before_check)
    for name, change in CHANGES.items():
        if full or name in TELLING_CHANGES:
            yield Case(f"image {name} during training", partial(change_during_training, change))
            yield Case(f"image {name} after the scan", partial(change_other_commands, change))
    yield Case("the working directory", work_in_the_folder)
    for count in MANY_CLASSES if full else MANY_CLASSES[:1]:
        yield Case(f"{count} classes", partial(scan_many_classes, count))
