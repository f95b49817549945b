"""Runs the command line: `python -m vtrain`."""

import atexit
import gc
import os
import sys
import threading
from typing import NoReturn

from vtrain.system.signals import (
    build_stop_error,
    end_children,
    exit_on_stop_signals,
    raise_on_stop_signals,
)

EXIT_SECONDS = 3.0  # for exit handlers, when everything has been written


def run() -> NoReturn:
    """Run a command and end the process with its exit code.

    Python takes a second to tear torch's modules down one by one. After its exit handlers have run
    and its output is out, nothing is left to do: the process ends there.
    """
    raise_on_stop_signals()
    # A seventh of the start: looking for plugins of pydantic among all packages, which would run
    # code of theirs, and for garbage among objects that are here to stay.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.set_threshold(20_000)
    try:
        from vtrain.cli import main

        code = main()
    except KeyboardInterrupt as error:  # while the command line is loaded, or as it ends
        code = int(build_stop_error(error, "stopped").exit_code)
    exit_on_stop_signals(code)
    if "torch" not in sys.modules:
        sys.exit(code)
    from vtrain.system.terminal import flush_output

    flush_output()
    # One that waits for a disk that does not answer would be waited for, for ever.
    end_children()
    threading.Timer(EXIT_SECONDS, os._exit, [code]).start()
    atexit._run_exitfuncs()
    flush_output()
    os._exit(code)


if __name__ == "__main__":
    run()
