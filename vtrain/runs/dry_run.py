"""What a run will take: its plan, one timed step of each phase, and an estimate of the whole."""

import shutil
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vtrain.config.load import LoadedConfig
from vtrain.data.batches import Batch, require_readable
from vtrain.data.loaders import build_eval_loader
from vtrain.data.sampler import EpochBatchSampler
from vtrain.data.transforms import EvalTransform
from vtrain.inference.calibration import MAX_BANK
from vtrain.inference.feature_cache import FrozenPart, Views
from vtrain.inference.forward import compute_outputs, prepare_for_inference
from vtrain.models.classifier import HEAD
from vtrain.models.freezing import (
    Phase,
)
from vtrain.models.precision import Precision
from vtrain.models.splitting import UpperPart, find_frozen_boundary
from vtrain.runs.fit import explained_errors, first_alone, make_plan
from vtrain.runs.folder import choose_run_dir, count_needed_bytes
from vtrain.runs.phases import PhaseWork, build_image_work
from vtrain.runs.plan import FitPlan
from vtrain.runs.saved_state import count_saved_bytes
from vtrain.runs.stored_features import StoredFeatures
from vtrain.runs.trainer_setup import build_sampler, build_trainer, count_steps, find_schedule
from vtrain.runs.validation import Validation
from vtrain.system.files import require_space
from vtrain.system.machine import count_cores, find_device, keep_freed_memory
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import Reporter
from vtrain.system.signals import build_stop_error
from vtrain.training.memory import STATES_PER_WEIGHT, PeakMemory, saved_activations
from vtrain.training.step import PhaseRun
from vtrain.training.stopwatch import Stopwatch

CURVE_POINTS = 400


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

    `feature_count` features are computed once, in `feature_seconds`; with `on_features` its epochs
    are trained on them. `waiting` is the share (0 to 1) of the time of training steps in which the
    device waits for images. Times in seconds: of an optimiser step, of an epoch's training and
    validation, and of the whole phase.
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
    seconds: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take: time, by phase, and room on the disk while it runs and afterwards.

    `waiting_seconds` of the whole `seconds` the device waits for images, `final_seconds` are the
    last evaluation. `device_bytes` is the memory of a CUDA device.
    """

    seconds: float
    waiting_seconds: float
    phases: tuple[PhaseForecast, ...]
    final_seconds: float
    disk_needed: int
    disk_kept: int
    disk_free: int | None
    device_bytes: int | None


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


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Learning rates of a whole run by epochs done; None where a part is frozen."""

    epochs: tuple[float, ...]
    head: tuple[float | None, ...]
    backbone: tuple[float | None, ...]


