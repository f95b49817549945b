"""Heat maps for the report of a run: where the model looked in the images that went wrong."""

import time
from pathlib import Path

import torch

from vtrain.config.run_files import MODEL_NAME
from vtrain.errors import ModelError
from vtrain.pages.report.galleries import find_shown_images
from vtrain.pages.thumbnails import EDGE, Thumbnail, encode_thumbnail
from vtrain.results.explain import explain_images, overlay
from vtrain.runs.folder import find_input
from vtrain.runs.model_argument import load_model
from vtrain.runs.record import read_run
from vtrain.system.reporter import SILENT

# On a CPU a dozen maps of a large network can take a minute: what is not done by then is left out.
MOST_SECONDS = 4.0
_BATCH = 4


def draw_heat_maps(run_dir: Path, *, device: torch.device) -> dict[Path, Thumbnail]:
    """A map of what speaks for the prediction, over each of the images that a report shows first.

    Empty where the run has no model or no predictions yet. Images that cannot be read (any more)
    are left out, and so are those for which `MOST_SECONDS` are too short: the page shows the
    pictures without.
    """
    try:
        paths = find_shown_images(run_dir)
        if not paths:
            return {}
        model = load_model(
            str(run_dir / MODEL_NAME), device=device, precision="fp32", reporter=SILENT
        )
    except ModelError:
        return {}
    started, drawn = time.perf_counter(), {}
    config = read_run(run_dir).config
    written = config.run_dir if config else None
    places = [find_input(run_dir, each, written) for each in paths]
    explanations = explain_images(places, model, batch_size=_BATCH, reporter=SILENT)
    for path, explanation in zip(paths, explanations, strict=True):
        if explanation.image is not None and explanation.map is not None:
            picture = overlay(explanation.image, explanation.map)
            picture.thumbnail((EDGE, EDGE))
            drawn[path] = encode_thumbnail(picture)
        if time.perf_counter() - started > MOST_SECONDS:
            break
    return drawn
