"""Finds images: class folders for training, any depth for prediction; also tars and lists."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
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
from vtrain.data.layouts import (
    TEST,
    TRAIN,
    VAL,
    Layout,
    find_kinds,
    look_at_folders,
    look_at_members,
    read_layout,
)
from vtrain.data.lists import FOUND_BY_NAME, ListLayout, ListScan, read_list
from vtrain.data.tars import (
    LABEL_SUFFIX,
    TarScan,
    compressed_error,
    find_archive,
    is_compressed,
    scan_tars,
)
from vtrain.data.walk import FolderEntries, FolderScan, path_text
from vtrain.errors import DataError
from vtrain.system.files import explain_missing
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.text import enumerate_names, one_line, quote_path, shorten_path

EMPTY_CLASS = "is an empty class folder"
_CLASS_FOLDERS = "one folder for each class: {root}/<class>/<image>"
_TAR_MEMBERS = "members named <class>/<image>, or pairs <name>.jpg and <name>.cls"
_LIST_LINES = "lines of path and class"
_NO_LABEL = f"has no {LABEL_SUFFIX} member that names its class"


@dataclass(frozen=True, slots=True)
class SplitFolders:
    """The split folders found below one root; None where there is no such folder.

    `flat` are validation and test folders with images and without class folders; `remarks` tell
    what was guessed.
    """

    train: Path
    val: Path | None
    test: Path | None
    flat: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """What a source holds: names below `base` by class, and what it should look like.

    `mixed`: names may be absolute. `numbered`: class names are indices. `groups`: what each name
    belongs to. `places`: see `LabelledImages`.
    """

    base: Path
    by_class: dict[str, list[str]]
    skipped: list[SkippedFile]
    layout: str
    mixed: bool = False
    numbered: bool = False
    groups: dict[str, str] | None = None
    places: frozenset[tuple[int, int]] | None = None


def scan_labelled(
    root: Path,
    *,
    classes: Sequence[str] | None = None,
    name: str = "data.train",
    layout: ListLayout = FOUND_BY_NAME,
    aliases: Mapping[str, str] | None = None,
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
    - A `.csv`, `.tsv`, `.txt` or `.jsonl` list: see `vtrain.data.lists`.

    Args:
        root: the folder or file.
        classes: known class names, for a split that goes with a training set: those found are
            matched to them by name, `.cls` members also by number, and may be missing or empty.
            None: those found, each with images.
        name: where `root` was given, for messages.
        layout: how a list is read.
        aliases: other names that folders and lists may have for some of `classes`.
        reporter: is told if nothing can be kept in the cache folder.

    Raises:
        DataError: `root` or a class folder cannot be used; the message names all that are wrong.
    """
    found_layout = Layout()
    known, aliases = classes, aliases or {}
    if classes is not None:
        classes = [*classes, *aliases]
    if _is_list(root, name):
        found = _find_listed(root, layout, name, reporter)
    else:
        source = _open_source(root, name, reporter)
        place, found_layout = _read_layout(root, source, classes)
        if classes is None:
            _require_classes(place, found_layout, name)
        for remark in found_layout.remarks:
            reporter.say(f"{name}: {remark}")
        if isinstance(source, TarScan):
            found = _find_in_tars(root, source, classes, found_layout)
        else:
            found = _find_in_folders(source, classes, name, found_layout)
            source.memory.save(reporter)
        _say_found(source.found, reporter)
    for label in [each for each in found.by_class if aliases.get(each, each) != each]:
        found.by_class.setdefault(aliases[label], []).extend(found.by_class.pop(label))
    return _build_labelled(root, found, known, name, found_layout)


