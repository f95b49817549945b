"""The training step: one straight path for every precision, device and number of processes."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vtrain.data.batches import Batch
from vtrain.models.precision import Precision
from vtrain.system.machine import seed_everything
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import SILENT, Reporter
from vtrain.training.ema import ModelEma
from vtrain.training.learning_rates import Schedule, head_learning_rate, set_learning_rates
from vtrain.training.loss_watch import LossWatch, NotFiniteError
from vtrain.training.memory import attempts
from vtrain.training.state import TrainState
from vtrain.training.stopwatch import Stopwatch

# How often the loss is looked at on an accelerator; each look waits for the device.
SYNC_EVERY = 25
# Separates the stream of random numbers of the training steps from the others drawn from a seed.
STEP_STREAM = 1


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the display shows after an optimizer step.

    `images` were trained on in this epoch so far. `loss` is their mean where it was looked at,
    None in between. `waited` are the seconds of this epoch spent waiting for the loader, of
    `seconds` in all.
    """

    images: int
    loss: float | None
    lr: float
    waited: float
    seconds: float


@dataclass(frozen=True, slots=True)
class PhaseRun:
    """What changes from phase to phase of a training.

    `model` gives the logits `[B, C]` from what `prepare` makes of a batch's inputs, on the device:
    the classifier, or its trained part where the inputs are stored features. With several processes
    it is what averages gradients over them (DistributedDataParallel). `parameters` are those that
    are trained. `schedule` gives the factor of the learning rates of phase `index` from the steps
    since `first_step`.
    """

    index: int
    model: nn.Module
    parameters: Sequence[nn.Parameter]
    prepare: Callable[[Tensor], Tensor]
    schedule: Schedule
    first_step: int


