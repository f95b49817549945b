"""How far two finished runs are apart.

    python -m tests.benchmarks.compare_runs RUN RUN

Prints one line of JSON: largest absolute difference of the best and of the last weights, rows of
predictions-val.csv with another class, names of metrics that differ, and both numbers of steps.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.benchmarks.measure import read_metrics
from vtrain.runs.checkpoint import load_checkpoint

METRICS = ("train_loss", "val_loss", "val_top1", "val_macro_f1")


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Over all tensors; both have the same names."""
    if first.keys() != second.keys():
        raise SystemExit(f"other tensors: {sorted(first.keys() ^ second.keys())}")
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def read_classes(run_dir: Path) -> list[tuple[str, str]]:
    """Path and predicted class of each validation image."""
    with (run_dir / "predictions-val.csv").open(encoding="utf-8", newline="") as stream:
        return [(row["path"], row["prediction"]) for row in csv.DictReader(stream)]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs=2, type=Path)
    runs = parser.parse_args().runs
    rows = [read_classes(run) for run in runs]
    if [path for path, _ in rows[0]] != [path for path, _ in rows[1]]:
        raise SystemExit("other images")
    epochs = [read_metrics(run) for run in runs]
    pairs = list(zip(*epochs, strict=True))
    found = {
        "best": largest_difference(*(load_file(run / "model.safetensors") for run in runs)),
        "last": largest_difference(*(load_checkpoint(run / "last.ckpt").model for run in runs)),
        "classes_differ": sum(a != b for a, b in zip(*rows, strict=True)),
        "count": len(rows[0]),
        "metrics_differ": [name for name in METRICS if any(a[name] != b[name] for a, b in pairs)],
        "steps": [metrics[-1]["step"] for metrics in epochs],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
