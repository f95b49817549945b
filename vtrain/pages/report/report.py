"""`vtrain report`: one page and a model card of a run, from what its folder holds."""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vtrain.errors import ModelError, UsageError
from vtrain.pages.page import render_page
from vtrain.pages.report.calibration import build_calibration
from vtrain.pages.report.classes import build_classes
from vtrain.pages.report.curves import build_curves
from vtrain.pages.report.embedding_map import build_map
from vtrain.pages.report.galleries import build_galleries
from vtrain.pages.report.model_card import render_card
from vtrain.pages.report.settings import build_commands, build_data, build_model, build_settings
from vtrain.pages.report.summary import build_messages, build_tiles
from vtrain.pages.report.values import report_command
from vtrain.pages.thumbnails import Thumbnail
from vtrain.runs.evaluation_files import ImagePrediction, predictions_path, read_predictions
from vtrain.runs.record import RunRecord, read_run
from vtrain.system.files import write_text
from vtrain.system.text import one_line

REPORT_NAME = "report.html"
CARD_NAME = "model-card.md"
MAX_PREDICTION_BYTES = 200_000_000  # some 2 million images
_SUFFIXES = (".html", ".htm")
# What a page loses first; heat maps are left out, of which there are as many as time allows.
_SHOWN = (
    ("pictures", re.compile(r'<img src="data:[^>]*alt="(?!What the prediction rests on)')),
    ("charts", re.compile("<svg")),
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
    force: bool = False,
) -> ReportResult:
    """Write the page (`report.html` in the run folder) and the model card beside it.

    What the run folder lacks is said on the page. `heat_maps` are shown beside the images of those
    paths, which are spelled as in the predictions: see `draw_heat_maps`.

    Raises:
        UsageError: it is no run folder, or `output` cannot be written or is no .html file; or,
            without `force`, there is a page that shows more.
        ResourceError: no space left; earlier files are intact.
    """
    started = time.perf_counter()
    page, card = _choose_paths(run_dir, output)
    record, predictions = _read_predictions(read_run(run_dir))
    sections = [
        build_curves(record),
        build_classes(record),
        build_galleries(record, predictions, heat_maps or {}),
        build_calibration(record),
        build_map(record, predictions),
        build_data(record),
        build_model(record),
        build_settings(record),
        build_commands(record),
    ]
    text = render_page(
        "report.html.j2",
        name=run_dir.name,
        command=report_command(record),
        tiles=build_tiles(record),
        messages=build_messages(record),
        sections=sections,
    )
    missing = tuple(each for section in sections for each in section.missing)
    if missing and not force:
        _require_richer(page, text, missing)
    write_text(page, text)
    write_text(card, render_card(record))
    return ReportResult(page, card, page.stat().st_size, time.perf_counter() - started, missing)


def _require_richer(page: Path, text: str, missing: Sequence[str]) -> None:
    """Refuse a page that lacks something, and has fewer pictures or charts than the one before."""
    with suppress(OSError):
        old = page.read_text(encoding="utf-8", errors="replace")
        for what, mark in _SHOWN:
            before, now = len(mark.findall(old)), len(mark.findall(text))
            if now < before:
                raise UsageError(
                    f"{one_line(page)} shows {before} {what}, and would show {now}: {missing[0]}",
                    "put back what is missing, write elsewhere with -o, or replace it: --force",
                )


def _read_predictions(
    record: RunRecord,
) -> tuple[RunRecord, Sequence[ImagePrediction] | None]:
    """The predictions of the validation images, and the record with what is wrong with them."""
    path = predictions_path(record.run_dir, "val")
    if not path.exists():
        return record, None
    try:
        if path.stat().st_size > MAX_PREDICTION_BYTES:
            raise ModelError("it is too large to be looked through")
        return record, read_predictions(record.run_dir, "val")
    except ModelError as error:
        problem = f"{path.name} cannot be used: {error.message}"
        return replace(record, problems=(*record.problems, problem)), None


def _choose_paths(run_dir: Path, output: Path | None) -> tuple[Path, Path]:
    if output is None:
        return run_dir / REPORT_NAME, run_dir / CARD_NAME
    if output.suffix.lower() not in _SUFFIXES:  # so that no model or config is written over
        raise UsageError(
            f"the page would be written to {output}, which does not end in .html",
            f"name it so: -o {output.name or 'report'}.html",
        )
    return output, output.with_name(f"{output.stem}-{CARD_NAME}")
