"""Configs, runs and data that have moved, as people have them."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from tests.faults.commands import run
from tests.faults.door import Door, nothing, put, put_classes, write, write_fit
from tests.helpers.program import Outcome
from vtrain.config.load import load_config
from vtrain.runs.checkpoint import load_checkpoint, save_checkpoint
from vtrain.system.tensor_files import read_metadata

Build = Callable[[], object]
Check = Callable[[Path, Outcome], object]

DATA = "train: ../photos, val_fraction: 0.5"
_KEPT: list[TemporaryDirectory[str]] = []


# --- what there is --------------------------------------------------------------------------------


def in_configs(data: str = DATA, **more: str) -> Build:
    """`photos/` with a config in `configs/`."""

    def build() -> None:
        put_classes("photos", count=4)
        write_fit(data, "configs/c.yaml", **more)

    return build


@cache
def trained() -> Path:
    """A folder with `photos/`, `c.yaml` and a finished run, made once."""
    _KEPT.append(TemporaryDirectory())
    folder = Path(_KEPT[-1].name)
    with chdir(folder):
        put_classes("photos", count=4)
        write_fit("train: photos, val_fraction: 0.5", more="run_dir: runs/flowers")
        assert run(folder, "fit", "c.yaml", "train.report=true", "-q").code == 0
    return folder


def copied(*others: Build) -> Build:
    """A copy of what `trained` made: its images are still where they were, and here as well."""
    return in_turn(lambda: shutil.copytree(trained(), ".", dirs_exist_ok=True), *others)


def in_turn(*builds: Build) -> Build:
    """One after the other."""

    def build() -> None:
        for each in builds:
            each()

    return build


def copy(source: str, target: str) -> Build:
    """A file or folder that is there twice."""

    def build() -> None:
        if Path(source).is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)

    return build


def photos() -> None:
    """Images, and nothing else."""
    put_classes("photos", count=4)


def moved(source: str, target: str) -> Build:
    """A file or folder that is at another place."""

    def build() -> None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)

    return build


def age(run_dir: str = "runs/flowers") -> None:
    """Make a run as older versions did: every path relative to where it was started."""
    old, folder = str(trained()), Path(run_dir)
    for name in ("config.resolved.yaml", "data.json", "predictions-val.csv"):
        text = (folder / name).read_text()
        assert f"{old}/" in text, name
        write(folder / name, text.replace(f"{old}/", ""))
    checkpoint = load_checkpoint(folder / "last.ckpt")
    for key, value in checkpoint.config.items():
        if isinstance(value, str):
            checkpoint.config[key] = value.replace(f"{old}/", "")
    save_checkpoint(folder / "last.ckpt", checkpoint)


def weighted() -> None:
    """The config starts from weights called `old`."""
    write("configs/c.yaml", Path("configs/c.yaml").read_text().replace("none,", "old,"))


def linked() -> None:
    """A project that is reached through a link, with images beside where it really lies."""
    put_classes("disk/photos", count=4)
    write_fit(DATA, "disk/project/c.yaml")
    Path("work").mkdir()
    Path("work/project").symlink_to(Path("disk/project").absolute())


def excluding(entry: str) -> Build:
    """A list in `lists/` that leaves out one of `photos/`."""

    def build() -> None:
        in_configs(f"{DATA}, exclude: ../lists/out.txt")()
        write("lists/out.txt", f"{entry}\n")

    return build


# --- what has to come of it -----------------------------------------------------------------------


def leaves(count: int) -> Check:
    """What was printed as JSON is of so many images."""

    def check(_folder: Path, outcome: Outcome) -> None:
        splits = json.loads(outcome.out)["splits"].values()
        assert sum(each["count"] for each in splits) == count

    return check


def written(path: str, *entries: str) -> Check:
    """A list has one of these as its only entry."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        lines = [each for each in Path(path).read_text().splitlines() if each[0] != "#"]
        assert len(lines) == 1, lines
        assert lines[0] in entries, lines

    return check


def reads(config: str = "configs/c.yaml", *overrides: str, **paths: str | None) -> Check:
    """The config, loaded anew, has these paths of its data below the folder of the case."""

    def check(folder: Path, _outcome: Outcome) -> None:
        found = load_config(Path(config), overrides).config
        for name, path in paths.items():
            owner = found.model if name == "weights" else found.data
            expected = None if path is None else str(folder / path)
            assert getattr(owner, name) == expected, getattr(owner, name)

    return check


