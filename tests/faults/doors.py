"""What people bring: read rightly, or refused with the reason and what to do."""

from collections.abc import Iterator

from tests.faults import (
    doors_folders,
    doors_formats,
    doors_groups,
    doors_lists,
    doors_moving,
    doors_rows,
)
from tests.faults.case import Case

PARTS = (doors_folders, doors_formats, doors_lists, doors_rows, doors_groups, doors_moving)


def cases(full: bool) -> Iterator[Case]:
    """Every situation, in both forms of the suite: all are quick."""
    for part in PARTS:
        for door in part.DOORS:
            yield door.case()
