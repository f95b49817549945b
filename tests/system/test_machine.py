"""Devices, seeds, signals, and what torch's errors mean."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.tiny import CPU
from vtrain.errors import ExitCode, UsageError
from vtrain.system.machine import (
    describe_environment,
    explain_torch_error,
    find_device,
    has_bf16_instructions,
    mix_seed,
    place_model,
    seed_everything,
)

# --- devices -------------------------------------------------------------------------------------


def set_devices(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cuda - 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(2, True, "cuda:1"), (1, False, "cuda:0"), (0, True, "mps"), (0, False, "cpu")],
)
def test_auto_takes_the_fastest(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str
) -> None:
    set_devices(monkeypatch, cuda=cuda, mps=mps)
    assert find_device("auto") == find_device() == torch.device(expected)


def test_named_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, cuda=2, mps=True)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "mps"):
        assert find_device(name) == torch.device(name)


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match=f"device {name} was asked for, .* no CUDA") as caught:
            find_device(name)
        assert "vtrain env" in (caught.value.hint or "")


def test_cuda_number_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, cuda=2)
    with pytest.raises(UsageError, match=r"device cuda:2 was asked for, but there are only 2") as e:
        find_device("cuda:2")
    assert e.value.hint == "use cuda:0 to cuda:1"


def test_mps_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch)
    with pytest.raises(UsageError, match="device mps was asked for, but this machine has none"):
        find_device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "CUDA", "meta", "xpu", "hpu:0"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(
        UsageError, match="is unknown, expected auto, cpu, cuda, cuda:N or mps"
    ) as e:
        find_device(name)
    assert e.value.exit_code == ExitCode.USAGE
    assert repr(name) in e.value.message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx2", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx_notbf16", False),
        ("", False),
    ],
)
def test_bf16_on_the_cpu_is_read_from_its_flags(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: flags)
    assert has_bf16_instructions(CPU) is expected


def test_no_bf16_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert not has_bf16_instructions(CPU)
    assert not has_bf16_instructions(torch.device("mps"))


def test_emulated_bf16_on_cuda_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def supported(*, including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not has_bf16_instructions(torch.device("cuda"))
    assert asked == [False]


def test_placed_model_is_channels_last_and_keeps_its_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 4, 4))
    before = list(model.parameters())
    place_model(model, CPU)
    weight = model[0].weight
    assert isinstance(weight, torch.Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))


# --- seeds ---------------------------------------------------------------------------------------

GOLDEN = 0x9E3779B97F4A7C15


def test_mixed_seeds_are_those_of_splitmix64() -> None:
    # The generator's first outputs from seed 0, of which 63 bits are kept.
    assert mix_seed(-GOLDEN) == 0xE220A8397B1DCDAF >> 1
    assert mix_seed(0) == 0x6E789E6AA1B965F4 >> 1
    assert mix_seed(GOLDEN) == 0x06C45D188009454F >> 1


def test_near_tuples_give_unrelated_seeds() -> None:
    tuples = [(a, b, c) for a in range(12) for b in range(12) for c in range(12)]
    tuples += [(a, b) for a in range(12) for b in range(12)]  # type: ignore[misc]
    seeds = [mix_seed(*parts) for parts in tuples]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    ones = sum(bin(seed).count("1") for seed in seeds) / len(seeds)
    assert 31 < ones < 32  # half of 63 bits


def test_order_and_length_of_the_parts_count() -> None:
    assert mix_seed(1, 2) != mix_seed(2, 1)
    assert len({mix_seed(1), mix_seed(1, 0), mix_seed(1, 0, 0), mix_seed(0, 1)}) == 4


def test_large_and_negative_parts_are_taken() -> None:
    assert mix_seed(2**64 + 5) == mix_seed(5)
    assert mix_seed(-1) == mix_seed(2**64 - 1)
    torch.manual_seed(mix_seed(2**32 - 1, 10**18))


def test_seeding_repeats_the_stream_and_parts_change_it() -> None:
    def draw(*parts: int) -> list[float]:
        seed_everything(*parts)
        values: list[float] = torch.rand(4).tolist()
        return values

    first = draw(0, 1)
    torch.rand(7)
    assert draw(0, 1) == first
    assert draw(1, 0) != first
    assert draw(0, 2) != first


# --- torch's errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
            "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "data.batch_size",
        ),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
            "out of memory: MPS backend",
            "data.batch_size",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
            "out of memory: [enforce fail] DefaultCPUAllocator",
            "train.accumulate",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "out of memory: CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
            "data.batch_size",
        ),
    ],
)
def test_resource_that_ran_out_is_named(error: RuntimeError, message: str, hint: str) -> None:
    explained = explain_torch_error(error)
    assert explained is not None
    assert explained.exit_code == ExitCode.RESOURCE
    assert message in explained.message
    assert "\n" not in explained.message
    assert hint in (explained.hint or "")


def test_memory_that_the_cpu_really_does_not_have() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    explained = explain_torch_error(caught.value)
    assert explained is not None
    assert explained.message.startswith("out of memory: ")


@pytest.mark.parametrize(
    "text", ["", "mat1 and mat2 shapes cannot be multiplied", "CUDA error: device-side assert"]
)
def test_other_errors_are_left_alone(text: str) -> None:
    assert explain_torch_error(RuntimeError(text)) is None


def test_out_of_memory_without_a_text() -> None:
    explained = explain_torch_error(torch.OutOfMemoryError())
    assert explained is not None
    assert explained.exit_code == ExitCode.RESOURCE


# --- the environment -----------------------------------------------------------------------------


def test_environment_names_versions_and_devices() -> None:
    environment = describe_environment()
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert environment["devices"][0] == "cpu"
    assert environment["threads"] == torch.get_num_threads()
    assert environment["cpu_cores"] >= 1
    assert environment["weights_folder"].endswith("checkpoints")
    assert (environment["cuda"] is None) == (not torch.cuda.is_available())


def test_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.system.machine.PACKAGES", ("torch", "no-such-package"))
    assert describe_environment()["packages"]["no-such-package"] is None
