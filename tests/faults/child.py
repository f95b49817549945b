"""Work in a process of its own, so that a crash or a hang names what it happened to."""

import multiprocessing
import resource
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Died:
    """What ended a process."""

    how: str


def try_in_child(
    items: Sequence[T],
    work: Callable[[T], R],
    *,
    seconds: float,
    more_bytes: int | None = None,
) -> list[R | Died]:
    """What `work` gives for each item, in forked processes.

    One that ends or takes more than `seconds` for an item is followed by another one for the rest.
    `more_bytes` is how much address space it may take in addition to what there is.
    """
    results: list[R | Died] = []
    context = multiprocessing.get_context("fork")
    while len(results) < len(items):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(
            target=_work, args=(items[len(results) :], work, sender, more_bytes)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            child.start()
        sender.close()
        try:
            while len(results) < len(items):
                if not receiver.poll(seconds):
                    results.append(Died(f"took more than {seconds:g} s"))
                    break
                results.append(receiver.recv())
        except EOFError:
            child.join()
            results.append(Died(_describe_end(child.exitcode)))
        finally:
            child.kill()
            child.join()
            receiver.close()
    return results


def _work(
    items: Sequence[T], work: Callable[[T], R], sender: Connection, more_bytes: int | None
) -> None:
    if more_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for item in items:
        sender.send(work(item))


def _describe_end(code: int | None) -> str:
    return f"died of {signal.Signals(-code).name}" if code and code < 0 else f"ended with {code}"
