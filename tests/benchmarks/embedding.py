"""Embedding against the plain loop and the core limit: targets S4 and S5."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks.images import draw_photographs, prepare_photographs, repeat_images
from tests.benchmarks.measure import (
    Goal,
    Row,
    Sample,
    Settings,
    alternate,
    run_module,
    suite_command,
)


@dataclass(frozen=True, slots=True)
class Case:
    """A backbone, how much faster than the plain loop, how often the images are taken."""

    backbone: str
    plain: float
    times: int


S4 = (
    Case("resnet18", 3.5, 2),
    Case("resnet50", 5.0, 1),
    Case("mobilenet_v3_small", 4.0, 5),
)
CORE_LIMIT = 0.9
LARGE_SIZE = (4000, 3000)
LARGE_BACKBONE = "mobilenet_v3_small"
LARGE_DRAWN, LARGE_NAMES = 8, 12  # different images, and names of each
LARGE_GOAL = 2.0


def benchmark_s4(settings: Settings) -> Iterator[Row]:
    """Each backbone on photographs of the usual size."""
    images = prepare_photographs(settings)
    for case in S4:
        times = 1 if settings.quick else case.times
        repeated = repeat_images(images, times, settings.folder / f"times-{times}")
        found = measure(case.backbone, repeated.root, settings, limit_of=images.root)
        ours, plain, limit = found["vtrain"], found["plain"], found["limit"]
        command = suite_command("S4", settings)
        what = f"embed, {case.backbone} at 224, {repeated.count} images ({repeated.name})"
        yield Row(
            "S4",
            f"{what}; other side: plain loop",
            ours["rate"].text("img/s"),
            plain["rate"].text("img/s"),
            ours["rate"].median / plain["rate"].median,
            Goal(case.plain, at_least=True),
            command,
        )
        yield Row(
            "S4",
            f"{what}; other side: core limit (forward alone {limit['compute'].median:.3g}, "
            f"reading alone {limit['read'].median:.3g} img/s with "
            f"{limit['workers'].median:.0f} workers)",
            ours["rate"].text("img/s"),
            limit["limit"].text("img/s"),
            ours["rate"].median / limit["limit"].median,
            Goal(CORE_LIMIT, at_least=True),
            command,
        )
        yield Row(
            "S4",
            f"{what}, whole processes",
            ours["whole"].text("s"),
            plain["whole"].text("s"),
            plain["whole"].median / ours["whole"].median,
            None,
            command,
        )


def benchmark_s5(settings: Settings) -> Iterator[Row]:
    """Photographs of 12 megapixels; the other side decodes them in full."""
    drawn, names = (2, 2) if settings.quick else (LARGE_DRAWN, LARGE_NAMES)
    folder = settings.folder / "large"
    draw_photographs(folder / "all", size=LARGE_SIZE, count=drawn, names=names)
    found = measure(LARGE_BACKBONE, folder, settings)
    ours, plain = found["vtrain"], found["plain"]
    yield Row(
        "S5",
        f"embed {drawn * names} JPEGs of {LARGE_SIZE[0]}×{LARGE_SIZE[1]}, {LARGE_BACKBONE}; other "
        "side: plain loop, full decode",
        ours["rate"].text("img/s"),
        plain["rate"].text("img/s"),
        ours["rate"].median / plain["rate"].median,
        Goal(LARGE_GOAL, at_least=True),
        suite_command("S5", settings),
    )


def measure(
    backbone: str, folder: Path, settings: Settings, *, limit_of: Path | None = None
) -> dict[str, dict[str, Sample]]:
    """Rates of the pass alone, seconds of whole processes, and the core limit on a folder."""
    sides = {
        "vtrain": partial(run_vtrain, backbone, folder, settings.folder / "ours.npy"),
        "plain": partial(run_plain, backbone, folder, settings.folder / "plain.npy"),
    }
    if limit_of is not None:
        sides["limit"] = partial(run_limit, backbone, limit_of)
    return alternate(sides, settings.rounds)


def run_vtrain(backbone: str, folder: Path, output: Path) -> dict[str, float]:
    """One call of `embed`, from the scan to the file."""
    done = run_module("embed_call", [folder, output, "--model", f"{backbone}:none"])
    times = done.json()
    return {"rate": times["images"] / times["seconds"], "whole": done.seconds}


def run_plain(backbone: str, folder: Path, output: Path) -> dict[str, float]:
    """The same by the plain loop."""
    done = run_module(
        "plain_loop",
        ["embed", "--backbone", backbone, "--train", folder, "--output", output],
    )
    times = done.json()
    return {"rate": times["images"] / times["seconds"], "whole": done.seconds}


def run_limit(backbone: str, folder: Path) -> dict[str, float]:
    """C, D and what they come to together."""
    found = run_module("core_limit", ["embed", folder, "--model", f"{backbone}:none"]).json()
    return {name: float(value) for name, value in found.items()}
