"""The other side: training and embedding as the tutorials teach it, in a process of its own.

    python -m tests.benchmarks.plain_loop probe|finetune|embed --backbone NAME --train FOLDER ...

`ImageFolder`, PIL transforms, `DataLoader(num_workers=2)`, fp32, `model.train()` and
`model.eval()`. Prints one line of JSON: images and seconds of each part.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN_TRANSFORM = transforms.Compose(
    [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
EVAL_TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def load(folder: Path, transform: Any, *, shuffle: bool) -> Any:
    dataset = ImageFolder(str(folder), transform)
    return torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=shuffle, num_workers=2)


def build(backbone: str, num_classes: int, *, frozen: bool) -> tuple[nn.Module, nn.Module]:
    """The model and its new last layer, an identity for no classes."""
    model = torchvision.models.get_model(backbone, weights=None)
    if frozen:
        for parameter in model.parameters():
            parameter.requires_grad = False
    parent, name = (model, "fc") if hasattr(model, "fc") else (model.classifier, "-1")
    old = parent.fc if name == "fc" else parent[-1]
    new = nn.Linear(old.in_features, num_classes) if num_classes else nn.Identity()
    if name == "fc":
        model.fc = new
    else:
        model.classifier[-1] = new
    return model, new


def train(backbone: str, folder: Path, val: Path, epochs: int, *, frozen: bool) -> dict[str, float]:
    loader = load(folder, TRAIN_TRANSFORM, shuffle=True)
    val_loader = load(val, EVAL_TRANSFORM, shuffle=False)
    model, last = build(backbone, len(loader.dataset.classes), frozen=frozen)
    parameters = last.parameters() if frozen else model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.001, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    train_seconds = val_seconds = 0.0
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        running_loss = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item() * len(images)
        middle = time.perf_counter()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in val_loader:
                correct += int((model(images).argmax(1) == labels).sum().item())
        train_seconds += middle - start
        val_seconds += time.perf_counter() - middle
    return {
        "train_images": len(loader.dataset) * epochs,
        "train_seconds": train_seconds,
        "val_images": len(val_loader.dataset) * epochs,
        "val_seconds": val_seconds,
    }


def embed(backbone: str, folder: Path, output: Path) -> dict[str, float]:
    loader = load(folder, EVAL_TRANSFORM, shuffle=False)
    model, _ = build(backbone, 0, frozen=False)
    start = time.perf_counter()
    model.eval()
    features = []
    with torch.no_grad():
        for images, _ in loader:
            features.append(model(images).numpy())
    np.save(output, np.concatenate(features))
    return {"images": len(loader.dataset), "seconds": time.perf_counter() - start}


def main() -> None:
    """Do one of the three and print its times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=("probe", "finetune", "embed"))
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--train", type=Path, required=True, help="the images to embed as well")
    parser.add_argument("--val", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--output", type=Path, help="of embed: a .npy file")
    given = parser.parse_args()
    if given.work == "embed":
        times = embed(given.backbone, given.train, given.output)
    else:
        frozen = given.work == "probe"
        times = train(given.backbone, given.train, given.val, given.epochs, frozen=frozen)
    sys.stdout.write(json.dumps(times) + "\n")


if __name__ == "__main__":
    main()
