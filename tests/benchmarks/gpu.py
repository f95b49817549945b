"""One CUDA GPU: targets G1 and G2, precision, memory, compilation and profiling."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

from tests.benchmarks.finetune import TIMM_SCRIPT, find_timm
from tests.benchmarks.images import WEIGHTS as SQUEEZENET
from tests.benchmarks.images import (
    ImageSet,
    find_shared,
    prepare_photographs,
    repeat_images,
)
from tests.benchmarks.measure import (
    VTRAIN,
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

BACKBONE = "resnet50"
BATCH = 256
TRAIN_IMAGES = 5120  # 20 batches
EPOCHS = 3  # the first, which starts the workers and chooses kernels, is not counted
SEEDS = 3
OPTIMIZER = ("optim.optimizer=sgd", "train.clip_norm=null", "train.label_smoothing=0")
TRAINING = ("freeze=none", "train.precision=bf16", "data.augment=light", *OPTIMIZER)
# Activations of this many pixels, above a terabyte, fit no GPU.
TOO_MUCH = ("data.image_size=1024", "data.batch_size=512")
CUDA_CHECK = (
    "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
)


def benchmark(settings: Settings) -> Iterator[Row]:
    """Each part by itself, so that one that fails does not hide the others."""
    device = require_cuda()
    images = prepare_photographs(settings)
    wanted = BATCH * 2 if settings.quick else TRAIN_IMAGES
    times = -(-wanted // images.train_count)
    many = repeat_images(images, times, settings.folder / "many")
    config = write_config(
        settings.folder / "gpu.yaml",
        train=many.train,
        val=images.val,
        backbone=BACKBONE,
        weights="none",
    )
    missing = []
    parts: tuple[Callable[[], Iterator[Row]], ...] = (
        lambda: train_rate(settings, config, device, many, compiled=False),
        lambda: train_rate(settings, config, device, many, compiled=True),
        lambda: embed_rate(settings, device, many),
        lambda: precision(settings, images),
        lambda: out_of_memory(settings, config),
        lambda: profile(settings, config),
    )
    for part in parts:
        try:
            yield from part()
        except NotRunError as error:
            missing.append(str(error))
    if missing:
        raise NotRunError("; ".join(missing))


def require_cuda() -> str:
    """The name of the GPU.

    Raises:
        NotRunError: torch finds none.
    """
    name = run_process([sys.executable, "-c", CUDA_CHECK]).stdout.strip()
    if not name:
        raise NotRunError("torch finds no CUDA device")
    return name


def train_rate(
    settings: Settings, config: Path, device: str, images: ImageSet, *, compiled: bool
) -> Iterator[Row]:
    """G1: a run that reads JPEGs against the step on data on the GPU; that step against timm's."""
    overrides = [*TRAINING, f"data.batch_size={BATCH}", f"train.compile={str(compiled).lower()}"]

    def run() -> dict[str, float]:
        run_dir = settings.folder / f"gpu-{len(list(settings.folder.glob('gpu-*')))}"
        run_process(fit_command(config, run_dir, *overrides, f"train.epochs={EPOCHS}"))
        rates = [row["images_per_second"] for row in read_metrics(run_dir)[1:]]
        return {"rate": max(rates)}

    def limit() -> dict[str, float]:
        found = run_module("core_limit", ["fit", config, *overrides]).json()
        compute, read = float(found["compute"]), float(found["read"])
        return {"compute": compute, "read": read, "limit": min(compute, read)}

    sides = {"vtrain": run, "limit": limit}
    python = find_timm(settings)
    if python is not None:
        sides["timm"] = lambda: run_timm(python, compiled=compiled)
    found = alternate(sides, settings.rounds)
    ours, step = found["vtrain"]["rate"], found["limit"]["compute"]
    command = suite_command("gpu", settings)
    what = f"{device}, {BACKBONE}, bf16, batch {BATCH}{', compiled' if compiled else ''}"
    yield Row(
        "G1",
        f"{what}: full fine-tune reading {images.train_count} JPEGs ({images.name}); other side: "
        f"the smaller of the step on data on the GPU ({step.median:.4g}) and of reading alone "
        f"({found['limit']['read'].median:.4g} img/s)",
        ours.text("img/s"),
        found["limit"]["limit"].text("img/s"),
        ours.median / found["limit"]["limit"].median,
        Goal(0.95, at_least=True),
        command,
    )
    if python is None:
        raise NotRunError("the step against timm's: timm is not installed, give --peers")
    yield timm_row(what, step, found["timm"]["rate"], command)


def timm_row(what: str, step: Sample, timm: Sample, command: str) -> Row:
    """vtrain's step against timm's, both on data on the GPU."""
    return Row(
        "G1",
        f"{what}: the step on data on the GPU; other side: timm's, sgd, no clipping",
        step.text("img/s"),
        timm.text("img/s"),
        step.median / timm.median,
        Goal(1.2, at_least=True),
        command,
    )


