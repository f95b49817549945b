"""ultralytics' classification training with its own model on a folder with train/ and val/.

    python ultralytics_train.py FOLDER OUTPUT_FOLDER

Random weights, its defaults otherwise. Prints one line of JSON: seconds of the second epoch's
training part, and training images.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ultralytics import YOLO

MODEL = "yolo11n-cls.yaml"


def main() -> None:
    """Train for two epochs and time the second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    model = YOLO(MODEL, task="classify")
    times: list[float] = []
    starts: list[float] = []

    def begin(_: Any) -> None:
        starts.append(time.perf_counter())

    def end(_: Any) -> None:
        times.append(time.perf_counter() - starts[-1])

    model.add_callback("on_train_epoch_start", begin)
    model.add_callback("on_train_epoch_end", end)
    model.train(
        data=str(given.folder.resolve()),
        epochs=2,
        imgsz=224,
        batch=32,
        workers=2,
        device="cpu",
        pretrained=False,
        plots=False,
        project=str(given.output.resolve()),
        exist_ok=True,
    )
    images = len(list((given.folder / "train").rglob("*.jpg")))
    sys.stdout.write("\n" + json.dumps({"model": MODEL, "epoch": times[-1], "images": images}))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
