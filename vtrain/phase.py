"""One phase of a run: where its batches come from, what is trained on them, how it is validated."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vtrain.cache_folder import FEATURES, find_cache_folder
from vtrain.console import Console, format_duration
from vtrain.data.feature_store import FeatureLoader, StoredRows, iterate_rows
from vtrain.data.loaders import (
    Batch,
    EpochBatchSampler,
    ImageLoader,
    build_eval_loader,
    build_train_loader,
    prefetch_to_device,
    require_readable,
)
from vtrain.data.transforms import EvalTransform, TrainTransform, normalize_images
from vtrain.errors import ConfigError
from vtrain.evaluate import Keep, ModelEvaluation, Scoring, evaluate_model, merge_evaluations
from vtrain.models.classifier import Classifier
from vtrain.models.freezing import Phase
from vtrain.models.splitting import BoundaryError, UpperPart, find_frozen_boundary
from vtrain.plan import FitPlan
from vtrain.records import LabelledImages
from vtrain.training.feature_cache import (
    FeatureCache,
    FrozenPart,
    Views,
    build_frozen_part,
    describe_size,
)
from vtrain.training.inference import Outputs, compute_both, prepare_for_inference, prepare_module
from vtrain.training.precision import Precision
from vtrain.training.streams import choose_streams


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What the training loop runs in a phase.

    `batches` follow the sampler; `prepare` brings a batch's inputs to the device in the form that
    `model` takes; `model` gives logits `[B, C]` and shares its trained modules with the classifier.
    """

    model: nn.Module
    batches: Iterable[Batch]
    prepare: Callable[[Tensor], Tensor]

    def close(self) -> None:
        """End the processes that read the images of this phase."""
        if isinstance(self.batches, _Readable):
            self.batches.close()


