"""A run tried out without a run folder: a few steps of each phase, and what the whole takes."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from vtrain.console import Console
from vtrain.data.feature_store import StoredRows
from vtrain.data.loaders import Batch, EpochBatchSampler
from vtrain.distributed import ALONE
from vtrain.files import require_space
from vtrain.loop_builder import (
    build_loop,
    build_sampler,
    count_saved_bytes,
    count_steps,
    find_schedule,
    set_phase,
)
from vtrain.models.freezing import HEAD
from vtrain.phase import PhaseBuilder, PhaseWork
from vtrain.plan import FitPlan
from vtrain.records import LabelledImages
from vtrain.run_folder import count_needed_bytes
from vtrain.training.calibration import MAX_BANK
from vtrain.training.feature_cache import FeatureCache, FrozenPart, Views
from vtrain.training.loop import StepReport, TrainLoop, TrainState
from vtrain.training.memory import STATES_PER_WEIGHT, PeakMemory, saved_activations
from vtrain.training.stopwatch import Stopwatch
from vtrain.training.streams import choose_streams

# Each thing is measured for this long, and at least twice; what is slower, for so long at most.
MEASURE_SECONDS = 1.5
LIMIT_SECONDS = 20.0
FIXED_STEPS = 4  # after the first, where several processes run side by side
CURVE_POINTS = 400
_MADE_UP_ROWS = 64


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Bytes that a phase takes on its device.

    `model` with its buffers and its moving average, `activations` what a batch keeps for the
    backward pass. `peak` is the most that was in use while it was measured: on CUDA on the device,
    else by the whole process without its loader workers; None where the system does not tell.
    """

    model: int
    gradients: int
    optimizer: int
    activations: int
    peak: int | None


@dataclass(frozen=True, slots=True)
class PhaseForecast:
    """What a phase will take.

    `feature_count` activations are computed once, in `feature_seconds`; `on_features` tells whether
    its epochs are trained on them. `waiting` is the share (0 to 1) of the time of training steps
    in which the device waits for images. Times in seconds: of an optimiser step, and of an epoch's
    training and validation.
    """

    name: str
    epochs: int
    on_features: bool
    feature_count: int
    feature_seconds: float
    step_seconds: float
    waiting: float
    epoch_seconds: float
    validation_seconds: float
    memory: MemoryForecast

    @property
    def seconds(self) -> float:
        """The whole phase."""
        return self.feature_seconds + self.epochs * (self.epoch_seconds + self.validation_seconds)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take: time by phase, and room on the disk while it runs and afterwards.

    `final_seconds` is the last evaluation. `device_bytes` is the memory of a CUDA device.
    """

    phases: tuple[PhaseForecast, ...]
    final_seconds: float
    disk_needed: int
    disk_kept: int
    disk_free: int | None
    device_bytes: int | None

    @property
    def seconds(self) -> float:
        """The whole run, from the first step on."""
        return sum(phase.seconds for phase in self.phases) + self.final_seconds

    @property
    def waiting_seconds(self) -> float:
        """For how long the device will wait for images."""
        return sum(each.waiting * each.epochs * each.epoch_seconds for each in self.phases)


@dataclass(frozen=True, slots=True)
class Outline:
    """A plan with where its run would be; `last_batch` images are in the last batch of an epoch."""

    plan: FitPlan
    run_dir: Path
    steps_per_epoch: int
    last_batch: int


def build_outline(plan: FitPlan, run_dir: Path) -> Outline:
    """What is known of a run before a step is taken."""
    sampler = build_sampler(plan)
    return Outline(plan, run_dir, count_steps(plan, sampler), sampler.batch_sizes()[-1])


def require_room(forecast: Forecast, run_dir: Path) -> None:
    """Refuse a run that its disk has no room for, as it would be refused.

    Raises:
        ResourceError: it has not.
    """
    if forecast.disk_free is not None:
        require_space(_find_existing(run_dir), forecast.disk_needed, "the checkpoints of this run")


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Learning rates of a whole run by epochs done; NaN where a part is frozen."""

    epochs: tuple[float, ...]
    head: tuple[float, ...]
    backbone: tuple[float, ...]


