"""Which images each batch of an epoch has: shuffled, balanced, and split over processes."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch.utils.data import Sampler

from vtrain.data.batches import SAMPLE_STREAM
from vtrain.system.machine import mix_seed

# These separate the streams here from the others that are drawn from a run's seed.
ORDER_STREAM = 2

SampleKey: TypeAlias = tuple[int, int | None]  # index, seed of its augmentation


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of (index, sample seed) as a pure function of (seed, epoch).

    The order depends on (seed, epoch), each sample's seed on (seed, epoch, index). A last batch
    with under two images for each rank is merged into the one before it: BatchNorm cannot train on
    one value.

    Args:
        num_images: N, the length of the data set and of an epoch.
        batch_size: images in a batch, over all ranks together.
        seed: of the run.
        weights: None for a permutation, or N weights for drawing with replacement.
        rank: which part of each batch to give.
        world_size: number of parts; a part is empty where a batch has fewer images than that.
    """

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._start_batch = 0

    def set_epoch(self, epoch: int, *, start_batch: int = 0) -> None:
        """Choose the next epoch and the first of its batches to give, both counted from 0."""
        self._epoch = epoch
        self._start_batch = start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever `start_batch` is."""
        full, rest = divmod(self._num_images, self._batch_size)
        merged = full > 0 and rest < 2 * self._world_size
        return full + (rest > 0 and not merged)

    def batch_sizes(self) -> list[int]:
        """Images in each batch of an epoch, over all ranks together."""
        before_last = len(self) - 1
        if before_last < 0:
            return []
        return [self._batch_size] * before_last + [
            self._num_images - self._batch_size * before_last
        ]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, batches = self._epoch, len(self)
        generator = torch.Generator().manual_seed(mix_seed(self._seed, ORDER_STREAM, epoch))
        if self._weights is None:
            order = torch.randperm(self._num_images, generator=generator)
        else:
            order = torch.multinomial(
                self._weights, self._num_images, replacement=True, generator=generator
            )
        for batch in range(self._start_batch, batches):
            first = batch * self._batch_size
            last = self._num_images if batch == batches - 1 else first + self._batch_size
            size = last - first
            own = order[
                first + size * self._rank // self._world_size : first
                + size * (self._rank + 1) // self._world_size
            ].tolist()
            yield [(index, mix_seed(self._seed, SAMPLE_STREAM, epoch, index)) for index in own]


def balanced_class_weights(counts: Sequence[int]) -> list[float]:
    """Weights inversely proportional to the class counts, their mean over the images being 1.

    A class without images weighs 0.
    """
    present = sum(1 for count in counts if count)
    total = sum(counts)
    return [total / (present * count) if count else 0.0 for count in counts]
