"""One phase of a run: what is trained on which batches, and what validates it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtrain.data.batches import Batch, prefetch_to_device, require_readable
from vtrain.data.image_sets import LabelledImages
from vtrain.data.loaders import ImageLoader, build_train_loader
from vtrain.data.sampler import EpochBatchSampler
from vtrain.data.transforms import TrainTransform, normalize_images
from vtrain.inference.feature_cache import FrozenPart
from vtrain.inference.feature_store import FeatureLoader
from vtrain.models.freezing import Phase
from vtrain.models.splitting import UpperPart, find_frozen_boundary
from vtrain.runs.plan import FitPlan
from vtrain.runs.stored_features import StoredFeatures
from vtrain.runs.validation import Validation
from vtrain.system.reporter import Reporter


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What a phase trains and is validated with.

    `batches` follow the sampler; `prepare` brings a batch's inputs to the device in the form that
    `model` takes; `model` gives logits `[B, C]` and shares its trained modules with the classifier;
    `validate` tells what a candidate says of the validation images.
    """

    model: nn.Module
    batches: Iterable[Batch]
    prepare: Callable[[Tensor], Tensor]
    validate: Validation

    def close(self) -> None:
        """End the processes that read the images of this phase."""
        if isinstance(self.batches, ReadableBatches):
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
            features = self.frozen(images)
        logits: Tensor = self.trained(features)
        return logits


class ReadableBatches:
    """Batches of a loader, again for each epoch, as long as all their images can be read."""

    def __init__(self, loader: ImageLoader, images: LabelledImages, device: torch.device) -> None:
        self._loader, self._images, self._device = loader, images, device

    def close(self) -> None:
        """End the loader's workers."""
        self._loader.close()

    def __iter__(self) -> Iterator[Batch]:
        return prefetch_to_device(require_readable(self._loader, self._images.paths), self._device)


def enter_phase(
    plan: FitPlan,
    phase: Phase,
    sampler: EpochBatchSampler,
    stored: StoredFeatures,
    reporter: Reporter,
) -> PhaseWork:
    """The work of a phase, whose freeze is applied to the plan's classifier.

    What is frozen up from the input is computed once, if it sees the same images in every epoch:
    training then starts from its features. Otherwise it runs before the rest, without gradients.

    Raises:
        ConfigError: `train.cache: features` where features cannot stand for the images.
    """
    stored.announced.clear()
    boundary = find_frozen_boundary(plan.classifier)
    part = stored.build_part(plan.classifier, boundary, plan.precision)
    if part is None:
        stored.require_possible(phase, "nothing is frozen up from the input")
        training = None
    else:
        training = stored.of_training(phase, part)
    if part is None or training is None:
        return build_image_work(plan, phase, sampler, stored, part, reporter)
    training.rows.to(plan.device)
    return PhaseWork(
        UpperPart(plan.classifier, part.boundary),
        FeatureLoader(training.rows, plan.splits.train.labels, sampler),
        lambda rows: rows.to(plan.device, non_blocking=True),
        Validation(plan, stored, part, training.count, training.serves_validation),
    )


def build_image_work(
    plan: FitPlan,
    phase: Phase,
    sampler: EpochBatchSampler,
    stored: StoredFeatures,
    part: FrozenPart | None,
    reporter: Reporter,
) -> PhaseWork:
    """The work of a phase on augmented batches of the images; `part` is what is frozen."""
    model: nn.Module = plan.classifier
    if part is not None:
        model = FrozenThenTrained(part.module, UpperPart(plan.classifier, part.boundary))
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
        reporter=reporter,
    )
    return PhaseWork(
        model,
        ReadableBatches(loader, plan.splits.train, plan.device),
        lambda images: normalize_images(images, plan.preprocessing, device=plan.device),
        Validation(plan, stored, part),
    )
