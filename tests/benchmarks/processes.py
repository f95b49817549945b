"""Two processes under torchrun against one, a thread each: target S10."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks.images import ImageSet, list_files, prepare_photographs, repeat_images
from tests.benchmarks.measure import (
    VTRAIN,
    Goal,
    NotRunError,
    Row,
    Settings,
    alternate,
    fit_command,
    read_metrics,
    run_process,
    suite_command,
    write_config,
)

BACKBONE = "resnet18"
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    *("-m", "vtrain"),
)
EMBED_TIMES = 3  # each image so often: the work must be long against the start
BATCH = 32  # of all processes together
PROCESSES = {"one": 1, "two": 2}
PROGRAMS: dict[str, tuple[str | Path, ...]] = {"one": VTRAIN, "two": TORCHRUN}
# Without loader workers: each process has one core for reading and computing.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
GOAL = Goal(1.8, at_least=True)


def benchmark(settings: Settings) -> Iterator[Row]:
    """Embedding, then full fine-tuning with the same batch over all processes."""
    times = 1 if settings.quick else EMBED_TIMES
    images = repeat_images(prepare_photographs(settings), times, settings.folder / "times")
    command = suite_command("S10", settings)
    embed = alternate(
        {name: partial(run_embed, name, images, settings.folder) for name in PROGRAMS},
        settings.rounds,
    )
    yield Row(
        "S10",
        f"embed, {BACKBONE}, {images.count} {images.name}, two processes; other side: one (a "
        "thread each, no loader workers; whole process less that of embedding one image)",
        embed["two"]["rate"].text("img/s"),
        embed["one"]["rate"].text("img/s"),
        embed["two"]["rate"].median / embed["one"]["rate"].median,
        GOAL,
        command,
    )
    config = write_config(
        settings.folder / "processes.yaml",
        train=images.train,
        val=few_images(images, settings.folder),
        backbone=BACKBONE,
        weights="none",
    )
    fit = alternate(
        {name: partial(run_fit, name, config, settings.folder) for name in PROGRAMS},
        settings.rounds,
    )
    yield Row(
        "S10",
        f"full fine-tune, {BACKBONE}, batch {BATCH} in all, {images.train_count} {images.name}, "
        "second epoch with validation on one image of each class, two processes; other side: one",
        fit["two"]["epoch"].text("s"),
        fit["one"]["epoch"].text("s"),
        fit["one"]["epoch"].median / fit["two"]["epoch"].median,
        GOAL,
        command,
    )


def few_images(images: ImageSet, folder: Path) -> Path:
    """One image of each class, so that validation takes hardly any time."""
    place = folder / "few"
    for class_folder in sorted(images.val.iterdir()):
        (place / class_folder.name).mkdir(parents=True)
        path = list_files(class_folder)[0]
        (place / class_folder.name / path.name).symlink_to(path.resolve())
    return place


def run_embed(program: str, images: ImageSet, folder: Path) -> dict[str, float]:
    """Rate without the start, which is taken from a run on one image."""
    seconds = {}
    one = list_files(images.val)[0]
    for path in (images.root, one):
        output = folder / f"{program}.npy"
        command = [*PROGRAMS[program], "embed", path, output, "-q", "--workers", "0"]
        command += ["-m", f"{BACKBONE}:none"]
        seconds[path] = run_process(command, environment=ENVIRONMENT).seconds
    work = seconds[images.root] - seconds[one]
    if work <= 0:
        raise NotRunError("embedding all images took no longer than one: the machine was busy")
    return {"rate": (images.count - 1) / work}


def run_fit(program: str, config: Path, folder: Path) -> dict[str, float]:
    """Seconds of the second epoch."""
    run_dir = folder / f"{program}-{len(list(folder.glob('*-*')))}"
    settings = ("freeze=none", "train.epochs=2", "data.augment=light", "data.workers=0")
    batch = f"data.batch_size={BATCH // PROCESSES[program]}"  # of each process
    command = fit_command(config, run_dir, *settings, batch)[len(VTRAIN) :]
    run_process([*PROGRAMS[program], *command], environment=ENVIRONMENT)
    return {"epoch": float(read_metrics(run_dir)[1]["seconds"])}
