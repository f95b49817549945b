"""Copies are found however they were made, and different images are told apart."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from vtrain.data import duplicates
from vtrain.data.duplicates import (
    find_near_pairs,
    find_similar_pairs,
    group_images,
    hash_thumbs,
    join_pairs,
)
from vtrain.data.image_checks import shrink
from vtrain.data.images import read_image

SHARED = Path(__file__).parents[2].parent / "shared/data"


def picture(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """Blobs of several sizes, so that no two places look alike."""
    random = np.random.default_rng(seed)
    layers = []
    for cells in (3, 7, 15, 31):
        grid = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(np.asarray(grid.resize(size, Image.Resampling.BICUBIC)).astype(float))
    mixed = sum(layer * weight for layer, weight in zip(layers, (0.4, 0.3, 0.2, 0.1), strict=True))
    return Image.fromarray(np.asarray(mixed).clip(0, 255).astype(np.uint8))


def compress(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def cut(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(width * share), round(height * share),
                       round(width * (1 - share)), round(height * (1 - share))))  # fmt: skip


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda image: compress(image, 30),
    "halved": lambda image: image.resize((120, 90)),
    "squeezed": lambda image: image.resize((224, 224)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "cut by 3 %": lambda image: cut(image, 0.03),
    "cut by 7 %": lambda image: cut(image, 0.07),
    "mirrored, cut and compressed": lambda image: compress(cut(ImageOps.mirror(image), 0.04), 60),
}


def thumbs(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    content = b"".join(shrink(image) for image in images)
    return np.frombuffer(content, np.uint8).reshape(-1, 32, 32)


ORIGINALS = [picture(seed) for seed in range(60)]


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_nothing_else(copy: str) -> None:
    copies = [COPIES[copy](image) for image in ORIGINALS[:20]]
    pairs = find_near_pairs(thumbs([*ORIGINALS, *copies]))
    assert pairs.tolist() == [[index, 60 + index] for index in range(20)]


def test_plain_images_are_no_copies_of_each_other() -> None:
    flat = [Image.new("RGB", (64, 64), (value, value, value)) for value in (0, 128, 250, 255)]
    assert find_near_pairs(thumbs(flat)).tolist() == []
    assert find_near_pairs(thumbs([])).tolist() == []
    assert find_near_pairs(thumbs(ORIGINALS[:1])).tolist() == []


def test_bits_say_which_place_is_brighter_than_its_left_neighbour() -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (1, 32, 1))
    assert hash_thumbs(ramp).tolist() == [2**64 - 1]
    assert hash_thumbs(ramp, mirrored=True).tolist() == [0]
    assert hash_thumbs(ramp[:, :, ::-1]).tolist() == [0]
    half = ramp.copy()
    half[:, 16:] = 0
    assert hash_thumbs(half).tolist() == [(2**32 - 1) << 32]


def test_the_search_is_not_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    truly_count = duplicates._count_bits

    def count(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
        compared.append(len(values))
        return truly_count(values)

    monkeypatch.setattr(duplicates, "_count_bits", count)
    noise = np.random.default_rng(0).integers(0, 256, (3000, 32, 32), dtype=np.uint8)
    noise[2999] = noise[0]
    assert find_near_pairs(noise).tolist() == [[0, 2999]]
    pairs = 6 * 3000 * 3000 / 2
    assert sum(compared) < pairs / 10


def test_equal_images_do_not_blow_up_the_search() -> None:
    same = np.repeat(thumbs(ORIGINALS[:1]), 200, axis=0)
    digests = np.arange(200, dtype=np.uint64).view("V8")
    sizes = np.ones((200, 2), np.uint32)
    groups = group_images(digests, same, sizes, hash_pixels=lambda asked: [None] * len(asked))
    assert [len(group.members) for group in groups] == [200]


def test_groups_say_how_much_alike_their_images_are() -> None:
    images = [ORIGINALS[0], ORIGINALS[1], ORIGINALS[0], ORIGINALS[1], ORIGINALS[2], ORIGINALS[3],
              COPIES["halved"](ORIGINALS[2])]  # fmt: skip
    digests = np.array([1, 2, 1, 3, 4, 5, 6], np.uint64).view("V8")
    sizes = np.array([image.size for image in images], np.uint32)
    asked: list[list[int]] = []

    def hash_pixels(positions: Sequence[int]) -> list[bytes | None]:
        asked.append(list(positions))
        return [images[position].tobytes() for position in positions]

    groups = group_images(digests, thumbs(images), sizes, hash_pixels=hash_pixels)
    assert [(group.members, group.kind) for group in groups] == [
        ((0, 2), "bytes"),
        ((1, 3), "pixels"),
        ((4, 6), "near"),
    ]
    assert asked == [[1, 3]]  # the others need not be decoded again
    assert [len(set(group.same)) for group in groups] == [1, 1, 2]


def test_features_that_point_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 64)).astype(np.float32)
    features[30] = features[3] - 0.1 * features[5]
    features[31] = features[3] + 0.1 * features[4]
    features += 50  # what all have in common says nothing
    pairs = find_similar_pairs(features)
    assert join_pairs(40, pairs) == [(3, 30, 31)]
    assert find_similar_pairs(features[:0]).tolist() == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the photographs in ../shared")
def test_photographs_of_one_kind_are_told_apart() -> None:
    paths = sorted((SHARED / "sign-digits/val").glob("[0-5]/*"))
    images = [read_image(path, min_edge=100) for path in paths]
    copies = [compress(cut(image, 0.02), 70) for image in images[:40]]
    found = find_near_pairs(thumbs([*images, *copies])).tolist()
    right = [[index, len(images) + index] for index in range(40)]
    assert [pair for pair in found if pair not in right] == []
    assert len(found) >= 36
