"""Batches computed side by side on the cores of a CPU, and given in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from vtrain.data.loaders import Batch

Result = TypeVar("Result")

# Each holds the activations of a batch, and the memory of many is better spent otherwise.
MAX_STREAMS = 4


def choose_streams(device: torch.device) -> int:
    """Batches to compute at a time: on a CPU one for each compute thread, at most four; else one.

    A layer that all threads share ends when the last of them has done its part, while the others
    wait; batches of their own wait for nobody. Other devices keep their cores busy by themselves.
    """
    return min(torch.get_num_threads(), MAX_STREAMS) if device.type == "cpu" else 1


def compute_in_order(
    batches: Iterable[Batch], compute: Callable[[Batch], Result], *, streams: int
) -> Iterator[tuple[Batch, Result]]:
    """Each batch with what `compute` makes of it, in order; `streams` of them at a time.

    The streams share torch's compute threads. With more than one, `compute` is called in threads
    of their own, and up to `streams` batches beyond the one that is given have been asked for.
    """
    if streams == 1:
        for batch in batches:
            yield batch, compute(batch)
        return
    threads = torch.get_num_threads()
    share = max(1, round(threads / streams))
    pool = ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(share,))
    pending: deque[tuple[Batch, Future[Result]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, pool.submit(compute, batch)))
            if len(pending) > streams:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the setting is partly one of the whole process
