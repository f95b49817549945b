"""Draws the small sample data set: five shapes, too varied to tell by colour, place or size."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vtrain.data.image_sets import LabelledImages, PackedPaths
from vtrain.errors import UsageError
from vtrain.system.files import write_error

SHAPES = ("circle", "cross", "square", "star", "triangle")
TRAIN_IMAGES = 80  # of each class
VAL_IMAGES = 20
_EDGE = 96
_OVERSAMPLING = 4
_JPEG_QUALITY = 78

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw_sample(root: Path, *, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Draw the sample data set into a new or empty folder: (train, val).

    `root/train` and `root/val` hold one folder for each shape with 96 × 96 JPEGs, 80 and 20 of
    each, under 1 MB in all. The same seed draws the same bytes.

    Raises:
        UsageError: the folder exists and holds something, is a file, or cannot be created.
        ResourceError: no space left.
    """
    _create_empty(root)
    try:
        train = _draw_split(root / "train", TRAIN_IMAGES, seed=(seed, 0))
        val = _draw_split(root / "val", VAL_IMAGES, seed=(seed, 1))
    except OSError as error:
        raise write_error(root / "train", error) from error
    return train, val


def _create_empty(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        used = any(root.iterdir())
    except FileExistsError as error:
        raise UsageError(f"{root} is a file, expected a new or empty folder") from error
    except OSError as error:
        raise write_error(root, error) from error
    except ValueError as error:  # a null byte in the name
        raise UsageError(f"cannot create the folder {str(root)!r}: {error}") from error
    if used:
        raise UsageError(f"the folder {root} is not empty", "name a new folder for the sample")


def _draw_split(root: Path, count: int, *, seed: Sequence[int]) -> LabelledImages:
    names: list[str] = []
    labels: list[int] = []
    for label, shape in enumerate(SHAPES):
        (root / shape).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rng = np.random.default_rng([*seed, label, number])
            names.append(f"{shape}/{shape}-{number:03d}.jpg")
            labels.append(label)
            _draw_image(shape, rng).save(root / names[-1], "JPEG", quality=_JPEG_QUALITY)
    return LabelledImages(root, SHAPES, PackedPaths(root, names), tuple(labels))


def _draw_image(shape: str, rng: np.random.Generator) -> Image.Image:
    """One 96 × 96 picture: background, one shape with soft edges, noise."""
    background, colour = _draw_colours(rng)
    picture = _draw_background(background, rng)
    mask = _draw_mask(shape, rng)
    picture.paste(Image.new("RGB", picture.size, colour), mask=mask)
    noise = rng.normal(0, rng.uniform(1, 5), (_EDGE, _EDGE, 3))
    pixels = np.asarray(picture).astype(np.float64) + noise
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _draw_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """A background and a lighter shape colour, at least 70 levels of luma apart."""
    while True:
        first, second = rng.integers(10, 246, (2, 3)).tolist()
        if _luma(second) - _luma(first) >= 70:
            return tuple(first), tuple(second)


def _luma(colour: Sequence[int]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _draw_background(colour: Colour, rng: np.random.Generator) -> Image.Image:
    """Plain, a gradient, or stripes, around one colour."""
    kind = rng.integers(3)
    strength = rng.uniform(10, 30)
    angle = rng.uniform(0, 2 * math.pi)
    ys, xs = np.mgrid[0:_EDGE, 0:_EDGE] / _EDGE - 0.5
    along = xs * math.cos(angle) + ys * math.sin(angle)
    if kind == 0:
        wave = np.zeros_like(along)
    elif kind == 1:
        wave = along * 2
    else:
        wave = np.sin(2 * math.pi * along * rng.uniform(3, 10))
    pixels = np.array(colour) + strength * wave[..., None]
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _draw_mask(shape: str, rng: np.random.Generator) -> Image.Image:
    """Where the shape is, 0 to 255, drawn four times as large and reduced for soft edges."""
    edge = _EDGE * _OVERSAMPLING
    radius = edge * rng.uniform(0.25, 0.42)
    left, top = rng.uniform(radius, edge - radius, 2).tolist()
    angle = rng.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    stretch = rng.uniform(0.85, 1.0)
    corners = ((x * radius, y * radius * stretch) for x, y in _outline(shape))
    points = [(left + x * cosine - y * sine, top + x * sine + y * cosine) for x, y in corners]
    mask = Image.new("L", (edge, edge), 0)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.resize((_EDGE, _EDGE), Image.Resampling.BOX)


def _outline(shape: str) -> list[Point]:
    """Corners on or inside the unit circle."""
    if shape == "cross":
        arm = 0.33
        corner = math.sqrt(1 - arm * arm)
        quarter = [(corner, -arm), (corner, arm), (arm, arm)]
        points = list(quarter)
        for _ in range(3):
            quarter = [(-y, x) for x, y in quarter]
            points += quarter
        return points
    if shape == "star":
        radii, corners = (1.0, 0.45), 10
    else:
        radii, corners = (1.0, 1.0), {"circle": 64, "square": 4, "triangle": 3}[shape]
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)]
