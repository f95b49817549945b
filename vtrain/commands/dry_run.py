"""What `--dry-run` shows of a run: classes, phases, rates over time, then time, memory and disk."""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, TextIO

from vtrain.commands.terminal_plot import draw_plot
from vtrain.config.run_files import MODEL_NAME
from vtrain.data.transforms import AUGMENT_PRESETS
from vtrain.runs.dry_run import Forecast, Outline, build_rate_curve
from vtrain.runs.plan import FitPlan
from vtrain.runs.plan_text import build_plan_record, show_facts, show_phases
from vtrain.system.json_csv import to_plain
from vtrain.system.terminal import Console
from vtrain.system.text import format_bytes, one_line

MOST_CLASSES = 20
FEW_PHASES = 4  # that a sentence can name
# Rates further apart than this need a logarithmic axis; it ends at a share of the lowest peak.
LOG_FROM, LOG_FLOOR = 4.0, 0.02
MUCH = 0.05  # share of the time from which on it is worth a word


def show_outline(outline: Outline, console: Console) -> None:
    """Everything that is known before a step is taken."""
    plan = outline.plan
    show_facts(plan, console)
    show_classes(plan, console)
    for line in _describe_images(plan):
        console.say(line)
    show_phases(plan, console, every=True)
    console.say(_describe_steps(outline))
    console.say(draw_rates(outline, console.stream))


def show_classes(plan: FitPlan, console: Console) -> None:
    """The table of classes with their images in every split; of many the largest and smallest."""
    splits = plan.splits.named()
    counts = [images.class_counts() for images in splits.values()]
    rows = list(zip(plan.splits.classes, *counts, strict=True))
    title = f"{len(rows)} classes"
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        ordered = sorted(rows, key=lambda row: -row[1])
        rows = [*ordered[:half], *ordered[-half:]]
        title += f", the {half} with the most training images and the {half} with the fewest"
    console.table(
        ("class", *splits),
        [(one_line(name), *map(str, row)) for name, *row in rows],
        title=title,
        right=range(1, len(splits) + 1),
    )


def _describe_images(plan: FitPlan) -> Iterator[str]:
    pre, data = plan.preprocessing, plan.config.data
    mean, std = (", ".join(f"{each:g}" for each in three) for three in (pre.mean, pre.std))
    yield (
        f"images: turned as their EXIF says, transparent parts on rgb{pre.background}, "
        f"mean ({mean}), std ({std})"
    )
    for phase in plan.phases:
        name = plan.augment(phase)
        preset, parts = AUGMENT_PRESETS[name], [name]
        if preset.crop_scale is not None:
            low, high = preset.crop_scale
            parts.append(f"random crop of {low:.0%} to {high:.0%} of the area")
        if preset.flip:
            parts.append(f"left-right flip of {preset.flip:.0%}")
        if preset.policy:
            parts.append(f"policy {preset.policy}")
        mixed = {"erasing": data.erasing, "mixup": data.mixup, "cutmix": data.cutmix}
        parts += [f"{key} {value:g}" for key, value in mixed.items() if value]
        yield f"augmentation of phase {phase.name}: {', '.join(parts)}"


def _describe_steps(outline: Outline) -> str:
    plan, steps = outline.plan, outline.steps_per_epoch
    processes = plan.processes.world_size
    epochs = plan.config.train.epochs
    batch = f"{plan.batch_size} images in a batch"
    if processes > 1:
        batch += f" of each of {processes} processes"
    if plan.accumulate > 1:
        batch += f", {plan.accumulate} batches to a step"
    last = outline.last_batch
    uneven = f", {last} in the last one" if last != plan.batch_size * processes else ""
    return f"steps: {steps:,} an epoch, {steps * epochs:,} in {epochs} epochs; {batch}{uneven}"


def draw_rates(outline: Outline, stream: TextIO) -> str:
    """The learning rates over the epochs as a plot, as wide as the terminal."""
    plan, curve = outline.plan, build_rate_curve(outline)
    shown = {
        name: rates
        for name, rates in (("head", curve.head), ("backbone", curve.backbone))
        if any(rates)
    }
    peaks = [max(filter(None, rates)) for rates in shown.values()]
    log = max(peaks) > LOG_FROM * min(peaks)
    floor = LOG_FLOOR * min(peaks) if log else 0.0
    series = {
        name: (curve.epochs, [math.nan if r is None or r < floor else r for r in rates])
        for name, rates in shown.items()
    }
    starts = accumulate((phase.epochs for phase in plan.phases[:-1]), initial=0)
    names = [(start, phase.name) for start, phase in zip(starts, plan.phases, strict=True)]
    return draw_plot(
        series,
        stream,
        title="learning rate" if len(shown) > 1 else f"learning rate of the {next(iter(shown))}",
        x_title="epochs",
        log_y=log,
        starts=names if len(names) > 1 else (),
    )


