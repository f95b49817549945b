"""From an image to a model's input: evaluation and training transforms, mixing, normalisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vtrain.config.preprocessing import Interpolation, Preprocessing
from vtrain.errors import UsageError

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_CROP_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class AugmentPreset:
    """What a training image goes through; `crop_scale` None keeps the evaluation crop.

    `crop_scale` is the range of the crop's share of the image area, `crop_ratio` the range of its
    width by height. `flip` is the probability of a left-right flip: wrong where left and right
    differ, as for letters, road signs or left and right hands. `policy` is None, `trivial`,
    `rand` or `auto-imagenet`.
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    policy: str | None = None


AUGMENT_PRESETS = {
    "none": AugmentPreset(),
    "light": AugmentPreset(crop_scale=(0.5, 1.0), flip=0.5),
    "trivial": AugmentPreset(crop_scale=(0.35, 1.0), flip=0.5, policy="trivial"),
    "rand": AugmentPreset(crop_scale=(0.35, 1.0), flip=0.5, policy="rand"),
    "auto-imagenet": AugmentPreset(crop_scale=(0.35, 1.0), flip=0.5, policy="auto-imagenet"),
}


def choose_augmentation(given: str, *, trains_backbone: bool) -> str:
    """The name of a preset for `data.augment`.

    `auto`: none where the head alone is trained, since the features of an image are then the same
    every time; light otherwise.
    """
    if given != "auto":
        return given
    return "light" if trains_backbone else "none"


class ImageTransform(Protocol):
    """What the loaders need: how to read an image, and from RGB to uint8 [3, crop, crop].

    `resize` and `crop` are edges in pixels, `background` is the colour behind transparent pixels.
    """

    resize: int
    crop: int
    background: tuple[int, int, int]

    def __call__(self, image: Image.Image) -> Tensor:
        """One RGB image to a uint8 tensor [3, crop, crop]."""
        ...


class EvalTransform:
    """Resize the shorter edge, keep the centre: equal, pixel for pixel, to torchvision on PIL.

    Pillow resizes here because torch's faster uint8 kernels differ from it by up to 2 levels.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.resize = preprocessing.resize
        self.crop = preprocessing.crop
        self.background = preprocessing.background
        self._resampling = _RESAMPLING[preprocessing.interpolation]

    def __call__(self, image: Image.Image) -> Tensor:
        """One RGB image to a uint8 tensor [3, crop, crop]; black around an image that is smaller.

        Sizes and offsets round as torchvision's do: the long edge down, the offset to even.
        """
        size = self.find_size(image.size)
        if size != image.size:
            image = image.resize(size, self._resampling)
        left, top = self.find_corner(size)
        return to_tensor(image.crop((left, top, left + self.crop, top + self.crop)))

    def find_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after resizing, in pixels, of an image of this width and height."""
        width, height = size
        short = min(width, height)
        return int(self.resize * width / short), int(self.resize * height / short)

    def find_corner(self, resized: tuple[int, int]) -> tuple[int, int]:
        """Left and top of the crop in the resized image; below 0 where it is smaller."""
        left, top = (
            # Both halves round as torchvision's do: half to even where it cuts, down where it pads.
            round((edge - self.crop) / 2) if edge >= self.crop else -((self.crop - edge) // 2)
            for edge in resized
        )
        return left, top


class TrainTransform(EvalTransform):
    """Augmentation by one of `AUGMENT_PRESETS`, with randomness from torch's global generator.

    The dataset seeds that generator for each sample. `erasing` is the probability (0 to 1) that a
    random rectangle is filled with the mean colour, which is zero after normalisation (Zhong et
    al., "Random Erasing Data Augmentation", 2017).

    Raises:
        UsageError: there is no such preset.
    """

    def __init__(self, preprocessing: Preprocessing, *, preset: str, erasing: float = 0.0) -> None:
        if preset not in AUGMENT_PRESETS:
            known = ", ".join(AUGMENT_PRESETS)
            raise UsageError(f"unknown augmentation '{preset}'", f"one of {known}")
        super().__init__(preprocessing)
        self._preset = AUGMENT_PRESETS[preset]
        self._interpolation = preprocessing.interpolation
        self._erasing = erasing
        self._mean = [round(255 * channel) for channel in preprocessing.mean]
        self._policy = _build_policy(self._preset.policy, self._mean)

    def __call__(self, image: Image.Image) -> Tensor:
        """One RGB image to a uint8 tensor [3, crop, crop]."""
        if self._preset.crop_scale is None:
            pixels = super().__call__(image)
        else:
            left, top, width, height = _draw_crop(
                image.size, scale=self._preset.crop_scale, ratio=self._preset.crop_ratio
            )
            cropped = to_tensor(image.crop((left, top, left + width, top + height)))
            pixels = _resize_tensor(cropped, self.crop, self._interpolation)
        if torch.rand(()) < self._preset.flip:
            pixels = pixels.flip(-1)
        if self._policy is not None:
            pixels = to_tensor(self._policy(to_image(pixels)))
        if torch.rand(()) < self._erasing:
            pixels = _erase_rectangle(pixels, self._mean)
        return pixels


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image to uint8 [3, H, W] in channels-last memory, without reordering a byte."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """Uint8 [3, H, W] to an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def normalize_images(
    images: Tensor,
    preprocessing: Preprocessing,
    *,
    device: torch.device | str,
) -> Tensor:
    """Uint8 [B, 3, H, W] to float32 `(value / 255 - mean) / std` on `device`.

    The bytes travel, the device computes. The memory format of the result is `channels_last`.
    """
    batch, channels, height, width = images.shape
    images = images.to(device, non_blocking=True)
    shift, scale = _normalization_rows(preprocessing.mean, preprocessing.std, width, str(device))
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels).float()
    torch.addcmul(shift, rows, scale, out=rows)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _normalization_rows(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: str
) -> tuple[Tensor, Tensor]:
    """Shift and scale of one row of pixels, [width * 3] each.

    Repeated along the row, because broadcasting over an innermost dimension of three is ten times
    slower on a CPU; kept, because copying them to a GPU for each batch would wait for it.
    """
    with torch.inference_mode(mode=False):  # the first caller may be in inference, the next not
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        return shift.repeat(width), scale.repeat(width)


