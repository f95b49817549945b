"""To be filled."""

from collections.abc import Iterator

from tests.faults.case import Case


def cases(full: bool) -> Iterator[Case]:
    """No case yet."""
    return iter(())
