"""What a page of a run is made of: messages, pictures, galleries."""

from dataclasses import dataclass, field

from markupsafe import Markup

from vtrain.pages.page import Table
from vtrain.pages.thumbnails import Thumbnail


@dataclass(frozen=True, slots=True)
class Message:
    """A line that should not be overlooked: error, warning or note."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with what the model says of it, and a heat map where there is one."""

    thumbnail: Thumbnail | None
    heat_map: Thumbnail | None
    text: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures of one kind; `note` says how they were chosen, or why there are none."""

    title: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(slots=True)
class Content:
    """Everything on the page, in its order; empty where the run folder says nothing of it."""

    name: str
    command: str
    tiles: list[tuple[str, str, str]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    curves: list[Markup] = field(default_factory=list)
    classes: list[Markup] = field(default_factory=list)
    class_tables: list[Table] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    calibration: list[Markup] = field(default_factory=list)
    calibration_text: str = ""
    embedding: list[Markup] = field(default_factory=list)
    data: list[Table] = field(default_factory=list)
    model: list[Table] = field(default_factory=list)
    settings: list[Table] = field(default_factory=list)
    all_settings: Table | None = None
    environment: Table | None = None
    reproduce: list[str] = field(default_factory=list)
    next_commands: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
