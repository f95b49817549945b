"""Folders and tars, as people have them."""

from tests.faults.door import Door

DOORS: tuple[Door, ...] = ()
