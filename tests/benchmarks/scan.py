"""Scan of a folder with a million files: target S8."""

import io
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks.images import place_files
from tests.benchmarks.measure import (
    VTRAIN,
    Goal,
    NotRunError,
    Row,
    Sample,
    Settings,
    alternate,
    run_process,
    suite_command,
    write_config,
)

CLASSES, EACH = 1000, 1000
QUICK_EACH = 20
SCAN = """
import json, resource, sys, time
from pathlib import Path
{imports}
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "files": count}}))
"""
OWN_SCAN = SCAN.format(
    imports="from vtrain.data.folders import scan_labelled",
    work="count = len(scan_labelled(Path(sys.argv[1])))",
)
IMAGE_FOLDER = SCAN.format(
    imports="from torchvision.datasets import ImageFolder",
    work="count = len(ImageFolder(sys.argv[1]))",
)


def benchmark(settings: Settings) -> Iterator[Row]:
    """Time and memory of the scan alone, then of a start on the folder once it is known."""
    each = QUICK_EACH if settings.quick else EACH
    empty = place_files(settings.folder / "empty", classes=CLASSES, each=each, content=b"")
    found = alternate(
        {
            "vtrain": partial(scan, OWN_SCAN, empty),
            "torchvision": partial(scan, IMAGE_FOLDER, empty),
        },
        settings.rounds,
    )
    ours, others = found["vtrain"], found["torchvision"]
    command = suite_command("S8", settings)
    what = f"scan of {CLASSES * each:,} empty files in {CLASSES:,} classes"
    for quantity, unit, limit in (("seconds", "s", 20), ("peak", "MB", 600)):
        yield Row(
            "S8",
            f"{what}, {'time' if unit == 's' else 'peak memory of the process'}; other side: "
            "torchvision's ImageFolder",
            ours[quantity].text(unit),
            others[quantity].text(unit),
            ours[quantity].median,
            Goal(limit, at_least=False, unit=unit),
            command,
        )
    yield from measure_start(settings, each, command)


def scan(code: str, folder: Path) -> dict[str, float]:
    """Seconds of a scan and the memory of its process."""
    done = run_process([sys.executable, "-c", code, folder])
    return {"seconds": float(done.json()["seconds"]), "peak": done.peak_mb}


def measure_start(settings: Settings, each: int, command: str) -> Iterator[Row]:
    """`fit --dry-run` on readable images, the first time and again; and on a small folder."""
    large = place_files(
        settings.folder / "readable", classes=CLASSES, each=each, content=small_image()
    )
    small = place_files(settings.folder / "small", classes=10, each=10, content=small_image())
    cache = {"VTRAIN_CACHE": str(settings.folder / "scan-cache")}
    seconds: dict[str, list[float]] = {"first": [], "again": [], "small": []}
    starts = [("first", large)] + [("again", large), ("small", small)] * settings.rounds
    for name, folder in starts:
        config = write_config(
            settings.folder / f"{folder.name}.yaml",
            train=folder,
            val=small if folder is large else folder,
            backbone="simple_cnn",
            weights="none",
        )
        done = run_process(
            [*VTRAIN, "fit", config, "--dry-run", "freeze=none"], environment=cache, check=False
        )
        if done.code != 0:
            said = " / ".join(done.stderr.strip().splitlines()[-2:])
            raise NotRunError(f"start on {folder.name} ended with {done.code}: {said}")
        seconds[name].append(done.seconds)
    first, again, little = (Sample(tuple(values)) for values in seconds.values())
    yield Row(
        "S8",
        f"start (`fit --dry-run`, whole process) on {CLASSES * each:,} small images, unchanged "
        f"since they were checked (the first start took {first.median:.3g} s); other side: the "
        "same on 100 images",
        again.text("s"),
        little.text("s"),
        again.median,
        Goal(3, at_least=False, unit="s"),
        command,
    )


def small_image() -> bytes:
    """A JPEG of 32 × 32 pixels."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (90, 120, 60)).save(stream, "JPEG")
    return stream.getvalue()
