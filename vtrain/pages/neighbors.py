"""The page of an image and those that are most similar to it."""

from pathlib import Path

from vtrain.pages.page import write_page
from vtrain.pages.thumbnails import make_thumbnail
from vtrain.results.neighbors import NeighborResult

QUERY_EDGE = 224  # pixels


def write_neighbors_page(path: Path, result: NeighborResult) -> None:
    """Write the page of a result.

    Raises:
        ResourceError, UsageError: it cannot be written.
    """
    entries = [(each, make_thumbnail(each.path)) for each in result.neighbors]
    query = make_thumbnail(result.query, edge=QUERY_EDGE)
    write_page(path, "neighbors.html.j2", result=result, query=query, entries=entries)
