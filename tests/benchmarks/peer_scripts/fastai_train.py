"""fastai's learner on a folder with train/ and val/: one frozen epoch, then one of everything.

    python fastai_train.py FOLDER

Random weights, fastai's defaults otherwise (images of 224 px). Prints one line of JSON: seconds of
an epoch with its validation, and training images.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from fastai.vision.all import ImageDataLoaders, Resize, accuracy, resnet18, vision_learner


def main() -> None:
    """Time both epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    loaders = ImageDataLoaders.from_folder(
        given.folder, valid="val", item_tfms=Resize(224), bs=given.batch_size, num_workers=2
    )
    learner = vision_learner(loaders, resnet18, pretrained=False, metrics=accuracy)
    seconds = {}
    with learner.no_bar(), learner.no_logging():
        for name, prepare in (("freeze", learner.freeze), ("finetune", learner.unfreeze)):
            prepare()
            start = time.perf_counter()
            learner.fit_one_cycle(1)
            seconds[name] = time.perf_counter() - start
    counts = {"images": len(loaders.train_ds), "val_images": len(loaders.valid_ds)}
    sys.stdout.write(json.dumps({**seconds, **counts}) + "\n")


if __name__ == "__main__":
    main()
