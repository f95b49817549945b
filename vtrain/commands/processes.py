"""Commands that several processes run together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from vtrain.errors import DivergedError, InterruptedRunError, StoppedError

if TYPE_CHECKING:
    from vtrain.system.processes import Processes


@contextmanager
def reported_once(processes: "Processes") -> Iterator[None]:
    """Leave it to rank 0, and to a process that failed alone, to report what went wrong."""
    from vtrain.system.processes import PeerFailedError

    common = (PeerFailedError, StoppedError, InterruptedRunError, DivergedError)

    try:
        yield
    except common as error:
        if processes.is_main:
            raise
        raise typer.Exit(int(error.exit_code)) from None
