"""timm's loader, model, optimiser and step with its best flags for a CPU, as its train.py does.

    python timm_train.py --backbone resnet18 --train FOLDER
    python timm_train.py --backbone resnet50 --in-memory --batch-size 256 --device cuda

Channels last, autocast in bf16. `--in-memory` leaves the loader out and takes random images that
are on the device already. Prints one line of JSON: images per second of the last epoch.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.utils import dispatch_clip_grad

STEPS = 30  # of one epoch in memory


def build_loader(folder: Path, batch_size: int, device: torch.device) -> Any:
    """timm's own; its augmentation is reduced to random crop and flip."""
    dataset = create_dataset("", root=str(folder))
    return create_loader(
        dataset,
        input_size=(3, 224, 224),
        batch_size=batch_size,
        is_training=True,
        scale=(0.5, 1.0),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=4,
        device=device,
    )


def run_epoch(
    model: Any, optimizer: Any, batches: Iterable[Any], device: torch.device, clip: float | None
) -> int:
    """One pass; the number of images."""
    loss_function = torch.nn.CrossEntropyLoss()
    images_seen = 0
    model.train()
    for images, labels in batches:
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_function(model(images), labels.to(device))
        loss.backward()
        if clip is not None:
            dispatch_clip_grad(model.parameters(), value=clip)
        optimizer.step()
        optimizer.zero_grad()
        images_seen += len(images)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images_seen


def main() -> None:
    """Train for some epochs and print the rate of the last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--clip-norm", type=float)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.backbone.startswith("mobilenet_v3"):
        given.backbone = "mobilenetv3_small_100"
    model = timm.create_model(given.backbone, num_classes=5)
    model.to(device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        model, opt=given.optimizer, lr=0.001, momentum=0.9, weight_decay=2e-5
    )
    if given.compile:
        model = torch.compile(model)
    if given.in_memory:
        images = torch.randn(given.batch_size, 3, 224, 224, device=device)
        labels = torch.randint(5, (given.batch_size,), device=device)
        batches: Any = [(images, labels)] * STEPS
    else:
        batches = build_loader(given.train, given.batch_size, device)
    rate = 0.0
    for _ in range(given.epochs):
        start = time.perf_counter()
        count = run_epoch(model, optimizer, batches, device, given.clip_norm)
        rate = count / (time.perf_counter() - start)
    sys.stdout.write(json.dumps({"rate": rate, "timm": timm.__version__}) + "\n")


if __name__ == "__main__":
    main()