def scan_training(
    root: Path, *, layout: ListLayout = FOUND_BY_NAME, hint_group: bool, reporter: Reporter
) -> dict[str, LabelledImages]:
    """The training images by the name of their split: those of `scan_labelled` as `train`.

    A list with a column of splits has `val` and `test` as well, if it has such lines.

    Args:
        root: the folder or file.
        layout: how a list is read.
        hint_group: whether a column that may be one of groups is said.
        reporter: see `scan_labelled`.

    Raises:
        DataError: as `scan_labelled`; or the list has no line of `train`.
    """
    if not _is_list(root, "data.train"):
        return {"train": scan_labelled(root, reporter=reporter)}
    listed = read_list(root, layout, labelled=True, reporter=reporter)
    if hint_group and listed.group_like is not None:
        column = one_line(listed.group_like)
        reporter.say(
            f"{one_line(root)}: if images of one {column} belong together, data.group={column} "
            "keeps them on one side"
        )
    parts = _group_listed(listed)
    if unknown := set(parts) - {"train", "val", "test"}:
        raise DataError(
            f"data.train: the column of splits of {one_line(root)} holds "
            f"{enumerate_names(sorted(unknown))}, expected train, val or test",
            "name the lines so; or say which column it is: data.columns: {split: NAME}",
        )
    train = parts.pop("train", _Found(listed.folder, {}, [], _LIST_LINES))
    train.skipped.extend(listed.skipped)
    found = {"train": _build_labelled(root, train, None, "data.train", Layout())}
    for name, part in sorted(parts.items(), reverse=True):
        classes = found["train"].classes
        found[name] = _build_labelled(root, part, classes, f"data.{name}", Layout())
    return found


def scan_images(
    root: Path, *, layout: ListLayout = FOUND_BY_NAME, reporter: Reporter = SILENT
) -> tuple[PackedPaths, list[SkippedFile]]:
    """List images without their classes, and what is not used.

    Those of a folder, at any depth, and of tars come sorted by relative path, those of a list in
    its order. The rules and `reporter` are those of `scan_labelled`.

    Raises:
        DataError: `root` cannot be read, or is neither a folder nor a tar nor a list.
    """
    paths, skipped, *_ = _scan(root, layout, reporter)
    return paths, skipped


def scan_with_labels(
    root: Path, *, layout: ListLayout = FOUND_BY_NAME, reporter: Reporter = SILENT
) -> tuple[PackedPaths, list[SkippedFile], list[str] | None]:
    """As `scan_images`, with the class of each image, "" for none; None where `root` tells none.

    A folder tells them if all its images lie in class folders, of which there are several.
    """
    paths, skipped, source, labels = _scan(root, layout, reporter)
    if source is not None and labels is None:
        _, found = _read_layout(root, source)
        folders: Iterable[str] = (name.rpartition("/")[0] for name in paths.names())
        if isinstance(source, TarScan):
            folders = source.folders
        labels = [_first_below(found.base, each) for each in folders]
        if found.splits or found.doubt or "" in labels or len(set(labels)) < 2:
            labels = None
    return paths, skipped, labels and list(map(compose, labels))


def _scan(
    root: Path, layout: ListLayout, reporter: Reporter
) -> tuple[PackedPaths, list[SkippedFile], TarScan | FolderScan | None, list[str] | None]:
    """What `scan_images` finds, where it was found if not in a list, and the classes if named."""
    if _is_list(root, "folder"):
        listed = read_list(root, layout, labelled=False, reporter=reporter)
        labels = listed.classes if any(listed.classes) else None
        return PackedPaths(listed.folder, listed.names, mixed=True), listed.skipped, None, labels
    source = _open_source(root, "folder", reporter)
    if isinstance(source, TarScan):
        source.sort()
        names, labels = source.names, source.labels
    else:
        names, labels = sorted(source.walk((), entries=source.entries)[""]), None
        source.memory.save(reporter)
    _say_found(source.found, reporter)
    return PackedPaths(root, names), sorted(source.skipped, key=path_text), source, labels


def _first_below(base: str, place: str) -> str:
    """The first folder of a place below `base`, "" where there is none."""
    start = f"{base}/" if base else ""
    return place[len(start) :].partition("/")[0] if place.startswith(start) else ""


def is_source(path: Path) -> bool:
    """Whether a path stands for many images: a folder, a tar or a list."""
    return path.is_dir() or path.name.lower().endswith((TAR_SUFFIX, *LIST_SUFFIXES))


def find_splits(root: Path) -> SplitFolders | None:
    """The `train`, `val` and `test` folders of a folder or tar under any of their usual names.

    None if there is no train folder, or neither of the others, or if `root` is a list.

    Raises:
        DataError: `root` cannot be read, or it is not clear whether it holds splits or classes.
    """
    if _is_list(root, "folder"):
        return None
    base, layout = _read_layout(root, _open_source(root, "folder", SILENT))
    if layout.doubt is not None:
        raise DataError(f"{one_line(base)} {layout.doubt[0]}", layout.doubt[1])
    if not layout.splits:
        return None
    places = {kind: base / place for kind, place in layout.splits}
    if TRAIN in layout.flat:
        raise _flat_error(places[TRAIN])
    flat = tuple(places.pop(kind) for kind in layout.flat)
    return SplitFolders(places[TRAIN], places.get(VAL), places.get(TEST), flat, layout.remarks)


