"""The page of `vtrain check`: what was found, with the images side by side."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vtrain.pages.charts import histogram
from vtrain.pages.page import write_page
from vtrain.pages.thumbnails import Picture, make_thumbnail
from vtrain.results.check import ALL, CheckResult
from vtrain.results.check_findings import SEVERITIES, DataSet, Finding, FoundGroup
from vtrain.runs.starter_config import LONG_SIDE
from vtrain.system.text import format_percent, one_line

MOST_GROUPS = 60  # of each kind that are shown
MOST_MEMBERS = 8  # images of one group
MOST_PICTURES = 24  # of findings without groups
MOST_LINES = 200  # damaged files, and files that are not used
MOST_CLASSES = 60  # bars; of more classes the largest and the smallest
_HOW = {
    "bytes": "the same file",
    "pixels": "the same pixels",
    "near": "nearly the same",
    "features": "alike to the model",
}
_TITLES = {"error": "Errors", "warning": "Warnings", "note": "Notes"}
_PICTURED = ("tiny", "elongated", "transparent", "turned", "cmyk", "deep", "palette", "animated")


def write_check_page(path: Path, result: CheckResult) -> None:
    """Write the page, whole or not at all.

    Raises:
        ResourceError, UsageError: it cannot be written.
    """
    data = result.data
    short, long = data.edges()
    write_page(
        path,
        "check.html.j2",
        source=str(result.source),
        tiles=list(_build_tiles(result)),
        sections=[
            (title, [_build_finding(f) for f in result.findings if f.severity == severity])
            for severity, title in _TITLES.items()
        ],
        class_rows=_build_class_rows(data) if data.labelled else [],
        classes_left_out=max(0, _count_classes(data) - MOST_CLASSES) if data.labelled else 0,
        image_size=data.image_size,
        chart=_draw_sizes(short) if len(short) else None,
        size_rows=_describe_sizes(short, long, data.image_size) if len(short) else [],
    )


def _build_tiles(result: CheckResult) -> Iterator[tuple[str, str]]:
    data = result.data
    for name, images in data.splits.items():
        yield f"{len(images):,}", "images" if name == ALL else f"{name} images"
    if data.labelled:
        yield f"{_count_classes(data):,}", "classes"
    for severity in SEVERITIES:
        count = result.count(severity)
        yield f"{count:,}", severity if count == 1 else f"{severity}s"


def _count_classes(data: DataSet) -> int:
    return len(next(iter(data.splits.values())).classes)


def _build_finding(finding: Finding) -> dict[str, object]:
    groups = [_build_group(each) for each in finding.groups[:MOST_GROUPS]]
    pictured = finding.paths if finding.kind in _PICTURED else ()
    pictures = [_build_picture(path, (path.name,)) for path in pictured[:MOST_PICTURES]]
    listed = list(zip(map(str, finding.paths), finding.reasons, strict=False))
    return {
        "severity": finding.severity,
        "message": finding.message,
        "advice": finding.advice,
        "groups": groups,
        "groups_left_out": len(finding.groups) - len(groups),
        "pictures": pictures,
        "pictures_left_out": len(pictured) - len(pictures),
        "listed": listed[:MOST_LINES],
        "lines_left_out": max(0, len(listed) - MOST_LINES),
    }


def _build_group(group: FoundGroup) -> dict[str, object]:
    shown = group.images[:MOST_MEMBERS]
    places = [
        each.split if each.class_ is None else f"{each.split}, {each.class_}" for each in shown
    ]
    return {
        "how": _HOW[group.same],
        "pictures": [
            _build_picture(each.path, (place, each.path.name))
            for each, place in zip(shown, places, strict=True)
        ],
        "left_out": len(group.images) - len(shown),
    }


def _build_picture(path: Path, lines: tuple[str, ...]) -> Picture:
    return Picture(make_thumbnail(path), one_line(path), tuple(map(one_line, lines)))


def _build_class_rows(data: DataSet) -> list[dict[str, object]]:
    """Class, count and length of the bar (percent of the longest) of each split."""
    names = next(iter(data.splits.values())).classes
    counts = {split: data.class_counts(split) for split in data.split_names}
    first = counts[data.split_names[0]]
    chosen = list(range(len(names)))
    if len(names) > MOST_CLASSES:
        by_count = sorted(chosen, key=lambda i: first[i])
        half = MOST_CLASSES // 2
        chosen = sorted([*by_count[:half], *by_count[-half:]])
    longest = max(1, *(count for each in counts.values() for count in each))
    return [
        {
            "name": names[i],
            "splits": [(split, of[i], 100 * of[i] / longest) for split, of in counts.items()],
        }
        for i in chosen
    ]


def _draw_sizes(short: NDArray[np.int64]) -> Markup:
    """Counts of shorter edges, in steps of half an octave."""
    steps = np.floor(2 * np.log2(short.clip(min=1))).astype(int)
    low = int(steps.min())
    columns = [
        (str(round(2 ** (step / 2))), count)
        for step, count in enumerate(np.bincount(steps - low).tolist(), low)
    ]
    label = "pixels of the shorter edge, from this up to the next"
    return histogram("Images by their shorter edge", columns, x_label=label, y_label="images")


def _describe_sizes(
    short: NDArray[np.int64], long: NDArray[np.int64], image_size: int
) -> list[tuple[str, str]]:
    """What the model's input makes of the images' sizes."""
    enlarged = float((short < image_size).mean())
    twice = float((2 * short < image_size).mean())
    low, middle, high = (int(value) for value in np.percentile(short, [5, 50, 95]))
    ratios = np.percentile(long / short.clip(min=1), [50, 95])
    elongated = float((long >= LONG_SIDE * short).mean())
    return [
        ("shorter edge, 5 % | half | 95 %", f"{low:,} | {middle:,} | {high:,} px"),
        (f"enlarged to {image_size} px", format_percent(enlarged)),
        ("enlarged more than twice", format_percent(twice)),
        ("long edge to short edge, half | 95 %", f"{ratios[0]:.2f} | {ratios[1]:.2f}"),
        (f"{LONG_SIDE} or more times as long as wide", format_percent(elongated)),
    ]
