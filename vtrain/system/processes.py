"""The processes of one job: started by torchrun, joined by torch.distributed, ended together."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from vtrain.errors import ExitCode, ResourceError, UsageError, VtrainError

# The longest that one process waits for another, which may be checking a million images meanwhile.
# A process that ends is noticed at once, by its closed connections: this is for hosts that vanish
# and for processes that hang.
TIMEOUT = timedelta(hours=6)
_SOURCE = re.compile(r"^\[[^\]]*\] ?")
# What messages of gloo and NCCL contain, wherever torch raises them.
_LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
_TIMED_OUT = ("timed out", "timeout")


class PeerFailedError(VtrainError):
    """Another process of the job failed in a step of `Processes.together`.

    It has the other error's exit code. The other process raises that error itself.
    """

    def __init__(self, rank: int, message: str, hint: str | None, exit_code: int) -> None:
        super().__init__(f"process {rank} failed: {message}", hint)
        self.rank = rank
        self.exit_code = ExitCode(exit_code)


@dataclass(frozen=True, slots=True)
class Processes:
    """The place of this process among those of a job; alone by default, at no cost at all.

    `rank` counts from 0 over all machines, `local_rank` on this machine. Alone, every method
    returns at once, without torch.distributed. With others, all processes must call the same
    methods in the same order, within `joined`. A process that ends makes the others' calls raise
    within moments, one that hangs within the timeout.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes what is written once."""
        return self.rank == 0

    def choose_device(self, name: str) -> str:
        """The device that a user's `auto` or `cuda` means here: with others, cuda:LOCAL_RANK.

        Without CUDA that is the CPU for several processes: MPS cannot exchange gradients.

        Raises:
            UsageError: one CUDA device by its number, for several processes on this machine, or
                fewer CUDA devices than processes.
        """
        if self.local_world_size > 1 and name.startswith("cuda:"):
            raise UsageError(
                f"device {name} was asked for by {self.local_world_size} processes on one machine",
                "use device cuda: each process takes the one with its local rank",
            )
        if self.world_size == 1 or name not in ("auto", "cuda"):
            return name
        if not torch.cuda.is_available():
            return "cpu" if name == "auto" else name
        if self.local_world_size > torch.cuda.device_count():
            raise UsageError(
                f"{self.local_world_size} processes were started on a machine with "
                f"{torch.cuda.device_count()} GPUs",
                f"start one for each: torchrun --nproc-per-node={torch.cuda.device_count()}",
            )
        return f"cuda:{self.local_rank}"

    def share(self, count: int, *, chunk: int) -> range:
        """What this process does of `count` items: whole chunks, the same as one process alone."""
        chunks = -(-count // chunk)
        first = chunks * self.rank // self.world_size
        stop = chunks * (self.rank + 1) // self.world_size
        return range(first * chunk, min(stop * chunk, count))

    @contextmanager
    def joined(self, device: torch.device, *, timeout: timedelta = TIMEOUT) -> Iterator[None]:
        """Meet the others at MASTER_ADDR:MASTER_PORT, and leave them when the block ends.

        The block ends together for all, or at once after an error: what the others still wait for
        fails there. Tensors on the CPU go through gloo; with a CUDA `device`, which becomes the
        current one, tensors on CUDA go through NCCL.

        Raises:
            ResourceError: not all of them came within `timeout`, or as for `barrier`.
        """
        if self.world_size == 1:
            yield
            return
        import torch.distributed as dist

        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                rank=self.rank,
                world_size=self.world_size,
                timeout=timeout,
                device_id=device if on_cuda else None,
            )
        except (RuntimeError, ValueError) as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise ResourceError(
                f"process {self.rank} could not meet the other {self.world_size - 1} at {place}: "
                f"{_first_line(error)}",
                "check that all of them run and that this address can be reached; where a machine "
                "has several networks, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
            ) from error
        try:
            yield
            self.barrier()  # the first to come keeps the meeting place: it must not leave early
        finally:
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for the others.

        Raises:
            ResourceError: another process ended, or did not come within the timeout.
        """
        self.sum(torch.zeros(1))

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes; shapes and types must agree.

        Integers sum exactly. Floats give the same bits in every process.

        Raises:
            ResourceError: as for `barrier`.
        """
        for tensor in tensors:
            self.start_sum(tensor)()

    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin `sum` of one tensor; the tensor holds the result once the returned call is done.

        Raises:
            ResourceError: here or in the returned call, as for `barrier`.
        """
        if self.world_size == 1:
            return lambda: None
        import torch.distributed as dist

        with self.explained(talks_only=True):
            work = dist.all_reduce(tensor, async_op=True)

        def finish() -> None:
            with self.explained(talks_only=True):
                work.wait()

        return finish

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, in every process; for small plain objects.

        Raises:
            ResourceError: as for `barrier`.
        """
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        with self.explained(talks_only=True):
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, in every process; for plain objects.

        Raises:
            ResourceError: as for `barrier`.
        """
        if self.world_size == 1:
            return value
        import torch.distributed as dist

        values = [value if self.is_main else None]
        with self.explained(talks_only=True):
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self, *, main_first: bool = False) -> Iterator[None]:
        """A step that all processes take, and that fails in all of them if it fails in one.

        With `main_first` rank 0 takes it before the others, such as a download. The block must
        hold no collective call.

        Raises:
            VtrainError: the own error, in the failed process of the lowest rank.
            PeerFailedError: that error, in all others.
            ResourceError: as for `barrier`.
        """
        if main_first and not self.is_main:
            self._raise_first(None)
        failure: VtrainError | None = None
        try:
            yield
        except VtrainError as error:
            failure = error
        self._raise_first(failure)
        if main_first and self.is_main:
            self._raise_first(None)

    def _raise_first(self, own: VtrainError | None) -> None:
        plain = None if own is None else (own.message, own.hint, int(own.exit_code))
        for rank, failure in enumerate(self.gather(plain)):
            if failure is None:
                continue
            if rank == self.rank and own is not None:
                raise own
            raise PeerFailedError(rank, *failure)

    @contextmanager
    def explained(self, *, talks_only: bool = False) -> Iterator[None]:
        """For a block that talks to the others by itself, as gradients do.

        Every error of torch in a block that `talks_only` comes from there, but for a full memory.

        Raises:
            ResourceError: another process ended; other errors pass through.
        """
        try:
            yield
        except RuntimeError as error:
            text = str(error).lower()
            lost = talks_only and not isinstance(error, torch.OutOfMemoryError)
            if self.world_size == 1 or not (lost or any(sign in text for sign in _LOST_PEER)):
                raise
            # Gloo puts its source file in front, and advice for its developers behind.
            reason = _SOURCE.sub("", _first_line(error)).partition(". ")[0]
            late = any(sign in reason.lower() for sign in _TIMED_OUT)
            what = "another did not answer in time" if late else "another ended"
            raise ResourceError(
                f"process {self.rank} of {self.world_size} cannot go on: {what} ({reason})",
                "look above for the error of the one that ended first; without one it was killed, "
                "as when memory runs out",
            ) from error


ALONE = Processes()


def read_processes(environ: Mapping[str, str] = os.environ) -> Processes:
    """The place of this process by the variables that torchrun sets; alone without them.

    Raises:
        UsageError: some of the variables are missing, or make no sense.
    """
    world_size = _read_count(environ, "WORLD_SIZE", 1)
    if world_size == 1:
        return Processes()
    names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {world_size}, but {' and '.join(missing)} is not set",
            "start with torchrun, which sets all; for one process: unset WORLD_SIZE",
        )
    rank, local_rank = _read_count(environ, "RANK", 0), _read_count(environ, "LOCAL_RANK", 0)
    if rank >= world_size:
        raise UsageError(f"RANK is {rank}, expected 0 to {world_size - 1}", "start with torchrun")
    local_world_size = _read_count(environ, "LOCAL_WORLD_SIZE", local_rank + 1)
    return Processes(rank, world_size, local_rank, local_world_size)


def _read_count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or (default == 1 and int(text) == 0):
        raise UsageError(f"{name} is {text!r}, expected a count", "start with torchrun")
    return int(text)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
