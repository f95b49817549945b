"""How many of 20 planted label errors `vtrain suspects` ranks among its first 40.

    python -m tests.benchmarks.suspects [--seeds 3] [--epochs N] [CASE ...]

Needs `../shared` (photographs, SqueezeNet weights). In a temporary folder the training images are
linked into folders of classes, 20 of them into a wrong one; a model is trained on that, and its run
is asked for suspect labels. What is ranked high and was not planted is named: some of it is wrong
in the data themselves.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARED = Path("../shared").resolve()
WEIGHTS = SHARED / "weights/squeezenet1_0-imagenet.pth"
PLANTED = 20
LOOKED_AT = 40
TARGET = 15


@dataclass(frozen=True, slots=True)
class Case:
    """A data set and a freeze policy."""

    name: str
    data: str
    freeze: str


CASES = (
    Case("flowers-head", "flowers", "head"),
    Case("flowers-lp-ft", "flowers", "lp-ft"),
    Case("digits-head", "sign-digits", "head"),
    Case("digits-lp-ft", "sign-digits", "lp-ft"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """Planted errors among the first 20 and 40, right suggestions, seconds, and what else is."""

    first20: int
    first40: int
    suggested: int
    seconds: float
    others: tuple[str, ...]


def plant(source: Path, target: Path, *, seed: int) -> dict[str, str]:
    """Link a data set with planted errors; the true class of each that is planted, by its path."""
    draw = random.Random(seed)
    images = sorted(path for path in (source / "train").glob("*/*") if path.is_file())
    classes = sorted({path.parent.name for path in images})
    chosen = set(draw.sample(images, PLANTED))
    planted = {}
    for image in images:
        truth = image.parent.name
        label = draw.choice([each for each in classes if each != truth])
        link = target / "train" / (label if image in chosen else truth) / f"{truth}-{image.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image)
        if image in chosen:
            planted[str(link)] = truth
    (target / "val").symlink_to(source / "val")
    return planted


def run(*arguments: str | Path) -> str:
    """Run vtrain; its stdout."""
    command = [sys.executable, "-m", "vtrain", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(case: Case, seed: int, epochs: int | None) -> Found:
    """Plant, train, and look for what was planted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = plant(SHARED / "data" / case.data, folder, seed=seed)
        config = folder / "config.yaml"
        content = {
            "model": {"backbone": "squeezenet1_0", "weights": str(WEIGHTS)},
            "data": {"train": str(folder / "train"), "val": str(folder / "val")},
        }
        config.write_text(json.dumps(content), encoding="utf-8")  # which is YAML as well
        settings = [f"run_dir={folder / 'run'}", f"freeze={case.freeze}", f"seed={seed}"]
        if epochs is not None:
            settings.append(f"train.epochs={epochs}")
        run("fit", config, "-q", *settings)
        start = time.perf_counter()
        table = run("suspects", folder / "run", "--csv", "-q", "--top", str(LOOKED_AT))
        return count_found(planted, table, time.perf_counter() - start)


def count_found(planted: dict[str, str], table: str, seconds: float) -> Found:
    """What of the planted errors is in the CSV that `vtrain suspects` printed."""
    rows = list(csv.DictReader(table.splitlines()))
    hits = [row for row in rows if row["path"] in planted]
    return Found(
        first20=sum(int(row["rank"]) <= 20 for row in hits),
        first40=len(hits),
        suggested=sum(row["suggested"] == planted[row["path"]] for row in hits),
        seconds=seconds,
        others=tuple(
            f"{row['rank']:>2} {Path(row['path']).name}: {row['label']}, or {row['suggested']}?"
            for row in rows
            if row["path"] not in planted
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case asked for and print one line for each seed, as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(c.name for c in CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None, help="fewer than the default")
    parser.add_argument("--others", action="store_true", help="name what was not planted as well")
    given = parser.parse_args(arguments)
    if not WEIGHTS.exists():
        sys.exit(f"{WEIGHTS} is absent: these figures need the shared photographs and weights")
    sys.stdout.write(f"planted errors of {PLANTED}, target {TARGET} in the first {LOOKED_AT}\n")
    sys.stdout.write("case           seed  in 20  in 40  suggestion right  seconds\n")
    for case in CASES:
        if given.cases and case.name not in given.cases:
            continue
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            found = measure(case, seed, given.epochs)
            sys.stdout.write(
                f"{case.name:14s} {seed:4d}  {found.first20:5d}  {found.first40:5d}"
                f"  {found.suggested:16d}  {found.seconds:7.1f}\n"
            )
            if given.others:
                sys.stdout.write("".join(f"    {each}\n" for each in found.others))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
