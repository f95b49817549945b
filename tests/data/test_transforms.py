"""Pixels after the transforms: torchvision's at evaluation, reproducible ones in training."""

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from torchvision.transforms._presets import ImageClassification

from vtrain.config.preprocessing import Interpolation, Preprocessing
from vtrain.data.transforms import (
    AUGMENT_PRESETS,
    EvalTransform,
    TrainTransform,
    build_batch_mix,
    normalize_images,
    to_image,
    to_tensor,
)
from vtrain.errors import UsageError

SMALL = Preprocessing(resize=36, crop=32)


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@contextmanager
def seed_torch(seed: int) -> Iterator[None]:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    yield
    torch.set_rng_state(state)


def apply_seeded(transform: TrainTransform, image: Image.Image, seed: int) -> Tensor:
    with seed_torch(seed):
        return transform(image)


def preset_of(preprocessing: Preprocessing) -> ImageClassification:
    return ImageClassification(
        crop_size=preprocessing.crop,
        resize_size=preprocessing.resize,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=InterpolationMode(preprocessing.interpolation),
        antialias=True,
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (341, 341), (61, 397), (36, 50), (50, 36), (3, 5), (1, 1)]
)
def test_evaluation_equals_torchvision_pixel_for_pixel(
    size: tuple[int, int], interpolation: Interpolation
) -> None:
    image = noise(*size)
    # The last one pads: its crop is larger than the resized image.
    for resize, crop in [(256, 224), (232, 224), (36, 33), (33, 32), (224, 224), (20, 33)]:
        preprocessing = Preprocessing(resize, crop, interpolation)
        resized = tv.resize(image, [resize], interpolation=InterpolationMode(interpolation))
        expected = tv.pil_to_tensor(tv.center_crop(resized, [crop]))
        assert torch.equal(EvalTransform(preprocessing)(image), expected)


def test_evaluation_equals_torchvision_for_random_sizes() -> None:
    sizes = random.Random(0)
    for seed in range(60):
        image = noise(sizes.randint(2, 300), sizes.randint(2, 300), seed=seed)
        crop = sizes.randint(1, 80)
        preprocessing = Preprocessing(crop + sizes.randint(0, 20), crop)
        resized = tv.resize(image, [preprocessing.resize])
        expected = tv.pil_to_tensor(tv.center_crop(resized, [crop]))
        assert torch.equal(EvalTransform(preprocessing)(image), expected)


def test_normalised_evaluation_equals_torchvisions_preset() -> None:
    preprocessing = Preprocessing(resize=72, crop=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    image = noise(100, 80)
    images = EvalTransform(preprocessing)(image)[None]
    normalized = normalize_images(images, preprocessing, device="cpu")
    expected = preset_of(preprocessing)(image)[None]
    torch.testing.assert_close(normalized, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_normalised_batches_are_channels_last(count: int) -> None:
    images = torch.randint(0, 256, (count, 3, 8, 6), dtype=torch.uint8)
    normalized = normalize_images(images, SMALL, device="cpu")
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor([SMALL.mean, SMALL.std])[:, :, None, None]
    torch.testing.assert_close(normalized, (images / 255 - mean) / std, rtol=0, atol=2e-6)


def test_normalising_in_inference_mode_first_does_not_spoil_training() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 11), dtype=torch.uint8)
    with torch.inference_mode():
        normalize_images(images, SMALL, device="cpu")
    weight = torch.ones(3, requires_grad=True)
    loss = (normalize_images(images, SMALL, device="cpu") * weight.view(3, 1, 1)).sum()
    assert torch.autograd.grad(loss, weight)[0].shape == (3,)


def test_normalising_leaves_its_input_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    before = images.clone()
    normalize_images(images, SMALL, device="cpu")
    assert torch.equal(images, before)


@pytest.mark.parametrize("preset", AUGMENT_PRESETS)
def test_presets_are_functions_of_torchs_generator_alone(preset: str) -> None:
    transform = TrainTransform(SMALL, preset=preset, erasing=0.5)
    image = noise(50, 40)
    seen = []
    for seed in range(12):
        images = apply_seeded(transform, image, seed)
        assert images.dtype == torch.uint8
        assert images.shape == (3, 32, 32)
        random.seed(seed + 100)
        np.random.seed(seed + 100)
        assert torch.equal(apply_seeded(transform, image, seed), images)
        seen.append(images)
    assert not all(torch.equal(seen[0], images) for images in seen)


@pytest.mark.parametrize("preset", AUGMENT_PRESETS)
def test_transforms_survive_pickling(preset: str) -> None:
    transform = TrainTransform(SMALL, preset=preset, erasing=0.5)
    copy = pickle.loads(pickle.dumps(transform))
    image = noise(50, 40)
    assert torch.equal(apply_seeded(copy, image, 3), apply_seeded(transform, image, 3))
    evaluate = EvalTransform(SMALL)
    assert torch.equal(pickle.loads(pickle.dumps(evaluate))(image), evaluate(image))


