"""Validation accuracy with default settings on real photographs: targets A1, A2 and A3.

    python -m tests.benchmarks.accuracy [--seeds 3] [CASE ...]

Needs `../shared` (photographs, SqueezeNet weights). Each case is trained once a seed; the time is
that of the whole `fit` process. Runs are kept under `--runs` and an unfinished one is continued.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SHARED = Path("../shared")
WEIGHTS = SHARED / "weights/squeezenet1_0-imagenet.pth"


@dataclass(frozen=True, slots=True)
class Case:
    """One target: a data set, a freeze policy, and the top-1 to reach as a mean over the seeds."""

    name: str
    data: str
    freeze: str
    target: float


CASES = (
    Case("A1", "flowers", "head", 0.81),
    Case("A2", "flowers", "lp-ft", 0.86),
    Case("A3-head", "sign-digits", "head", 0.93),
    Case("A3-lp-ft", "sign-digits", "lp-ft", 0.985),
)


def train(case: Case, seed: int, runs: Path) -> tuple[float, float]:
    """Top-1 of the best model and seconds of the whole process, for one seed."""
    run_dir = runs / f"{case.name}-{seed}"
    data = SHARED / "data" / case.data
    config = runs / f"{case.data}.yaml"
    config.write_text(
        f"model: {{backbone: squeezenet1_0, weights: {WEIGHTS}}}\n"
        f"data: {{train: {data}/train, val: {data}/val}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "vtrain", "fit", str(config), "-q"]
    command += [f"run_dir={run_dir}", f"freeze={case.freeze}", f"seed={seed}"]
    if run_dir.exists():
        command.append("--resume")
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    return float(result["val_top1"]), seconds


def main() -> None:
    """Train every case asked for and print one line for each, as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="A1, A2, A3-head, A3-lp-ft")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    if not WEIGHTS.exists():
        sys.exit(f"{WEIGHTS} is absent: these figures need the shared photographs and weights")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if arguments.cases and case.name not in arguments.cases:
            continue
        found = [train(case, seed, arguments.runs) for seed in range(arguments.seeds)]
        accuracies, times = zip(*found, strict=True)
        sys.stdout.write(
            f"{case.name:9s} {case.data} freeze={case.freeze}: "
            f"mean {statistics.mean(accuracies):.4f} (target {case.target}), "
            f"seeds {', '.join(f'{value:.4f}' for value in accuracies)}, "
            f"median {statistics.median(times):.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
