"""Self-contained HTML pages: one file each, no script, nothing fetched, safe against any name."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vtrain.system.files import write_text
from vtrain.system.text import format_bytes, format_count, format_duration, format_percent, one_line


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vtrain.pages"),
        autoescape=True,  # select_autoescape() would not cover *.html.j2
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["one_line"] = one_line  # of file and class names, whatever is in them
    environment.filters["count"] = format_count
    environment.filters["bytes"] = format_bytes
    environment.filters["duration"] = format_duration
    environment.filters["percent"] = format_percent
    return environment


@dataclass(frozen=True, slots=True)
class Table:
    """What the macro `table` takes: text; `right` are the columns of numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()


def render_page(template: str, **content: Any) -> str:
    """The text of `templates/<template>`, which extends `base.html.j2`.

    Strings in `content` are escaped; only what is `markupsafe.Markup` already is taken as HTML.
    """
    return _environment().get_template(template).render(**content)


def write_page(path: Path, template: str, **content: Any) -> None:
    """Write a page, whole or not at all.

    Raises:
        ResourceError: no space left; an earlier file is intact.
        UsageError: the path cannot be written.
    """
    write_text(path, render_page(template, **content))
