"""Model files and checkpoints: exact round trips, every flipped bit found, no code ever run."""

import io
import json
import os
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vtrain.errors import ExitCode, ModelError, ResourceError
from vtrain.system.tensor_files import (
    is_safetensors,
    load_tensors,
    read_metadata,
    save_tensors,
    tensors_sha256,
)
from vtrain.system.torch_files import load_torch, save_torch

SQUEEZENET = Path(__file__).parents[3] / "shared" / "weights" / "squeezenet1_0-imagenet.pth"


def small_tensors() -> dict[str, Tensor]:
    return {
        "conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16),
        "double": torch.tensor([[1e-300]], dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def torch_bytes(value: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def flip_bit(path: Path, content: bytes, position: int, bit: int) -> None:
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)


def sample_positions(size: int) -> list[int]:
    """Every third byte, and all at the end: bool tensors there, the seal of a checkpoint."""
    return [*range(0, size - 100, 3), *range(size - 100, size)]


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


# Model files


def test_tensors_and_metadata_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, small_tensors(), {"vtrain": '{"classes": ["dé", "\\"x\\""]}'})
    tensors, metadata = load_tensors(path)
    assert_equal(tensors, small_tensors())
    assert metadata["vtrain"] == '{"classes": ["dé", "\\"x\\""]}'
    assert metadata["sha256"] == tensors_sha256(small_tensors())
    assert read_metadata(path) == metadata
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_official_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, small_tensors(), {"vtrain": "{}"})
    assert_equal(safetensors.torch.load_file(path), small_tensors())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["vtrain"] == "{}"


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    metadata = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
    save_tensors(tmp_path / "1", small_tensors(), metadata)
    reordered = dict(reversed(small_tensors().items()))
    save_tensors(tmp_path / "2", reordered, dict(reversed(metadata.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_views_parameters_and_shared_memory_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": base.T, "b": base[:, 1], "c": nn.Parameter(base), "d": base}
    save_tensors(tmp_path / "a", tensors, {})
    loaded = load_tensors(tmp_path / "a")[0]
    assert_equal(loaded, {name: tensor.detach() for name, tensor in tensors.items()})


def test_loaded_tensors_do_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(1000)}, {})
    tensors, _ = load_tensors(path)
    with path.open("r+b") as stream:
        stream.seek(-4000, 2)
        stream.write(b"\x01" * 4000)
    assert not tensors["a"].any()


def test_foreign_file_without_digests_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(small_tensors(), path, {"format": "pt"})
    tensors, metadata = load_tensors(path)
    assert_equal(tensors, small_tensors())
    assert metadata == {"format": "pt"}
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    assert read_metadata(path) == {}


def test_any_flipped_bit_in_a_model_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, small_tensors(), {"vtrain": '{"classes": ["cat", "dog"]}'})
    content = path.read_bytes()
    draw = random.Random(0)
    for position in sample_positions(len(content)):
        flip_bit(path, content, position, draw.randrange(8))
        with pytest.raises(ModelError):
            load_tensors(path)


def test_flipped_bit_in_the_name_of_either_digest_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {"vtrain": "{}"})
    content = path.read_bytes()
    for name in (b'"sha256"', b'"metadata_sha256"'):
        path.write_bytes(content.replace(name, name.replace(b"256", b"257")))
        with pytest.raises(ModelError, match="the metadata does not match its SHA-256"):
            load_tensors(path)
        with pytest.raises(ModelError, match="the metadata does not match its SHA-256"):
            read_metadata(path)


def test_changed_tensor_is_named_as_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {})
    content = path.read_bytes()
    flip_bit(path, content, len(content) - 1, 0)
    with pytest.raises(ModelError) as caught:
        load_tensors(path)
    assert caught.value.message == f"{path} is damaged: the tensors do not match their SHA-256"
    assert caught.value.exit_code == ExitCode.MODEL


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    path = tmp_path / "model.safetensors"
    bad = torch.zeros(3, 4, dtype=dtype)
    bad[1, 2] = value
    save_tensors(path, {"good": torch.ones(2), "bn.weight": bad}, {})
    with pytest.raises(ModelError, match=r"holds NaN or infinity in bn\.weight$"):
        load_tensors(path)