class FrozenThenTrained(nn.Module):
    """Images `[B, 3, H, W]` to logits `[B, C]`; no gradient is kept of the frozen part."""

    def __init__(self, frozen: nn.Module, trained: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.trained = trained

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C]."""
        with torch.no_grad():
            activations = self.frozen(images)
        logits: Tensor = self.trained(activations)
        return logits


@dataclass(slots=True)
class PhaseBuilder:
    """Builds the work of each phase of a plan, and evaluates candidates on its splits.

    `on_batch` is called between batches, and may raise to stop.
    """

    plan: FitPlan
    console: Console
    on_batch: Callable[[], None]
    _boundary: str | None = None
    _part: FrozenPart | None = None
    _val_rows: StoredRows | None = None
    _val_rows_known: bool = False
    _train_count: int = 0
    _train_stored: bool = False
    _val_told: bool = False
    _used_stores: set[Path] = field(default_factory=set)

    @property
    def _mode(self) -> str:
        return self.plan.config.train.cache

    def check_phases(self) -> None:
        """Find out before training whether a later phase can do what was asked for.

        Raises:
            ConfigError: as `enter`, but for the limit of the cache.
        """
        if self._mode != "features":
            return
        for phase in self.plan.phases:
            self.plan.apply_freeze(phase)
            if find_frozen_boundary(self.plan.classifier) is None:
                self._require_possible(phase, "nothing is frozen up from the input")
            self._choose_views(phase)

    def enter(self, phase: Phase, sampler: EpochBatchSampler) -> PhaseWork:
        """The work of a phase, whose freeze is applied to the plan's classifier.

        Raises:
            ConfigError: `train.cache: features` where features cannot stand for the images.
        """
        plan = self.plan
        self._boundary = find_frozen_boundary(plan.classifier)
        self._val_rows, self._val_rows_known, self._train_count = None, False, 0
        self._val_told = self._train_stored = False
        part = self._part = self._build_part(plan.classifier, plan.precision)
        if part is None:
            self._require_possible(phase, "nothing is frozen up from the input")
            return PhaseWork(plan.classifier, self._load_images(phase, sampler), self._normalize)
        upper = UpperPart(plan.classifier, part.boundary)
        rows = self._train_rows(phase, part)
        if rows is None:
            model = FrozenThenTrained(part.module, upper)
            return PhaseWork(model, self._load_images(phase, sampler), self._normalize)
        rows.to(plan.device)
        batches = FeatureLoader(rows, plan.splits.train.labels, sampler)
        return PhaseWork(upper, batches, self._to_device)

    def _normalize(self, images: Tensor) -> Tensor:
        return normalize_images(images, self.plan.preprocessing, device=self.plan.device)

    def _to_device(self, activations: Tensor) -> Tensor:
        return activations.to(self.plan.device, non_blocking=True)

    def _build_part(self, classifier: Classifier, precision: str) -> FrozenPart | None:
        plan = self.plan
        if self._boundary is None:
            return None
        try:
            return build_frozen_part(
                classifier,
                self._boundary,
                preprocessing=plan.preprocessing,
                precision=Precision(precision, plan.device),
                device=plan.device,
            )
        except BoundaryError as error:
            self.console.say(f"the frozen part is computed with the rest: {error}")
            self._boundary = None
            return None

    # --- training ----------------------------------------------------------------------------

    def _train_rows(self, phase: Phase, part: FrozenPart) -> StoredRows | None:
        """Stored activations of the training images, None where they cannot stand for these."""
        plan, config = self.plan, self.plan.config
        views = self._choose_views(phase)
        if views is None or self._mode == "off":
            return None
        count = len(plan.splits.train) * views.count
        cache = self._open_cache()
        if not cache.fits(part, count + len(plan.splits.val)):
            message = f"{describe_size(part, count)} exceed train.cache_limit"
            self._require_possible(phase, message)
            self.console.say(
                f"feature cache: not used: {message} ({config.train.cache_limit:g} GB)"
            )
            return None
        if views.seed is not None:
            self.console.say(
                f"feature cache: {views.count} augmented views of each image are drawn from, "
                "instead of a new one each epoch"
            )
        self._train_count = count
        # Validation of this phase will want the same of its images: then all are one pass.
        same = views.seed is None and plan.inference_precision == plan.precision
        self._train_stored = same
        return self._provide(
            cache, part, plan.splits.train, views, ahead=plan.splits.val if same else None
        )

    def _choose_views(self, phase: Phase) -> Views | None:
        """The views to store; None where every epoch must see new ones."""
        plan, config = self.plan, self.plan.config
        if config.data.mixup or config.data.cutmix:
            self._require_possible(phase, "mixup and cutmix need the images themselves")
            return None
        preset = plan.augment(phase)
        if preset == "none" and not config.data.erasing:
            return Views(EvalTransform(plan.preprocessing))
        if config.train.cache_views is None:
            self._require_possible(
                phase, "with augmentation an image is another one in every epoch"
            )
            return None
        transform = TrainTransform(plan.preprocessing, preset=preset, erasing=config.data.erasing)
        name = f"{preset}, erasing {config.data.erasing:g}" if config.data.erasing else preset
        return Views(transform, name, config.train.cache_views, config.seed)

    def _require_possible(self, phase: Phase, reason: str) -> None:
        if self._mode == "features":
            raise ConfigError(
                f"train.cache: features cannot be used in phase {phase.name}: {reason}",
                "set train.cache=auto, which uses features where it can; with augmentation set "
                "train.cache_views=8 or data.augment=none; or raise train.cache_limit",
            )

    def _load_images(self, phase: Phase, sampler: EpochBatchSampler) -> Iterable[Batch]:
        plan = self.plan
        transform = TrainTransform(
            plan.preprocessing, preset=plan.augment(phase), erasing=plan.config.data.erasing
        )
        loader = build_train_loader(
            plan.splits.train,
            transform,
            sampler=sampler,
            workers=plan.workers,
            seed=plan.config.seed,
            pin_memory=plan.device.type == "cuda",
            notify=self.console.warn,
        )
        return _Readable(loader, plan.splits.train, plan.device)

    # --- the store ---------------------------------------------------------------------------

    def _open_cache(self) -> FeatureCache:
        plan = self.plan
        return FeatureCache(
            root=find_cache_folder() / FEATURES,
            limit_gb=plan.config.train.cache_limit,
            batch_size=plan.batch_size,
            workers=plan.workers,
            notify=self.console.say,
            warn=self.console.warn,
            progress=self._progress,
            on_wait=self.on_batch,
            group=plan.group,
            used=self._used_stores,
        )

    @contextmanager
    def _progress(self, total: int) -> Iterator[Callable[[int], None]]:
        with self.console.progress(total, "computing features") as bar:

            def advance(count: int) -> None:
                bar.update(count)
                self.on_batch()

            yield advance

    def _provide(
        self,
        cache: FeatureCache,
        part: FrozenPart,
        images: LabelledImages,
        views: Views,
        *,
        ahead: LabelledImages | None = None,
        silent: bool = False,
    ) -> StoredRows | None:
        """Rows of images, stored or computed now; a rehearsal makes them up instead."""
        started = time.perf_counter()
        rows = cache.provide(part, images.paths, views, ahead=ahead.paths if ahead else ())
        told = images is self.plan.splits.val and self._val_told
        self._val_told |= any(each is self.plan.splits.val for each in (images, ahead))
        if rows is not None and not told and not silent:
            seconds = format_duration(time.perf_counter() - started)
            count = len(images) + (len(ahead) if ahead else 0)
            self.console.say(
                f"feature cache: {describe_size(part, count * views.count)} of "
                f"{count:,} images in {seconds}"
            )
        return rows

    # --- evaluation --------------------------------------------------------------------------

    def validate(self, candidate: Classifier) -> ModelEvaluation:
        """What a candidate of the phase that was entered last says of the validation images.

        Activations of the frozen part are computed once for all epochs.
        """
        plan = self.plan
        if not self._val_rows_known:
            part = self._part
            if part is not None and plan.inference_precision != plan.precision:
                part = self._build_part(plan.classifier, plan.inference_precision)
            self._val_rows = self._eval_rows(part, plan.splits.val)
            self._val_rows_known = True
        return self._evaluate(candidate, plan.splits.val, self._val_rows, "validation")

    def evaluate(
        self,
        classifier: Classifier,
        images: LabelledImages,
        label: str,
        *,
        scoring: Scoring | None = None,
        keep: Keep | None = None,
        of_train: bool = False,
    ) -> ModelEvaluation:
        """What a classifier that was loaded says of a split, as every later command will say it.

        `of_train`: these are training images; nothing is stored for them that training has not.
        """
        part = self._build_part(classifier, self.plan.inference_precision)
        rows = None
        if not of_train or self._train_stored:
            rows = self._eval_rows(part, images, silent=of_train)
        return self._evaluate(classifier, images, rows, label, scoring=scoring, keep=keep)

    def _eval_rows(
        self, part: FrozenPart | None, images: LabelledImages, *, silent: bool = False
    ) -> StoredRows | None:
        if part is None or self._mode == "off":
            return None
        cache = self._open_cache()
        if not cache.fits(part, len(images) + self._train_count):
            return None
        views = Views(EvalTransform(self.plan.preprocessing))
        return self._provide(cache, part, images, views, silent=silent)

    def _evaluate(
        self,
        classifier: Classifier,
        images: LabelledImages,
        rows: StoredRows | None,
        label: str,
        *,
        scoring: Scoring | None = None,
        keep: Keep | None = None,
    ) -> ModelEvaluation:
        plan = self.plan
        precision = Precision(plan.inference_precision, plan.device)
        share = self._share(len(images))
        if rows is None:
            batches = self._load_in_order(images, share)
            compute = self._from_images(classifier, precision)
            streams = choose_streams(plan.device)
        else:
            assert self._boundary is not None
            batches = iterate_rows(rows, images.labels, share, plan.batch_size)
            compute = _from_activations(classifier, self._boundary, precision)
            streams = 1  # what is left to do is too little to share
        with self.console.progress(len(share), label) as bar:

            def advance(count: int) -> None:
                bar.update(count)
                self.on_batch()

            own = evaluate_model(
                compute,
                batches,
                num_classes=len(images.classes),
                device=plan.device,
                scoring=scoring,
                keep=keep,
                streams=streams,
                on_batch=advance,
            )
        return merge_evaluations(plan.group.gather(own))

    def _share(self, count: int) -> range:
        """What this process evaluates of `count` images: whole batches, the same as one alone."""
        group, size = self.plan.group, self.plan.batch_size
        batches = -(-count // size)
        first = batches * group.rank // group.world_size
        stop = batches * (group.rank + 1) // group.world_size
        return range(first * size, min(stop * size, count))

    def _load_in_order(self, images: LabelledImages, share: range) -> Iterator[Batch]:
        own = images.subset(share)
        loader = build_eval_loader(
            own.paths,
            own.labels,
            EvalTransform(self.plan.preprocessing),
            batch_size=self.plan.batch_size,
            workers=self.plan.workers,
            pin_memory=self.plan.device.type == "cuda",
            notify=self.console.warn,
        )
        for batch in require_readable(loader, own.paths):
            yield replace(batch, positions=batch.positions + share.start)

    def _from_images(
        self, classifier: Classifier, precision: Precision
    ) -> Callable[[Tensor], Outputs]:
        return partial(
            compute_both,
            prepare_for_inference(classifier, precision),
            preprocessing=self.plan.preprocessing,
            device=self.plan.device,
        )


class _Readable:
    """Batches of a loader, again for each epoch, as long as all their images can be read."""

    def __init__(self, loader: ImageLoader, images: LabelledImages, device: torch.device) -> None:
        self._loader, self._images, self._device = loader, images, device

    def close(self) -> None:
        self._loader.close()

    def __iter__(self) -> Iterator[Batch]:
        return prefetch_to_device(require_readable(self._loader, self._images.paths), self._device)


def _from_activations(
    classifier: Classifier, boundary: str, precision: Precision
) -> Callable[[Tensor], Outputs]:
    """Outputs for stored activations by the classifier as it is now."""
    upper = UpperPart(classifier, boundary)
    head = copy.deepcopy(upper.head).eval()
    layers = None if upper.layers is None else prepare_module(upper.layers, precision)

    @torch.inference_mode()
    def compute(activations: Tensor) -> Outputs:
        activations = activations.to(precision.device, non_blocking=True)
        with precision.autocast():
            features = activations if layers is None else layers(activations)
        features = features.float()
        return Outputs(head(features), features)

    return compute
