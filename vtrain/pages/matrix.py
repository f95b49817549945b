"""The confusion matrix as a picture, of ten classes or of a thousand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from vtrain.pages.svg import (
    CHAR_WIDTH,
    WIDTH,
    area_mark,
    build_figure,
    draw_rect,
    draw_text,
    shorten,
)

MOST_COUNTS = 20  # classes whose cells have room for a number
MOST_CELLS = 60  # rows of the picture; more classes share rows
NAME = 14  # characters of a class beside the picture
TOP = 24.0  # pixels above the cells
STRONGEST = 0.5  # opacity that leaves the text of a cell readable on both grounds


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of `label` that were predicted as `prediction`, of `support` with that label."""

    label: str
    prediction: str
    count: int
    support: int


def list_confusions(
    classes: Sequence[str], matrix: Sequence[Sequence[int]], limit: int
) -> list[Confusion]:
    """The most frequent mistakes, most first; rows of `matrix` `[C][C]` are true classes."""
    found = [
        Confusion(classes[row], classes[column], count, sum(counts))
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return sorted(found, key=lambda each: (-each.count, each.support))[:limit]


def matrix_chart(title: str, classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    """Rows are true classes, columns predicted ones; colour is the share of the row.

    Up to `MOST_COUNTS` classes have their counts in the cells. Beyond `MOST_CELLS` neighbouring
    classes share a row and a column.
    """
    size = -(-len(classes) // MOST_CELLS)
    starts = range(0, len(classes), size)
    cells = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1).tolist()
    numbered = len(classes) <= MOST_COUNTS
    longest = max((len(shorten(name, NAME)) for name in classes), default=1)
    left = longest * CHAR_WIDTH + 26 if numbered else 22
    edge = max((WIDTH - left - 4) / max(len(cells), 1), 27 if numbered else 5)
    edge = min(edge, 48)
    parts = [_draw_names(classes, left, edge)] if numbered else []
    for row, counts in enumerate(cells):
        total = sum(counts) or 1
        for column, count in enumerate(counts):
            if count or numbered:
                place = (left + column * edge, TOP + row * edge)
                tip = _describe_cell(classes, size, row, column, count)
                parts.append(_draw_cell(place, edge, row == column, count, total, numbered, tip))
    side = len(cells) * edge
    parts.append(draw_text(left, 12, "predicted →", kind="tick"))
    parts.append(
        Markup('<text transform="translate(11 {}) rotate(-90)" class="tick">← true</text>').format(
            round(TOP + side / 2 + 20)
        )
    )
    if not numbered:
        parts.insert(0, draw_rect(left, TOP, side, side, "phase"))
    note = f"Each cell stands for {size} × {size} neighbouring classes." if size > 1 else ""
    wrong = sum(sum(counts) - counts[index] for index, counts in enumerate(matrix))
    text = f"{len(classes)} classes; {wrong} images are off the diagonal"
    below = 20.0 if numbered else 6.0
    if numbered and _are_upright(classes, edge):
        below = longest * CHAR_WIDTH + 12
    return build_figure(
        parts, title=title, text=text, height=TOP + side + below, note=note,
        width=max(left + side + 4, WIDTH),
        legend=[("right", area_mark("fill right")), ("wrong", area_mark("fill wrong"))],
    )  # fmt: skip


def _draw_names(classes: Sequence[str], left: float, edge: float) -> Markup:
    """The true classes at the left, the predicted ones below, upright where there is no room."""
    parts = []
    bottom = TOP + len(classes) * edge
    upright = _are_upright(classes, edge)
    for index, name in enumerate(classes):
        middle = index * edge + edge / 2
        short = shorten(name, NAME)
        parts.append(draw_text(left - 6, TOP + middle + 4, short, anchor="end", full=name))
        if upright:
            turned = Markup('<g transform="translate({} {}) rotate(-90)">{}</g>')
            text = draw_text(0, 0, short, anchor="end", full=name)
            parts.append(turned.format(round(left + middle + 4), round(bottom + 6), text))
        else:
            parts.append(draw_text(left + middle, bottom + 14, short, anchor="middle", full=name))
    return Markup("").join(parts)


def _are_upright(classes: Sequence[str], edge: float) -> bool:
    return any(len(shorten(name, NAME)) * CHAR_WIDTH > edge for name in classes)


def _draw_cell(
    place: tuple[float, float], edge: float, right: bool, count: int, total: int,
    numbered: bool, tip: str,
) -> Markup:  # fmt: skip
    # The root makes a single mistake among a hundred visible.
    strength = STRONGEST * math.sqrt(count / total) if count else 0.03
    kind = f"fill {'right' if right else 'wrong' if count else 'quiet'}"
    gap = 1 if numbered else 0
    if not numbered:
        strength = min(0.25 + 1.5 * strength, 1.0)
    cell = draw_rect(*place, edge - gap, edge - gap, kind, opacity=strength, title=tip)
    if not numbered or not count:
        return cell
    middle = place[0] + (edge - gap) / 2
    return cell + draw_text(middle, place[1] + edge / 2 + 4, count, anchor="middle")


def _describe_cell(classes: Sequence[str], size: int, row: int, column: int, count: int) -> str:
    if not count:
        return ""
    if size > 1:
        return f"{count} images"
    return f"{shorten(classes[row], 60)} predicted as {shorten(classes[column], 60)}: {count}"
