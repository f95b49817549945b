"""Ranks backbones on the user's own images: how well their features tell the classes apart."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vtrain.data.folders import find_splits, report_skipped, scan_labelled
from vtrain.data.image_sets import LabelledImages, SkippedFile
from vtrain.data.splits import sample_stratified
from vtrain.errors import DataError, ModelError, ResourceError, UsageError, VtrainError
from vtrain.inference.cross_validation import (
    CrossValidation,
    assign_folds,
    cross_validate,
    one_thread,
    standard_error,
)
from vtrain.inference.forward import NOT_FINITE
from vtrain.inference.statistics import holm, mcnemar, wilson_interval
from vtrain.models.weights import find_weights_kind, has_pretrained_weights
from vtrain.results.features import compute_features
from vtrain.results.probe_candidates import Candidate
from vtrain.results.probe_result import LeftOut, ProbedBackbone, ProbeResult, recommend
from vtrain.results.probe_speed import measure_rate
from vtrain.runs.model_argument import LoadedModel, load_model
from vtrain.system.machine import explain_torch_error
from vtrain.system.reporter import Forwarding, Progress, Reporter
from vtrain.system.text import enumerate_names, format_bytes, format_duration, one_line

SIGNIFICANT = 0.05  # chance below which a difference counts, with all comparisons together
NAMED_AT_MOST = 3  # unreadable images that are said one by one


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How the backbones are run, on how many `images`; `budget` in seconds, None without limit."""

    device: torch.device
    images: int
    budget: float | None
    precision: str
    batch_size: int
    workers: int | Literal["auto"]
    download: bool


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

    def require_time(self, seconds: float) -> None:
        """Stop what would take longer than is left.

        Raises:
            _OverBudgetError: the time is not there.
        """
        if self.settings.budget is None:
            return
        left = self.settings.budget - (time.perf_counter() - self.started)
        if seconds > left:
            has = f"{format_duration(left)} are left" if left > 0 else "no time is left"
            raise _OverBudgetError(f"would take about {format_duration(seconds)}, {has}")


def rank_backbones(
    folder: Path, candidates: Sequence[Candidate], settings: ProbeSettings, *, reporter: Reporter
) -> tuple[ProbeResult, KeyboardInterrupt | None]:
    """Rank backbones on a labelled folder, or on the training split of one that holds splits.

    Each one's penultimate features of the same sample of images, which are kept in the feature
    cache, go through a linear probe and nearest neighbours, both cross-validated. Backbones are
    tried from cheap to costly; what would exceed the budget is left out. A signal, which is given
    beside the result, ends it with what is there, unless nothing is.

    Raises:
        DataError: not a labelled folder, or too few readable images.
        ModelError: weights that were named are not there, or none are.
        UsageError: no published weights of that name; the precision cannot run on the device.
        ResourceError: a loader worker died or hung.
    """
    started = time.perf_counter()
    split, found = _scan(folder, reporter)
    sample = sample_stratified(found, settings.images, seed=0)
    work = _Work(sample, settings, reporter, started)
    chosen = _require_weights(candidates, work)
    count = f"{len(sample):,} images"
    if len(sample) < len(found):
        count = f"a sample of {len(sample):,} of {len(found):,} images"
    reporter.say(
        f"{len(chosen)} backbone{'' if len(chosen) == 1 else 's'} on {count} of "
        f"{one_line(split or folder)} ({len(found.classes)} classes)"
    )
    stop = _try_all(chosen, work)
    if not work.done:
        raise stop or _explain_nothing(work)
    return _build_result(folder, split, found, work, complete=stop is None), stop


def _scan(folder: Path, reporter: Reporter) -> tuple[Path | None, LabelledImages]:
    """The split that is used, if there are splits, and its images."""
    splits = find_splits(folder)
    used = splits.train if splits else folder
    if splits:
        reporter.say(f"{one_line(folder)} holds splits: probing {one_line(used)}, and nothing else")
    images = scan_labelled(used, name="folder", reporter=reporter)
    report_skipped(used, images.skipped, reporter, images)
    return (used if splits else None), images


def _require_weights(candidates: Sequence[Candidate], work: _Work) -> list[Candidate]:
    """Those whose weights are there, or may be downloaded; the cheapest first.

    Raises:
        ModelError: weights that were named are not there, or none are.
        UsageError: no published weights of that name.
    """
    found, missing = [], []
    for each in sorted(candidates, key=lambda each: each.spec.gflops):
        if each.named or work.settings.download:
            find_weights_kind(each.weights, each.spec)
            found.append(each)
        elif has_pretrained_weights(each.spec, each.weights):
            found.append(each)
        else:
            missing.append(each)
            work.left_out.append(LeftOut(each.model, "no weights", "its weights are not here"))
    if missing:
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


def _try_all(candidates: Sequence[Candidate], work: _Work) -> KeyboardInterrupt | None:
    """Try each candidate; the signal that ended it, if any."""
    for number, candidate in enumerate(candidates, start=1):
        place = f"{number}/{len(candidates)} {one_line(candidate.model)}"
        try:
            result = _try_one(candidate, work, place)
            low, high = result.interval
            work.reporter.say(
                f"{place}: {100 * result.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f}), "
                f"{result.images_per_second:,.0f} images/s, took {format_duration(result.seconds)}"
                + (", features were stored" if result.stored else "")
            )
        except KeyboardInterrupt as stop:
            rest = candidates[number - 1 :]
            work.left_out += [LeftOut(each.model, "stopped", "stopped before it") for each in rest]
            return stop
        except _OverBudgetError as error:
            work.left_out.append(LeftOut(candidate.model, "budget", str(error)))
            work.reporter.say(f"{place}: left out: {error}")
        except (ModelError, ResourceError, DataError, RuntimeError) as error:
            # One that cannot be used must not cost what the others have come to.
            known = explain_torch_error(error) if isinstance(error, RuntimeError) else error
            if known is None or (isinstance(known, DataError) and not work.ready):
                raise  # none that we know, or one that concerns all of them
            work.left_out.append(LeftOut(candidate.model, "failed", known.message))
            work.reporter.warn(f"{place}: {known.message}")
    return None