def show_forecast(outline: Outline, forecast: Forecast, console: Console) -> None:
    """What was measured, and what follows from it."""
    plan, phases = outline.plan, forecast.phases
    console.table(
        ("phase", "epochs", "step", "waiting", "epoch", "val", "in all"),
        [
            (
                phase.name,
                str(phase.epochs),
                format_step(phase.step_seconds),
                "-" if phase.on_features else f"{phase.waiting:.0%}",
                *map(format_rough, (phase.epoch_seconds, phase.validation_seconds, phase.seconds)),
            )
            for phase in phases
        ],
        title="time, estimated from one step of each phase",
        right=range(1, 7),
    )
    for phase in phases if len(phases) <= FEW_PHASES else ():
        if phase.on_features or phase.feature_count:
            of = "its epochs train on stored" if phase.on_features else "validation uses"
            how = "all of them are stored already"
            if phase.feature_count:
                seconds = format_rough(phase.feature_seconds)
                how = f"{phase.feature_count:,} are computed once, in {seconds}"
            console.say(f"phase {phase.name}: {of} features: {how}")
    console.say(_describe_time(forecast))
    if plan.processes.world_size > 1:
        console.say("time: the exchange of gradients between the processes is not in it")
    if plan.config.train.compile:
        console.say("time: measured without train.compile")
    _show_memory(plan, forecast, console)
    free = "" if forecast.disk_free is None else f"; {format_bytes(forecast.disk_free)} are free"
    console.say(
        f"disk: {format_bytes(forecast.disk_kept)} at the end, up to "
        f"{format_bytes(forecast.disk_needed)} while it is written{free}"
    )
    model = one_line(outline.run_dir / MODEL_NAME)
    console.say(f"would write: {one_line(outline.run_dir)}, its model to {model}")
    console.say("nothing has been written: leave out --dry-run to train")


def _describe_time(forecast: Forecast) -> str:
    """One sentence: the whole time, its phases, and how much of it goes into images."""
    phases = forecast.phases
    parts = [
        f"{phase.name} {phase.epochs} epoch{'s' if phase.epochs > 1 else ''} "
        f"{format_rough(phase.seconds)}"
        for phase in phases
    ]
    if len(parts) > FEW_PHASES:
        parts = [f"{len(parts)} phases {format_rough(sum(phase.seconds for phase in phases))}"]
    parts.append(f"final evaluation {format_rough(forecast.final_seconds)}")
    text = f"time: about {format_rough(forecast.seconds)}: {', '.join(parts)}"
    for seconds, what in (
        (sum(phase.feature_seconds for phase in phases), "for features that are computed once"),
        (forecast.waiting_seconds, "waiting for images"),
    ):
        if seconds > MUCH * forecast.seconds:
            text += f"; {format_rough(seconds)} of it {what}"
    return text


def _show_memory(plan: FitPlan, forecast: Forecast, console: Console) -> None:
    total, sizes = forecast.device_bytes, [to_plain(phase.memory) for phase in forecast.phases]
    console.table(
        ("phase", *sizes[0]),
        [
            (
                phase.name,
                *("-" if each is None else format_bytes(each) for each in row.values()),
            )
            for phase, row in zip(forecast.phases, sizes, strict=True)
        ],
        title="memory" if total is None else f"memory of {plan.device}",
        right=range(1, 6),
    )
    peak = max(each["peak"] or 0 for each in sizes)
    if not peak:
        return
    where = "in the whole process"
    if total is not None:
        where = f"of the {format_bytes(total)} of {plan.device} were in use"
    elif plan.workers:
        where += f", besides {plan.workers} loader worker{'s' if plan.workers > 1 else ''}"
    console.say(f"memory: up to {format_bytes(peak)} {where}")


def format_step(seconds: float) -> str:
    """The time of a step in three digits: 0.42 ms, 85 ms, 1.3 s."""
    return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s"


def format_rough(seconds: float) -> str:
    """An estimate in two digits: <1 s, 8 s, 43 s, 2.5 min, 11 min, 1.5 h, 50 h."""
    if seconds < 0.95:
        return "<1 s"
    for size, unit in ((1, "s"), (60, "min")):
        rounded = max(1.0, float(f"{seconds / size:.2g}"))
        if rounded < 60:
            return f"{rounded:g} {unit}"
    return f"{float(f'{seconds / 3600:.2g}'):g} h"


def build_dry_run_record(outline: Outline, forecast: Forecast) -> dict[str, Any]:
    """What `--dry-run --json` prints: `plan.json` and what was measured, sizes in bytes."""
    plan = outline.plan
    counts = {name: images.class_counts() for name, images in plan.splits.named().items()}
    return {
        **build_plan_record(plan, steps_per_epoch=outline.steps_per_epoch),
        "run_dir": str(outline.run_dir),
        "model": str(outline.run_dir / MODEL_NAME),
        "last_batch": outline.last_batch,
        "classes": [
            {"class": name, **{split: each[label] for split, each in counts.items()}}
            for label, name in enumerate(plan.splits.classes)
        ],
        "learning_rate": to_plain(build_rate_curve(outline)),
        "forecast": to_plain(forecast),
    }
