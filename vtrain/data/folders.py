"""Finds images in folders: class folders for training, any depth for prediction."""

import hashlib
import os
import stat
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.errors import DataError
from vtrain.records import LabelledImages, SkippedFile

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".gif",
    ".avif",
)
_HIDDEN_PREFIXES = (".", "__MACOSX")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True)
class SplitFolders:
    """The split folders found below one root; None where there is no such folder."""

    train: Path
    val: Path | None
    test: Path | None


def scan_labelled(
    root: Path, *, classes: Sequence[str] | None = None, name: str = "data.train"
) -> LabelledImages:
    """List the images of a folder with one subfolder for each class (`root/<class>/**/<image>`).

    Classes are sorted by name (Unicode NFC), images by class and then by relative path. Names that
    start with `.` or `__MACOSX` do not exist for it. Links are followed, and no folder is visited
    twice; real folders come before links to them. Nothing is opened: images are told by suffix.

    Args:
        root: folder that holds the class folders.
        classes: known class names, for a split that goes with a training set: folders are matched
            to them by name and may be missing or empty. None: the folders found, each with images.
        name: where `root` was given, for messages.

    Raises:
        DataError: `root` or a class folder cannot be used; the message names all that are wrong.
    """
    _require_folder(root, name)
    scan = _Scan()
    folders = _list_classes(root, scan, name)
    if classes is None:
        _require_classes(root, folders, name)
    else:
        _require_known(root, folders, classes, name)
    found = scan.walk(list(folders.items()))
    _require_images(root, found, scan.skipped, name, each_class=classes is None)
    names = tuple(sorted(folders)) if classes is None else tuple(classes)
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(names):
        # Popped, so that a million strings are freed as they become paths.
        files = sorted(found.pop(_compose(class_name), ()))
        paths += map(Path, files)
        labels += [label] * len(files)
    return LabelledImages(root, names, tuple(paths), tuple(labels), scan.sorted_skipped())


def scan_images(root: Path, *, name: str = "folder") -> tuple[list[Path], list[SkippedFile]]:
    """List the images below a folder, at any depth, sorted by relative path, and what is not used.

    The rules for hidden names, links and suffixes are those of `scan_labelled`.

    Raises:
        DataError: `root` is not a folder that can be read.
    """
    _require_folder(root, name)
    scan = _Scan()
    files = scan.walk([("", str(root))])[""]
    if not files and any(entry.path == root for entry in scan.skipped):
        raise DataError(f"{name}: {root} {scan.skipped[0].reason}", "check its permissions")
    return [Path(file) for file in sorted(files)], list(scan.sorted_skipped())


def split_stratified(
    images: LabelledImages, fraction: float, *, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Split off `fraction` of each class (0 to 1, rounded) for validation: (train, val).

    A class with at least two images gets at least one on each side; a single image stays in train.
    Which images go is decided by a hash of the seed and the path below the root, so neither the
    order of the file system nor other files matter.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels):
        by_class.setdefault(label, []).append(index)
    val: set[int] = set()
    for members in by_class.values():
        wanted = round(len(members) * fraction)
        count = min(max(wanted, 1), len(members) - 1)
        ranked = sorted(members, key=lambda i: _rank(images, i, seed))
        val.update(ranked[:count])
    train = [i for i in range(len(images)) if i not in val]
    return images.subset(train), images.subset(sorted(val))


def find_splits(root: Path) -> SplitFolders | None:
    """The `train`, `val` and `test` folders below `root` under any of their usual names.

    None if there is no train folder, or neither of the others, or if `root` holds other folders
    too: then they are classes that happen to have such names.

    Raises:
        DataError: `root` is not a folder that can be read.
    """
    _require_folder(root, "folder")
    folders = [entry.name for entry in _Scan().list_folder(str(root)) if _is_folder(entry)]
    return _match_splits(root, folders)


