"""Curves and points as plain text, for a terminal or a log: no colour and no escape codes."""

import math
from collections.abc import Mapping, Sequence
from string import ascii_letters
from textwrap import fill
from typing import TextIO

from vtrain.system.terminal import find_width
from vtrain.system.text import one_line

HEIGHT = 13  # rows between title and legend
WIDTH, WIDEST = 80, 100  # columns off a terminal, and at most on one
MARKS = "ox+*#@%&=$" + ascii_letters
ASCII_FRAME = str.maketrans("│┤├┼┬┴┌┐└┘─┊", "|+++++++++-:")


def draw_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    stream: TextIO,
    *,
    title: str,
    x_title: str,
    log_x: bool = False,
    log_y: bool = False,
    starts: Sequence[tuple[float, str]] = (),
) -> str:
    """Named series of x and y as curves, those of one value as points, with axes and a legend.

    A value that is not finite, or not positive on a logarithmic axis, is left out. A linear x axis
    counts in whole numbers; `starts` are positions on it at which something named begins.
    """
    width = min(find_width(stream) or WIDTH, WIDEST)
    curves = [
        [(x, y) for x, y in zip(*each, strict=True) if _shows(x, log_x) and _shows(y, log_y)]
        for each in series.values()
    ]
    marks = [MARKS[index % len(MARKS)] for index in range(len(curves))]
    names = [f"{mark} {one_line(name)}" for mark, name in zip(marks, series, strict=True)]
    legend = fill("   ".join(names), width, break_on_hyphens=False)
    if not any(curves):
        return f"{title}\n(no values to draw)\n{legend}"
    from plotext import figure, terminal

    figure.clear()  # one for the whole process
    terminal.limit(width=False, height=False)
    figure.plot_size(width, HEIGHT)
    for place, log in enumerate((log_x, log_y)):
        values = [point[place] for curve in curves for point in curve]
        ticks = _find_ticks(values, log=log, least=0 if place else 1)
        figure.ruler(place, 0 if place else "both").lim(*_scale([ticks[0], ticks[-1]], log))
        figure.ruler(place, 0).ticks(_scale(ticks, log), [f"{tick:g}" for tick in ticks])
    figure.ruler(0, 1).ticks([start for start, _ in starts], [one_line(name) for _, name in starts])
    for start, _ in starts:
        figure.line(start, orientation="vertical", style="dotted")
    for curve, mark in reversed(list(zip(curves, marks, strict=True))):  # the first lies on top
        xs, ys = ([point[place] for point in curve] for place in (0, 1))
        figure.draw(figure.signal(_scale(xs, log_x), _scale(ys, log_y), marker=mark).lines())
    figure.label(x_title, "x")
    text: str = figure.build().string(colorless=True)
    figure.clear()
    if (stream.encoding or "ascii").lower().replace("-", "").removesuffix("sig") != "utf8":
        text = text.translate(ASCII_FRAME)
    rows = [line.rstrip() for line in text.splitlines()]
    return "\n".join([title, *filter(None, rows), legend])


def _shows(value: float, log: bool) -> bool:
    # Not only for the eye: a value that is not finite ends the process in the C++ of plotext.
    return math.isfinite(value) and (value > 0 or not log)


def _scale(values: Sequence[float], log: bool) -> list[float]:
    return [math.log10(value) for value in values] if log else list(values)


def _find_ticks(values: Sequence[float], *, log: bool, least: float) -> list[float]:
    """About two to six round numbers, the first and last of which enclose the values."""
    low, high = min(values), max(values)
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        few = len(powers) <= 3
        ticks = [each * 10.0**power for power in powers for each in ((1, 2, 5) if few else (1,))]
    else:
        power = 10.0 ** math.floor(math.log10((high - low) or abs(low) or 1.0))
        factor = 0.5 if high - low < 2.5 * power else 1 if high - low <= 6 * power else 2
        step = max(least, factor * power)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = [step * number for number in range(first, max(last, first + 1) + 1)]
    below = max((tick for tick in ticks if tick <= low), default=low / 2)
    above = min((tick for tick in ticks if tick >= high and tick > below), default=high * 2)
    return [below, *(tick for tick in ticks if below < tick < above), above]
