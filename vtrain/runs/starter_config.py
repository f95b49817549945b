"""Looks at a folder of images and writes a commented config that is ready to run."""

import os
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vtrain.config.yaml12 import format_scalar
from vtrain.data.folders import (
    EMPTY_CLASS,
    SplitFolders,
    find_splits,
    scan_images,
    scan_labelled,
    scan_training,
)
from vtrain.data.formats import describe_unread, split_foreign
from vtrain.data.image_sets import LIST_SUFFIXES, LabelledImages
from vtrain.data.layouts import describe_class_names
from vtrain.data.overlaps import require_apart
from vtrain.errors import DataError, ImageError, UsageError
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.zoo import find_backbone
from vtrain.system.files import write_text
from vtrain.system.reporter import Reporter
from vtrain.system.text import enumerate_names, list_names, one_line, quote_path

MAX_HEADERS = 200  # image headers read for their sizes, spread over all images
VAL_FRACTION = 0.2
BATCH_SIZE = 32
SMALL_CLASS = 20  # images; with fewer, a validation result is mostly chance
IMBALANCE = 10  # times as many images in the largest class as in the smallest
LONG_SIDE = 3  # times the short side: the square crop loses most of such an image
LARGE_EDGE = 2000  # pixels; beyond, decoding can cost more than training
NAMES_SHOWN = 20
_COMMENT = textwrap.TextWrapper(
    96,
    initial_indent="# ",
    subsequent_indent="#   ",
    break_on_hyphens=False,
    break_long_words=False,
)


