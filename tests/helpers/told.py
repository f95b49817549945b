"""A reporter that remembers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vtrain.system.reporter import Count, Progress, Reporter


class Told(Reporter):
    """Keeps in `lines` what was said and warned of, and in `shown` how much was done, of what.

    `on_update` gets the same number before each piece of work is counted, and may raise.
    """

    def __init__(
        self,
        lines: list[str] | None = None,
        *,
        shown: list[tuple[int, int]] | None = None,
        on_update: Callable[[int], object] | None = None,
    ) -> None:
        self.lines = [] if lines is None else lines
        self.shown = [] if shown is None else shown
        self.on_update = on_update

    def say(self, message: str) -> None:
        self.lines.append(message)

    def warn(self, message: str) -> None:
        self.lines.append(message)

    @contextmanager
    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> Iterator[Progress]:
        yield Counted(total, self)


class Counted(Count):
    """Progress that a `Told` remembers."""

    def __init__(self, total: int, told: Told) -> None:
        super().__init__(total)
        self.told = told

    def update(self, n: float = 1) -> None:
        if self.told.on_update is not None:
            self.told.on_update(int(self.n + n))
        super().update(n)
        self.told.shown.append((int(self.n), self.total))
