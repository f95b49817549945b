"""What a run will take: its plan, one step of each phase, and an estimate of the whole."""

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
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
from vtrain.models.freezing import HEAD, Phase
from vtrain.models.precision import Precision
from vtrain.models.splitting import UpperPart, find_frozen_boundary
from vtrain.runs.fit import explained_errors, first_alone, make_plan
from vtrain.runs.folder import choose_run_dir, count_needed_bytes
from vtrain.runs.phases import PhaseWork, build_image_work
from vtrain.runs.plan import FitPlan
from vtrain.runs.saved_state import count_saved_bytes
from vtrain.runs.stored_features import StoredFeatures
from vtrain.runs.trainer_setup import (
    build_phase_run,
    build_sampler,
    build_trainer,
    count_steps,
    find_schedule,
)
from vtrain.runs.validation import Validation
from vtrain.system.files import require_space
from vtrain.system.machine import count_cores, find_device, keep_freed_memory
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import Reporter
from vtrain.system.signals import build_stop_error
from vtrain.training.memory import STATES_PER_WEIGHT, PeakMemory, saved_activations
from vtrain.training.step import PhaseRun, Trainer
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
    rates = (each.peak_lrs[phase] for each in plan.param_groups if (each.stage == HEAD) == head)
    return max(rates, default=0.0)


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
    sampler = build_sampler(plan)  # with this process's part of each batch
    # One process that reads its images itself: two batches are not worth the start of workers.
    alone = replace(plan, processes=ALONE, workers=0)
    read, infer = _time_images(alone)
    trial = _Trial(alone, reporter, sampler, read, infer, plan.workers, plan.processes.world_size)
    phases: list[PhaseForecast] = []
    with reporter.progress(len(plan.phases), "measuring", unit="phase") as bar:
        for index in range(len(plan.phases)):
            try:
                phases.append(trial.measure_phase(index))
            finally:
                plan.classifier.load_state_dict(before)
            bar.update(1)
    checkpoint, model = count_saved_bytes(plan, build_trainer(plan, Stopwatch(), reporter))
    # The last evaluation also sees the test images, and training images as examples of what is
    # familiar; where the last phase was trained on features, those of the examples are stored.
    unseen = 0 if plan.splits.test is None else len(plan.splits.test)
    if not phases[-1].on_features:
        unseen += min(len(plan.splits.train), MAX_BANK)
    cuda = plan.device.type == "cuda"
    return Forecast(
        phases=tuple(phases),
        final_seconds=phases[-1].validation_seconds + trial.evaluation_seconds(unseen),
        disk_needed=count_needed_bytes(checkpoint_bytes=checkpoint, model_bytes=model),
        disk_kept=checkpoint + model,
        disk_free=_find_free(run_dir),
        device_bytes=torch.cuda.get_device_properties(plan.device).total_memory if cuda else None,
    )


def _read_first(plan: FitPlan) -> Iterator[Batch]:
    """The first two batches of training images as an evaluation sees them, or the only one."""
    images = plan.splits.train.subset(range(min(2 * plan.batch_size, len(plan.splits.train))))
    transform = EvalTransform(plan.preprocessing)
    loader = build_eval_loader(
        images.paths, images.labels, transform, batch_size=plan.batch_size, workers=0
    )
    return require_readable(loader, images.paths)


def _time_images(plan: FitPlan) -> tuple[float, float]:
    """Seconds that it takes to read an image, and to classify it."""
    read, started = 0.0, time.perf_counter()
    for batch in _read_first(plan):  # the last one counts: the first also warms up
        read, started = (time.perf_counter() - started) / len(batch), time.perf_counter()
    precision = Precision(plan.inference_precision, plan.device)
    classifier = prepare_for_inference(plan.classifier, precision)

    def infer() -> None:
        compute_outputs(classifier, batch.inputs, plan.preprocessing, plan.device)

    infer()
    return read, _time(plan.device, infer) / len(batch)