@dataclass(frozen=True, slots=True)
class FolderSummary:
    """What was found in a folder of images.

    `counts` has the images per class of each split, in the order of `classes`. `sizes` are
    (width, height) in pixels of a sample of training images, `formats` counts suffixes over all
    images, `skipped` the files that are not used, `unread` tells of formats that are not read.
    Without `val` a share of `train` is held out. `notes` tell what was guessed and what is odd.
    """

    train: Path
    val: Path | None
    test: Path | None
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    sizes: tuple[tuple[int, int], ...]
    formats: dict[str, int]
    skipped: int
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def training_images(self) -> int:
        """Images left to train on once validation images are held out."""
        if "val" in self.counts:
            return sum(self.counts["train"])
        # As split_stratified counts: rounded, at least one of each class on either side.
        return sum(n - min(max(round(n * VAL_FRACTION), 1), n - 1) for n in self.counts["train"])

    def lines(self) -> list[str]:
        """The facts in a few lines, for people."""
        splits = [f"{sum(counts)} {name}" for name, counts in self.counts.items()]
        formats = [f"{count} {suffix}" for suffix, count in self.formats.items()]
        lines = [
            f"images: {', '.join(splits)}",
            f"classes: {len(self.classes)}, {_span(self.counts['train'])} training images each",
            f"files: {', '.join(formats)}",
        ]
        if self.sizes:
            short, long = [min(size) for size in self.sizes], [max(size) for size in self.sizes]
            lines.append(f"size: short side {_span(short)} px, long side {_span(long)} px")
        if self.skipped:
            lines.append(f"not used: {self.skipped} files that are not images in a class folder")
        return [*lines, *self.unread, *(f"note: {each}" for each in self.notes)]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def inspect_folder(root: Path) -> FolderSummary:
    """Scan a source of images: a folder or tar of splits or classes, or a list.

    No image is decoded; the headers of up to `MAX_HEADERS` are read for their sizes.

    Raises:
        DataError: it has no layout that is known, or a split has classes that train lacks; the
            message names all that is wrong.
    """
    notes = _Notes()
    try:
        splits = find_splits(root) or SplitFolders(root, None, None)
        notes += splits.remarks
        images = _scan_all(splits, notes)
    except DataError as error:
        raise _name_list(root, error) from error
    notes += _describe_odd(images["train"], splits.flat)
    from vtrain.data.images import read_size  # heavy: a folder that cannot be used needs it not

    formats = Counter(path.suffix.lower() for split in images.values() for path in split.paths)

    paths, sizes = images["train"].paths, []
    for path in paths[:: -(-len(paths) // MAX_HEADERS)]:
        with suppress(ImageError):  # training names the file
            sizes.append(read_size(path))
    return FolderSummary(
        train=splits.train,
        val=splits.val,
        test=splits.test,
        classes=images["train"].classes,
        counts={name: tuple(split.class_counts()) for name, split in images.items()},
        sizes=tuple(sizes),
        formats=dict(formats.most_common()),
        skipped=sum(
            each.reason != EMPTY_CLASS
            for split in images.values()
            for each in split_foreign(split.skipped)[1]
        ),
        unread=tuple(
            message
            for each in images.values()
            for message in describe_unread(
                each.skipped, each.root, dict(zip(each.classes, each.class_counts(), strict=True))
            )
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def _name_list(root: Path, error: DataError) -> DataError:
    """The error of a folder, with the list that lies in it and may say the classes."""
    lists = [name for name in list_names(root) if name.lower().endswith(LIST_SUFFIXES)]
    if not lists:
        return error
    first = min(lists, key=lambda name: ("train" not in name.lower(), name))
    there = f"if {one_line(first)} says the classes: vtrain init {quote_path(root / first)}"
    return DataError(error.message, f"{there}; else: {error.hint}")


def _scan_all(splits: SplitFolders, notes: "_Notes") -> dict[str, LabelledImages]:
    """The images of every split; all that is wrong with any is said at once."""
    if splits.train.suffix.lower() in LIST_SUFFIXES:
        return scan_training(splits.train, hint_group=True, reporter=notes)
    images = {"train": scan_labelled(splits.train, name="train", reporter=notes)}
    problems: list[DataError] = []
    for name, folder in (("val", splits.val), ("test", splits.test)):
        if folder is not None:
            try:
                images[name] = scan_labelled(
                    folder, classes=images["train"].classes, name=name, reporter=notes
                )
            except DataError as error:
                problems.append(error)
    if problems:
        hints = dict.fromkeys(each.hint for each in problems if each.hint)
        raise DataError("\n".join(each.message for each in problems), "; ".join(hints))
    require_apart(images)
    return images


class _Notes(list[str], Reporter):
    """What scanning has to say."""

    def say(self, message: str) -> None:
        """Kept, as are warnings."""
        self.append(message)

    warn = say


def _describe_odd(train: LabelledImages, flat: Sequence[Path]) -> Iterator[str]:
    """Class folders without images, odd names, and splits without class folders."""
    empty = [each.path.name for each in train.skipped if each.reason == EMPTY_CLASS]
    if empty:
        yield (
            f"class folders without images are left out: {enumerate_names(empty)}; the model will "
            "not know these classes"
        )
    yield from describe_class_names(train.classes)
    for folder in flat:
        count = f"{one_line(folder)} has {len(scan_images(folder)[0])} images without class folders"
        yield f"{count} and is not used; once trained: vtrain predict {quote_path(folder)}"


def build_config_text(
    summary: FolderSummary, *, backbone: str = "resnet18", folder: Path = Path()
) -> str:
    """A config for the folder, with what was found in comments; it loads without a change.

    It is to lie in `folder`, which paths in it are relative to.

    Raises:
        UsageError: no such backbone, or a folder whose name is not valid Unicode.
    """
    spec, images = find_backbone(backbone), summary.training_images
    # A class folder may be called anything, but must not end the comment.
    names = [n if n.isprintable() else ascii(n) for n in summary.classes[:NAMES_SHOWN]]
    more = len(summary.classes) - len(names)
    shown = "class names: " + ", ".join(names) + (f" and {more} more" if more else "")
    lines = [_COMMENT.fill(text) for text in (*summary.lines(), shown, *_notes(summary, spec))]
    lines += ["", "model:", f"  backbone: {spec.name}  # vtrain backbones lists all"]
    if spec.weights:
        lines.append(f"  weights: DEFAULT  # {spec.default_weights}")
        how = "lp-ft  # head: train the last layer only, fastest; none: fine-tune all at once"
    else:
        lines.append("  weights: none  # it has none, so everything is trained from scratch")
        how = "none"
    lines.append(f"freeze: {how}")
    lines += ["", "data:", f"  train: {_format_path(summary.train, folder)}"]
    if summary.val is not None:
        lines.append(f"  val: {_format_path(summary.val, folder)}")
    elif "val" in summary.counts:
        lines.append("  # val: the lines that its column of splits says")
    else:
        lines.append(f"  val_fraction: {VAL_FRACTION}  # of each class, chosen by seed")
    if summary.test is not None:
        lines.append(f"  test: {_format_path(summary.test, folder)}")
    comment = "" if images >= 4 * BATCH_SIZE else f"  # there are {images} training images"
    lines += [
        "  augment: auto  # random crops and flips; none if left and right differ, as in text",
        f"  batch_size: {choose_batch_size(images)}{comment}",
        "  workers: auto",
        "",
        "train:",
        "  epochs: 10",
        "# every other key has its default: `vtrain config` with this file shows them",
    ]
    return "\n".join(lines) + "\n"


def _notes(summary: FolderSummary, spec: BackboneSpec) -> Iterator[str]:
    """What the user may want to act on."""
    counts, sizes = summary.counts["train"], summary.sizes
    if min(counts) < SMALL_CLASS:
        yield (
            f"note: the smallest class has {min(counts)} training images; freeze: head is safer "
            f"and faster than lp-ft where most have fewer than {SMALL_CLASS}"
        )
    if max(counts) >= IMBALANCE * min(counts):
        yield (
            f"note: the largest class has {max(counts) // min(counts)} times the images of the "
            "smallest; data.balance: sampler or loss gives rare classes more weight, and "
            "val_macro_f1 tells more than val_top1"
        )
    if not sizes:
        return
    short = statistics.median(min(size) for size in sizes)
    if 2 * short <= spec.image_size:
        yield (
            f"note: half of the images are at most {short:.0f} px, the model's input is "
            f"{spec.image_size} px; a smaller data.image_size is faster, if less accurate"
        )
    if short > LARGE_EDGE:
        yield (
            f"note: half of the images are over {LARGE_EDGE} px; shrinking the files once to "
            f"about {2 * spec.image_size} px saves reading time in every epoch"
        )
    if 2 * sum(max(size) >= LONG_SIDE * min(size) for size in sizes) >= len(sizes):
        yield (
            f"note: half of the images are {LONG_SIDE} or more times as long as wide; the model "
            "sees their centre square only"
        )


def choose_batch_size(images: int) -> int:
    """32, or for small sets a power of two that makes at least four steps an epoch, if it can."""
    size = BATCH_SIZE
    while size > 2 and 4 * size > images:
        size //= 2
    return min(size, max(images, 1))


def _format_path(path: Path, folder: Path) -> str:
    """A path as a config in `folder` has it: relative to that, unless it was given in full."""
    text = str(path if path.is_absolute() else os.path.relpath(path.absolute(), folder.resolve()))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the folder name {text!a} is not valid UTF-8, which a config cannot hold",
            "rename the folder",
        ) from error
    return format_scalar(text)


def write_config(path: Path, text: str) -> None:
    """Write a config as a new file.

    Raises:
        UsageError: there is something at `path` already, or no folder to write to.
        ResourceError: the disk is full.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already", "choose another file with -o, or remove it")
    write_text(path, text)
