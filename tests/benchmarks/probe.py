"""Linear probe on a frozen backbone against the plain loop and one fastest pass: target S1."""

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.images import ImageSet, prepare_photographs
from tests.benchmarks.measure import (
    VTRAIN,
    Goal,
    Row,
    Sample,
    Settings,
    alternate,
    draw_weights,
    fit_command,
    has_setting,
    read_metrics,
    run_module,
    run_process,
    suite_command,
    write_config,
)

BACKBONE = "resnet18"
EPOCHS = 20


def benchmark(settings: Settings) -> Iterator[Row]:
    """The plain loop is measured over one epoch, of which twenty are taken; vtrain runs all."""
    images = prepare_photographs(settings)
    config = write_config(
        settings.folder / "probe.yaml",
        train=images.train,
        val=images.val,
        backbone=BACKBONE,
        weights=draw_weights(settings, BACKBONE),
    )
    overrides = ["freeze=head", f"train.epochs={EPOCHS}"]
    if cached := has_setting("train", "cache"):
        overrides.append("train.cache=auto")
    probe = Probe(settings.folder, images, config, overrides)
    found = alternate(
        {"plain": probe.run_plain, "vtrain": probe.run_vtrain, "pass": probe.run_pass},
        settings.rounds,
    )
    note = "" if cached else " (this version has no train.cache)"
    yield from write_rows(found, images, note, suite_command("S1", settings))


def write_rows(
    found: dict[str, dict[str, Sample]], images: ImageSet, note: str, command: str
) -> Iterator[Row]:
    """A row for each comparison."""
    ours, plain, one_pass = found["vtrain"], found["plain"], found["pass"]
    yield Row(
        "S1",
        f"linear probe, {BACKBONE}, {EPOCHS} epochs of {images.train_count} + {images.val_count} "
        f"{images.name}, whole process, empty cache{note}; other side: plain loop, start and one "
        f"epoch measured, the epoch taken {EPOCHS} times",
        ours["cold"].text("s"),
        plain["whole"].text("s"),
        plain["whole"].median / ours["cold"].median,
        Goal(40, at_least=True),
        command,
    )
    yield Row(
        "S1",
        f"the same, epochs alone, without the pass before them (other side: one epoch × {EPOCHS})",
        ours["epochs"].text("s"),
        plain["epochs"].text("s"),
        plain["epochs"].median / ours["epochs"].median,
        None,
        command,
    )
    for name, what in (("cold", "empty cache"), ("warm", "second run, features found")):
        yield Row(
            "S1",
            f"the same, {what}; other side: one pass, `vtrain embed` of the {images.count} images, "
            "whole processes",
            ours[name].text("s"),
            one_pass["whole"].text("s"),
            ours[name].median / one_pass["whole"].median,
            Goal(1.15, at_least=False) if name == "cold" else None,
            command,
        )


class Probe:
    """The three sides; every run of vtrain starts with a cache folder of its own."""

    def __init__(self, folder: Path, images: ImageSet, config: Path, overrides: list[str]) -> None:
        self.folder, self.images, self.config, self.overrides = folder, images, config, overrides
        self.rounds = 0

    def run_plain(self) -> dict[str, float]:
        folders: list[str | Path] = ["--train", self.images.train, "--val", self.images.val]
        done = run_module("plain_loop", ["probe", "--backbone", BACKBONE, *folders])
        times = done.json()
        epoch = times["train_seconds"] + times["val_seconds"]
        return {"whole": done.seconds + (EPOCHS - 1) * epoch, "epochs": EPOCHS * epoch}

    def run_vtrain(self) -> dict[str, float]:
        self.rounds += 1
        place = self.folder / f"probe-{self.rounds}"
        place.mkdir()
        environment = {"VTRAIN_CACHE": str(place / "cache")}
        seconds = {}
        for name in ("cold", "warm"):
            command = fit_command(self.config, place / name, *self.overrides)
            seconds[name] = run_process(command, environment=environment).seconds
        epochs = sum(row["seconds"] for row in read_metrics(place / "cold"))
        return {**seconds, "epochs": epochs}

    def run_pass(self) -> dict[str, float]:
        output = self.folder / "pass.npy"
        model = f"{BACKBONE}:{self.folder / BACKBONE}.pth"
        command = [*VTRAIN, "embed", self.images.root, output, "-q", "-m", model]
        environment = {"VTRAIN_CACHE": str(self.folder / f"pass-{self.rounds}")}
        return {"whole": run_process(command, environment=environment).seconds}
