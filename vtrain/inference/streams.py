"""Batches computed side by side on the cores of a CPU, and given in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch

from vtrain.data.batches import Batch
from vtrain.system.machine import count_cores

Result = TypeVar("Result")

# Each holds the activations of a batch, and the memory of many is better spent otherwise.
MAX_STREAMS = 4


def choose_streams(device: torch.device) -> int:
    """Batches to compute at a time: on a CPU two to four, which share its threads; else one.

    A layer that all threads share ends when the last of them has done its part, while the others
    wait; batches of their own wait for nobody. It is the same for any number of batches, and all
    get as many threads: float32 sums round differently with another number, and a batch shall give
    the same bits in every command. Other devices keep their cores busy by themselves.
    """
    threads = torch.get_num_threads()
    # Threads bound to fewer cores than there are threads would all get the same ones.
    if device.type != "cpu" or threads == 1 or count_cores() < threads:
        return 1
    choices = range(min(threads, MAX_STREAMS), 1, -1)
    return max(choices, key=lambda streams: threads // streams * streams)  # the fewest left over


def compute_in_order(
    batches: Iterable[Batch], compute: Callable[[Batch], Result], *, streams: int
) -> Iterator[tuple[Batch, Result]]:
    """Each batch, without its inputs, and what `compute` makes of it; `streams` at a time.

    Each stream gets its share of torch's compute threads. With more than one, up to `streams`
    batches beyond the one that is given have been asked for, and `compute` runs in threads of its
    own, where neither the caller's gradient mode nor its autocast holds; it must bear running
    several times at once. An error comes where the result would have, one of `batches` after what
    came before.
    """
    if streams == 1:
        for batch in batches:
            yield _drop_inputs(batch), compute(batch)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // streams)
    pool = ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(share,))
    wait = True
    try:
        yield from _collect(batches, lambda batch: pool.submit(compute, batch), streams)
    except KeyboardInterrupt:
        wait = False  # a batch of a large network takes many seconds
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
        torch.set_num_threads(threads)  # the setting is partly one of the whole process


def _collect(
    batches: Iterable[Batch], submit: Callable[[Batch], Future[Result]], ahead: int
) -> Iterator[tuple[Batch, Result]]:
    """Results in order, of which up to `ahead` more have been submitted."""
    pending: deque[tuple[Batch, Future[Result]]] = deque()
    source = iter(batches)
    trouble: Exception | None = None
    ended = False
    while pending or not ended:
        while not ended and len(pending) <= ahead:
            try:
                batch = next(source)
            except StopIteration:
                ended = True
            except Exception as error:
                ended, trouble = True, error
            else:
                pending.append((_drop_inputs(batch), submit(batch)))
        if pending:
            done, future = pending.popleft()
            yield done, future.result()
    if trouble is not None:
        raise trouble


def _drop_inputs(batch: Batch) -> Batch:
    """The batch without what is large, which may lie in shared memory and hold a descriptor."""
    return replace(batch, inputs=torch.empty(0))
