"""Groups, held-out parts and leaks, as people have them."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.commands import run
from tests.faults.door import LEVELS, Door, draw, put, put_classes, steps, write_fit
from tests.helpers.program import Outcome
from vtrain.config.keys import DataConfig
from vtrain.data.splits import scan_splits
from vtrain.system.reporter import SILENT

FIT = ("fit", "c.yaml", "run_dir=run")
DRY = ("fit", "c.yaml", "run_dir=run", "--dry-run")
CHECK = ("check", "c.yaml")
HALF = "train: a, val_fraction: 0.25"
BOTH = "train: a, val_fraction: 0.2, test_fraction: 0.2"


def put_rows(form: str, rows: int, count: int, *, root: str = "a") -> None:
    """Images of both classes, named by `form`: class, row, and number in the row."""
    for name, level in LEVELS.items():
        for row in range(rows):
            for number in range(count):
                place = form.format(name=name, row=row, number=number)
                put(f"{root}/{place}", level, 1000 * row + number)


def build(make: Callable[[], object], data: str, **more: str) -> Callable[[], None]:
    """Images and a config over them."""

    def both() -> None:
        make()
        write_fit(data, **more)

    return both


def build_clips(data: str, *, rows: int = 4, count: int = 5) -> Callable[[], None]:
    return build(partial(put_rows, "{name}/clip{row}_{number:03}.png", rows, count), data)


def build_folders(data: str) -> Callable[[], None]:
    return build(partial(put_rows, "{name}/day{row}/{number}.png", 4, 5), data)


def build_copies(data: str) -> Callable[[], None]:
    """Eight images of each class, every one there twice under names far apart."""

    def make() -> None:
        put_classes("a", 8)
        for path in sorted(Path("a").glob("*/*.png")):
            shutil.copy(path, path.with_name(f"copy-{path.name}"))
        write_fit(data)

    return make


def build_leak(data: str = "train: a/train, val: a/val") -> None:
    """Two images of val are also in train, under other names."""
    put_classes("a/train", 6)
    put_classes("a/val", 3, seed=100)
    shutil.copy("a/train/cat/1.png", "a/val/cat/x.png")
    shutil.copy("a/train/dog/2.png", "a/val/dog/y.png")
    write_fit(data)


def read_data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("run/data.json").read_text())
    return found


def list_splits(seed: int = 0, /, **data: Any) -> dict[str, list[str]]:
    """Paths below the root, by split, as every command finds them."""
    config = DataConfig(**{"workers": 0, **data})
    splits = scan_splits(config, seed=seed, reporter=SILENT).named()
    return {name: list(images.paths.names()) for name, images in splits.items()}


def apart(group_of: Callable[[str], str], **data: Any) -> Callable[[Path, Outcome], None]:
    """Every image is in one split, no group in two, and every split has both classes."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        found = list_splits(**data)
        places = [place for each in found.values() for place in each]
        assert sorted(places) == sorted(
            os.path.relpath(path, data["train"]) for path in Path(data["train"]).rglob("*.png")
        ), places
        groups = [{group_of(place) for place in each} for each in found.values()]
        assert sum(map(len, groups)) == len(set().union(*groups)), groups
        for name, each in found.items():
            assert {place.split("/")[0] for place in each} == {"cat", "dog"}, (name, each)
        wanted = {key[:-9]: value for key, value in data.items() if key.endswith("_fraction")}
        for name, share in wanted.items():
            assert abs(len(found[name]) / len(places) - share) < 0.16, (name, found)

    return check


def clip(place: str) -> str:
    return Path(place).name.split("_")[0]


