"""Looks through a data set for what would spoil a result: damaged files, copies, odd classes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vtrain.data.duplicates import Group, find_similar_pairs, join_pairs
from vtrain.data.exclusion import Exclusion, write_exclusion
from vtrain.data.folders import find_splits, is_source, scan_images, scan_labelled
from vtrain.data.groups import group_inspected
from vtrain.data.image_checks import Inspection, inspect_images
from vtrain.data.image_names import is_hidden
from vtrain.data.image_sets import LabelledImages
from vtrain.data.splits import scan_splits
from vtrain.data.workers import resolve_workers
from vtrain.errors import DataError, UsageError
from vtrain.models.weights import describe_weights
from vtrain.models.zoo import find_backbone
from vtrain.results.check_findings import (
    KINDS,
    SEVERITIES,
    DataSet,
    Finding,
    find_class_troubles,
    find_exclusion_remarks,
    find_odd_files,
    find_odd_sizes,
    find_unreadable,
    find_unused,
)
from vtrain.results.features import Features
from vtrain.results.leaks import choose_exclusions, find_duplicates, find_similar
from vtrain.runs.settings import load_settings
from vtrain.system.json_csv import to_plain
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.text import one_line

CONFIG_SUFFIXES = (".yaml", ".yml")
LIST_TITLE = "Images that a run leaves out with data.exclude, found by vtrain check."
IMAGE_SIZE = 224  # pixels, of most backbones; where no config says which one is meant
ALL = "images"  # the split of images without classes

Workers = Literal["auto"] | int
Embed = Callable[[Sequence[Path]], Features]


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be checked: splits of labelled images, or one of images without classes.

    `skips_bad` is whether training would leave unreadable images out by itself.
    """

    path: Path
    splits: dict[str, LabelledImages]
    labelled: bool
    image_size: int
    skips_bad: bool = False
    exclusion: Exclusion | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was found, the worst first; `exclude` are sections of a list of images to leave out."""

    source: Path
    data: DataSet
    findings: tuple[Finding, ...]
    exclude: tuple[tuple[str, tuple[Path, ...]], ...]

    def count(self, severity: str) -> int:
        """Findings of one severity."""
        return sum(each.severity == severity for each in self.findings)


def open_source(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    image_size: int | None = None,
    reporter: Reporter,
) -> Source:
    """Scan what a config, or a folder (with or without splits or classes), tar or list names.

    No image is opened. `image_size` is that of the model's input in pixels, for a folder;
    `overrides` replace settings of a config.

    Raises:
        ConfigError, DataError, UsageError: it cannot be used.
    """
    if path.suffix.lower() in CONFIG_SUFFIXES and not path.is_dir():
        if image_size is not None:
            raise UsageError(
                "--image-size is for a folder; a config says it itself",
                f"use data.image_size={image_size}",
            )
        config = load_settings(path, overrides).config
        source = describe_weights(config.model.weights, find_backbone(config.model.backbone))
        # What scanning would say is among the findings.
        scanned = scan_splits(config.data, seed=config.seed, reporter=SILENT)
        return Source(
            path,
            scanned.named(),
            labelled=True,
            image_size=config.data.image_size or source.preprocessing.crop,
            skips_bad=config.data.on_bad_image == "skip",
            exclusion=scanned.exclusion,
        )
    if overrides:
        raise UsageError(
            f"settings such as {overrides[0]} need a config, and {one_line(path)} is none",
            "vtrain init FOLDER writes one",
        )
    size = image_size or IMAGE_SIZE
    splits = find_splits(path)
    if splits is None:
        return _open_folder(path, size, reporter)
    for remark in splits.remarks:
        reporter.say(remark)
    for flat in splits.flat:
        reporter.say(f"{one_line(flat)} holds images without class folders: vtrain check {flat}")
    train = scan_labelled(splits.train, name="train", reporter=reporter)
    found = {"train": train}
    for name, folder in (("val", splits.val), ("test", splits.test)):
        if folder is not None:
            found[name] = scan_labelled(folder, classes=train.classes, name=name, reporter=reporter)
    return Source(path, found, labelled=True, image_size=size)


def _open_folder(path: Path, image_size: int, reporter: Reporter) -> Source:
    """Labelled images, or images alone where there are no classes."""
    try:
        images = scan_labelled(path, name="folder", reporter=reporter)
    except DataError as error:
        if not path.exists() or not is_source(path):
            raise
        names = [each.name for each in path.iterdir() if each.is_dir()] if path.is_dir() else []
        folders = sorted(name for name in names if not is_hidden(name))
        if len(folders) > 1:  # some hold files, and none that is an image
            images = scan_labelled(path, classes=folders, name="folder", reporter=reporter)
        else:
            found, skipped = scan_images(path, reporter=reporter)
            if not len(found):
                raise error from None
            labels = (0,) * len(found)
            images = LabelledImages(path, (ALL,), found, labels, tuple(skipped))
            return Source(path, {ALL: images}, labelled=False, image_size=image_size)
    return Source(path, {ALL: images}, labelled=True, image_size=image_size)


def check_images(
    source: Source,
    *,
    workers: Workers = "auto",
    embed: Embed | None = None,
    reporter: Reporter = SILENT,
) -> CheckResult:
    """Read every image of a source once, unless it is known, and find what is wrong with them.

    `embed` gives features of images, by which similar ones are sought as well.
    """
    choose_workers = partial(resolve_workers, workers)
    data = _inspect(source, choose_workers, reporter)
    groups = group_inspected(data.inspection, data.path, choose_workers)
    paths = [path for images in source.splits.values() for path in images.paths]
    # Splits of one folder have the same files that are not used.
    skipped = {each.path: each for images in source.splits.values() for each in images.skipped}
    findings = chain(
        find_unreadable(data.inspection.bad, len(data), skipped=source.skips_bad),
        find_duplicates(data, groups),
        _find_similar(data, groups, embed) if embed is not None else (),
        find_class_troubles(data),
        find_odd_sizes(data),
        find_odd_files(data, paths),
        find_unused(data, list(skipped.values())),
        find_exclusion_remarks(source.exclusion),
    )
    kinds = list(KINDS)
    # The worst first, then in the order of the table of kinds.
    ordered = sorted(
        findings, key=lambda each: (SEVERITIES.index(each.severity), kinds.index(each.kind))
    )
    return CheckResult(source.path, data, tuple(ordered), _list_exclusions(data, groups))


def _inspect(
    source: Source,
    choose_workers: Callable[[int], int],
    reporter: Reporter,
) -> DataSet:
    total = sum(map(len, source.splits.values()))
    with reporter.progress(total, "checking images") as bar:
        parts = [
            inspect_images(
                images.paths,
                images.root,
                count=total,
                with_facts=True,
                choose_workers=choose_workers,
                bar=bar,
                reporter=reporter,
            )
            for images in source.splits.values()
        ]
    whole = Inspection(
        readable=np.concatenate([each.readable for each in parts]),
        bad=[bad for each in parts for bad in each.bad],
        sizes=np.concatenate([each.sizes for each in parts]),
        digests=np.concatenate([each.digests for each in parts]),
        facts=np.concatenate([each.facts for each in parts]),
        read=sum(each.read for each in parts),
        known=sum(each.known for each in parts),
    )
    return DataSet(source.splits, source.labelled, whole, source.image_size)


def _find_similar(data: DataSet, groups: Sequence[Group], embed: Embed) -> Iterator[Finding]:
    """Groups of images whose features are alike, where they are not known to be the same."""
    readable = np.flatnonzero(data.inspection.readable)
    features = embed([data.path(position) for position in readable.tolist()])
    positions = readable[features.positions]
    group_of = np.arange(len(data))
    for group in groups:
        group_of[list(group.members)] = group.members[0]
    pairs = find_similar_pairs(features.values)
    ours = group_of[positions[pairs]]
    apart = pairs[ours[:, 0] != ours[:, 1]]
    places = positions.tolist()
    found = [tuple(places[row] for row in rows) for rows in join_pairs(len(places), apart)]
    yield from find_similar(data, found)


# What is left out, by the kind of finding; images that are nearly the same have exact copies.
_SECTIONS = (
    ("conflicting_labels", "under two classes: all of them"),
    ("leaked", "in more than one split: the copies that are left out"),
    ("duplicates", "there more than once: all but one of each"),
    ("near_duplicates", "there more than once: all but one of each"),
)


def _list_exclusions(
    data: DataSet, groups: Sequence[Group]
) -> tuple[tuple[str, tuple[Path, ...]], ...]:
    chosen = choose_exclusions(data, groups)
    sections = [
        ("cannot be read", tuple(each.path for each in data.inspection.bad)),
        *((title, tuple(map(data.path, chosen.get(kind, ())))) for kind, title in _SECTIONS),
    ]
    return tuple((title, paths) for title, paths in sections if paths)


def require_list_path(path: Path, source: Source) -> None:
    """Before any work: a list replaces no other file, and none that is in use.

    Raises:
        UsageError: it would replace a file that `write_exclude_list` did not write, or the list
            that says which images were left out of this very check.
    """
    if not path.is_file():
        return
    if source.exclusion is not None and path.samefile(source.exclusion.path):
        raise UsageError(
            f"--write-list {one_line(path)} would replace the list that data.exclude names, "
            "without its images",
            "write another file, or check without data.exclude",
        )
    title = f"# {LIST_TITLE}\n".encode()
    with path.open("rb") as stream:
        start = stream.read(len(title))
    if start not in (b"", title):
        raise UsageError(
            f"--write-list {one_line(path)} would replace a file that is no list of vtrain check",
            "write to a new file, such as exclude.txt",
        )


def write_exclude_list(path: Path, result: CheckResult) -> int:
    """Write what `data.exclude` takes; the number of images in it.

    Raises:
        ResourceError, UsageError: it cannot be written.
    """
    write_exclusion(path, [(LIST_TITLE, ()), *result.exclude])
    return sum(len(paths) for _, paths in result.exclude)


def check_json(result: CheckResult) -> dict[str, Any]:
    """What `vtrain check --json` prints."""
    data = result.data
    splits = {}
    for name, images in data.splits.items():
        counts = data.class_counts(name)
        splits[name] = {
            "root": str(images.root),
            "count": len(images),
            "readable": sum(counts),
            "per_class": dict(zip(images.classes, counts, strict=True)) if data.labelled else None,
        }
    return {
        "schema": 1,
        "source": str(result.source),
        "image_size": data.image_size,
        "splits": splits,
        "counts": {severity: result.count(severity) for severity in SEVERITIES},
        "read": data.inspection.read,
        "known": data.inspection.known,
        "findings": to_plain(result.findings),
        "exclude": [str(path) for _, paths in result.exclude for path in paths],
    }
