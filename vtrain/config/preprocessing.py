"""How an image becomes a model's input at evaluation: sizes, interpolation, mean and deviation."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

Interpolation = Literal["nearest", "bilinear", "bicubic"]
# The ranges are those of a model file; pydantic checks them when one is read.
_Edge = Annotated[int, Field(ge=1, le=4096)]
_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
_Level = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a model's input at evaluation; stored in every model file.

    EXIF orientation is applied, alpha is composited on `background`, the shorter edge is resized
    to `resize` pixels, the centre `crop` × `crop` pixels are kept, and each channel becomes
    `(value / 255 - mean) / std`.
    """

    resize: _Edge
    crop: _Edge
    interpolation: Interpolation = "bilinear"
    mean: tuple[_Mean, _Mean, _Mean] = (0.485, 0.456, 0.406)
    std: tuple[_Deviation, _Deviation, _Deviation] = (0.229, 0.224, 0.225)
    background: tuple[_Level, _Level, _Level] = (255, 255, 255)
    exif: Literal["applied"] = "applied"
    alpha: Literal["composited"] = "composited"

    def with_image_size(self, image_size: int) -> "Preprocessing":
        """The same preprocessing for another input size: the ratio of resize to crop is kept."""
        resize = max(image_size, round(self.resize * image_size / self.crop))
        return replace(self, resize=resize, crop=image_size)