def _time(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds that a call takes, with the work that it leaves to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class _Features:
    """What a phase computes once: `missing` activations of its frozen `part` are not stored yet."""

    part: FrozenPart
    for_training: bool
    for_validation: bool
    missing: int


@dataclass(frozen=True, slots=True)
class _Trial:
    """A plan of one process without workers, and what is known of the run that it stands for.

    `read` and `infer` are seconds per image; `workers` and `processes` those of the run. `stored`
    are the kinds of features, with their split, that the phases so far will have stored.
    """

    plan: FitPlan
    reporter: Reporter
    sampler: EpochBatchSampler
    read: float
    infer: float
    workers: int
    processes: int
    stored: set[tuple[str, str]] = field(default_factory=set)

    def measure_phase(self, index: int) -> PhaseForecast:
        """Time one step of a phase, after one that warms up."""
        plan, phase, peak = self.plan, self.plan.phases[index], PeakMemory(self.plan.device)
        steps = count_steps(plan, self.sampler)
        plan.apply_freeze(phase)
        epoch = sum(each.epochs for each in plan.phases[:index])
        self.sampler.set_epoch(epoch)
        features = self._find_features(phase)
        on_features = features is not None and features.for_training
        work = self._build_work(phase, features)
        trainer = replace(build_trainer(plan, Stopwatch(), self.reporter), accumulate=1)
        trainer.state.epoch, trainer.state.step = epoch, epoch * steps
        run = build_phase_run(plan, index, work, steps)
        read, compute, activations = self._time_step(trainer, run, work)
        seconds, waiting = (compute, 0.0) if on_features else self._overlap(read, compute)
        missing = 0 if features is None else features.missing
        return PhaseForecast(
            name=phase.name,
            epochs=phase.epochs,
            on_features=on_features,
            feature_count=missing,
            feature_seconds=self.evaluation_seconds(missing),
            step_seconds=seconds * plan.accumulate,
            waiting=waiting / seconds,
            epoch_seconds=seconds * len(self.sampler),
            validation_seconds=self._validation_seconds(features),
            memory=self._forecast_memory(index, activations, peak.read()),
        )

    def _build_work(self, phase: Phase, features: "_Features | None") -> PhaseWork:
        """What the phase trains; on features of the first images where it will be on features."""
        plan = self.plan
        stored = StoredFeatures(plan, self.reporter)
        if features is None or not features.for_training:
            part = None if features is None else features.part
            return build_image_work(plan, phase, self.sampler, stored, part, self.reporter)
        part = features.part
        batches = (replace(each, inputs=part.compute(each.inputs)) for each in _read_first(plan))
        upper = UpperPart(plan.classifier, part.boundary)
        return PhaseWork(upper, batches, lambda inputs: inputs, Validation(plan, stored))

    def _time_step(
        self, trainer: Trainer, run: PhaseRun, work: PhaseWork
    ) -> tuple[float, float, int]:
        """Seconds to read a batch and to train on it, and the bytes kept for its backward pass."""

        def step(batch: Batch) -> None:
            trainer.state.batch = 0
            deque(trainer.train_epoch(run, [batch], [len(batch)]), maxlen=0)

        try:
            batches = iter(work.batches)
            batch = next(batches)
            with saved_activations(self.plan.classifier) as activations:
                step(batch)
            started = time.perf_counter()
            batch = next(batches, batch)  # the only one again
            read = max(time.perf_counter() - started, self.read * len(batch))
            return read, _time(self.plan.device, lambda: step(batch)), activations[0]
        finally:
            work.close()

    def _overlap(self, read: float, compute: float) -> tuple[float, float]:
        """Seconds that a batch takes while others are read, and those of them spent waiting."""
        if not self.workers:
            return read + compute, read
        if self.plan.device.type == "cpu":  # shares its cores with the workers
            compute += read / count_cores()
        waiting = max(0.0, read / self.workers - compute)
        return compute + waiting, waiting

    def evaluation_seconds(self, images: int) -> float:
        """What the processes need to classify images, or for the frozen part of this."""
        return images / self.processes * self._overlap(self.read, self.infer)[0]

    def _validation_seconds(self, features: _Features | None) -> float:
        plan, count = self.plan, len(self.plan.splits.val)
        if features is None or not features.for_validation:
            return self.evaluation_seconds(count)
        batch = next(_read_first(plan))
        activations = features.part.compute(batch.inputs)
        upper = UpperPart(plan.classifier.eval(), features.part.boundary)
        with torch.no_grad(), Precision(plan.inference_precision, plan.device).autocast():
            seconds = _time(plan.device, lambda: upper(activations))
        return count / self.processes * seconds / len(batch)

    def _find_features(self, phase: Phase) -> _Features | None:
        """What the phase will store; None where nothing is frozen."""
        plan, splits = self.plan, self.plan.splits
        stored = StoredFeatures(plan, self.reporter)
        boundary = find_frozen_boundary(plan.classifier)
        part = stored.build_part(plan.classifier, boundary, plan.precision)
        if part is None:
            return None
        views, cache = stored.choose_training_views(phase, part), stored.open_cache()
        wanted = [] if views is None else [("train", part, splits.train, views)]
        if plan.config.train.cache != "off":
            precision = plan.inference_precision
            for_val = part
            if precision != plan.precision:
                for_val = stored.build_part(plan.classifier, boundary, precision) or part
            count = 0 if views is None else len(splits.train) * views.count
            if cache.fits(for_val, count + len(splits.val)):
                seen = Views(EvalTransform(plan.preprocessing))
                wanted.append(("val", for_val, splits.val, seen))
        missing = 0
        for split, each, images, seen in wanted:
            kind = (json.dumps([each.facts, seen.facts()], sort_keys=True), split)
            if kind not in self.stored:
                self.stored.add(kind)
                missing += cache.count_missing(each, images.paths, seen)
        names = {split for split, *_ in wanted}
        return _Features(part, "train" in names, "val" in names, missing)

    def _forecast_memory(self, index: int, activations: int, peak: int | None) -> MemoryForecast:
        plan = self.plan
        trained = [p.nbytes for p in plan.classifier.parameters() if p.requires_grad]
        # What an earlier phase has stepped keeps its state.
        parameters = dict(plan.classifier.named_parameters())
        stepped = [
            parameters[name].nbytes
            for group in plan.param_groups
            for name in group.names
            if any(group.peak_lrs[: index + 1])
        ]
        copies = STATES_PER_WEIGHT if plan.config.optim.optimizer == "adamw" else 1
        model = sum(tensor.nbytes for tensor in plan.classifier.state_dict().values())
        return MemoryForecast(
            model=model * (2 if plan.config.train.ema else 1),
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
