"""The training loop: one straight path through the step for every precision and device."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vtrain.data.loaders import Batch
from vtrain.distributed import ALONE, ProcessGroup
from vtrain.errors import DivergedError
from vtrain.runtime import is_out_of_memory, seed_everything
from vtrain.training.ema import ModelEma
from vtrain.training.optim import head_learning_rate, set_learning_rates
from vtrain.training.precision import Precision
from vtrain.training.schedules import Schedule
from vtrain.training.stopwatch import Stopwatch

# How often the loss is looked at on an accelerator; each look waits for the device.
SYNC_EVERY = 25
# Separates the stream of random numbers of the training steps from the others drawn from a seed.
STEP_STREAM = 1


@dataclass(slots=True)
class TrainState:
    """Where a run is: plain data, saved with every checkpoint.

    `epoch` counts finished epochs, `batch` the batches of the current one, `step` optimiser steps
    since the start of the run. `loss_sum` and `image_count` belong to the current epoch. `splits`
    is the number of parts that a batch is computed in, above 1 where memory was too small.
    `left_out` are steps (the first is 1) that change nothing: their loss was not finite.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    image_count: int = 0
    best_epoch: int = 0
    best_top1: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0
    splits: int = 1
    left_out: list[int] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


class NotFiniteError(DivergedError):
    """The loss or its gradient is not finite; `step` is the first such one, counted from 1.

    `positions` are those of the step's images in the training set, as far as they are known.
    """

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the training loss or its gradient is not finite at step {step}",
            "lower optim.lr and optim.backbone_lr, lengthen optim.warmup_epochs, "
            "or set train.precision=fp32 or train.on_nan=rollback",
        )
        self.step = step
        self.positions: list[int] = []


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the display shows after an optimiser step.

    `loss` is the mean of the epoch so far where it was looked at, None in between; `data_wait` is
    the share (0 to 1) of the time so far that was spent waiting for the loader.
    """

    images: int
    loss: float | None
    lr: float
    data_wait: float


@dataclass(slots=True)
class TrainLoop:
    """A model and everything that one epoch of training needs besides the batches.

    `prepare` turns a batch's inputs into what `model` takes, on the device; `model` gives the
    logits `[B, C]`: the classifier, or its trained part where the inputs are stored activations.
    `schedule` gives the factor of the learning rate from the steps since `first_step`. With several
    processes in `group`, each gets its part of every batch, and `model` is what averages gradients
    over them (DistributedDataParallel); all call the methods here together. `notify` is told when
    memory runs out and the step goes on in smaller parts.
    """

    classifier: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    loss: nn.Module
    prepare: Callable[[Tensor], Tensor]
    batch_mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    ema: ModelEma | None
    device: torch.device
    seed: int
    accumulate: int
    clip_norm: float | None
    state: TrainState
    stopwatch: Stopwatch
    notify: Callable[[str], None]
    phase: int = 0
    group: ProcessGroup = ALONE
    schedule: Schedule | None = None
    first_step: int = 0
    watch: "LossWatch | None" = None
    recent: dict[int, list[Tensor]] = field(default_factory=dict)
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def sync(self) -> None:
        """Bring `state.loss_sum` up to date before the state is saved; a CPU-GPU sync point.

        Raises:
            NotFiniteError: the loss is no longer finite.
        """
        if self.watch is None:
            return
        try:
            self.state.loss_sum = self.watch.look()
        except NotFiniteError as error:
            own = torch.cat(self.recent.get(error.step, [torch.empty(0)])).tolist()
            error.positions = [int(each) for part in self.group.gather(own) for each in part]
            self.watch = None  # what follows has nothing to do with this
            self.recent.clear()
            raise
        self.recent.clear()

    def run_epoch(
        self,
        batches: Iterable[Batch],
        batch_sizes: Sequence[int],
        on_step: Callable[[StepReport], None],
    ) -> float:
        """Train on the rest of the current epoch, from `state.batch` on.

        `batch_sizes` are those of the whole epoch, in order, over all processes. `on_step` is
        called after every optimiser step, when the state is consistent. Returns the seconds spent
        waiting for data.

        Raises:
            NotFiniteError: the loss is no longer finite.
        """
        state, waited, started = self.state, 0.0, time.perf_counter()
        self.classifier.train()
        parameters = [p for p in self.classifier.parameters() if p.requires_grad]
        self.watch = watch = LossWatch(self.device, state.loss_sum, self.group)
        window: list[Batch] = []
        for wait, batch in timed(batches, self.stopwatch):
            waited += wait
            window.append(batch)
            sizes = batch_sizes[self._window(batch_sizes, state.batch)]
            if left_out := state.step + 1 in state.left_out:
                state.batch += 1
            else:
                self._learn(window, sizes, watch)
            if len(window) < len(sizes):
                continue
            window.clear()
            if left_out:
                state.step += 1
            else:
                with self.stopwatch.section("optimizer"):
                    self._optimizer_step(parameters)
            loss_now = None
            if self._looks_now(len(batch_sizes)):
                self.sync()
                loss_now = state.loss_sum / max(1, state.image_count)  # 0 where all were left out
            on_step(self._report(loss_now, waited / (time.perf_counter() - started)))
        self.watch = None  # the last step has looked
        self.recent.clear()
        return waited

    def _learn(self, window: Sequence[Batch], sizes: Sequence[int], watch: "LossWatch") -> None:
        """Add the last batch of a window to the gradients and to what is known of the epoch."""
        state, batch, step = self.state, window[-1], self.state.step + 1
        if len(window) == 1 and self.precision.name == "fp16":
            self.buffers = [(buffer, buffer.clone()) for buffer in self.classifier.buffers()]
        loss = self._add_gradients(window, sizes)
        watch.update(loss, len(batch.labels), step)
        self.recent.setdefault(step, []).append(batch.positions)
        state.image_count += sizes[len(window) - 1]
        state.batch += 1

    def _add_gradients(self, window: Sequence[Batch], sizes: Sequence[int]) -> Tensor:
        """Add the gradients of the last batch of a window; its mean loss, a scalar on the device.

        When memory runs out, the whole window is computed again in smaller parts.
        """
        start = len(window) - 1
        while True:
            try:
                for place in range(start, len(window)):
                    number = self.state.batch - len(window) + 1 + place
                    loss = self._backward(window[place], number, sizes, place + 1 == len(sizes))
                return loss
            except RuntimeError as error:
                if not self._can_split(error, window[-1]):
                    raise
            # Outside the handler, where the error no longer holds on to the tensors of the step.
            self._split()
            start = 0

    def _backward(self, batch: Batch, number: int, sizes: Sequence[int], is_last: bool) -> Tensor:
        """Gradients of batch `number` of the epoch, as a share of those of its window."""
        # Dropout and mixing draw from a stream that depends on the position alone, so that a
        # resumed run draws what the uninterrupted one would have drawn.
        own = (self.group.rank,) if self.group.world_size > 1 else ()
        seed_everything(self.seed, STEP_STREAM, self.state.epoch, number, *own)
        with self.stopwatch.section("transfer"):
            inputs = self.prepare(batch.inputs)
            labels = batch.labels.to(self.device, non_blocking=True)
            if self.batch_mix is not None:
                inputs, labels = self.batch_mix(inputs, labels)
        losses: list[Tensor] = []
        for part, targets in self._parts(inputs, labels):
            with self._gradients_shared(is_last and len(losses) + 1 == self.state.splits):
                with self.stopwatch.section("forward"), self.precision.autocast():
                    loss = self.loss(self.model(part), targets)  # [B, C] against [B] or [B, C]
                # A mean over the images of the window; the processes' gradients are averaged.
                share = len(targets) / sum(sizes) * self.group.world_size
                with self.stopwatch.section("backward"):
                    self.precision.backward(loss * share)
            losses.append(loss.detach() * (len(targets) / len(labels)))
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _parts(self, inputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        parts = self.state.splits
        return zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True)

    def _can_split(self, error: RuntimeError, batch: Batch) -> bool:
        # Several processes would have to agree. A part of one image cannot train BatchNorm.
        smallest = len(batch.labels) // (2 * self.state.splits)
        return self.group.world_size == 1 and smallest >= 2 and is_out_of_memory(error)

    def _split(self) -> None:
        self.state.splits *= 2
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.notify(
            f"out of memory: going on with every batch in {self.state.splits} parts, "
            "whose gradients are added up"
        )

    def _gradients_shared(self, shared: bool) -> AbstractContextManager[None]:
        """Leave the exchange of gradients to the last batch of an optimiser step."""
        if shared or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _window(self, batch_sizes: Sequence[int], batch: int) -> slice:
        # The last window of an epoch may be shorter: its gradients are still a mean over images.
        start = batch - batch % self.accumulate
        return slice(start, min(start + self.accumulate, len(batch_sizes)))

    def _optimizer_step(self, parameters: Sequence[nn.Parameter]) -> None:
        # Written before every step: resume needs no state of a scheduler.
        assert self.schedule is not None
        factor = self.schedule(self.state.step - self.first_step)
        set_learning_rates(self.optimizer, self.phase, factor)
        norm = self.precision.step(self.optimizer, parameters, clip_norm=self.clip_norm)
        self.state.step += 1
        if self.precision.name == "fp16":
            # The scaler leaves such a step out; BatchNorm's statistics have seen it already.
            for buffer, before in self.buffers:
                buffer.copy_(torch.where(torch.isfinite(norm), buffer, before))
        elif self.watch is not None:
            self.watch.check(norm, self.state.step)
        if self.ema is not None:
            self.ema.update(self.classifier, self.state.step)

    def _looks_now(self, batches_in_epoch: int) -> bool:
        # On one CPU there is nothing to wait for.
        return (
            (self.device.type == "cpu" and self.group.world_size == 1)
            or self.state.step % SYNC_EVERY == 0
            or self.state.batch == batches_in_epoch
        )

    def _report(self, loss: float | None, data_wait: float) -> StepReport:
        return StepReport(
            images=self.state.image_count,
            loss=loss,
            lr=head_learning_rate(self.optimizer),
            data_wait=data_wait,
        )


class LossWatch:
    """Sums losses on the device and remembers the first step where something was not finite."""

    def __init__(self, device: torch.device, loss_sum: float, group: ProcessGroup = ALONE) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        start = loss_sum if group.is_main else 0.0
        self.total = torch.tensor(start, dtype=dtype, device=device)
        self.bad_step = torch.zeros((), dtype=torch.int64, device=device)
        self._group = group

    def update(self, loss: Tensor, count: int, step: int) -> None:
        """Add the mean `loss` of `count` images at optimiser step `step` (the first is 1)."""
        self.total += loss.to(self.total.dtype) * count
        self.check(loss, step)

    def check(self, value: Tensor, step: int) -> None:
        """Remember `step` if the scalar `value` is the first that is not finite."""
        newly_bad = ~torch.isfinite(value) & (self.bad_step == 0)
        self.bad_step += newly_bad * step

    def look(self) -> float:
        """The sum so far, over all processes; a CPU-GPU sync point.

        Raises:
            NotFiniteError: a loss or the norm of its gradient was not finite.
        """
        seen = [(int(self.bad_step.item()), float(self.total.item()))]
        if self._group.world_size > 1:
            seen = self._group.gather(seen[0])
        bad_steps = [step for step, _ in seen if step]
        if bad_steps:
            raise NotFiniteError(min(bad_steps))
        return math.fsum(total for _, total in seen)


def timed(batches: Iterable[Batch], stopwatch: Stopwatch) -> Iterator[tuple[float, Batch]]:
    """Batches with the seconds that each was waited for."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        with stopwatch.section("wait for data"):
            batch = next(iterator, None)
        if batch is None:
            return
        yield time.perf_counter() - start, batch
