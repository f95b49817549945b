"""Peak memory against the number of images, of `embed` and of a cached probe: target S9."""

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.images import place_files
from tests.benchmarks.measure import (
    VTRAIN,
    Goal,
    NotRunError,
    Row,
    Settings,
    alternate,
    draw_weights,
    fit_command,
    has_setting,
    run_process,
    suite_command,
    write_config,
)
from tests.benchmarks.scan import small_image

BACKBONE = "mobilenet_v3_small"
IMAGE_SIZE = 64  # of the probe: memory of the data, not of the model, is looked at
CLASSES = 10
EACH, QUICK_EACH = 30, 6
TIMES = 10
GOAL = Goal(1.1, at_least=False)


def benchmark(settings: Settings) -> Iterator[Row]:
    """The largest process of each command, on N and on ten times N drawn images."""
    each = QUICK_EACH if settings.quick else EACH
    folders = {}
    for name, count in (("few", each), ("many", each * TIMES)):
        folders[name] = settings.folder / name
        for split in ("train", "val"):
            place = folders[name] / split
            place_files(place, classes=CLASSES, each=count, content=small_image())
    yield measure("embed", Embed(settings.folder), folders, settings)
    if not has_setting("train", "cache"):
        raise NotRunError("the cached probe: this version has no train.cache")
    yield measure("`fit` with `train.cache=features`", Probe(settings), folders, settings)


class Embed:
    """`vtrain embed`; counts its runs so that none finds what another has stored."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def __call__(self, images: Path) -> dict[str, float]:
        self.runs += 1
        command = [*VTRAIN, "embed", images, self.folder / "out.npy", "-q"]
        command += ["-m", f"{BACKBONE}:none"]
        cache = {"VTRAIN_CACHE": str(self.folder / f"embed-cache-{self.runs}")}
        return {"peak": run_process(command, environment=cache).peak_mb}


class Probe:
    """A probe on stored features, each run with a cache folder of its own."""

    def __init__(self, settings: Settings) -> None:
        self.folder, self.runs = settings.folder, 0
        self.weights = draw_weights(settings, BACKBONE)

    def __call__(self, images: Path) -> dict[str, float]:
        self.runs += 1
        config = write_config(
            self.folder / f"{images.name}.yaml",
            train=images / "train",
            val=images / "val",
            backbone=BACKBONE,
            weights=self.weights,
        )
        command = fit_command(
            config,
            self.folder / f"probe-{self.runs}",
            *("freeze=head", "train.cache=features", "train.epochs=2"),
            f"data.image_size={IMAGE_SIZE}",
        )
        cache = {"VTRAIN_CACHE": str(self.folder / f"probe-cache-{self.runs}")}
        return {"peak": run_process(command, environment=cache).peak_mb}


def measure(what: str, command: Embed | Probe, folders: dict[str, Path], settings: Settings) -> Row:
    """One row: the memory with many images against that with few."""
    found = alternate(
        {
            "many": lambda: command(folders["many"]),
            "few": lambda: command(folders["few"]),
        },
        settings.rounds,
    )
    many, few = found["many"]["peak"], found["few"]["peak"]
    count = 2 * CLASSES * (QUICK_EACH if settings.quick else EACH)
    return Row(
        "S9",
        f"peak memory of {what}, {BACKBONE}, {count * TIMES:,} images; other side: {count:,}",
        many.text("MB"),
        few.text("MB"),
        many.median / few.median,
        GOAL,
        suite_command("S9", settings),
    )
