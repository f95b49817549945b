"""A chart of differences between models, each with its interval, around the line at zero."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vtrain.pages.svg import (
    WIDTH,
    Frame,
    Scale,
    build_figure,
    draw_line,
    draw_path,
    draw_text,
    draw_whisker,
    draw_x_axis,
    find_ticks,
    shorten,
)

ROW = 34  # pixels: the name stands above its interval
LONGEST_NAME = 52  # characters


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference in points with its interval; `shown` whether it is more than chance."""

    label: str
    value: float
    low: float
    high: float
    shown: bool


def difference_chart(
    title: str, differences: Sequence[Difference], *, x_label: str, note: str = ""
) -> Markup:
    """Intervals one below the other, and a line at zero."""
    frame = Frame(left=10, right=WIDTH - 10, top=6, bottom=6 + ROW * len(differences))
    low = min([0.0, *(each.low for each in differences)])
    high = max([0.0, *(each.high for each in differences)])
    room = 0.06 * (high - low) or 1.0
    x = Scale(low - room, high + room, frame.left, frame.right)
    ticks = find_ticks(x.low, x.high, 6)
    parts = [
        draw_x_axis(frame, x, ticks, x_label, lambda tick: f"{tick:+g}" if tick else "0", grid=True)
    ]
    parts.append(draw_line(x(0), frame.top, x(0), frame.bottom, "axis"))
    for index, each in enumerate(differences):
        top = frame.top + ROW * index
        middle = top + 24
        name = shorten(each.label, LONGEST_NAME)
        parts.append(draw_text(frame.left, top + 13, name, kind="over", full=each.label))
        parts.append(draw_whisker(x(each.low), x(each.high), middle, 4))
        kind = "dots quiet" if not each.shown else f"dots {'right' if each.value > 0 else 'wrong'}"
        parts.append(draw_path([(x(each.value), middle)], kind))
    text = "; ".join(
        f"{shorten(each.label, 60)}: {each.value:+.1f}, {each.low:+.1f} to {each.high:+.1f}"
        for each in differences
    )
    return build_figure(parts, title=title, text=text, height=frame.bottom + 36, note=note)
