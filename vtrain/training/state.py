"""Where a run is: the counters that a checkpoint keeps."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class TrainState:
    """Where a run is: plain data, saved with every checkpoint.

    `epoch` counts finished epochs, `batch` the batches of the current one, `step` optimizer steps
    since the start of the run. `loss_sum` and `image_count` belong to the current epoch. `splits`
    is the number of parts that a batch is computed in, above 1 where memory was too small.
    `left_out` are steps (the first is 1) that change nothing: their loss was not finite.
    `history` has one row of metrics for each finished epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # as of the last look at the device, see `Trainer.sync`
    image_count: int = 0
    best_epoch: int = 0
    best_top1: float = -1.0  # below any: the first epoch is the best so far
    best_loss: float = math.inf
    seconds: float = 0.0
    splits: int = 1
    left_out: list[int] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
