"""The head of a results table: when, on what hardware, with which versions."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks.measure import ROOT, Settings, run_process

PACKAGES = ("torch", "torchvision", "pillow")
PEERS = ("torch", "fastai", "timm", "ultralytics", "lightly-train")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def describe_machine(settings: Settings) -> str:
    """A paragraph of Markdown."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    load = os.getloadavg()[0]
    lines = [
        f"Run of {now}, vtrain commit {_commit()}.",
        f"Machine: {_cores()} cores of {_cpu_model()}, bf16 instructions: {_bf16()}, "
        f"{_memory_gib():.0f} GiB; load at the start {load:.1f}.",
        f"Versions: CPython {platform.python_version()}, {packages}.",
        f"Rounds: {settings.rounds}, alternated; median and spread."
        + (" **Quick form: the figures mean nothing.**" if settings.quick else ""),
    ]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        lines.append(f"**OMP_NUM_THREADS={threads} was set: not all cores were used.**")
    if settings.peers is not None:
        lines.append(f"Other tools: {_peer_versions(settings.peers)}.")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(absent)"


def _peer_versions(peers: Path) -> str:
    code = f"from importlib.metadata import version as v; print([v(n) for n in {PEERS!r}])"
    found = run_process([peers / "bin/python", "-c", code], check=False)
    if found.code:
        return "unknown"
    numbers = found.stdout.strip().strip("[]").replace("'", "").split(", ")
    return ", ".join(f"{name} {number}" for name, number in zip(PEERS, numbers, strict=True))


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _bf16() -> str:
    return "yes" if any(f" {flag}" in _cpu_info() for flag in BF16_FLAGS) else "no"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