def build_rate_curve(plan: FitPlan, *, steps_per_epoch: int) -> RateCurve:
    """The highest rate of the head and of what lies below it, at steps spread over the run."""
    total = steps_per_epoch * sum(phase.epochs for phase in plan.phases)
    stride = max(1, total // CURVE_POINTS)
    rows: list[tuple[float, float, float]] = []
    first = 0
    for index, phase in enumerate(plan.phases):
        start, schedule = find_schedule(plan, index, steps_per_epoch)
        stop = first + phase.epochs * steps_per_epoch
        peaks = [_peak_rate(plan, index, head=head) for head in (True, False)]
        # The ends of a phase are among the points: between phases the rate can jump.
        for step in sorted({*range(first, stop, stride), stop - 1}):
            factor = schedule(step - start)
            head, below = (peak * factor if peak else float("nan") for peak in peaks)
            rows.append((step / steps_per_epoch, head, below))
        first = stop
    epochs, heads, belows = zip(*rows, strict=True)
    return RateCurve(epochs, heads, belows)


def _peak_rate(plan: FitPlan, phase: int, *, head: bool) -> float:
    rates = [group["peak_lrs"][phase] for group in plan.groups if (group["stage"] == HEAD) == head]
    return max(rates, default=0.0)


class _EnoughError(Exception):
    """Ends what is measured, out of the middle of it."""


@dataclass(slots=True)
class _Pace:
    """Moments at which one thing after the other was done, of which `together` come at a time.

    `fixed` is how many to take after the first, whatever time they need.
    """

    device: torch.device
    together: int
    fixed: int | None = None
    start: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """One more is done.

        Raises:
            _EnoughError: the pace is known well enough.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())
        count, seconds = len(self.times) - 1, self.times[-1] - self.times[0]
        if self.fixed is not None:
            if count >= self.fixed:
                raise _EnoughError
            return
        # Workers hand in their batches at about the same time: whole rounds alone tell the pace.
        whole = count >= max(2, self.together) and count % max(1, self.together) == 0
        if (whole and seconds >= MEASURE_SECONDS) or (count >= 2 and seconds >= LIMIT_SECONDS):
            raise _EnoughError

    @property
    def first(self) -> float:
        """Seconds before the pace begins: until the first was done, but for its own time."""
        if not self.times:
            return 0.0
        return max(0.0, self.times[0] - self.start - self.each)

    @property
    def each(self) -> float:
        """Seconds that each takes."""
        if not self.times:
            return 0.0
        if len(self.times) == 1:
            return self.times[0] - self.start
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    def total(self, count: float) -> float:
        """Seconds that `count` take."""
        return self.first + count * self.each


@dataclass(slots=True)
class _RehearsalBuilder(PhaseBuilder):
    """Builds phases as a run does, but trains on made-up rows where that would store features.

    What the run would compute for its store is counted, and timed on a few real images; nothing
    is written. `processes` share that work.
    """

    processes: int = 1
    feature_count: int = 0
    feature_seconds: float = 0.0
    on_features: bool = False
    provided: float = 0.0  # when rows were last made up
    known: set[tuple[str, str]] = field(default_factory=set)

    def _provide(
        self,
        cache: FeatureCache,
        part: FrozenPart,
        images: LabelledImages,
        views: Views,
        *,
        ahead: LabelledImages | None = None,
        silent: bool = False,  # noqa: ARG002 (nothing is said of rows that are made up)
    ) -> StoredRows | None:
        self.on_features |= images is self.plan.splits.train
        names = {id(each): name for name, each in self.plan.splits.named().items()}
        kind = json.dumps([part.facts, views.facts()], sort_keys=True)
        missing = 0
        for split in filter(None, (images, ahead)):
            key = (kind, names[id(split)])
            if key not in self.known:
                self.known.add(key)
                missing += cache.count_missing(part, split.paths, views)
        if missing:
            pace = self._time_features(cache, part, images, views)
            share = missing / self.processes
            self.feature_count += missing
            self.feature_seconds += pace.total(share / self.plan.batch_size)
        rows = _make_rows(part, len(images), views.count)
        self.provided = time.perf_counter()
        return rows

    def _time_features(
        self, cache: FeatureCache, part: FrozenPart, images: LabelledImages, views: Views
    ) -> _Pace:
        plan = self.plan
        pace = _Pace(plan.device, max(plan.workers, choose_streams(plan.device)))
        numbers = np.zeros(len(images), dtype=np.int64)
        label = "measuring features"
        with suppress(_EnoughError), self.console.progress(len(images), label) as bar:
            for batch, _ in cache.compute(part, images.paths, views, numbers):
                bar.update(len(batch))
                pace.tick()
        return pace


def _make_rows(part: FrozenPart, count: int, views: int) -> StoredRows:
    """Rows `[count, views]` of random activations, of which a few are in memory again and again."""
    dtype = getattr(torch, part.facts["dtype"])
    generator = torch.Generator().manual_seed(0)
    block = torch.rand(_MADE_UP_ROWS, *part.facts["shape"], generator=generator).to(dtype)
    rows = np.arange(count * views, dtype=np.int64).reshape(count, views) % _MADE_UP_ROWS
    return StoredRows([block], rows)


@dataclass(slots=True)
class Rehearsal:
    """Tries the phases of a plan, one after the other, each from the weights that were loaded.

    Every process of a job does so by itself: the exchange between them is not measured.
    """

    plan: FitPlan
    console: Console
    sampler: EpochBatchSampler = field(init=False)
    builder: _RehearsalBuilder = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = build_sampler(self.plan)  # with this process's part of each batch
        alone = replace(self.plan, group=ALONE)
        processes = self.plan.group.world_size
        self.builder = _RehearsalBuilder(alone, self.console, lambda: None, processes=processes)
        self.plan = alone

    def measure(self, run_dir: Path) -> Forecast:
        """Take the steps; the weights are as before afterwards.

        Raises:
            VtrainError: what the run itself would raise.
        """
        plan = self.plan
        before = {
            name: tensor.to("cpu", copy=True)
            for name, tensor in plan.classifier.state_dict().items()
        }
        phases = []
        for index in range(len(plan.phases)):
            try:
                phases.append(self._measure_phase(index))
            finally:
                plan.classifier.load_state_dict(before)
        final = self._forecast_familiar(phases[-1]) + self._measure_test()
        loop = build_loop(plan, TrainState(), Stopwatch(plan.device), notify=self.console.warn)
        checkpoint, model = count_saved_bytes(plan, loop)
        return Forecast(
            phases=tuple(phases),
            final_seconds=final,
            disk_needed=count_needed_bytes(checkpoint_bytes=checkpoint, model_bytes=model),
            disk_kept=checkpoint + model,
            disk_free=_find_free(run_dir),
            device_bytes=_find_device_bytes(plan.device),
        )

    def _measure_phase(self, index: int) -> PhaseForecast:
        plan, builder = self.plan, self.builder
        phase, steps = plan.phases[index], count_steps(plan, self.sampler)
        builder.feature_count, builder.feature_seconds, builder.on_features = 0, 0.0, False
        peak = PeakMemory(plan.device)
        loop = build_loop(plan, TrainState(), Stopwatch(plan.device), notify=self.console.warn)
        set_phase(loop, plan, index, steps)
        work = builder.enter(phase, self.sampler)
        try:
            activations = self._warm_up(loop, work, index)
            step, waiting = self._time_steps(loop, work, index)
        finally:
            work.close()
        validation = self._time_evaluation(
            len(plan.splits.val), lambda: builder.validate(plan.classifier)
        )
        return PhaseForecast(
            name=phase.name,
            epochs=phase.epochs,
            on_features=builder.on_features,
            feature_count=builder.feature_count,
            feature_seconds=builder.feature_seconds,
            step_seconds=step.each,
            waiting=waiting,
            epoch_seconds=step.total(steps),
            validation_seconds=validation,
            memory=self._forecast_memory(loop, index, activations, peak.read()),
        )

    def _warm_up(self, loop: TrainLoop, work: PhaseWork, index: int) -> int:
        """A step that is not timed, on noise; the bytes that it keeps for its backward pass."""
        plan = self.plan
        self._start_epoch(loop, index)
        batch = self._take_stored(work) if self.builder.on_features else self._make_batch()
        accumulate, loop.accumulate = loop.accumulate, 1
        self.sampler.set_epoch(loop.state.epoch)
        with (
            self.console.progress(1, f"warming up {plan.phases[index].name}", unit="step"),
            saved_activations(plan.classifier) as total,
        ):
            loop.model, loop.prepare = work.model, work.prepare
            loop.run_epoch([batch], [len(batch)], lambda _: None)
        loop.accumulate = accumulate
        return total[0]

    def _take_stored(self, work: PhaseWork) -> Batch:
        return next(iter(work.batches))

    def _make_batch(self) -> Batch:
        plan = self.plan
        size, edge = plan.batch_size, plan.preprocessing.crop
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (size, edge, edge, 3), generator=generator, dtype=torch.uint8)
        labels = torch.arange(size) % len(plan.splits.classes)
        return Batch(pixels.permute(0, 3, 1, 2), labels, torch.arange(size))

    def _start_epoch(self, loop: TrainLoop, index: int) -> None:
        """Go to the first step of a phase."""
        epoch = sum(phase.epochs for phase in self.plan.phases[:index])
        splits = loop.state.splits
        step = epoch * count_steps(self.plan, self.sampler)
        loop.state = TrainState(epoch=epoch, step=step, splits=splits)
        self.sampler.set_epoch(epoch)

    def _time_steps(self, loop: TrainLoop, work: PhaseWork, index: int) -> tuple[_Pace, float]:
        """The pace of optimiser steps on real batches, and the share that is spent waiting."""
        self._start_epoch(loop, index)
        # Of stored rows none is waited for.
        workers = 0 if self.builder.on_features else self.plan.workers
        pace, waits = self._start_pace(workers), [0.0]
        label = f"measuring {self.plan.phases[index].name}"
        with self.console.progress(len(self.plan.splits.train), label) as bar:

            def on_step(report: StepReport) -> None:
                bar.update(report.images - bar.n)
                waits.append(report.data_wait * (time.perf_counter() - pace.start))
                pace.tick()

            with suppress(_EnoughError):
                loop.run_epoch(work.batches, self.sampler.batch_sizes(), on_step)
        if self.builder.on_features:
            return pace, 0.0
        if len(pace.times) < 2:
            return pace, min(1.0, waits[-1] / max(pace.each, 1e-9))
        return pace, min(1.0, (waits[-1] - waits[1]) / (pace.times[-1] - pace.times[0]))

    def _forecast_familiar(self, last: PhaseForecast) -> float:
        """Seconds for the validation images at the end, and for a sample of the training images.

        Where the last phase was trained on features, those of the sample are stored.
        """
        splits = self.plan.splits
        seconds = last.validation_seconds
        if last.on_features:
            return seconds
        each = (seconds + last.feature_seconds) / len(splits.val)  # these may have been stored
        return seconds + each * min(len(splits.train), MAX_BANK)

    def _measure_test(self) -> float:
        """Seconds that the test images take at the end, by the classifier of the last phase."""
        plan, builder, test = self.plan, self.builder, self.plan.splits.test
        if test is None:
            return 0.0
        builder.feature_seconds = 0.0
        seconds = self._time_evaluation(
            len(test), lambda: builder.evaluate(plan.classifier, test, "measuring the evaluation")
        )
        return builder.feature_seconds + seconds

    def _time_evaluation(self, images: int, evaluate: Callable[[], object]) -> float:
        """Seconds that an evaluation of so many images will take; it is not run to its end."""
        plan, builder = self.plan, self.builder
        pace = self._start_pace(max(plan.workers, choose_streams(plan.device)))
        builder.on_batch = pace.tick
        with suppress(_EnoughError):
            try:
                evaluate()
            finally:
                builder.on_batch = lambda: None
        pace.start = max(pace.start, builder.provided)  # what was made up before is no part of it
        return pace.total(-(-images // plan.batch_size) / builder.processes)

    def _start_pace(self, together: int) -> _Pace:
        # Processes that normalise over all their batches must take as many steps.
        fixed = FIXED_STEPS if self.builder.processes > 1 else None
        return _Pace(self.plan.device, together, fixed)

    def _forecast_memory(
        self, loop: TrainLoop, index: int, activations: int, peak: int | None
    ) -> MemoryForecast:
        plan = self.plan
        trained = [p.nbytes for p in plan.classifier.parameters() if p.requires_grad]
        # What an earlier phase has stepped keeps its state.
        stepped = [
            parameter.nbytes
            for group in plan.groups
            for parameter in group["params"]
            if any(group["peak_lrs"][: index + 1])
        ]
        copies = STATES_PER_WEIGHT if plan.config.optim.optimizer == "adamw" else 1
        model = sum(tensor.nbytes for tensor in plan.classifier.state_dict().values())
        return MemoryForecast(
            model=model * (1 if loop.ema is None else 2),
            gradients=sum(trained),
            optimizer=copies * sum(stepped),
            activations=activations,
            peak=peak,
        )


def _find_existing(run_dir: Path) -> Path:
    """The folder that a run folder will be made in, or the first above that is there."""
    above = run_dir.absolute()
    return next(path for path in (above, *above.parents) if path.is_dir())


def _find_free(run_dir: Path) -> int | None:
    with suppress(OSError):
        return shutil.disk_usage(_find_existing(run_dir)).free
    return None


def _find_device_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)
