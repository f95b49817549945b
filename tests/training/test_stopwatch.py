"""Time by section."""

import time

import pytest

from tests.helpers.tiny import CPU
from vtrain.training.stopwatch import Stopwatch


def test_inner_sections_do_not_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch(CPU, enabled=True)
    now[0] = 5.0  # before the first section nothing counts
    with watch.section("outer"):
        now[0] += 1.0
        with watch.section("inner"):
            now[0] += 10.0
        now[0] += 2.0
    now[0] += 100.0
    with watch.section("outer"):
        now[0] += 4.0
    assert watch.seconds == {"outer": 7.0, "inner": 10.0}


def test_a_section_that_fails_is_closed() -> None:
    watch = Stopwatch(CPU, enabled=True)
    with pytest.raises(ValueError, match="no"), watch.section("one"):
        raise ValueError("no")
    with watch.section("two"):
        pass
    assert set(watch.seconds) == {"one", "two"}


def test_switched_off_it_measures_nothing() -> None:
    watch = Stopwatch(CPU)
    with watch.section("one"):
        pass
    assert watch.seconds == {}
