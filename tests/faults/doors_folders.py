"""Folders and tars, as people have them."""

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.faults.commands import write_model
from tests.faults.door import LEVELS, Door, put, put_classes, write, write_fit
from tests.helpers.program import Outcome
from tests.helpers.told import Told
from vtrain.config.yaml12 import load_yaml
from vtrain.data.folders import scan_labelled

INIT = (("init", "data", "-o", "c.yaml"),)


def steps(*each: Callable[[], object]) -> Callable[[], None]:
    """Several things made."""

    def build() -> None:
        for step in each:
            step()

    return build


def splits(*places: str, count: int = 6) -> Callable[[], None]:
    """Class folders in each place, no image twice."""

    def build() -> None:
        for number, place in enumerate(places):
            put_classes(place, count, seed=100 * number)

    return build


def flat(*places: str, count: int = 3) -> Callable[[], None]:
    """Images without class folders in each place."""

    def build() -> None:
        for number, place in enumerate(places):
            for image in range(count):
                put(f"{place}/{image}.png", 120, 1000 + 10 * number + image)

    return build


def made(path: str) -> Callable[[], None]:
    """An empty folder."""
    return lambda: Path(path).mkdir(parents=True)


def packed(path: str, source: str, *, inside: str = "") -> Callable[[], None]:
    """A folder as a tar, its content below `inside`."""

    def build() -> None:
        with tarfile.open(path, "w") as archive:
            archive.add(source, arcname=inside or ".")
        shutil.rmtree(source)

    return build


def data_of(path: str = "c.yaml") -> Mapping[str, object]:
    """The section of a config that names the data."""
    document, _ = load_yaml(Path(path), source=path)
    return document.data["data"]  # type: ignore[no-any-return]


