"""Line and scatter plots as plain text, for a terminal, a log, or a page of a build server."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TextIO

from vtrain.console import one_line

# Tells series apart without colour; braille lines carry it here and there, ASCII lines throughout.
MARKS = "ox+*#@%&=$"
# Stands for points whose names do not fit beside them.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
NARROWEST, LOWEST = 24, 4  # columns and rows below which nothing can be read
MARK_EVERY = 12  # columns between two marks of a braille line
ROWS_PER_TICK, COLUMNS_PER_TICK = 3, 12
# Bits of the dots in a braille character, by column and row (Unicode, block U+2800).
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
ASCII_FRAME, UNICODE_FRAME = "|+-+:", "│┤─┬┊"  # side, its tick, floor, its tick, section
NOTHING = "(no values to draw)"


@dataclass(frozen=True, slots=True)
class Point:
    """A named point of a scatter plot; `mark` is one character."""

    label: str
    x: float
    y: float
    mark: str = "o"


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows: a range, its title, and whether it is logarithmic or in whole numbers."""

    low: float
    high: float
    title: str = ""
    log: bool = False
    whole: bool = False

    def fraction(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high, value = (self._scale(each) for each in (self.low, self.high, value))
        return (value - low) / (high - low)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int) -> list[float]:
        """At most about `count` round values."""
        if self.log:
            return self._log_ticks(count)
        step = self._step(count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _step(self, count: int) -> float:
        """The smallest of 1, 2, 5, 10, ... times a power of ten that leaves `count` ticks."""
        rough = (self.high - self.low) / max(1, count)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
        return max(1.0, step) if self.whole else step

    def _log_ticks(self, count: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for mantissas in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
            ticks = [
                mantissa * 10.0**power
                for power in range(first, last + 1)
                for mantissa in mantissas
                if self.low * (1 - 1e-9) <= mantissa * 10.0**power <= self.high * (1 + 1e-9)
            ]
            if len(ticks) <= max(2, count):
                return ticks
        return ticks[:: math.ceil(len(ticks) / max(2, count))]

    def rounded(self, count: int) -> "Axis":
        """The same axis, as much longer as it takes to end at ticks."""
        if self.log:
            return replace(self, low=_round_log(self.low, up=False), high=_round_log(self.high))
        step = self._step(count)
        low = math.floor(self.low / step + 1e-9) * step
        return replace(
            self, low=low, high=max(low + step, math.ceil(self.high / step - 1e-9) * step)
        )

    def name(self, value: float, count: int) -> str:
        """A tick as text: 0.05, 2e-4, 150, 20k."""
        spread = 1 if self.log else max(abs(self.low), abs(self.high)) / self._step(count)
        digits = max(3, math.ceil(math.log10(max(spread, 1))) + 1)
        if abs(value) >= 10_000 and not self.whole:
            power, unit = next(
                each for each in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= each[0]
            )
            return f"{value / power:.{digits}g}{unit}"
        small = not self.log and max(abs(self.low), abs(self.high)) < 5e-3
        if value and (small or abs(value) < 1e-3):
            mantissa, _, power_text = f"{value:.{digits - 1}e}".partition("e")
            return f"{float(mantissa):g}e{int(power_text)}"
        if self.whole or abs(value) >= 1000:
            return f"{value:.0f}"
        return f"{value:.{digits}g}"


def _round_log(value: float, *, up: bool = True) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = [each * power for each in (1, 2, 5, 10)]
    if up:
        return next(each for each in steps if each >= value * (1 - 1e-9))
    return next(each for each in reversed(steps) if each <= value * (1 + 1e-9))


def takes_braille(stream: TextIO) -> bool:
    """Whether what is written to a stream can hold braille dots."""
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("_", "-")
    return encoding in ("utf-8", "utf8", "utf-8-sig")


def draw_lines(
    series: Mapping[str, Sequence[float]],
    *,
    x: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    width: int = 72,
    height: int = 14,
    braille: bool = False,
    title: str = "",
    x_title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    whole_x: bool = False,
    sections: Sequence[tuple[float, str]] = (),
) -> str:
    """Curves with axes and a legend, at most `width` columns wide and `height` rows high.

    `x` are the positions of all series, or those of each; without it 1, 2, 3, ... A value that is
    not finite, or not positive on a logarithmic axis, is a gap. `sections` are named ranges of x,
    each from its start to the next one's. The text has no escape codes and no final line feed.
    """
    curves = [
        list(zip(_positions(x, name, len(values)), values, strict=False))
        for name, values in series.items()
    ]
    shown = [each for curve in curves for each in curve if _can_show(each, log_x, log_y)]
    if not shown:
        return "\n".join(filter(None, (one_line(title), NOTHING)))
    legend = [f"{_mark(index)} {one_line(name)}" for index, name in enumerate(series)]
    foot = _wrap(legend, width) if len(legend) > 1 or not title else []
    rows = height - len(foot) - 2 - bool(title) - bool(sections)
    x_axis = _fit_axis([each[0] for each in shown], x_title, log=log_x, whole=whole_x)
    y_axis = _fit_axis([each[1] for each in shown], "", log=log_y)
    canvas = _Canvas.build(x_axis, y_axis.rounded(rows // ROWS_PER_TICK), width, rows, braille)
    head = [one_line(title)] if title else []
    if sections:
        head.append(canvas.draw_sections(sections))
    for index, curve in reversed(list(enumerate(curves))):  # the first lies on top
        canvas.draw_curve(curve, _mark(index), offset=index)
    return "\n".join(line.rstrip() for line in (*head, *canvas.lines(), *foot))


def draw_scatter(
    points: Sequence[Point],
    *,
    width: int = 72,
    height: int = 18,
    braille: bool = False,
    title: str = "",
    x_title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[str, str] | None = None,
) -> str:
    """Named points with axes; names that do not fit beside their points stand below, by letters.

    `marks` says what the marks of the points mean. Points that cannot be shown, as in
    `draw_lines`, are named below as left out. Points given first get their names first. `height`
    is without the lines below.
    """
    shown = [each for each in points if _can_show((each.x, each.y), log_x, log_y)]
    head = [one_line(title)] if title else []
    foot = [f"{mark} {one_line(meaning)}" for mark, meaning in (marks or {}).items()]
    left_out = [one_line(each.label) for each in points if each not in shown]
    missing = _wrap([f"not shown: {', '.join(left_out)}"], width) if left_out else []
    if not shown:
        return "\n".join((*head, NOTHING, *missing))
    rows = height - 2 - bool(title)
    x_axis = _fit_axis([each.x for each in shown], x_title, log=log_x)
    y_axis = _fit_axis([each.y for each in shown], "", log=log_y)
    canvas = _Canvas.build(
        x_axis.rounded(width // COLUMNS_PER_TICK),
        y_axis.rounded(rows // ROWS_PER_TICK),
        width,
        rows,
        braille,
    )
    below = canvas.draw_points(shown)
    lines = (*head, *canvas.lines(), *_wrap(foot, width), *_wrap(below, width), *missing)
    return "\n".join(line.rstrip() for line in lines)


def _positions(
    x: Sequence[float] | Mapping[str, Sequence[float]] | None, name: str, count: int
) -> Sequence[float]:
    if x is None:
        return range(1, count + 1)
    return x[name] if isinstance(x, Mapping) else x


def _mark(index: int) -> str:
    marks = MARKS + LETTERS
    return marks[index % len(marks)]


def _can_show(point: tuple[float, float], log_x: bool, log_y: bool) -> bool:
    pairs = zip(point, (log_x, log_y), strict=True)
    return all(math.isfinite(value) and (value > 0 or not log) for value, log in pairs)


def _fit_axis(values: Sequence[float], title: str, *, log: bool, whole: bool = False) -> Axis:
    """An axis over all values, with room on both sides of a single one."""
    low, high = min(values), max(values)
    if whole:
        low, high = math.floor(low), math.ceil(high)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = 1.0 if whole or low == 0 else abs(low) / 2
        low, high = (low / 2, high * 2) if log else (low - room, high + room)
    return Axis(low, high, one_line(title), log, whole)


def _wrap(entries: Sequence[str], width: int) -> list[str]:
    """Entries side by side in as many lines as they need."""
    from textwrap import wrap

    lines: list[str] = []
    for entry in entries:
        if lines and _cells(f"{lines[-1]}   {entry}") <= width:
            lines[-1] += f"   {entry}"
        else:
            lines.extend(wrap(entry, width, break_on_hyphens=False))
    return lines


def _cells(text: str) -> int:
    """Columns that a text takes."""
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)


@dataclass(slots=True)
class _Canvas:
    """A field of character cells between two axes; row 0 is at the top."""

    x: Axis
    y: Axis
    width: int  # of the field, without the names of the y axis
    height: int
    margin: int
    braille: bool
    marks: dict[tuple[int, int], str] = field(default_factory=dict)
    dots: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def build(cls, x: Axis, y: Axis, width: int, height: int, braille: bool) -> "_Canvas":
        """A field that fills `width` columns together with the names of the y axis."""
        height = max(LOWEST, height)
        count = height // ROWS_PER_TICK
        margin = max(_cells(y.name(tick, count)) for tick in [*y.ticks(count), y.high]) + 2
        return cls(x, y, max(NARROWEST, width) - margin, height, margin, braille)

    def cell(self, point: tuple[float, float]) -> tuple[int, int]:
        """Column and row of a point."""
        return (
            round(self.x.fraction(point[0]) * (self.width - 1)),
            round((1 - self.y.fraction(point[1])) * (self.height - 1)),
        )

    def draw_curve(self, curve: Sequence[tuple[float, float]], mark: str, *, offset: int) -> None:
        """A line through all points that can be shown, broken where one cannot."""
        before: tuple[float, float] | None = None
        last: tuple[float, float] | None = None
        for point in curve:
            if not _can_show(point, self.x.log, self.y.log):
                before = None
                continue
            for place in self._between(before, point):
                self._draw_dot(place, mark, offset)
            before = last = point
        if last is not None and mark not in self.marks.values():  # it came by no place for one
            self.marks[self.cell(last)] = mark

    def _between(
        self, start: tuple[float, float] | None, stop: tuple[float, float]
    ) -> Iterable[tuple[float, float]]:
        """Places on the way, as fractions of the field, close enough to leave no gap."""
        end = (self.x.fraction(stop[0]), 1 - self.y.fraction(stop[1]))
        if start is None:
            return [end]
        begin = (self.x.fraction(start[0]), 1 - self.y.fraction(start[1]))
        fine = (2 * self.width, 4 * self.height) if self.braille else (self.width, self.height)
        steps = max(
            1, *(math.ceil(abs(b - a) * n) for a, b, n in zip(begin, end, fine, strict=True))
        )
        return [
            tuple(a + (b - a) * step / steps for a, b in zip(begin, end, strict=True))  # type: ignore[misc]
            for step in range(steps + 1)
        ]

    def _draw_dot(self, place: tuple[float, float], mark: str, offset: int) -> None:
        cell = (round(place[0] * (self.width - 1)), round(place[1] * (self.height - 1)))
        if not self.braille:
            self.marks[cell] = mark
            return
        column = round(place[0] * (2 * self.width - 1))
        row = round(place[1] * (4 * self.height - 1))
        cell = (column // 2, row // 4)
        self.dots[cell] = self.dots.get(cell, 0) | BRAILLE[column % 2][row % 4]
        # Not where another series has its mark, and once in a steep piece.
        if cell[0] % MARK_EVERY == (MARK_EVERY // 2 + 3 * offset) % MARK_EVERY and not any(
            self.marks.get((cell[0], row)) == mark for row in range(self.height)
        ):
            self.marks.setdefault(cell, mark)

    def draw_sections(self, sections: Sequence[tuple[float, str]]) -> str:
        """A dotted line at the start of each section; the line of their names, as far as they fit.

        A section's line is left out where it would lie on the axis.
        """
        line, bar = [" "] * (self.margin + self.width), self._frame[4]
        starts = [(round(self.x.fraction(x) * (self.width - 1)), name) for x, name in sections]
        for (start, name), (stop, _) in zip(starts, [*starts[1:], (self.width, "")], strict=True):
            if 0 < start < self.width:
                for row in range(self.height):
                    self.marks[start, row] = bar
            _write(line, max(start, 0) + self.margin, one_line(name), stop - max(start, 0) - 1)
        return "".join(line)

    def draw_points(self, points: Sequence[Point]) -> list[str]:
        """Marks with names beside them; what is to stand below: a letter and its names."""
        for point in points:
            self.marks.setdefault(self.cell((point.x, point.y)), point.mark[:1] or "o")
        by_cell: dict[tuple[int, int], list[str]] = {}
        for point in points:
            by_cell.setdefault(self.cell((point.x, point.y)), []).append(one_line(point.label))
        crowded = {
            cell: names
            for cell, names in by_cell.items()
            if not self._write_beside(cell, ", ".join(names))
        }
        below = []
        for letter, (cell, names) in zip(_letters(), sorted(crowded.items()), strict=False):
            if not self._write_beside(cell, letter, gap=0):
                self.marks[cell] = letter[0]
            below.append(f"{letter} {', '.join(names)}")
        return below

    def _write_beside(self, cell: tuple[int, int], name: str, *, gap: int = 1) -> bool:
        """Write a name to the right or the left of a mark; whether there was room for it."""
        length, (column, row) = _cells(name), cell
        for start in (column + 1 + gap, column - gap - length):
            taken = range(start - gap, start + length + gap)
            inside = start >= 0 and start + length <= self.width
            if inside and not any((each, row) in self.marks for each in taken if each != column):
                for place, char in zip(_places(name, start), name, strict=True):
                    self.marks[place, row] = self.marks.get((place, row), "") + char
                for place in range(start, start + length):
                    self.marks.setdefault((place, row), "")  # the second half of a wide one
                return True
        return False

    @property
    def _frame(self) -> str:
        return UNICODE_FRAME if self.braille else ASCII_FRAME

    def lines(self) -> list[str]:
        """The field between its axes, and the names of the ticks."""
        side, side_tick = self._frame[0], self._frame[1]
        count = self.height // ROWS_PER_TICK
        names = {
            self.cell((self.x.low, tick))[1]: self.y.name(tick, count)
            for tick in self.y.ticks(count)
        }
        lines = []
        for row in range(self.height):
            name = f"{names.get(row, ''):>{self.margin - 2}} {side_tick if row in names else side}"
            lines.append(name + "".join(self._char(column, row) for column in range(self.width)))
        return [*lines, *self._floor()]

    def _char(self, column: int, row: int) -> str:
        cell = (column, row)
        dots = self.dots.get(cell, 0)
        mark = self.marks.get(cell)
        if dots and (mark is None or mark == self._frame[4]):
            return chr(0x2800 + dots)
        return " " if mark is None else mark

    def _floor(self) -> list[str]:
        floor, floor_tick = self._frame[2], self._frame[3]
        count = max(1, self.width // COLUMNS_PER_TICK)
        line, names = [floor] * self.width, [" "] * (self.margin + self.width)
        title = self.x.title
        room = len(names)
        if title:
            room -= min(len(title), room // 2) + 1
            _write(names, room + 1, title, len(names) - room - 1)
        free = 0
        for tick in self.x.ticks(count):
            column = self.cell((tick, self.y.low))[0]
            name = self.x.name(tick, count)
            start = min(max(0, column + self.margin - len(name) // 2), len(names) - len(name))
            line[column] = floor_tick
            if start >= free and start + len(name) <= room:
                _write(names, start, name, len(name))
                free = start + len(name) + 1
        corner = "└" if self.braille else "+"
        return [" " * (self.margin - 1) + corner + "".join(line), "".join(names)]


def _letters() -> Iterable[str]:
    """a, b, ..., Z, aa, ab, ..."""
    yield from LETTERS
    for first in LETTERS:
        for second in LETTERS:
            yield first + second


def _places(text: str, start: int) -> list[int]:
    """The column of each character; one without a width shares that of the one before it."""
    places = []
    for char in text:
        width = _cells(char)
        places.append(start if width else max(0, start - 1))
        start += width
    return places


def _write(line: list[str], start: int, text: str, room: int) -> None:
    """Write as much of a text as there is room for into a line of single columns."""
    for place, char in zip(_places(text, start), text, strict=True):
        if place + _cells(char) > start + room:
            return
        line[place] = char if _cells(char) else line[place] + char
        for half in range(place + 1, place + _cells(char)):
            line[half] = ""
