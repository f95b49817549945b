"""When a run stops: after a signal, agreed on by all processes, or early for want of progress."""

from collections.abc import Callable

import torch
from torch import Tensor

from vtrain.runs.plan import FitPlan
from vtrain.system.processes import Processes
from vtrain.system.signals import StopRequest
from vtrain.training.state import TrainState


class StopVote:
    """Whether to stop, agreed on by all processes at the same step: a signal may reach one alone.

    The question of one step is answered at the next, so that nobody waits for the answer.
    """

    def __init__(self, processes: Processes, request: StopRequest) -> None:
        self._processes, self._request = processes, request
        self._asked: tuple[Tensor, Callable[[], None]] | None = None

    def is_decided(self) -> bool:
        """To be called by all processes after every step."""
        if self._processes.world_size == 1:
            return self._request.received is not None
        votes = torch.tensor(int(self._request.received is not None))
        asked, self._asked = self._asked, (votes, self._processes.start_sum(votes))
        if asked is None:
            return False
        asked[1]()
        return bool(asked[0].item())

    def is_decided_alone(self) -> bool:
        """Between batches that are not trained on.

        Several processes have different numbers of these: they stop after the next step instead.
        """
        return self._processes.world_size == 1 and self._request.received is not None


def has_stopped_early(plan: FitPlan, state: TrainState) -> bool:
    """Whether the last phase has gone `train.early_stop` epochs without a better model.

    Counted in the last phase alone: a probe that has settled is what the next phase is for.
    """
    patience = plan.config.train.early_stop
    before_last = sum(phase.epochs for phase in plan.phases[:-1])
    since = state.epoch - max(state.best_epoch, before_last)
    return patience is not None and since >= patience
