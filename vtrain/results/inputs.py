"""What the arguments of a command stand for: images, or the reason why there is none."""

import glob
import os
import select
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from vtrain.data.folders import (
    is_source,
    name_first_skipped,
    report_skipped,
    scan_images,
    scan_with_labels,
)
from vtrain.data.image_sets import LIST_SUFFIXES
from vtrain.data.lists import FOUND_BY_NAME, ListLayout
from vtrain.data.tars import find_status
from vtrain.errors import DataError, UsageError
from vtrain.system.reporter import Reporter
from vtrain.system.text import one_line

STDIN = "-"
PAUSE_SECONDS = 0.02  # without a line; a program that lists files is faster
CHUNK_BYTES = 65536
MISSING = "no such file or folder"
_MAGIC = (
    (b"\xff\xd8\xff", "an image (JPEG)"),
    (b"\x89PNG", "an image (PNG)"),
    (b"GIF8", "an image (GIF)"),
    (b"RIFF", "an image (WebP)"),
    (b"II*\0", "an image (TIFF)"),
    (b"MM\0*", "an image (TIFF)"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
)
_UTF8_MARK = b"\xef\xbb\xbf"
_CONTROL = frozenset(range(1, 32)) - frozenset(b"\t\n\r\x1b")


@dataclass(frozen=True, slots=True)
class PredictInput:
    """One input as it will be named in the answer, or the reason why it stands for no image.

    `label` is the class that its folder, tar or list gives it, where that was asked for.
    """

    path: str
    error: str | None = None
    label: str = ""


class FoundInputs(Iterator[PredictInput]):
    """The images that files, folders, globs and `-` (paths on `stdin`) stand for.

    Arguments keep their order and may repeat; a folder gives its images at any depth, sorted, and
    a glob its matches, sorted. So do a tar and a list (.csv, .tsv, .txt; each line in its order)
    that are arguments by themselves. What exists under its literal name is not taken for a glob,
    and paths on `stdin` never are; these stand on lines, or end with NUL. Any other file is an
    input whatever its name ends with. What stands for no image gives one input with an error.

    They are found when they are asked for; `known` is how many there are so far, with those of the
    last folder that was looked into. `layout` says how lists are read, `labelled` whether inputs
    get their labels. `reporter` is told of files in folders that are not used.

    Raises:
        UsageError: while iterating: `stdin` holds something else than paths; or no path, and
            nothing else was asked for.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        stdin: BinaryIO,
        *,
        layout: ListLayout = FOUND_BY_NAME,
        labelled: bool = False,
        reporter: Reporter,
    ) -> None:
        self.known = 0
        self._layout = layout
        self._labelled = labelled
        self._reporter = reporter
        self._inputs = self._find(arguments, stdin)

    def __next__(self) -> PredictInput:
        while (found := next(self._inputs)) is None:
            pass
        return found

    def pausing(self) -> Iterator[PredictInput | None]:
        """The inputs, and None where one is waited for that is not there yet."""
        return self._inputs

    def _find(self, arguments: Sequence[str], stdin: BinaryIO) -> Iterator[PredictInput | None]:
        for argument in arguments:
            if argument == STDIN:
                yield from self._read(stdin)
            elif is_pattern(argument):
                # Path.glob takes no absolute patterns
                names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207
                for name in names:
                    yield from self._expand(name)
                if not names:
                    yield from self._count_one(argument, "no file matches this pattern")
            else:
                yield from self._expand(argument, may_list=True)

    def _read(self, stdin: BinaryIO) -> Iterator[PredictInput | None]:
        known = self.known
        for name in _read_paths(stdin):
            if name is None:
                yield None
            elif name:
                yield from self._expand(os.fsdecode(name))
        if not self.known:  # whatever else was asked for has given an input
            raise UsageError(
                "stdin is empty, expected paths of images",
                "does the command before the pipe list any?",
            )
        if self.known == known:
            self._reporter.warn("stdin is empty")

    def _expand(self, name: str, *, may_list: bool = False) -> Iterator[PredictInput]:
        try:
            if not name:
                return self._count_one(name, "the path is empty")
            path = Path(name)
            if not path.is_dir():
                find_status(path)
                if not may_list or not is_source(path):
                    return self._count_one(name, None)
            scan = scan_with_labels if self._labelled else scan_images
            images, skipped, *found = scan(path, layout=self._layout, reporter=self._reporter)
        except FileNotFoundError:
            return self._count_one(name, _explain_missing(name))
        except DataError as error:
            return self._count_one(name, error.message)
        except (OSError, ValueError) as error:
            return self._count_one(name, getattr(error, "strerror", None) or str(error))
        if not images:
            kind = "list names" if is_list(name) else "folder holds"
            return self._count_one(name, f"the {kind} no images{name_first_skipped(skipped)}")
        report_skipped(name, skipped, self._reporter)
        self.known += len(images)
        labels = next(iter(found), None) or repeat("")
        return (
            PredictInput(str(image), None, label)
            for image, label in zip(images, labels, strict=False)
        )

    def _count_one(self, name: str, error: str | None) -> Iterator[PredictInput]:
        self.known += 1
        return iter([PredictInput(name, error)])


def is_pattern(argument: str) -> bool:
    """Whether an argument is a glob: there is no file of that very name."""
    return glob.has_magic(argument) and not os.path.lexists(argument)


def is_list(argument: str) -> bool:
    """Whether an argument is named like a list."""
    return argument.lower().endswith(LIST_SUFFIXES)


def _explain_missing(name: str) -> str:
    """Why there is no such file, with the file that may be meant."""
    bare = name.strip().strip("\"'").strip()
    for other in (bare, bare.replace("\\", "/")):
        if other not in ("", name) and os.path.lexists(other):
            return f"{MISSING}, but there is {one_line(other)}"
    return MISSING


def _read_paths(stream: BinaryIO) -> Iterator[bytes | None]:
    """What stands on the lines of a stream, or between NULs; None where the next is not there yet.

    A path never holds NUL: it tells which of the two it is.
    """
    end = b""
    rest = b""
    ended = False
    while not ended:
        if not _is_ready(stream):
            yield None
        chunk = stream.read1(CHUNK_BYTES)  # type: ignore[attr-defined]  # of every binary stream
        rest += chunk
        ended = not chunk
        if not end and (ended or b"\0" in rest or b"\n" in rest):
            _require_paths(rest)
            rest = rest.removeprefix(_UTF8_MARK)
            end = b"\0" if b"\0" in rest else b"\n"
        if end:
            *paths, rest = rest.split(end)
            yield from paths if end == b"\0" else (path.rstrip(b"\r") for path in paths)
    yield rest.rstrip(b"\r") if end == b"\n" else rest


def _is_ready(stream: BinaryIO) -> bool:
    """Whether a read does not wait; waits a little itself."""
    try:
        return bool(select.select([stream], [], [], PAUSE_SECONDS)[0])
    except (OSError, ValueError, TypeError):  # in memory, or what this system cannot ask
        return True


def _require_paths(start: bytes) -> None:
    """Refuse a stream that starts with something else than paths."""
    found = next((what for magic, what in _MAGIC if start.startswith(magic)), None)
    if found is None and b"\0" in start:
        pieces = start.split(b"\0")
        if _CONTROL & set(start):
            found = "binary data"
        elif len(pieces) > 2 and all(len(piece) == 1 for piece in pieces[:-1]):
            found = "text in UTF-16"
    if found is None:
        return
    hint = "write them in UTF-8" if "text" in found else "write it to a file, and name that file"
    raise UsageError(f"stdin holds {found}, expected paths of images", hint)