def run_timm(python: Path, *, compiled: bool) -> dict[str, float]:
    """timm's step on random images on the GPU."""
    command: list[str | Path] = [
        python,
        TIMM_SCRIPT,
        "--backbone",
        BACKBONE,
        "--in-memory",
        "--device",
        "cuda",
    ]
    command += ["--batch-size", str(BATCH), "--epochs", str(EPOCHS)]
    command += ["--compile"] if compiled else []
    return {"rate": float(run_process(command).json()["rate"])}


def embed_rate(settings: Settings, device: str, images: ImageSet) -> Iterator[Row]:
    """G2: embedding against the smaller of the rates of reading and of the forward pass."""
    arguments = ["--model", f"{BACKBONE}:none", "--batch-size", str(BATCH)]
    output = settings.folder / "gpu.npy"

    def run() -> dict[str, float]:
        times = run_module("embed_call", [images.train, output, *arguments]).json()
        return {"rate": times["images"] / times["seconds"]}

    def limit() -> dict[str, float]:
        found = run_module("core_limit", ["embed", images.train, *arguments]).json()
        compute, read = float(found["compute"]), float(found["read"])
        return {"compute": compute, "read": read, "limit": min(compute, read)}

    found = alternate({"vtrain": run, "limit": limit}, settings.rounds)
    ours, best = found["vtrain"]["rate"], found["limit"]
    yield Row(
        "G2",
        f"{device}: embed {images.train_count} JPEGs ({images.name}), {BACKBONE}, batch {BATCH}, "
        f"one call with the start of its workers; other side: the smaller of forward "
        f"({best['compute'].median:.4g}) and reading alone ({best['read'].median:.4g} img/s)",
        ours.text("img/s"),
        best["limit"].text("img/s"),
        ours.median / best["limit"].median,
        Goal(0.9, at_least=True),
        suite_command("gpu", settings),
    )


def precision(settings: Settings, images: ImageSet) -> Iterator[Row]:
    """Top-1 of `lp-ft` with real weights in bf16 and in fp32, means over seeds."""
    weights = find_shared(SQUEEZENET)
    config = write_config(
        settings.folder / "precision.yaml",
        train=images.train,
        val=images.val,
        backbone="squeezenet1_0",
        weights=str(weights),
    )
    found: dict[str, list[float]] = {}
    for name in ("bf16", "fp32"):
        for seed in range(1 if settings.quick else SEEDS):
            run_dir = settings.folder / f"{name}-{seed}"
            overrides = ("freeze=lp-ft", f"train.precision={name}", f"seed={seed}")
            run_process(fit_command(config, run_dir, *overrides))
            result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
            found.setdefault(name, []).append(float(result["val_top1"]))
    texts = {
        name: f"{mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"
        for name, values in found.items()
    }
    yield Row(
        "A2",
        f"top-1 on {images.name}, squeezenet1_0 with weights, `lp-ft`, bf16; other side: fp32; "
        "found: the difference",
        texts["bf16"],
        texts["fp32"],
        mean(found["bf16"]) - mean(found["fp32"]),
        None,
        suite_command("gpu", settings),
    )


def out_of_memory(settings: Settings, config: Path) -> Iterator[Row]:
    """A batch that fits no GPU: the run goes on in smaller ones, or ends with 5 and a way out."""
    command = fit_command(
        config, settings.folder / "memory", *TRAINING, *TOO_MUCH, "train.epochs=1"
    )
    done = run_process(command, check=False)
    said = " / ".join(done.stderr.strip().splitlines()[-2:])
    yield Row(
        "R8",
        f"out of memory: {', '.join(TOO_MUCH)}; found: the exit code (5 with a hint, or 0 where "
        "the run goes on)",
        f"exit {done.code} after {done.seconds:.0f} s: {said}",
        "-",
        float(done.code),
        None,
        suite_command("gpu", settings),
    )


def profile(settings: Settings, config: Path) -> Iterator[Row]:
    """`fit --profile`, where this version has it."""
    if "--profile" not in run_process([*VTRAIN, "fit", "--help"]).stdout:
        raise NotRunError("this version has no fit --profile")
    run_dir = settings.folder / "profile"
    command = fit_command(config, run_dir, *TRAINING, f"data.batch_size={BATCH}")
    done = run_process([*command, "train.epochs=1", "--profile"], check=False)
    files = ", ".join(sorted(path.name for path in run_dir.glob("*"))) if run_dir.exists() else "-"
    yield Row(
        "-",
        "`fit --profile`; found: the exit code",
        f"exit {done.code}, {done.seconds:.0f} s; run folder: {files}",
        "-",
        float(done.code),
        None,
        suite_command("gpu", settings),
    )
