"""What becomes of processes that read images: why one was lost, and which file it was reading."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch

from vtrain.errors import ResourceError
from vtrain.system.machine import count_cores
from vtrain.system.signals import shield_worker, stop_signals_blocked

_MAX_AUTO_WORKERS = 8
_SMALL_SET = 64  # reading so few images takes less time than starting a process


@dataclass(frozen=True, slots=True)
class WorkerTrouble:
    """A kind of trouble: what torch's messages contain then, what that means, what to do.

    `lost`: a worker is gone or hangs, perhaps by a file that it was reading; `hangs` is the latter.
    """

    signs: tuple[str, ...]
    message: str
    hint: str
    lost: bool = False
    hangs: bool = False


# The first match counts. Torch's shared memory is in files named torch_…, which its messages quote
# as </torch_…>.
_TROUBLES = (
    WorkerTrouble(
        ("DataLoader timed out",),
        "a loader worker hangs",
        "look at the disk that the images are on, or read them without workers: data.workers=0",
        lost=True,
        hangs=True,
    ),
    WorkerTrouble(
        ("Too many open files", "items of ancdata"),
        "no more files can be opened: every batch from a worker takes one",
        "raise the limit (ulimit -n 4096), or use data.workers=0",
    ),
    WorkerTrouble(
        ("Bus error", "</torch_", "shared memory(shm)", "shared memory object"),
        "shared memory is full: batches from workers go through /dev/shm",
        "make it larger (docker run --shm-size=8g), or use a smaller data.batch_size or "
        "data.workers=0",
    ),
    WorkerTrouble(
        ("DataLoader worker (pid", "EOFError", "ConnectionResetError", "ConnectionRefusedError"),
        "a loader worker died",
        "if the machine ran out of memory, use fewer data.workers or a smaller data.batch_size",
        lost=True,
    ),
)


@contextmanager
def worker_troubles() -> Iterator[None]:
    """Turn what a DataLoader raises about its workers into a ResourceError with a way out.

    Other errors pass through, such as a full disk.
    """
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:
        explained = explain_worker_error(error)
        if explained is None:
            raise
        raise explained from error


def explain_worker_error(error: BaseException) -> ResourceError | None:
    """What torch's error says about its loader workers, None where it is about something else."""
    trouble = find_trouble(error)
    if trouble is None:
        return None
    reason = str(error) or type(error).__name__
    return ResourceError(f"{trouble.message} ({reason.splitlines()[0]})", trouble.hint)


def find_trouble(error: BaseException | None) -> WorkerTrouble | None:
    """The kind of trouble that an error tells of, None where it is about something else."""
    signature = type(error).__name__
    if not isinstance(error, OSError):  # whose messages quote paths
        signature = f"{signature}: {error}"
    elif error.errno == errno.EMFILE:
        signature = "Too many open files"
    for trouble in _TROUBLES:
        if any(sign in signature for sign in trouble.signs):
            return trouble
    return None


def run_apart(call: Callable[[], object], *, timeout: float) -> str | None:
    """Why a process of its own did not survive `call`, None if it did.

    What `call` returns or raises is of no interest. It must end within `timeout` seconds.
    """
    process = multiprocessing.Process(target=_run_quietly, args=(call,), daemon=True)
    with stop_signals_blocked():
        process.start()
    try:
        process.join(timeout)
        if process.exitcode is None:
            return f"reading it takes more than {timeout:g} s"
        if process.exitcode:
            return "the process that decoded it died"
        return None
    finally:
        process.kill()
        process.join(timeout)
        with suppress(ValueError):  # still there: it waits for a disk that does not answer
            process.close()


def _run_quietly(call: Callable[[], object]) -> None:
    shield_worker()
    with suppress(Exception):
        call()
    os._exit(0)  # nothing of the parent's that was copied is to be cleaned up here


@contextmanager
def child_signals_kept() -> Iterator[None]:
    """Keep torch from raising, out of its handler of SIGCHLD, in whatever the main thread does.

    A worker that dies in the middle of an optimiser step would leave the model half updated. Who
    waits for a batch finds out that its worker is gone as well.
    """
    if not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) != before:
            signal.signal(signal.SIGCHLD, before)


def resolve_workers(value: int | Literal["auto"], num_images: int, *, processes: int = 1) -> int:
    """Worker processes for `data.workers`: `auto` is one for each usable core, at most eight.

    `auto` gives 0, reading in the main process, for 64 images or fewer. Several `processes` of one
    job share the cores of their machine.
    """
    if value != "auto":
        return value
    if num_images <= _SMALL_SET:
        return 0
    return max(1, min(count_cores() // processes, _MAX_AUTO_WORKERS))


def set_up_worker(_: int) -> None:
    """One compute thread; signals are the parent's to answer."""
    shield_worker()
    torch.set_num_threads(1)
    sys.excepthook = _report_unless_disconnected


def _report_unless_disconnected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing when the parent stops in the middle of taking a batch over.

    The thread that hands out a worker's tensors calls `sys.excepthook` by itself, so that Ctrl-C
    in the parent would end with a traceback from here.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
