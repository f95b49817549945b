"""Time of whole processes that should answer at once: help and a config error (target S7).

    python -m tests.benchmarks.startup [--rounds 10]

The commands take turns with an empty Typer app; median and spread are printed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks.measure import (
    VTRAIN,
    Goal,
    Row,
    Sample,
    Settings,
    alternate,
    run_process,
    suite_command,
)

EMPTY_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
WRONG_CONFIG = "model: {backbone: resnet5}\nfreeze: until:layr3\noptim: {lrr: 1}\n"
EMPTY_NAME = "empty Typer app --help"
GOALS = {"vtrain --help": 0.25, "vtrain fit wrong.yaml": 0.35}
ROUNDS = 10  # one takes a second


def benchmark(settings: Settings) -> Iterator[Row]:
    """Whole processes, each against an empty Typer app, and other tools where they are."""
    rounds = settings.rounds if settings.quick else max(settings.rounds, ROUNDS)
    times = measure(settings.folder, rounds, settings.peers)
    command = suite_command("S7", settings)
    empty = times.pop(EMPTY_NAME)
    for name, sample in times.items():
        own = name.startswith("vtrain")
        goal = Goal(GOALS[name], at_least=False, unit="s") if name in GOALS else None
        yield Row(
            "S7",
            f"`{name}`, whole process; other side: {EMPTY_NAME if own else 'this tool'}",
            sample.text("s") if own else times["vtrain --help"].text("s"),
            empty.text("s") if own else sample.text("s"),
            sample.median if goal else sample.median / times["vtrain --help"].median,
            goal,
            command,
        )


def measure(folder: Path, rounds: int, peers: Path | None) -> dict[str, Sample]:
    """Seconds of each command by its name; a first round, which warms the caches, is left out."""
    config = folder / "wrong.yaml"
    config.write_text(WRONG_CONFIG, encoding="utf-8")
    installed = Path(sys.executable).with_name("vtrain")
    vtrain = [str(installed)] if installed.exists() else [*VTRAIN]
    commands = {
        EMPTY_NAME: [sys.executable, "-c", EMPTY_APP, "--help"],
        "vtrain --help": [*vtrain, "--help"],
        "vtrain fit --help": [*vtrain, "fit", "--help"],
        "vtrain fit wrong.yaml": [*vtrain, "fit", str(config)],
    }
    if peers is not None:
        commands["yolo help"] = [str(peers / "bin/yolo"), "help"]
        commands["lightly-train --help"] = [str(peers / "bin/lightly-train"), "--help"]
    sides = {name: partial(run_once, command) for name, command in commands.items()}
    alternate(sides, 1)
    found = alternate(sides, rounds)
    return {name: quantities["whole"] for name, quantities in found.items()}


def run_once(command: list[str]) -> dict[str, float]:
    """Seconds of one run of `command`, whatever it ends with."""
    return {"whole": run_process(command, check=False).seconds}


def main() -> None:
    """Alternate the commands and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), rounds, None)
    for name, sample in times.items():
        sys.stdout.write(f"{name:24s} median {sample.text('s')}\n")


if __name__ == "__main__":
    main()
