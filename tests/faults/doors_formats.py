"""Files that are no images for us, and odd names, as people have them."""

from tests.faults.door import Door

DOORS: tuple[Door, ...] = ()
