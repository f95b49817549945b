"""The images of a run: train, validation and test splits, scanned, matched by class and checked."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vtrain.config import DataConfig
from vtrain.console import Console
from vtrain.data.folders import scan_labelled, split_stratified
from vtrain.data.images import check_images
from vtrain.data.loaders import resolve_workers
from vtrain.errors import DataError
from vtrain.records import LabelledImages, SkippedFile

_CLASSES_NAMED = 5


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits of a run; all have the same classes in the same order.

    `bad_images` could not be read and are in no split.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    bad_images: tuple[SkippedFile, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels index them."""
        return self.train.classes

    def named(self) -> dict[str, LabelledImages]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "val": self.val}
        return splits if self.test is None else {**splits, "test": self.test}


def scan_splits(config: DataConfig, *, seed: int, console: Console) -> Splits:
    """Scan the folders of a config and hold out validation images if asked to; opens no image.

    Raises:
        DataError: a folder cannot be used.
    """
    train = scan_labelled(Path(config.train), name="data.train")
    if config.val is not None:
        val = scan_labelled(Path(config.val), classes=train.classes, name="data.val")
    else:
        assert config.val_fraction is not None  # the config has exactly one of the two
        train, val = split_stratified(train, config.val_fraction, seed=seed)
        val = replace(val, skipped=())  # both have those of the folder: say them once
    test = None
    if config.test is not None:
        test = scan_labelled(Path(config.test), classes=train.classes, name="data.test")
    splits = Splits(train, val, test)
    _say_surprises(splits, console)
    return splits


def _say_surprises(splits: Splits, console: Console) -> None:
    for name, images in splits.named().items():
        counts = zip(images.classes, images.class_counts(), strict=True)
        missing = [label for label, count in counts if count == 0]
        if missing:
            named = ", ".join(missing[:_CLASSES_NAMED])
            if len(missing) > _CLASSES_NAMED:
                named += f" and {len(missing) - _CLASSES_NAMED} more classes"
            console.warn(f"data.{name} has no images of {named}")
        if images.skipped:
            first = images.skipped[0]
            console.warn(
                f"data.{name}: {len(images.skipped)} files are not used, such as {first.path} "
                f"({first.reason}); data.json in the run folder lists them"
            )


def check_splits(splits: Splits, config: DataConfig, *, console: Console) -> Splits:
    """Read every image once, before training starts; returns the splits without bad ones.

    Raises:
        DataError: images cannot be read and `on_bad_image` is `error`, or none is left.
    """
    bad: list[SkippedFile] = []
    kept: dict[str, LabelledImages] = {}
    total = sum(len(images) for images in splits.named().values())
    with console.progress(total, "checking images") as bar:
        for name, images in splits.named().items():
            workers = resolve_workers(config.workers, len(images))
            found = check_images(images.paths, workers=workers, progress=bar.update)
            bad += found
            bad_paths = {each.path for each in found}
            kept[name] = images.subset(
                [i for i, path in enumerate(images.paths) if path not in bad_paths]
            )
    if bad and config.on_bad_image == "error":
        raise _bad_images_error(bad, total)
    for each in bad:
        console.warn(f"skipped {each.path}: {each.reason}")
    _require_images(kept)
    return Splits(kept["train"], kept["val"], kept.get("test"), tuple(bad))


def _bad_images_error(bad: list[SkippedFile], total: int) -> DataError:
    lines = [f"  {each.path}: {each.reason}" for each in bad]
    return DataError(
        f"{len(bad)} of {total} images cannot be read:\n" + "\n".join(lines),
        "repair or remove them, or set data.on_bad_image=skip to train without them",
    )


def _require_images(splits: dict[str, LabelledImages]) -> None:
    for name, images in splits.items():
        if not len(images):
            raise DataError(
                f"data.{name}: no readable image is left in {images.root}",
                "check the folder, or choose another one",
            )
    train = splits["train"]
    for label, count in zip(train.classes, train.class_counts(), strict=True):
        if count == 0:
            raise DataError(
                f"data.train: no readable image of class {label!r} is left in {train.root}",
                "repair its images, or remove the class folder",
            )


def describe_splits(splits: Splits) -> dict[str, Any]:
    """What `data.json` holds: classes, counts, hashes and the files that are not used."""
    return {
        "schema": 1,
        "classes": list(splits.classes),
        **{
            name: {
                "root": str(images.root),
                "count": len(images),
                "per_class": dict(zip(images.classes, images.class_counts(), strict=True)),
                "sha256": split_digest(images),
                "skipped": _list_skipped(images.skipped),
            }
            for name, images in splits.named().items()
        },
        "bad_images": _list_skipped(splits.bad_images),
    }


def _list_skipped(skipped: Iterable[SkippedFile]) -> list[dict[str, str]]:
    return [{"path": str(each.path), "reason": each.reason} for each in skipped]


def split_digest(images: LabelledImages) -> str:
    """SHA-256 over class names and each image's class, place below the root, and size in bytes.

    It tells whether a resumed run sees the same images; it does not read them.
    """
    digest = hashlib.sha256("\0".join(images.classes).encode("utf-8", "surrogateescape"))
    for path, label in zip(images.paths, images.labels, strict=True):
        place = path.relative_to(images.root) if path.is_relative_to(images.root) else path
        entry = f"\n{label}\0{place}\0{path.stat().st_size}"
        digest.update(entry.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
