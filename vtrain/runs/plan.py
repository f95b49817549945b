"""The plan of a run: data, model, phases and rates, known before the first step is taken."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from vtrain.config.keys import FitConfig
from vtrain.config.load import LoadedConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.data.splits import Splits, check_splits, describe_splits, scan_splits
from vtrain.data.transforms import choose_augmentation
from vtrain.data.workers import resolve_workers
from vtrain.errors import ConfigError, DataError
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.classifier import HEAD, Classifier, build_classifier
from vtrain.models.freezing import (
    Phase,
    StageSummary,
    apply_freeze,
    build_phases,
    match_rules,
    summarize_stages,
)
from vtrain.models.precision import Precision, choose_inference_precision, choose_precision
from vtrain.models.weights import describe_weights, load_weights
from vtrain.models.zoo import find_backbone
from vtrain.system.machine import find_device, place_model, seed_everything
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import Reporter
from vtrain.system.text import one_line
from vtrain.training.learning_rates import choose_backbone_lr
from vtrain.training.memory import can_train, find_batch_size
from vtrain.training.optim import ParamGroup, build_param_groups, find_stage_rates

# Separates the stream that initialises the model from the others drawn from a seed.
MODEL_STREAM = 0
# Images of a step for `data.batch_size: auto`, before train.accumulate.
AUTO_BATCH = 32


@dataclass(frozen=True, slots=True)
class FitPlan:
    """Everything that is known before the first step; nothing has been written yet.

    `data` is the content of `data.json`; `batch_size` images are computed at once by each process,
    `accumulate` batches make a step; `param_groups` are the optimizer's, with a peak
    learning rate for each phase.
    """

    loaded: LoadedConfig
    splits: Splits
    data: dict[str, Any]
    spec: BackboneSpec
    classifier: Classifier
    preprocessing: Preprocessing
    pretrained_input: bool
    phases: tuple[Phase, ...]
    param_groups: list[ParamGroup]
    device: torch.device
    processes: Processes
    precision: str
    inference_precision: str
    workers: int
    batch_size: int
    accumulate: int

    @property
    def config(self) -> FitConfig:
        """The validated config."""
        return self.loaded.config

    def with_batch_size(self, batch_size: int) -> "FitPlan":
        """The same plan with batches of another size, and as many images in a step."""
        step = self.batch_size * self.accumulate
        return replace(self, batch_size=batch_size, accumulate=step // batch_size)

    def apply_freeze(self, phase: Phase) -> None:
        """Make the classifier train what `phase` trains."""
        apply_freeze(
            self.classifier,
            phase.rules,
            freeze_batch_norm=self.config.model.batch_norm == "frozen",
        )

    def summarize_stages(self, index: int) -> list[StageSummary]:
        """The stages of phase `index`, whose freeze is applied, with their peak rates."""
        return summarize_stages(self.classifier, find_stage_rates(self.param_groups, index))

    def augment(self, phase: Phase) -> str:
        """The augmentation preset of a phase."""
        trains_backbone = any(
            scale is not None and self.classifier.stage_of(name) != HEAD
            for name, scale in match_rules(self.classifier, phase.rules).items()
        )
        return choose_augmentation(self.config.data.augment, trains_backbone=trains_backbone)


def build_plan(
    loaded: LoadedConfig,
    reporter: Reporter,
    *,
    planned_epochs: int | None = None,
    planned_batch: int | None = None,
    processes: Processes = ALONE,
) -> FitPlan:
    """Scan and check the data, build the model, load its weights, and lay out the phases.

    `planned_epochs` is the number of epochs that a resumed run started with: its phases stay
    where they were, and only the last one is extended. Its weights come from the checkpoint, so
    that none are loaded. `planned_batch` is its batch size, which stays.

    Raises:
        DataError, ModelError, UsageError: what the config asks for cannot be had.
    """
    config = loaded.config
    device = find_device(processes.choose_device(config.train.device))
    spec = find_backbone(config.model.backbone)
    asked = config.train.precision
    precision = choose_precision(asked, device, depthwise=spec.depthwise)
    splits = scan_splits(config.data, seed=config.seed, reporter=reporter)
    # Before the images are read, which can take long: nobody should wait for a wrong file name.
    classifier, preprocessing, pretrained_input = _build_model(config, spec, splits)
    if planned_epochs is None:  # else they come from the checkpoint
        load_weights(classifier, config.model.weights, reporter=reporter)
    splits = check_splits(splits, config.data, reporter=reporter)
    wanted = AUTO_BATCH if config.data.batch_size == "auto" else config.data.batch_size
    _require_batch(wanted, len(splits.train), processes.world_size)
    phases, groups = _lay_out(config, spec, classifier, planned_epochs)
    place_model(classifier, device)
    batch_size = planned_batch or _choose_batch_size(
        config, classifier, preprocessing.crop, Precision(precision, device)
    )
    # Behind the trial steps of the batch size: a synchronized norm waits for the other processes.
    _synchronize_norms(classifier, device, config, processes)
    return FitPlan(
        loaded=loaded,
        splits=splits,
        data=_describe_data(splits),
        spec=spec,
        classifier=classifier,
        preprocessing=preprocessing,
        pretrained_input=pretrained_input,
        phases=phases,
        param_groups=groups,
        device=device,
        processes=processes,
        precision=precision,
        inference_precision=choose_inference_precision("auto", device, trained=asked),
        workers=resolve_workers(
            config.data.workers, len(splits.train), processes=processes.local_world_size
        ),
        batch_size=batch_size,
        accumulate=wanted * config.train.accumulate // batch_size,
    )


def _choose_batch_size(
    config: FitConfig, classifier: Classifier, crop: int, precision: Precision
) -> int:
    """Images to compute at once: as the config says, or as many of a step's as fit.

    The classifier has the freeze of the last phase, which trains the most. The CPU's memory can be
    overdrawn without an error, and gains nothing from larger batches.
    """
    if config.data.batch_size != "auto":
        return config.data.batch_size
    if precision.device.type != "cuda":
        return AUTO_BATCH
    fits = partial(can_train, classifier, image_size=crop, precision=precision)
    return find_batch_size(fits, AUTO_BATCH * config.train.accumulate)


def _lay_out(
    config: FitConfig, spec: BackboneSpec, classifier: Classifier, planned_epochs: int | None
) -> tuple[tuple[Phase, ...], list[ParamGroup]]:
    """The phases, and the optimizer's param groups over all of them."""
    planned = planned_epochs or config.train.epochs
    *first, last = build_phases(config, [stage.name for stage in spec.stages], epochs=planned)
    phases = (*first, replace(last, epochs=last.epochs + config.train.epochs - planned))
    # A policy that trains nothing must fail here, not when its phase begins.
    tables = [apply_freeze(classifier, phase.rules) for phase in phases]
    backbone_lr = choose_backbone_lr(config, spec)
    return phases, build_param_groups(classifier, tables, config.optim, backbone_lr=backbone_lr)


