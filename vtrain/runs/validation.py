"""What a model says of a split during a run: from its images, or from stored features."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from vtrain.data.batches import Batch, require_readable
from vtrain.data.image_sets import LabelledImages
from vtrain.data.loaders import build_eval_loader
from vtrain.data.transforms import EvalTransform
from vtrain.inference.feature_cache import FrozenPart
from vtrain.inference.feature_store import StoredRows, iterate_rows
from vtrain.inference.forward import Outputs, compute_both, prepare_for_inference, prepare_module
from vtrain.inference.scores import (
    Keep,
    ModelEvaluation,
    Scoring,
    evaluate_model,
    merge_evaluations,
)
from vtrain.inference.streams import choose_streams
from vtrain.models.classifier import Classifier
from vtrain.models.precision import Precision
from vtrain.models.splitting import UpperPart
from vtrain.runs.plan import FitPlan
from vtrain.runs.stored_features import StoredFeatures


@dataclass(slots=True)
class Validation:
    """Evaluates candidates of a phase; what is frozen below `part`'s boundary runs over them once.

    `reserved` features of training images are stored beside, `train_is_stored` in the form that
    evaluation wants as well.
    """

    plan: FitPlan
    stored: StoredFeatures
    part: FrozenPart | None = None
    reserved: int = 0
    train_is_stored: bool = False
    _val_rows: list[StoredRows | None] = field(default_factory=list)  # empty until they are known

    def __call__(self, candidate: Classifier) -> ModelEvaluation:
        """What a candidate says of the validation images."""
        plan, part = self.plan, self.part
        if not self._val_rows:
            if part is not None and plan.inference_precision != plan.precision:
                part = self._build_part(plan.classifier)
            rows = self.stored.of_evaluation(part, plan.splits.val, reserved=self.reserved)
            self._val_rows.append(rows)
        return self._evaluate(candidate, plan.splits.val, self._val_rows[0], "validation")

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
        rows = None
        if not of_train or self.train_is_stored:
            part = self._build_part(classifier)
            rows = self.stored.of_evaluation(part, images, reserved=self.reserved, silent=of_train)
        return self._evaluate(classifier, images, rows, label, scoring=scoring, keep=keep)

    def _build_part(self, classifier: Classifier) -> FrozenPart | None:
        boundary = None if self.part is None else self.part.boundary
        return self.stored.build_part(classifier, boundary, self.plan.inference_precision)

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
        share = plan.processes.share(len(images), chunk=plan.batch_size)
        if rows is None:
            batches = self._load_in_order(images, share)
            compute: Callable[[Tensor], Outputs] = partial(
                compute_both,
                prepare_for_inference(classifier, precision),
                preprocessing=plan.preprocessing,
                device=plan.device,
            )
            streams = choose_streams(plan.device)
        else:
            assert self.part is not None
            batches = iterate_rows(rows, images.labels, share, plan.batch_size)
            compute = _from_features(classifier, self.part.boundary, precision)
            streams = 1  # what is left to do is too little to share
        with self.stored.reporter.progress(len(share), label) as bar:
            own = evaluate_model(
                compute,
                batches,
                num_classes=len(images.classes),
                device=plan.device,
                scoring=scoring,
                keep=keep,
                streams=streams,
                bar=bar,
            )
        return merge_evaluations(plan.processes.gather(own))

    def _load_in_order(self, images: LabelledImages, share: range) -> Iterator[Batch]:
        own = images.subset(share)
        loader = build_eval_loader(
            own.paths,
            own.labels,
            EvalTransform(self.plan.preprocessing),
            batch_size=self.plan.batch_size,
            workers=self.plan.workers,
            pin_memory=self.plan.device.type == "cuda",
            reporter=self.stored.reporter,
        )
        for batch in require_readable(loader, own.paths):
            yield replace(batch, positions=batch.positions + share.start)


def _from_features(
    classifier: Classifier, boundary: str, precision: Precision
) -> Callable[[Tensor], Outputs]:
    """Outputs for stored features by the classifier as it is now."""
    upper = UpperPart(classifier, boundary)
    head = copy.deepcopy(upper.head).eval()
    layers = None if upper.layers is None else prepare_module(upper.layers, precision)

    @torch.inference_mode()
    def compute(rows: Tensor) -> Outputs:
        rows = rows.to(precision.device, non_blocking=True)
        with precision.autocast():
            features = rows if layers is None else layers(rows)
        features = features.float()
        return Outputs(head(features), features)

    return compute
