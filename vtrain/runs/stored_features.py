"""Whether a phase trains on stored features instead of its images, and the features of a split."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtrain.data.image_sets import LabelledImages
from vtrain.data.transforms import EvalTransform, TrainTransform
from vtrain.errors import ConfigError
from vtrain.inference.feature_cache import (
    FeatureCache,
    FrozenPart,
    Views,
    build_frozen_part,
    describe_size,
)
from vtrain.inference.feature_store import StoredRows
from vtrain.models.classifier import Classifier
from vtrain.models.freezing import Phase
from vtrain.models.precision import Precision
from vtrain.models.splitting import BoundaryError, find_frozen_boundary
from vtrain.runs.plan import FitPlan
from vtrain.system.cache_folder import FEATURES, find_cache_folder
from vtrain.system.reporter import Reporter
from vtrain.system.text import format_duration


@dataclass(frozen=True, slots=True)
class StoredTraining:
    """Features of the training images of a phase, `[N, views, ...]`.

    `serves_validation`: they were computed as validation computes its own.
    """

    rows: StoredRows
    count: int
    serves_validation: bool


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """The features that a run keeps of its frozen parts.

    `used` are its stores, which make no room for each other; `announced` are the boundaries of
    this phase whose features of the validation images were told of.
    """

    plan: FitPlan
    reporter: Reporter
    used: set[Path] = field(default_factory=set)
    announced: set[str] = field(default_factory=set)

    # --- the choice --------------------------------------------------------------------------

    def choose_views(self, phase: Phase) -> Views | None:
        """The views of training images to store; None where every epoch must see new ones.

        Raises:
            ConfigError: `train.cache: features` where features cannot stand for the images.
        """
        plan, config = self.plan, self.plan.config
        if config.data.mixup or config.data.cutmix:
            self.require_possible(phase, "mixup and cutmix need the images themselves")
            return None
        preset = plan.augment(phase)
        if preset == "none" and not config.data.erasing:
            return Views(EvalTransform(plan.preprocessing))
        if config.train.cache_views is None:
            self.require_possible(phase, "with augmentation an image is another one in every epoch")
            return None
        transform = TrainTransform(plan.preprocessing, preset=preset, erasing=config.data.erasing)
        name = f"{preset}, erasing {config.data.erasing:g}" if config.data.erasing else preset
        return Views(transform, name, config.train.cache_views, config.seed)

    def require_possible(self, phase: Phase, reason: str) -> None:
        """Refuse `train.cache: features` for a `reason` why a phase cannot use them.

        Raises:
            ConfigError: that was asked for.
        """
        if self.plan.config.train.cache == "features":
            raise ConfigError(
                f"train.cache: features cannot be used in phase {phase.name}: {reason}",
                "set train.cache=auto, which uses features where it can; with augmentation set "
                "train.cache_views=8 or data.augment=none; or raise train.cache_limit",
            )

    def check_phases(self) -> None:
        """Find out before training whether a later phase can do what was asked for.

        Raises:
            ConfigError: it cannot; the limit of the cache is looked at when the phase begins.
        """
        if self.plan.config.train.cache != "features":
            return
        for phase in self.plan.phases:
            self.plan.apply_freeze(phase)
            if find_frozen_boundary(self.plan.classifier) is None:
                self.require_possible(phase, "nothing is frozen up from the input")
            self.choose_views(phase)

    # --- the frozen part ---------------------------------------------------------------------

    def build_part(
        self, classifier: Classifier, boundary: str | None, precision: str
    ) -> FrozenPart | None:
        """What lies below `boundary`; None where nothing does, or the network cannot be cut."""
        plan = self.plan
        if boundary is None:
            return None
        try:
            return build_frozen_part(
                classifier,
                boundary,
                preprocessing=plan.preprocessing,
                precision=Precision(precision, plan.device),
                device=plan.device,
            )
        except BoundaryError as error:
            self.reporter.say(f"the frozen part is computed with the rest: {error}")
            return None

    # --- the features of a split -------------------------------------------------------------

    def choose_training_views(self, phase: Phase, part: FrozenPart) -> Views | None:
        """The views of training images to store; None where they are not to be.

        Raises:
            ConfigError: `train.cache: features`, and they cannot.
        """
        plan, config = self.plan, self.plan.config
        views = self.choose_views(phase)
        if views is None or config.train.cache == "off":
            return None
        count = len(plan.splits.train) * views.count
        if not self.open_cache().fits(part, count + len(plan.splits.val)):
            message = f"{describe_size(part, count)} exceed train.cache_limit"
            self.require_possible(phase, message)
            self.reporter.say(
                f"feature cache: not used: {message} ({config.train.cache_limit:g} GB)"
            )
            return None
        return views

    def of_training(self, phase: Phase, part: FrozenPart) -> StoredTraining | None:
        """Those of the training images; None where they cannot stand for these.

        Raises:
            ConfigError: `train.cache: features`, and they cannot.
        """
        plan, views = self.plan, self.choose_training_views(phase, part)
        if views is None:
            return None
        if views.seed is not None:
            self.reporter.say(
                f"feature cache: {views.count} augmented views of each image are drawn from, "
                "instead of a new one each epoch"
            )
        # Validation of this phase will want the same of its images: then all are one pass.
        same = views.seed is None and plan.inference_precision == plan.precision
        splits = [plan.splits.train, *([plan.splits.val] if same else [])]
        rows = self._provide(part, splits, views)
        count = len(plan.splits.train) * views.count
        return None if rows is None else StoredTraining(rows, count, same)

    def of_evaluation(
        self,
        part: FrozenPart | None,
        images: LabelledImages,
        *,
        reserved: int = 0,
        silent: bool = False,
    ) -> StoredRows | None:
        """Those of images as evaluation sees them; None where they are not to be stored.

        `reserved` features of training images must fit into the cache's limit beside them.
        """
        if part is None or self.plan.config.train.cache == "off":
            return None
        if not self.open_cache().fits(part, len(images) + reserved):
            return None
        views = Views(EvalTransform(self.plan.preprocessing))
        return self._provide(part, [images], views, silent=silent)

    def open_cache(self) -> FeatureCache:
        """The cache of all runs, as this one uses it."""
        plan = self.plan
        return FeatureCache(
            root=find_cache_folder() / FEATURES,
            limit_gb=plan.config.train.cache_limit,
            batch_size=plan.batch_size,
            workers=plan.workers,
            reporter=self.reporter,
            processes=plan.processes,
            used=self.used,
        )

    def _provide(
        self,
        part: FrozenPart,
        splits: Sequence[LabelledImages],
        views: Views,
        *,
        silent: bool = False,
    ) -> StoredRows | None:
        """Rows of the first split, stored or computed now, in one pass with those of the others."""
        started = time.perf_counter()
        first, *others = splits
        rows = self.open_cache().provide(
            part, first.paths, views, ahead=others[0].paths if others else ()
        )
        val = self.plan.splits.val
        said = first is val and part.boundary in self.announced
        if rows is not None and not silent and not said:
            count = sum(len(split) for split in splits)
            seconds = format_duration(time.perf_counter() - started)
            self.reporter.say(
                f"feature cache: {describe_size(part, count * views.count)} of "
                f"{count:,} images in {seconds}"
            )
        if any(split is val for split in splits):
            self.announced.add(part.boundary)
        return rows
