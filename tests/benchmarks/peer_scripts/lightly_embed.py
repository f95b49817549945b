"""lightly-train's embedding of a folder of images with a torchvision ResNet-18.

    python lightly_embed.py FOLDER OUTPUT_FOLDER

It embeds with a checkpoint of its own only, so that one is made first by a step of pretraining,
which is not timed. Prints one line of JSON: seconds of the embedding and images.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import lightly_train
import numpy as np
from PIL import Image

MODEL = "torchvision/resnet18"


def draw_noise(folder: Path) -> Path:
    """Images for the step of pretraining."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(16):
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def main() -> None:
    """Make the checkpoint, then embed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    trained = given.output / "trained"
    lightly_train.pretrain(
        out=trained,
        data=draw_noise(given.output / "noise"),
        model=MODEL,
        method="simclr",
        epochs=1,
        batch_size=8,
        num_workers=0,
        accelerator="cpu",
    )
    start = time.perf_counter()
    lightly_train.embed(
        out=given.output / "embeddings.pt",
        data=given.folder,
        checkpoint=trained / "checkpoints/last.ckpt",
        batch_size=32,
        num_workers=2,
        accelerator="cpu",
    )
    seconds = time.perf_counter() - start
    images = len(list(given.folder.rglob("*.jpg")))
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "images": images}) + "\n")


if __name__ == "__main__":
    main()
