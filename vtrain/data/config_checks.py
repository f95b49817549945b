"""What only the data can say of a config: its folders, excluded images, and groups."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

from vtrain.config.checks import Check
from vtrain.config.keys import ColumnsConfig, DataConfig, FitConfig
from vtrain.config.mistakes import KeyMistake
from vtrain.data.formats import describe_file
from vtrain.data.image_sets import LIST_SUFFIXES, TAR_SUFFIX
from vtrain.data.overlaps import describe_nesting
from vtrain.data.tars import find_archive
from vtrain.errors import suggest
from vtrain.system.files import describe_missing

# What `data.group` may say besides a column or a regular expression.
GROUPS = ("folder", "duplicates")


def check_folder(config: FitConfig, *, name: str) -> Iterator[KeyMistake]:
    """A source of images that is not there, or is none."""
    value = getattr(config.data, name)
    if value is None or find_archive(Path(value)) is not None:
        return
    problem = describe_missing(Path(value), "folder")
    is_source = value.lower().endswith((TAR_SUFFIX, *LIST_SUFFIXES))
    is_file = problem is None and Path(value).is_file()
    if problem is None and not Path(value).is_dir() and not (is_file and is_source):
        kind = describe_file(Path(value)) or ("is a file" if is_file else "is not a regular file")
        others = f"a {TAR_SUFFIX} file or a list ({' '.join(LIST_SUFFIXES)})"
        problem = f"{value} {kind}, expected a folder of class folders, {others}"
    if problem is not None:
        yield KeyMistake(("data", name), problem)


def _is_list(value: str | None) -> bool:
    return value is not None and value.lower().endswith(LIST_SUFFIXES)


def check_validation(config: FitConfig) -> Iterator[KeyMistake]:
    """No validation images; a list may have a column that names them."""
    data = config.data
    if data.val is None and data.val_fraction is None and not _is_list(data.train):
        text = "no validation images; set data.val to a folder, or val_fraction: 0.2"
        yield KeyMistake(("data", "val"), text)


def check_lists(config: FitConfig) -> Iterator[KeyMistake]:
    """Keys of lists beside folders alone, or a root that is no folder."""
    data = config.data
    has_list = any(map(_is_list, (data.train, data.val, data.test)))
    is_set = {"columns": data.columns != ColumnsConfig(), "root": data.root is not None}
    for key in (each for each, known in is_set.items() if known and not has_list):
        text = f"is for lists ({' '.join(LIST_SUFFIXES)}), and train, val and test name none"
        yield KeyMistake(("data", key), text)
    if data.root is not None and has_list:
        problem = describe_missing(Path(data.root), "folder")
        if problem is None and not Path(data.root).is_dir():
            problem = f"{data.root} is not a folder"
        if problem is not None:
            yield KeyMistake(("data", "root"), problem)


def check_apart(config: FitConfig) -> Iterator[KeyMistake]:
    """A split that is another one, or lies in it, or holds it."""
    values = {name: getattr(config.data, name) for name in ("train", "val", "test")}
    given = {name: Path(value) for name, value in values.items() if value is not None}
    for (name, path), (later, other) in combinations(given.items(), 2):
        if (how := describe_nesting(other, path)) is not None:
            text = f"{other} {how} data.{name}, {path}: an image would be in both splits"
            advice = "leave data.val out and set data.val_fraction" if later == "val" else ""
            advice = advice or "leave data.test out, or give it images of its own"
            yield KeyMistake(("data", later), f"{text}; {advice}")
            return


def check_file(config: FitConfig, *, name: str) -> Iterator[KeyMistake]:
    """A list of excluded images or of names that is not there, or is no file."""
    value = getattr(config.data, name)
    if value is None:
        return
    path = Path(value)
    problem = describe_missing(path, "file")
    if problem is None and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        problem = f"{path} is {kind}, expected a text file"
    if problem is not None:
        yield KeyMistake(("data", name), problem)


def find_group_column(config: DataConfig) -> str | None:
    """The column of lists that names groups, where one does."""
    if config.columns.group is not None or config.group in (None, *GROUPS):
        return config.columns.group
    return None if config.group and "(" in config.group else config.group


def check_group(config: FitConfig) -> Iterator[KeyMistake]:
    """What says that images belong together, and cannot, or has nothing to say it to."""
    data, key = config.data, ("data", "group")
    if data.group is not None and data.columns.group is not None:
        yield KeyMistake(key, "set beside data.columns.group; keep one of them")
    elif data.group in GROUPS and data.val_fraction is None and data.test_fraction is None:
        yield KeyMistake(
            key,
            f"{data.group} is for images that are held out; set data.val_fraction instead of "
            "data.val, or group: null",
        )
    elif find_group_column(data) is not None:
        if not data.train.lower().endswith(LIST_SUFFIXES):
            column = data.columns.group
            text = f"is a column of a list, and {data.train} is none"
            if column is None:
                text = (
                    f"got {data.group}{suggest(data.group or '', GROUPS)}; expected "
                    f"{', '.join(GROUPS)}, a regular expression with one group in parentheses, or "
                    f"a column where data.train is a list ({' '.join(LIST_SUFFIXES)})"
                )
            yield KeyMistake(key if column is None else ("data", "columns", "group"), text)
    elif data.group is not None and data.group not in GROUPS:
        try:
            groups = re.compile(data.group).groups
        except re.error as error:
            yield KeyMistake(key, f"got {data.group}, which is no regular expression: {error}")
        else:
            if groups != 1:
                yield KeyMistake(
                    key,
                    f"got {data.group} with {groups} groups, expected one: parentheses round what "
                    "is the same for images that belong together, (?:...) round anything else",
                )


CHECKS: tuple[Check, ...] = (
    (("data.train",), partial(check_folder, name="train")),
    (("data.val",), partial(check_folder, name="val")),
    (("data.test",), partial(check_folder, name="test")),
    (("data.val", "data.val_fraction"), check_validation),
    (("data.train", "data.val", "data.test", "data.columns", "data.root"), check_lists),
    (("data.train", "data.val", "data.test"), check_apart),
    (("data.exclude",), partial(check_file, name="exclude")),
    (("data.names",), partial(check_file, name="names")),
    (("data.train", "data.val_fraction", "data.test_fraction", "data.group"), check_group),
)
