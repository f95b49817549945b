"""The sum of the losses of an epoch, and the first step whose loss was not finite."""

import math

import torch
from torch import Tensor

from vtrain.errors import DivergedError
from vtrain.system.processes import ALONE, Processes


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


class LossWatch:
    """Sums losses on the device and remembers the first step where something was not finite.

    Nothing here waits for the device but `look`.
    """

    def __init__(self, device: torch.device, loss_sum: float, processes: Processes = ALONE) -> None:
        # Thousands of float32 losses would add up to few exact digits; MPS has no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # A resumed epoch goes on from its sum, which is that of all processes: one alone has it.
        start = loss_sum if processes.is_main else 0.0
        self.total = torch.tensor(start, dtype=dtype, device=device)
        self.bad_step = torch.zeros((), dtype=torch.int64, device=device)
        self._processes = processes
        self._images: dict[int, list[Tensor]] = {}  # by step, since the last look

    def update(self, loss: Tensor, count: int, step: int) -> None:
        """Add the mean `loss` of `count` images at optimizer step `step` (the first is 1)."""
        self.total += loss.to(self.total.dtype) * count
        self.check(loss, step)

    def check(self, value: Tensor, step: int) -> None:
        """Remember `step` if the scalar `value` is the first that is not finite."""
        # No `if`: that would wait for the device. The first bad step is added to a zero, once.
        newly_bad = ~torch.isfinite(value) & (self.bad_step == 0)
        self.bad_step += newly_bad * step

    def note_images(self, step: int, positions: list[Tensor]) -> None:
        """Keep the positions of a step's images until the next `look`, which may have to name it.

        After the loss of step n is known to be bad, n + 25 steps may have been taken.
        """
        self._images[step] = positions

    def look(self) -> float:
        """The sum so far, over all processes; a CPU-GPU sync point.

        Raises:
            NotFiniteError: a loss or the norm of its gradient was not finite.
        """
        seen = [(int(self.bad_step.item()), float(self.total.item()))]
        if self._processes.world_size > 1:
            seen = self._processes.gather(seen[0])
        bad_steps = [step for step, _ in seen if step]
        if bad_steps:
            # The first of all processes; they have all gathered the same list, so all raise.
            error = NotFiniteError(min(bad_steps))
            own = torch.cat(self._images.get(error.step, [torch.empty(0)])).tolist()
            gathered = self._processes.gather(own)
            error.positions = [int(each) for part in gathered for each in part]
            raise error
        self._images.clear()
        # Exact, and so the same in any order of the processes.
        return math.fsum(total for _, total in seen)
