"""One step path for fp32, bf16 and fp16: autocast and loss scaling, switched on or off."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vtrain.errors import UsageError
from vtrain.system.machine import has_bf16_instructions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(name: str, device: torch.device, *, depthwise: bool) -> str:
    """Resolve `auto` to the fastest precision that is safe on `device`.

    CUDA: bf16 where the hardware has it, else fp16. CPU with bf16 instructions: bf16 for dense
    convolutions and transformers, fp32 for depthwise ones (bf16 makes their training slower).
    Everything else: fp32.

    Raises:
        UsageError: the precision cannot run on the device.
    """
    if name == "fp16" and device.type == "cpu":
        raise UsageError(
            "train.precision: fp16 was asked for on the CPU, which trains in fp32 or bf16",
            "set train.precision=auto",
        )
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if has_bf16_instructions(device) else "fp16"
    return "bf16" if has_bf16_instructions(device) and not depthwise else "fp32"


def choose_inference_precision(name: str, device: torch.device, *, trained: str = "auto") -> str:
    """Resolve `auto` to the fastest precision that is safe where nothing is trained.

    `trained` is what the config of the model's run says: a precision named there is taken where
    `device` has it in hardware. CUDA: bf16 where the hardware has it, else fp16. CPU with bf16
    instructions: bf16 for every network, other than in training. Everything else: fp32.

    Raises:
        UsageError: the precision is unknown or cannot run on the device.
    """
    if name != "auto" and name not in DTYPES:
        raise UsageError(f"precision {name!r} is unknown, expected auto, fp32, bf16 or fp16")
    if name == "fp16" and device.type == "cpu":
        raise UsageError(
            "precision fp16 was asked for on the CPU, which computes in fp32 or bf16",
            "leave --precision out, or give --precision bf16",
        )
    if name != "auto":
        return name
    has_bf16 = has_bf16_instructions(device)
    in_hardware = {"fp32": True, "bf16": has_bf16, "fp16": device.type == "cuda"}
    if in_hardware.get(trained, False):
        return trained
    if has_bf16:
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


class Precision:
    """How a forward pass is cast and how a loss becomes an optimiser step."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        # Only fp16's narrow range needs loss scaling (Micikevicius et al. 2018, arXiv:1710.03740).
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for a forward pass and its loss."""
        return torch.autocast(
            self.device.type, dtype=DTYPES[self.name], enabled=self.name != "fp32"
        )

    def full(self) -> AbstractContextManager[Any]:
        """The context for what shall compute in float32, also where autocast is on around it."""
        return torch.autocast(self.device.type, enabled=False)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` (a scalar) to those already there."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        clip_norm: float | None,
    ) -> Tensor:
        """One optimiser step on the gradients gathered so far, which are cleared afterwards.

        Returns the L2 norm of all gradients before clipping, a scalar on the device. It is not
        finite where fp16 overflowed, in which case the scaler leaves the step out.
        """
        # The norm must be that of the true gradients, so scaling is undone before the clip.
        self.scaler.unscale_(optimizer)
        limit = clip_norm if clip_norm is not None else math.inf
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm
