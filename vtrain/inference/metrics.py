"""Classification metrics that stay on the device and add up exactly however images are split."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type of `device`: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def rank_classes(logits: Tensor, k: int) -> Tensor:
    """Indices `[B, min(k, C)]` of the largest of the logits `[B, C]`, largest first.

    Equal logits keep the order of the classes, so that the first column is the argmax; `topk`
    leaves their order open, and it differs between devices.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :k]


class RunningMean:
    """Mean of scalars, gathered on the device: only `value()` waits for it."""

    def __init__(self, device: torch.device) -> None:
        # One tensor (sum, count), so that several processes need one all_reduce.
        self.state = torch.zeros(2, dtype=sum_dtype(device), device=device)

    def update(self, values: Tensor, weight: int = 1) -> None:
        """Add every element of `values`, each counting `weight` times."""
        self.state[0] += values.sum(dtype=self.state.dtype) * weight
        self.state[1] += values.numel() * weight

    def merge(self, other: "RunningMean") -> None:
        """Add what another process or part has gathered."""
        self.state += other.state.to(self.state.device)

    def value(self) -> float:
        """The mean so far, NaN before the first value; a CPU-GPU sync point."""
        total, count = self.state.tolist()
        return total / count if count else float("nan")


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Precision, recall and F1 of one class (0 to 1; 0 where undefined) and its image count.

    The intervals are those of 95 %, None where nothing can be said.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    precision_interval: tuple[float, float] | None = None
    recall_interval: tuple[float, float] | None = None


class ConfusionMatrix:
    """Counts `[C, C]` int64 on the device: rows are true classes, columns predicted ones.

    Nothing in `update` waits for the device. Sums of integers are exact, so `counts` may be
    merged or all-reduced over any split of the images.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Count true `labels` `[B]` against `predictions` `[B]`."""
        cells = labels * len(self.counts) + predictions
        # Not bincount: it asks the device for the largest cell, which is a CPU-GPU sync point.
        self.counts.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add what another process or part has counted."""
        self.counts += other.counts.to(self.counts.device)

    def count(self) -> int:
        """Number of images counted; a CPU-GPU sync point, like every result below."""
        return int(self.counts.sum().item())

    def accuracy(self) -> float:
        """Share (0 to 1) of images on the diagonal, NaN without images."""
        count = self.count()
        return int(self.counts.trace().item()) / count if count else float("nan")

    def macro_f1(self) -> float:
        """Unweighted mean of the F1 of every class that occurs as a label or as a prediction.

        This is scikit-learn's `f1_score(average="macro", zero_division=0)`: a class that is only
        predicted counts with F1 0, one that is neither labelled nor predicted is left out. NaN
        without images.
        """
        occurs = (self.counts.sum(dim=0) + self.counts.sum(dim=1) > 0).cpu()
        return float(self._f1()[2][occurs].mean().item())

    def weighted_f1(self) -> float:
        """Mean F1 of the classes, each weighted with its number of images; NaN without images."""
        support = self.counts.sum(dim=1).cpu().double()
        total = support.sum()
        return float((self._f1()[2] * support).sum() / total) if total else float("nan")

    def per_class(self, classes: Sequence[str]) -> tuple[ClassMetrics, ...]:
        """Precision, recall, F1 and support of every class, in the order of `classes`."""
        columns = [column.tolist() for column in (*self._f1(), self.counts.sum(dim=1))]
        rows = zip(classes, *columns, strict=True)
        return tuple(ClassMetrics(*row) for row in rows)

    def _f1(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.counts.cpu().double()
        hits, labelled, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        # A quotient with the divisor 0 has the numerator 0 as well and becomes 0.
        precision = hits / predicted.clamp(min=1)
        recall = hits / labelled.clamp(min=1)
        return precision, recall, 2 * hits / (labelled + predicted).clamp(min=1)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy `[B]` of logits `[B, C]`, in float64 where the device has it."""
    # Float32 would give an infinite loss for finite logits that are more than 3.4e38 apart.
    wide = logits.to(sum_dtype(logits.device))
    return torch.nn.functional.cross_entropy(wide, labels, reduction="none")


class ClassificationMetrics:
    """Top-1, top-`k` and the confusion matrix of a whole data set.

    `k` is 5, or the number of classes where that is smaller. All are sums of integers, so that
    merging gives the same bits however the images were split.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.k = min(5, num_classes)
        self.confusion = ConfusionMatrix(num_classes, device)
        self.top_k = RunningMean(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add float32 logits `[B, C]` of images with `labels` `[B]`."""
        ranked = rank_classes(logits, self.k)
        self.confusion.update(labels, ranked[:, 0])
        self.top_k.update((ranked == labels[:, None]).any(dim=1))

    def merge(self, other: "ClassificationMetrics") -> None:
        """Add what another process or part has gathered."""
        self.confusion.merge(other.confusion)
        self.top_k.merge(other.top_k)

    def to_cpu(self) -> None:
        """Bring the sums to the CPU, where other processes can take them from."""
        self.confusion.counts = self.confusion.counts.cpu()
        self.top_k.state = self.top_k.state.cpu()
