"""`vtrain report`: one page and a model card of a run, from what its folder holds."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vtrain.errors import UsageError
from vtrain.pages.page import render_page
from vtrain.pages.report.classes import add_calibration, add_classes
from vtrain.pages.report.content import Content
from vtrain.pages.report.curves import build_curves
from vtrain.pages.report.embedding_map import add_map
from vtrain.pages.report.images import add_galleries, choose_images
from vtrain.pages.report.model_card import render_card
from vtrain.pages.report.run_facts import Facts, gather_facts
from vtrain.pages.report.settings import (
    add_commands,
    add_missing,
    add_settings,
    build_data_tables,
    build_model_tables,
)
from vtrain.pages.report.summary import build_messages, build_tiles
from vtrain.pages.thumbnails import Thumbnail
from vtrain.runs.evaluation_files import read_predictions
from vtrain.runs.record import read_run
from vtrain.system.files import write_text
from vtrain.system.text import quote_path

REPORT_NAME = "report.html"
CARD_NAME = "model-card.md"
MOST_HEAT_MAPS = 12
_SUFFIXES = (".html", ".htm")
_SECTIONS = (
    ("curves", "Training"),
    ("classes", "Classes"),
    ("images", "Images to look at"),
    ("calibration", "Calibration"),
    ("map", "Map"),
    ("data", "Data"),
    ("model", "Model and speed"),
    ("settings", "Settings"),
    ("next", "Commands"),
)


@dataclass(frozen=True, slots=True)
class ReportResult:
    """The files that were written, the page's size in bytes, and how long it took.

    `missing` says of each part of the page that could not be shown what it lacks.
    """

    page: Path
    card: Path
    size: int
    seconds: float
    missing: tuple[str, ...]


def write_report(
    run_dir: Path,
    *,
    output: Path | None = None,
    heat_maps: Mapping[Path, Thumbnail] | None = None,
) -> ReportResult:
    """Write the page (`report.html` in the run folder) and the model card beside it.

    What the run folder lacks is said on the page. `heat_maps` are shown beside the images of those
    paths, which are spelled as in the predictions: see `find_shown_images`.

    Raises:
        UsageError: it is no run folder, or `output` cannot be written or is no .html file.
        ResourceError: no space left; earlier files are intact.
    """
    started = time.perf_counter()
    page, card = _choose_paths(run_dir, output)
    facts = gather_facts(read_run(run_dir))
    shown = dict(list((heat_maps or {}).items())[:MOST_HEAT_MAPS])
    content = build_content(facts, shown)
    text = render_page("report.html.j2", content=content, sections=_SECTIONS)
    write_text(page, text)
    write_text(card, render_card(facts, content))
    return ReportResult(
        page,
        card,
        page.stat().st_size,
        time.perf_counter() - started,
        tuple(content.missing.values()),
    )


def find_shown_images(run_dir: Path) -> list[Path]:
    """The images that deserve a heat map, at most `MOST_HEAT_MAPS`: the surest mistakes first.

    Raises:
        ModelError: the run has no predictions.
    """
    chosen = choose_images(read_predictions(run_dir, "val"))
    paths = dict.fromkeys(each.path for key in ("worst", "unsure") for each in chosen[key])
    return list(paths)[:MOST_HEAT_MAPS]


def _choose_paths(run_dir: Path, output: Path | None) -> tuple[Path, Path]:
    if output is None:
        return run_dir / REPORT_NAME, run_dir / CARD_NAME
    if output.suffix.lower() not in _SUFFIXES:  # so that no model or config is written over
        raise UsageError(
            f"the page would be written to {output}, which does not end in .html",
            f"name it so: -o {output.name or 'report'}.html",
        )
    return output, output.with_name(f"{output.stem}-{CARD_NAME}")


def build_content(facts: Facts, heat_maps: Mapping[Path, Thumbnail]) -> Content:
    """Everything on the page of a run; `heat_maps` by the path in the predictions."""
    content = Content(
        facts.record.run_dir.name, f"vtrain report {quote_path(facts.record.run_dir)}"
    )
    content.tiles = build_tiles(facts)
    content.messages = build_messages(facts)
    content.curves = build_curves(facts.record)
    add_classes(content, facts)
    add_galleries(content, facts, heat_maps)
    add_calibration(content, facts)
    add_map(content, facts)
    content.data = build_data_tables(facts.record.data)
    content.model = build_model_tables(facts.record)
    add_settings(content, facts.record)
    add_commands(content, facts)
    add_missing(content, facts)
    return content
