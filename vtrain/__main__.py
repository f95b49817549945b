"""Runs the command line: `python -m vtrain`."""

import atexit
import os
import sys
from typing import NoReturn

from vtrain.cli import main
from vtrain.console import flush_output


def run() -> NoReturn:
    """Run a command and end the process with its exit code.

    Python takes a second to tear torch's modules down one by one. After its exit handlers have run
    and its output is out, nothing is left to do: the process ends there.
    """
    code = main()
    if "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()
    flush_output()
    os._exit(code)


if __name__ == "__main__":
    run()
