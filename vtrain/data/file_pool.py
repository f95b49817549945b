"""A function run over many files, in processes that may die of a bad one."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from vtrain.data.images import Found
from vtrain.data.workers import run_apart
from vtrain.errors import ImageError
from vtrain.system.reporter import Count, Progress
from vtrain.system.signals import shield_worker, stop_signals_blocked

_CHUNK_FILES = 16  # files in one task of a checking process
_CHECK_SECONDS = 300.0  # for one task, whose files may come over a slow network
_APART_SECONDS = 60.0  # for one file in a process of its own
_WAVE_FILES = 1024  # files for each process of one pool


def map_images(
    read: Callable[[Path], Found],
    paths: Sequence[Path],
    *,
    workers: int,
    bar: Progress | None = None,
) -> list[Found | str]:
    """What `read` returns for each image, or the reason why that image cannot be used.

    Args:
        read: can be pickled, and raises ImageError alone; its results are no strings.
        paths: files to read.
        workers: processes to use; 0 reads in this process.
        bar: counts the files.

    A file whose decoder kills its process (or makes the kernel do so) gets a reason as well.
    """
    bar = bar or Count()
    results: list[Found | str] = []
    if workers == 0:
        for path in paths:
            results.append(_try(read, path))
            bar.update(1)
        return results
    wave = workers * _WAVE_FILES
    for start in range(0, len(paths), wave):
        results += _map_wave(read, paths[start : start + wave], workers, bar)
    return results


def _map_wave(
    read: Callable[[Path], Found],
    paths: Sequence[Path],
    workers: int,
    bar: Progress,
) -> list[Found | str]:
    """One pool, one wave: when a process dies, only this wave is looked at file by file."""
    chunks = [paths[i : i + _CHUNK_FILES] for i in range(0, len(paths), _CHUNK_FILES)]
    results: list[Found | str] = []
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(chunks)), initializer=shield_worker)
    try:
        with stop_signals_blocked():
            # None from where on the pool refuses because a process has died.
            futures: list[Future[list[Found | str]] | None] = [None] * len(chunks)
            with suppress(BrokenProcessPool):
                for number, chunk in enumerate(chunks):
                    futures[number] = pool.submit(_try_all, read, chunk)
        for chunk, future in zip(chunks, futures, strict=True):
            try:
                found = future.result(_CHECK_SECONDS) if future else _try_apart(read, chunk)
            except (BrokenProcessPool, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    _kill_all(set(multiprocessing.active_children()) - others)
                found = _try_apart(read, chunk)
            results += found
            bar.update(len(chunk))
    except KeyboardInterrupt:
        _kill_all(set(multiprocessing.active_children()) - others)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _kill_all(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _try_apart(read: Callable[[Path], Found], paths: Sequence[Path]) -> list[Found | str]:
    """As `_try_all`, where a file may kill its process or hold it up: each gets its own."""
    results: list[Found | str] = []
    for path in paths:
        reason = run_apart(partial(_try, read, path), timeout=_APART_SECONDS)
        results.append(_try(read, path) if reason is None else reason)
    return results


def _try_all(read: Callable[[Path], Found], paths: Sequence[Path]) -> list[Found | str]:
    return [_try(read, path) for path in paths]


def _try(read: Callable[[Path], Found], path: Path) -> Found | str:
    try:
        return read(path)
    except ImageError as error:
        return error.message
