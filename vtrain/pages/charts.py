"""Charts of a run as inline SVG: no script, colours of the page, every name escaped."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from vtrain.inference.calibration import CalibrationBin
from vtrain.pages.svg import (
    CHAR_WIDTH,
    WIDTH,
    Frame,
    Scale,
    area_mark,
    build_figure,
    draw_line,
    draw_mark,
    draw_path,
    draw_rect,
    draw_text,
    draw_whisker,
    draw_x_axis,
    draw_y_axis,
    find_log_ticks,
    find_ticks,
    format_pixels,
    format_tick,
    line_mark,
    series_class,
    shorten,
)

LABEL = 16  # characters of a name beside a bar
ROW = 20  # pixels of a horizontal bar with its gap
MOST_COLOURS = 12  # classes of a map: six colours, each round and square
DIGIT_WIDTH = 5.6  # pixels, in the smaller text of ticks
_Box = tuple[float, float, float, float]  # left, top, right, bottom
MAX_BARS = 100  # columns that can be told apart at the width of a phone


@dataclass(frozen=True, slots=True)
class Series:
    """A line: (x, y) by rising x; values that are not finite leave a gap."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True, slots=True)
class Span:
    """A named stretch of the x axis, such as the epochs of a phase."""

    name: str
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, where one is known; `detail` is shown beside the value."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a map; `group` indexes the classes."""

    x: float
    y: float
    group: int
    correct: bool = True


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """A model by cost and gain: `x` and `y` are better the larger, with an interval of `y`."""

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None = None


def format_share(value: float) -> str:
    """A share beside an axis: 0.25 becomes 25 %."""
    return f"{100 * value:.3g} %"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    spans: Sequence[Span] = (),
    mark: tuple[float, str] | None = None,
    format_y: Callable[[float], str] = format_tick,
    note: str = "",
) -> Markup:
    """Several series over epochs; `spans` are shaded by turns and named, `mark` is a vertical line.

    An axis has room for a single epoch, and for values that are all the same.
    """
    points = [point for each in series for point in each.finite]
    if not points:
        return build_figure(
            [draw_text(WIDTH / 2, 40, "no finite values", anchor="middle", kind="tick")],
            title=title, text="There are no finite values to draw.", height=70, note=note,
        )  # fmt: skip
    frame = Frame(top=26 if spans or mark else 10)
    low, high = min(y for _, y in points), max(y for _, y in points)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    y = Scale(low - margin if low != 0 else 0.0, high + margin, frame.bottom, frame.top)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    half = 0.5 if first == last else 0.0
    x = Scale(first - half, last + half, frame.left + 6, frame.right - 6)
    parts = [_draw_span(span, index, x, frame) for index, span in enumerate(spans)]
    parts.append(draw_y_axis(frame, y, find_ticks(y.low, y.high), format_y))
    parts.append(draw_x_axis(frame, x, _whole_ticks(x), "epoch"))
    if mark is not None:
        place, half = x(mark[0]), len(mark[1]) * CHAR_WIDTH / 2
        parts.append(draw_line(place, frame.top, place, frame.bottom, "guide"))
        inside = min(max(place, frame.left + half), frame.right - half)
        parts.append(draw_text(inside, frame.top - 14, mark[1], anchor="middle", kind="tick"))
    legend = []
    for index, each in enumerate(series):
        kind = f"line {series_class(index)}{' dashed' if each.dashed else ''}"
        finite = [(a, b) if math.isfinite(a + b) else None for a, b in each.points]
        parts.append(draw_path([p and (x(p[0]), y(p[1])) for p in finite], kind))
        legend.append((each.name, line_mark(kind)))
    text = "; ".join(_describe_series(each, format_y) for each in series)
    return build_figure(parts, title=title, text=text, height=236, legend=legend, note=note)


def _whole_ticks(scale: Scale, count: int = 6) -> list[float]:
    return [tick for tick in find_ticks(scale.low, scale.high, count) if tick == int(tick)]