def _synchronize_norms(
    classifier: Classifier, device: torch.device, config: FitConfig, processes: Processes
) -> None:
    if config.model.batch_norm != "sync" or processes.world_size == 1:
        return
    if device.type != "cuda":
        raise ConfigError(
            f"model.batch_norm: sync needs GPUs, and the device is {device}",
            "set model.batch_norm=frozen, or train",
        )
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(classifier)  # type: ignore[no-untyped-call]


def _describe_data(splits: Splits) -> dict[str, Any]:
    try:
        return describe_splits(splits)
    except OSError as error:
        raise DataError(
            f"{one_line(error.filename)} was there a moment ago and is not now: {error.strerror}",
            "let nothing change the folder while a run starts",
        ) from error


def _require_batch(size: int, images: int, processes: int) -> None:
    if size * processes > images:
        together = f"{size}" if processes == 1 else f"{size} in each of {processes} processes"
        raise ConfigError(
            f"data.batch_size: {together} is more than the {images} training images",
            f"set data.batch_size={max(1, images // (4 * processes))} or less",
        )


def _build_model(
    config: FitConfig, spec: BackboneSpec, splits: Splits
) -> tuple[Classifier, Preprocessing, bool]:
    """The classifier with random weights, its input, and how it was built."""
    source = describe_weights(config.model.weights, spec)
    preprocessing = source.preprocessing
    if config.data.image_size is not None:
        preprocessing = preprocessing.with_image_size(config.data.image_size)
    seed_everything(config.seed, MODEL_STREAM)
    classifier = build_classifier(
        spec,
        num_classes=len(splits.classes),
        head=config.model.head,
        image_size=preprocessing.crop,
        pretrained=source.pretrained_input,
        options=config.model.options,
    )
    return classifier, preprocessing, source.pretrained_input
