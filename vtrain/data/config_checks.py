"""What only the data can say of a config: its folders, excluded images, and groups."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vtrain.config.checks import Check
from vtrain.config.keys import DataConfig, FitConfig
from vtrain.config.mistakes import KeyMistake
from vtrain.data.image_sets import LIST_SUFFIXES, TAR_SUFFIX
from vtrain.errors import suggest
from vtrain.system.files import describe_missing

# What `data.group` may say besides a column or a regular expression.
GROUPS = ("folder", "duplicates")


def check_folder(config: FitConfig, *, name: str) -> Iterator[KeyMistake]:
    """A source of images that is not there, or is none."""
    value = getattr(config.data, name)
    if value is None:
        return
    problem = describe_missing(Path(value), "folder")
    is_source = value.lower().endswith((TAR_SUFFIX, *LIST_SUFFIXES))
    is_file = problem is None and Path(value).is_file()
    if problem is None and not Path(value).is_dir() and not (is_file and is_source):
        kind = "a file" if is_file else "not a regular file"
        others = f"a {TAR_SUFFIX} file or a list ({' '.join(LIST_SUFFIXES)})"
        problem = f"{value} is {kind}, expected a folder of class folders, {others}"
    if problem is not None:
        yield KeyMistake(("data", name), problem)


def check_exclude(config: FitConfig) -> Iterator[KeyMistake]:
    """A list of excluded images that is not there, or is no file."""
    if config.data.exclude is None:
        return
    path = Path(config.data.exclude)
    problem = describe_missing(path, "file")
    if problem is None and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        problem = f"{path} is {kind}, expected a text file with one path per line"
    if problem is not None:
        yield KeyMistake(("data", "exclude"), problem)


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
    (("data.exclude",), check_exclude),
    (("data.train", "data.val_fraction", "data.test_fraction", "data.group"), check_group),
)
