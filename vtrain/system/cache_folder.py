"""Where vtrain keeps what it has computed and may need again: features, scans of folders."""

import json
import os
import shutil
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtrain.errors import UsageError

FEATURES = "features"
SCANS = "scans"
FACTS_NAME = "facts.json"


def find_cache_folder() -> Path:
    """`$VTRAIN_CACHE`, else `vtrain` below `$XDG_CACHE_HOME`, else `~/.cache/vtrain`.

    The folder need not exist, nor be writable. Its subfolders: `features`, `scans`.
    """
    given = os.environ.get("VTRAIN_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    # Without a home folder `expanduser` leaves the ~, which would become a folder of that name.
    home = Path(os.environ.get("HOME") or Path("~").expanduser())
    return (Path(base) if base else home / ".cache") / "vtrain"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One store of features, or all remembered scans together.

    `size` in bytes, `last_used` in seconds since 1970, `facts` say what a store holds.
    """

    kind: str
    folder: Path
    size: int
    last_used: float
    facts: dict[str, Any]


def list_cache(root: Path) -> list[CacheEntry]:
    """What the cache holds, the most recently used first."""
    entries = [
        CacheEntry(FEATURES, path, *_measure(path), _read_facts(path))
        for path in _subfolders(root / FEATURES)
    ]
    if (root / SCANS).is_dir():
        entries.append(CacheEntry(SCANS, root / SCANS, *_measure(root / SCANS), {}))
    return sorted(entries, key=lambda entry: -entry.last_used)


def make_room(
    features: Path, *, needed: int, limit: int, keep: Collection[Path]
) -> list[CacheEntry]:
    """Remove the stores that were not used for the longest time, until `needed` bytes more fit.

    `limit` bytes is what all stores below `features` may take together; those in `keep` stay.
    A run that reads a removed store goes on reading it. Returns what was removed.
    """
    stores = [CacheEntry(FEATURES, path, *_measure(path), {}) for path in _subfolders(features)]
    total = sum(store.size for store in stores) + needed
    removed = []
    for store in sorted(stores, key=lambda entry: entry.last_used):
        if total <= limit:
            break
        if store.folder not in keep:
            shutil.rmtree(store.folder, ignore_errors=True)
            total -= store.size
            removed.append(store)
    return removed


def clear_cache(root: Path, *, unused_days: float = 0.0) -> list[CacheEntry]:
    """Remove what has not been used for so many days (0: everything); returns what was removed.

    Raises:
        UsageError: an entry cannot be removed.
    """
    before = time.time() - unused_days * 86_400
    removed = []
    for entry in list_cache(root):
        if unused_days == 0 or entry.last_used < before:
            shutil.rmtree(entry.folder, ignore_errors=True)  # another process may remove the same
            try:
                if os.path.lexists(entry.folder):
                    shutil.rmtree(entry.folder)  # again, for the reason
            except OSError as error:
                raise UsageError(
                    f"cannot remove {entry.folder}: {error.strerror or error}",
                    "look at who may write there, or remove it by hand",
                ) from error
            removed.append(entry)
    return removed


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _measure(folder: Path) -> tuple[int, float]:
    """Size in bytes, and when it was last used."""
    size, newest = 0, 0.0
    # The folder counts as well: another run may have made it in this moment.
    for path in (folder, *folder.rglob("*")):
        try:
            status = path.stat()
        except OSError:
            continue  # removed in this moment
        size += status.st_size if stat.S_ISREG(status.st_mode) else 0
        newest = max(newest, status.st_mtime)
    return size, newest


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / FACTS_NAME).read_text(encoding="utf-8"))
        json.dumps(facts, allow_nan=False)  # as they will be shown
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(facts, dict) and isinstance(facts.get("view", {}), dict)
    return facts if sound else {}