def writes(
    train: str, val: str | None = None, test: str | None = None, classes: int = 2
) -> Callable[[Path, Outcome], None]:
    """`init` names these folders, and the plan of `fit` has classes of them."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        found = data_of()
        assert [found.get(key) for key in ("train", "val", "test")] == [train, val, test], found
        names = scan_labelled(Path(train)).classes
        assert names == tuple(LEVELS)[:classes], names

    return check


def init(
    name: str,
    build: Callable[[], object],
    train: str,
    val: str | None = None,
    test: str | None = None,
    *,
    said: Sequence[str] = (),
    unsaid: Sequence[str] = (),
) -> Door:
    """`init` reads a folder rightly."""
    done = writes(train, val, test)
    return Door(f"init: {name}", build, INIT, 0, said, unsaid, done)


def refused(
    name: str, build: Callable[[], object], *said: str, command: Sequence[str] = INIT[0]
) -> Door:
    """Refused with the reason, and nothing is written."""

    def check(folder: Path, _outcome: Outcome) -> None:
        assert not list(folder.glob("*.yaml")) or command[0] != "init"

    return Door(f"{command[0]}: {name}", build, (command,), 3, (*said, "hint: "), (), check)


def wrong_config(name: str, build: Callable[[], object], data: str, *said: str) -> Door:
    """`fit` refuses a config before anything is scanned."""
    return Door(
        f"fit: {name}", steps(build, lambda: write_fit(data)), (("fit", "c.yaml"),), 2, said
    )


def wrong_data(name: str, build: Callable[[], object], data: str, *said: str) -> Door:
    """`fit` refuses what it finds."""
    made_ = steps(build, lambda: write_fit(data))
    return Door(f"fit: {name}", made_, (("fit", "c.yaml", "--dry-run"),), 3, said)


def fits(
    name: str,
    build: Callable[[], object],
    data: str,
    *said: str,
    unsaid: Sequence[str] = (),
) -> Door:
    """`fit` plans with these."""
    made_ = steps(build, lambda: write_fit(data))
    return Door(f"fit: {name}", made_, (("fit", "c.yaml", "--dry-run"),), 0, said, unsaid)


def follow_list_hint(folder: Path, outcome: Outcome) -> None:
    """The command of the hint makes a list of which the classes are right, in both ways."""
    hint = outcome.err.partition("; or a list: ")[2] or outcome.err.partition("hint: a list: ")[2]
    command = hint.partition(" and data.train=list.txt")[0]
    subprocess.run(command, shell=True, check=True)
    assert scan_labelled(Path("list.txt")).classes == ("abbey", "bakery", "cabin", "dam")
    column = hint.partition("; $")[2].split()[0]
    last = command.rpartition("$")[2].split("}")[0]
    subprocess.run(command.replace(f"${last}}}", f"${column}}}"), shell=True, check=True)
    assert scan_labelled(Path("list.txt")).classes == ("a", "b")


def places() -> None:
    """Letters that hold classes."""
    for name in ("a/abbey", "a/bakery", "b/cabin", "b/dam"):
        put(f"data/{name}/1.png", seed=len(name))


def twins() -> None:
    """Two classes that differ in case only."""
    for number, name in enumerate(("Rose", "rose", "tulip")):
        for image in range(4):
            put(f"data/{name}/{image}.png", 40 + 80 * number, image)


def link_class() -> None:
    """The class folder of a split is a link to that of another."""
    put_classes("data/train")
    put("data/val/cat/9.png", seed=99)
    Path("data/val/dog").symlink_to("../train/dog")


def link_files() -> None:
    """Splits of links into one pool, one of which is in both."""
    put_classes("pool", 4)
    for split, numbers in (("train", (0, 1, 2)), ("val", (2, 3))):
        for name in LEVELS:
            for number in numbers:
                path = Path(f"data/{split}/{name}/{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(Path(f"pool/{name}/{number}.png").resolve())


def list_of(path: str, *images: str) -> Path:
    """A list of images and the folders they lie in as classes."""
    return write(path, "".join(f"{image}\t{Path(image).parent.name}\n" for image in images))


def check_rejected(_folder: Path, outcome: Outcome) -> None:
    """A rejected answer is told from the class."""
    rows = [line.split(",") for line in outcome.out.splitlines()]
    assert rows[0][-2] == "rejected"
    assert {row[-2] for row in rows[1:]} == {"confidence"}


def resume_hint(folder: Path, outcome: Outcome) -> None:
    """The hint for a run folder goes on with that run."""
    from tests.faults.commands import run

    words = outcome.err.partition("go on with it: vtrain ")[2].split()
    done = run(folder, *words)
    assert done.code == 0, done.err
    assert "runs/c-001 was finished already" in done.err, done.err


seg = splits("data/seg_train/seg_train", "data/seg_test/seg_test")
plain = splits("data/train", "data/val")
in_train = "train: data/train, val: data/val"

SPLITS = (
    init(
        "Kaggle's splits, one level too deep",
        steps(seg, flat("data/seg_pred/seg_pred")),
        "data/seg_train",
        None,
        "data/seg_test",
        said=("'seg_pred' beside the splits",),
    ),
    init(
        "train_set and test_set",
        splits("data/train_set", "data/test_set"),
        "data/train_set",
        None,
        "data/test_set",
    ),
    init(
        "TrainImages, ValImages",
        splits("data/TrainImages", "data/ValImages"),
        "data/TrainImages",
        "data/ValImages",
    ),
    init(
        "trn, dev, tst",
        splits("data/trn", "data/dev", "data/tst"),
        "data/trn",
        "data/dev",
        "data/tst",
    ),
    init(
        "train2017 and val2017",
        splits("data/train2017", "data/val2017"),
        "data/train2017",
        "data/val2017",
    ),
    init(
        "numbered steps",
        splits("data/01_train", "data/02_validation", "data/03-test"),
        "data/01_train",
        "data/02_validation",
        "data/03-test",
    ),
    init(
        "splits beside annotations, docs and samples",
        steps(plain, lambda: write("data/annotations/a.xml", "<a/>"), flat("data/samples")),
        "data/train",
        "data/val",
        said=("'annotations', 'samples' beside the splits: not used",),
    ),
    init(
        "an archive in a folder",
        splits("data/archive/dataset/train", "data/archive/dataset/valid"),
        "data/archive/dataset/train",
        "data/archive/dataset/valid",
    ),
    init(
        "train and evaluation",
        splits("data/training", "data/evaluation"),
        "data/training",
        "data/evaluation",
    ),
    init(
        "originals beside the splits made of them",
        splits("data", "data/train", "data/val"),
        "data/train",
        "data/val",
        said=("'cat', 'dog' beside the splits",),
    ),
    init(
        "trainval and test",
        splits("data/trainval", "data/test"),
        "data/trainval",
        None,
        "data/test",
    ),
    init(
        "train and an empty test",
        steps(splits("data/train"), made("data/test")),
        "data",
        said=("looking into data/train; 'test' without images",),
    ),
    init(
        "flat test",
        steps(splits("data/train", "data/val"), flat("data/test")),
        "data/train",
        "data/val",
        said=("data/test has 3 images without class folders", "vtrain predict data/test"),
    ),
    init(
        "flat test in a folder of its own",
        steps(splits("data/asl_train/asl_train"), flat("data/asl_test/asl_test")),
        "data/asl_train",
        said=("vtrain predict data/asl_test",),
    ),
    init(
        "flat val",
        steps(splits("data/train", "data/test"), flat("data/val")),
        "data/train",
        None,
        "data/test",
        said=("data/val has 3 images without class",),
    ),
    init(
        "annotations beside train",
        steps(splits("data/train"), lambda: write("data/labels/1.txt", "0 0 0")),
        "data",
        said=("looking into data/train; 'labels' without images",),
    ),
    refused(
        "flat train and test, the classes in a list",
        steps(flat("data/train", "data/test"), lambda: write("data/train.csv", "a,b")),
        "'test', 'train', whose images lie in no class folders",
        "data.train: list.csv",
    ),
    refused(
        "flat train in train",
        flat("data/train/train", "data/test1/test1"),
        "data/train holds images without class folders",
    ),
    refused(
        "classes times splits",
        flat("data/cat_train", "data/cat_test", "data/dog_train", "data/dog_test"),
        "named like splits",
    ),
    refused(
        "splits in class folders",
        flat("data/cat/train", "data/cat/test", "data/dog/train", "data/dog/test"),
        "holds class folders that hold splits, 'test', 'train'",
        "data/<split>/<class>/<image>",
    ),
    refused(
        "two training folders",
        splits("data/train1", "data/train2", "data/val"),
        "several folders for one split, 'train1', 'train2'",
        "data.train=data/train1",
    ),
    refused(
        "val and test without train",
        splits("data/val", "data/test"),
        "named like splits, 'test', 'val'",
        "data.train=data/",
    ),
    refused(
        "held-out images among class folders",
        splits("data", "data/test"),
        "'test', with folders in them, beside others, 'cat', 'dog'",
        "data.val or data.test",
    ),
    refused(
        "unlabelled test among class folders",
        steps(splits("data"), flat("data/test")),
        "'test', with images, beside others, 'cat', 'dog'",
    ),
    refused(
        "unlabelled images beside train",
        steps(splits("data/train"), flat("data/unlabeled")),
        "'train', with folders in them, beside others, 'unlabeled'",
        "data.train=data/train",
    ),
    wrong_data(
        "a root of splits",
        splits("data/seg_train", "data/seg_test"),
        "train: data, val_fraction: 0.3",
        "data.train: data holds splits, not classes",
        "data.train=data/seg_train data.val=data/seg_test",
    ),
    Door(
        "evaluate: a root of splits",
        steps(splits("data/train_x", "data/test_x"), lambda: write_model(Path(), sorted(LEVELS))),
        (("evaluate", "data", "-m", "model.safetensors"),),
        3,
        ("holds splits, not classes", "use data/test_x instead"),
    ),
    Door(
        "check: splits one level too deep",
        seg,
        (("check", "data"),),
        0,
        ("12 train images of 2 classes", "12 test images of 2 classes"),
    ),
    Door(
        "check: doubt is told",
        steps(splits("data"), flat("data/test")),
        (("check", "data"),),
        3,
        ("named like splits",),
    ),
)


def vehicles() -> None:
    """A class called train."""
    for number, name in enumerate(("bus", "car", "train")):
        for image in range(4):
            put(f"data/{name}/{image}.png", 40 + 80 * number, image)


def classes_named(*names: str) -> Callable[[], None]:
    """Classes of these names, of four images each."""

    def build() -> None:
        for number, name in enumerate(names):
            for image in range(4):
                put(f"data/{name}/{image}.png", 30 + 50 * number, image)

    return build


def found(*names: str) -> Callable[[Path, Outcome], None]:
    """The classes of `data`."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        assert scan_labelled(Path("data")).classes == names

    return check


