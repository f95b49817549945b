"""Learning-rate schedules at named steps, against closed forms."""

import math

import pytest

from vtrain.config.keys import OptimConfig
from vtrain.training.learning_rates import Schedule, build_schedule


def values(schedule: Schedule) -> list[float]:
    return [schedule(step) for step in range(schedule.total_steps)]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "step"])
def test_warm_up_rises_in_equal_steps_to_the_peak(name: str) -> None:
    schedule = Schedule(name, total_steps=20, warmup_steps=4, step_size=100)
    assert values(schedule)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "step"])
def test_without_warm_up_the_first_step_is_the_peak(name: str) -> None:
    assert Schedule(name, total_steps=10)(0) == 1.0


def test_cosine_at_named_steps() -> None:
    schedule = Schedule("cosine", total_steps=12, warmup_steps=4)  # 8 steps from the peak down
    assert schedule(6) == pytest.approx((1 + math.sqrt(0.5)) / 2)  # a quarter of the way
    assert schedule(8) == pytest.approx(0.5)
    assert schedule(10) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert schedule(12) == pytest.approx(0.0, abs=1e-15)


def test_linear_falls_by_the_same_amount_every_step() -> None:
    schedule = Schedule("linear", total_steps=7, warmup_steps=2)
    assert values(schedule)[2:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_constant_stays_at_the_peak() -> None:
    assert set(values(Schedule("constant", total_steps=9, warmup_steps=0))) == {1.0}


def test_step_drops_by_gamma_every_step_size_after_the_warm_up() -> None:
    schedule = Schedule("step", total_steps=9, warmup_steps=1, step_size=3, gamma=0.5)
    assert values(schedule) == pytest.approx([0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_last_step_still_moves_and_later_ones_do_not(name: str) -> None:
    schedule = Schedule(name, total_steps=10, warmup_steps=3)
    assert schedule(9) > 0
    assert schedule(10) == pytest.approx(0, abs=1e-15)
    assert schedule(1000) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "step"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 1), (3, 1), (50, 25), (51, 0)])
def test_factors_lie_between_0_and_1_and_never_rise_after_the_warm_up(
    name: str, total: int, warmup: int
) -> None:
    found = values(Schedule(name, total, warmup, step_size=7, gamma=0.3))
    assert all(0 < value <= 1 for value in found)
    after = found[warmup:]
    assert after == sorted(after, reverse=True)
    assert max(found) == 1.0


# --- from the config -----------------------------------------------------------------------------


def test_epochs_of_the_config_become_steps() -> None:
    config = OptimConfig(warmup_epochs=0.5, step_epochs=1.5, step_gamma=0.2, schedule="step")
    schedule = build_schedule(config, steps_per_epoch=8, epochs=5)
    assert schedule == Schedule("step", total_steps=40, warmup_steps=4, step_size=12, gamma=0.2)


@pytest.mark.parametrize(
    ("epochs", "warmup_epochs", "expected"),
    [(10, 1.0, 8), (1, 1.0, 4), (3, 3.0, 12), (1, 0.0, 0), (10, 0.01, 0)],
)
def test_warm_up_takes_at_most_half_of_a_phase(
    epochs: int, warmup_epochs: float, expected: int
) -> None:
    config = OptimConfig(warmup_epochs=warmup_epochs)
    schedule = build_schedule(config, steps_per_epoch=8, epochs=epochs)
    assert schedule.warmup_steps == expected


def test_a_phase_of_one_step_trains_at_the_peak() -> None:
    schedule = build_schedule(OptimConfig(), steps_per_epoch=1, epochs=1)
    assert values(schedule) == [1.0]


def test_a_drop_never_comes_more_often_than_every_step() -> None:
    config = OptimConfig(schedule="step", step_epochs=0.01, warmup_epochs=0, step_gamma=0.5)
    assert values(build_schedule(config, steps_per_epoch=3, epochs=1)) == [1.0, 0.5, 0.25]


def test_longer_phase_keeps_the_warm_up_and_stretches_the_rest() -> None:
    config = OptimConfig(warmup_epochs=1)
    short = build_schedule(config, steps_per_epoch=10, epochs=4)
    long = build_schedule(config, steps_per_epoch=10, epochs=8)
    assert [short(step) for step in range(11)] == [long(step) for step in range(11)]
    assert all(long(step) > short(step) for step in range(11, 40))
    assert long(45) == pytest.approx(0.5)  # the middle between steps 10 and 80
