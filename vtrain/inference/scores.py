"""What a model makes of labelled images: their scores, and the metrics of all of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtrain.data.batches import Batch
from vtrain.inference.calibration import Novelty
from vtrain.inference.forward import Outputs, compute_probabilities, find_finite_rows
from vtrain.inference.metrics import ClassificationMetrics, cross_entropies, rank_classes
from vtrain.inference.streams import compute_in_order
from vtrain.system.reporter import Progress

_SCORED_AT_ONCE = 4_000_000  # logits; in float64 they are copied several times
_WHOLE = ("positions", "labels", "predictions", "seconds")
_DECIMALS = (
    "probabilities",
    "raw_probabilities",
    "label_probabilities",
    "second_probabilities",
    "losses",
    "distances",
)


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """What turns logits into probabilities, and features into distances."""

    temperature: float = 1.0
    novelty: Novelty | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """What to keep of all images: their logits, the features of every n-th (0: of none)."""

    logits: bool = False
    features_every: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ModelEvaluation:
    """What a model does on labelled batches.

    `positions`, `labels`, `predictions` and `seconds` (the second most probable class, -1 where
    there is none) are int64 `[N]`. `probabilities`, `label_probabilities` and
    `second_probabilities` are calibrated, `raw_probabilities` those of the predictions without
    that, `losses` plain cross-entropy of the raw logits, `distances` those from the training images
    or NaN: float64 `[N]`. All are on the CPU, for the N images that could be read. `failures` are
    (position, reason). `non_finite` are the positions of images whose logits hold NaN or infinity:
    with any of those, the metrics mean nothing. `logits` `[N, C]` and `features` `[M, D]` of the
    images at `feature_positions` are float32, and there as far as they were kept.
    """

    metrics: ClassificationMetrics
    positions: Tensor
    labels: Tensor
    predictions: Tensor
    probabilities: Tensor
    raw_probabilities: Tensor
    label_probabilities: Tensor
    seconds: Tensor
    second_probabilities: Tensor
    losses: Tensor
    distances: Tensor
    failures: tuple[tuple[int, str], ...]
    non_finite: tuple[int, ...]
    logits: Tensor | None = None
    features: Tensor | None = None
    feature_positions: Tensor | None = None

    @property
    def top1(self) -> float:
        """Share of correct predictions, 0 to 1; NaN without images."""
        return self.metrics.confusion.accuracy()

    @property
    def macro_f1(self) -> float:
        """See `ConfusionMatrix.macro_f1`."""
        return self.metrics.confusion.macro_f1()

    @property
    def loss(self) -> float:
        """Mean cross-entropy per image, without label smoothing; NaN for non-finite logits."""
        # Summed exactly, and so the same however the images were split over processes.
        return math.fsum(self.losses.tolist()) / len(self.losses) if len(self.losses) else math.nan

    def with_temperature(self, temperature: float) -> "ModelEvaluation":
        """The same with the probabilities that kept logits have at this temperature."""
        assert self.logits is not None
        rows = max(1, _SCORED_AT_ONCE // self.logits.shape[1])
        parts = [
            _score(self.logits[i : i + rows], self.labels[i : i + rows], temperature)
            for i in range(0, len(self.labels), rows)
        ]
        return replace(
            self,
            probabilities=torch.cat([part["probabilities"] for part in parts]),
            label_probabilities=torch.cat([part["label_probabilities"] for part in parts]),
            second_probabilities=torch.cat([part["second_probabilities"] for part in parts]),
        )

    def in_units_of(self, novelty: Novelty) -> "ModelEvaluation":
        """The same with distances that were measured with the threshold 1 in units of that."""
        # In float32, as `Novelty.distances` computes them: the same bits as in every later command.
        return replace(self, distances=(self.distances.float() / novelty.threshold).double())


def _score(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """Columns of a batch, on the device, by their names in `ModelEvaluation`."""
    ranked = rank_classes(logits, 2)
    probabilities = compute_probabilities(logits, temperature)
    top = probabilities.gather(1, ranked)
    raw = compute_probabilities(logits, 1.0) if temperature != 1.0 else probabilities
    alone = ranked.shape[1] == 1
    return {
        "predictions": ranked[:, 0],
        "probabilities": top[:, 0],
        "raw_probabilities": raw.gather(1, ranked[:, :1])[:, 0],
        "label_probabilities": probabilities.gather(1, labels[:, None])[:, 0],
        "seconds": ranked[:, -1] if not alone else torch.full_like(labels, -1),
        "second_probabilities": top[:, -1] if not alone else torch.full_like(top[:, 0], math.nan),
    }


@torch.inference_mode()
def evaluate_model(
    compute: Callable[[Tensor], Outputs],
    batches: Iterable[Batch],
    *,
    num_classes: int,
    device: torch.device,
    scoring: Scoring | None = None,
    keep: Keep | None = None,
    streams: int = 1,
    bar: Progress | None = None,
) -> ModelEvaluation:
    """Gather what a model says of labelled batches.

    `compute` turns a batch's inputs (on the CPU) into outputs on `device`; the model behind it is
    in evaluation mode. `streams` batches are computed at a time, see `compute_in_order`. `bar`
    counts the images.
    """
    metrics = ClassificationMetrics(num_classes, device)
    gathered = _Gathered(metrics, device, scoring or Scoring(), keep or Keep())

    def compute_batch(batch: Batch) -> Outputs | None:
        return compute(batch.inputs) if len(batch.positions) else None

    for batch, outputs in compute_in_order(batches, compute_batch, streams=streams):
        gathered.failures.extend(batch.failures)
        if outputs is not None:
            gathered.add(batch, outputs)
        if bar is not None:
            bar.update(len(batch.positions) + len(batch.failures))
    return gathered.finish()


class _Gathered:
    """Columns of the batches so far."""

    def __init__(
        self, metrics: ClassificationMetrics, device: torch.device, scoring: Scoring, keep: Keep
    ) -> None:
        self.metrics, self.device, self.scoring, self.keep = metrics, device, scoring, keep
        self.failures: list[tuple[int, str]] = []
        self.rows: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, outputs: Outputs) -> None:
        logits = outputs.logits
        labels = batch.labels.to(self.device, non_blocking=True)
        self.metrics.update(logits, labels)
        # Stays on the device until the end: copying here would wait for every batch.
        self._append(
            positions=batch.positions,
            labels=batch.labels,
            losses=cross_entropies(logits, labels),
            finite=find_finite_rows(logits),
            **_score(logits, labels, self.scoring.temperature),
        )
        features, novelty = outputs.features, self.scoring.novelty
        if novelty is not None and features is not None:
            self._append(distances=novelty.distances(features))
        if self.keep.logits:
            self._append(logits=logits.cpu())
        if self.keep.features_every and features is not None:
            chosen = batch.positions % self.keep.features_every == 0
            kept = features[chosen.to(self.device)].cpu()
            self._append(features=kept, feature_positions=batch.positions[chosen])

    def _append(self, **columns: Tensor) -> None:
        for name, column in columns.items():
            self.rows.setdefault(name, []).append(column)

    def finish(self) -> ModelEvaluation:
        columns = {name: torch.cat(parts).cpu() for name, parts in self.rows.items()}
        whole = torch.zeros(0, dtype=torch.int64)
        for name in _WHOLE:
            columns.setdefault(name, whole)
        for name in _DECIMALS:
            blank = torch.full((len(columns["positions"]),), math.nan, dtype=torch.float64)
            columns[name] = columns[name].double() if name in columns else blank
        finite = columns.pop("finite", whole.bool())
        self.metrics.to_cpu()
        return ModelEvaluation(
            metrics=self.metrics,
            failures=tuple(self.failures),
            non_finite=tuple(columns["positions"][~finite].tolist()),
            **columns,
        )


def merge_evaluations(parts: Sequence[ModelEvaluation]) -> ModelEvaluation:
    """One evaluation of several on disjoint images, in the order of the parts."""
    first, *others = parts
    for other in others:
        first.metrics.merge(other.metrics)
    columns: dict[str, Tensor] = {}
    for name in (*_WHOLE, *_DECIMALS, "logits", "features", "feature_positions"):
        found = [getattr(part, name) for part in parts]
        kept = [each for each in found if each is not None]
        if kept:
            columns[name] = torch.cat(kept)
    return ModelEvaluation(
        metrics=first.metrics,
        **columns,
        failures=tuple(failure for part in parts for failure in part.failures),
        non_finite=tuple(position for part in parts for position in part.non_finite),
    )
