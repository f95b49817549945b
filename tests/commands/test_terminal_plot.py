"""Plots as text: what is drawn, for which stream, and what cannot be drawn."""

import io
import math
from typing import TextIO

import pytest

from vtrain.commands import terminal_plot
from vtrain.commands.terminal_plot import draw_plot

RISING = (range(1, 6), [0.1, 0.2, 0.3, 0.4, 0.5])
FALLING = (range(1, 6), [0.5, 0.4, 0.3, 0.2, 0.1])


def stream(encoding: str = "utf-8") -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def draw(*values: float, log: bool = False) -> str:
    curve = {"a": (range(1, len(values) + 1), values)}
    return draw_plot(curve, stream(), title="loss", x_title="epoch", log_y=log)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "ascii", "cp1252"])
def test_curves_fill_the_terminal(
    width: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_plot, "find_width", lambda _: width)
    series = {"train loss": RISING, "val loss": FALLING}
    text = draw_plot(series, stream(encoding), title="loss", x_title="epoch")
    lines = text.splitlines()
    assert max(map(len, lines)) == min(width, 100)
    assert text.isascii() is not encoding.lower().startswith("utf")
    assert "\x1b" not in text
    assert lines[0] == "loss"
    assert lines[-2].strip() == "epoch"
    assert lines[-1] == "o train loss   x val loss"
    assert lines[-3].split() == ["1", "2", "3", "4", "5"]
    assert {line[:3] for line in lines if line[:3].strip()} >= {"0.1", "0.3", "0.5"}
    top, bottom = lines[2], lines[-5]
    assert top.index("x") < top.index("o")
    assert bottom.index("o") < bottom.index("x")


def test_off_a_terminal_it_is_ascii_and_has_no_state() -> None:
    first = draw_plot({"a": RISING}, io.StringIO(), title="t", x_title="epoch")
    draw_plot({"b": ([1, 10], [2, 900])}, stream(), title="t", x_title="s", log_x=True, log_y=True)
    assert draw_plot({"a": RISING}, io.StringIO(), title="t", x_title="epoch") == first
    assert first.isascii()
    assert max(map(len, first.splitlines())) == 80


def test_what_cannot_be_drawn_is_left_out() -> None:
    text = draw(math.nan, 1.0, math.inf, 2.0, -math.inf)
    assert "o" in text.splitlines()[2]
    assert "0.001" in draw(0.0, 1e-4, 1e-3, -1.0, log=True)
    for nothing in (draw(), draw(math.nan), draw(0.0, -1.0, log=True)):
        assert nothing == "loss\n(no values to draw)\no a"


@pytest.mark.parametrize("values", [[3.0, 3.0, 3.0], [0.0], [-2.0, -2.0], [1e-9], [1e-300, 1e300]])
@pytest.mark.parametrize("log", [False, True])
def test_constant_and_extreme_values(values: list[float], log: bool) -> None:
    if log and min(values) <= 0:
        return
    lines = draw(*values, log=log).splitlines()
    assert any("o" in line for line in lines[1:-2])
    assert max(map(len, lines)) == 80


def test_starts_are_named_above() -> None:
    starts = [(1.0, "probe"), (3.0, "finetune")]
    text = draw_plot({"lr": RISING}, io.StringIO(), title="t", x_title="epochs", starts=starts)
    assert text.splitlines()[1].split() == ["probe", "finetune"]
    assert sum(":" in line for line in text.splitlines()) >= 4


def test_points_on_a_logarithmic_axis() -> None:
    points = {"small": ([700.0], [70.0]), "large": ([100.0], [80.0]), "odd": ([0.0], [90.0])}
    text = draw_plot(points, stream(), title="accuracy", x_title="images/s", log_x=True)
    lines = text.splitlines()
    assert lines[-1] == "o small   x large   + odd"
    assert lines[-3].split() == ["100", "200", "500", "1000"]
    plot = lines[2:-4]
    (large,) = [line for line in plot if "x" in line]
    (small,) = [line for line in plot if "o" in line]
    assert plot.index(large) < plot.index(small)
    assert large.index("x") < small.index("o")
    assert "+" not in "".join(plot)


def test_names_from_outside_are_harmless() -> None:
    text = draw_plot({"a\x1b[31m\n\x07": RISING, "日本": FALLING}, stream(), title="t", x_title="x")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.splitlines()[-1].endswith("x 日本")
    many = {f"runs/with-a-long-name-{index}": RISING for index in range(70)}
    text = draw_plot(many, stream(), title="t", x_title="x")
    assert all(name in text for name in many)
    assert max(map(len, text.splitlines())) == 80
