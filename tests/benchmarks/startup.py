"""Time of whole processes that should answer at once: help and a config error (target S7).

    python -m tests.benchmarks.startup [--rounds 10]

The commands take turns with an empty Typer app; median and spread are printed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
WRONG_CONFIG = "model: {backbone: resnet5}\nfreeze: until:layr3\noptim: {lrr: 1}\n"


def measure(command: list[str]) -> float:
    """Seconds of one run of `command`."""
    start = time.perf_counter()
    subprocess.run(command, check=False, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Alternate the commands and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "wrong.yaml"
        config.write_text(WRONG_CONFIG, encoding="utf-8")
        vtrain = str(Path(sys.executable).with_name("vtrain"))
        commands = {
            "empty Typer app --help": [sys.executable, "-c", EMPTY_APP, "--help"],
            "vtrain --help": [vtrain, "--help"],
            "vtrain fit --help": [vtrain, "fit", "--help"],
            "vtrain fit wrong.yaml": [vtrain, "fit", str(config)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, command in commands.items():
                times[name].append(measure(command))
    for name, found in times.items():
        counted = found[1:]  # the first round warms the caches
        sys.stdout.write(
            f"{name:24s} median {statistics.median(counted):.3f} s "
            f"({min(counted):.3f} to {max(counted):.3f})\n"
        )


if __name__ == "__main__":
    main()
