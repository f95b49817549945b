"""Tensors on disk: model files (safetensors) and checkpoints (torch.save), checked when loaded.

Nothing here runs code from a file, and every file written here carries SHA-256 digests, so that a
single flipped bit is found: neither format does that by itself.
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vtrain.errors import ModelError
from vtrain.system.files import atomic_write

# Thousands of tensors and as many class names need less than 2 MB.
_MAX_HEADER_BYTES = 32 * 2**20
_MAX_TENSORS = 20_000
_LONGEST_NAME = 200  # that a message shows; those in the zoo have less than half

_TENSORS_DIGEST = "sha256"
_METADATA_DIGEST = "metadata_sha256"

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with digests of tensors and metadata, atomically.

    Equal input gives equal bytes, which safetensors' own writer does not promise (the order of its
    metadata changes from run to run). Tensors that share memory are written one by one.

    Raises:
        ResourceError, UsageError: see `vtrain.system.files.atomic_write`.
    """
    plain = {name: _to_plain_tensor(tensor) for name, tensor in tensors.items()}
    signed = dict(metadata) | {_TENSORS_DIGEST: tensors_sha256(plain)}
    signed[_METADATA_DIGEST] = _metadata_sha256(signed)
    # Widest type first keeps every tensor aligned to its own size, as the format asks for.
    names = sorted(plain, key=lambda name: (-plain[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(signed.items()))}
    end = 0
    for name in names:
        begin, end = end, end + plain[name].nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[plain[name].dtype],
            "shape": list(plain[name].shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(path) as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            stream.write(_byte_view(plain[name]))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the tensors do not depend on the file any more.

    A file with digests must match them. A foreign file without is taken as it is.

    Raises:
        ModelError: missing, damaged, no safetensors file, or one with NaN or infinity.
    """
    mapped, metadata = _map(path)  # of one file, also when another takes its place meanwhile
    tensors = {name: _copy_bytes(tensor) for name, tensor in mapped.items()}
    _check_tensors(path, tensors, metadata)
    try:
        names = find_non_finite(tensors)
    except NotImplementedError as error:  # numbers of four bits, for one
        raise ModelError(f"{path} holds numbers of a type that is not known: {error}") from error
    if names:
        raise ModelError(f"{path} holds NaN or infinity in {shorten_names(names)}")
    return tensors, metadata


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file with digests, read from the disk when they are looked at.

    They stay usable when the file is removed or replaced; writing to it in place would change them.

    Raises:
        ModelError: missing, damaged, no safetensors file, or it has no digests.
    """
    tensors, metadata = _map(path)
    if _TENSORS_DIGEST not in metadata:
        raise damaged_file(path, "its SHA-256 is missing")
    _check_tensors(path, tensors, metadata)
    # Mapped anew: the pages that the check has looked at no longer count as this process's memory.
    return _map(path)[0]


def _map(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors whose memory is the file's, and the metadata; only the header has been checked."""
    with open_regular(path) as stream:
        _read_header(path, stream)  # bounds what the library would have to believe
        try:
            with safe_open(_name_open_file(stream, path), framework="pt") as file:
                names = file.keys()
                return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
        except Exception as error:  # SafetensorError mostly; torch may not know a type, and so on
            raise damaged_file(path, str(error)) from error


def _name_open_file(stream: BufferedReader, path: Path) -> Path:
    """A name of the file that `stream` has open, which stays its own when `path` is replaced.

    The library opens its file twice, by name. Where there is no such name (Windows), no file can be
    replaced while it is open.
    """
    names = (Path(folder) / str(stream.fileno()) for folder in ("/proc/self/fd", "/dev/fd"))
    return next((name for name in names if name.exists()), path)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    _check_metadata(path, metadata)
    if _TENSORS_DIGEST in metadata and metadata[_TENSORS_DIGEST] != tensors_sha256(tensors):
        raise damaged_file(path, "the tensors do not match their SHA-256")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors; {} if it has none.

    Raises:
        ModelError: missing, damaged or no safetensors file.
    """
    with open_regular(path) as stream:
        metadata = _read_header(path, stream).get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged_file(path, "its metadata is not a table of texts")
    _check_metadata(path, metadata)
    return metadata


def is_safetensors(path: Path) -> bool:
    """Whether the file looks like safetensors: by its name, or by how it starts."""
    if path.suffix == ".safetensors":
        return True
    with open_regular(path) as stream:
        start = stream.read(9)
        size = stream.seek(0, 2)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = _to_plain_tensor(tensors[name])
        description = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(description).encode("ascii"))
        digest.update(_byte_view(tensor))
    return digest.hexdigest()


def find_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def shorten_names(names: list[str], limit: int = 10) -> str:
    """The first names and how many there are: `a, b, c and 7 more`; what is long is cut."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"{name:.{_LONGEST_NAME}}" for name in names[:limit]) + rest


def find_misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded as `own`: one text for each kind of problem."""
    shapes = [
        f"{key} {_describe_tensor(value)}, expected {_describe_tensor(own[key])}"
        for key, value in state.items()
        if key in own and _describe_tensor(value) != _describe_tensor(own[key])
    ]
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": shapes,
    }
    return [
        f"{len(keys)} {kind} ({shorten_names(keys, limit=5)})"
        for kind, keys in problems.items()
        if keys
    ]


def _describe_tensor(tensor: Tensor) -> str:
    """Shape, and the type where it is not one of the floating-point types that convert freely."""
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; a pipe would block for ever, and a device has no end.

    Raises:
        ModelError: missing, empty, unreadable, or no regular file.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"cannot read {path}: {reason}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelError(f"{path} is a folder, expected a file")
    if stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is empty")
    raise ModelError(f"{path} is not a regular file")


def _to_plain_tensor(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _copy_bytes(tensor: Tensor) -> Tensor:
    """A copy, because the library hands out views of the file, which change when the file does.

    As bytes, because a copied bool becomes 0 or 1 and would hide a flipped bit.
    """
    copied = tensor.reshape(-1).view(torch.uint8).clone()
    return copied.view(tensor.dtype).reshape(tensor.shape)


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # the 8-bit types know no comparison
        tensor = tensor.float()
    # One pass without a temporary tensor; NaN comes through in both ends.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def damaged_file(path: Path, reason: str) -> ModelError:
    """The error for a file whose content cannot be what was written."""
    return ModelError(f"{path} is damaged: {reason}", "use another copy of the file")


def _read_header(path: Path, stream: BufferedReader) -> dict[str, Any]:
    """The JSON header of a safetensors file, read without trusting any length in it."""
    length = int.from_bytes(stream.read(8), "little")
    size = stream.seek(0, 2)
    if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
        raise ModelError(
            f"{path} is damaged or not a safetensors file: header of {length:,} bytes in a "
            f"file of {size:,}",
            "use another copy of the file",
        )
    stream.seek(8)
    encoded = stream.read(length)
    try:
        header = json.loads(encoded, object_pairs_hook=_unique_pairs)
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged_file(path, "its header is not a table")
    if len(header) > _MAX_TENSORS:
        raise damaged_file(path, f"its header names {len(header):,} tensors")
    return header


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("the same key twice")
    return table


def _metadata_sha256(metadata: Mapping[str, str]) -> str:
    pairs = sorted((key, value) for key, value in metadata.items() if key != _METADATA_DIGEST)
    return hashlib.sha256(json.dumps(pairs).encode("ascii")).hexdigest()


def _check_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Both digests or none: one flipped bit in the name of one must not make the file foreign."""
    if _TENSORS_DIGEST not in metadata and _METADATA_DIGEST not in metadata:
        return
    intact = metadata.get(_METADATA_DIGEST) == _metadata_sha256(metadata)
    if not intact or _TENSORS_DIGEST not in metadata:
        raise damaged_file(path, "the metadata does not match its SHA-256")
