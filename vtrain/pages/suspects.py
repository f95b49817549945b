"""The page of suspect labels: each image beside those that speak against its label."""

from collections.abc import Callable
from pathlib import Path

from vtrain.pages.page import write_page
from vtrain.pages.thumbnails import make_thumbnail
from vtrain.results.suspects import SuspectReport

NEIGHBOR_EDGE = 72  # pixels


def write_suspects_page(
    path: Path, report: SuspectReport, *, on_picture: Callable[[], object] | None = None
) -> None:
    """Write the page of a report; `on_picture` is called after each suspect.

    Raises:
        ResourceError, UsageError: it cannot be written.
    """
    entries = []
    for suspect in report.suspects:
        against = [
            (make_thumbnail(each.path, edge=NEIGHBOR_EDGE), each.label) for each in suspect.against
        ]
        entries.append((suspect, make_thumbnail(suspect.path), against))
        if on_picture is not None:
            on_picture()
    write_page(path, "suspects.html.j2", report=report, entries=entries)
