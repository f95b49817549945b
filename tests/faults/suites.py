"""The suites by their names in the table, and where their cases are made."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from tests.faults.case import Case


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases of one kind.

    `module` has `cases(full: bool) -> Iterator[Case]`: all that the target asks for, or with
    `full=False` what the default test run can afford. `limit` is the most seconds that one case
    may take in the table; tests measure no time.
    """

    key: str
    title: str
    module: str
    limit: float | None = None

    def cases(self, *, full: bool) -> Iterator[Case]:
        """Make the cases; those with the same name are the same in both forms."""
        return cast(Iterator[Case], import_module(self.module).cases(full))


SUITES: dict[str, Suite] = {
    suite.key: suite
    for suite in (
        Suite("R1", "killed or failing I/O at every call of a save", "tests.faults.saving"),
        Suite("R2", "one flipped bit in a checkpoint or model file", "tests.faults.bit_flips"),
        Suite("R3", "hostile or damaged files", "tests.faults.hostile_files", limit=2.0),
        Suite("R4", "image kinds, the same in every command", "tests.faults.image_kinds"),
        Suite("R5", "mutated images", "tests.faults.mutated_images"),
        Suite("R6", "wrong configs", "tests.faults.wrong_configs", limit=0.35),
        Suite("R6f", "mutated configs", "tests.faults.mutated_configs"),
        Suite("R7", "folders with surprises", "tests.faults.folders"),
        Suite("R7n", "hostile class and file names", "tests.faults.names"),
        Suite("R8", "a machine that lacks something", "tests.faults.resources"),
        Suite(
            "R9", "signals anywhere in a run: saved within 10 s, same bits", "tests.faults.stops"
        ),
        Suite("R12", "folders, lists, rows and moves as people have them", "tests.faults.doors"),
        Suite("E5", "kill -9 of training, then resume: same bits", "tests.faults.kills"),
    )
}