def then(
    *commands: Sequence[str],
    code: int = 0,
    said: Sequence[str] = (),
    inside: str = ".",
    env: dict[str, str] | None = None,
    check: Check = nothing,
) -> Check:
    """More commands work, in a folder, with variables; the last ends with `code`."""

    def follow(folder: Path, _outcome: Outcome) -> None:
        Path(inside).mkdir(exist_ok=True)
        values = {name: value.replace("HERE", str(folder)) for name, value in (env or {}).items()}
        with chdir(inside), mock.patch.dict(os.environ, values):
            for each in commands:
                outcome = run(folder, *(word.replace("HERE", str(folder)) for word in each))
        told = " ".join(f"{outcome.out} {outcome.err}".split())
        assert outcome.code == code, told
        for part in said:
            assert part.replace("HERE", str(folder)) in told, told
        check(folder, outcome)

    return follow


def both(*checks: Check) -> Check:
    """All of them hold."""

    def check(folder: Path, outcome: Outcome) -> None:
        for each in checks:
            each(folder, outcome)

    return check


def refuses(*places: str) -> Check:
    """Both places are named in full."""

    def check(folder: Path, outcome: Outcome) -> None:
        for each in places:
            assert str(folder / each) in outcome.err, each

    return check


def records(folder: Path, _outcome: Outcome) -> None:
    """The run's files name its images in full, the model nothing of this machine."""
    made, place = folder / "runs/flowers", str(trained() / "photos")
    data = json.loads((made / "data.json").read_text())
    assert data["train"]["root"] == data["val"]["root"] == place
    rows = (made / "predictions-val.csv").read_text().splitlines()[1:]
    assert len(rows) == 4
    assert all(row.startswith(f"{place}/") for row in rows), rows
    config = load_config(made / "config.resolved.yaml").config
    assert (config.data.train, config.run_dir) == (place, str(trained() / "runs/flowers"))
    stored = str(read_metadata(made / "model.safetensors"))
    assert str(trained()) not in stored
    assert '"photos"' in stored.replace("\\", "")


