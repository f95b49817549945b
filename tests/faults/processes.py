"""Real processes of vtrain, started within milliseconds, and what is left of them."""

import atexit
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.faults.command import BEGUN, Command, run

# Before torch is loaded here or there: the networks are tiny.
os.environ.setdefault("OMP_NUM_THREADS", "1")
TIMEOUT = 120.0


class Running:
    """A command that was started; it leads a session and a process group of its own."""

    def __init__(self, process: Any, output: Path) -> None:
        self._process = process
        self._output = output

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return int(self._process.pid)

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self._process.exitcode is None

    @property
    def has_begun(self) -> bool:
        """Whether vtrain itself has the word, which takes a fork some milliseconds."""
        return (self._output.parent / BEGUN).exists()

    def text(self) -> str:
        """What it has printed so far, both streams together."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit code, negative after a signal.

        Raises:
            AssertionError: it does not end.
        """
        self._process.join(timeout)
        assert not self.is_running, f"still running after {timeout:g} s: {self.text()}"
        return int(self._process.exitcode)

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        """Wait until something has happened, or the command has ended."""
        deadline = time.monotonic() + TIMEOUT
        while self.is_running and not happened():
            assert time.monotonic() < deadline, f"{what} did not happen: {self.text()}"
            time.sleep(0.005)

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the command, or to all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def others(self) -> list[int]:
        """Processes of its session that still run, besides itself."""
        return [pid for pid in _session_members(self.pid) if pid != self.pid]

    def require_no_others(self, seconds: float = 5.0) -> None:
        """Raise AssertionError if some of its processes outlive it for longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while others := self.others():
            assert time.monotonic() < deadline, f"still running: {others}"
            time.sleep(0.02)


@contextmanager
def started(command: Command) -> Iterator[Running]:
    """Start a command; nothing of it outlives the context."""
    folder = Path(tempfile.mkdtemp(prefix="vtrain-output-"))
    process = _context().Process(target=run, args=(command, folder / "output"))
    process.start()
    running = Running(process, folder / "output")
    try:
        yield running
    finally:
        for pid in _session_members(running.pid):
            _kill(pid)
        process.kill()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)


def run_to_end(command: Command) -> tuple[int, str]:
    """Exit code and output of a command."""
    with started(command) as running:
        code = running.wait()
        running.require_no_others()
        return code, running.text()


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.command"])
    return context


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _session_members(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in ("Z", "X"):
            found.append(int(folder.name))
    return found


def make_shared_folder(name: str) -> Path:
    """A folder that lasts until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"vtrain-{name}-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not at the end of a fork of this process
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