def build_batch_mix(
    mixup: float, cutmix: float, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup and CutMix for a normalised batch, or None if both are 0.

    Args:
        mixup: alpha of the beta distribution of mixing shares (Zhang et al., 2018); 0 is off.
        cutmix: alpha of that of the pasted area (Yun et al., 2019); 0 is off.
        num_classes: C.

    Returns:
        A function of float images [B, 3, H, W] and int64 labels [B] to mixed images and soft labels
        [B, C]. With both alphas set, each batch draws one of the two; torch's global generator.
    """
    if not mixup and not cutmix:
        return None
    from torchvision.transforms import v2

    mixes: list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = []
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        chosen = mixes[int(torch.randint(len(mixes), ()))]
        return chosen(images, labels)

    return mix


def _build_policy(name: str | None, fill: list[int]) -> Callable[[Image.Image], Image.Image] | None:
    """Torchvision's policies on Pillow images: on a CPU they are faster there than on tensors."""
    if name is None:
        return None
    from torchvision.transforms import (
        AutoAugment,
        InterpolationMode,
        RandAugment,
        TrivialAugmentWide,
    )

    policies = {"trivial": TrivialAugmentWide, "rand": RandAugment, "auto-imagenet": AutoAugment}
    policy: Callable[[Image.Image], Image.Image] = policies[name](
        interpolation=InterpolationMode.BILINEAR, fill=fill
    )
    return policy


def _draw_crop(
    size: tuple[int, int], *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop (Szegedy et al., "Going Deeper", 2015).

    Area and aspect ratio are drawn again while the crop does not fit; after ten misses it is the
    largest centred crop with an allowed ratio.
    """
    width, height = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for share, tilt, x, y in torch.rand(_CROP_ATTEMPTS, 4, dtype=torch.float64).tolist():
        area = width * height * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + tilt * (high - low))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(x * (width - crop_width + 1)), int(y * (height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = min(width, max(1, round(height * ratio[1])))
    crop_height = min(height, max(1, round(width / ratio[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _resize_tensor(pixels: Tensor, edge: int, interpolation: Interpolation) -> Tensor:
    """Uint8 [3, H, W] to uint8 [3, edge, edge], antialiased; four times as fast as Pillow."""
    if interpolation == "nearest":
        return functional.interpolate(pixels[None], (edge, edge), mode="nearest-exact")[0]
    return functional.interpolate(pixels[None], (edge, edge), mode=interpolation, antialias=True)[0]


def _erase_rectangle(pixels: Tensor, fill: list[int]) -> Tensor:
    """Fill 2 % to 33 % of the area, at a ratio from 0.3 to 3.3, with one colour."""
    _, height, width = pixels.shape
    left, top, erased_width, erased_height = _draw_crop(
        (width, height), scale=(0.02, 0.33), ratio=(0.3, 3.3)
    )
    colour = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)
    pixels = pixels.clone()
    pixels[:, top : top + erased_height, left : left + erased_width] = colour
    return pixels
