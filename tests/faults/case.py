"""One fault, and what it means that vtrain handles it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Case:
    """A fault to inject.

    `handle` gets an empty folder of its own and raises (AssertionError, or whatever comes out of
    vtrain) where what happens is not what is specified. `NotPossible` means that this machine
    cannot have the fault. A case neither depends on others nor on the working directory, and needs
    no network and no GPU.
    """

    name: str
    handle: Callable[[Path], None]


class NotPossible(Exception):  # noqa: N818
    """Raised by a case that cannot be tried here; the message says what it would need."""
