"""The faults that were tried and those that were handled, as rows of a Markdown table.

    python -m tests.faults [NAME ...] [--quick] [--out FILE]

Ends with 1 where a case was not handled; what happened there is listed below the table.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.case import Case, NotPossible
from tests.faults.suites import SUITES, Suite
from tests.helpers.output import say

TABLE_HEAD = (
    "| # | faults | handled / tried | not possible here | slowest case |\n|---|---|---|---|---|"
)


@dataclass(slots=True)
class Tally:
    """What became of the cases of a suite."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)
    not_possible: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def row(self, suite: Suite) -> str:
        """One row of the table."""
        handled = self.tried - len(self.failures)
        limit = "" if suite.limit is None else f" (limit {suite.limit:g} s)"
        return (
            f"| {suite.key} | {suite.title} | {handled} / {self.tried} | "
            f"{len(self.not_possible)} | {self.slowest:.2f} s{limit} |"
        )


def main() -> None:
    """Run the suites that were asked for, or all."""
    given = parse()
    say(TABLE_HEAD, given.out)
    notes = []
    failed = False
    for name in given.names or list(SUITES):
        tally = run(SUITES[name], full=not given.quick)
        say(tally.row(SUITES[name]), given.out)
        failed |= bool(tally.failures)
        notes += [f"- {name} not handled: {each}" for each in tally.failures]
        notes += [f"- {name} not possible here: {each}" for each in tally.not_possible]
    if notes:
        say("\n".join(["", *notes]), given.out)
    sys.exit(1 if failed else 0)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="what the default test run tries")
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows are appended to it as well")
    given = parser.parse_args()
    unknown = set(given.names) - set(SUITES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SUITES)}")
    return given


def run(suite: Suite, *, full: bool) -> Tally:
    """Try every case of a suite, each in an empty folder."""
    tally = Tally()
    for case in suite.cases(full=full):
        try:
            seconds = measure(case, suite.limit)
        except NotPossible as reason:
            tally.not_possible.append(f"{case.name}: {reason}")
            continue
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            tally.failures.append(f"{case.name}: {text:.500}")
            seconds = 0.0
        tally.tried += 1
        tally.slowest = max(tally.slowest, seconds)
        if suite.limit is not None and seconds > suite.limit:
            tally.failures.append(f"{case.name}: took {seconds:.2f} s")
    return tally


def measure(case: Case, limit: float | None) -> float:
    """Seconds that a case takes: of three tries the one in the middle, if the first is too slow.

    Other processes on the machine can stop any single try.
    """
    seconds = [try_once(case)]
    if limit is not None and seconds[0] > limit:
        seconds += [try_once(case), try_once(case)]
    return statistics.median(seconds)


def try_once(case: Case) -> float:
    """Seconds that a case takes in an empty folder."""
    folder = Path(tempfile.mkdtemp(prefix="vtrain-fault-"))
    started = time.perf_counter()
    try:
        case.handle(folder)
    finally:
        seconds = time.perf_counter() - started
        shutil.rmtree(folder, ignore_errors=True)
    return seconds


if __name__ == "__main__":
    main()
