"""What a step takes of memory, how many images fit, and smaller parts where it runs out."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from vtrain.models.precision import Precision
from vtrain.system.machine import is_out_of_memory
from vtrain.system.reporter import Reporter
from vtrain.training.state import TrainState

SMALLEST = 2  # BatchNorm cannot train on one image
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # on Linux
STATES_PER_WEIGHT = 2  # AdamW keeps two moments for each weight that it trains


class _Attempt:
    """A context that swallows `out of memory` where smaller parts can be tried."""

    def __init__(self, *, can_halve: bool) -> None:
        self.can_halve, self.failed = can_halve, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        self.failed = self.can_halve and isinstance(error, RuntimeError) and is_out_of_memory(error)
        return self.failed


def attempts(
    state: TrainState, optimizer: torch.optim.Optimizer, *, batch: int | None, reporter: Reporter
) -> Iterator[AbstractContextManager[None]]:
    """Contexts to compute the gradients of a step in, one after the other until one is enough.

    Where memory runs out in one, its gradients are thrown away and batches of `batch` images are
    computed in twice as many parts (`state.splits`), for the rest of the run. None for `batch`:
    that cannot be done.
    """
    while True:
        # A part of one image cannot train BatchNorm.
        can_halve = batch is not None and batch // (2 * state.splits) >= SMALLEST
        attempt = _Attempt(can_halve=can_halve)
        yield attempt
        if not attempt.failed:
            return
        # Behind the handler, whose error holds on to the tensors of the step.
        state.splits *= 2
        optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        reporter.warn(
            f"out of memory: going on with every batch in {state.splits} parts, "
            "whose gradients are added up"
        )


def find_batch_size(fits: Callable[[int], bool], wanted: int) -> int:
    """The largest of `wanted`, a half of it, a quarter and so on that fits; at least 2."""
    size = wanted
    while size > SMALLEST and not fits(size):
        size = max(SMALLEST, size // 2)
    return size


def can_train(classifier: nn.Module, size: int, *, image_size: int, precision: Precision) -> bool:
    """Whether forward and backward pass of `size` images fit next to the optimiser's state.

    Works on a copy of the classifier with its freeze as it is; nothing of it changes.
    """
    try:
        _take_step(copy.deepcopy(classifier), size, image_size, precision)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if precision.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _take_step(model: nn.Module, size: int, image_size: int, precision: Precision) -> None:
    device = precision.device
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = torch.empty(trained * STATES_PER_WEIGHT, device=device)
    images = torch.zeros(size, 3, image_size, image_size, device=device)
    model.train()
    with precision.autocast():
        logits = model(images.to(memory_format=torch.channels_last))
    logits.float().sum().backward()
    del state


@contextmanager
def saved_activations(module: nn.Module) -> Iterator[list[int]]:
    """Yields a list that gets the bytes that a forward pass keeps for the backward pass.

    Each storage counts once, and those of the module's own tensors not at all.
    """
    tensors = (*module.parameters(), *module.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept: dict[int, int] = {}
    total: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would be held by the graph that it is part of

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield total
    total.append(sum(kept.values()))


class PeakMemory:
    """The most memory that was in use since this was made, in bytes.

    On CUDA what torch has allocated on the device. Elsewhere what this process holds in main
    memory (its largest resident set), which Linux alone tells for a part of its life.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):
            CLEAR_REFS.write_text("5", encoding="ascii")  # proc(5): resets VmHWM
            self._reset = True

    def read(self) -> int | None:
        """The peak so far, None where it cannot be had."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if not self._reset:
            return None
        with suppress(OSError, ValueError, IndexError):
            for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None
