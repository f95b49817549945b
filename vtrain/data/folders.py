"""Finds images: class folders for training, any depth for prediction; also tars and lists."""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtrain.data.formats import BY_REASON, describe_file, describe_unread, split_foreign
from vtrain.data.image_names import BACKSLASHES, NOT_AN_IMAGE, OUTSIDE, compose, describe_error
from vtrain.data.image_sets import (
    LIST_SUFFIXES,
    TAR_SUFFIX,
    LabelledImages,
    PackedPaths,
    SkippedFile,
    join_prefix,
)
from vtrain.data.lists import FOUND_BY_NAME, ListLayout, read_list
from vtrain.data.tars import (
    LABEL_SUFFIX,
    TarScan,
    compressed_error,
    is_compressed,
    scan_tars,
)
from vtrain.data.walk import FolderScan, path_text
from vtrain.errors import DataError
from vtrain.system.files import explain_missing
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.text import enumerate_names, one_line, quote_path

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_CLASS_FOLDERS = "one folder for each class: {root}/<class>/<image>"
_TAR_MEMBERS = "members named <class>/<image>, or pairs <name>.jpg and <name>.cls"
_LIST_LINES = "lines of path and class"


@dataclass(frozen=True, slots=True)
class SplitFolders:
    """The split folders found below one root; None where there is no such folder."""

    train: Path
    val: Path | None
    test: Path | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What a source holds: names below `base` by class, and what it should look like.

    `mixed`: names may be absolute. `numbered`: class names are indices.
    """

    base: Path
    by_class: dict[str, list[str]]
    skipped: list[SkippedFile]
    layout: str
    mixed: bool = False
    numbered: bool = False


def scan_labelled(
    root: Path,
    *,
    classes: Sequence[str] | None = None,
    name: str = "data.train",
    layout: ListLayout = FOUND_BY_NAME,
    reporter: Reporter = SILENT,
) -> LabelledImages:
    """List labelled images of a folder with one subfolder for each class, of tars, or of a list.

    Classes are sorted by name (Unicode NFC), or by number if `.cls` members of tars number them;
    images by class and then by relative path. Images are told by suffix; only files with odd names,
    or named like formats that are not read, are looked into, see `vtrain.data.formats`.

    - A folder holds `<class>/**/<image>`. What is hidden or belongs to a system does not exist for
      it. Links are followed, and no folder is visited twice; real folders come before links to
      them. What was found is kept in the cache folder for as long as the folders do not change.
    - A `.tar` file, or a folder that holds such files and neither folders nor images: see
      `vtrain.data.tars`.
    - A `.csv`, `.tsv` or `.txt` list: see `vtrain.data.lists`.

    Args:
        root: the folder or file.
        classes: known class names, for a split that goes with a training set: those found are
            matched to them by name, `.cls` members also by number, and may be missing or empty.
            None: those found, each with images.
        name: where `root` was given, for messages.
        layout: how a list is read.
        reporter: is told if nothing can be kept in the cache folder.

    Raises:
        DataError: `root` or a class folder cannot be used; the message names all that are wrong.
    """
    if _is_list(root, name):
        found = _find_listed(root, layout)
    else:
        source = _open_source(root, name, reporter)
        if isinstance(source, TarScan):
            found = _find_in_tars(root, source, classes)
        else:
            found = _find_in_folders(source, classes, name)
            source.memory.save(reporter)
        _say_found(source.found, reporter)
    return _build_labelled(root, found, classes, name)


def scan_images(
    root: Path, *, layout: ListLayout = FOUND_BY_NAME, reporter: Reporter = SILENT
) -> tuple[PackedPaths, list[SkippedFile]]:
    """List images without their classes, and what is not used.

    Those of a folder, at any depth, and of tars come sorted by relative path, those of a list in
    its order. The rules and `reporter` are those of `scan_labelled`.

    Raises:
        DataError: `root` cannot be read, or is neither a folder nor a tar nor a list.
    """
    if _is_list(root, "folder"):
        listed = read_list(root, layout, labelled=False)
        return PackedPaths(root.parent, listed.names, mixed=True), listed.skipped
    source = _open_source(root, "folder", reporter)
    if isinstance(source, TarScan):
        names = source.names
    else:
        names = source.walk((), entries=source.entries)[""]
        source.memory.save(reporter)
    _say_found(source.found, reporter)
    names.sort()
    return PackedPaths(root, names), sorted(source.skipped, key=path_text)


def is_source(path: Path) -> bool:
    """Whether a path stands for many images: a folder, a tar or a list."""
    return path.is_dir() or path.name.lower().endswith((TAR_SUFFIX, *LIST_SUFFIXES))


def find_splits(root: Path) -> SplitFolders | None:
    """The `train`, `val` and `test` folders below `root` under any of their usual names.

    None if there is no train folder, or neither of the others, or if `root` holds other folders
    too: then they are classes that happen to have such names.

    Raises:
        DataError: `root` is not a folder that can be read.
    """
    _require_source(root, "folder", files=False)
    scan = FolderScan(root)
    return _match_splits(root, [name for name, _ in scan.open_root("folder").folders])


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


def name_first_skipped(skipped: Sequence[SkippedFile]) -> str:
    """What follows "no images": why files are not used, or nothing."""
    foreign = list(describe_unread(skipped, Path()))
    if foreign:
        return "; " + "; ".join(foreign)
    return f"; skipped {one_line(skipped[0].path)}: {skipped[0].reason}" if skipped else ""


def report_skipped(
    root: Path | str,
    skipped: Sequence[SkippedFile],
    reporter: Reporter,
    images: LabelledImages | None = None,
) -> None:
    """Warn of formats that are not read, and say how many other files below `root` are not used.

    `images` are those that are used, where there are classes.
    """
    counts = {}
    if images is not None:
        counts = dict(zip(images.classes, images.class_counts(), strict=True))
    for message in describe_unread(skipped, Path(root), counts):
        reporter.warn(f"{one_line(root)}: {message}")
    _, others = split_foreign(skipped)
    if others:
        where = f"the first is {one_line(others[0].path)}: {others[0].reason}"
        reporter.say(f"{one_line(root)}: {len(others)} skipped, {where}")


def _is_list(root: Path, name: str) -> bool:
    """Whether `root` is a list; whatever it is, it exists and is something that can be used."""
    mode = _require_source(root, name, files=True)
    return stat.S_ISREG(mode) and root.name.lower().endswith(LIST_SUFFIXES)


def _say_found(found: Sequence[str], reporter: Reporter) -> None:
    if found:
        files = "1 file, " if len(found) == 1 else f"{len(found):,} files such as "
        reporter.say(f"read for what is in them, not for their names: {files}{one_line(found[0])}")


def _open_source(root: Path, name: str, reporter: Reporter) -> TarScan | FolderScan:
    """The images of tars, or else a folder of which the entries are known."""
    if root.is_file():
        return scan_tars(root, [""], reporter)
    scan = FolderScan(root)
    entries = scan.open_root(name)
    if entries.folders or entries.images:
        return scan
    # A folder of neither folders nor images may be one of tars.
    names = sorted(each.path.name for each in scan.skipped if each.reason == NOT_AN_IMAGE)
    for each in filter(is_compressed, names):
        raise compressed_error(root / each)
    archives = [each for each in names if each.lower().endswith(TAR_SUFFIX)]
    if not archives:
        return scan
    tars = scan_tars(root, archives, reporter)
    tars.skipped += [each for each in scan.skipped if each.path.name not in archives]
    return tars


def _find_in_folders(scan: FolderScan, classes: Sequence[str] | None, name: str) -> _Found:
    root = scan.root
    folders = _list_classes(scan, name)
    _require_unpacked(scan, name)
    if classes is None:
        _require_classes(root, folders, name)
    else:
        _require_known(root, folders, classes, name)
    by_class = scan.walk(list(folders.items()))
    return _Found(root, by_class, scan.skipped, _CLASS_FOLDERS.format(root=one_line(root)))


def _find_in_tars(root: Path, tars: TarScan, classes: Sequence[str] | None) -> _Found:
    labels = filter(None, tars.classes)
    numbered = tars.has_labels and all(each.isascii() and each.isdigit() for each in labels)
    names = {}
    if numbered and classes is not None and not {*tars.classes, ""} <= {*classes, ""}:
        names = {str(number): each for number, each in enumerate(classes)}
    by_class: dict[str, list[str]] = {}
    no_label = f"has no {LABEL_SUFFIX} member that names its class"
    for place, label in zip(tars.names, tars.classes, strict=True):
        if label:
            by_class.setdefault(names.get(label, compose(label)), []).append(place)
        else:
            outside = BACKSLASHES if "\\" in place else OUTSIDE
            tars.skipped.append(SkippedFile(root / place, no_label if tars.has_labels else outside))
    for each in tars.skipped if not tars.has_labels else ():
        # A class of nothing but files that are not read is no less a class.
        folders = each.path.relative_to(root).parts[0 if root.is_file() else 1 : -1]
        if folders and each.reason in BY_REASON:
            by_class.setdefault(compose(folders[0]), [])
    numbered = numbered and not names
    return _Found(root, by_class, tars.skipped, _TAR_MEMBERS, numbered=numbered)


def _find_listed(root: Path, layout: ListLayout) -> _Found:
    listed = read_list(root, layout, labelled=True)
    by_class: dict[str, list[str]] = {}
    for place, label in zip(listed.names, listed.classes, strict=True):
        by_class.setdefault(label, []).append(place)
    return _Found(root.parent, by_class, listed.skipped, _LIST_LINES, mixed=True)


def _build_labelled(
    root: Path, found: _Found, classes: Sequence[str] | None, name: str
) -> LabelledImages:
    found.skipped.sort(key=path_text)
    if classes is None and len(found.by_class) == 1:
        raise DataError(
            f"{name}: {one_line(root)} has one class only, {enumerate_names(list(found.by_class))}",
            f"expected {found.layout}",
        )
    if classes is not None:
        _require_known(root, found.by_class, classes, name)
    _require_images(root, found, name, each_class=classes is None)
    numbers = int if found.numbered else None
    names = sorted(found.by_class, key=numbers) if classes is None else classes
    places: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(names):
        members = sorted(found.by_class.pop(compose(class_name), ()))
        places += members
        labels += [label] * len(members)
    paths = PackedPaths(found.base, places, mixed=found.mixed)
    return LabelledImages(root, tuple(names), paths, tuple(labels), tuple(found.skipped))


def _list_classes(scan: FolderScan, name: str) -> dict[str, str]:
    """Class folders: NFC name to path, real folders before links to folders."""
    prefix = join_prefix(scan.root)
    folders: dict[str, str] = {}
    for folder, _ in sorted(scan.entries.folders, key=lambda each: (each[1], each[0])):
        class_name = compose(folder)
        if class_name in folders:
            twins = f"{Path(folders[class_name]).name!a} and {folder!a}"
            raise DataError(
                f"{name}: two folders in {one_line(scan.root)} are both the class "
                f"{enumerate_names([class_name])} in Unicode's normal form: {twins}",
                "merge them into one folder",
            )
        folders[class_name] = prefix + folder
    for stray in scan.entries.images:
        scan.skip(prefix + stray, BACKSLASHES if "\\" in stray else OUTSIDE)
    return folders


def _require_source(root: Path, name: str, *, files: bool) -> int:
    """The mode of a folder, or with `files` also of a tar or list."""
    try:
        mode = root.stat().st_mode
    except FileNotFoundError as error:
        message = f"{name}: there is no folder {one_line(root)}"
        raise DataError(message, one_line(explain_missing(root))) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {one_line(root)} {describe_error(error)}") from error
    if stat.S_ISDIR(mode):
        return mode
    if is_compressed(root.name):
        raise compressed_error(root)
    if not files or not stat.S_ISREG(mode) or not is_source(root):
        others = f", a {TAR_SUFFIX} file or a list ({' '.join(LIST_SUFFIXES)})" if files else ""
        kind = "is a file" if stat.S_ISREG(mode) else "is not a regular file"
        kind = describe_file(root) or kind
        raise DataError(f"{name}: {one_line(root)} {kind}, expected a folder{others}")
    return mode


def _require_classes(root: Path, folders: dict[str, str], name: str) -> None:
    _require_no_splits(root, folders, name)
    layout = f"expected {_CLASS_FOLDERS.format(root=one_line(root))}"
    if not folders:
        raise DataError(f"{name}: {one_line(root)} has no class folders", layout)
    if len(folders) == 1:
        only = enumerate_names(list(folders))
        raise DataError(f"{name}: {one_line(root)} has one class folder only, {only}", layout)


def _require_no_splits(root: Path, folders: Iterable[str], name: str) -> None:
    """Refuse folders that are splits where classes are expected."""
    splits = _match_splits(root, list(folders))
    if splits is None:
        return
    held_out = splits.val or splits.test
    hint = f"use {held_out} instead"
    if name == "data.train":
        hint = f"use data.train={splits.train} data.val={held_out}"
    message = f"{name}: {one_line(root)} holds splits, not classes"
    raise DataError(message, one_line(hint))


def _require_unpacked(scan: FolderScan, name: str) -> None:
    """Refuse files that an archive made by Windows left without their folders."""
    strays = [each for each in scan.entries.images if "\\" in each and os.sep != "\\"]
    if strays:
        count = "1 file" if len(strays) == 1 else f"{len(strays):,} files"
        raise DataError(
            f"{name}: {count} in {one_line(scan.root)} such as {one_line(strays[0])} "
            f"{'has' if len(strays) == 1 else 'have'} backslashes in the name, where the archive "
            "had folders",
            f"unpack it again with unzip, or make the folders: cd {quote_path(scan.root)}; "
            'for f in *\\\\*; do to=${f//\\\\//}; mkdir -p "${to%/*}" && mv -n "$f" "$to"; done',
        )


def _require_known(root: Path, folders: Iterable[str], classes: Sequence[str], name: str) -> None:
    known = {compose(name) for name in classes}
    unknown = [folder for folder in folders if folder not in known]
    if not unknown:
        return
    _require_no_splits(root, folders, name)
    raise DataError(
        f"{name}: {one_line(root)} has classes that training does not have: "
        f"{enumerate_names(sorted(unknown))}",
        f"the classes are {enumerate_names(sorted(known))}; folders are matched to them by name",
    )


def _require_images(root: Path, found: _Found, name: str, *, each_class: bool) -> None:
    if not any(found.by_class.values()):
        hint = f"expected {found.layout}{name_first_skipped(found.skipped)}"
        raise DataError(f"{name}: no images in {one_line(root)}", hint)
    empty = sorted(key for key, files in found.by_class.items() if not files)
    if not each_class or not empty:
        return
    causes = [
        f"{one_line(relative)} {reason}"
        # What is of a known format says most.
        for relative, reason in (
            (each.path.relative_to(root), each.reason)
            for each in sorted(found.skipped, key=lambda each: each.reason not in BY_REASON)
        )
        if relative.parts and compose(relative.parts[0]) == empty[0]
    ]
    raise DataError(
        f"{name}: class folders without images in {one_line(root)}: {enumerate_names(empty)}",
        "; ".join([*causes[:1], "add images or remove the folders"]),
    )