def leaks(*expected: tuple[str, int]) -> Callable[[Path, Outcome], None]:
    """What data.json and log.txt say of equal files."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        data = read_data()
        assert [(each["kind"], each["count"]) for each in data["leaks"]] == list(expected), data
        log = Path("run/log.txt").read_text()
        for each in data["leaks"]:
            assert all(Path(path).is_file() for path in each["paths"]), each
            assert each["message"][:30] in log, log

    return check


def check_exclude_list(folder: Path, _outcome: Outcome) -> None:
    """Fit with the list that check has written has no leak any more."""
    outcome = run(folder, *FIT, "data.exclude=exclude.txt")
    assert outcome.code == 0, outcome.err
    assert "10 train, 8 val" in outcome.err + outcome.out, outcome
    leaks()(folder, outcome)


def report_says(*texts: str) -> Callable[[Path, Outcome], None]:
    def check(_folder: Path, _outcome: Outcome) -> None:
        for name in ("report.html", "model-card.md"):
            page = Path("run", name).read_text()
            for text in texts:
                assert text in page, (name, text)

    return check


def build_conflict() -> None:
    put_classes("a", 6)
    shutil.copy("a/cat/1.png", "a/dog/same.png")
    write_fit(HALF)


def build_near() -> None:
    """Near duplicates: each image again, larger and as JPEG."""
    for name, level in LEVELS.items():
        for number in range(8):
            image = draw(level, number, (8, 8)).resize((96, 96))
            Path("a", name).mkdir(parents=True, exist_ok=True)
            image.save(f"a/{name}/{number}.png")
            image.resize((128, 128)).save(f"a/{name}/z{7 - number}.png")
    write_fit("train: a, val_fraction: 0.25, group: duplicates")


def build_patients() -> None:
    """Patients whose images are of both classes."""
    for patient in range(8):
        for number in range(4):
            name, level = list(LEVELS.items())[number % 2]
            put(f"a/{name}/p{patient}_{number}.png", level, 100 * patient + number)
    write_fit(f"{BOTH}, group: '(p\\d+)_'")


def build_one_clip_class() -> None:
    """All dogs come from one video."""
    for number in range(12):
        put(f"a/cat/clip{number // 3}_{number}.png", 60, number)
        put(f"a/dog/clip9_{number}.png", 190, number)
    write_fit("train: a, val_fraction: 0.25, group: '(clip\\d)_'")


def build_uneven() -> None:
    """One long video and many short ones."""
    for name, level in LEVELS.items():
        for number in range(20):
            put(f"a/{name}/long_{number}.png", level, number)
            put(f"a/{name}/s{number}_0.png", level, 100 + number)
    write_fit("train: a, val_fraction: 0.25, group: '([a-z]+\\d*)_'")


def check_uneven(_folder: Path, _outcome: Outcome) -> None:
    found = list_splits(train="a", val_fraction=0.25, group=r"([a-z]+\d*)_")
    assert len(found["val"]) == 20, found
    assert not any("long" in place for place in found["val"]), found


def build_loose() -> None:
    """Some files are in no clip."""
    put_rows("{name}/clip{row}_{number}.png", 3, 4)
    put_rows("{name}/still{row}.png", 2, 1)
    write_fit("train: a, val_fraction: 0.25, group: '(clip\\d+)_'")


def check_same_val(_folder: Path, _outcome: Outcome) -> None:
    """The validation images are those without a test."""
    alone, both = (
        list_splits(train="a", val_fraction=0.2, **more) for more in ({}, {"test_fraction": 0.2})
    )
    assert alone["val"] == both["val"]
    assert sorted([*both["train"], *both["test"]]) == alone["train"]
    assert {name: len(each) for name, each in both.items()} == {"train": 12, "val": 4, "test": 4}
    assert list_splits(1, train="a", val_fraction=0.2)["val"] != alone["val"]


def check_tested(_folder: Path, _outcome: Outcome) -> None:
    data = read_data()
    assert [data[name]["count"] for name in ("train", "val", "test")] == [12, 4, 4], data
    assert json.loads(Path("run/result.json").read_text())["test_top1"] is not None
    assert json.loads(Path("run/evaluation-test.json").read_text())["count"] == 4


def check_counts(**counts: int) -> Callable[[Path, Outcome], None]:
    """Images of each split, as `check --json` says."""

    def check(_folder: Path, outcome: Outcome) -> None:
        found = json.loads(outcome.out)["splits"]
        assert {name: each["count"] for name, each in found.items()} == counts, found

    return check


def check_group_count(**counts: int) -> Callable[[Path, Outcome], None]:
    def check(_folder: Path, _outcome: Outcome) -> None:
        assert read_data()["groups"]["counts"] == counts, read_data()["groups"]

    return check


def check_any_frames(_folder: Path, _outcome: Outcome) -> None:
    """The regular expression for all names makes groups of the videos."""
    found = list_splits(**GROUPED, group=r"([^/]*[^/0-9])[0-9]+[^/0-9]*\.[^.]*$")
    videos = [{clip(place) for place in each} for each in found.values()]
    assert sum(map(len, videos)) == 2, videos
    assert {len(each) for each in found.values()} == {24}, found


ten = partial(put_classes, "a", 10)
frames = partial(put_rows, "{name}/clip{row}_frame_{number:04}.png", 3, 12)
CLIP = r"train: a, val_fraction: 0.25, group: '(clip\d+)_'"
FOLDER = "train: a, val_fraction: 0.25, group: folder"
GROUPED = {"train": "a", "val_fraction": 0.25}
FRAMES = "file names look like frames of a few videos"

# Every file that is held out, by parts and by groups.
HELD_OUT = (
    Door(
        "test_fraction is held out and evaluated",
        build(ten, BOTH),
        (FIT,),
        said=("12 train, 4 val, 4 test images",),
        check=check_tested,
    ),
    Door("test_fraction leaves val as it was", build(ten, BOTH), (CHECK,), check=check_same_val),
    Door(
        "test_fraction beside data.val",
        build(steps(ten, partial(put_classes, "v", 3, 50)), "train: a, val: v, test_fraction: 0.2"),
        (DRY,),
        said=("16 train, 6 val, 4 test images",),
    ),
    Door(
        "test_fraction beside data.test",
        build(steps(ten, partial(put_classes, "t", 3, 50)), f"{BOTH}, test: t"),
        (FIT,),
        2,
        said=("data.test_fraction: set beside data.test; keep one of them",),
    ),
    Door(
        "fractions that leave nothing",
        build(ten, "train: a, val_fraction: 0.6, test_fraction: 0.5"),
        (FIT,),
        2,
        said=("data.test_fraction: got 0.5, expected less than 0.4",),
    ),
    Door(
        "check sees what is held out for the test",
        build(ten, BOTH),
        (("check", "c.yaml", "--json"),),
        check=check_counts(train=12, val=4, test=4),
    ),
)

GROUPS = (
    Door(
        "clips by a regular expression",
        build_clips(CLIP),
        (FIT,),
        said=("groups: 3 in train, 1 in val (data.group: (clip\\d+)_); none is in two splits",),
        check=apart(clip, **GROUPED, group=r"(clip\d+)_"),
    ),
    Door(
        "clips by a regular expression, in check",
        build_clips(CLIP),
        (("check", "c.yaml", "--json"),),
        check=check_counts(train=30, val=10),
    ),
    Door(
        "clips whose names hold their class",
        build(
            partial(put_rows, "{name}/{name}{row}_{number}.png", 5, 4),
            r"train: a, val_fraction: 0.2, test_fraction: 0.2, group: '/([a-z]+\d+)_'",
        ),
        (DRY,),
        said=("24 train, 8 val, 8 test", "groups: 6 in train, 2 in val, 2 in test"),
        check=apart(clip, train="a", val_fraction=0.2, test_fraction=0.2, group=r"/([a-z]+\d+)_"),
    ),
    Door(
        "a named group of the regular expression",
        build_clips("train: a, val_fraction: 0.25, group: '(?P<video>clip[0-9]+)'"),
        (DRY,),
        said=("30 train, 10 val",),
        check=apart(clip, **GROUPED, group="(?P<video>clip[0-9]+)"),
    ),
    Door(
        "folders of days below the classes",
        build_folders(FOLDER),
        (DRY,),
        said=("groups: 6 in train, 2 in val (data.group: folder)",),
        check=apart(os.path.dirname, **GROUPED, group="folder"),
    ),
    Door(
        "folders where there are none",
        build(ten, FOLDER),
        (FIT,),
        3,
        said=("folder makes 2 groups of 20 images", "folders of a video, animal or day"),
    ),
    Door(
        "patients of both classes",
        build_patients,
        (DRY,),
        said=("groups: 4 in train, 2 in val, 2 in test",),
        check=apart(clip, train="a", val_fraction=0.2, test_fraction=0.2, group=r"(p\d+)_"),
    ),
    Door(
        "a class that is one video",
        build_one_clip_class,
        (FIT,),
        said=(
            "the images of 'dog' are one group, which stays in train",
            "data.val has no images of 'dog'",
        ),
        check=check_group_count(train=4, val=1),
    ),
    Door(
        "every class is one video",
        build(ten, "train: a, val_fraction: 0.2, group: '([a-z]+)/'"),
        (FIT,),
        3,
        said=("makes 2 groups of 20 images, and none can go to val", "name smaller groups"),
    ),
    Door("a long video and short ones", build_uneven, (CHECK,), check=check_uneven),
    Door(
        "images in no group",
        build_loose,
        (DRY,),
        said=(
            "4 of 28 images are in no group of (clip\\d+)_, such as cat/still0.png; each of them "
            "is taken by itself",
        ),
        check=apart(
            lambda place: clip(place) if "clip" in place else place,
            **GROUPED,
            group=r"(clip\d+)_",
        ),
    ),
    Door(
        "a regular expression that is found nowhere",
        build(ten, r"train: a, val_fraction: 0.2, group: '(clip\d+)_'"),
        (FIT,),
        3,
        said=("20 of 20 images are in no group of", "expected one in paths such as cat/0.png"),
    ),
    Door(
        "duplicates, which fall apart without groups",
        build_copies("train: a, val_fraction: 0.25"),
        (FIT,),
        said=("of val are also in train (equal files)", "data.group=duplicates"),
    ),
    Door(
        "duplicates as groups",
        build_copies("train: a, val_fraction: 0.25"),
        ((*FIT, "data.group=duplicates"),),
        said=("24 train, 8 val", "groups: 12 in train, 4 in val (data.group: duplicates)"),
        unsaid=("equal files",),
        check=apart(lambda place: place.replace("copy-", ""), **GROUPED, group="duplicates"),
    ),
    Door(
        "near duplicates as groups",
        build_near,
        (FIT, ("check", "c.yaml")),
        said=("nearly the same",),
        unsaid=("different splits",),
        check=check_group_count(train=12, val=4),
    ),
    Door(
        "a run with groups is resumed",
        build_clips(CLIP),
        (FIT, (*FIT, "train.epochs=2", "--resume")),
        said=("resumed run after epoch 1",),
    ),
    Door(
        "another regular expression is another run",
        build_clips(CLIP),
        (FIT, (*FIT, "train.epochs=2", "--resume", "data.group=(_[0-9]+)")),
        2,
        said=("data.group",),
    ),
    Door(
        "suspects of a run with groups",
        build_clips(CLIP),
        (FIT, ("suspects", "run")),
        unsaid=("has changed since",),
    ),
)

WRONG_GROUPS = (
    Door(
        "a regular expression with no group",
        build_clips(r"train: a, val_fraction: 0.25, group: 'clip\d+'"),
        (FIT,),
        2,
        said=(
            "data.group: got clip\\d+; expected folder, duplicates, a regular expression with one",
        ),
    ),
    Door(
        "a regular expression with two groups",
        build_clips(r"train: a, val_fraction: 0.25, group: '(clip)(\d+)'"),
        (FIT,),
        2,
        said=("with 2 groups, expected one", "(?:...)"),
    ),
    Door(
        "no regular expression",
        build_clips("train: a, val_fraction: 0.25, group: '(clip'"),
        (FIT,),
        2,
        said=("got (clip, which is no regular expression: missing )",),
    ),
    Door(
        "a slip of the pen",
        build_clips("train: a, val_fraction: 0.25, group: folders"),
        (FIT,),
        2,
        said=("got folders, did you mean folder?",),
    ),
    Door(
        "a column where there is no list",
        build_clips("train: a, val_fraction: 0.25, columns: {group: patient}"),
        (FIT,),
        2,
        said=("data.columns.group: is a column of a list, and a is none",),
    ),
    Door(
        "two settings for groups",
        build_clips("train: a, val_fraction: 0.25, group: folder, columns: {group: patient}"),
        (FIT,),
        2,
        said=("data.group: set beside data.columns.group; keep one of them",),
    ),
    Door(
        "groups of folders where nothing is held out",
        build(steps(ten, partial(put_classes, "v", 3, 50)), "train: a, val: v, group: folder"),
        (FIT,),
        2,
        said=("folder is for images that are held out; set data.val_fraction",),
    ),
    Door(
        "a clip on both sides of given splits",
        build(
            steps(
                partial(put_rows, "{name}/clip{row}_{number}.png", 3, 3),
                partial(put_rows, "{name}/clip{row}_{number}.png", 2, 5, root="v"),
            ),
            r"train: a, val: v, group: '(clip\d+)_'",
        ),
        (FIT,),
        3,
        said=("2 groups are both in train and in val: 'clip0', 'clip1'", "data.val=null"),
    ),
    Door(
        "no clip on both sides of given splits",
        build(
            steps(
                partial(put_rows, "{name}/clip{row}_{number}.png", 3, 3),
                partial(put_rows, "{name}/film{row}_{number}.png", 2, 5, root="v"),
            ),
            r"train: a, val: v, group: '([a-z]+\d+)_'",
        ),
        (DRY,),
        said=("18 train, 20 val",),
    ),
)

LEAKS = (
    Door(
        "equal files in train and val",
        build_leak,
        (FIT,),
        said=("2 images of val are also in train (equal files), such as a/val/cat/x.png and",),
        check=leaks(("leaked", 2)),
    ),
    Door(
        "equal files, and the list that is named",
        build_leak,
        (("check", "c.yaml", "--write-list", "exclude.txt"),),
        3,
        check=check_exclude_list,
    ),
    Door(
        "equal files in val and test",
        steps(
            partial(build_leak, "train: a/val, val: b, test: c"),
            partial(shutil.copytree, "a/val", "b"),
            partial(shutil.copytree, "a/val", "c"),
        ),
        (FIT,),
        said=("8 images of val are also in train", "8 images of test are also in val"),
        check=leaks(("leaked", 8), ("leaked", 8), ("leaked", 8)),
    ),
    Door(
        "equal files under two classes",
        build_conflict,
        (FIT,),
        said=("2 images are in two classes, cat and dog for one (equal files), such as",),
    ),
    Door(
        "equal files, known from an earlier check",
        build_leak,
        (DRY, FIT),
        said=("2 images of val are also in train",),
        check=leaks(("leaked", 2)),
    ),
    Door(
        "equal files are on the page of the run",
        build_leak,
        ((*FIT, "train.report=true"),),
        check=report_says("2 images of val are also in train"),
    ),
    Door(
        "no equal files",
        build(ten, BOTH),
        (FIT,),
        unsaid=("equal files", FRAMES, "groups:"),
        check=leaks(),
    ),
)

NAMES_OF_FRAMES = (
    Door(
        "frames of videos",
        build(frames, HALF),
        (DRY,),
        said=(FRAMES, "such as cat/clip0_frame_0000.png", "'data.group=(clip[0-9]+)_frame_[0-9]'"),
    ),
    Door(
        "frames of videos, and the way out that is named",
        build(frames, HALF),
        ((*DRY, "data.group=(clip[0-9]+)_frame_[0-9]"),),
        said=("groups: 2 in train, 1 in val",),
        unsaid=(FRAMES,),
        check=apart(clip, **GROUPED, group="(clip[0-9]+)_frame_[0-9]"),
    ),
    Door(
        "frames on the page of the run",
        build(frames, HALF),
        ((*FIT, "train.report=true"),),
        check=report_says(FRAMES),
    ),
    Door(
        "groups on the page of the run",
        build_clips(CLIP),
        ((*FIT, "train.report=true"),),
        check=report_says("none of them in two splits"),
    ),
    Door(
        "frames in a folder for each video",
        build(partial(put_rows, "{name}/{row:02}/{number}.png", 2, 12), HALF),
        (DRY,),
        said=(FRAMES, "data.group=folder keeps"),
    ),
    Door(
        "videos that are numbers",
        build(partial(put_rows, "{name}/{row:05}_{number:03}.png", 2, 12), HALF),
        (DRY,),
        said=(FRAMES, "'data.group=([0-9]+)_[0-9]'"),
    ),
    Door(
        "videos that are numbers, in classes that are too",
        build(partial(put_rows, "{name}_01_2/{row:05}_{number:03}.png", 2, 12), HALF),
        (DRY,),
        said=(FRAMES, "'data.group=([^/]*[^/0-9])[0-9]+[^/0-9]*\\.[^.]*$'"),
        check=check_any_frames,
    ),
    Door(
        "every tenth frame",
        build(partial(put_rows, "{name}/v{row}-{number}0.png", 2, 12), HALF),
        (DRY,),
        said=(FRAMES,),
    ),
    Door(
        "one row of numbers for each class",
        build(partial(put_rows, "{name}/{name}_1_{number:04}.png", 1, 24), HALF),
        (DRY,),
        unsaid=(FRAMES,),
    ),
    Door(
        "files of two cameras",
        build(
            steps(
                partial(put_rows, "{name}/IMG_{number:04}.png", 1, 12),
                partial(put_rows, "{name}/DSC{number:05}.png", 1, 12),
            ),
            HALF,
        ),
        (DRY,),
        unsaid=(FRAMES,),
    ),
    Door(
        "times of photographs",
        build(
            lambda: [
                put(f"a/{name}/IMG_2024010{day}_{(day * 7 + n) ** 5 % 240000:06}.png", level, n)
                for name, level in LEVELS.items()
                for day in range(1, 3)
                for n in range(12)
            ],
            HALF,
        ),
        (DRY,),
        unsaid=(FRAMES,),
    ),
    Door(
        "frames where val is given",
        build(
            steps(frames, partial(put_classes, "v", 3, 50)),
            "train: a, val: v",
        ),
        (DRY,),
        unsaid=(FRAMES,),
    ),
)

DOORS: tuple[Door, ...] = (*HELD_OUT, *GROUPS, *WRONG_GROUPS, *LEAKS, *NAMES_OF_FRAMES)
