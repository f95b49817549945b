"""Where the tables of benchmarks and faults go."""

import sys
from pathlib import Path


def say(text: str, out: Path | None) -> None:
    """Print at once, and append to the file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    if out is not None:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
