"""Full fine-tuning against the plain loop, timm's flags and the core limit: targets S2 and S3."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks.images import ImageSet, prepare_photographs
from tests.benchmarks.measure import (
    ROOT,
    Goal,
    NotRunError,
    Row,
    Sample,
    Settings,
    alternate,
    fit_command,
    read_metrics,
    run_module,
    run_process,
    suite_command,
    write_config,
)

TIMM_SCRIPT = ROOT / "tests/benchmarks/peer_scripts/timm_train.py"
OVERRIDES = ("freeze=none", "train.epochs=1", "data.augment=light")


@dataclass(frozen=True, slots=True)
class Case:
    """A target: how much faster than the plain loop and than timm's best flags."""

    target: str
    backbone: str
    plain: float
    timm: float | None


S2 = Case("S2", "resnet18", 3.0, 1.3)
S3 = Case("S3", "mobilenet_v3_small", 1.8, None)
CORE_LIMIT = 0.9


def benchmark_s2(settings: Settings) -> Iterator[Row]:
    """Dense convolutions."""
    return benchmark(S2, settings)


def benchmark_s3(settings: Settings) -> Iterator[Row]:
    """Depthwise convolutions."""
    return benchmark(S3, settings)


def benchmark(case: Case, settings: Settings) -> Iterator[Row]:
    """One epoch of full fine-tuning; rates are those of the training part of the epoch."""
    images = prepare_photographs(settings)
    config = write_config(
        settings.folder / "finetune.yaml",
        train=images.train,
        val=images.val,
        backbone=case.backbone,
        weights="none",
    )
    sides = {
        "vtrain": partial(run_vtrain, config, settings.folder),
        "plain": partial(run_plain, case.backbone, images),
        "limit": partial(run_limit, config),
    }
    timm = find_timm(settings) if case.timm else None
    if timm:
        sides["timm"] = partial(run_timm, timm, case.backbone, images)
    found = alternate(sides, settings.rounds)
    yield from write_rows(case, found, images, suite_command(case.target, settings))
    if case.timm and not timm:
        raise NotRunError("against timm: it is not installed, give --peers")


def write_rows(
    case: Case, found: dict[str, dict[str, Sample]], images: ImageSet, command: str
) -> Iterator[Row]:
    """A row for each comparison."""
    ours, plain, limit = (found[name] for name in ("vtrain", "plain", "limit"))
    what = f"full fine-tune, {case.backbone} at 224, batch 32, {images.train_count} {images.name}"

    def row(text: str, other: str, ratio: float, goal: Goal | None) -> Row:
        return Row(case.target, text, ours["rate"].text("img/s"), other, ratio, goal, command)

    yield row(
        f"{what}; other side: plain loop",
        plain["rate"].text("img/s"),
        ours["rate"].median / plain["rate"].median,
        Goal(case.plain, at_least=True),
    )
    yield row(
        f"{what}; other side: core limit (step alone {limit['compute'].median:.3g}, reading alone "
        f"{limit['read'].median:.3g} img/s with {limit['workers'].median:.0f} workers)",
        limit["limit"].text("img/s"),
        ours["rate"].median / limit["limit"].median,
        Goal(CORE_LIMIT, at_least=True),
    )
    yield Row(
        case.target,
        "the same, whole process: start, check of the images, epoch and validation (vtrain "
        "validates twice and saves)",
        ours["whole"].text("s"),
        plain["whole"].text("s"),
        plain["whole"].median / ours["whole"].median,
        None,
        command,
    )
    if "timm" in found and case.timm:
        yield row(
            f"{what}; other side: timm's loader and step, channels last, autocast bf16",
            found["timm"]["rate"].text("img/s"),
            ours["rate"].median / found["timm"]["rate"].median,
            Goal(case.timm, at_least=True),
        )


def run_vtrain(config: Path, folder: Path) -> dict[str, float]:
    """One epoch with light augmentation."""
    run_dir = folder / f"run-{len(list(folder.glob('run-*')))}"
    done = run_process(fit_command(config, run_dir, *OVERRIDES))
    return {"rate": read_metrics(run_dir)[0]["images_per_second"], "whole": done.seconds}


def run_plain(backbone: str, images: ImageSet) -> dict[str, float]:
    """One epoch of the plain loop."""
    done = run_module(
        "plain_loop",
        ["finetune", "--backbone", backbone, "--train", images.train, "--val", images.val],
    )
    times = done.json()
    return {"rate": times["train_images"] / times["train_seconds"], "whole": done.seconds}


def run_limit(config: Path) -> dict[str, float]:
    """C, D and what they come to together."""
    found = run_module("core_limit", ["fit", config, *OVERRIDES[::2]]).json()
    return {name: float(value) for name, value in found.items()}


def run_timm(python: Path, backbone: str, images: ImageSet) -> dict[str, float]:
    """One epoch of timm's loader and step."""
    command: list[str | Path] = [
        python,
        TIMM_SCRIPT,
        "--backbone",
        backbone,
        "--train",
        images.train,
    ]
    return {"rate": float(run_process(command).json()["rate"])}


def find_timm(settings: Settings) -> Path | None:
    """A Python that has timm: that of the peers, else this one, else None."""
    if settings.peers is not None:
        return settings.peers / "bin/python"
    return Path(sys.executable) if find_spec("timm") else None
