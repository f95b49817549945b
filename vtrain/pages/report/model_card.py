"""The model card: what a model is, what it was made of, how good it is, and where it ends."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from vtrain.config.run_files import MODEL_NAME
from vtrain.pages.page import Table
from vtrain.pages.report.settings import (
    list_next_commands,
    list_repeat_commands,
    tabulate_data,
    tabulate_settings,
)
from vtrain.pages.report.summary import build_messages
from vtrain.pages.report.values import (
    describe_device,
    describe_freeze,
    find_best_epoch,
    format_interval,
)
from vtrain.runs.evaluation_files import EvaluationResult
from vtrain.runs.record import RunRecord
from vtrain.system.text import format_duration, format_percent, one_line

MOST_CLASSES = 50
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|!~&$])")
_LIST = re.compile(r"^(\s*\d*)([-+=.)](?=\s|$))")


def escape_markdown(text: object) -> str:
    """Any text as one line of plain Markdown: no name becomes a link, a tag or a list."""
    escaped = _SPECIAL.sub(r"\\\1", one_line(text))
    return _LIST.sub(r"\1\\\2", escaped)


def render_card(record: RunRecord) -> str:
    """The model card in Markdown."""
    again = list_repeat_commands(record)
    sections = [
        f"# {escape_markdown(record.run_dir.name)}",
        _describe_model(record),
        "## Results",
        _describe_results(record),
        "## Data",
        *(_table(table) for table in tabulate_data(record.data)),
        _describe_classes(record.classes),
        "## How it was trained",
        _describe_training(record),
        *(_table(table) for table in tabulate_settings(record)),
        "## Limits",
        _describe_limits(record),
        "## Licence",
        _describe_licence(record),
        "## Use",
        _fence(list_next_commands(record)),
        *(["Train the same again:", _fence(again)] if again else []),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _describe_model(record: RunRecord) -> str:
    config = record.config
    if config is None:
        return "An image classifier made with vtrain; the settings of its run cannot be read."
    classes = len(record.classes)
    weights = escape_markdown(Path(config.model.weights).name)  # the card is for others to read
    origin = "random weights" if config.model.weights == "none" else f"the weights {weights}"
    return (
        f"An image classifier with {classes or 'an unknown number of'} classes: "
        f"{escape_markdown(config.model.backbone)}, trained with vtrain from {origin}. The model "
        f"file is {escape_markdown(MODEL_NAME)}; it carries its class names and its preprocessing."
    )


def _describe_results(record: RunRecord) -> str:
    if not record.evaluations:
        best = find_best_epoch(record)
        if best is None:
            return "None yet."
        shown = format_percent(best.val_top1)
        return f"Top-1 on the validation images: {shown} in epoch {best.epoch}; no interval known."
    rows = []
    for split, each in record.evaluations.items():
        rows += _list_metrics(split, each)
    text = _table(Table("", ("images", "metric", "value", "95 % interval", "count"), tuple(rows)))
    return text + "\n\nIntervals count the chance in drawing the images, not that in training."


def _list_metrics(split: str, each: EvaluationResult) -> list[tuple[str, ...]]:
    metrics = [
        ("top-1", each.top1, each.top1_interval),
        ("top-5", each.top5, None),
        ("macro F1", each.macro_f1, each.macro_f1_interval),
    ]
    if each.calibration is not None:
        metrics.append(("calibration error (ECE)", each.calibration.ece, None))
    return [
        (
            split,
            name,
            format_percent(value),
            format_interval(interval) if interval else "–",
            str(each.count),
        )
        for name, value, interval in metrics
        if math.isfinite(value)
    ]


def _describe_classes(classes: Sequence[str]) -> str:
    if not classes:
        return ""
    named = ", ".join(escape_markdown(name) for name in classes[:MOST_CLASSES])
    more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    return f"Classes: {named}{more}."


def _describe_training(record: RunRecord) -> str:
    result = record.result
    best = find_best_epoch(record)
    lines = [f"Freeze: {escape_markdown(describe_freeze(record))}."] if record.config else []
    if best is not None:
        lines.append(f"{len(record.metrics)} epochs; the best is epoch {best.epoch}.")
    if result is not None:
        lines.append(f"The run took {format_duration(result.seconds)}.")
    device = describe_device(record)
    if device:
        lines.append(f"Device and number format: {escape_markdown(device)}.")
    return " ".join(lines)


def _describe_limits(record: RunRecord) -> str:
    lines = [
        "The model gives one of its classes for every image, also for an image of none of them.",
        "The figures hold for images like those it was evaluated on: same sources, same cameras, "
        "same share of each class.",
    ]
    if "test" not in record.evaluations:
        lines.append(
            "There is no test set. The best epoch was chosen by the validation images, so the "
            "figures on them are slightly optimistic."
        )
    lines += [text for kind, text in build_messages(record) if kind == "warning"]
    lines.append(
        "Not examined: fairness between groups of people, robustness against other cameras, "
        "weather or attacks, duplicates between the training and the validation images beyond "
        "what the data warnings say."
    )
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _describe_licence(record: RunRecord) -> str:
    config = record.config
    weights = ""
    if config is not None and config.model.weights != "none":
        weights = (
            " The pretrained weights it started from have a licence of their own, which vtrain "
            "does not know."
        )
    return (
        "Licence of the model: unknown, to be filled in. Licence and consent of the images: "
        f"unknown, to be filled in.{weights}"
    )


def _table(table: Table) -> str:
    """A Markdown table, its caption above."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"

    rule = ["--:" if index in table.right else "---" for index in range(len(table.columns))]
    lines = [row(table.columns), f"| {' | '.join(rule)} |", *map(row, table.rows)]
    caption = [f"{escape_markdown(table.caption)}:", ""] if table.caption else []
    return "\n".join([*caption, *lines])


def _fence(lines: Sequence[str]) -> str:
    """Commands as a block that none of them can end."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}sh", *map(one_line, lines), fence])
