"""Signals: the first is noted, the second acts, and none reaches the wrong process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import vtrain.system.signals
from tests.helpers.told import Told
from vtrain.errors import ExitCode
from vtrain.system.reporter import SILENT
from vtrain.system.signals import (
    STOP_SIGNALS,
    StopRequest,
    TerminatedError,
    build_stop_error,
    raise_on_stop_signals,
    stop_signals_blocked,
)


@pytest.fixture
def caught() -> Iterator[list[int]]:
    """Signals that reach the handlers that were there before."""
    numbers: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        numbers.append(number)

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    yield numbers
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_first_signal_is_noted_and_said(caught: list[int], number: signal.Signals) -> None:
    said: list[str] = []
    with StopRequest(Told(said)) as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert said == [f"{number.name} received: finishing this step, then saving"]
    assert caught == []


def test_second_signal_acts_at_once(caught: list[int]) -> None:
    with StopRequest(SILENT) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGTERM
        assert caught == [signal.SIGINT]


def test_handlers_are_put_back(caught: list[int]) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest(SILENT):
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    with pytest.raises(ZeroDivisionError), StopRequest(SILENT):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_outside_the_main_thread_nothing_is_touched(caught: list[int]) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    seen = []

    def work() -> None:
        with StopRequest(SILENT):
            seen.append([signal.getsignal(number) for number in STOP_SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_time_runs_out_for_what_was_asked_to_stop(
    caught: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.system.signals.GRACE_SECONDS", 0.01)
    with StopRequest(SILENT) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: bool(caught))
    assert stop.received == signal.SIGUSR1
    assert caught == [signal.SIGUSR1]


def test_what_has_been_reached_may_take_its_time(
    caught: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.system.signals.GRACE_SECONDS", 0.01)
    with StopRequest(SILENT) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.finish()
        time.sleep(0.05)
    time.sleep(0.02)
    assert caught == []


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("once", [True, False])
def test_an_echo_is_no_second_signal(
    caught: list[int], monkeypatch: pytest.MonkeyPatch, number: int, once: bool
) -> None:
    """As when a terminal closes: the kernel and the shell both tell of it."""
    with StopRequest(SILENT, once=once):
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert caught == []
        for name in ("_ECHO_SECONDS", "_KEY_ECHO_SECONDS"):
            monkeypatch.setattr(f"vtrain.system.signals.{name}", 0.0)
        os.kill(os.getpid(), number)
        assert caught == [number]


def test_time_that_has_run_out_is_said_again(
    caught: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.system.signals.GRACE_SECONDS", 0.01)
    monkeypatch.setattr("vtrain.system.signals._GRACE_INTERVAL", 0.01)
    with StopRequest(SILENT):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: len(caught) > 2)


def test_ignored_signals_stay_ignored(caught: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest(SILENT) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is None
        raise_on_stop_signals()
        os.kill(os.getpid(), signal.SIGHUP)


def test_each_signal_raises_where_nothing_is_to_be_saved(
    caught: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.system.signals._arrived", [])
    raise_on_stop_signals()
    for number in STOP_SIGNALS:
        with pytest.raises(KeyboardInterrupt) as raised:
            os.kill(os.getpid(), number)
        error = build_stop_error(raised.value, "stopped")
        assert isinstance(raised.value, TerminatedError) == (number != signal.SIGINT)
        expected = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED
        assert error.exit_code == expected


def test_a_signal_that_somebody_swallowed_is_not_lost(
    caught: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.system.signals._arrived", [])
    raise_on_stop_signals()
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)
    with StopRequest(SILENT) as stop:
        assert stop.received == signal.SIGTERM


def test_processes_that_are_started_begin_with_signals_blocked(caught: list[int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with stop_signals_blocked():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {*before, *STOP_SIGNALS}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


SHIELDED = """
import multiprocessing, os, sys, time
from vtrain.system.signals import shield_worker

def work():
    shield_worker()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.Process(target=work, daemon=True).start()
    time.sleep(600)
"""


def test_a_worker_does_not_outlive_its_parent() -> None:
    root = str(Path(vtrain.system.signals.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", SHIELDED],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        for number in STOP_SIGNALS:
            os.kill(worker, number)
        time.sleep(0.1)
        os.kill(worker, 0)  # it is still there
        parent.kill()
        assert parent.stdout.read() == ""  # until the last process that could write has gone
    wait_until(lambda: not is_running(worker))


ORPHANED = """
import multiprocessing, os, time
from vtrain.system.signals import shield_worker

def work():
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.005)
    shield_worker()
    time.sleep(60)

multiprocessing.get_context("fork").Process(target=work).start()
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere workers do not look for their parent"
)
def test_a_worker_whose_parent_died_before_it_looked_ends_as_well() -> None:
    root = str(Path(vtrain.system.signals.__file__).parents[1])
    # Its output ends when the last process that could write has gone.
    done = subprocess.run(
        [sys.executable, "-c", ORPHANED],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def wait_until(happened: object) -> None:
    assert callable(happened)
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)
