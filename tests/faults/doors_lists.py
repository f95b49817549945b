"""Lists of paths and classes, as people have them."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.commands import run
from tests.faults.door import Door, put, put_classes, steps, write, write_fit
from tests.helpers.program import Outcome
from vtrain.data.folders import scan_images, scan_labelled
from vtrain.data.lists import ListLayout, parse_columns
from vtrain.data.splits import describe_splits, scan_splits
from vtrain.runs.settings import load_settings
from vtrain.system.terminal import Console

FILES = [(f"{name}/{n}.png", name) for name in ("cat", "dog") for n in range(6)]
FIT = (("fit", "c.yaml", "run_dir=run"),)
TWO = {"cat": 6, "dog": 6}
Lines = Sequence[Sequence[object]]


def make(
    name: str,
    lines: Lines | str | bytes,
    *,
    sep: str = ",",
    data: str = "val_fraction: 0.34",
    root: str = "",
) -> Callable[[], None]:
    """Twelve pictures below `root`, a list of `lines`, and a config that trains on it."""

    def build() -> None:
        put_classes(root or ".")
        content: str | bytes
        if isinstance(lines, (str, bytes)):
            content = lines
        elif name.endswith(".txt"):
            content = "".join(f"{sep.join(map(str, line))}\n" for line in lines)
        else:
            stream = io.StringIO()
            csv.writer(stream, delimiter=sep).writerows(lines)
            content = stream.getvalue()
        write(name, content)
        write_fit(f"train: {name}, {data}")

    return build


Check = Callable[[dict[str, Any]], object]


def holds(counts: dict[str, int] | None = None, **splits: int) -> Check:
    """So many images of each class in all, and so many in each split."""

    def check(data: dict[str, Any]) -> None:
        total: Counter[str] = Counter()
        for split in ("train", "val", "test"):
            total.update(data.get(split, {}).get("per_class", {}))
        assert total == Counter(counts or TWO), total
        found = {name: data[name]["count"] for name in splits}
        assert found == splits, found

    return check


def skips(*reasons: str) -> Check:
    """The lines that do not count, by reason."""

    def check(data: dict[str, Any]) -> None:
        assert sorted(each["reason"] for each in data["train"]["skipped"]) == sorted(reasons)

    return check


def trained(check: Check) -> Callable[[Path, Outcome], object]:
    """What the run says of its data."""
    return lambda folder, _: check(json.loads((folder / "run/data.json").read_text()))


def scanned(
    check: Check, said: Sequence[str], unsaid: Sequence[str]
) -> Callable[[Path, Outcome], object]:
    """What a run would say of its data, without one: that is what takes time."""

    def look(_folder: Path, _outcome: Outcome) -> None:
        stream = io.StringIO()
        config = load_settings(Path("c.yaml")).config.data
        splits = scan_splits(config, seed=0, reporter=Console(stream=stream))
        check(describe_splits(splits))
        told = " ".join(stream.getvalue().split())
        assert all(each in told for each in said), told
        assert not any(each in told for each in unsaid), told
        images = [path for split in splits.named().values() for path in split.paths]
        assert all(path.is_file() for path in images), images

    return look


def predicted(*names: str) -> Callable[[Path, Outcome], object]:
    """One JSON line for each of these, in order."""

    def check(_folder: Path, outcome: Outcome) -> None:
        paths = [json.loads(line)["path"] for line in outcome.out.splitlines()]
        assert paths == list(names), paths

    return check


def rows(
    *header: str, cells: Callable[[int, str, str], Sequence[object]]
) -> list[Sequence[object]]:
    """A header, and cells made of number, path and class of every picture."""
    return [header, *(cells(n, path, label) for n, (path, label) in enumerate(FILES))]


def stem(path: str) -> str:
    return path.replace("/", "_").removesuffix(".png")


def flat(names: str = "train_images", header: str = "image_id,label", suffix: str = "") -> None:
    """Pictures in one folder, and a list of ids beside it, as from Kaggle."""
    for path, label in FILES:
        put(f"{names}/{stem(path)}.png", 60 if label == "cat" else 190, int(path[4]))
    put("test_images/x.png")
    write("train.csv", f"{header}\n" + "".join(f"{stem(p)}{suffix},{c}\n" for p, c in FILES))
    write_fit("train: train.csv, val_fraction: 0.34")


PLAIN = rows("path", "label", cells=lambda _, p, c: (p, c))
CAPTIONS = rows("file_name", "text", "label", cells=lambda n, p, c: (p, f"a photo {n % 4}", c))
FIVE = ("cat/0.png", "gone.png", "dog/1.png", "cat/0.png", "dog/2.png")
PREDICT = ("predict", "-m", "simple_cnn:none", "--json")


def each(*steps: Callable[[], object]) -> Callable[[], None]:
    """All of the steps."""

    def build() -> None:
        for step in steps:
            step()

    return build


def one_hot(n: int, path: str, label: str) -> tuple[object, ...]:
    return path, int(label == "cat"), int(label == "dog")


def split_of(n: int) -> str:
    return ("train", "Training", "TRAIN", "train", "valid", "Testing")[n % 6]


def umlauts() -> None:
    for n in range(6):
        put(f"Bäume/Übergröße {n}.png", 60, n)
        put(f"Büsche/ä {n}.png", 190, n)
    lines = [f"Bäume/Übergröße {n}.png;Bäume;{split_of(n)}" for n in range(6)]
    lines += [f"Büsche/ä {n}.png;Büsche;{split_of(n)}" for n in range(6)]
    write("liste.csv", "\ufeffBild;Klasse;Split\r\n" + "".join(f"{each}\r\n" for each in lines))
    write_fit("train: liste.csv")


def many_missing() -> None:
    put_classes(".")
    lines = [f"gone/{n}.png,cat\n" for n in range(3000)]
    write("x.csv", "path,label\n" + "".join(f"{p},{c}\n" for p, c in FILES) + "".join(lines))
    write_fit("train: x.csv, val_fraction: 0.34")


def elsewhere() -> None:
    """The list lies in a folder, its paths are those of the working directory."""
    make("lists/x.csv", PLAIN)()


def library(check: Callable[[], None]) -> Callable[[Path, Outcome], object]:
    """A check of the library, behind any command."""
    return lambda _folder, _outcome: check()


def same_list_in_every_form() -> None:
    """Every separator and encoding gives the same images."""
    expected = [(path, label) for path, label in FILES]
    for suffix in (".csv", ".tsv", ".txt"):
        for sep in ",;\t|":
            for head in (["path", "label"], []):
                for encoding in ("utf-8", "utf-8-sig", "utf-16"):
                    for end in ("\n", "\r\n"):
                        lines = [sep.join(each) for each in ([head] if head else []) + FILES]
                        text = end.join([*lines, "", ""])
                        path = write(f"form{suffix}", text.encode(encoding))
                        images = scan_labelled(path)
                        found = [
                            (name, images.classes[label])
                            for name, label in zip(images.paths.names(), images.labels, strict=True)
                        ]
                        assert found == expected, (suffix, sep, head, encoding, end, found)


def columns_option() -> None:
    path = write("x.csv", "a,b,c\n" + "".join(f"{c},{p},{n}\n" for n, (p, c) in enumerate(FILES)))
    layout = parse_columns("path=b, label=a")
    assert layout == ListLayout(path="b", label="a")
    assert scan_labelled(path, layout=layout).class_counts() == [6, 6]


def names_with_spaces() -> None:
    put("my cat 1.png")
    put("my cat 2.jpg")
    path = write("x.txt", "my cat 1.png\nmy cat 2.jpg\n")
    assert list(scan_images(path)[0].names()) == ["my cat 1.png", "my cat 2.jpg"]
    path = write("y.txt", "my cat 1.png 0\nmy cat 2.jpg 1\n")
    images = scan_labelled(path)
    assert images.classes == ("0", "1")
    assert list(images.paths.names()) == ["my cat 1.png", "my cat 2.jpg"]


def names_with_commas() -> None:
    put("a, 1.png")
    put("b; 2.png")
    path = write("x.txt", "a, 1.png\nb; 2.png\n")
    assert list(scan_images(path)[0].names()) == ["a, 1.png", "b; 2.png"]


def bad(name: str, lines: Lines | str | bytes, *said: str, sep: str = ",", data: str = "") -> Door:
    """A list that `fit` refuses, with what is said."""
    build = make("x.csv", lines, sep=sep, data=data or "val_fraction: 0.34")
    return Door(name, build, FIT, 3, said)


def good(
    name: str,
    build: Callable[[], object],
    *said: str,
    unsaid: Sequence[str] = (),
    check: Check | None = None,
) -> Door:
    """A list that `fit` would train on, all twelve images unless `check` says something else."""
    look = scanned(check or holds(), said, unsaid)
    return Door(name, build, (("config", "c.yaml"),), check=look)


def trains(name: str, build: Callable[[], object], *said: str, check: Check) -> Door:
    """As `good`, and it does train."""
    return Door(name, build, FIT, 0, said, check=trained(check))


COLUMNS = (
    trains("captions beside labels", make("m.csv", CAPTIONS), check=holds()),
    good(
        "a pandas index, label first",
        make("x.csv", rows("", "label", "filename", cells=lambda n, p, c: (n, c, p))),
    ),
    good("an index without header", make("x.csv", [(n, *each) for n, each in enumerate(FILES)])),
    good(
        "unknown header, the first column names files",
        make("x.csv", rows("Bild", "Rasse", cells=lambda _, p, c: (p, c))),
        "paths from 'Bild'",
        "classes from 'Rasse'",
    ),
    good(
        "unknown header, the second column names files",
        make("x.csv", rows("Rasse", "Bild", cells=lambda _, p, c: (c, p))),
        "paths from 'Bild'",
        "classes from 'Rasse'",
    ),
    good(
        "labels as numbers and as names",
        make(
            "x.csv",
            rows(
                "path",
                "label",
                "class_name",
                cells=lambda _, p, c: (p, int(c == "dog"), c),
            ),
        ),
        "'label' says the same as 'class_name'",
    ),
    good("a whale's Id", make("x.csv", rows("Image", "Id", cells=lambda _, p, c: (p, c))), "'Id'"),
    good(
        "HAM10000",
        make(
            "x.csv",
            rows("lesion_id", "image_id", "dx", "age", cells=lambda n, p, c: (n // 2, p, c, 40)),
        ),
        "classes from 'dx'",
        "data.group=lesion_id",
    ),
    good(
        "numbers that pandas made floats",
        make("x.csv", rows("path", "label", cells=lambda _, p, c: (p, float(c == "dog")))),
        "without the .0",
        check=holds({"0": 6, "1": 6}),
    ),
    good(
        "named columns",
        make(
            "x.csv",
            rows("a", "b", "c", cells=lambda n, p, c: (n, c, p)),
            data="columns: {path: c, label: b}, val_fraction: 0.34",
        ),
    ),
    good(
        "one-hot", make("x.csv", rows("image", "cat", "dog", cells=one_hot)), "columns of 0 and 1"
    ),
    bad(
        "two columns of classes",
        rows("path", "label", "species", cells=lambda n, p, c: (p, c, n % 2)),
        "each of the columns 'label', 'species' may hold the label",
        "data.columns: {label: NAME}",
    ),
    bad(
        "several unknown columns",
        rows("path", "colour", "size", cells=lambda n, p, c: (p, c, n % 3)),
        "no column is known to hold the classes; it has 'path', 'colour', 'size'",
        "data.columns: {path: NAME, label: NAME}",
    ),
    bad(
        "captions alone",
        rows("path", "text", cells=lambda n, p, c: (p, f"photo {n}")),
        "no column is known to hold the classes",
    ),
    bad(
        "unknown header and no files",
        rows("a", "b", cells=lambda n, p, c: (stem(p) + "x", c)),
        "no column names its files",
    ),
    bad("no classes", [("image_id",), *((p,) for p, _ in FILES)], "names no classes"),
    bad(
        "three columns without header",
        [(p, c, n % 2) for n, (p, c) in enumerate(FILES)],
        "a first line such as path,label",
    ),
    bad(
        "several ones in a row",
        rows("image", "cat", "dog", cells=lambda n, p, c: (p, 1, int(n > 3))),
        "x.csv:6: 2 of 2 columns of 0 and 1 hold 1",
    ),
    bad(
        "a misspelled column",
        PLAIN,
        "has no column 'lable' (asked for as label), did you mean label?",
        data="columns: {label: lable}, val_fraction: 0.34",
    ),
    bad(
        "a named column without header",
        FILES,
        "its first line names a file",
        data="columns: {label: kind}, val_fraction: 0.34",
    ),
    Door(
        "columns beside a folder",
        each(
            partial(put_classes, "base"),
            partial(write_fit, "train: base, val_fraction: 0.3, columns: {path: x}"),
        ),
        (("config", "c.yaml"),),
        2,
        ("data.columns: is for lists",),
    ),
    Door("columns in an option", lambda: None, (("schema",),), check=library(columns_option)),
)

TEXT = (
    Door(
        "every separator, encoding and line end",
        lambda: put_classes("."),
        (("schema",),),
        check=library(same_list_in_every_form),
    ),
    good("semicolons", make("x.csv", PLAIN, sep=";"), "separated by a semicolon"),
    good("plain commas", make("x.csv", PLAIN), unsaid=("separated", "x.csv:")),
    good("path and number", make("val.txt", FILES, sep=" "), "separated by a space"),
    good("sep= of Excel", make("x.csv", "sep=;\n" + "".join(f"{p};{c}\n" for p, c in FILES))),
    good(
        "comments at the start",
        make("x.txt", "# made by hand\n#\n" + "".join(f"{p}\t{c}\n" for p, c in FILES)),
        "first 2 lines, which are comments",
    ),
    good(
        "R's table",
        make(
            "x.txt",
            '"path"\t"label"\n'
            + "".join(f'"{n}"\t"{p}"\t"{c}"\n' for n, (p, c) in enumerate(FILES, 1)),
        ),
    ),
    good("separators at the end", make("x.csv", "".join(f"{p},{c},\n" for p, c in FILES))),
    good(
        "spaces behind commas",
        make("x.csv", "label, path\n" + "".join(f"{c}, {p}\n" for p, c in FILES)),
        "spaces around paths",
    ),
    good(
        "backslashes",
        make("x.csv", rows("path", "label", cells=lambda _, p, c: (p.replace("/", "\\"), c))),
        "backslashes in paths taken for slashes",
    ),
    good(
        "JSON lines",
        make(
            "metadata.jsonl",
            "".join(json.dumps({"file_name": p, "text": "x", "label": c}) + "\n" for p, c in FILES),
        ),
    ),
    bad(
        "Latin-1",
        "path,label\ncat/0.png,Kätzchen\n".encode("latin-1"),
        "x.csv is not UTF-8: byte 0xe4 in line 2, at 12",
        "save the list as UTF-8",
    ),
    bad("null bytes in a path", "path,label\ncat/\0.png,cat\n", "x.csv:2: a path with a null byte"),
    bad(
        "UTF-16 without its mark",
        "path,label\n".encode("utf-16-le"),
        "null bytes in its first line",
    ),
    bad("a workbook", b"PK\x03\x04\x14\xff\x00\x06", "x.csv"),
    bad(
        "a comma in a path",
        "path,label\n" + "".join(f"{p},{c}\n" for p, c in FILES) + "cat/a,b.png,cat\n",
        "x.csv:14: 3 cells, expected 2",
    ),
    Door(
        "bytes that are no UTF-8 in a class",
        make("x.txt", b"".join(f"{p}\t{c}".encode() + b"\xe4\n" for p, c in FILES)),
        FIT,
        3,
        ("x.txt is not UTF-8: byte 0xe4 in line 1",),
    ),
    Door(
        "JSON lines with a nested class",
        make("x.jsonl", "".join(json.dumps({"path": p, "label": [c]}) + "\n" for p, c in FILES)),
        FIT,
        3,
        ("line 1: 'label' is no single value",),
    ),
    Door("names with spaces", lambda: None, (("schema",),), check=library(names_with_spaces)),
    Door("names with commas", lambda: None, (("schema",),), check=library(names_with_commas)),
)

PLACES = (
    good("ids without suffix below a folder", flat, "below train_images", "without a suffix"),
    good(
        "names below a folder",
        partial(flat, header="id,breed", suffix=".png"),
        "below train_images",
    ),
    good("data.root", make("x.csv", PLAIN, root="photos", data="root: photos, val_fraction: 0.34")),
    Door(
        "the same names below two folders",
        each(flat, partial(flat, "train_small")),
        FIT,
        3,
        ("are below each of", "train_images', '", "train_small'", "data.root"),
    ),
    Door(
        "an id of two files",
        each(flat, partial(put, "train_images/cat_3.jpg")),
        FIT,
        3,
        ("train.csv:5: 'cat_3' may be each of several images",),
    ),
    Door(
        "paths of the working directory",
        elsewhere,
        (("fit", "c.yaml", "data.train=lists/x.csv", "run_dir=run"),),
        3,
        ("are not below lists, but below the working directory", "data.root="),
    ),
    Door(
        "most files are missing",
        many_missing,
        FIT,
        3,
        ("3000 of 3012 images cannot be read", "gone/0.png", "and 2980 more", "data.root"),
    ),
    Door(
        "missing files are skipped if asked to",
        many_missing,
        (("fit", "c.yaml", "run_dir=run", "data.on_bad_image=skip"),),
        0,
        ("skipped gone/0.png", "skipped and 2980 more"),
        check=trained(holds()),
    ),
    Door(
        "every line is a row",
        each(
            partial(put_classes, "."),
            partial(write, "five.txt", "cat/0.png\ngone.png\ndog/1.png\ncat/0.png\ndog/2.png\n"),
        ),
        ((*PREDICT, "five.txt"),),
        3,
        check=predicted(*FIVE),
    ),
)

SPLITS = (
    trains(
        "umlauts, semicolons and a split column",
        umlauts,
        "classes from 'Klasse'",
        check=holds({"Bäume": 6, "Büsche": 6}, train=8, val=2, test=2),
    ),
    good(
        "a split column without val",
        make(
            "x.csv",
            rows("path", "label", "subset", cells=lambda n, p, c: (p, c, ("train", "test")[n % 2])),
        ),
        check=holds(train=4, val=2, test=6),
    ),
    bad(
        "lines of val and val_fraction",
        rows("path", "label", "split", cells=lambda n, p, c: (p, c, split_of(n))),
        "has 2 lines of val in its column of splits, and data.val_fraction is set as well",
    ),
    bad(
        "a split of another name",
        rows("path", "label", "split", cells=lambda n, p, c: (p, c, "AB"[n % 2])),
        "the column of splits of x.csv holds 'A', 'B', expected train, val or test",
    ),
    bad(
        "no validation anywhere",
        PLAIN,
        "no validation images",
        "data.val_fraction=0.2",
        data="val: null",
    ),
    Door(
        "a list of splits as data.val",
        each(
            make("x.csv", PLAIN, data="val: y.csv"),
            partial(write, "y.csv", "path,label,split\ncat/0.png,cat,val\ndog/0.png,dog,test\n"),
        ),
        FIT,
        3,
        ("y.csv has a column of splits, with lines 1 of val, 1 of test", "without data.val"),
    ),
    good(
        "folds are no splits",
        make("x.csv", rows("path", "label", "fold", cells=lambda n, p, c: (p, c, n % 3))),
        check=holds(train=8, val=4),
    ),
)

LINES = (
    good(
        "lines twice, and without a class",
        make("x.csv", [*PLAIN, FILES[0], ("./cat/1.png", "cat"), ("cat/x.png", "")]),
        "1 line has no class",
        check=skips("is listed before", "is listed before", "has no class in the list"),
    ),
    bad("a file of two classes", [*PLAIN, ("cat/0.png", "dog")], "listed as 'cat' and as 'dog'"),
)


def put_named(file: str, text: str) -> Callable[[], None]:
    """Class folders, names for their classes, and a config of both."""

    def build() -> None:
        put_classes("a")
        write(file, text)
        write_fit(f"train: a, val_fraction: 0.3, names: {file}")

    return build


def check_named(*names: str) -> Callable[[Path, Outcome], None]:
    """The run has these classes, and folders under their own names are still known."""

    def check(folder: Path, _outcome: Outcome) -> None:
        data = json.loads(Path("run/data.json").read_text())
        assert tuple(data["classes"]) == names, data["classes"]
        done = run(folder, "evaluate", "a", "-m", "run", "--json")
        assert done.code == 0, done.err
        found = {each["class"]: each["support"] for each in json.loads(done.out)["per_class"]}
        assert found == dict.fromkeys(names, 6), found
        answer = run(folder, "predict", "a/cat/0.png", "-m", "run").out
        assert any(name in answer for name in names), answer

    return check


RUN = (("fit", "c.yaml", "run_dir=run"),)
NAMES = (
    Door(
        "names in a CSV",
        put_named("n.csv", 'class,name\ncat,"tabby, striped"\ndog,Airedale\n'),
        RUN,
        said=("2 of 2 classes are named in n.csv",),
        check=check_named("tabby, striped", "Airedale"),
    ),
    Door(
        "names in the form of ImageNet's",
        put_named("n.txt", "cat tabby, tabby cat\ndog Airedale, Airedale terrier\n"),
        RUN,
        check=check_named("tabby, tabby cat", "Airedale, Airedale terrier"),
    ),
    Door(
        "names in YAML, one missing",
        put_named("n.yaml", "cat: tabby\nelk: moose\n"),
        RUN,
        said=("1 of 2 classes are named in n.yaml; not 'dog'",),
        check=check_named("tabby", "dog"),
    ),
    Door(
        "one name for two classes",
        put_named("n.json", '{"cat": "pet", "dog": "pet"}'),
        RUN,
        check=check_named("pet (cat)", "pet (dog)"),
    ),
    Door(
        "a name that is another class",
        put_named("n.csv", "cat,dog\ndog,cat\n"),
        RUN,
        3,
        ("gives names that other classes have: 'dog', 'cat'",),
    ),
    Door(
        "names of other classes",
        put_named("n.csv", "n01440764,tench\n"),
        RUN,
        3,
        ("names none of the classes 'cat', 'dog'", "it names 'n01440764'"),
    ),
    Door(
        "an index instead of names",
        put_named("n.json", '{"0": ["n01440764", "tench"]}'),
        RUN,
        3,
        ("is no mapping of classes to names",),
    ),
    Door(
        "names that are not there",
        steps(lambda: put_classes("a"), lambda: write_fit("train: a, val: a, names: n.csv")),
        RUN,
        2,
        ("data.names",),
    ),
)

DOORS: tuple[Door, ...] = (*COLUMNS, *TEXT, *PLACES, *SPLITS, *LINES, *NAMES)