def _flat_error(folder: Path) -> DataError:
    return DataError(
        f"{one_line(folder)} holds images without class folders",
        f"expected {_CLASS_FOLDERS.format(root=one_line(folder))}; if a list says the classes of "
        "images, give that: data.train=list.csv",
    )


def _read_layout(
    root: Path, source: TarScan | FolderScan, known: Collection[str] | None = None
) -> tuple[Path, Layout]:
    """How the folders of a source are to be read, and what their places are below."""
    if isinstance(source, FolderScan):
        return root, read_layout(root, look_at_folders(root), known)
    archives = source.archives
    kinds = find_kinds([name[: -len(TAR_SUFFIX)] for name in archives])
    if TRAIN in kinds.values() and len(set(kinds.values())) > 1:
        if len(archives) == len(set(kinds.values())):
            return root, Layout(splits=tuple(zip(kinds.values(), archives, strict=True)))
        advice = "put the archives of each split into a folder of its own"
        doubt = f"holds archives of several splits, {enumerate_names(archives)}"
        return root, Layout(doubt=(doubt, advice))
    base = root / archives[0] if len(archives) == 1 else root
    if source.labels is not None:
        return base, Layout()
    layout = read_layout(base, look_at_members(source.folders), known)
    if layout.splits and len(archives) > 1:
        advice = "write the archives of each split into a folder of its own, or unpack them"
        names = [place for _, place in layout.splits]
        doubt = f"has splits in its archives, {enumerate_names(names)}"
        return base, Layout(doubt=(doubt, advice))
    return base, layout


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
    mode = _require_source(root, name)
    return stat.S_ISREG(mode) and root.name.lower().endswith(LIST_SUFFIXES)


def _say_found(found: Sequence[str], reporter: Reporter) -> None:
    if found:
        files = "1 file, " if len(found) == 1 else f"{len(found):,} files such as "
        reporter.say(f"read for what is in them, not for their names: {files}{one_line(found[0])}")


def _open_source(root: Path, name: str, reporter: Reporter) -> TarScan | FolderScan:
    """The images of tars, or else a folder of which the entries are known."""
    if not root.is_dir():  # a tar, or a folder in one
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


def _find_in_folders(
    scan: FolderScan, classes: Sequence[str] | None, name: str, layout: Layout
) -> _Found:
    root = scan.root
    entries = scan.entries
    for part in layout.base.split("/") if layout.base else ():
        for stray in entries.images:
            scan.skip(str(root / stray), OUTSIDE)
        root = root / part
        status = scan.enter(str(root))
        listed = status and scan.list_folder(str(root), status)
        entries = listed or FolderEntries((), ())
    _require_unpacked(root, entries, name)
    folders = _list_classes(scan, root, entries, name)
    if classes is not None:
        _require_known(scan.root, folders, classes, name, layout)
    elif len(folders) < 2:
        only = f"one class folder only, {enumerate_names(list(folders))}"
        raise DataError(
            f"{name}: {one_line(root)} has {only if folders else 'no class folders'}",
            f"expected {_CLASS_FOLDERS.format(root=one_line(root))}",
        )
    by_class = scan.walk(list(folders.items()))
    expected = _CLASS_FOLDERS.format(root=one_line(root))
    places = None if scan.linked else frozenset(scan.visited)
    return _Found(scan.root, by_class, scan.skipped, expected, places=places)


def _find_in_tars(
    root: Path, tars: TarScan, classes: Sequence[str] | None, layout: Layout
) -> _Found:
    labels = tars.labels
    if labels is None:
        inside = {each: _first_below(layout.base, each) for each in set(tars.folders)}
        labels = [inside[each] for each in tars.folders]
    given = set(labels) - {""}
    numbered = tars.labels is not None and all(map(_is_number, given))
    names = {}
    if numbered and classes is not None and not given <= set(classes):
        names = {str(number): each for number, each in enumerate(classes)}
    by_class: dict[str, list[str]] = {}
    no_label = OUTSIDE if tars.labels is None else _NO_LABEL
    for place, label in zip(tars.names, labels, strict=True):
        if label:
            by_class.setdefault(names.get(label, compose(label)), []).append(place)
        else:
            outside = BACKSLASHES if "\\" in place else no_label
            tars.skipped.append(SkippedFile(root / place, outside))
    for each in tars.skipped if tars.labels is None else ():
        # A class of nothing but files that are not read is no less a class.
        if each.reason in BY_REASON:
            folder = "/".join(each.path.relative_to(root).parts[1 if root.is_dir() else 0 : -1])
            if label := _first_below(layout.base, folder):
                by_class.setdefault(compose(label), [])
    numbered = numbered and not names
    places = frozenset(tars.places)
    return _Found(root, by_class, tars.skipped, _TAR_MEMBERS, numbered=numbered, places=places)


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit()