FOREIGN_TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD_SAFETENSORS = {
    "empty": b"",
    "short": b"\x08\x00",
    "text": b"this is not a model file, it is a text\n" * 10,
    "header longer than the file": (1 << 62).to_bytes(8, "little") + b"{}",
    "header too long to be one": (1 << 40).to_bytes(8, "little") + b"{}" * 100,
    "header of nothing": (0).to_bytes(8, "little"),
    "header no table": safetensors_bytes([1]),
    "nested without end": safetensors_bytes(b"[" * 200_000),
    "endless number": safetensors_bytes(b'{"a":' + b"1" * 10_000 + b"}"),
    "same tensor twice": safetensors_bytes(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        b"\0\0\0\0",
    ),
    "data missing": safetensors_bytes({"a": FOREIGN_TENSOR}, b"\0\0"),
    "data left over": safetensors_bytes({"a": FOREIGN_TENSOR}, b"\0\0\0\0\0"),
    "offsets beyond the file": safetensors_bytes(
        {"a": FOREIGN_TENSOR | {"data_offsets": [0, 1 << 50]}}, b"\0\0\0\0"
    ),
    "shape beyond the data": safetensors_bytes(
        {"a": FOREIGN_TENSOR | {"shape": [1 << 40]}}, b"\0\0\0\0"
    ),
    "unknown type": safetensors_bytes({"a": FOREIGN_TENSOR | {"dtype": "Q7"}}, b"\0\0\0\0"),
    "metadata no table": safetensors_bytes({"__metadata__": 3}),
    "metadata of numbers": safetensors_bytes({"__metadata__": {"a": 3}}),
    "zip archive": torch_bytes({"a": torch.ones(1)}),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD_SAFETENSORS[kind])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_tensors(path)


def test_truncated_model_file_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, small_tensors(), {})
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(ModelError):
            load_tensors(path)


@pytest.mark.parametrize("load", [load_tensors, read_metadata, load_torch, is_safetensors])
def test_paths_that_are_no_files_are_refused(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "pipe": "is not a regular file",
        "empty": "is empty",
        "absent": "cannot read .*absent: No such file",
        "loop": "cannot read .*loop: Too many levels",
        "null\0byte": "cannot read .*null byte",
        ".": "is a folder",
        "/dev/zero": "is not a regular file",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message):
            load(tmp_path / name)


