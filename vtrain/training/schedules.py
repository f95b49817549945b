"""Learning-rate schedules: pure functions of the optimizer step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Shape = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor between 0 and 1 for every optimizer step of a phase.

    `total_steps` and `warmup_steps` count from the phase's first step; during warm-up the factor
    rises linearly to 1, then `name` shapes the rest: `cosine` (Loshchilov and Hutter 2017,
    arXiv:1608.03983), `linear` to 0, `constant`, or `step` (times `gamma` every `step_size` steps).
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    step_size: int = 1
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        """The factor for optimizer step `step`, the first being 0."""
        # From above 0, so that the first step learns, to below 1, so that the peak comes after it.
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        after = step - self.warmup_steps
        if self.name == "step":
            return self.gamma ** (after // self.step_size)
        # The last step still moves: progress reaches 1 one step after the end.
        progress = min(1.0, after / max(1, self.total_steps - self.warmup_steps))
        return SHAPES[self.name](progress)


SHAPES: dict[str, Shape] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "constant": lambda _: 1.0,
}
