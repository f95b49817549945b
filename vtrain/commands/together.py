"""Commands that several processes run together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from vtrain.errors import DivergedError, InterruptedRunError, StoppedError


@contextmanager
def told_once(group: Any) -> Iterator[None]:
    """Leave it to rank 0, and to the process that failed alone, to tell what went wrong."""
    from vtrain.distributed import PeerFailedError

    common = (PeerFailedError, StoppedError, InterruptedRunError, DivergedError)

    try:
        yield
    except common as error:
        if group.is_main:
            raise
        raise typer.Exit(int(error.exit_code)) from None
