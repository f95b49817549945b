"""Where vtrain keeps what it has computed and may need again: features, scans of folders."""

import os
from pathlib import Path


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
