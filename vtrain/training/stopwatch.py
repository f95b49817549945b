"""Where the time of a run goes: seconds by kind of work."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Stopwatch:
    """Adds up the time of named sections, which may lie inside one another: the inner one counts.

    Switched off it costs next to nothing. Switched on it waits for a GPU at the end of every
    section, so that its work is counted where it was asked for; a run is then somewhat slower.
    """

    def __init__(self, device: torch.device | None = None, *, enabled: bool = False) -> None:
        self.enabled = enabled
        self.seconds: dict[str, float] = {}
        self._device = device
        self._open: list[str] = []
        self._since = 0.0

    def section(self, name: str) -> AbstractContextManager[None]:
        """What runs inside counts as `name`."""
        return self._measure(name) if self.enabled else nullcontext()

    @contextmanager
    def _measure(self, name: str) -> Iterator[None]:
        self._switch()  # the section around this one has had the time until now
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        """Give the time since the last switch to the section that was open."""
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # CUDA works behind: this waits for it
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
