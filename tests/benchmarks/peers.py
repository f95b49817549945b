"""Other tools at the same work, in a virtual environment of their own.

python -m tests.benchmarks peers --venv FOLDER      makes it (several gigabytes)
python -m tests.benchmarks peers --peers FOLDER     measures
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks.embedding import run_vtrain as run_embed
from tests.benchmarks.images import ImageSet, prepare_photographs
from tests.benchmarks.measure import (
    ROOT,
    NotRunError,
    Row,
    Settings,
    alternate,
    draw_weights,
    fit_command,
    has_setting,
    read_metrics,
    run_process,
    suite_command,
    write_config,
)

# Their torch need not be ours: pip chooses what they agree on.
PACKAGES = ("fastai", "timm", "ultralytics", "lightly-train")
SCRIPTS = ROOT / "tests/benchmarks/peer_scripts"
BACKBONE = "resnet18"
ULTRALYTICS_RIVAL = "mobilenet_v3_small"
QUIET = {"YOLO_OFFLINE": "true", "LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "WANDB_MODE": "disabled"}


def create_venv(folder: Path) -> None:
    """Make the environment, or bring an existing one up to date.

    Raises:
        NotRunError: pip failed.
    """
    run_process([sys.executable, "-m", "venv", folder])
    run_process([folder / "bin/python", "-m", "pip", "install", "--quiet", *PACKAGES])


def benchmark(settings: Settings) -> Iterator[Row]:
    """fastai's two kinds of epoch, ultralytics' training, lightly-train's embedding."""
    if settings.peers is None:
        raise NotRunError("no environment with other tools: give --peers, see --venv")
    if not (settings.peers / "bin/python").exists():
        raise NotRunError(f"{settings.peers} holds no bin/python")
    images = prepare_photographs(settings)
    missing = []
    for benchmark_one in (compare_fastai, compare_ultralytics, compare_lightly):
        try:
            yield from benchmark_one(settings, images)
        except NotRunError as error:  # one tool that fails must not hide the others
            missing.append(f"{benchmark_one.__name__}: {error}")
    if missing:
        raise NotRunError("; ".join(missing))


def compare_fastai(settings: Settings, images: ImageSet) -> Iterator[Row]:
    """An epoch with its validation, of the head alone and of everything."""
    found = alternate(
        {
            "fastai": partial(run_script, "fastai_train.py", settings, [images.root]),
            "vtrain": partial(run_epochs, settings, images, BACKBONE),
        },
        settings.rounds,
    )
    for name, what in (("freeze", "head alone, nothing stored"), ("finetune", "everything")):
        ours, other = found["vtrain"][name], found["fastai"][name]
        yield Row(
            "S1" if name == "freeze" else "S2",
            f"one epoch, {what}, {BACKBONE}, {images.train_count} + {images.val_count} "
            f"{images.name}; other side: fastai with its defaults",
            ours.text("s"),
            other.text("s"),
            other.median / ours.median,
            None,
            suite_command("peers", settings),
        )


def compare_ultralytics(settings: Settings, images: ImageSet) -> Iterator[Row]:
    """Training images per second; the models differ."""
    found = alternate(
        {
            "ultralytics": partial(
                run_script, "ultralytics_train.py", settings, [images.root], output=True
            ),
            "vtrain": partial(run_epochs, settings, images, ULTRALYTICS_RIVAL),
        },
        settings.rounds,
    )
    ours, other = found["vtrain"]["rate"], found["ultralytics"]["rate"]
    yield Row(
        "S3",
        f"full fine-tune at 224, batch 32, {ULTRALYTICS_RIVAL}; other side: ultralytics with "
        "yolo11n-cls, another model: ultralytics trains its own only",
        ours.text("img/s"),
        other.text("img/s"),
        ours.median / other.median,
        None,
        suite_command("peers", settings),
    )


def compare_lightly(settings: Settings, images: ImageSet) -> Iterator[Row]:
    """Embedding, without the start of the process."""
    found = alternate(
        {
            "lightly": partial(
                run_script, "lightly_embed.py", settings, [images.root], output=True
            ),
            "vtrain": partial(run_embed, BACKBONE, images.root, settings.folder / "out.npy"),
        },
        settings.rounds,
    )
    ours, other = found["vtrain"]["rate"], found["lightly"]["rate"]
    yield Row(
        "S4",
        f"embed, {BACKBONE}, {images.count} {images.name}; other side: lightly-train, 2 workers",
        ours.text("img/s"),
        other.text("img/s"),
        ours.median / other.median,
        None,
        suite_command("peers", settings),
    )


def run_script(
    name: str, settings: Settings, arguments: list[Path], *, output: bool = False
) -> dict[str, float]:
    """One run of a script in the environment of the other tools, with a rate where it has one."""
    assert settings.peers is not None
    if output:
        number = len(list(settings.folder.glob(f"{name}-*")))
        arguments = [*arguments, settings.folder / f"{name}-{number}"]
        arguments[-1].mkdir()
    home = settings.folder / "home"  # their settings and caches go there
    home.mkdir(exist_ok=True)
    environment = {**QUIET, "HOME": str(home), "YOLO_CONFIG_DIR": str(home)}
    python = settings.peers / "bin/python"
    found = run_process([python, SCRIPTS / name, *arguments], environment=environment).json()
    seconds = found.get("epoch", found.get("seconds"))
    rate = {"rate": found["images"] / seconds} if seconds else {}
    return rate | {key: value for key, value in found.items() if isinstance(value, float)}


def run_epochs(settings: Settings, images: ImageSet, backbone: str) -> dict[str, float]:
    """Seconds of an epoch of the head alone (without stored features) and of everything."""
    config = write_config(
        settings.folder / f"{backbone}.yaml",
        train=images.train,
        val=images.val,
        backbone=backbone,
        weights=draw_weights(settings, backbone),
    )
    uncached = ["train.cache=off"] if has_setting("train", "cache") else []
    found = {}
    for name, freeze in (("freeze", "head"), ("finetune", "none")):
        run_dir = settings.folder / f"{name}-{len(list(settings.folder.glob('*-*')))}"
        overrides = [f"freeze={freeze}", "train.epochs=1", "data.augment=light"]
        run_process(fit_command(config, run_dir, *overrides, *uncached))
        row = read_metrics(run_dir)[0]
        found[name] = float(row["seconds"])
        found["rate"] = float(row["images_per_second"])  # of the last: everything
    return found
