"""`vtrain cache`: stored features and scans."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from vtrain.commands.options import Json
from vtrain.errors import UsageError
from vtrain.system.terminal import Console, print_json, print_table
from vtrain.system.text import format_bytes

if TYPE_CHECKING:
    from vtrain.system.cache_folder import CacheEntry


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is stored.")] = False,
    unused_days: Annotated[
        float,
        typer.Option(
            "--unused-days", metavar="DAYS", min=0, help="With --clear: only what rested so long."
        ),
    ] = 0.0,
    as_json: Json = False,
    *,
    console: Console,
) -> None:
    """Show or clear stored features and scans.

    It is only ever a matter of time: what is removed is computed again when it is needed. The
    folder is ~/.cache/vtrain, or what the variable VTRAIN_CACHE names.

    \b
    vtrain cache
    vtrain cache --clear --unused-days 30
    """
    from vtrain.system.cache_folder import clear_cache, find_cache_folder, list_cache
    from vtrain.system.json_csv import to_plain

    if unused_days and not clear:
        raise UsageError("--unused-days was given without --clear", "add --clear")
    root = find_cache_folder()
    entries = clear_cache(root, unused_days=unused_days) if clear else list_cache(root)
    if as_json:
        plain = {"folder": str(root), "removed": clear, "entries": to_plain(list(entries))}
        print_json({"schema": 1, **plain})
        return
    if entries:
        print_table(
            ("kind", "backbone", "layer", "precision", "augment", "size", "last used", "folder"),
            [_build_row(entry) for entry in entries],
            right=(5,),
        )
    total = format_bytes(sum(entry.size for entry in entries))
    console.say(f"{'removed' if clear else 'in'} {root}: {total}")


def _build_row(entry: "CacheEntry") -> tuple[str, ...]:
    return (
        entry.kind,
        *(str(entry.facts.get(name, "-")) for name in ("backbone", "layer", "precision")),
        str(entry.facts.get("view", {}).get("augment", "-")),
        format_bytes(entry.size),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
        entry.folder.name,
    )
