"""Ranks backbones on the user's own images: how well their features tell the classes apart."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vtrain.data.batches import Batch
from vtrain.data.folders import describe_skipped, find_splits, scan_labelled
from vtrain.data.image_sets import LabelledImages, SkippedFile
from vtrain.data.loaders import build_eval_loader
from vtrain.data.splits import sample_stratified
from vtrain.data.transforms import EvalTransform
from vtrain.errors import DataError, ModelError, ResourceError, UsageError, VtrainError
from vtrain.inference.cross_validation import (
    CrossValidation,
    assign_folds,
    cross_validate,
    one_thread,
    standard_error,
)
from vtrain.inference.forward import NOT_FINITE, compute_outputs, find_model_device
from vtrain.inference.statistics import holm, mcnemar, wilson_interval
from vtrain.inference.streams import choose_streams, compute_in_order
from vtrain.models.weights import find_weights_kind, has_pretrained_weights
from vtrain.results.features import compute_features
from vtrain.results.probe_candidates import Candidate
from vtrain.runs.load_model import LoadedModel, load_model
from vtrain.system.machine import explain_torch_error
from vtrain.system.reporter import Forwarding, Progress, Reporter
from vtrain.system.text import format_bytes, format_duration, one_line

IMAGES = 1000
SEED = 0
WARM_UP_IMAGES = 8
ROUND_IMAGES = 32  # in each batch of a timed round
MEASURE_SECONDS = 0.7
MIN_ROUNDS = 2
MAX_ROUND_SECONDS = 3.0
SIGNIFICANT = 0.05  # chance below which a difference counts, with all comparisons together
NAMED_AT_MOST = 3  # unreadable images that are said one by one


@dataclass(frozen=True, slots=True)
class ProbedBackbone:
    """What a backbone came to. Accuracies are shares, 0 to 1, over all images asked about.

    `interval` and `knn_interval` are 95 %; `images_per_second` is that of forward passes on decoded
    images on this machine; `gflops` are multiply-adds in billions at `image_size` pixels, `params`
    counts the published head as well. `pareto`: none of the others is faster and as accurate;
    `within_noise`: not told apart from the most accurate one.
    """

    candidate: Candidate
    accuracy: float
    standard_error: float
    interval: tuple[float, float]
    fold_accuracies: tuple[float, ...]
    penalties: tuple[float, ...]
    knn_accuracy: float
    knn_interval: tuple[float, float]
    params: int
    gflops: float
    image_size: int
    feature_dim: int
    images_per_second: float
    precision: str
    seconds: float
    stored: bool
    pareto: bool = False
    within_noise: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A backbone that was not tried, or not to the end, and why.

    `kind`: `no weights` here, `budget`, `stopped` by a signal, or `failed`.
    """

    candidate: Candidate
    kind: Literal["no weights", "budget", "stopped", "failed"]
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Backbones by falling accuracy, on `count` images of which `asked` were held out once each.

    `split` is the subfolder that was used where the folder holds splits; `majority` the share of
    the most frequent class among those asked about: what always naming that class would get.
    `stop` is the signal that ended it early.
    """

    folder: Path
    split: Path | None
    classes: tuple[str, ...]
    total: int
    count: int
    asked: int
    folds: int
    majority: float
    backbones: tuple[ProbedBackbone, ...]
    left_out: tuple[LeftOut, ...]
    failures: tuple[SkippedFile, ...]
    device: str
    seconds: float
    stop: KeyboardInterrupt | None = None

    @property
    def recommended(self) -> ProbedBackbone | None:
        """The fastest of those that are not told apart from the most accurate one.

        None where that one is no better than naming the most frequent class.
        """
        if self.backbones[0].interval[0] <= self.majority:
            return None
        best = [each for each in self.backbones if each.within_noise]
        return max(best, key=lambda each: each.images_per_second)


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How the backbones are run; `budget` in seconds, None without limit."""

    device: torch.device
    images: int = IMAGES
    budget: float | None = None
    precision: str = "auto"
    batch_size: int = 32
    workers: int | Literal["auto"] = "auto"
    download: bool = False
    seed: int = SEED