def build_rate_curve(outline: Outline) -> RateCurve:
    """The highest rate of the head and of what lies below it, at steps spread over the run."""
    plan, steps = outline.plan, outline.steps_per_epoch
    stride = max(1, steps * sum(phase.epochs for phase in plan.phases) // CURVE_POINTS)
    heads = [group for group in plan.param_groups if group.stage == HEAD]
    others = [group for group in plan.param_groups if group.stage != HEAD]
    points: list[tuple[float, float | None, float | None]] = []
    first = 0
    for index, phase in enumerate(plan.phases):
        head_peak, below_peak = (
            max((each.peak_lrs[index] for each in groups), default=0.0)
            for groups in (heads, others)
        )
        start, schedule = find_schedule(plan, index, steps)
        stop = first + phase.epochs * steps
        # The ends of a phase are among the points: between phases the rate can jump.
        for step in sorted({*range(first, stop, stride), stop - 1}):
            factor = schedule(step - start)
            rates = (peak * factor if peak else None for peak in (head_peak, below_peak))
            points.append((step / steps, *rates))
        first = stop
    return RateCurve(*zip(*points, strict=True))


def dry_run(
    loaded: LoadedConfig,
    *,
    reporter: Reporter,
    on_plan: Callable[[Outline], None],
    processes: Processes = ALONE,
) -> tuple[Outline, Forecast]:
    """Plan a new run and time a step of each phase; writes no run folder and no features.

    `on_plan` gets the plan before the first step. All `processes` call this together;
    each measures by itself.

    Raises:
        VtrainError: what would end the run before its first epoch does.
    """
    keep_freed_memory()
    device = find_device(processes.choose_device(loaded.config.train.device))
    try:
        with explained_errors(), processes.joined(device), processes.explained():
            run_dir = first_alone(
                processes,
                lambda: choose_run_dir(loaded.config.run_dir, loaded.name, resume=False),
            )
            plan = make_plan(loaded, reporter, processes)
            outline = build_outline(plan, run_dir)
            on_plan(outline)
            with processes.together():
                return outline, measure(plan, run_dir, reporter)
    except KeyboardInterrupt as error:
        raise build_stop_error(error, "stopped: nothing was written") from error


def measure(plan: FitPlan, run_dir: Path, reporter: Reporter) -> Forecast:
    """Estimate a run from one step of each phase; the weights are as before afterwards.

    Every process of a job does so by itself: the exchange between them is not measured.

    Raises:
        VtrainError: what the run itself would raise.
    """
    before = {key: each.to("cpu", copy=True) for key, each in plan.classifier.state_dict().items()}
    trial = _Trial(plan, reporter, *_time_images(plan))
    phases: list[PhaseForecast] = []
    with reporter.progress(len(plan.phases), "measuring", unit="phase") as bar:
        for index in range(len(plan.phases)):
            try:
                phases.append(trial.measure_phase(index))
            finally:
                plan.classifier.load_state_dict(before)
            bar.update(1)
    # The last evaluation also sees the test images, and training images as examples of what is
    # familiar; where the last phase was trained on features, those of the examples are stored.
    unseen = 0 if plan.splits.test is None else len(plan.splits.test)
    if not phases[-1].on_features:
        unseen += min(len(plan.splits.train), MAX_BANK)
    final_seconds = phases[-1].validation_seconds + trial.evaluation_seconds(unseen)
    checkpoint, model = count_saved_bytes(plan, build_trainer(plan, Stopwatch(), reporter))
    free, device_bytes = None, None
    with suppress(OSError):  # no file system that would tell
        free = shutil.disk_usage(_find_existing(run_dir)).free
    if plan.device.type == "cuda":
        device_bytes = torch.cuda.get_device_properties(plan.device).total_memory
    return Forecast(
        seconds=sum(phase.seconds for phase in phases) + final_seconds,
        waiting_seconds=sum(each.waiting * each.epochs * each.epoch_seconds for each in phases),
        phases=tuple(phases),
        final_seconds=final_seconds,
        disk_needed=count_needed_bytes(checkpoint_bytes=checkpoint, model_bytes=model),
        disk_kept=checkpoint + model,
        disk_free=free,
        device_bytes=device_bytes,
    )


def require_room(forecast: Forecast, run_dir: Path) -> None:
    """Refuse a run that its disk has no room for, as it would be refused.

    Raises:
        ResourceError: it has not.
    """
    require_space(_find_existing(run_dir), forecast.disk_needed, "the checkpoints of this run")


def _find_existing(run_dir: Path) -> Path:
    """The folder that a run folder will be made in, or the first above that is there."""
    above = run_dir.absolute()
    return next(path for path in (above, *above.parents) if path.is_dir())


def _time_images(plan: FitPlan) -> tuple[Batch, float, float]:
    """Training images as evaluation sees them; seconds to read one of them and to classify it."""
    train = plan.splits.train
    images = train.subset(range(min(plan.batch_size, len(train))))
    transform = EvalTransform(plan.preprocessing)
    loader = build_eval_loader(
        images.paths, images.labels, transform, batch_size=plan.batch_size, workers=0
    )
    watch = Stopwatch(plan.device, enabled=True)
    classifier = prepare_for_inference(
        plan.classifier, Precision(plan.inference_precision, plan.device)
    )
    with watch.section("read"):
        batch = next(iter(require_readable(loader, images.paths)))
    for name in ("warm up", "infer"):
        with watch.section(name):
            compute_outputs(classifier, batch.inputs, plan.preprocessing, plan.device)
    return batch, watch.seconds["read"] / len(batch), watch.seconds["infer"] / len(batch)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Steps of a plan, timed.

    `read` and `infer` are seconds for an image of the batch `sample`. `stored` are the kinds of
    features that the phases so far will have stored.
    """

    plan: FitPlan
    reporter: Reporter
    sample: Batch
    read: float
    infer: float
    stored: set[str] = field(default_factory=set)

    def measure_phase(self, index: int) -> PhaseForecast:
        """Time one step of a phase, after one that warms up."""
        plan, phase, peak = self.plan, self.plan.phases[index], PeakMemory(self.plan.device)
        plan.apply_freeze(phase)
        # By itself, reading its own images: two batches are not worth the start of workers.
        alone = replace(plan, processes=ALONE, workers=0)
        stored, sampler = StoredFeatures(alone, self.reporter), build_sampler(plan)
        boundary = find_frozen_boundary(plan.classifier)
        part = stored.build_part(plan.classifier, boundary, plan.precision)
        missing = {} if part is None else self._count_missing(phase, part, stored)
        on_features = part is not None and "train" in missing
        if part is not None and on_features:
            features = replace(self.sample, inputs=part.compute(self.sample.inputs))
            upper = UpperPart(plan.classifier, part.boundary)
            work = PhaseWork(upper, [features], lambda inputs: inputs, Validation(alone, stored))
        else:
            work = build_image_work(alone, phase, sampler, stored, part, self.reporter)
        read, compute, activations = self._time_step(index, alone, work, sampler)
        seconds, waiting = (compute, 0.0) if on_features else self._overlap(read, compute)
        epoch_seconds = seconds * len(sampler)
        validation_seconds = self.evaluation_seconds(len(plan.splits.val))
        if "val" in missing:  # a step does more than validation on features
            per_image = min(self.infer, compute / plan.batch_size)
            validation_seconds = len(plan.splits.val) / plan.processes.world_size * per_image
        feature_count = sum(missing.values())
        feature_seconds = self.evaluation_seconds(feature_count)
        return PhaseForecast(
            name=phase.name,
            epochs=phase.epochs,
            on_features=on_features,
            feature_count=feature_count,
            feature_seconds=feature_seconds,
            step_seconds=seconds * plan.accumulate,
            waiting=waiting / seconds,
            epoch_seconds=epoch_seconds,
            validation_seconds=validation_seconds,
            memory=self._forecast_memory(index, activations, peak.read()),
            seconds=feature_seconds + phase.epochs * (epoch_seconds + validation_seconds),
        )

    def _count_missing(
        self, phase: Phase, part: FrozenPart, stored: StoredFeatures
    ) -> dict[str, int]:
        """How many features are to be computed of each split that has them in this phase."""
        plan, splits, cache, reserved = self.plan, self.plan.splits, stored.open_cache(), 0
        wanted = {}
        if (views := stored.choose_training_views(phase, part)) is not None:
            reserved = len(splits.train) * views.count
            wanted["train"] = (part, splits.train, views)
        seen = stored.build_part(plan.classifier, part.boundary, plan.inference_precision)
        fits = seen is not None and cache.fits(seen, reserved + len(splits.val))
        if seen is not None and fits and plan.config.train.cache != "off":
            wanted["val"] = (seen, splits.val, Views(EvalTransform(plan.preprocessing)))
        missing = {}
        for split, (lower, images, views) in wanted.items():
            kind = repr((split, lower.facts, views.facts()))
            known = kind in self.stored
            missing[split] = 0 if known else cache.count_missing(lower, images.paths, views)
            self.stored.add(kind)
        return missing

    def _time_step(
        self, index: int, alone: FitPlan, work: PhaseWork, sampler: EpochBatchSampler
    ) -> tuple[float, float, int]:
        """Seconds to read a batch and to train on it, and the bytes kept for its backward pass."""
        epoch, steps = sum(phase.epochs for phase in alone.phases[:index]), len(sampler)
        first_step, schedule = find_schedule(alone, index, steps)
        trained = [each for each in alone.classifier.parameters() if each.requires_grad]
        run = PhaseRun(index, work.model, trained, work.prepare, schedule, first_step)
        watch = Stopwatch(alone.device, enabled=True)
        trainer = replace(build_trainer(alone, watch, self.reporter), accumulate=1)
        trainer.state.epoch, trainer.state.step = epoch, epoch * steps
        sampler.set_epoch(epoch)
        try:
            batches = iter(work.batches)
            batch = next(batches)
            with saved_activations(alone.classifier) as activations:  # also warms up
                deque(trainer.train_epoch(run, [batch], [len(batch)]), maxlen=0)
            watch.seconds.clear()
            with watch.section("read"):
                batch = next(batches, batch)  # the only one again
            trainer.state.batch = 0
            with watch.section("step"):
                deque(trainer.train_epoch(run, [batch], [len(batch)]), maxlen=0)
            read = max(watch.seconds.pop("read"), self.read * len(batch))
            return read, sum(watch.seconds.values()), activations[0]
        finally:
            work.close()

    def _overlap(self, read: float, compute: float) -> tuple[float, float]:
        """Seconds that a batch takes while others are read, and those of them spent waiting."""
        workers = self.plan.workers
        if not workers:
            return read + compute, read
        if self.plan.device.type == "cpu":  # shares its cores with the workers
            compute += read / count_cores()
        waiting = max(0.0, read / workers - compute)
        return compute + waiting, waiting

    def evaluation_seconds(self, images: int) -> float:
        """What the processes need to classify images, or for the frozen part of this."""
        return images / self.plan.processes.world_size * self._overlap(self.read, self.infer)[0]

    def _forecast_memory(self, index: int, activations: int, peak: int | None) -> MemoryForecast:
        plan, parameters = self.plan, dict(self.plan.classifier.named_parameters())
        model = sum(tensor.nbytes for tensor in plan.classifier.state_dict().values())
        # What an earlier phase has stepped keeps its state.
        stepped = [
            parameters[name].nbytes
            for group in plan.param_groups
            for name in group.names
            if any(group.peak_lrs[: index + 1])
        ]
        copies = STATES_PER_WEIGHT if plan.config.optim.optimizer == "adamw" else 1
        return MemoryForecast(
            model=model * (2 if plan.config.train.ema else 1),
            gradients=sum(each.nbytes for each in parameters.values() if each.requires_grad),
            optimizer=copies * sum(stepped),
            activations=activations,
            peak=peak,
        )
