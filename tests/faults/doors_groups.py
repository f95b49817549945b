"""Groups, held-out parts and leaks, as people have them."""

from tests.faults.door import Door

DOORS: tuple[Door, ...] = ()