@dataclass(slots=True)
class Trainer:
    """A classifier, its optimizer, and how a step is taken.

    With several `processes` each gets its part of every batch; all call the methods together.
    """

    classifier: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    loss: nn.Module
    state: TrainState
    seed: int
    accumulate: int = 1
    clip_norm: float | None = None
    batch_mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    ema: ModelEma | None = None
    processes: Processes = ALONE
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    reporter: Reporter = SILENT
    watch: LossWatch | None = None  # while an epoch runs

    def train_epoch(
        self, run: PhaseRun, batches: Iterable[Batch], batch_sizes: Sequence[int]
    ) -> Iterator[StepReport]:
        """Train on the rest of the current epoch, from `state.batch` on.

        `batch_sizes` are those of the whole epoch, in order, over all processes. A report is
        yielded after every optimizer step, when the state is consistent and can be saved.

        Raises:
            NotFiniteError: the loss is no longer finite.
        """
        state, waited, started = self.state, 0.0, time.perf_counter()
        device = self.precision.device
        # For each epoch: validation may have left it in evaluation mode. What is frozen stays so.
        self.classifier.train()
        self.watch = LossWatch(device, state.loss_sum, self.processes)
        for window, wait in self.windows(batches, len(batch_sizes)):
            waited += wait
            sizes = batch_sizes[state.batch : state.batch + len(window)]
            if state.step + 1 in state.left_out:
                # Its images are loaded and passed over: the steps to come see theirs.
                state.step += 1
            else:
                self.take_step(run, window, images=sum(sizes))
                state.image_count += sum(sizes)
            state.batch += len(window)
            loss = None
            if self.looks_now(last=state.batch == len(batch_sizes)):
                self.sync()
                loss = state.loss_sum / max(1, state.image_count)  # 0 where all were left out
            seconds = time.perf_counter() - started
            yield StepReport(
                state.image_count, loss, head_learning_rate(self.optimizer), waited, seconds
            )
        self.watch = None  # the last step has looked

    def take_step(self, run: PhaseRun, window: Sequence[Batch], *, images: int) -> None:
        """One optimizer step on a window of batches, which have `images` over all processes."""
        state, step = self.state, self.state.step + 1
        # fp16's scaler leaves a step out that overflows; BatchNorm has seen its images by then.
        may_overflow = self.precision.name == "fp16"
        buffers = [(each, each.clone()) for each in self.classifier.buffers() if may_overflow]
        for attempt in self.attempts(window):  # one; more, in smaller parts, as memory runs out
            with attempt:
                losses = []
                for inputs, labels, is_last in self.micro_batches(run, window):
                    with self.exchange(run.model, is_last):
                        with self.stopwatch.section("forward"), self.precision.autocast():
                            loss = self.loss(run.model(inputs), labels)  # [B, C], [B] or [B, C]
                        with self.stopwatch.section("backward"):
                            # A mean over the images of the window; DDP averages the gradients of
                            # the processes, which is their sum divided by world_size.
                            share = len(labels) / images * self.processes.world_size
                            self.precision.backward(loss * share)
                    losses.append((loss.detach(), len(labels)))
            # Else they would hold the tensors of an attempt that failed, beside those of the next.
            inputs = labels = loss = None  # type: ignore[assignment]
        watch = self.watch
        assert watch is not None
        # Only now: an attempt that ran out of memory must not count.
        for mean, count in losses:
            watch.update(mean, count, step)
        watch.note_images(step, [batch.positions for batch in window])
        with self.stopwatch.section("optimizer"):
            # Written before every step: resume needs no state of a scheduler.
            set_learning_rates(self.optimizer, run.index, run.schedule(state.step - run.first_step))
            norm = self.precision.step(self.optimizer, run.parameters, clip_norm=self.clip_norm)
            if may_overflow:
                for buffer, before in buffers:
                    buffer.copy_(torch.where(torch.isfinite(norm), buffer, before))
            else:
                watch.check(norm, step)
            # Within the time of the optimizer, whose weights it follows.
            if self.ema is not None:
                self.ema.update(self.classifier, step)
        state.step += 1

    def windows(
        self, batches: Iterable[Batch], batches_in_epoch: int
    ) -> Iterator[tuple[list[Batch], float]]:
        """The batches of each step and the seconds that they were waited for.

        The last window of an epoch may be shorter: its gradients are still a mean over images.
        """
        iterator = iter(batches)
        while True:
            start, left = time.perf_counter(), batches_in_epoch - self.state.batch
            with self.stopwatch.section("wait for data"):
                # Also after the last one: a loader tidies up when it is asked for more.
                window = list(islice(iterator, max(1, min(self.accumulate, left))))
            if not window:
                return
            yield window, time.perf_counter() - start

    def attempts(self, window: Sequence[Batch]) -> Iterator[AbstractContextManager[None]]:
        """See `memory.attempts`."""
        largest = max(len(batch.labels) for batch in window)
        # Several processes would have to agree on smaller parts.
        batch = largest if self.processes.world_size == 1 else None
        return attempts(self.state, self.optimizer, batch=batch, reporter=self.reporter)

    def micro_batches(
        self, run: PhaseRun, window: Sequence[Batch]
    ) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Inputs and labels to compute at once, on the device, mixed; whether they are the last.

        A micro-batch is a batch, or a part of one where memory has run out.
        """
        state, device = self.state, self.precision.device
        # Processes draw different numbers; one alone draws what it drew before there were others.
        own = (self.processes.rank,) if self.processes.world_size > 1 else ()
        for place, batch in enumerate(window):
            # Dropout and mixing draw from a stream that depends on the position alone, so that a
            # resumed run draws what the uninterrupted one would have drawn.
            seed_everything(self.seed, STEP_STREAM, state.epoch, state.batch + place, *own)
            with self.stopwatch.section("transfer"):
                inputs = run.prepare(batch.inputs)
                labels = batch.labels.to(device, non_blocking=True)
                if self.batch_mix is not None:
                    inputs, labels = self.batch_mix(inputs, labels)
            parts = zip(
                inputs.tensor_split(state.splits), labels.tensor_split(state.splits), strict=True
            )
            for number, (part, targets) in enumerate(parts, start=1):
                yield part, targets, place + 1 == len(window) and number == state.splits

    def exchange(self, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Leave the exchange of gradients between processes to the last micro-batch of a step."""
        if is_last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def looks_now(self, *, last: bool) -> bool:
        """Whether to look at the loss after this step."""
        # On one CPU there is nothing to wait for.
        on_cpu = self.precision.device.type == "cpu" and self.processes.world_size == 1
        return last or on_cpu or self.state.step % SYNC_EVERY == 0

    def sync(self) -> None:
        """Bring `state.loss_sum` up to date before the state is saved; a CPU-GPU sync point.

        Raises:
            NotFiniteError: the loss is no longer finite.
        """
        if self.watch is None:
            return
        try:
            self.state.loss_sum = self.watch.look()
        except NotFiniteError:
            self.watch = None  # what follows has nothing to do with this
            raise
