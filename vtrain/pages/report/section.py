"""A section of the page of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from vtrain.pages.page import Table
from vtrain.pages.thumbnails import Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """What stands below a heading, in its order; empty where the run folder says nothing of it.

    `missing` says what it lacks and how to get it. `folded` are tables that open with a click on
    their name, `commands` stand below headings of their own.
    """

    key: str
    title: str
    missing: Sequence[str] = ()
    text: str = ""
    charts: Sequence[Markup] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    folded: Mapping[str, Table] = field(default_factory=dict)
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
