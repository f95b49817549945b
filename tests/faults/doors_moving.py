"""Configs, runs and data that have moved, as people have them."""

from tests.faults.door import Door

DOORS: tuple[Door, ...] = ()
