"""A row for every input, as people have them."""

from tests.faults.door import Door

DOORS: tuple[Door, ...] = ()
