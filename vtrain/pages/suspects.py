"""The page of suspect labels: each image beside those that speak against its label."""

from pathlib import Path

from vtrain.pages.page import write_page
from vtrain.pages.thumbnails import make_thumbnail
from vtrain.results.suspects import SuspectReport
from vtrain.system.reporter import SILENT, Reporter

NEIGHBOR_EDGE = 72  # pixels


def write_suspects_page(path: Path, report: SuspectReport, *, reporter: Reporter = SILENT) -> None:
    """Write the page of a report.

    Raises:
        ResourceError, UsageError: it cannot be written.
    """
    entries = []
    with reporter.progress(len(report.suspects), "drawing") as bar:
        for suspect in report.suspects:
            against = [
                (make_thumbnail(each.path, edge=NEIGHBOR_EDGE), each.label)
                for each in suspect.against
            ]
            entries.append((suspect, make_thumbnail(suspect.path), against))
            bar.update(1)
    write_page(path, "suspects.html.j2", report=report, entries=entries)
