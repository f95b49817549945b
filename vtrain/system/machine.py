"""The machine a command runs on: device, precision support, seeds, versions."""

import ctypes
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtrain.errors import ConfigError, ResourceError, UsageError, VtrainError

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pydantic", "safetensors", "typer")
# Words of the allocators of CUDA and MPS, of the CPU (two), and of CUDA's libraries.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "status_alloc_failed",
)


# From glibc's malloc.h. Larger thresholds are refused by some versions, and cost memory.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 * 2**20
_MALLOC_SETTINGS = {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


def find_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: the device does not exist on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|cuda|mps)(:(0|[1-9]\d?))?", name):
        raise UsageError(f"device {name!r} is unknown, expected auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device {name} was asked for, but torch {torch.__version__} finds no CUDA device",
            "use device auto or cpu, or check the driver with: vtrain env",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name} was asked for, but there are only {torch.cuda.device_count()}",
            f"use cuda:0 to cuda:{torch.cuda.device_count() - 1}",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            "device mps was asked for, but this machine has none",
            "use device auto or cpu",
        )
    return device


def has_bf16_instructions(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware on `device`, not emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # x86 names on one kernel, Arm's on the other
    return any(f" {flag}" in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def seed_everything(*parts: int) -> None:
    """Seed torch's generators on every device from a tuple of integers such as (seed, step)."""
    # Distinct tuples must give unrelated streams, so the parts are hashed, not added.
    torch.manual_seed(mix_seed(*parts))


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, the same on every machine and in every process.

    SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) applied part by part.
    """
    state = 0x9E3779B97F4A7C15
    mask = (1 << 64) - 1
    for part in parts:
        state = (state + (part & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


def describe_environment() -> dict[str, Any]:
    """Versions and devices, as `env.json` and `vtrain env` show them."""
    cuda_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(cuda_count))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "vtrain": find_version("vtrain"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: find_version(name) for name in PACKAGES},
        "cpu_cores": count_cores(),
        "threads": torch.get_num_threads(),
        "bf16": has_bf16_instructions(torch.device("cpu")),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": devices,
        "executable": sys.executable,
        "weights_folder": str(Path(torch.hub.get_dir()) / "checkpoints"),
    }


def find_version(name: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def place_model(model: nn.Module, device: torch.device) -> None:
    """Move a model to `device`, its convolution weights channels last."""
    model.to(device)
    model.to(memory_format=torch.channels_last)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for later, in pieces of up to 32 MiB.

    Each step frees its activations and the next one allocates the same again. By default glibc
    gives them back to the kernel, which clears and maps every page anew: a tenth of a training
    step on a CPU and more. Other C libraries are left alone, and so is what the user has set.
    """
    if sys.platform != "linux" or _MALLOC_SETTINGS & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found too little memory, on whatever device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY)


def explain_torch_error(error: RuntimeError | ValueError) -> VtrainError | None:
    """What the user can do about an error of torch, where that is known."""
    text = str(error)
    if is_out_of_memory(error):
        first_line = text.partition("\n")[0]
        return ResourceError(
            f"out of memory: {first_line}",
            "lower data.batch_size (and raise train.accumulate by the same factor), "
            "or choose a smaller backbone",
        )
    if "more than 1 value per channel" in text:
        return ConfigError(
            "a batch of one image cannot train BatchNorm",
            "raise data.batch_size, or set model.batch_norm=frozen",
        )
    return None