def _find_listed(root: Path, layout: ListLayout, name: str, reporter: Reporter) -> _Found:
    """All lines of a list; those of another split than `data.val` or `data.test` are refused."""
    listed = read_list(root, layout, labelled=True, reporter=reporter)
    counts = Counter(listed.splits or ())
    wanted = name.removeprefix("data.")
    if wanted != name and set(counts) - {wanted}:
        lines = ", ".join(f"{count} of {split}" for split, count in counts.items())
        raise DataError(
            f"{name}: {one_line(root)} has a column of splits, with lines {lines}",
            f"give it as data.train alone, without {name}; or leave only the lines of {wanted}",
        )
    if len(counts) > 1:
        lines = ", ".join(f"{count} {split}" for split, count in counts.items())
        reporter.say(f"{one_line(root)}: its column of splits is not looked at: all of {lines}")
    listed.splits = None
    found = _group_listed(listed)["train"]
    found.skipped.extend(listed.skipped)
    return found


def _group_listed(listed: ListScan) -> dict[str, _Found]:
    """The lines of a list by split, all of them `train` where it has no column of splits."""
    groups = None
    if listed.groups is not None:
        # An image of no group is one by itself.
        pairs = zip(listed.names, listed.groups, strict=True)
        groups = {name: group or name for name, group in pairs}
    by_split: dict[str, dict[str, list[str]]] = {} if listed.splits else {"train": {}}
    splits = listed.splits or repeat("train")
    for place, label, split in zip(listed.names, listed.classes, splits, strict=False):
        by_split.setdefault(split, {}).setdefault(label, []).append(place)
    return {
        split: _Found(listed.folder, by_class, [], _LIST_LINES, mixed=True, groups=groups)
        for split, by_class in by_split.items()
    }


def _build_labelled(
    root: Path, found: _Found, classes: Sequence[str] | None, name: str, layout: Layout
) -> LabelledImages:
    if classes is not None:
        _require_known(root, found.by_class, classes, name, layout)
    else:
        _leave_out_empty(root / layout.base, found, name)
    if classes is None and len(found.by_class) == 1:
        raise DataError(
            f"{name}: {one_line(root)} has one class only, {enumerate_names(list(found.by_class))}",
            f"expected {found.layout}",
        )
    if not any(found.by_class.values()):
        hint = f"expected {found.layout}{name_first_skipped(found.skipped)}"
        raise DataError(f"{name}: no images in {one_line(root)}", hint)
    found.skipped.sort(key=path_text)
    numbers = int if found.numbered else None
    names = sorted(found.by_class, key=numbers) if classes is None else classes
    places: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(names):
        members = sorted(found.by_class.pop(compose(class_name), ()))
        places += members
        labels += [label] * len(members)
    paths = PackedPaths(found.base, places, mixed=found.mixed)
    return LabelledImages(
        root,
        tuple(names),
        paths,
        tuple(labels),
        tuple(found.skipped),
        groups=tuple(map(found.groups.__getitem__, places)) if found.groups else None,
        places=found.places,
    )


def _list_classes(
    scan: FolderScan, root: Path, entries: FolderEntries, name: str
) -> dict[str, str]:
    """Class folders: NFC name to path, real folders before links to folders."""
    prefix = join_prefix(root)
    folders: dict[str, str] = {}
    for folder, _ in sorted(entries.folders, key=lambda each: (each[1], each[0])):
        class_name = compose(folder)
        if class_name in folders:
            twins = f"{Path(folders[class_name]).name!a} and {folder!a}"
            raise DataError(
                f"{name}: two folders in {one_line(root)} are both the class "
                f"{enumerate_names([class_name])} in Unicode's normal form: {twins}",
                "merge them into one folder",
            )
        folders[class_name] = prefix + folder
    for stray in entries.images:
        scan.skip(prefix + stray, BACKSLASHES if "\\" in stray else OUTSIDE)
    return folders


