"""Text for people: safe for a terminal, names listed and clipped, numbers with units."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Harmless in a terminal and part of words: joiners of Persian, Hindi and others, wide spaces.
HARMLESS = "\u200c\u200d\u00a0\u3000"
_NAMED_AT_MOST = 5


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Text safe for a terminal: control characters and lone surrogates become escapes.

    Without `keep` the result is a single line, whatever a file is called.
    """
    return "".join(
        char
        if char.isprintable() or char in keep or char in HARMLESS
        else char.encode("unicode_escape").decode()
        for char in text
    )


def one_line(name: object) -> str:
    """A path or a name as part of a message that may have several lines.

    A `Path` below the working directory is shown relative to it: nobody likes to read long ones.
    """
    return printable(shorten_path(name) if isinstance(name, Path) else str(name), keep="")


def shorten_path(path: Path) -> str:
    """A path as it is, or relative to the working directory if it is an absolute one below that."""
    with suppress(OSError, ValueError):  # not below it, or that folder is gone
        return str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path)
    return str(path)


def quote_path(path: Path | str) -> str:
    """A path as it can be pasted into a shell, on one line."""
    from shlex import quote

    return one_line(quote(str(path)))


def format_count(count: float) -> str:
    """A large number in three digits: 950, 12.3k, 25.6M."""
    return _format_scaled(count, ("", "k", "M", "G"))


def format_percent(share: float | None, digits: int = 1) -> str:
    """A share between 0 and 1 as people read it: 97.1 %; a dash for None and NaN."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def format_bytes(size: float) -> str:
    """A size in three digits: 950 B, 12.3 kB, 4.1 GB."""
    return _format_scaled(size, (" B", " kB", " MB", " GB", " TB"))


def _format_scaled(number: float, units: Sequence[str]) -> str:
    for unit in units:
        rounded = float(f"{number:.3g}")
        if rounded < 1000 or unit == units[-1]:
            break
        number /= 1000
    return f"{rounded:g}{unit}"


def format_duration(seconds: float) -> str:
    """A time as people say it: 8.3 s, 4 min 05 s, 2 h 10 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def enumerate_names(names: Sequence[str]) -> str:
    """The first names in quotes, and how many more there are."""
    shown = ", ".join(f"'{one_line(name)}'" for name in names[:_NAMED_AT_MOST])
    rest = len(names) - _NAMED_AT_MOST
    return f"{shown} and {rest} more" if rest > 0 else shown


def clip(text: str, width: int = 60) -> str:
    """`text`, cut to `width` characters for a message."""
    return text if len(text) <= width else text[: width - 3] + "..."


def list_names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(each.name for each in folder.iterdir())
    except OSError:
        return []
