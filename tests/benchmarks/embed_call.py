"""One call of `vtrain.results.embed.embed`, timed without the start of the process.

    python -m tests.benchmarks.embed_call FOLDER OUT.npy --model resnet18:none

Prints one line of JSON: images and seconds of the call, from the scan of the folder to the file.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from vtrain.results.embed import embed
from vtrain.runs.model_argument import load_model
from vtrain.system.machine import find_device
from vtrain.system.reporter import SILENT


def main() -> None:
    """Load the model, then embed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    model = load_model(given.model, device=find_device(), reporter=SILENT)
    start = time.perf_counter()
    result = embed(given.folder, given.output, model, batch_size=given.batch_size, reporter=SILENT)
    seconds = time.perf_counter() - start
    sys.stdout.write(json.dumps({"images": result.count, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
