"""The training loop: accumulation, rates, random streams, reports, and losses that go wrong."""

import copy
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import CPU
from vtrain.data.batches import Batch
from vtrain.errors import DivergedError
from vtrain.models.precision import Precision
from vtrain.system.reporter import SILENT, Reporter
from vtrain.training.ema import ModelEma
from vtrain.training.learning_rates import Schedule
from vtrain.training.loss_watch import LossWatch, NotFiniteError
from vtrain.training.losses import build_loss
from vtrain.training.state import TrainState
from vtrain.training.step import PhaseRun, StepReport, Trainer

CLASSES = 3
CONSTANT = Schedule("constant", total_steps=1000)


def draw_batches(sizes: Sequence[int], *, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches, start = [], 0
    for size in sizes:
        images = torch.randint(256, (size, 3, 2, 2), generator=generator, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (size,), generator=generator)
        batches.append(Batch(images, labels, torch.arange(start, start + size)))
        start += size
    return batches


def join(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    images = torch.cat([batch.inputs for batch in batches])
    return images, torch.cat([batch.labels for batch in batches])


def normalize(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.5


def build_model(*, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(12, CLASSES))


@dataclass
class Loop:
    """A trainer, and the one phase that it runs."""

    trainer: Trainer
    run: PhaseRun

    @property
    def state(self) -> TrainState:
        return self.trainer.state

    def train_epoch(self, batches: Iterable[Batch], sizes: Sequence[int]) -> Iterator[StepReport]:
        return self.trainer.train_epoch(self.run, batches, sizes)


def build_loop(
    model: nn.Module,
    *,
    lr: float = 1.0,
    accumulate: int = 1,
    clip_norm: float | None = None,
    loss: nn.Module | None = None,
    batch_mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ema: ModelEma | None = None,
    precision: str = "fp32",
    peak_lrs: Sequence[float] | None = None,
    state: TrainState | None = None,
    network: nn.Module | None = None,
    reporter: Reporter = SILENT,
) -> Loop:
    """A loop with plain SGD, whose steps are the learning rate times the gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    group = {"params": parameters, "stage": "head", "peak_lrs": list(peak_lrs or [lr])}
    trainer = Trainer(
        classifier=model,
        optimizer=torch.optim.SGD([group], lr=lr),
        precision=Precision(precision, CPU),
        loss=loss or build_loss(label_smoothing=0.0, class_weights=None, device=CPU),
        state=state or TrainState(),
        seed=5,
        accumulate=accumulate,
        clip_norm=clip_norm,
        batch_mix=batch_mix,
        ema=ema,
        reporter=reporter,
    )
    return Loop(trainer, PhaseRun(0, network or model, parameters, normalize, CONSTANT, 0))


def run_epoch(loop: Loop, batches: Sequence[Batch], *, first: int = 0) -> list[StepReport]:
    """Train on an epoch's batches from index `first` on; the reports of its steps."""
    return list(loop.train_epoch(batches[first:], [len(batch) for batch in batches]))


def flatten(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def flat_gradient(model: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    value = loss(model(normalize(images)), labels)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


# --- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize(
    ("sizes", "accumulate"),
    [
        ([4, 4, 4, 4], 2),
        ([4, 4, 4, 3], 2),  # the last batch is smaller
        ([4, 4, 5], 2),  # the last window is a single batch
        ([4, 4, 4, 4, 2], 3),  # the last window is shorter, its last batch smaller
        ([4, 3], 5),  # the epoch is shorter than a window
        ([4, 4, 3], 1),
    ],
)
def test_accumulated_step_is_that_of_one_large_batch(
    sizes: list[int], accumulate: int, weights: list[float] | None, precision: str
) -> None:
    loss = build_loss(label_smoothing=0.1, class_weights=weights, device=CPU)
    model, batches = build_model(), draw_batches(sizes)
    reference = copy.deepcopy(model)
    loop = build_loop(model, accumulate=accumulate, loss=loss)
    if precision == "fp16":  # the scale of the loss alone: the arithmetic stays exact
        loop.trainer.precision.scaler = torch.amp.GradScaler("cpu")
    expected = []
    for start in range(0, len(sizes), accumulate):
        images, labels = join(batches[start : start + accumulate])
        update = flatten(reference) - flat_gradient(reference, loss, images, labels)
        nn.utils.vector_to_parameters(update, reference.parameters())
        expected.append(update)
    found = [flatten(model) for _ in loop.train_epoch(batches, sizes)]
    assert len(found) == len(expected) == loop.state.step
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_window_is_clipped_as_a_whole() -> None:
    model, batches = build_model(), draw_batches([4, 4, 4])
    before = flatten(model)
    loss = build_loss(label_smoothing=0.0, class_weights=None, device=CPU)
    gradient = flat_gradient(model, loss, *join(batches))
    run_epoch(build_loop(model, accumulate=3, clip_norm=0.01), batches)
    torch.testing.assert_close(flatten(model), before - gradient * (0.01 / gradient.norm()))


def test_frozen_parameters_neither_move_nor_count_in_the_norm() -> None:
    model, batches = build_model(), draw_batches([6])
    linear = model[-1]  # type: ignore[index]
    linear.bias.requires_grad_(False)
    linear.bias.grad = torch.full_like(linear.bias, 1e6)
    bias, weight = linear.bias.detach().clone(), linear.weight.detach().clone()
    run_epoch(build_loop(model, clip_norm=0.01), batches)
    assert torch.equal(linear.bias, bias)
    assert float((linear.weight.detach() - weight).norm()) == pytest.approx(0.01, rel=1e-3)


# --- learning rates ------------------------------------------------------------------------------


class Sum(nn.Module):
    """One weight; with `MeanLogit` as the loss its gradient is 1, so a step is minus the rate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight.expand(len(images))


class MeanLogit(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mean()


def test_rate_of_each_step_is_that_of_the_schedule() -> None:
    model, batches = Sum(), draw_batches([2] * 8)
    loop = build_loop(model, peak_lrs=[7.0, 0.5], loss=MeanLogit())
    schedule = Schedule("linear", total_steps=8, warmup_steps=3)
    loop.run = replace(loop.run, index=1, first_step=100, schedule=schedule)
    loop.state.step = 100
    places, rates = [0.0], []
    for batch in batches:  # each an epoch of its own
        loop.state.batch = 0
        rates += [report.lr for report in run_epoch(loop, [batch])]
        places.append(float(model.weight.detach()))
    expected = [0.5 * factor for factor in (1 / 4, 2 / 4, 3 / 4, 1, 0.8, 0.6, 0.4, 0.2)]
    moved = [before - after for before, after in pairwise(places)]
    assert moved == pytest.approx(expected, rel=1e-4)
    assert rates == pytest.approx(expected)
    assert loop.state.step == 108


def test_accumulated_batches_count_as_one_step_of_the_schedule() -> None:
    model = Sum()
    loop = build_loop(model, accumulate=2, loss=MeanLogit())
    schedule = Schedule("step", total_steps=3, step_size=1, gamma=0.5)
    loop.run = replace(loop.run, schedule=schedule)
    run_epoch(loop, draw_batches([2] * 5))
    assert float(model.weight.detach()) == pytest.approx(-(1 + 0.5 + 0.25))


# --- random streams and resuming -----------------------------------------------------------------


def mix_randomly(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.rand(())
    soft = nn.functional.one_hot(labels, CLASSES).float()
    return images.lerp(images.flip(0), share), soft.lerp(soft.flip(0), share)


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_rest_of_an_epoch_continues_bit_for_bit(stop: int) -> None:
    batches = draw_batches([4, 4, 4, 4, 3])
    whole = build_loop(build_model(dropout=0.5), accumulate=2, batch_mix=mix_randomly)
    run_epoch(whole, batches)
    loop = build_loop(build_model(dropout=0.5), accumulate=2, batch_mix=mix_randomly)
    for _ in loop.train_epoch(iter(batches[:stop]), [len(batch) for batch in batches]):
        pass
    loop.trainer.sync()
    torch.manual_seed(99)  # what else happens in between must not matter
    model, state = loop.trainer.classifier, copy.deepcopy(loop.state)
    again = build_loop(model, accumulate=2, batch_mix=mix_randomly, state=state)
    run_epoch(again, batches, first=again.state.batch)
    assert torch.equal(flatten(whole.trainer.classifier), flatten(again.trainer.classifier))
    again.trainer.sync()
    assert again.state == whole.state
    assert (again.state.batch, again.state.step, again.state.image_count) == (5, 3, 19)


def test_dropout_differs_from_batch_to_batch_epoch_to_epoch_and_seed_to_seed() -> None:
    batch = draw_batches([64])[0]
    masks = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            masks.append(nn.functional.dropout(torch.ones(64), 0.5) > 0)
            return images.flatten(1)[:, :CLASSES]

    model = nn.Sequential(Spy(), nn.Linear(CLASSES, CLASSES))
    for seed, epoch, position in [(5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0), (5, 0, 0)]:
        loop = build_loop(model, state=TrainState(epoch=epoch, batch=position))
        loop.trainer.seed = seed
        list(loop.train_epoch([batch], [64] * (position + 1)))
    assert torch.equal(masks[0], masks[-1])
    for index, mask in enumerate(masks[:-1]):
        assert not any(torch.equal(mask, other) for other in masks[:index])


def test_epoch_puts_the_model_in_training_mode() -> None:
    model = build_model(dropout=0.5).eval()
    run_epoch(build_loop(model), draw_batches([4]))
    assert model.training


def test_soft_labels_of_the_mix_reach_the_loss() -> None:
    def all_to_class_0(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        target = torch.zeros(len(labels), CLASSES)
        target[:, 0] = 1
        return images, target

    model, batches = build_model(), draw_batches([8])
    before = flatten(model)
    loss = build_loss(label_smoothing=0.0, class_weights=None, device=CPU)
    images, labels = join(batches)
    gradient = flat_gradient(model, loss, images, torch.zeros_like(labels))
    run_epoch(build_loop(model, batch_mix=all_to_class_0), batches)
    torch.testing.assert_close(flatten(model), before - gradient)


# --- counting and reporting ----------------------------------------------------------------------


def test_loss_of_the_epoch_is_the_mean_over_images() -> None:
    model, batches = build_model(), draw_batches([4, 4, 2])
    images, labels = join(batches)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(normalize(images)), labels)
    loop = build_loop(model, lr=0.0, peak_lrs=[0.0])
    reports = run_epoch(loop, batches)
    assert loop.state.image_count == 10
    assert loop.state.loss_sum / 10 == pytest.approx(float(expected), rel=1e-6)
    assert reports[-1].loss == pytest.approx(float(expected), rel=1e-6)


def test_reports_come_with_consistent_state_after_every_step() -> None:
    loop = build_loop(build_model(), accumulate=2)
    seen: list[tuple[int, int, int]] = []
    batches = draw_batches([4, 4, 4, 4, 3])
    for report in loop.train_epoch(batches, [4, 4, 4, 4, 3]):
        seen.append((loop.state.step, loop.state.batch, report.images))
        assert loop.state.image_count == report.images
    assert seen == [(1, 2, 8), (2, 4, 16), (3, 5, 19)]


def test_wait_for_data_is_a_share_of_the_time() -> None:
    def slowly(batches: Sequence[Batch]) -> Iterator[Batch]:
        for batch in batches:
            time.sleep(0.05)
            yield batch

    loop = build_loop(build_model())
    reports = list(loop.train_epoch(slowly(draw_batches([4, 4])), [4, 4]))
    assert 0.1 <= reports[-1].waited < 5
    assert all(0.2 < report.waited / report.seconds <= 1 for report in reports)


def test_time_of_the_step_does_not_count_as_waiting() -> None:
    reports = []
    for report in build_loop(build_model()).train_epoch(draw_batches([4, 4]), [4, 4]):
        time.sleep(0.2)
        reports.append(report)
    assert reports[-1].waited < 0.2 <= reports[-1].seconds


def test_average_is_updated_after_every_step_with_its_number() -> None:
    model = Sum()
    ema = ModelEma(model, 0.9)
    loop = build_loop(model, loss=MeanLogit(), ema=ema, accumulate=2)
    run_epoch(loop, draw_batches([2] * 5))
    average, place = 0.0, 0.0
    for step in (1, 2, 3):
        place -= 1
        decay = (1 + step) / (10 + step)
        average = decay * average + (1 - decay) * place
    assert float(ema.model.state_dict()["weight"]) == pytest.approx(average)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_lowers_the_loss(precision: str) -> None:
    batches = draw_batches([4, 4])  # few enough to be told apart by 12 numbers
    loop = build_loop(build_model(), lr=0.5, precision=precision, clip_norm=1.0)
    losses = []
    for _ in range(40):
        run_epoch(loop, batches)
        losses.append(loop.state.loss_sum / loop.state.image_count)
        loop.state.batch = loop.state.image_count = 0
        loop.state.loss_sum = 0.0
        loop.state.epoch += 1
    assert losses[-1] < 0.5 * losses[0]


# --- losses that are not finite ------------------------------------------------------------------


def test_watch_names_the_first_bad_step_however_late_it_looks() -> None:
    watch = LossWatch(CPU, 0.0)
    for step, value in enumerate([1.0, 2.0, math.inf, 1.0, math.nan, 1.0], start=1):
        watch.update(torch.tensor(value), 4, step)
    for _ in range(2):
        with pytest.raises(DivergedError, match="not finite at step 3") as caught:
            watch.look()
    assert "optim.lr" in (caught.value.hint or "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_watch_sees_every_kind_of_bad_value(value: float) -> None:
    watch = LossWatch(CPU, 0.0)
    watch.update(torch.tensor(value), 1, 17)
    with pytest.raises(DivergedError, match="step 17"):
        watch.look()


def test_watch_sums_small_losses_exactly() -> None:
    watch = LossWatch(CPU, 1e7)
    for step in range(1, 1001):
        watch.update(torch.tensor(0.125, dtype=torch.bfloat16), 3, step)
    assert watch.look() == 1e7 + 375  # float32 would lose half of it


def test_bad_loss_in_the_middle_of_a_window_is_found_at_its_step() -> None:
    class BreaksOnce(nn.Module):
        calls = 0

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            self.calls += 1
            loss = nn.functional.cross_entropy(logits, labels)
            return loss * math.nan if self.calls == 3 else loss

    loop = build_loop(build_model(), accumulate=2, loss=BreaksOnce())
    reports: list[StepReport] = []
    with pytest.raises(DivergedError, match="step 2"):
        reports.extend(loop.train_epoch(draw_batches([2] * 6), [2] * 6))
    assert len(reports) == 1


def test_sync_before_the_first_epoch_does_nothing() -> None:
    loop = build_loop(build_model(), state=TrainState(loss_sum=3.5))
    loop.trainer.sync()
    assert loop.state.loss_sum == 3.5


# --- memory that runs out ------------------------------------------------------------------------


class Told(Reporter):
    """Remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class SmallMemory(nn.Module):
    """A model that fails on more than `limit` images, in the forward or in the backward pass."""

    def __init__(self, model: nn.Module, limit: int, *, backward: bool) -> None:
        super().__init__()
        self.model, self.limit, self.backward = model, limit, backward

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        if len(images) > self.limit:
            if not self.backward:
                self._fail()
            logits.register_hook(lambda _: self._fail())  # type: ignore[no-untyped-call]
        return logits

    def _fail(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("limit", "splits"), [(4, 2), (3, 4), (2, 4)])
def test_out_of_memory_goes_on_in_parts_with_the_same_step(
    limit: int, splits: int, backward: bool
) -> None:
    batches = draw_batches([8, 8, 8, 7, 8])
    plain, model, told = build_loop(build_model(), accumulate=2), build_model(), Told()
    network = SmallMemory(model, limit, backward=backward)
    tight = build_loop(model, accumulate=2, network=network, reporter=told)
    reports = [run_epoch(loop, batches) for loop in (plain, tight)]
    assert torch.allclose(flatten(plain.trainer.classifier), flatten(model), atol=1e-6)
    for one, other in zip(*reports, strict=True):
        assert (one.images, one.lr) == (other.images, other.lr)
        assert one.loss == pytest.approx(other.loss)
    assert tight.state.splits == splits
    assert told.warnings[-1].startswith(
        f"out of memory: going on with every batch in {splits} parts"
    )


def test_next_attempt_does_not_run_beside_the_graph_of_the_one_that_failed() -> None:
    class Mark:
        pass

    class Fails(nn.Module):
        """Runs out of memory in its first backward pass; looks then whether that graph is left."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.first: weakref.ref[Mark] | None = None
            self.was_left: list[bool] = []

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images)
            if self.first is None:
                assert logits.grad_fn is not None
                mark = Mark()
                logits.grad_fn.metadata["mark"] = mark  # type: ignore[index]
                self.first = weakref.ref(mark)
                logits.register_hook(self._fail)  # type: ignore[no-untyped-call]
            else:
                self.was_left.append(self.first() is not None)
            return logits

        def _fail(self, _: Tensor) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    model = build_model()
    network = Fails(model)
    run_epoch(build_loop(model, network=network), draw_batches([8]))
    assert network.was_left == [False, False]


def test_memory_that_is_too_small_for_two_images_is_an_error() -> None:
    model = build_model()
    loop = build_loop(model, network=SmallMemory(model, 1, backward=False))
    with pytest.raises(torch.OutOfMemoryError):
        run_epoch(loop, draw_batches([8, 8]))


def test_other_errors_of_torch_are_not_taken_for_too_little_memory() -> None:
    loop = build_loop(build_model(), network=nn.Linear(5, CLASSES))
    with pytest.raises(RuntimeError, match="shape"):
        run_epoch(loop, draw_batches([8]))
    assert loop.state.splits == 1


# --- steps that are left out ---------------------------------------------------------------------


def build_normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, CLASSES))


def test_step_that_the_scaler_leaves_out_leaves_no_trace_in_batch_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradients of the second step overflow; its statistics have been gathered by then."""
    batches = draw_batches([4, 4, 4])
    expected = build_normed()
    loop = build_loop(expected, lr=0.1, precision="fp16")
    run_epoch(loop, [batches[0]])
    known = copy.deepcopy(expected.state_dict())

    model = build_normed()
    loop = build_loop(model, lr=0.1, precision="fp16")
    truly_step, norms = loop.trainer.precision.step, iter([1.0, math.inf])

    def step(*arguments: object, **named: object) -> Tensor:
        norm = next(norms)
        if norm == math.inf:
            loop.trainer.optimizer.zero_grad()
            return torch.tensor(norm)
        return truly_step(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.trainer.precision, "step", step)
    run_epoch(loop, batches[:2])
    assert loop.state.step == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, known[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_left_out_step_changes_nothing_but_the_count(accumulate: int) -> None:
    batches = draw_batches([4] * (3 * accumulate))
    model = build_normed()
    first, second, third = (
        batches[place * accumulate : (place + 1) * accumulate] for place in range(3)
    )
    loop = build_loop(model, lr=0.1, accumulate=accumulate, state=TrainState(left_out=[2]))
    reports = run_epoch(loop, batches)
    assert (loop.state.step, loop.state.batch) == (3, 3 * accumulate)
    assert [report.images for report in reports] == [4 * accumulate, 4 * accumulate, 8 * accumulate]
    other = build_normed()
    again = build_loop(other, lr=0.1, accumulate=accumulate)
    # Without dropout nothing depends on the place of a batch.
    run_epoch(again, [*first, *third])
    assert torch.equal(flatten(model), flatten(other))
    assert loop.state.loss_sum == again.state.loss_sum
    assert len(second) == accumulate


def test_bad_step_knows_its_images() -> None:
    batches = draw_batches([4, 3, 2, 4])
    model = build_model()
    loop = build_loop(model, accumulate=2)
    with torch.no_grad():
        weight = next(model.parameters())
        weight[0, 0] = math.nan
    with pytest.raises(NotFiniteError) as caught:
        run_epoch(loop, batches)
    assert (caught.value.step, caught.value.positions) == (1, list(range(7)))
