"""Where a run is: the counters that a checkpoint keeps."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf

# Epochs, steps, images: far beyond any run, and exact as a float.
Count = Annotated[int, Field(ge=0, lt=2**53)]


def _require_finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


_Finite = Annotated[InstanceOf[float], AfterValidator(_require_finite)]


@dataclass(slots=True)
class TrainState:
    """Where a run is: plain data, saved with every checkpoint.

    `epoch` counts finished epochs, `batch` the batches of the current one, `step` optimizer steps
    since the start of the run. `loss_sum` and `image_count` belong to the current epoch. `splits`
    is the number of parts that a batch is computed in, above 1 where memory was too small.
    `left_out` are steps (the first is 1) that change nothing: their loss was not finite.
    `history` has one row of metrics for each finished epoch.
    """

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    loss_sum: _Finite = 0.0  # as of the last look at the device, see `Trainer.sync`
    image_count: Count = 0
    best_epoch: Count = 0
    best_top1: InstanceOf[float] = -1.0  # below any: the first epoch is the best so far
    best_loss: InstanceOf[float] = math.inf
    seconds: _Finite = 0.0
    splits: Annotated[Count, Field(gt=0)] = 1
    left_out: list[Count] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
