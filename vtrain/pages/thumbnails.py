"""Small pictures that stand in the page itself."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from vtrain.data.images import read_image
from vtrain.errors import ImageError

EDGE = 112  # pixels; twice what is shown on a common screen needs
QUALITY = 72


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture as a `data:` URI, width and height in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A thumbnail and a heat map (None: there is none), its description, and the lines below."""

    thumbnail: Thumbnail | None
    text: str
    lines: tuple[str, ...]
    heat_map: Thumbnail | None = None


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures of one kind; `note` says how they were chosen, or why there are none."""

    title: str
    note: str
    pictures: tuple[Picture, ...]


def make_thumbnail(path: Path, *, edge: int = EDGE) -> Thumbnail | None:
    """The image as every command sees it, at most `edge` pixels wide and high.

    None where it cannot be read (any more).
    """
    try:
        image = read_image(path, min_edge=edge)
    except ImageError:
        return None
    image.thumbnail((edge, edge))
    return encode_thumbnail(image)


def encode_thumbnail(image: Image.Image) -> Thumbnail:
    """A picture of any size for a page, as JPEG."""
    content = BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=QUALITY, optimize=True)
    text = base64.b64encode(content.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{text}", image.width, image.height)