def lines_of(*parts: str) -> Callable[[Path, Outcome], None]:
    """What scanning `data` says."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        told = Told()
        scan_labelled(Path("data"), reporter=told)
        for part in parts:
            assert part in " ".join(told.lines), told.lines

    return check


CLASSES = (
    Door(
        "init: a class called train",
        vehicles,
        INIT,
        0,
        ("'train', named like a split, is taken for a class",),
        check=found("bus", "car", "train"),
    ),
    Door(
        "fit: a class called train",
        steps(vehicles, lambda: write_fit("train: data, val_fraction: 0.25")),
        (("fit", "c.yaml", "--dry-run"),),
        0,
        ("9 train, 3 val images of 3 classes", "named like a split"),
    ),
    Door(
        "init: classes that only begin like splits",
        classes_named("evaluation form", "test tube", "training_shoes"),
        INIT,
        0,
        (),
        ("like a split",),
        found("evaluation form", "test tube", "training_shoes"),
    ),
    Door(
        "init: valid and invalid",
        classes_named("invalid", "valid"),
        INIT,
        0,
        ("'valid', named like a split, is taken for a class",),
        check=found("invalid", "valid"),
    ),
    Door(
        "init: freight and steam trains",
        classes_named("crash_test", "freight_train", "steam_train"),
        INIT,
        0,
        check=found("crash_test", "freight_train", "steam_train"),
    ),
    init("a folder in a folder", splits("data/data"), "data", said=("looking into data/data",)),
    init(
        "five folders in one another",
        splits("data/a/b/c/d/e"),
        "data",
        said=("looking into data/a/b/c/d/e",),
    ),
    init(
        "a wrapper with a note in it",
        steps(splits("data/photos"), lambda: write("data/README.md", "x")),
        "data",
    ),
    init(
        "images beside annotations, as in dogs of Stanford",
        steps(
            splits("data/Images"),
            lambda: write("data/Annotation/cat/1.xml", "x"),
            lambda: write("data/Annotation/dog/1.xml", "x"),
        ),
        "data",
        said=("looking into data/Images; 'Annotation' without images",),
    ),
    init(
        "an images folder in each class, as in tiny ImageNet",
        steps(flat("data/cat/images", "data/dog/images")),
        "data",
    ),
    init(
        "sessions in classes",
        flat("data/cat/2021-03-01", "data/cat/2021-04-02", "data/dog/2021-03-05"),
        "data",
        said=("taken for parts of classes",),
    ),
    Door(
        "init: letters that hold classes",
        places,
        INIT,
        3,
        ("'abbey', 'bakery', 'cabin', 'dam', may be the classes as well",),
        check=follow_list_hint,
    ),
    Door(
        "init: letters that hold classes, by a path that is longer",
        steps(places, lambda: Path("my sets").mkdir(), lambda: Path("data").rename("my sets/data")),
        (("init", "my sets/data"),),
        3,
        ("may be the classes as well",),
        check=follow_list_hint,
    ),
    refused(
        "folds of the same classes",
        splits("data/fold1", "data/fold2"),
        "'cat', 'dog', may be the classes as well",
        "data.train=data/fold1",
    ),
    refused(
        "variants of the same images",
        splits("data/color", "data/grayscale"),
        "'cat', 'dog', may be the classes as well",
        "data.train=data/color",
    ),
    refused(
        "years of numbered classes",
        flat("data/2021/n01", "data/2021/n02", "data/2022/n01", "data/2022/n02"),
        "may be the classes as well",
    ),
    fits(
        "the one folder that a hint names",
        splits("data/color", "data/grayscale"),
        "train: data/color, val_fraction: 0.25",
        "8 train, 4 val images of 2 classes",
    ),
    Door(
        "init: an empty class folder",
        steps(splits("data"), made("data/eel"), made("data/fox")),
        INIT,
        0,
        ("class folders without images are left out: 'eel', 'fox'",),
        check=writes("data"),
    ),
    fits(
        "an empty class folder",
        steps(splits("data"), made("data/eel")),
        "train: data, val_fraction: 0.25",
        "of 2 classes",
        "warning: data.train: class folders without images are left out: 'eel'",
    ),
    wrong_data(
        "images of a class that is empty in training",
        steps(plain, made("data/train/eel"), flat("data/val/eel")),
        in_train,
        "classes that training does not have: 'eel'",
    ),
    wrong_data(
        "a class folder of other files",
        steps(splits("data"), lambda: write("data/eel/1.doc", "x")),
        "train: data, val_fraction: 0.25",
        "class folders without images in data: 'eel'",
        "eel/1.doc is not named like",
    ),
    Door(
        "check: an empty class folder",
        steps(splits("data"), made("data/eel")),
        (("check", "data"),),
        3,
        ("eel",),
    ),
    Door(
        "init: Rose and rose",
        twins,
        INIT,
        0,
        ("classes 'Rose', 'rose' differ in upper and lower case or spaces only",),
    ),
    Door(
        "fit: Rose and rose",
        steps(twins, lambda: write_fit("train: data, val_fraction: 0.25")),
        (("fit", "c.yaml", "--dry-run"),),
        0,
        ("classes 'Rose', 'rose' differ",),
    ),
    Door(
        "init: a class called unknown",
        classes_named("cat", "unknown"),
        INIT,
        0,
        ("a class is called 'unknown'", "`rejected`"),
    ),
    Door(
        "predict: a class called unknown",
        steps(flat("photos"), lambda: write_model(Path(), ["cat", "unknown"])),
        (("predict", "photos", "-m", "model.safetensors", "--csv", "--min-confidence", "1"),),
        0,
        ("the model has a class called 'unknown'",),
        check=check_rejected,
    ),
    Door(
        "init: all mistakes at once",
        steps(splits("data/train", "data/val", "data/test"), flat("data/val/eel", "data/test/fox")),
        INIT,
        3,
        (
            "val: data/val has classes that training does not have: 'eel'",
            "test: data/test has classes that training does not have: 'fox'",
        ),
    ),
    Door(
        "init: a list",
        steps(
            splits("data"),
            lambda: list_of(
                "labels.txt",
                *(f"data/{name}/{number}.png" for name in LEVELS for number in range(6)),
            ),
        ),
        (
            ("init", "labels.txt", "-o", "c.yaml"),
            (
                "fit",
                "c.yaml",
                "--dry-run",
                *("model.backbone=simple_cnn", "model.weights=none", "freeze=none"),
            ),
        ),
        0,
        ("10 train, 2 val images of 2 classes",),
        check=writes("labels.txt"),
    ),
    Door(
        "init: the config lies elsewhere",
        steps(splits("data"), made("configs")),
        (("init", "data", "-o", "configs/c.yaml"),),
        0,
        check=lambda *_: data_is("configs/c.yaml", "../data"),
    ),
)


def data_is(path: str, train: str) -> None:
    """What a config names for training."""
    assert data_of(path)["train"] == train, data_of(path)


TARS = (
    Door(
        "init: a tar",
        steps(splits("data"), packed("photos.tar", "data")),
        (("init", "photos.tar", "-o", "c.yaml"),),
        0,
        ("12 train",),
        check=writes("photos.tar"),
    ),
    Door(
        "init: a tar with one folder on top",
        steps(splits("data"), packed("photos.tar", "data", inside="photos")),
        (("init", "photos.tar", "-o", "c.yaml"),),
        0,
        ("looking into photos.tar/photos",),
        check=writes("photos.tar"),
    ),
    Door(
        "init: a tar of splits, one level too deep",
        steps(seg, packed("x.tar", "data")),
        (("init", "x.tar", "-o", "c.yaml"),),
        0,
        (),
        check=writes("x.tar/seg_train", None, "x.tar/seg_test"),
    ),
    Door(
        "fit: a tar of splits, and its hint",
        steps(plain, packed("x.tar", "data"), lambda: write_fit("train: x.tar, val_fraction: 0.3")),
        (("fit", "c.yaml", "--dry-run"),),
        3,
        ("holds splits, not classes", "data.train=x.tar/train data.val=x.tar/val"),
    ),
    Door(
        "fit: folders in a tar",
        steps(
            plain,
            packed("x.tar", "data", inside="top"),
            lambda: write_fit("train: x.tar/top/train, val: x.tar/top/val"),
        ),
        (("fit", "c.yaml"),),
        0,
        ("12 train, 12 val images of 2 classes",),
    ),
    Door(
        "init: a tar with a flat test",
        steps(splits("data/train"), flat("data/test"), packed("x.tar", "data")),
        (("init", "x.tar", "-o", "c.yaml"),),
        0,
        ("x.tar/test has 3 images without class",),
        check=writes("x.tar/train"),
    ),
    Door(
        "init: a tar of letters that hold classes",
        steps(places, packed("x.tar", "data")),
        (("init", "x.tar"),),
        3,
        ("may be the classes as well", "data.train=x.tar/a"),
    ),
    Door(
        "init: a tar for each split",
        steps(plain, packed("data/train.tar", "data/train"), packed("data/val.tar", "data/val")),
        INIT,
        0,
        (),
        check=writes("data/train.tar", "data/val.tar"),
    ),
    Door(
        "init: shards of several splits",
        steps(
            plain,
            packed("data/train-0.tar", "data/train"),
            packed("data/val-0.tar", "data/val"),
            lambda: shutil.copy("data/val-0.tar", "data/val-1.tar"),
        ),
        INIT,
        3,
        ("archives of several splits", "a folder of its own"),
    ),
    Door(
        "fit: shards of splits are no training set",
        steps(
            plain,
            packed("data/train.tar", "data/train"),
            packed("data/val.tar", "data/val"),
            lambda: write_fit("train: data, val_fraction: 0.3"),
        ),
        (("fit", "c.yaml", "--dry-run"),),
        3,
        ("data.train=data/train.tar data.val=data/val.tar",),
    ),
    Door(
        "evaluate: a folder in a tar",
        steps(plain, packed("x.tar", "data"), lambda: write_model(Path(), sorted(LEVELS))),
        (("evaluate", "x.tar/val", "-m", "model.safetensors"),),
        0,
        ("12 images",),
    ),
    wrong_config(
        "a folder that is not in the tar",
        steps(plain, packed("x.tar", "data")),
        "train: x.tar/tran, val: x.tar/val",
        "no such folder: x.tar/tran",
    ),
)

OVERLAPS = (
    wrong_config(
        "data.val is data.train",
        plain,
        "train: data/train, val: data/train",
        "data/train is the same as data.train",
        "data.val_fraction",
    ),
    wrong_config(
        "data.val is data.train under another name",
        steps(plain, lambda: Path("link").symlink_to("data/train")),
        "train: data/train, val: link",
        "link is the same as data.train",
    ),
    wrong_config(
        "data.val lies in data.train",
        splits("data", "data/val"),
        "train: data, val: data/val",
        "data/val lies in data.train",
    ),
    wrong_config(
        "data.val holds data.train",
        splits("data/part", "data"),
        "train: data/part, val: data",
        "data holds data.train",
    ),
    wrong_config(
        "data.test is data.val",
        plain,
        f"{in_train}, test: ./data/val",
        "is the same as data.val",
        "leave data.test out",
    ),
    wrong_config(
        "a folder in a tar and the tar",
        steps(plain, packed("x.tar", "data")),
        "train: x.tar, val: x.tar/val",
        "x.tar/val lies in data.train",
    ),
    wrong_data(
        "a class folder of val is a link to that of train",
        link_class,
        in_train,
        "data.val: 6 of its 7 images are in data.train as well",
    ),
    wrong_data(
        "links to the same files",
        link_files,
        in_train,
        "data.val: 2 of its 4 images are in data.train as well, such as data/val/cat/2.png",
    ),
    wrong_data(
        "a list of files of the training folder",
        steps(splits("data"), lambda: list_of("val.txt", "data/cat/1.png", "data/dog/2.png")),
        "train: data, val: val.txt",
        "data.val: 2 of its 2 images are in data.train as well",
    ),
    wrong_data(
        "two lists that share a file",
        steps(
            splits("data"),
            lambda: list_of("train.txt", *(f"data/{n}/{k}.png" for n in LEVELS for k in (0, 1))),
            lambda: list_of("val.txt", "./data/cat/1.png", "data/dog/2.png"),
        ),
        "train: train.txt, val: val.txt",
        "data.val: 1 of its 2 images are in data.train as well, such as data/cat/1.png",
    ),
    Door(
        "init: a list with a column of splits, and fit",
        steps(
            splits("data"),
            lambda: write(
                "x.csv",
                "path;label;split\n"
                + "".join(
                    f"data/{name}/{k}.png;{name};{'val' if k < 2 else 'train'}\n"
                    for name in LEVELS
                    for k in range(6)
                ),
            ),
        ),
        (
            ("init", "x.csv", "-o", "c.yaml", "--backbone", "simple_cnn"),
            ("fit", "c.yaml", "data.image_size=32", "train.epochs=1", "--dry-run"),
        ),
        said=("data: 8 train, 4 val images of 2 classes",),
    ),
    fits(
        "val held out, test apart",
        splits("data/train", "data/test"),
        "train: data/train, val_fraction: 0.25, test: data/test",
        "8 train, 4 val, 12 test",
    ),
    wrong_data(
        "a test list of files of the folder that val is held out of",
        steps(
            splits("data"), lambda: list_of("test.txt", *(f"data/cat/{k}.png" for k in range(6)))
        ),
        "train: data, val_fraction: 0.25, test: test.txt",
        "data.test: 4 of its 6 images are in data.train as well",
    ),
    fits(
        "a list inside of the training folder, of other files",
        steps(
            splits("data", "more"),
            lambda: list_of("data/val.txt", "../more/cat/1.png", "../more/dog/1.png"),
        ),
        "train: data, val: data/val.txt",
        "12 train, 2 val",
    ),
)

MEANT = (
    Door(
        "fit: a folder",
        splits("my data"),
        (("fit", "my data"),),
        2,
        ("is a folder, expected a config", "vtrain init 'my data' writes one, 'my data.yaml'"),
    ),
    Door(
        "fit: a tar",
        steps(splits("data"), packed("x.tar", "data")),
        (("fit", "x.tar"),),
        2,
        ("vtrain init x.tar writes one, x.yaml; then: vtrain fit x.yaml",),
    ),
    Door(
        "fit: a list",
        lambda: write("x.csv", "a.png,cat\n"),
        (("fit", "x.csv"),),
        2,
        ("vtrain init x.csv",),
    ),
    Door("fit: an image", lambda: put("x.png"), (("fit", "x.png"),), 2, ("vtrain predict x.png",)),
    Door(
        "fit: the folder of a run",
        steps(plain, lambda: write_fit(in_train)),
        (("fit", "c.yaml"), ("fit", "runs/c-001")),
        2,
        ("is the folder of a run", "run_dir=runs/c-001 --resume"),
        check=resume_hint,
    ),
    Door(
        "predict: a config",
        steps(plain, lambda: write_fit(in_train)),
        (("predict", "c.yaml"),),
        2,
        ("c.yaml is a config, expected images", "vtrain fit c.yaml", "vtrain predict IMAGE -m RUN"),
    ),
    Door(
        "evaluate: a config that has trained",
        steps(plain, lambda: write_fit(in_train)),
        (("fit", "c.yaml"), ("evaluate", "c.yaml")),
        2,
        ("vtrain evaluate FOLDER -m c-001",),
    ),
    Door(
        "init: a config",
        lambda: write("c.yaml", "seed: 0\n"),
        (("init", "c.yaml"),),
        2,
        ("is a config already", "vtrain fit c.yaml"),
    ),
    Door(
        "init: the hint of a folder given to fit works",
        splits("my data"),
        (
            ("init", "my data"),
            (
                "fit",
                "my data.yaml",
                "--dry-run",
                "model.backbone=simple_cnn",
                "model.weights=none",
                "freeze=none",
            ),
        ),
        0,
        ("10 train, 2 val",),
    ),
)

DOORS: tuple[Door, ...] = SPLITS + CLASSES + TARS + OVERLAPS + MEANT