def _try_one(candidate: Candidate, work: _Work, place: str) -> ProbedBackbone:
    started = time.perf_counter()
    spec, settings = candidate.spec, work.settings
    if work.done:
        work.require_time(len(work.images) * spec.gflops / work.work_rate + work.probe_seconds)
    reporter = _Budgeted(work)
    model = load_model(
        f"{spec.name}:{candidate.weights}",
        device=settings.device,
        precision=settings.precision,
        reporter=reporter,
    )
    gflops = spec.gflops * (model.preprocessing.crop / spec.image_size) ** 2
    reporter.rate = measure_rate(model, work.images.paths)
    work.work_rate = max(work.work_rate, reporter.rate * gflops)
    features = _compute_features(model, work, reporter, f"{place} features")
    result = _cross_validate(features, work, f"{place} probing")
    probed = ProbedBackbone(
        model=candidate.model,
        backbone=spec.name,
        weights=candidate.weights,
        accuracy=float(result.linear.double().mean()),
        standard_error=standard_error(result.linear),
        interval=wilson_interval(int(result.linear.sum()), len(result.asked)),
        fold_accuracies=result.fold_accuracies,
        penalties=result.penalties,
        knn_accuracy=float(result.knn.double().mean()),
        knn_interval=wilson_interval(int(result.knn.sum()), len(result.asked)),
        params=spec.params,
        gflops=gflops,
        image_size=model.preprocessing.crop,
        feature_dim=features.shape[1],
        images_per_second=reporter.rate,
        precision=model.precision,
        pareto=False,
        within_noise=False,
        stored=not reporter.computes,
        seconds=round(time.perf_counter() - started, 3),
    )
    work.done.append((probed, result))
    return probed


class _Budgeted(Forwarding):
    """Does not name the model, which the line of its result does, and gives up in time.

    That is when it is known how many features are missing, and these would take too long at
    `rate`, in images per second. `computes` is whether any are.
    """

    def __init__(self, work: _Work) -> None:
        super().__init__(work.reporter)
        self.work, self.rate, self.computes = work, 0.0, False

    def say(self, message: str) -> None:
        """All but the name."""
        if not message.startswith("model: "):
            super().say(message)

    def progress(
        self, total: int, label: str, *, unit: str = "img", data: bool = False
    ) -> AbstractContextManager[Progress]:
        """With a look at the time that is left."""
        if total and self.rate and not self.computes:  # no download
            self.computes = True
            self.work.require_time(total / self.rate + self.work.probe_seconds)
        return super().progress(total, label, unit=unit, data=data)


def _compute_features(model: LoadedModel, work: _Work, reporter: _Budgeted, label: str) -> Tensor:
    """Features `[N, D]` of the images."""
    features = compute_features(
        work.images.paths,
        model,
        batch_size=work.settings.batch_size,
        workers=work.settings.workers,
        reporter=reporter,
        label=label,
    )
    if broken := [position for position, why in features.failures if why == NOT_FINITE]:
        raise ModelError(f"its features are not finite for {len(broken)} images")
    if not work.ready:
        _settle(work, features.failures)
    elif features.failures:
        position, reason = features.failures[0]
        path = one_line(work.images.paths[position])
        raise DataError(f"{path} was readable for the backbones before and is not now: {reason}")
    return torch.from_numpy(features.values)


def _cross_validate(features: Tensor, work: _Work, label: str) -> CrossValidation:
    started = time.perf_counter()
    with one_thread():
        result = cross_validate(
            features,
            work.images.labels,
            work.folds,
            reporter=work.reporter,
            label=label,
        )
    work.probe_seconds = time.perf_counter() - started
    return result


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
        named = enumerate_names(single)
        work.reporter.warn(f"nothing can be held out of classes with a single image: {named}")
    work.folds = assign_folds(images.labels)
    work.ready = True


def _build_result(
    folder: Path, split: Path | None, found: LabelledImages, work: _Work, *, complete: bool
) -> ProbeResult:
    asked = work.done[0][1].asked
    labels = torch.tensor(work.images.labels, dtype=torch.int64)
    majority = float(labels[asked].bincount().max()) / len(asked)
    backbones = _rank(work.done)
    choice, recommendation = recommend(backbones, majority)
    return ProbeResult(
        folder=folder,
        split=split,
        classes=found.classes,
        images_found=len(found),
        images=len(work.images),
        images_held_out=len(asked),
        folds=int(work.folds.max()) + 1,
        majority=majority,
        device=str(work.settings.device),
        backbones=backbones,
        left_out=tuple(work.left_out),
        recommended=None if choice is None else choice.model,
        recommendation=recommendation,
        overrides=() if choice is None else choice.overrides,
        failures=tuple(work.failures),
        seconds=round(time.perf_counter() - work.started, 3),
        complete=complete,
    )


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
    lines = [f"  {one_line(each.model)}: {each.reason}" for each in tried]
    message = "no backbone could be probed:\n" + "\n".join(lines)
    if all(each.kind == "budget" for each in tried):
        return UsageError(message, "raise --budget, or lower --images")
    return ModelError(message, "repair these, or name other backbones with -b")