@pytest.mark.parametrize("size", [(1, 1), (500, 2), (2, 500), (33, 700)])
@pytest.mark.parametrize("preset", AUGMENT_PRESETS)
def test_presets_take_tiny_and_extreme_images(preset: str, size: tuple[int, int]) -> None:
    transform = TrainTransform(SMALL, preset=preset, erasing=1.0)
    for seed in range(5):
        assert apply_seeded(transform, noise(*size), seed).shape == (3, 32, 32)


def test_no_augmentation_is_the_evaluation_transform() -> None:
    transform = TrainTransform(SMALL, preset="none")
    image = noise(50, 40)
    assert torch.equal(transform(image), EvalTransform(SMALL)(image))


def test_light_flips_half_of_the_images_and_crops_within_its_scale() -> None:
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[:, None], (150, 1, 3)))
    transform = TrainTransform(SMALL, preset="light")
    flips, spans = 0, []
    for seed in range(300):
        row = apply_seeded(transform, ramp, seed)[0, 16].int()
        flips += bool(row[0] > row[-1])
        spans.append(abs(int(row[-1] - row[0])))
    assert 120 < flips < 180
    # Crops cover 50 % to 100 % of 200 × 150 pixels at ratios from 3:4 to 4:3.
    assert min(spans) >= 100
    assert max(spans) <= 200
    assert max(spans) - min(spans) > 60


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_a_whole_image_crop_is_within_two_levels_of_pillow(interpolation: Interpolation) -> None:
    preprocessing = Preprocessing(32, 32, interpolation)
    transform = TrainTransform(preprocessing, preset="light")
    smooth = noise(6, 6).resize((90, 90), Image.Resampling.BICUBIC)
    transform._preset = type(transform._preset)(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0)
    expected = EvalTransform(preprocessing)(smooth)
    difference = (transform(smooth).int() - expected.int()).abs().max()
    assert int(difference) <= 2


@pytest.mark.parametrize(("erasing", "expected"), [(0.0, 0), (1.0, 40)])
def test_erasing_fills_a_rectangle_with_the_mean(erasing: float, expected: int) -> None:
    transform = TrainTransform(SMALL, preset="none", erasing=erasing)
    white = Image.new("RGB", (40, 40), (255, 255, 255))
    mean = torch.tensor([round(255 * m) for m in SMALL.mean]).view(3, 1, 1)
    erased = 0
    for seed in range(40):
        images = apply_seeded(transform, white, seed)
        changed = (images != 255).all(0)
        if changed.any():
            erased += 1
            rows, columns = changed.any(1), changed.any(0)
            assert int(changed.sum()) == int(rows.sum()) * int(columns.sum())
            assert 0.01 < float(changed.float().mean()) < 0.36
            assert bool(((images == mean) | (images == 255)).all())
    assert erased == expected


@pytest.mark.parametrize("preset", ["strong", "auto"])  # what auto stands for, the plan decides
def test_unknown_augmentation_names_the_known_ones(preset: str) -> None:
    with pytest.raises(UsageError, match=f"unknown augmentation '{preset}'") as caught:
        TrainTransform(SMALL, preset=preset)
    assert caught.value.hint == "one of none, light, trivial, rand, auto-imagenet"


def test_tensor_and_image_are_each_others_inverse() -> None:
    image = noise(7, 5)
    images = to_tensor(image)
    assert torch.equal(images, tv.pil_to_tensor(image))
    assert to_image(images).tobytes() == image.tobytes()
    assert to_image(images.flip(-1)).tobytes() == tv.hflip(image).tobytes()


def test_no_mixing_is_none() -> None:
    assert build_batch_mix(0.0, 0.0, 3) is None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_keeps_images_and_soft_labels_in_step(mixup: float, cutmix: float) -> None:
    mix = build_batch_mix(mixup, cutmix, 3)
    assert mix is not None
    labels = torch.tensor([0, 1, 2, 1])
    # Image i is filled with the one-hot code of its label: mixed shares can be read off the pixels.
    images = torch.nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(4, 3, 16, 16)
    with seed_torch(0):
        for _ in range(20):
            mixed, soft = mix(images.contiguous(), labels)
            assert mixed.shape == images.shape
            assert soft.shape == (4, 3)
            torch.testing.assert_close(mixed.mean((2, 3)), soft)
            torch.testing.assert_close(soft.sum(1), torch.ones(4))


def test_both_alphas_draw_one_of_the_two_for_each_batch() -> None:
    mix: Any = build_batch_mix(1.0, 1.0, 2)
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    with seed_torch(1):
        pasted = [
            bool(((m == 0) | (m == 1)).all())  # CutMix makes no new values
            for m, _ in (mix(images, torch.tensor([0, 1])) for _ in range(60))
        ]
    assert 10 < sum(pasted) < 50
