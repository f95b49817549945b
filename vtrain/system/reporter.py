"""What the library says while it works: one class, drawn by the terminal, or by nobody."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast


class Progress(Protocol):
    """How much of a piece of work is done; `n` counts up to `total`, both can be set."""

    n: float
    total: Any
    initial: Any

    def update(self, n: float = 1) -> object:
        """Count `n` more as done; may raise to stop the work."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> object:
        """Show `s` behind the bar."""


class Count:
    """Progress that nobody sees."""

    def __init__(self, total: int = 0) -> None:
        self.n: float = 0
        self.total: Any = total
        self.initial: Any = 0

    def update(self, n: float = 1) -> None:
        """Count `n` more."""
        self.n += n

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Nothing."""


class Reporter:
    """Who is told what happens: a library function takes one and neither prints nor draws.

    This one tells nobody; those that do something else with what they are told are made from it.
    """

    def say(self, message: str) -> None:
        """One or more lines of talk."""

    def warn(self, message: str) -> None:
        """Something that the user should not overlook."""

    def log(self, message: str) -> None:
        """A line for the log file alone."""

    def say_fitting(self, facts: Sequence[str], end: str = "") -> None:
        """One line of facts, the most important first: as many as the terminal has columns for."""

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        right: Sequence[int] = (),
    ) -> None:
        """A table; `right` are the indices of columns aligned to the right."""

    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> AbstractContextManager[Progress]:
        """A bar while the context is open.

        `data`: lines of data come out meanwhile, which are progress enough on a terminal.
        """
        return nullcontext(Count(total))


SILENT = Reporter()


class Forwarding(Reporter):
    """A reporter that passes everything on to another; for those that do a little more."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def say(self, message: str) -> None:
        """Passed on, as everything here."""
        self.reporter.say(message)

    def warn(self, message: str) -> None:
        """Passed on."""
        self.reporter.warn(message)

    def log(self, message: str) -> None:
        """Passed on."""
        self.reporter.log(message)

    def say_fitting(self, facts: Sequence[str], end: str = "") -> None:
        """Passed on."""
        self.reporter.say_fitting(facts, end)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        right: Sequence[int] = (),
    ) -> None:
        """Passed on."""
        self.reporter.table(columns, rows, title=title, right=right)

    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> AbstractContextManager[Progress]:
        """Passed on."""
        return self.reporter.progress(total, label, unit=unit, data=data)


class _CheckedProgress:
    """Progress that looks whether to stop before it counts on."""

    def __init__(self, progress: Progress, check: Callable[[], None]) -> None:
        self._progress, self._check = progress, check

    def update(self, n: float = 1) -> None:
        self._check()
        self._progress.update(n)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)


class Interruptible(Forwarding):
    """A reporter whose progress stops the work: `check` is called at each update and may raise."""

    def __init__(self, reporter: Reporter, check: Callable[[], None]) -> None:
        super().__init__(reporter)
        self._check = check

    @contextmanager
    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> Iterator[Progress]:
        """With the check."""
        with self.reporter.progress(total, label, unit=unit, data=data) as progress:
            yield cast(Progress, _CheckedProgress(progress, self._check))
