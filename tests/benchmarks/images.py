"""The images that the benchmarks read: photographs where they are, else drawn ones of that size."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measure import ROOT, NotRunError, Settings

QUICK_IMAGES = 12  # of each class and split
PHOTO_SIZE = (500, 375)
SAMPLE_OF_CLASS = {"train": 80, "val": 40}
WEIGHTS = "weights/squeezenet1_0-imagenet.pth"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A folder with `train/` and `val/`, class folders in each, and the number of images."""

    root: Path
    train_count: int
    val_count: int
    name: str

    @property
    def train(self) -> Path:
        """The training images."""
        return self.root / "train"

    @property
    def val(self) -> Path:
        """The validation images."""
        return self.root / "val"

    @property
    def count(self) -> int:
        """Images of both splits."""
        return self.train_count + self.val_count


def find_shared(path: str) -> Path:
    """A file or folder of the shared photographs and weights, beside the repository or in it.

    Raises:
        NotRunError: it is in neither place.
    """
    for place in (ROOT.parent, ROOT):
        if (found := place / "shared" / path).exists():
            return found
    raise NotRunError(f"../shared/{path} is absent")


def prepare_photographs(settings: Settings) -> ImageSet:
    """Flowers (400 and 200), or as many drawn images of that size; few of them for `--quick`.

    They are read once, so that the first to be measured finds them in memory like the others.
    """
    try:
        source, name = find_shared("data/flowers"), "flowers"
    except NotRunError:
        source, name = _scale_up_sample(settings.folder / "drawn"), "drawn images"
    if settings.quick:
        source = _take_some(source, settings.folder / "some")
    counts = {split: len(list_files(source / split)) for split in ("train", "val")}
    for path in list_files(source):
        path.read_bytes()
    return ImageSet(source, counts["train"], counts["val"], name)


def list_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _take_some(source: Path, folder: Path) -> Path:
    if not folder.exists():
        for class_folder in sorted(source.glob("*/*")):
            target = folder / class_folder.relative_to(source)
            target.mkdir(parents=True)
            for path in list_files(class_folder)[:QUICK_IMAGES]:
                (target / path.name).symlink_to(path.resolve())
    return folder


def repeat_images(images: ImageSet, times: int, folder: Path) -> ImageSet:
    """The same images under `times` names each, as links."""
    if times == 1:
        return images
    for path in list_files(images.root):
        place = folder / path.parent.relative_to(images.root)
        place.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            (place / f"{number:04}-{path.name}").symlink_to(path.resolve())
    name = f"{images.name} × {times}"
    return ImageSet(folder, images.train_count * times, images.val_count * times, name)


def _scale_up_sample(folder: Path) -> Path:
    """The drawn sample set at the size of a photograph, with its noise."""
    if folder.exists():
        return folder
    import numpy as np
    from PIL import Image

    from vtrain.data.example_set import draw_sample

    train, _ = draw_sample(folder.with_name("sample"))
    random = np.random.default_rng(0)
    by_class: dict[int, list[Path]] = {}
    for path, label in zip(train.paths, train.labels, strict=True):
        by_class.setdefault(label, []).append(path)
    for split, count in SAMPLE_OF_CLASS.items():
        for label, paths in by_class.items():
            place = folder / split / train.classes[label]
            place.mkdir(parents=True)
            for path in paths[-count:]:
                with Image.open(path) as image:
                    large = np.asarray(image.resize(PHOTO_SIZE, Image.Resampling.BICUBIC))
                noise = random.integers(-8, 9, large.shape, dtype=np.int16)
                pixels = (large + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / path.name, quality=90)
    return folder


def draw_photographs(folder: Path, *, size: tuple[int, int], count: int, names: int) -> Path:
    """`count` noisy JPEGs of `size` (width, height), each under `names` names in all."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        smooth += random.integers(-8, 9, smooth.shape, dtype=np.int16)
        path = folder / f"{number:03}-000.jpg"
        Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        for name in range(1, names):
            (folder / f"{number:03}-{name:03}.jpg").symlink_to(path.resolve())
    return folder


def place_files(folder: Path, *, classes: int, each: int, content: bytes) -> Path:
    """`each` files with the same content in each of `classes` class folders, as hard links."""
    for number in range(classes):
        place = folder / f"class-{number:04}"
        place.mkdir(parents=True)
        first = place / "000000.jpg"
        first.write_bytes(content)
        for name in _names(each):
            os.link(first, place / name)
    return folder


def _names(each: int) -> Iterator[str]:
    return (f"{number:06}.jpg" for number in range(1, each))
