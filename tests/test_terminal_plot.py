"""Plots as text: axes, marks, names, and what cannot be drawn."""

import io
import math

import pytest
from rich.cells import cell_len

from vtrain.terminal_plot import (
    NOTHING,
    Axis,
    Point,
    draw_lines,
    draw_scatter,
    takes_braille,
)

RISING = [0.1, 0.2, 0.3, 0.4, 0.5]
FALLING = [0.5, 0.4, 0.3, 0.2, 0.1]


def has_braille(text: str) -> bool:
    return any("\u2800" <= char <= "\u28ff" for char in text)


@pytest.mark.parametrize("braille", [True, False])
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_lines_fill_the_width_and_height_and_no_more(width: int, braille: bool) -> None:
    text = draw_lines(
        {"train loss": RISING, "val loss": FALLING},
        width=width,
        height=12,
        braille=braille,
        title="loss",
        x_title="epoch",
    )
    lines = text.splitlines()
    assert len(lines) == 12
    assert width - 2 <= max(map(cell_len, lines)) <= width
    assert has_braille(text) is braille
    assert text.isascii() is not braille
    assert "\x1b" not in text
    assert lines[0] == "loss"
    assert lines[-2].endswith("epoch")
    assert lines[-1] == "o train loss   x val loss"


def test_first_line_of_ascii_curves_is_drawn_where_the_values_are() -> None:
    lines = draw_lines({"a": [0.0, 1.0]}, width=30, height=6).splitlines()
    field = [line.partition("|")[2] or line.partition("+")[2] for line in lines[:3]]
    assert field[0].rstrip().endswith("o")
    assert not field[0].startswith("o")
    assert lines[0].startswith("1 +")
    assert any(line.startswith("0 +o") for line in lines)


def test_axes_have_round_numbers() -> None:
    text = draw_lines({"a": [0.013, 0.087]}, width=60, height=12)
    assert all(name in text for name in ("0.1", "0.05"))
    assert "0.013" not in text


@pytest.mark.parametrize(
    ("axis", "count", "names"),
    [
        (Axis(0, 10), 5, ["0", "2", "4", "6", "8", "10"]),
        (Axis(0, 0.3), 3, ["0", "0.1", "0.2", "0.3"]),
        (Axis(0, 3e-4), 3, ["0", "1e-4", "2e-4", "3e-4"]),
        (Axis(0.9121, 0.9124), 3, ["0.9121", "0.9122", "0.9123", "0.9124"]),
        (Axis(0, 40_000), 4, ["0", "10k", "20k", "30k", "40k"]),
        (Axis(1, 3, whole=True), 9, ["1", "2", "3"]),
        (Axis(1e-5, 1e-2, log=True), 4, ["1e-5", "1e-4", "0.001", "0.01"]),
        (Axis(100, 3000, log=True), 4, ["100", "300", "1000", "3000"]),
        (Axis(1e-9, 1e3, log=True), 4, ["1e-9", "1e-5", "0.1", "1000"]),
    ],
)
def test_ticks(axis: Axis, count: int, names: list[str]) -> None:
    found = [axis.name(tick, count) for tick in axis.ticks(count)]
    assert found == names


def test_gaps_are_left_where_there_is_no_value() -> None:
    text = draw_lines({"a": [1.0, math.nan, 1.0, math.inf, 1.0]}, width=44, height=8)
    row = next(line for line in text.splitlines() if "o" in line)
    assert "o" in row
    assert "oo" not in row


def test_logarithmic_axis_leaves_out_what_is_not_positive() -> None:
    text = draw_lines({"lr": [0.0, 1e-4, 1e-3, -1.0]}, width=50, height=12, log_y=True)
    assert "1e-4" in text
    with_zero = draw_lines({"lr": [0.0, 0.0]}, width=50, height=12, log_y=True)
    assert with_zero == NOTHING