def test_kind_of_file_is_seen_by_name_or_content(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.bin", {"a": torch.ones(1)}, {})
    (tmp_path / "b.pth").write_bytes(torch_bytes({"a": torch.ones(1)}))
    (tmp_path / "c.pth").write_bytes(torch_bytes({"a": torch.ones(1)}, legacy=True))
    found = {file.name: is_safetensors(file) for file in tmp_path.iterdir()}
    assert found == {"a.bin": True, "b.pth": False, "c.pth": False}


# Checkpoints


def small_checkpoint() -> dict[str, Any]:
    random.seed(0)
    return {
        "model": small_tensors(),
        "step": 17,
        "random": random.getstate(),
        "names": ("a", {"b"}, b"c", None, torch.float32),
    }


def test_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_torch(path, small_checkpoint())
    loaded = load_torch(path)
    assert_equal(loaded.pop("model"), small_tensors())
    expected = small_checkpoint()
    del expected["model"]
    assert loaded == expected
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_torch_itself_reads_the_checkpoint(tmp_path: Path) -> None:
    save_torch(tmp_path / "last.ckpt", {"a": torch.arange(3)})
    assert torch.equal(torch.load(tmp_path / "last.ckpt")["a"], torch.arange(3))


def test_checkpoint_bytes_do_not_depend_on_the_name(tmp_path: Path) -> None:
    save_torch(tmp_path / "1.ckpt", small_checkpoint())
    save_torch(tmp_path / "another.ckpt", small_checkpoint())
    assert (tmp_path / "1.ckpt").read_bytes() == (tmp_path / "another.ckpt").read_bytes()


def test_any_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_torch(path, {"a": torch.arange(6.0), "step": 3})
    content = path.read_bytes()
    draw = random.Random(0)
    for position in sample_positions(len(content)):
        flip_bit(path, content, position, draw.randrange(8))
        with pytest.raises(ModelError):
            load_torch(path)


def test_truncated_checkpoint_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_torch(path, {"a": torch.arange(6.0), "step": 3})
    content = path.read_bytes()
    for size in range(0, len(content), 9):
        path.write_bytes(content[:size])
        with pytest.raises(ModelError):
            load_torch(path)


def test_flipped_bit_in_a_tensor_of_a_foreign_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    content = torch_bytes({"a": torch.full((1000,), 0.1)})
    position = content.index(torch.full((1000,), 0.1).numpy().tobytes()) + 1234
    flip_bit(path, content, position, 3)
    torch.load(path)  # torch alone does not notice
    with pytest.raises(ModelError, match=r"the checksum of .* is wrong"):
        load_torch(path)


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_torch(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for value in ({"a": torch.zeros(100_000)}, {"a": list(range(100_000))}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            with pytest.raises(ResourceError, match="file size limit"):
                save_torch(path, value)
            with pytest.raises(ResourceError, match="file size limit"):
                save_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(100_000)}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_torch(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_of_torch_save_is_read(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes(small_tensors(), legacy=legacy))
    assert_equal(load_torch(path), small_tensors())


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_not_run(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes({"a": Payload(tmp_path / "ran")}, legacy=legacy))
    with pytest.raises(ModelError, match=r"holds the Python object posix\.system, expected"):
        load_torch(path)
    assert not (tmp_path / "ran").exists()


def test_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(ModelError) as caught:
        load_torch(path)
    assert "torch.nn.modules.container.Sequential" in caught.value.message
    assert "torch.save(model.state_dict(), 'weights.pth')" in (caught.value.hint or "")
    assert "weights_only" not in f"{caught.value.message} {caught.value.hint}"


def rewrite_archive(content: bytes, path: Path, *, compression: int, extra: int = 0) -> None:
    """The same archive from Python's zipfile, with `extra` bytes of zeros in one more entry."""
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), compress_type=compression)
        if extra:
            target.writestr("archive/zeros", bytes(extra), compress_type=compression)


def test_compressed_archive_is_refused_before_it_grows(tmp_path: Path) -> None:
    content = torch_bytes({"a": torch.ones(3)})
    path = tmp_path / "bomb.pth"
    rewrite_archive(content, path, compression=zipfile.ZIP_DEFLATED, extra=10_000_000)
    assert path.stat().st_size < 50_000
    with pytest.raises(ModelError, match="compressed"):
        load_torch(path)
    rewrite_archive(content, path, compression=zipfile.ZIP_STORED)
    assert torch.equal(load_torch(path)["a"], torch.ones(3))


def test_archive_with_an_entry_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    rewrite_archive(torch_bytes({"a": 1}), path, compression=zipfile.ZIP_STORED, extra=5)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/zeros", b"other")
    with pytest.raises(ModelError, match="the same entry twice"):
        load_torch(path)


def test_archive_with_entries_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    rewrite_archive(torch_bytes({"a": 1}), path, compression=zipfile.ZIP_STORED, extra=4_321)
    content = path.read_bytes()
    size = (4_321).to_bytes(4, "little")
    at = content.rindex(size)  # the uncompressed size in the central directory
    path.write_bytes(content[:at] + (1 << 31).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(ModelError, match="larger than the file"):
        load_torch(path)


BAD_TORCH = {
    "text": (b"hello, this is text\n" * 20, "starts with b'hello, this is text"),
    "web page": (b"<!DOCTYPE html><html>Not found</html>", "starts with b'<!DOCTYPE html>"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "pickle cut": (torch_bytes({"a": torch.ones(9)}, legacy=True)[:-10], "is damaged"),
    "pickle of noise": (b"\x80\x02" + bytes(range(256)), "is damaged"),
    "zip without end": (b"PK\x03\x04" + bytes(300), "no complete zip archive"),
    "other zip": (b"", "is damaged"),
    "huge legacy storage": (
        torch_bytes({"a": torch.ones(1000)}, legacy=True).replace(
            b"M\xe8\x03", b"\x8a\x06\0\0\0\0\0\x01"
        ),
        "is damaged",
    ),
}


@pytest.mark.parametrize("kind", BAD_TORCH)
def test_what_torch_did_not_write_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    content, message = BAD_TORCH[kind]
    path.write_bytes(content)
    if kind == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("document.xml", "<xml/>")
    with pytest.raises(ModelError, match=message) as caught:
        load_torch(path)
    text = f"{caught.value.message} {caught.value.hint}"
    assert "weights_only" not in text
    assert "\x1b" not in text
    assert len(text) < 600


def test_torchscript_archive_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pth"
    with zipfile.ZipFile(path, "w") as archive:  # what tells it: constants.pkl, and code
        archive.writestr("scripted/constants.pkl", b"\x80\x02).")
        archive.writestr("scripted/data.pkl", b"\x80\x02).")
        archive.writestr("scripted/version", b"3\n")
    with pytest.raises(ModelError, match="TorchScript archive"):
        load_torch(path)


@pytest.mark.skipif(not SQUEEZENET.exists(), reason="the shared weights are not here")
def test_real_weights_are_read() -> None:
    state = load_torch(SQUEEZENET)
    assert state["classifier.1.weight"].shape == (1000, 512, 1, 1)
