"""Signals that ask a command to end: when they act, and in which process."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vtrain.errors import InterruptedRunError, StoppedError
from vtrain.system.reporter import Reporter

# Ctrl-C; kill, and the end of a job's time; a terminal that closes; SLURM's early warning.
STOP_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
# Job schedulers kill 10 s and more after their first signal. A step that takes longer than this is
# given up: the last checkpoint is all that an exact resume needs.
GRACE_SECONDS = 7.0
# One event can send a signal twice: the kernel and the shell when a terminal closes, `timeout` to a
# process and to its group, torchrun what every process has got already. A second Ctrl-C is meant.
_ECHO_SECONDS = 2.0
_KEY_ECHO_SECONDS = 0.3
_GRACE_INTERVAL = 1.0
_PARENT_CHECK_SECONDS = 1.0

_arrived: list[signal.Signals] = []


class TerminatedError(KeyboardInterrupt):
    """What another signal than SIGINT raises, wherever the main thread is.

    As KeyboardInterrupt it passes through `except Exception`: nothing may take it for a damaged
    file.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def build_stop_error(
    number: signal.Signals | KeyboardInterrupt, message: str, hint: str | None = None
) -> StoppedError | InterruptedRunError:
    """The error that a signal ends a command with: exit code 130 after Ctrl-C, else 75."""
    if isinstance(number, KeyboardInterrupt):
        number = number.number if isinstance(number, TerminatedError) else signal.SIGINT
    kind = InterruptedRunError if number == signal.SIGINT else StoppedError
    return kind(message, hint)


def raise_on_stop_signals() -> None:
    """From now on each signal raises KeyboardInterrupt or TerminatedError in the main thread.

    Signals that the parent process has set to be ignored, as `nohup` does, stay so.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


def exit_on_stop_signals(code: int) -> None:
    """From now on a signal ends the process at once, with the exit code it was to have anyway."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(code))


def _raise(number: int, _: FrameType | None) -> NoReturn:
    _arrived.append(signal.Signals(number))
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise TerminatedError(signal.Signals(number))


class StopRequest:
    """Turns the first signal into a flag that a loop looks at, where its state is consistent.

    A second signal acts at once: it goes to the handlers that were there before. So does the time:
    `GRACE_SECONDS` after the first one they are called, and again each second, unless `finish` was.
    The same signal in the next two seconds is an echo of the first; Ctrl-C in the next 0.3 s.
    Use as a context manager in the main thread; elsewhere it does nothing.

    Args:
        reporter: is told of the first signal.
        once: whether Ctrl-C reaches this process once; with torchrun it does not.
    """

    def __init__(self, reporter: Reporter, *, once: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._once = once
        self._reporter = reporter
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
            if hasattr(signal, "SIGALRM"):
                self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
            if _arrived:
                # Raised earlier, and swallowed by code that catches everything.
                self._note(_arrived[0])
        return self

    def __exit__(self, *_: object) -> None:
        alarm = self._previous.pop(signal.SIGALRM, None) if hasattr(signal, "SIGALRM") else None
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if alarm is not None:  # last: until now a signal could start the clock
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)

    def finish(self) -> None:
        """Let what is being done take its time, such as the last save."""
        if self._previous and hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self._note(signal.Signals(number))
            self._reporter.say(
                f"{signal.Signals(number).name} received: finishing this step, then saving"
            )
        elif not self._is_echo(number):
            self._act(signal.Signals(number), frame)

    def _note(self, number: signal.Signals) -> None:
        self.received = number
        self._since = time.monotonic()
        if hasattr(signal, "SIGALRM"):
            # Again each second: what is raised in a destructor, for one, goes nowhere.
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS, _GRACE_INTERVAL)

    def _is_echo(self, number: int) -> bool:
        by_key = self._once and number == signal.SIGINT
        seconds = _KEY_ECHO_SECONDS if by_key else _ECHO_SECONDS
        return number == self.received and time.monotonic() - self._since < seconds

    def _give_up(self, _: int, frame: FrameType | None) -> None:
        assert self.received is not None
        self._act(self.received, frame)

    def _act(self, number: signal.Signals, frame: FrameType | None) -> None:
        previous = self._previous.get(number)
        if callable(previous):
            previous(int(number), frame)
        elif previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """For starting processes: until they are shielded, a signal for all must not act in them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_worker() -> None:
    """Leave signals for the whole process group to the parent, and end when it ends.

    To be called in a process that was started for a part of the work. A worker that such a signal
    kills makes its parent fail in the middle of a step that it would have finished and saved; one
    that outlives its parent holds on to the lock of the run.
    """
    if not hasattr(signal, "sigtimedwait"):  # not on Linux: SIGTERM alone ends this process
        for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from multiprocessing import parent_process  # not for commands that start no process

    parent = parent_process()
    if parent is not None:
        arguments = (parent.pid, os.getppid())
        threading.Thread(target=_await_end, args=arguments, daemon=True).start()


def end_children() -> None:
    """Kill what is left of the processes that this one has started, at its end."""
    from multiprocessing import active_children

    for child in active_children():
        child.kill()


def _await_end(parent: int, origin: int) -> None:
    """End on a SIGTERM from the parent, or when `origin`, which started this process, is gone.

    Where that is not the parent, it may be a server that forks for it, or whoever takes over the
    children of a parent that was killed before this began to look.
    """
    while os.getppid() == origin and (origin == parent or _runs(parent)):
        found = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK_SECONDS)
        if found is not None and found.si_pid == parent:
            break
    os._exit(0)


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended, though nobody has asked for its exit status."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return not Path("/proc/self").exists()  # where nothing is known, it counts as running
    return not content.rpartition(")")[2].lstrip().startswith(("Z", "X"))
