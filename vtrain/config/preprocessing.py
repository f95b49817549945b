"""How an image becomes a model's input at evaluation: sizes, interpolation, mean and deviation."""

from dataclasses import dataclass, replace
from typing import Literal

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a model's input at evaluation; stored in every model file.

    EXIF orientation is applied, alpha is composited on `background`, the shorter edge is resized
    to `resize` pixels, the centre `crop` × `crop` pixels are kept, and each channel becomes
    `(value / 255 - mean) / std`.
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    background: tuple[int, int, int] = (255, 255, 255)
    exif: Literal["applied"] = "applied"
    alpha: Literal["composited"] = "composited"

    def with_image_size(self, image_size: int) -> "Preprocessing":
        """The same preprocessing for another input size: the ratio of resize to crop is kept."""
        resize = max(image_size, round(self.resize * image_size / self.crop))
        return replace(self, resize=resize, crop=image_size)