def _draw_span(span: Span, index: int, x: Scale, frame: Frame) -> Markup:
    left = max(x(span.first - 0.5), frame.left)
    right = min(x(span.last + 0.5), frame.right)
    room = int((right - left) / CHAR_WIDTH)
    parts = []
    if index % 2 == 0:
        parts.append(draw_rect(left, frame.top, right - left, frame.bottom - frame.top, "phase"))
    if room >= 4:
        name = shorten(span.name, room)
        parts.append(
            draw_text((left + right) / 2, frame.top - 3, name, kind="tick middle", full=span.name)
        )
    return Markup("").join(parts)


def _describe_series(series: Series, format_y: Callable[[float], str]) -> str:
    finite = series.finite
    if not finite:
        return f"{series.name}: no finite values"
    lost = len(series.points) - len(finite)
    values = [y for _, y in finite]
    return (
        f"{series.name}: from {format_y(values[0])} to {format_y(values[-1])}, "
        f"smallest {format_y(min(values))}, largest {format_y(max(values))}"
        + (f", {lost} values are not finite" if lost else "")
    )


def stacked_bars(
    title: str, names: Sequence[str], columns: Sequence[tuple[float, Sequence[float]]]
) -> Markup:
    """One column of seconds for each (epoch, parts); many are drawn as means of neighbours."""
    columns = [
        (x, [part if math.isfinite(part) and part > 0 else 0.0 for part in parts])
        for x, parts in columns
    ]
    size = -(-len(columns) // MAX_BARS) or 1
    groups = [columns[start : start + size] for start in range(0, len(columns), size)]
    columns = [
        (
            fmean(x for x, _ in group),
            [fmean(each) for each in zip(*(p for _, p in group), strict=True)],
        )
        for group in groups
    ]
    frame = Frame()
    top = max((sum(parts) for _, parts in columns), default=0.0) or 1.0
    y = Scale(0.0, top * 1.05, frame.bottom, frame.top)
    step = (columns[-1][0] - columns[0][0]) / (len(columns) - 1) if len(columns) > 1 else 1.0
    first, last = (columns[0][0], columns[-1][0]) if columns else (0.0, 1.0)
    x = Scale(first - step / 2, last + step / 2, frame.left + 1, frame.right)
    width = (frame.right - frame.left) / max(len(columns), 1)
    width = min(width * 0.8, 40.0)
    parts = [draw_y_axis(frame, y, find_ticks(0.0, top * 1.05))]
    for place, values in columns:
        base = 0.0
        for index, value in enumerate(values):
            height = y(base) - y(base + value)
            if height > 0.05:
                kind = f"fill {series_class(index)}"
                parts.append(draw_rect(x(place) - width / 2, y(base + value), width, height, kind))
            base += value
    parts.append(draw_x_axis(frame, x, _whole_ticks(x), "epoch"))
    totals = [sum(values[index] for _, values in columns) for index in range(len(names))]
    pairs = zip(names, totals, strict=True)
    shares = [f"{name} {100 * t / (sum(totals) or 1):.0f} %" for name, t in pairs]
    legend = [(name, area_mark(f"fill {series_class(i)}")) for i, name in enumerate(shares)]
    text = f"seconds for each epoch; together: {', '.join(shares)}"
    return build_figure(parts, title=title, text=text, height=236, legend=legend)


def interval_bars(title: str, bars: Sequence[Bar], *, note: str = "") -> Markup:
    """Horizontal bars of shares between 0 and 1, with whiskers where intervals are known."""
    longest = max((len(shorten(bar.label, LABEL)) for bar in bars), default=0)
    shown = [f"{format_share(bar.value)} {shorten(bar.detail, 10)}".strip() for bar in bars]
    room = max(map(len, shown), default=0) * DIGIT_WIDTH + 12
    frame = Frame(
        left=longest * (CHAR_WIDTH + 0.6) + 10,
        right=WIDTH - room,
        top=4,
        bottom=6 + ROW * len(bars),
    )
    x = Scale(0.0, 1.0, frame.left, frame.right)
    parts = [draw_x_axis(frame, x, [0.0, 0.5, 1.0], "", format_share, grid=True)]
    for index, bar in enumerate(bars):
        middle = frame.top + ROW * index + ROW / 2
        parts.append(
            draw_text(frame.left - 6, middle + 4, shorten(bar.label, LABEL), anchor="end",
                      full=bar.label)
        )  # fmt: skip
        if not math.isfinite(bar.value):
            parts.append(draw_text(frame.left + 4, middle + 4, "unknown", kind="tick"))
            continue
        width = x(bar.value) - frame.left
        parts.append(draw_rect(frame.left, middle - 6, width, 12, "fill s1", opacity=0.55))
        if bar.interval is not None:
            parts.append(draw_whisker(x(bar.interval[0]), x(bar.interval[1]), middle, 3))
        parts.append(draw_text(frame.right + 8, middle + 4, shown[index], kind="tick"))
    text = "; ".join(
        f"{shorten(bar.label, 40)} {format_share(bar.value)}"
        for bar in bars
        if math.isfinite(bar.value)
    )
    return build_figure(parts, title=title, text=text, height=frame.bottom + 20, note=note)


def histogram(
    title: str, columns: Sequence[tuple[str, int]], *, x_label: str, y_label: str
) -> Markup:
    """Counts of named bins side by side."""
    frame = Frame()
    top = max((count for _, count in columns), default=0) or 1
    x = Scale(0, max(len(columns), 1), frame.left, frame.right)
    y = Scale(0.0, top * 1.1, frame.bottom, frame.top)
    parts = [draw_y_axis(frame, y, _whole_ticks(y, 5))]
    width = x(1) - x(0)
    longest = max((len(name) for name, _ in columns), default=0)
    every = math.ceil((longest + 1) * DIGIT_WIDTH / width)  # so many columns share a name's room
    for index, (name, count) in enumerate(columns):
        left = x(index)
        parts.append(
            draw_rect(left + 1, y(count), width - 2, frame.bottom - y(count), "fill s1",
                      title=f"{name}: {count}")
        )  # fmt: skip
        if index % every == 0:
            middle = left + width / 2
            parts.append(draw_text(middle, frame.bottom + 15, name, anchor="middle", kind="tick"))
    parts.append(draw_x_axis(frame, x, [], x_label))
    text = f"{y_label} by {x_label}: " + ", ".join(f"{name}: {count}" for name, count in columns)
    return build_figure(parts, title=title, text=text, height=236)


def reliability_chart(
    title: str,
    bins: Sequence[CalibrationBin],
    raw: Sequence[CalibrationBin] = (),
    *,
    note: str = "",
) -> Markup:
    """Accuracy over confidence before (`raw`) and after calibration, and images in each bin."""
    frame = Frame(bottom=210)
    x = Scale(0.0, 1.0, frame.left, frame.right)
    y = Scale(0.0, 1.0, frame.bottom, frame.top)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = [draw_y_axis(frame, y, ticks, format_share)]
    parts.append(draw_line(x(0), y(0), x(1), y(1), "guide"))
    named = [("before", raw, "s2", True), ("after", bins, "s1", False)]
    legend, texts = [("perfectly calibrated", line_mark("guide"))], []
    for name, each, colour, dashed in named:
        points = [
            (one.confidence, one.accuracy)
            for one in each
            if one.count and math.isfinite(one.confidence + one.accuracy)
        ]
        if points:
            kind = f"line {colour}{' dashed' if dashed else ''}"
            parts.append(draw_path([(x(a), y(b)) for a, b in points], kind))
            parts += [draw_path([(x(a), y(b))], f"dots {colour}") for a, b in points]
            legend.append((f"{name} temperature scaling" if raw else "the model", line_mark(kind)))
            texts.append(f"{name}: " + ", ".join(f"{a:.2f} {b:.2f}" for a, b in points))
    counts, bottom = _draw_counts(bins or raw, frame, x)
    parts += counts
    below = Frame(left=frame.left, right=frame.right, top=frame.top, bottom=bottom)
    parts.append(draw_x_axis(below, x, ticks, "confidence", format_share))
    text = "Mean confidence and accuracy of each bin; " + "; ".join(texts)
    return build_figure(parts, title=title, text=text, height=bottom + 36, legend=legend, note=note)


def _draw_counts(
    bins: Sequence[CalibrationBin], frame: Frame, x: Scale
) -> tuple[list[Markup], float]:
    """Bars of the number of images in each bin, below the frame, and where they end."""
    top, bottom = frame.bottom + 12, frame.bottom + 62
    most = max((each.count for each in bins), default=0) or 1
    height = Scale(0, most, 0, bottom - top - 12)
    parts = [draw_text(frame.left - 6, bottom - 2, "images", anchor="end", kind="tick")]
    for each in bins:
        if each.count:
            left, right = x(each.low) + 1, x(each.high) - 1
            tall = max(height(each.count), 1.0)
            parts.append(
                draw_rect(left, bottom - tall, right - left, tall, "fill s1", opacity=0.55,
                          title=f"{each.count} images")
            )  # fmt: skip
            if right - left > len(str(each.count)) * DIGIT_WIDTH:
                middle = (left + right) / 2
                place = bottom - tall - 3
                parts.append(draw_text(middle, place, each.count, anchor="middle", kind="tick"))
    return parts, bottom


def _place_label(x: float, y: float, text: str, frame: Frame, taken: list[_Box]) -> _Box:
    """The box of a label near a point, where it covers least of those that are `taken`."""

    def cost(box: _Box) -> float:
        covered = sum(
            max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
            * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
            for other in taken
        )
        return covered + 30 * (max(0.0, frame.top - box[1]) + max(0.0, box[3] - frame.bottom))

    width = len(text) * CHAR_WIDTH
    found = []
    for distance in (8.0, 18.0, 30.0):
        for dx, dy in ((1, -0.5), (-1, -0.5), (1, 0.9), (-1, 0.9), (0, -1), (0, 1.5)):
            left = x + dx * distance - (width if dx < 0 else width / 2 if dx == 0 else 0)
            left = min(max(left, 2), WIDTH - width - 2)
            base = y + dy * distance + 4
            box = (left, base - 10, left + width, base + 3)
            found.append((cost(box) + 0.5 * distance, box))
    return min(found, key=lambda each: each[0])[1]


def pareto_chart(
    title: str,
    points: Sequence[ParetoPoint],
    *,
    x_label: str = "images per second",
    note: str = "",
) -> Markup:
    """Models by speed (logarithmic) and accuracy; a line joins those that none beats in both."""
    points = [each for each in points if each.x > 0 and math.isfinite(each.x + each.y)]
    frame = Frame(top=16, bottom=250)
    ys = [value for p in points for value in (p.y, *(p.interval or ()))]
    low, high = min(ys, default=0.0), max(ys, default=1.0)
    margin = 0.08 * (high - low) or 0.05
    y = Scale(low - margin, high + margin, frame.bottom, frame.top)
    xs = [each.x for each in points] or [1.0]
    x = Scale(min(xs) / 1.25, max(xs) * 1.25, frame.left, frame.right, log=True)
    front = find_front(points)
    parts = [draw_y_axis(frame, y, find_ticks(y.low, y.high), format_share)]
    parts.append(draw_x_axis(frame, x, find_log_ticks(x.low, x.high), f"{x_label} (logarithmic)"))
    parts.append(draw_text(2, 10, "accuracy", kind="tick"))
    parts.append(draw_path([(x(each.x), y(each.y)) for each in front], "line s1"))
    taken = [(x(p.x) - 5, y(p.y) - 5, x(p.x) + 5, y(p.y) + 5) for p in points]
    for each in sorted(points, key=lambda each: -each.y):
        best, (left, middle) = each in front, (x(each.x), y(each.y))
        if each.interval is not None:
            parts.append(draw_line(left, y(each.interval[0]), left, y(each.interval[1]), "guide"))
        parts.append(draw_path([(left, middle)], f"dots {'s1' if best else 'quiet'}"))
        label = shorten(each.label, 22)
        taken.append(_place_label(left, middle, label, frame, taken))
        kind = "halo" if best else "halo tick"
        box = taken[-1]
        parts.append(draw_text(box[0], box[1] + 10, label, kind=kind, full=each.label))
    names = ", ".join(shorten(each.label, 40) for each in front)
    text = f"{len(points)} models; best at their speed or faster: {names}"
    legend = [
        ("none is both faster and better", line_mark("line s1")),
        ("others", _dot_mark("dots quiet")),
    ]
    return build_figure(parts, title=title, text=text, height=286, legend=legend, note=note)


def find_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The points that none beats in x and y, by rising x."""
    front: list[ParetoPoint] = []
    for each in sorted(points, key=lambda each: (-each.x, -each.y)):
        if not front or each.y > front[-1].y:
            front.append(each)
    return front[::-1]


def scatter_map(
    title: str, dots: Sequence[Dot], classes: Sequence[str], *, note: str = ""
) -> Markup:
    """A map of images: a dot in its class's colour, a cross where the model is wrong.

    Beyond `MOST_COLOURS` classes, colours tell only right from wrong.
    """
    frame = Frame(left=6, top=6, right=WIDTH - 6, bottom=300)
    dots = [each for each in dots if math.isfinite(each.x + each.y)]
    xs, ys = [each.x for each in dots] or [0.0], [each.y for each in dots] or [0.0]
    # One scale for both axes: distances on the map are distances between features.
    extent = max(max(xs) - min(xs), (max(ys) - min(ys)) * 348 / 294) or 1.0
    middle = ((max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2)
    x = Scale(middle[0] - 0.52 * extent, middle[0] + 0.52 * extent, frame.left, frame.right)
    tall = 0.52 * extent * 294 / 348
    y = Scale(middle[1] - tall, middle[1] + tall, frame.bottom, frame.top)
    coloured = len(classes) <= MOST_COLOURS
    groups: dict[str, list[Dot]] = {}
    for each in dots:
        groups.setdefault(_dot_kind(each, coloured), []).append(each)
    box = draw_rect(frame.left, frame.top, frame.right - frame.left, 294, "phase")
    parts = [box, *(_draw_dots(kind, groups[kind], x, y) for kind in sorted(groups, reverse=True))]
    present = {each.group for each in dots}
    if coloured:
        legend = [
            (name, _dot_mark(_dot_kind(Dot(0, 0, index), True)))
            for index, name in enumerate(classes)
            if index in present
        ]
        legend.append(("predicted wrongly", _dot_mark("cross quiet")))
    else:
        legend = [("right", _dot_mark("dots right")), ("wrong", _dot_mark("cross wrong"))]
    wrong = sum(not each.correct for each in dots)
    text = f"{len(dots)} images of {len(present)} classes, {wrong} of them predicted wrongly"
    return build_figure(parts, title=title, text=text, height=306, legend=legend, note=note)


def _dot_kind(dot: Dot, coloured: bool) -> str:
    shape = "dots" if dot.correct else "cross"
    if not coloured:
        return f"{shape} {'right' if dot.correct else 'wrong'}"
    square = " square" if dot.correct and dot.group >= MOST_COLOURS // 2 else ""
    return f"{shape} {series_class(dot.group)}{square}"


def _draw_dots(kind: str, dots: Sequence[Dot], x: Scale, y: Scale) -> Markup:
    """All dots of one kind in one path: a thousand take some 15 kB."""
    if kind.startswith("cross"):
        shape = "m-3-3l6 6m0-6l-6 6"
    else:
        shape = "m-2.5 0h5" if "square" in kind else "h0"
    places = (f"M{format_pixels(x(each.x))} {format_pixels(y(each.y))}{shape}" for each in dots)
    return Markup('<path d="{}" class="{}"/>').format("".join(places), kind)


def _dot_mark(kind: str) -> Markup:
    inner = _draw_dots(kind, [Dot(8, 6, 0)], Scale(0, 16, 0, 16), Scale(0, 12, 0, 12))
    return draw_mark(inner)
