"""Drawn images and a tiny model with random weights, for the tests of the commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from vtrain.config.keys import HeadConfig
from vtrain.models.backbones import eval_preprocessing
from vtrain.models.classifier import build_classifier
from vtrain.models.zoo import find_backbone
from vtrain.runs.model_argument import LoadedModel

CPU = torch.device("cpu")


def draw_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (80, 70)) -> Path:
    """Save an image of smooth colours and some noise, `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    noisy = (smooth + random.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path)
    return path


def draw_labelled(root: Path, counts: dict[str, int], *, seed: int = 0) -> list[Path]:
    """Save `counts[name]` images in `root/name` for each class; their paths, sorted.

    The same `seed` draws the same images, which are a leak where they are in two splits.
    """
    paths = []
    for number, (name, count) in enumerate(sorted(counts.items())):
        for index in range(count):
            suffix = "png" if index % 2 else "jpg"
            path = root / name / f"{index:03}.{suffix}"
            paths.append(draw_image(path, seed=seed + 1000 * number + index, size=(64 + index, 90)))
    return paths


def break_image(path: Path) -> Path:
    """Replace a file by one that only looks like an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff\xe0 no more of it")
    return path


def build_tiny_model(classes: Sequence[str], *, seed: int = 0) -> LoadedModel:
    """`simple_cnn` on the CPU in evaluation mode, with logits that spread over the classes."""
    torch.manual_seed(seed)
    spec = find_backbone("simple_cnn")
    classifier = build_classifier(spec, num_classes=len(classes), head=HeadConfig()).eval()
    classifier.to(memory_format=torch.channels_last)
    blobs = nn.functional.interpolate(2 * torch.rand(32, 3, 6, 6) - 1, size=64, mode="bicubic")
    with torch.no_grad():
        last = cast(nn.Linear, cast(nn.Sequential, classifier.head)[-1])
        features = classifier.forward_features(blobs)
        last.weight.normal_()
        last.weight.mul_(2.0 / last(features).std(dim=0).mean())
        last.bias.copy_(-(features @ last.weight.T).mean(dim=0))
    return LoadedModel(classifier, eval_preprocessing(spec, None), tuple(classes), "tiny")


def poison(model: LoadedModel) -> LoadedModel:
    """Make the head's weights NaN."""
    with torch.no_grad():
        for parameter in model.classifier.head.parameters():
            parameter.fill_(float("nan"))
    return model
