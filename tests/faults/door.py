"""What people bring to the door: what they have, what they type, what has to come of it."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.case import Case
from tests.faults.commands import run
from tests.helpers.program import Outcome

LEVELS = {"cat": 60, "dog": 190}  # two classes that any model can tell apart: dark and bright


def nothing(_folder: Path, _outcome: Outcome) -> None:
    """No further demands."""


@dataclass(frozen=True, slots=True)
class Door:
    """A situation and its expected outcome.

    `build` makes it in an empty folder, which `commands` then run in, one after the other, up to
    the first that does not end with 0. The last outcome has exit code `code`; what it printed, both
    streams joined and line ends taken for spaces, contains all of `said` and none of `unsaid`.
    `check` looks at what else there is.
    """

    name: str
    build: Callable[[], object]
    commands: Sequence[Sequence[str]]
    code: int = 0
    said: Sequence[str] = ()
    unsaid: Sequence[str] = ()
    check: Callable[[Path, Outcome], object] = nothing
    stdin: bytes = b""

    def case(self) -> Case:
        """The situation as a row of the table."""
        return Case(self.name, self._handle)

    def _handle(self, folder: Path) -> None:
        with chdir(folder):
            self.build()
            for command in self.commands:
                outcome = run(folder, *command, stdin=self.stdin)
                if outcome.code:
                    break
        told = " ".join(f"{outcome.out} {outcome.err}".split())
        assert outcome.code == self.code, f"exit {outcome.code}, expected {self.code}: {told}"
        assert "Traceback" not in told, told
        for each in self.said:
            assert each in told, f"{each!r} is not in: {told}"
        for each in self.unsaid:
            assert each not in told, f"{each!r} is in: {told}"
        with chdir(folder):
            try:
                self.check(folder, outcome)
            except AssertionError as error:
                where = traceback.format_exc(limit=-1)
                raise AssertionError(f"{error or where}; said: {told}") from error


def steps(*each: Callable[[], object]) -> Callable[[], None]:
    """Make several things, one after the other."""

    def make() -> None:
        for step in each:
            step()

    return make


def draw(level: int, seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Noise around a level of 0 to 255; no two seeds give the same image."""
    noise = np.random.default_rng([level, seed]).normal(level, 20, (*reversed(size), 3))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


def put(path: str | Path, level: int = 60, seed: int = 0) -> Path:
    """Draw an image, with the folders that lead to it, in the format of its suffix."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(level, seed).save(path)
    return path


def put_classes(root: str | Path, count: int = 6, seed: int = 0) -> None:
    """`root/cat` and `root/dog` with `count` PNGs each."""
    for name, level in LEVELS.items():
        for number in range(count):
            put(Path(root) / name / f"{number}.png", level, seed + number)


def write(path: str | Path, text: str | bytes) -> Path:
    """Write a file, with the folders that lead to it; text in UTF-8."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_fit(data: str, path: str | Path = "c.yaml", *, train: str = "", more: str = "") -> Path:
    """A config of a tiny training of one epoch; `data` and `train` are further keys of theirs."""
    return write(
        path,
        f"""\
model: {{backbone: simple_cnn, weights: none, options: {{width_mult: 0.25}}}}
freeze: none
data: {{image_size: 32, batch_size: 2, workers: 0, augment: none, {data}}}
train: {{epochs: 1, device: cpu, precision: fp32, report: false, {train}}}
{more}
""",
    )
