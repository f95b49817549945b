"""What only the data can say of a config: its folders and its list of excluded images."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vtrain.config.checks import Check
from vtrain.config.keys import FitConfig
from vtrain.config.mistakes import KeyMistake
from vtrain.data.formats import describe_file
from vtrain.data.image_sets import LIST_SUFFIXES, TAR_SUFFIX
from vtrain.system.files import describe_missing


def check_folder(config: FitConfig, *, name: str) -> Iterator[KeyMistake]:
    """A source of images that is not there, or is none."""
    value = getattr(config.data, name)
    if value is None:
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


CHECKS: tuple[Check, ...] = (
    (("data.train",), partial(check_folder, name="train")),
    (("data.val",), partial(check_folder, name="val")),
    (("data.test",), partial(check_folder, name="test")),
    (("data.exclude",), check_exclude),
)
