"""All benchmarks: what this machine can run, as rows of a Markdown table.

    python -m tests.benchmarks [NAME ...] [--rounds 3] [--quick] [--out FILE] [--peers FOLDER]
    python -m tests.benchmarks peers --venv FOLDER

Each row has both sides' median and spread over alternated rounds, what is held against the target,
and the command that gives it again. `--peers` names an environment with other tools, which
`peers --venv` makes. Accuracy has a command of its own: `python -m tests.benchmarks.accuracy`.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import (
    cold,
    embedding,
    exactness,
    finetune,
    gpu,
    memory,
    peers,
    probe,
    processes,
    scan,
    startup,
)
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.measure import TABLE_HEAD, NotRunError, Row, Settings
from tests.helpers.output import say

BENCHMARKS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "S1": probe.benchmark,
    "S2": finetune.benchmark_s2,
    "S3": finetune.benchmark_s3,
    "S4": embedding.benchmark_s4,
    "S5": embedding.benchmark_s5,
    "S6": cold.benchmark,
    "S7": startup.benchmark,
    "S8": scan.benchmark,
    "S9": memory.benchmark,
    "S10": processes.benchmark,
    "E2": exactness.benchmark_e2,
    "E6": exactness.benchmark_e6,
    "peers": peers.benchmark,
    "gpu": gpu.benchmark,
}


def main() -> None:
    """Run what was asked for; ends with 1 where nothing of it could be run."""
    # Ends the process that is measured, and removes what was written, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given = parse()
    if given.venv is not None:
        peers.create_venv(given.venv.absolute())
        return
    settings = Settings(
        folder=Path(),
        rounds=1 if given.quick else given.rounds,
        quick=given.quick,
        peers=given.peers.absolute() if given.peers else None,
    )
    say(f"{describe_machine(settings)}\n\n{TABLE_HEAD}", given.out)
    names = given.names or list(BENCHMARKS)
    not_run = {}
    for name in names:
        if reason := run(name, settings, given.out):
            not_run[name] = reason
    lines = [f"- {name}: {' '.join(reason.split())}" for name, reason in not_run.items()]
    if lines:
        say("\n".join(["", "Not run, or not all of it:", "", *lines]), given.out)
    if len(not_run) == len(names) == 1:
        sys.exit(1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="smallest form, to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows are appended to it as well")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="environment of other tools")
    parser.add_argument("--venv", type=Path, metavar="FOLDER", help="make that environment")
    given = parser.parse_args()
    unknown = set(given.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    return given


def run(name: str, settings: Settings, out: Path | None) -> str | None:
    """Give a benchmark's rows as they come; why some are missing, None if none is."""
    with tempfile.TemporaryDirectory(prefix="vtrain-benchmark-") as folder:
        try:
            for row in BENCHMARKS[name](replace(settings, folder=Path(folder))):
                say(row.markdown(), out)
        except NotRunError as error:
            return str(error)
    return None


if __name__ == "__main__":
    main()