def _require_source(root: Path, name: str) -> int:
    """The mode of a folder, tar or list."""
    try:
        mode = root.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if (inside := find_archive(root)) is not None:
            return inside[0].stat().st_mode
        message = f"{name}: there is no folder {one_line(root)}"
        raise DataError(message, one_line(explain_missing(root))) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {one_line(root)} {describe_error(error)}") from error
    if stat.S_ISDIR(mode):
        return mode
    if is_compressed(root.name):
        raise compressed_error(root)
    if not stat.S_ISREG(mode) or not is_source(root):
        others = f", a {TAR_SUFFIX} file or a list ({' '.join(LIST_SUFFIXES)})"
        kind = "is a file" if stat.S_ISREG(mode) else "is not a regular file"
        kind = describe_file(root) or kind
        raise DataError(f"{name}: {one_line(root)} {kind}, expected a folder{others}")
    return mode


def _require_classes(root: Path, layout: Layout, name: str) -> None:
    """Refuse folders that are splits, or may be, where classes are expected."""
    if layout.splits:
        raise _splits_error(root, layout, name)
    if layout.doubt is not None:
        raise DataError(f"{name}: {one_line(root)} {layout.doubt[0]}", layout.doubt[1])


def _splits_error(root: Path, layout: Layout, name: str) -> DataError:
    here = Path(shorten_path(root))
    places = {kind: here / place for kind, place in layout.splits}
    if TRAIN in layout.flat:
        return _flat_error(places[TRAIN])
    held_out = [places[kind] for kind in (VAL, TEST) if kind in places and kind not in layout.flat]
    if name == "data.train":
        val = f"data.val={held_out[0]}" if held_out else "data.val_fraction=0.2"
        hint = f"use {quote_path(f'data.train={places[TRAIN]}')} {quote_path(val)}"
    else:
        hint = f"use {quote_path((held_out or [places[TRAIN]])[0])} instead"
    return DataError(f"{name}: {one_line(root)} holds splits, not classes", hint)


def _require_unpacked(root: Path, entries: FolderEntries, name: str) -> None:
    """Refuse files that an archive made by Windows left without their folders."""
    strays = [each for each in entries.images if "\\" in each and os.sep != "\\"]
    if strays:
        count = "1 file" if len(strays) == 1 else f"{len(strays):,} files"
        raise DataError(
            f"{name}: {count} in {one_line(root)} such as {one_line(strays[0])} "
            f"{'has' if len(strays) == 1 else 'have'} backslashes in the name, where the archive "
            "had folders",
            f"unpack it again with unzip, or make the folders: cd {quote_path(root)}; "
            'for f in *\\\\*; do to=${f//\\\\//}; mkdir -p "${to%/*}" && mv -n "$f" "$to"; done',
        )


def _require_known(
    root: Path, folders: Iterable[str], classes: Sequence[str], name: str, layout: Layout
) -> None:
    known = {compose(name) for name in classes}
    unknown = [folder for folder in folders if folder not in known]
    if not unknown:
        return
    if layout.splits:
        raise _splits_error(root, layout, name)
    raise DataError(
        f"{name}: {one_line(root)} has classes that training does not have: "
        f"{enumerate_names(sorted(unknown))}",
        f"the classes are {enumerate_names(sorted(known))}; folders are matched to them by name",
    )


def _leave_out_empty(root: Path, found: _Found, name: str) -> None:
    """Leave out class folders in which there is nothing at all, and note them.

    Raises:
        DataError: there are files in a class folder, and none that is used.
    """
    empty = sorted(key for key, files in found.by_class.items() if not files)
    if not empty or len(empty) == len(found.by_class):
        return
    causes: dict[str, str] = {}
    # What is of a known format says most.
    for each in sorted(found.skipped, key=lambda each: each.reason not in BY_REASON):
        if each.path.is_relative_to(root):
            below = each.path.relative_to(root)
            if below.parts and (key := compose(below.parts[0])) in empty:
                causes.setdefault(key, f"{one_line(below)} {each.reason}")
    if causes:
        raise DataError(
            f"{name}: class folders without images in {one_line(root)}: "
            f"{enumerate_names(sorted(causes))}",
            f"{next(iter(causes.values()))}; add images or remove the folders",
        )
    for key in empty:
        del found.by_class[key]
        found.skipped.append(SkippedFile(root / key, EMPTY_CLASS))
