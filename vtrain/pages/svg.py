"""What every chart is made of: scales, ticks, labels and the figure around them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vtrain.system.text import one_line

WIDTH = 360  # of a chart in its own units, which are pixels on a phone
CHAR_WIDTH = 6.3  # of the charts' text, on average and in pixels
SERIES = 6  # colours in style.css


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; what is outside stays at the border."""
        low, high, value = (
            (math.log10(max(each, 1e-300)) if self.log else each)
            for each in (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)


@dataclass(frozen=True, slots=True)
class Frame:
    """The area of a chart between its axes, in pixels."""

    left: float = 46
    top: float = 10
    right: float = WIDTH - 10
    bottom: float = 200


def find_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(each * step, 12) for each in range(first, last + 1)]


def find_log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`; powers alone over a wide range."""
    if not 0 < low < high:
        return [low] if low > 0 else []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    # Written as a fraction below 1: 5 * 10**-2 would be 0.05 plus a little.
    ticks = [
        step * 10.0**power if power >= 0 else step / 10.0**-power
        for power in range(first, last + 1)
        for step in steps
    ]
    inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return inside if len(inside) > 1 else [low, high]


def format_tick(value: float) -> str:
    """A number beside an axis: 0.05, 12, 1.5k, 2e-06."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}" if float(f"{value:.0e}") == value else f"{value:.1e}"
    if abs(value) >= 1e4:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def format_pixels(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def shorten(text: object, limit: int) -> str:
    """A name on one line, its middle left out where it is longer than `limit` characters."""
    line = one_line(text)
    if len(line) <= limit:
        return line
    tail = max(limit // 3, 1)
    return f"{line[: limit - tail - 1]}…{line[-tail:]}"


def draw_text(
    x: float, y: float, content: object, *, anchor: str = "start", kind: str = "", full: str = ""
) -> Markup:
    """Text at its baseline; `full` is what a pointer over it shows."""
    title = Markup("<title>{}</title>").format(one_line(full)) if full else Markup("")
    place = Markup(' text-anchor="{}"').format(anchor) if anchor != "start" else Markup("")
    style = Markup(' class="{}"').format(kind) if kind else Markup("")
    return Markup('<text x="{}" y="{}"{}{}>{}{}</text>').format(
        format_pixels(x), format_pixels(y), place, style, title, one_line(content)
    )


def draw_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line of the style `kind`."""
    places = (format_pixels(each) for each in (x1, y1, x2, y2))
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*places, kind)


def draw_whisker(low: float, high: float, y: float, half: float) -> Markup:
    """An interval from `low` to `high`, its ends twice `half` high."""
    ends = (draw_line(end, y - half, end, y + half, "whisker") for end in (low, high))
    return Markup("").join([draw_line(low, y, high, y, "whisker"), *ends])


def draw_rect(
    x: float, y: float, width: float, height: float, kind: str, *, opacity: float | None = None,
    title: str = "",
) -> Markup:  # fmt: skip
    """A filled rectangle of the style `kind`."""
    places = (format_pixels(each) for each in (x, y, width, height))
    see = Markup(' fill-opacity="{}"').format(f"{opacity:.2f}") if opacity is not None else ""
    inner = Markup("<title>{}</title>").format(one_line(title)) if title else ""
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"{}>{}</rect>').format(
        *places, kind, see, inner
    )


def draw_path(points: Iterable[tuple[float, float] | None], kind: str) -> Markup:
    """A line through points of the style `kind`; None breaks it, a point alone is a dot."""
    parts, open_line = [], False
    for point in points:
        if point is not None:
            place = f"{format_pixels(point[0])} {format_pixels(point[1])}"
            # `h0` makes a dot of a point alone, and nothing where a line goes on.
            parts.append(f"L{place}" if open_line else f"M{place}h0")
        open_line = point is not None
    return Markup('<path d="{}" class="{}"/>').format("".join(parts), kind)


def draw_x_axis(
    frame: Frame, scale: Scale, ticks: Sequence[float], label: str,
    format_value: Callable[[float], str] = format_tick, *, grid: bool = False,
) -> Markup:  # fmt: skip
    """Ticks and label below the frame."""
    parts = [draw_line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for tick in ticks:
        x = scale(tick)
        if grid:
            parts.append(draw_line(x, frame.top, x, frame.bottom, "grid"))
        text = format_value(tick)
        half = len(text) * CHAR_WIDTH / 2
        inside = min(max(x, half), WIDTH - half)
        parts.append(draw_text(inside, frame.bottom + 15, text, anchor="middle", kind="tick"))
    middle = (frame.left + frame.right) / 2
    parts.append(draw_text(middle, frame.bottom + 31, label, anchor="middle", kind="tick"))
    return Markup("").join(parts)


def draw_y_axis(
    frame: Frame, scale: Scale, ticks: Sequence[float],
    format_value: Callable[[float], str] = format_tick,
) -> Markup:  # fmt: skip
    """Ticks left of the frame and lines through it."""
    parts = []
    for tick in ticks:
        y = scale(tick)
        parts.append(draw_line(frame.left, y, frame.right, y, "grid"))
        text = format_value(tick)
        parts.append(draw_text(frame.left - 6, y + 4, text, anchor="end", kind="tick"))
    return Markup("").join(parts)


def build_figure(
    body: Iterable[Markup],
    *,
    title: str,
    text: str,
    height: float,
    width: float = WIDTH,
    legend: Sequence[tuple[str, Markup]] = (),
    note: str = "",
) -> Markup:
    """A chart with its title above and its legend and note below.

    `text` is what a reader gets who cannot see it; `legend` has a name and a mark for each series.
    A chart wider than a phone scrolls in its own region.
    """
    inner = Markup("").join(body)
    wide = width > WIDTH
    style = Markup(' style="min-width:{0}px;max-width:{0}px"').format(round(width)) if wide else ""
    svg = Markup(
        '<svg viewBox="0 0 {} {}" role="img"{}><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(
        *(format_pixels(width), format_pixels(height), style),
        *(one_line(title), one_line(text), inner),
    )
    if wide:
        svg = Markup(
            '<div class="scroll" tabindex="0" role="region" aria-label="{}">{}</div>'
        ).format(one_line(title), svg)
    parts = [Markup("<h3>{}</h3>").format(one_line(title)), svg]
    if legend:
        marks = (Markup("<li>{}{}</li>").format(mark, one_line(name)) for name, mark in legend)
        parts.append(Markup('<ul class="legend">{}</ul>').format(Markup("").join(marks)))
    if note:
        parts.append(Markup("<figcaption>{}</figcaption>").format(one_line(note)))
    return Markup('<figure class="chart">{}</figure>').format(Markup("").join(parts))


def draw_mark(inner: Markup) -> Markup:
    """The sign of a series in a legend, drawn into 16 x 12 pixels."""
    return Markup(
        '<svg class="mark" viewBox="0 0 16 12" width="16" height="12" aria-hidden="true">{}</svg>'
    ).format(inner)


def line_mark(kind: str) -> Markup:
    """The sign of a line."""
    return draw_mark(draw_line(1, 6, 15, 6, kind))


def area_mark(kind: str) -> Markup:
    """The sign of a bar or an area."""
    return draw_mark(draw_rect(2, 1, 12, 10, kind))


def series_class(index: int) -> str:
    """The style that carries the colour of a series; colours repeat after `SERIES`."""
    return f"s{index % SERIES + 1}"
