"""What the benchmarks share: processes with their time and memory, alternated rounds, result rows.

Nothing heavy is imported here: what is measured runs in processes of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VTRAIN: tuple[str | Path, ...] = (sys.executable, "-m", "vtrain")
SUITE = "python -m tests.benchmarks"
ERROR_LINES = 3  # of what a failed process said, the last are quoted


class NotRunError(Exception):
    """A benchmark cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a benchmark is run.

    `folder` is an empty temporary folder; `peers` a virtual environment with other tools, None
    where there is none; `quick` takes the smallest form, whose figures mean nothing.
    """

    folder: Path
    rounds: int = 3
    quick: bool = False
    peers: Path | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended: seconds of all of it, and the largest resident set in its tree (MB)."""

    seconds: float
    peak_mb: float
    stdout: str
    stderr: str
    code: int

    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        return dict(json.loads(self.stdout.strip().splitlines()[-1]))


@dataclass(frozen=True, slots=True)
class Sample:
    """The values of one quantity over the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def text(self, unit: str) -> str:
        """Median and spread, such as `2.31 s (2.20 to 2.50)`."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:.3g} {unit} ({low:.3g} to {high:.3g})"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure to reach: at least or at most `value`."""

    value: float
    at_least: bool
    unit: str = "×"

    def met(self, found: float) -> bool:
        """Whether `found` is good enough."""
        return found >= self.value if self.at_least else found <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the results; `found` is what is held against the goal."""

    target: str
    what: str
    ours: str
    others: str
    found: float | None
    goal: Goal | None
    command: str

    def markdown(self) -> str:
        """The line of a table with the columns of `TABLE_HEAD`."""
        unit = "×" if self.goal is None else self.goal.unit
        found = "-" if self.found is None else f"{self.found:.3g} {unit}"
        reached = "-"
        if self.goal is not None and self.found is not None:
            reached = "yes" if self.goal.met(self.found) else "**no**"
        cells = (self.target, self.what, self.ours, self.others, found)
        goal = "-" if self.goal is None else str(self.goal)
        safe = [cell.replace("|", "/").replace("\n", " ") for cell in (*cells, goal, reached)]
        return f"| {' | '.join(safe)} | `{self.command}` |"


TABLE_HEAD = (
    "| target | what | vtrain | other side | found | to reach | reached | command |\n"
    "|---|---|---|---|---|---|---|---|"
)


def suite_command(name: str, settings: Settings) -> str:
    """What to type to get the rows of one benchmark again."""
    peers = f" --peers {settings.peers}" if settings.peers else ""
    return f"{SUITE} {name} --rounds {settings.rounds}{' --quick' if settings.quick else ''}{peers}"


def run_process(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
    limit: float = 7200,
) -> Finished:
    """Run a command in the repository's root and wait for it; killed after `limit` seconds.

    Raises:
        NotRunError: it cannot be started, or failed and `check` is set.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                words, cwd=ROOT, stdout=out, stderr=err, env={**os.environ, **(environment or {})}
            )
        except OSError as error:
            raise NotRunError(f"{words[0]}: {error}") from error
        timer = threading.Timer(limit, process.kill)
        timer.start()
        try:
            # Popen.wait() does not tell the memory. It is the maximum over the child and those
            # that it waited for, not their sum.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        peak_mb = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        out.seek(0)
        err.seek(0)
        done = Finished(seconds, peak_mb, out.read(), err.read(), code)
    if check and code != 0:
        said = " / ".join(done.stderr.strip().splitlines()[-ERROR_LINES:])
        raise NotRunError(f"`{' '.join(words)}` ended with {code}: {said}")
    return done


def run_module(
    module: str,
    arguments: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a module of this folder with this interpreter."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
    return run_process(command, environment=environment)


def alternate(
    sides: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int
) -> dict[str, dict[str, Sample]]:
    """Measure the sides in turn, every other round in reverse: `result[side][quantity]`."""
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    order = list(sides)
    for number in range(rounds):
        for name in order if number % 2 == 0 else reversed(order):
            found[name].append(sides[name]())
    return {
        name: {quantity: Sample(tuple(values[quantity] for values in rows)) for quantity in rows[0]}
        for name, rows in found.items()
    }


def fit_command(config: Path, run_dir: Path, *settings: str) -> list[str | Path]:
    """`vtrain fit` of a config into a folder, with further `key=value` settings."""
    return [*VTRAIN, "fit", config, "-q", f"run_dir={run_dir}", *settings]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The epochs of a run."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_config(path: Path, *, train: Path, val: Path, backbone: str, weights: str) -> Path:
    """A config with random or given weights; everything else is left to the defaults."""
    # A JSON string is a YAML string, whatever stands in the path.
    path.write_text(
        f"model: {{backbone: {backbone}, weights: {json.dumps(weights)}}}\n"
        f"data: {{train: {json.dumps(str(train))}, val: {json.dumps(str(val))}}}\n",
        encoding="utf-8",
    )
    return path


def draw_weights(settings: Settings, backbone: str) -> str:
    """The path of a file with random weights; a frozen backbone without one is refused."""
    path = settings.folder / f"{backbone}.pth"
    if not path.exists():
        run_module("random_weights", [backbone, path])
    return str(path)


def has_setting(section: str, key: str) -> bool:
    """Whether the config knows `section.key`."""
    schema = json.loads(run_process([*VTRAIN, "schema"]).stdout)
    part = schema["properties"][section]["$ref"].rpartition("/")[2]
    return key in schema["$defs"][part]["properties"]