def _match_splits(root: Path, folders: Sequence[str]) -> SplitFolders | None:
    found: dict[str, Path] = {}
    for folder in folders:
        kinds = [kind for kind, names in _SPLIT_NAMES.items() if folder.lower() in names]
        if not kinds or kinds[0] in found:
            return None
        found[kinds[0]] = root / folder
    if "train" not in found or len(found) < 2:
        return None
    return SplitFolders(found["train"], found.get("val"), found.get("test"))


@dataclass(slots=True)
class _Scan:
    """One walk: which folders were visited (by device and inode), what was not used and why."""

    skipped: list[SkippedFile] = field(default_factory=list)
    visited: set[tuple[int, int]] = field(default_factory=set)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(SkippedFile(Path(path), reason))

    def sorted_skipped(self) -> tuple[SkippedFile, ...]:
        return tuple(sorted(self.skipped, key=lambda entry: str(entry.path)))

    def enter(self, folder: str) -> bool:
        """Whether a folder is new to this scan; it counts as visited from here on."""
        try:
            status = Path(folder).stat()
        except OSError as error:
            self.skip(folder, _describe(error))
            return False
        identity = (status.st_dev, status.st_ino)
        if identity in self.visited:
            self.skip(folder, "leads to a folder that is scanned already")
            return False
        self.visited.add(identity)
        return True

    def list_folder(self, folder: str) -> list[os.DirEntry[str]]:
        """Visible entries in no particular order; none, and a note, if the folder is unreadable."""
        try:
            with os.scandir(folder) as entries:
                return [e for e in entries if not e.name.startswith(_HIDDEN_PREFIXES)]
        except OSError as error:
            self.skip(folder, _describe(error))
            return []

    def walk(self, starts: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
        """Image paths below each (key, folder), by key, unordered.

        Links to folders wait until every real folder has been visited: an image belongs to the
        class folder that it lies in, whatever else points there.
        """
        found: dict[str, list[str]] = {key: [] for key, _ in starts}
        real = deque(start for start in starts if self.enter(start[1]))
        links: deque[tuple[str, str]] = deque()
        while real or links:
            if not real:
                key, folder = links.popleft()
                if self.enter(folder):
                    real.append((key, folder))
                continue
            key, folder = real.popleft()
            subfolders: list[os.DirEntry[str]] = []
            for entry in self.list_folder(folder):
                self.sort_entry(entry, found[key], subfolders)
            for entry in sorted(subfolders, key=lambda e: e.name):
                if entry.is_symlink():
                    links.append((key, entry.path))
                elif self.enter(entry.path):
                    real.append((key, entry.path))
        return found

    def sort_entry(
        self, entry: os.DirEntry[str], files: list[str], subfolders: list[os.DirEntry[str]]
    ) -> None:
        """Put an entry where it belongs: images, folders, or what is skipped and why."""
        try:
            if entry.is_dir():
                subfolders.append(entry)
            elif not entry.is_file():
                self.skip(entry.path, _describe_kind(entry))
            elif is_image_name(entry.name):
                files.append(entry.path)
            else:
                self.skip(entry.path, "is not named like an image")
        except OSError as error:
            self.skip(entry.path, _describe(error))


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image, in upper or lower case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def name_first_skipped(skipped: Sequence[SkippedFile]) -> str:
    """What follows "no images": the first file that is not used and why, or nothing."""
    return f"; skipped {skipped[0].path}: {skipped[0].reason}" if skipped else ""


def describe_skipped(root: Path | str, skipped: Sequence[SkippedFile]) -> str:
    """How many files below `root` are not used, and the first of them (there is at least one)."""
    first = skipped[0]
    return f"{root}: {len(skipped)} skipped, the first is {first.path}: {first.reason}"


def _list_classes(root: Path, scan: _Scan, name: str) -> dict[str, str]:
    """Class folders below `root`: NFC name to path, real folders before links to folders."""
    scan.enter(str(root))
    entries = sorted(scan.list_folder(str(root)), key=lambda e: e.name)
    if scan.skipped:
        raise DataError(f"{name}: {root} {scan.skipped[0].reason}", "check its permissions")
    folders: dict[str, str] = {}
    for entry in sorted(filter(_is_folder, entries), key=lambda e: e.is_symlink()):
        class_name = _compose(entry.name)
        if class_name in folders:
            twins = f"{Path(folders[class_name]).name!a} and {entry.name!a}"
            raise DataError(
                f"{name}: two folders in {root} are both the class '{class_name}' in Unicode's "
                f"normal form: {twins}",
                "merge them into one folder",
            )
        folders[class_name] = entry.path
    stray: list[str] = []
    for entry in entries:
        if not _is_folder(entry):
            scan.sort_entry(entry, stray, [])
    for path in stray:
        scan.skip(path, "lies outside the class folders")
    return folders


def _require_folder(root: Path, name: str) -> None:
    try:
        mode = root.stat().st_mode
    except FileNotFoundError as error:
        hint = "paths are relative to the working directory"
        raise DataError(f"{name}: there is no folder {root}", hint) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {root} {_describe(error)}") from error
    if not stat.S_ISDIR(mode):
        raise DataError(f"{name}: {root} is a file, expected a folder")


def _require_classes(root: Path, folders: dict[str, str], name: str) -> None:
    splits = _match_splits(root, list(folders))
    if splits is not None:
        raise DataError(f"{name}: {root} holds splits, not classes", _hint_splits(splits, name))
    layout = f"expected one folder for each class: {root}/<class>/<image>"
    if not folders:
        raise DataError(f"{name}: {root} has no class folders", layout)
    if len(folders) == 1:
        (only,) = folders
        raise DataError(f"{name}: {root} has one class folder only, '{only}'", layout)


def _hint_splits(splits: SplitFolders, name: str) -> str:
    held_out = splits.val or splits.test
    if name == "data.train":
        return f"use data.train={splits.train} data.val={held_out}"
    return f"use {held_out} instead"


def _require_known(root: Path, folders: dict[str, str], classes: Sequence[str], name: str) -> None:
    known = {_compose(name) for name in classes}
    unknown = [folder for folder in folders if folder not in known]
    if not unknown:
        return
    splits = _match_splits(root, list(folders))
    if splits is not None:
        raise DataError(f"{name}: {root} holds splits, not classes", _hint_splits(splits, name))
    raise DataError(
        f"{name}: {root} has classes that training does not have: {_enumerate(sorted(unknown))}",
        f"the classes are {_enumerate(sorted(known))}; folders are matched to them by name",
    )


def _require_images(
    root: Path,
    found: dict[str, list[str]],
    skipped: Sequence[SkippedFile],
    name: str,
    *,
    each_class: bool,
) -> None:
    if not any(found.values()):
        raise DataError(f"{name}: no images in {root}", f"expected {root}/<class>/<image>")
    empty = sorted(key for key, files in found.items() if not files)
    if not each_class or not empty:
        return
    causes = [
        f"{relative} {reason}"
        for relative, reason in ((s.path.relative_to(root), s.reason) for s in skipped)
        if relative.parts and _compose(relative.parts[0]) == empty[0]
    ]
    raise DataError(
        f"{name}: class folders without images in {root}: {_enumerate(empty)}",
        "; ".join([*causes[:1], "add images or remove the folders"]),
    )


def _compose(name: str) -> str:
    """NFC: macOS stores é as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED_AT_MOST])
    rest = len(names) - _NAMED_AT_MOST
    return f"{shown} and {rest} more" if rest > 0 else shown


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _describe(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read ({(reason or type(error).__name__).lower()})"


def _describe_kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink() and not Path(entry.path).exists():
        return "is a broken link"
    mode = entry.stat().st_mode
    kinds = ((stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
    return next((f"is a {kind}" for test, kind in kinds if test(mode)), "is a device")


def _rank(images: LabelledImages, index: int, seed: int) -> bytes:
    relative = images.paths[index].relative_to(images.root)
    return hashlib.blake2b(os.fsencode(f"{seed}/{relative.as_posix()}"), digest_size=16).digest()
