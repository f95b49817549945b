"""What decoders say of damaged files, kept off the terminal while images are read."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial


class _WhileUsed:
    """Enters a context that changes the whole process while at least one thread is in it.

    Overlapping uses in threads would restore each other's state; here the first one in saves it
    and the last one out restores it.
    """

    def __init__(self, build: Callable[[], AbstractContextManager[object]]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._depth = 0
        self._entered = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._entered.enter_context(self._build())
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._entered.close()


@contextmanager
def _send_stderr_nowhere() -> Iterator[None]:
    """Send file descriptor 2 nowhere: libtiff itself writes there what is wrong with a file.

    That would come between the lines of a progress bar and without a name; the exception that
    follows says it again.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # a service may have closed it
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # not a path of ours
                os.dup2(nowhere.fileno(), 2)
        yield


NO_WARNINGS = _WhileUsed(partial(warnings.catch_warnings, action="ignore"))
# What Pillow logs as an error would come out on stderr for want of a handler.
logging.getLogger("PIL").addHandler(logging.NullHandler())
NO_STDERR = _WhileUsed(_send_stderr_nowhere)
