"""Charts: places that are exact, names that stay text, and sizes that hold for any run."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from markupsafe import Markup

from tests.helpers.report_runs import HOSTILE
from vtrain.inference.calibration import CalibrationBin
from vtrain.pages.charts import (
    MOST_COLOURS,
    Bar,
    Dot,
    ParetoPoint,
    Series,
    Span,
    find_front,
    histogram,
    interval_bars,
    line_chart,
    pareto_chart,
    reliability_chart,
    scatter_map,
    stacked_bars,
)
from vtrain.pages.matrix import list_confusions, matrix_chart
from vtrain.pages.svg import Scale, find_log_ticks, find_ticks, format_tick, shorten

NAN = math.nan


def parse(chart: Markup) -> ET.Element:
    """The chart as XML, which only holds if every name is escaped and every tag closed."""
    root = ET.fromstring(chart)
    drawings = [each for each in root.iter("svg") if each.get("role") == "img"]
    assert len(drawings) == 1
    title = drawings[0].find("title")
    assert title is not None
    assert title.text
    assert drawings[0].find("desc") is not None
    for each in root.iter():
        for name, value in each.attrib.items():
            assert not name.startswith("on")
            if name in ("d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "viewBox"):
                assert "nan" not in value
                assert "inf" not in value
    return root


def texts(root: ET.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.71, 0.94, [0.75, 0.8, 0.85, 0.9]),
        (1, 6, [1, 2, 3, 4, 5, 6]),
        (-3, 12, [0, 5, 10]),
        (5, 5, [5]),
        (0, NAN, [0]),
    ],
)
def test_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert find_ticks(low, high) == pytest.approx(ticks)


def test_log_ticks() -> None:
    assert find_log_ticks(40, 700) == [50, 100, 200, 500]
    assert find_log_ticks(1e-6, 1) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])
    assert find_log_ticks(3, 4) == [3, 4]


def test_scale() -> None:
    scale = Scale(10, 20, 0, 100)
    assert [scale(each) for each in (10, 15, 20, 5, 30)] == [0, 50, 100, 0, 100]
    assert Scale(1, 100, 0, 100, log=True)(10) == pytest.approx(50)
    assert Scale(3, 3, 0, 100)(3) == 50


def test_numbers_and_names_are_short() -> None:
    ticks = [0, 0.05, 12, 1000, 15000, 2e-6, 1.5e-5]
    assert [format_tick(each) for each in ticks] == [
        "0", "0.05", "12", "1000", "15k", "2e-06", "1.5e-05",
    ]  # fmt: skip
    assert shorten("abc", 5) == "abc"
    assert shorten("abcdefghij", 7) == "abcd…ij"
    assert shorten("a\nb\udcff", 20) == "a\\nb\\udcff"


def test_a_line_breaks_where_a_value_is_missing() -> None:
    points = [(1, 0.5), (2, NAN), (3, 0.25), (4, math.inf), (5, 1.0)]
    spans = [Span("probe", 1, 2), Span("finetune", 3, 5)]
    root = parse(line_chart("Loss", [Series("a", points)], spans=spans, mark=(3, "best: 3")))
    (line,) = [each.get("d", "") for each in root.iter("path")]
    assert line.count("M") == 3
    assert "2 values are not finite" in "".join(root.itertext())
    # A text begins with what a pointer over it shows.
    assert {"probeprobe", "finetunefinetune", "best: 3"} <= set(texts(root))


def test_lines_without_any_value() -> None:
    root = parse(line_chart("Loss", [Series("a", [(1, NAN)])]))
    assert texts(root) == ["no finite values"]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e12])
def test_a_line_of_one_point_or_one_height(value: float) -> None:
    parse(line_chart("x", [Series("a", [(1, value)])]))
    parse(line_chart("x", [Series("a", [(1, value), (2, value)])]))


def test_many_columns_are_drawn_as_means() -> None:
    columns = [(float(epoch), (1.0, 1.0, NAN)) for epoch in range(1, 1001)]
    root = parse(stacked_bars("time", ("a", "b", "c"), columns))
    bars = [each for each in root.iter("rect") if "fill" in each.get("class", "")]
    assert len(bars) == 2 * 100 + 3  # and those of the legend
    assert "a 50 %" in "".join(root.itertext())
    parse(stacked_bars("time", ("a",), []))


def test_bars_with_intervals() -> None:
    bars = [Bar("ant", 0.5, (0.25, 0.75), "of 4"), Bar("bee", NAN), Bar("cow", 1.0)]
    root = parse(interval_bars("recall", bars))
    assert sum(each.get("class") == "whisker" for each in root.iter("line")) == 3
    assert "unknown" in texts(root)
    assert "50 % of 4" in texts(root)


def test_histogram() -> None:
    root = parse(histogram("h", [("0", 3), ("1", 0)], x_label="x", y_label="y"))
    assert "0: 3" in "".join(root.itertext())


def test_reliability_leaves_empty_bins_out() -> None:
    bins = [
        CalibrationBin(0.0, 0.5, 0, NAN, NAN),
        CalibrationBin(0.5, 1.0, 7, 0.75, 0.5),
    ]
    root = parse(reliability_chart("r", bins, bins))
    dots = [each for each in root.iter("path") if "dots" in each.get("class", "")]
    assert len(dots) == 2
    assert "7" in texts(root)
    assert "before temperature scaling" in "".join(root.itertext())
    alone = "".join(parse(reliability_chart("r", bins)).itertext())
    assert "temperature" not in alone
    parse(reliability_chart("r", [], []))


def test_map_tells_classes_apart_up_to_twelve() -> None:
    dots = [Dot(index, index % 7, index % 13, index % 5 > 0) for index in range(130)]
    names = [f"class {index}" for index in range(13)]
    few = parse(scatter_map("m", [each for each in dots if each.group < 12], names[:12]))
    assert "class 11" in "".join(few.itertext())
    many = "".join(parse(scatter_map("m", dots, names)).itertext())
    assert "class 1" not in many
    assert MOST_COLOURS == 12
    parse(scatter_map("m", [Dot(NAN, 1, 0)], ["a"]))
    parse(scatter_map("m", [Dot(1, 1, 0)], ["a"]))


def test_a_map_of_two_thousand_images_is_small() -> None:
    random = np.random.default_rng(0)
    places = random.normal(size=(2000, 2)).tolist()
    dots = [Dot(x, y, index % 10) for index, (x, y) in enumerate(places)]
    assert len(scatter_map("m", dots, [str(each) for each in range(10)])) < 60_000


def test_front_holds_what_nothing_beats() -> None:
    points = [
        ParetoPoint("slow best", 10, 0.9),
        ParetoPoint("beaten", 10, 0.7),
        ParetoPoint("fast", 100, 0.8),
        ParetoPoint("beaten too", 90, 0.8),
    ]
    assert [each.label for each in find_front(points)] == ["slow best", "fast"]


def test_labels_of_models_do_not_lie_on_each_other() -> None:
    points = [
        ParetoPoint(f"model_{index}", 100 * 1.06**index, 0.9 + 0.001 * index, (0.85, 0.95))
        for index in range(12)
    ]
    root = parse(pareto_chart("speed and accuracy", points))
    boxes = []
    for each in root.iter("text"):
        label = "".join(each.itertext())
        if label.startswith("model_"):
            x, y = float(each.get("x", "")), float(each.get("y", ""))
            boxes.append((x, y - 8, x + 6 * 8, y))
            assert 0 <= x <= 360 - 6 * 8
    assert len(boxes) == 12
    overlaps = [
        (one, other)
        for index, one in enumerate(boxes)
        for other in boxes[:index]
        if min(one[2], other[2]) - max(one[0], other[0]) > 8
        and min(one[3], other[3]) - max(one[1], other[1]) > 4
    ]
    assert len(overlaps) <= 2
    parse(pareto_chart("none", []))
    parse(pareto_chart("one", [ParetoPoint("a", 5, 0.5), ParetoPoint("no", 0, NAN)]))


def test_matrix_of_few_classes_has_its_counts() -> None:
    root = parse(matrix_chart("m", ["ant", "bee"], [[3, 1], [0, 4]]))
    assert {"3", "1", "4"} <= set(texts(root))
    assert "0" not in texts(root)
    assert "ant predicted as bee: 1" in [each.text for each in root.iter("title")]


def test_matrix_of_500_classes_stays_small() -> None:
    matrix = np.eye(500, dtype=int) * 5
    matrix[3, 400] = 2
    chart = matrix_chart("m", [f"class {index}" for index in range(500)], matrix.tolist())
    root = parse(chart)
    assert len(chart) < 40_000
    assert "9 × 9 neighbouring classes" in "".join(root.itertext())
    assert "2 images are off the diagonal" in "".join(root.itertext())


def test_most_frequent_mistakes() -> None:
    found = list_confusions(["a", "b"], [[3, 1], [2, 4]], 1)
    assert [(each.label, each.prediction, each.count, each.support) for each in found] == [
        ("b", "a", 2, 6)
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_is_markup(name: str) -> None:
    for chart in (
        line_chart(name, [Series(name, [(1, 1)])], spans=[Span(name, 1, 9)], mark=(1, name)),
        stacked_bars(name, [name], [(1, [1])]),
        interval_bars(name, [Bar(name, 0.5, None, name)], note=name),
        histogram(name, [(name, 1)], x_label=name, y_label=name),
        reliability_chart(name, []),
        scatter_map(name, [Dot(0, 0, 0)], [name]),
        pareto_chart(name, [ParetoPoint(name, 1, 1)], x_label=name),
        matrix_chart(name, [name, "b"], [[1, 1], [0, 1]]),
    ):
        root = parse(chart)
        assert not list(root.iter("script"))
        assert "\x1b" not in chart