class _OverBudgetError(Exception):
    """The time that is left will not do; the message says for what."""


@dataclass(slots=True)
class _Work:
    """The images, and what is known so far."""

    images: LabelledImages
    settings: ProbeSettings
    reporter: Reporter
    started: float
    folds: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    failures: list[SkippedFile] = field(default_factory=list)
    done: list[tuple[ProbedBackbone, CrossValidation]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    work_rate: float = 0.0  # the most multiply-adds per second so far, in billions
    probe_seconds: float = 0.0  # what cross-validation took last
    ready: bool = False

    @property
    def seconds_left(self) -> float:
        budget = self.settings.budget
        return float("inf") if budget is None else budget - (time.perf_counter() - self.started)

    def require_time(self, seconds: float) -> None:
        """Stop what would take longer than is left.

        Raises:
            _OverBudgetError: the time is not there.
        """
        left = self.seconds_left
        if seconds > left:
            has = f"{format_duration(left)} are left" if left > 0 else "no time is left"
            raise _OverBudgetError(f"would take about {format_duration(seconds)}, {has}")


def probe(
    folder: Path, candidates: Sequence[Candidate], settings: ProbeSettings, *, reporter: Reporter
) -> ProbeResult:
    """Rank backbones on a labelled folder, or on the training split of one that holds splits.

    Each one's penultimate features of the same sample of images, which are kept in the feature
    cache, go through a linear probe and nearest neighbours, both cross-validated. Backbones are
    tried from cheap to costly; what would exceed the budget is left out. A signal ends it with
    what is there (see `ProbeResult.stop`), unless nothing is.

    Raises:
        DataError: not a labelled folder, or too few readable images.
        ModelError: weights that were named are not there, or none are.
        UsageError: no published weights of that name; the precision cannot run on the device.
        ResourceError: a loader worker died or hung.
    """
    started = time.perf_counter()
    split, found = _scan(folder, reporter)
    sample = sample_stratified(found, settings.images, seed=settings.seed)
    work = _Work(sample, settings, reporter, started)
    chosen = _require_weights(candidates, work)
    _say_start(work, split or folder, len(found), len(chosen))
    stop = _try_all(chosen, work)
    if not work.done:
        raise stop or _explain_nothing(work)
    asked = work.done[0][1].asked
    labels = torch.tensor(work.images.labels, dtype=torch.int64)
    return ProbeResult(
        folder=folder,
        split=split,
        classes=found.classes,
        total=len(found),
        count=len(work.images),
        asked=len(asked),
        folds=int(work.folds.max()) + 1,
        majority=float(labels[asked].bincount().max()) / len(asked),
        backbones=_rank(work.done),
        left_out=tuple(work.left_out),
        failures=tuple(work.failures),
        device=str(settings.device),
        seconds=time.perf_counter() - started,
        stop=stop,
    )


def _scan(folder: Path, reporter: Reporter) -> tuple[Path | None, LabelledImages]:
    """The split that is used, if there are splits, and its images."""
    splits = find_splits(folder) if folder.is_dir() else None
    used = splits.train if splits else folder
    if splits:
        reporter.say(f"{one_line(folder)} holds splits: probing {one_line(used)}, and nothing else")
    images = scan_labelled(used, name="folder", reporter=reporter)
    if images.skipped:
        reporter.say(describe_skipped(used, images.skipped))
    return (used if splits else None), images


def _require_weights(candidates: Sequence[Candidate], work: _Work) -> list[Candidate]:
    """Those whose weights are there, or may be downloaded; the cheapest first.

    Raises:
        ModelError: weights that were named are not there, or none are.
        UsageError: no published weights of that name.
    """
    found = []
    for each in sorted(candidates, key=lambda each: each.spec.gflops):
        if each.named or work.settings.download:
            find_weights_kind(each.weights, each.spec)
            found.append(each)
        elif has_pretrained_weights(each.spec, each.weights):
            found.append(each)
        else:
            work.left_out.append(LeftOut(each, "no weights", "its weights are not here"))
    if missing := [each.candidate for each in work.left_out]:
        size = format_bytes(1e6 * sum(each.spec.file_size_mb or 0 for each in missing))
        names = ", ".join(each.model for each in missing)
        how = f"--download fetches them ({size})"
        if not found:
            raise ModelError(
                f"the weights of none of the default backbones are here: {names}",
                f"{how}; or name one with its file: -b squeezenet1_0:weights.pth",
            )
        work.reporter.say(f"left out, their weights are not here: {names}; {how}")
    return found


def _say_start(work: _Work, source: Path, total: int, backbones: int) -> None:
    count = len(work.images)
    images = f"{count:,} images" if count == total else f"a sample of {count:,} of {total:,} images"
    work.reporter.say(
        f"{backbones} backbone{'' if backbones == 1 else 's'} on {images} of {one_line(source)} "
        f"({len(work.images.classes)} classes)"
    )


def _try_all(candidates: Sequence[Candidate], work: _Work) -> KeyboardInterrupt | None:
    """Try each candidate; the signal that ended it, if any."""
    for number, candidate in enumerate(candidates, start=1):
        place = f"{number}/{len(candidates)} {one_line(candidate.model)}"
        try:
            result = _try_one(candidate, work, place)
            work.reporter.say(f"{place}: {_describe(result)}")
        except KeyboardInterrupt as stop:
            rest = candidates[number - 1 :]
            work.left_out += [LeftOut(each, "stopped", "stopped before it") for each in rest]
            return stop
        except _OverBudgetError as error:
            work.left_out.append(LeftOut(candidate, "budget", str(error)))
            work.reporter.say(f"{place}: left out: {error}")
        except (ModelError, ResourceError, DataError, RuntimeError) as error:
            _note_failure(error, candidate, work, place)
    return None


def _note_failure(error: Exception, candidate: Candidate, work: _Work, place: str) -> None:
    """One that cannot be used must not cost what the others have come to.

    Raises: the error, where it concerns all of them, or is none that we know.
    """
    if isinstance(error, RuntimeError):
        explained = explain_torch_error(error)
        if explained is None:
            raise error
        error = explained
    assert isinstance(error, VtrainError)
    if isinstance(error, DataError) and not work.ready:
        raise error
    work.left_out.append(LeftOut(candidate, "failed", error.message))
    work.reporter.warn(f"{place}: {error.message}")


def _describe(result: ProbedBackbone) -> str:
    low, high = result.interval
    return (
        f"{100 * result.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f}), "
        f"{result.images_per_second:,.0f} images/s, took {format_duration(result.seconds)}"
        + (", features were stored" if result.stored else "")
    )


def _try_one(candidate: Candidate, work: _Work, place: str) -> ProbedBackbone:
    started = time.perf_counter()
    count = len(work.images)
    scale = candidate.spec.gflops
    if work.done:
        work.require_time(count * scale / work.work_rate + work.probe_seconds)
    model = load_model(
        f"{candidate.spec.name}:{candidate.weights}",
        device=work.settings.device,
        precision=work.settings.precision,
        reporter=_Unnamed(work.reporter),
    )
    gflops = scale * (model.preprocessing.crop / candidate.spec.image_size) ** 2
    rate = measure_rate(model, _read_some(work, model))
    work.work_rate = max(work.work_rate, rate * gflops)
    features, stored = _compute_features(model, rate, work, place)
    result = _cross_validate(features, work, place)
    probed = ProbedBackbone(
        candidate=candidate,
        accuracy=float(result.linear.double().mean()),
        standard_error=standard_error(result.linear),
        interval=_interval(result.linear),
        fold_accuracies=result.fold_accuracies,
        penalties=result.penalties,
        knn_accuracy=float(result.knn.double().mean()),
        knn_interval=_interval(result.knn),
        params=candidate.spec.params,
        gflops=gflops,
        image_size=model.preprocessing.crop,
        feature_dim=features.shape[1],
        images_per_second=rate,
        precision=model.precision,
        seconds=time.perf_counter() - started,
        stored=stored,
    )
    work.done.append((probed, result))
    return probed


def _cross_validate(features: Tensor, work: _Work, place: str) -> CrossValidation:
    started = time.perf_counter()
    with one_thread():
        result = cross_validate(
            features,
            work.images.labels,
            work.folds,
            seed=work.settings.seed,
            reporter=work.reporter,
            label=f"{place} probing",
        )
    work.probe_seconds = time.perf_counter() - started
    return result


class _Unnamed(Forwarding):
    """Does not name the model, which the line of its result does."""

    def say(self, message: str) -> None:
        """All but the name."""
        if not message.startswith("model: "):
            super().say(message)


class _Budgeted(Forwarding):
    """Gives up, when it is known how many features are missing, where these would take too long."""

    def __init__(self, work: _Work, rate: float) -> None:
        super().__init__(work.reporter)
        self.work, self.rate, self.computes = work, rate, False

    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> AbstractContextManager[Progress]:
        """With a look at the time that is left."""
        if total and not self.computes:
            self.computes = True
            self.work.require_time(total / self.rate + self.work.probe_seconds)
        return super().progress(total, label, unit=unit, data=data)


def _compute_features(
    model: LoadedModel, rate: float, work: _Work, place: str
) -> tuple[Tensor, bool]:
    """Features `[N, D]` of the images, and whether all of them were stored before."""
    reporter = _Budgeted(work, rate)
    features = compute_features(
        work.images.paths,
        model,
        batch_size=work.settings.batch_size,
        workers=work.settings.workers,
        reporter=reporter,
        label=f"{place} features",
    )
    if broken := [position for position, why in features.failures if why == NOT_FINITE]:
        raise ModelError(f"its features are not finite for {len(broken)} images")
    values = torch.from_numpy(features.values)
    if not work.ready:
        _settle(work, features.failures)
    elif features.failures:
        place_, reason = features.failures[0]
        path = one_line(work.images.paths[place_])
        raise DataError(f"{path} was readable for the backbones before and is not now: {reason}")
    return values, not reporter.computes


def _settle(work: _Work, failures: Sequence[tuple[int, str]]) -> None:
    """Leave out the images that cannot be read, for all backbones alike, and draw the folds.

    Raises:
        DataError: too few are left.
    """
    images, bad = work.images, {position for position, _ in failures}
    work.failures += [SkippedFile(images.paths[place], reason) for place, reason in failures]
    for each in work.failures[:NAMED_AT_MOST]:
        work.reporter.warn(f"skipped {one_line(each.path)}: {each.reason}")
    if len(work.failures) > NAMED_AT_MOST:
        more_bad = len(work.failures) - NAMED_AT_MOST
        work.reporter.warn(f"skipped {more_bad} more images that cannot be read")
    if len(bad) == len(images):
        raise DataError(f"none of the {len(images)} images in {one_line(images.root)} is readable")
    work.images = images = images.subset([i for i in range(len(images)) if i not in bad])
    counts = images.class_counts()
    if sum(count >= 2 for count in counts) < 2:
        raise DataError(
            f"{one_line(images.root)}: {len(images)} readable images, of which fewer than two "
            "classes have two: nothing can be told apart",
            "a probe needs two classes with at least two images each, better twenty",
        )
    single = [name for name, count in zip(images.classes, counts, strict=True) if count == 1]
    if single:
        more = f" and {len(single) - NAMED_AT_MOST} more" if len(single) > NAMED_AT_MOST else ""
        named = ", ".join(map(one_line, single[:NAMED_AT_MOST])) + more
        work.reporter.warn(f"nothing can be held out of classes with a single image: {named}")
    work.folds = assign_folds(images.labels, seed=work.settings.seed)
    work.ready = True


def _read_some(work: _Work, model: LoadedModel) -> Tensor:
    """Some decoded images, uint8 `[B, 3, H, W]`, for measuring."""
    paths = work.images.paths[: 2 * ROUND_IMAGES]
    loader = build_eval_loader(
        paths,
        None,
        EvalTransform(model.preprocessing),
        batch_size=ROUND_IMAGES,
        workers=0,
        reporter=work.reporter,
    )
    for batch in loader:
        if len(batch):
            repeats = -(-ROUND_IMAGES // len(batch))
            return torch.cat([batch.inputs] * repeats)[:ROUND_IMAGES]
    edge = model.preprocessing.crop
    return torch.zeros(ROUND_IMAGES, 3, edge, edge, dtype=torch.uint8)


def measure_rate(model: LoadedModel, images: Tensor) -> float:
    """Images per second of forward passes over decoded images, as the commands run them.

    `images` are uint8 `[B, 3, H, W]`. The fastest of several rounds after a warm-up: what slows
    one down is something else on the machine.
    """
    device = find_model_device(model.classifier)
    streams = choose_streams(device)

    def run(batch_images: Tensor, count: int) -> float:
        index = torch.arange(len(batch_images))
        batches = [Batch(batch_images, index, index)] * count
        started = time.perf_counter()
        for _, output in compute_in_order(batches, compute, streams=streams):
            output.cpu()  # waits for a GPU
        return time.perf_counter() - started

    def compute(batch: Batch) -> Tensor:
        forward = model.classifier.forward_features
        return compute_outputs(forward, batch.inputs, model.preprocessing, device)

    few = images[:WARM_UP_IMAGES]
    run(few, streams)
    warm = run(few, streams)
    slow = warm * len(images) / len(few) > MAX_ROUND_SECONDS
    used = few if slow else images
    times: list[float] = [warm] if slow else []
    until = time.perf_counter() + MEASURE_SECONDS
    while not times or (not slow and len(times) < MIN_ROUNDS) or time.perf_counter() < until:
        times.append(run(used, streams))
    return streams * len(used) / min(times)


def _interval(right: Tensor) -> tuple[float, float]:
    return wilson_interval(int(right.sum()), len(right))


def _rank(done: Sequence[tuple[ProbedBackbone, CrossValidation]]) -> tuple[ProbedBackbone, ...]:
    """By falling accuracy, the faster of equals first; with what the others make of each."""
    ordered = sorted(done, key=lambda each: (-each[0].accuracy, -each[0].images_per_second))
    best = ordered[0][1].linear.numpy()
    # They err on the same hard images: this sees differences that intervals of each do not.
    chances = holm([mcnemar(best, result.linear.numpy())[2] for _, result in ordered[1:]])
    fastest = 0.0
    ranked = []
    for (probed, _), chance in zip(ordered, [1.0, *chances], strict=True):
        faster = probed.images_per_second > fastest
        ranked.append(replace(probed, pareto=faster, within_noise=chance >= SIGNIFICANT))
        fastest = max(fastest, probed.images_per_second)
    return tuple(ranked)


def _explain_nothing(work: _Work) -> VtrainError:
    """Why no backbone came to anything."""
    tried = [each for each in work.left_out if each.kind != "no weights"]
    lines = [f"  {one_line(each.candidate.model)}: {each.reason}" for each in tried]
    message = "no backbone could be probed:\n" + "\n".join(lines)
    if all(each.kind == "budget" for each in tried):
        return UsageError(message, "raise --budget, or lower --images")
    return ModelError(message, "repair these, or name other backbones with -b")