@pytest.mark.parametrize("values", [[3.0, 3.0, 3.0], [0.0, 0.0], [7.0], [-2.0, -2.0]])
@pytest.mark.parametrize("log", [False, True])
def test_constant_series_and_single_points(values: list[float], log: bool) -> None:
    text = draw_lines({"a": values}, width=40, height=8, braille=True, log_y=log)
    if log and values[0] <= 0:
        assert text == NOTHING
    else:
        assert "o" in text
        assert len(text.splitlines()) == 8


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [math.nan]}])
def test_nothing_to_draw_is_said(series: dict[str, list[float]]) -> None:
    assert draw_lines(series, title="loss") == f"loss\n{NOTHING}"
    assert draw_scatter([]) == NOTHING


def test_sections_are_named_above_and_parted() -> None:
    text = draw_lines(
        {"lr": RISING * 2},
        x=[0.5 * step for step in range(10)],
        width=60,
        height=12,
        sections=[(0, "probe"), (2, "finetune")],
    )
    names, *lines = text.splitlines()
    assert names.split() == ["probe", "finetune"]
    assert sum(":" in line for line in lines) >= 4
    narrow = draw_lines(
        {"lr": RISING}, width=40, height=12, sections=[(1, "a long name"), (1.2, "b"), (5, "end")]
    )
    assert "a long name" not in narrow  # it would run into the next


def test_own_positions_of_each_series() -> None:
    text = draw_lines(
        {"a": [1.0, 2.0], "b": [1.0, 2.0]}, x={"a": [0, 1], "b": [0, 10]}, width=40, height=10
    )
    assert "10" in text.splitlines()[-2]
    assert "o" in text
    assert "x" in text


def test_names_from_outside_are_harmless_and_wide_ones_keep_the_columns() -> None:
    text = draw_lines(
        {"a\x1b[31m\n": RISING, "日本": FALLING}, width=40, title="t\x1b", braille=True
    )
    assert "\x1b" not in text
    assert text.splitlines()[-1].endswith("x 日本")
    points = [Point("日本語", 1, 1), Point("e\u0301clair\x1b[0m", 2, 2), Point("b", 3, 1)]
    drawn = draw_scatter(points, width=50, height=10)
    assert "\x1b" not in drawn
    assert "日本語" in drawn
    assert max(map(cell_len, drawn.splitlines())) <= 50


# --- points --------------------------------------------------------------------------------------


def test_points_are_marked_and_named() -> None:
    points = [
        Point("resnet18", 700, 0.70, "*"),
        Point("resnet50", 300, 0.80),
        Point("vit", 100, 0.85, "*"),
    ]
    text = draw_scatter(
        points, width=60, height=14, title="accuracy", x_title="images/s", log_x=True,
        marks={"*": "no other is better in both", "o": "others"},
    )  # fmt: skip
    for part in ("resnet18 *", "o resnet50", "* vit", "100", "200", "images/s"):
        assert part in text
    assert text.splitlines()[-1] == "* no other is better in both   o others"


def test_crowded_names_stand_below() -> None:
    points = [Point(f"network_number_{index}", 1 + index / 500, 1.0) for index in range(6)]
    points += [Point("far", 9, 2)]
    text = draw_scatter(points, width=40, height=10)
    for point in points:
        assert text.count(point.label) == 1
    assert max(map(len, text.splitlines())) <= 40


def test_points_in_one_cell_share_a_mark() -> None:
    text = draw_scatter([Point("one", 1, 1), Point("two", 1, 1)], width=50, height=10)
    assert "o one, two" in text


def test_points_that_cannot_be_shown_are_named() -> None:
    points = [Point("fine", 2, 1), Point("zero", 0, 1), Point("none", math.nan, 1)]
    text = draw_scatter(points, width=50, height=10, log_x=True)
    assert text.splitlines()[-1] == "not shown: zero, none"
    assert draw_scatter(points[1:], log_x=True) == f"{NOTHING}\nnot shown: zero, none"


def test_braille_is_for_streams_that_can_hold_it() -> None:
    for encoding, expected in (
        ("utf-8", True),
        ("UTF8", True),
        ("ascii", False),
        ("cp1252", False),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        assert takes_braille(stream) is expected
    assert not takes_braille(io.StringIO())