def epochs(run_dir: str, number: int) -> Check:
    """The run has so many epochs, and no other run was made."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        assert len((Path(run_dir) / "metrics.jsonl").read_text().splitlines()) == number
        assert len(list(Path(run_dir).parent.iterdir())) == 1

    return check


def answers(place: str) -> Check:
    """The predictions of the run are of images in this folder."""

    def check(folder: Path, _outcome: Outcome) -> None:
        rows = (folder / "runs/flowers/predictions-val.csv").read_text().splitlines()[1:]
        assert all(row.startswith(f"{folder / place}/") for row in rows), rows

    return check


def after(build: Build, *checks: Check) -> Check:
    """What holds once something else has happened."""

    def check(folder: Path, outcome: Outcome) -> None:
        build()
        for each in checks:
            each(folder, outcome)

    return check


def page(pictures: bool, name: str = "runs/flowers/report.html") -> Check:
    """The page shows pictures, or none."""

    def check(folder: Path, _outcome: Outcome) -> None:
        assert ("data:image" in (folder / name).read_text()) is pictures

    return check


def lists(*names: str, state: str = "finished") -> Check:
    """`vtrain runs --json` has these runs, in this order."""

    def check(_folder: Path, outcome: Outcome) -> None:
        found = json.loads(outcome.out)
        assert found["schema"] == 1
        assert [each["name"] for each in found["runs"]] == list(names)
        first = found["runs"][0]
        assert first["state"] == state, first
        if state == "finished":
            facts = [first[name] for name in ("backbone", "images", "classes", "best_epoch")]
            assert facts == ["simple_cnn", 4, 2, 1]
            assert 0 <= first["val_top1"] <= 1

    return check


SHOW = ("config", "configs/c.yaml")
GO_ON = ("--resume", "train.epochs=2")
PREDICT = ("predict", "photos/cat/0.png", "--device", "cpu", "-m")
NOTHING = [("--version",)]  # all is in the check

CONFIGS = (
    Door(
        "a config in a folder of its own names data beside that folder",
        in_configs(),
        [SHOW],
        check=reads(train="photos", val=None),
    ),
    Door(
        "the same config, used from another folder",
        in_configs(),
        NOTHING,
        check=then(("check", "../configs/c.yaml", "--json"), inside="elsewhere", check=leaves(8)),
    ),
    Door(
        "data are where the working directory is, not beside the config",
        in_configs("train: photos, val_fraction: 0.5"),
        [("fit", "configs/c.yaml")],
        2,
        said=["configs/c.yaml:3:73: data.train: photos is not in", "write ../photos"],
        check=both(refuses("configs"), then(("config", "configs/c.yaml", "data.train=photos"))),
    ),
    Door(
        "the same for a name with a space and a colon, which YAML wants in quotes",
        in_turn(
            lambda: put_classes("my: set"),
            lambda: write_fit("train: 'my: set', val: x", "configs/c.yaml"),
        ),
        [SHOW],
        2,
        said=["write '../my: set'"],
    ),
    Door(
        "all inputs at once: two only here, one nowhere",
        in_configs("train: photos, val: photos, test: potos"),
        [SHOW],
        2,
        said=["3 mistakes", "data.train: photos is not", "data.val: photos is not", "no potos in"],
    ),
    Door(
        "an override is relative to the working directory",
        in_configs("train: ../nowhere, val_fraction: 0.5"),
        [(*SHOW, "data.train=photos")],
        check=reads("configs/c.yaml", "data.train=photos", train="photos"),
    ),
    Door(
        "an override that is there only beside the config",
        in_turn(in_configs(), lambda: put_classes("configs/more", count=2)),
        [(*SHOW, "data.val=more")],
        2,
        said=["more is not in the working directory", "write configs/more"],
        check=then(
            (*SHOW, "data.val=configs/more", "data.val_fraction=null"), said=["/configs/more"]
        ),
    ),
    Door(
        "a set beside the config wins over one of the same name here",
        in_turn(in_configs("train: photos, val_fraction: 0.5"), copy("photos", "configs/photos")),
        [SHOW],
        check=reads(train="configs/photos"),
    ),
    Door(
        "a name that is nearly right, beside the config",
        in_configs("train: ../potos, val_fraction: 0.5"),
        [SHOW],
        2,
        said=["no such folder: ../potos; did you mean ../photos?"],
    ),
    Door(
        "a name that is nearly right, on the command line",
        in_configs(),
        [(*SHOW, "data.train=potos")],
        2,
        said=["no such folder: potos; did you mean photos?"],
    ),
    Door(
        "a config that is nowhere near any data says where it looked",
        lambda: write_fit("train: a/b, val_fraction: 0.5", "configs/c.yaml"),
        [SHOW],
        2,
        said=["no such folder: a/b; there is no a in"],
        check=refuses("configs"),
    ),
    Door(
        "the home folder and variables, in the file and on the command line",
        in_turn(
            in_configs("train: $SETS/photos, val: ~/held, test: '${SETS}/tests'"),
            copy("photos", "held"),
            copy("photos", "tests"),
        ),
        NOTHING,
        check=then(
            (*SHOW, "data.exclude=$SETS/out.txt", "--json"),
            env={"SETS": "HERE", "HOME": "HERE"},
            code=2,
            said=["1 mistake in", "data.exclude=$SETS/out.txt: no such file: out.txt"],
        ),
    ),
    Door(
        "a variable that is not set",
        in_configs("train: $NO_SUCH_SETS/photos, val: ../photos"),
        [SHOW],
        2,
        said=["configs/c.yaml:3:73: data.train: got $NO_SUCH_SETS/photos, and "],
    ),
    Door(
        "a variable that is empty would lead to the root of the disk",
        in_configs("train: $EMPTY/photos, val: ../photos"),
        NOTHING,
        check=then(SHOW, env={"EMPTY": ""}, code=2, said=["the variable EMPTY is empty"]),
    ),
    Door(
        "a folder whose name has a dollar in it",
        in_turn(
            lambda: put_classes("in $USD"),
            lambda: write_fit("train: in $USD, val_fraction: 0.5"),
        ),
        [("config", "c.yaml")],
        check=reads("c.yaml", train="in $USD"),
    ),
    Door(
        "the home folder of nobody",
        in_configs("train: ~no_such_user/photos, val: ../photos"),
        [SHOW],
        2,
        said=["~no_such_user is no home folder"],
    ),
    Door(
        "a run folder is relative to the working directory, wherever it is written",
        in_configs(more="run_dir: made/a"),
        [("fit", "configs/c.yaml", "-q")],
        said=["made/a"],
        check=epochs("made/a", 1),
    ),
    Door(
        "and has variables as well",
        in_configs(more="run_dir: $SCRATCH/a"),
        NOTHING,
        check=then(
            ("fit", "configs/c.yaml", "-q"), env={"SCRATCH": "HERE/made"}, said=["HERE/made/a"]
        ),
    ),
    Door("a project behind a link", linked, [("config", "work/project/c.yaml")]),
    Door(
        "init writes what fits where the config goes",
        in_turn(photos, lambda: Path("configs").mkdir()),
        [("init", "photos", "-o", "configs/c.yaml"), SHOW],
        check=reads(train="photos"),
    ),
    Door(
        "init with a folder in full keeps it so",
        photos,
        NOTHING,
        check=both(
            then(("init", "HERE/photos", "-o", "c.yaml"), ("config", "c.yaml"), said=["HERE"]),
            reads("c.yaml", train="photos"),
        ),
    ),
)

WEIGHTS = (
    Door(
        "weights beside the config",
        in_turn(in_configs(), lambda: shutil.copytree(trained() / "runs", "configs/runs")),
        [(*SHOW, "model.weights=configs/runs/flowers")],
        check=reads(
            "configs/c.yaml", "model.weights=configs/runs/flowers", weights="configs/runs/flowers"
        ),
    ),
    Door(
        "weights that are a run here, and not beside the config",
        in_turn(in_configs(), lambda: shutil.copytree(trained() / "runs/flowers", "old"), weighted),
        [SHOW],
        2,
        said=["model.weights: old is not in the folder of the config", "write ../old"],
    ),
    Door(
        "weights that are the name of a run",
        copied(),
        [("config", "c.yaml", "model.weights=flowers")],
        2,
        said=["for the weights of that run write runs/flowers"],
        check=then(("config", "c.yaml", "model.weights=runs/flowers")),
    ),
    Door(
        "published weights are no path, whatever lies here",
        in_turn(in_configs(), lambda: write("DEFAULT", "x"), lambda: write("configs/DEFAULT", "x")),
        [(*SHOW, "model.backbone=resnet18", "model.weights=DEFAULT", "model.options={}")],
        said=["weights: DEFAULT"],
    ),
)

EXCLUSIONS = (
    Door(
        "a list of images to leave out has paths relative to itself",
        excluding("../photos/cat/0.png"),
        [("check", "configs/c.yaml", "--json")],
        said=["leaves out"],
        check=leaves(7),
    ),
    Door(
        "a list whose paths lead on from the working directory alone",
        excluding("photos/cat/0.png"),
        [("check", "configs/c.yaml")],
        3,
        said=["photos/cat/0.png is in the working directory", "where the list is"],
        check=refuses("lists"),
    ),
    Door(
        "a list that check has written holds from everywhere",
        in_turn(
            in_configs(),
            copy("photos/cat/0.png", "photos/cat/again.png"),
            lambda: Path("lists").mkdir(),
        ),
        [("check", "configs/c.yaml", "--write-list", "lists/out.txt")],
        3,
        check=then(
            ("check", "../configs/c.yaml", "data.exclude=../lists/out.txt", "--json"),
            inside="elsewhere",
            check=leaves(8),
        ),
    ),
    Door(
        "a list beside the images is short, and moves with them",
        in_turn(in_configs(), copy("photos/cat/0.png", "photos/cat/again.png")),
        [("check", "configs/c.yaml", "--write-list", "out.txt")],
        3,
        check=written("out.txt", "photos/cat/again.png", "photos/cat/0.png"),
    ),
)

RUNS = (
    Door("a run names its images in full, its model nothing", copied(), NOTHING, check=records),
    Door(
        "the resolved config of a run goes on with it",
        in_configs(),
        [
            ("fit", "configs/c.yaml", "-q"),
            ("fit", "runs/c-001/config.resolved.yaml", "-q", *GO_ON),
        ],
        check=epochs("runs/c-001", 2),
    ),
    Door(
        "and from another folder",
        in_configs(),
        [("fit", "configs/c.yaml", "-q")],
        check=both(
            then(("fit", "../runs/c-001/config.resolved.yaml", "-q", *GO_ON), inside="elsewhere"),
            epochs("runs/c-001", 2),
        ),
    ),
    Door(
        "and does not start over by mistake",
        copied(),
        NOTHING,
        check=then(("fit", "runs/flowers/config.resolved.yaml"), code=2, said=["--resume"]),
    ),
    Door(
        "the copy of the config in a run folder is not the config",
        copied(),
        [("fit", "runs/flowers/config.yaml", "--resume")],
        2,
        said=["photos is not in", "use config.resolved.yaml beside it"],
    ),
    Door(
        "the images have moved",
        copied(moved("photos", "disk/pictures")),
        [("fit", "c.yaml", "data.train=disk/pictures", *GO_ON)],
        said=["-> disk/pictures; the same images"],
        check=both(
            epochs("runs/flowers", 2),
            answers("disk/pictures"),
        ),
    ),
    Door(
        "the images have moved, and one of them has changed",
        copied(moved("photos", "disk/pictures"), lambda: put("disk/pictures/cat/0.png", 61, 77)),
        [("fit", "c.yaml", "data.train=disk/pictures", *GO_ON)],
        2,
        said=["cannot be resumed", "data.train: ", "-> disk/pictures", "data.val files: "],
        check=epochs("runs/flowers", 1),
    ),
    Door(
        "the images are others altogether",
        copied(lambda: put_classes("other", count=5)),
        [("fit", "c.yaml", "data.train=other", *GO_ON)],
        2,
        said=["data.train: ", "-> other", "count: 4 -> "],
    ),
    Door(
        "everything has moved, and nothing else is said of it",
        copied(),
        [("fit", "c.yaml", *GO_ON)],
        said=["data.train moved: ", "-> photos; the same images"],
        unsaid=["changed since the run was started: data"],
        check=epochs("runs/flowers", 2),
    ),
    Door(
        "a run folder that was renamed",
        copied(moved("runs/flowers", "kept/best")),
        [("fit", "c.yaml", "run_dir=kept/best", *GO_ON)],
        check=epochs("kept/best", 2),
    ),
    Door(
        "a run of an older version, with relative paths",
        copied(age),
        [("fit", "c.yaml", *GO_ON)],
        unsaid=["moved"],
        check=epochs("runs/flowers", 2),
    ),
    Door(
        "a list of images to leave out was moved",
        in_turn(
            in_configs(f"{DATA}, exclude: ../out.txt", more="run_dir: runs/a"),
            lambda: write("out.txt", "photos/cat/0.png\n"),
        ),
        [("fit", "configs/c.yaml", "-q")],
        check=both(
            after(
                lambda: write("lists/out.txt", "../photos/cat/1.png\n"),
                then(
                    ("fit", "configs/c.yaml", "data.exclude=lists/out.txt", *GO_ON),
                    code=2,
                    said=["images left out by data.exclude"],
                ),
            ),
            after(
                lambda: write("lists/out.txt", "../photos/cat/0.png\n"),
                then(
                    ("fit", "configs/c.yaml", "data.exclude=lists/out.txt", *GO_ON),
                    said=["data.exclude moved: out.txt -> lists/out.txt"],
                ),
            ),
        ),
    ),
    Door(
        "weights that a run started from are at another place",
        copied(moved("runs/flowers", "base")),
        [("fit", "c.yaml", "-q", "model.weights=base")],
        check=both(
            after(
                copy("base", "base2"),
                then(("fit", "c.yaml", "model.weights=base2", *GO_ON), code=2, said=["base2"]),
            ),
            after(
                lambda: shutil.rmtree("base"),
                then(
                    ("fit", "c.yaml", "model.weights=base2", *GO_ON),
                    said=["model.weights moved: base -> base2"],
                ),
            ),
        ),
    ),
)

PAGES = (
    Door(
        "a page made from another folder has its pictures",
        copied(),
        NOTHING,
        check=both(then(("report", "HERE/runs/flowers"), inside="elsewhere"), page(pictures=True)),
    ),
    Door(
        "a page is not replaced by a poorer one",
        in_configs(),
        [("fit", "configs/c.yaml", "-q", "train.report=true", "run_dir=runs/flowers")],
        check=both(
            after(
                moved("photos", "gone"),
                then(("report", "flowers"), code=2, said=["pictures, and would show 0", "--force"]),
                page(pictures=True),
                then(("report", "flowers", "-o", "other.html")),
                page(pictures=False, name="other.html"),
                then(("report", "flowers", "--force")),
                page(pictures=False),
            ),
            after(moved("gone", "photos"), then(("report", "flowers")), page(pictures=True)),
        ),
    ),
    Door(
        "nor by one without the answers of the run",
        copied(lambda: Path("runs/flowers/predictions-val.csv").unlink()),
        [("report", "flowers")],
        2,
        said=["runs/flowers/report.html shows", "predictions-val.csv"],
        check=page(pictures=True),
    ),
    Door(
        "a run of an older version finds its images from elsewhere",
        copied(age),
        NOTHING,
        check=both(
            then(("report", "HERE/runs/flowers"), inside="elsewhere"),
            page(pictures=True),
            then(
                ("suspects", "HERE/runs/flowers", "--csv", "--device", "cpu", "--workers", "0"),
                inside="elsewhere",
                said=["HERE/photos/"],
            ),
        ),
    ),
)

PROJECTS = (
    Door(
        "a whole project was moved, and its run has its pictures",
        in_turn(
            in_configs(),
            lambda: run(Path.cwd(), "fit", "configs/c.yaml", "-q", "train.report=true"),
            lambda: Path("project").mkdir(),
            moved("photos", "project/photos"),
            moved("runs", "project/runs"),
            moved("configs", "project/configs"),
        ),
        [
            ("report", "project/runs/c-001"),
            ("suspects", "project/runs/c-001", "--csv", "--device", "cpu", "--workers", "0"),
        ],
        said=["project/photos/"],
        check=both(
            page(pictures=True, name="project/runs/c-001/report.html"),
            then(("fit", "configs/c.yaml", *GO_ON), inside="project", said=["the same images"]),
        ),
    ),
)

NAMES = (
    Door(
        "runs with their figures, the newest first",
        copied(
            copy("runs/flowers", "runs/older"), lambda: os.utime("runs/older/result.json", (1, 1))
        ),
        [("runs", "--json")],
        check=lists("flowers", "older"),
    ),
    Door("the same to read", copied(), [("runs",)], said=["flowers finished", "simple_cnn"]),
    Door(
        "runs in folders of their own, in another place",
        copied(moved("runs", "all/old/runs")),
        [("runs", "all", "--json")],
        check=lists("old/runs/flowers"),
    ),
    Door(
        "a run that was stopped",
        copied(lambda: Path("runs/flowers/result.json").unlink()),
        [("runs", "--json")],
        check=lists("flowers", state="stopped"),
    ),
    Door(
        "a run whose files are damaged is a row",
        copied(
            lambda: write("runs/flowers/data.json", "{"),
            lambda: Path("runs/flowers/model.safetensors").unlink(),
        ),
        [("runs",)],
        said=["flowers finished", "data.json cannot be read", "model.safetensors is missing"],
    ),
    Door("no run yet", photos, [("runs",)], said=["no run below runs/", "vtrain fit CONFIG"]),
    Door("runs of a folder that is not there", photos, [("runs", "nix")], 2, said=["not there"]),
    Door(
        "a model by the name of its run", copied(), [(*PREDICT, "flowers")], said=["runs/flowers"]
    ),
    Door(
        "a name of a run and of something here",
        copied(copy("runs/flowers", "flowers")),
        [(*PREDICT, "flowers")],
        2,
        said=["flowers is there twice", "./flowers or runs/flowers"],
        check=both(
            then((*PREDICT, "./flowers"), said=["model: flowers/model.safetensors"]),
            then((*PREDICT, "runs/flowers"), said=["model: runs/flowers/model"]),
            then(("report", "flowers"), code=2, said=["flowers is there twice"]),
            then(("report", "runs/flowers", "-o", "x.html")),
        ),
    ),
    Door(
        "a run that is called like a backbone",
        copied(moved("runs/flowers", "runs/simple_cnn")),
        [(*PREDICT, "simple_cnn")],
        2,
        said=["simple_cnn is a backbone, and runs/simple_cnn", "-m runs/simple_cnn"],
        check=both(
            then((*PREDICT, "runs/simple_cnn"), said=["cat"]),
            then((*PREDICT, "simple_cnn:none"), said=["class "]),
        ),
    ),
    Door(
        "a folder here that is called like a backbone",
        in_turn(photos, lambda: Path("resnet18").mkdir()),
        [(*PREDICT, "resnet18")],
        2,
        said=["resnet18 is a backbone, and resnet18 is there", "-m resnet18:DEFAULT"],
    ),
    Door(
        "a name of a run that is nearly right",
        copied(),
        [(*PREDICT, "flowrs")],
        4,
        said=["did you mean flowers?"],
        check=then(("report", "flowrs"), code=2, said=["did you mean flowers?", "vtrain runs"]),
    ),
    Door(
        "runs to compare by their names",
        copied(copy("runs/flowers", "runs/other")),
        [("compare", "flowers", "other")],
        said=["flowers", "other"],
    ),
)

DOORS: tuple[Door, ...] = (*CONFIGS, *WEIGHTS, *EXCLUSIONS, *RUNS, *PAGES, *PROJECTS, *NAMES)
