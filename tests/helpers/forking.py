"""Child processes that start in milliseconds, because they begin as a copy of this one."""

import os
import warnings
from collections.abc import Callable


def fork(work: Callable[[], object]) -> int:
    """Start a child that does `work` and ends with 0, or 1 after an exception; its process id."""
    with warnings.catch_warnings():
        # Python 3.12 warns of other threads; theirs (torch's, the test runner's) hold nothing here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Wait for a child; its exit code, below zero for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
