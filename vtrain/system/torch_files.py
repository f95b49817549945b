"""Files of torch.save: written sealed, and checked before anything in them is loaded."""

import hashlib
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from vtrain.errors import ModelError
from vtrain.system.files import atomic_write
from vtrain.system.pickle_check import PythonObjectError, check_pickle
from vtrain.system.tensor_files import damaged_file, open_regular

_CHUNK_BYTES = 2**20
# Objects that a file holds and how deeply they are nested: far more than a run's config has.
_MAX_OBJECTS = 1_000_000
_MAX_DEPTH = 64
_LEGACY_PICKLES = 5  # in a file without an archive: magic number, version, system, content, keys
_PLAIN_TYPES = (NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device)

_SEAL = b"vtrain sha256 "


def save_torch(path: Path, value: Any, *, previous: Path | None = None) -> None:
    """`torch.save`, atomically, with the SHA-256 of the whole file as the archive's comment.

    An earlier file becomes `previous`.

    Raises:
        ResourceError, UsageError: see `vtrain.system.files.atomic_write`.
    """
    with atomic_write(path, previous=previous) as stream:
        # To an open file: a full disk is then an OSError, and the bytes do not hold the name.
        torch.save(value, stream)
        size = stream.seek(0, 2)
        comment = _SEAL + _digest_head(stream, size - 2)
        stream.seek(size - 2)  # the last field of a zip file is the length of its comment
        stream.write(len(comment).to_bytes(2, "little") + comment)


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain data only, never code.

    Zip archives must hold stored entries with the right checksums. The older format without a zip
    archive has no checksums but is read as well.

    Raises:
        ModelError: missing, damaged, no such file, or it holds Python objects.
    """
    with open_regular(path) as stream:
        start = stream.read(4)
        if start == b"PK\x03\x04":
            _check_archive(path, stream)
        elif not start.startswith(b"\x80"):  # every pickle that torch wrote starts so
            raise _foreign(path, stream)
        try:
            _check_pickles(stream, zipped=start.startswith(b"PK"))
            stream.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the format; what matters is raised
                value = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            raise _load_error(path, error) from error
        size = stream.seek(0, 2)
    try:
        _check_plain(value, size)
    except ValueError as error:
        raise ModelError(f"{path}: {error}", "use another copy of the file") from error
    return value


def _digest_head(stream: BinaryIO, size: int) -> bytes:
    """SHA-256, as hexadecimal digits, of the first `size` bytes."""
    digest = hashlib.sha256()
    stream.seek(0)
    while size > 0 and (chunk := stream.read(min(size, _CHUNK_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode("ascii")


def _check_archive(path: Path, stream: BinaryIO) -> None:
    """Refuse an archive that is damaged or would grow when read: torch checks neither."""
    size = stream.seek(0, 2)
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise damaged_file(path, "its entries are compressed, which torch.save never does")
            if sum(entry.file_size for entry in entries) > size:
                raise damaged_file(path, "its entries are larger than the file")
            # Torch's reader of archives does not tell capitals from small letters.
            if len({entry.filename.lower() for entry in entries}) != len(entries):
                raise damaged_file(path, "the same entry twice")
            if archive.comment:
                _check_seal(path, stream, archive.comment)
            elif broken := archive.testzip():
                raise damaged_file(path, f"the checksum of {broken} is wrong")
    except ModelError:
        raise
    except Exception as error:  # zipfile raises many types on damaged archives
        raise damaged_file(path, f"no complete zip archive ({error})") from error


def _check_seal(path: Path, stream: BinaryIO, comment: bytes) -> None:
    """Together the three parts cover every byte; a foreign comment can only be a damaged seal."""
    head = stream.seek(0, 2) - len(comment) - 2
    expected = len(comment).to_bytes(2, "little") + _SEAL + _digest_head(stream, head)
    stream.seek(head)  # zipfile believes a length beyond the end of the file
    if stream.read() != expected:
        raise damaged_file(path, "the file does not match its SHA-256")


def _check_pickles(stream: BinaryIO, *, zipped: bool) -> None:
    """Refuse pickles that torch could not read safely, or that hold code."""
    stream.seek(0)
    if not zipped:
        for _ in range(_LEGACY_PICKLES):
            check_pickle(stream)
        return
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):
                check_pickle(BytesIO(archive.read(entry)), tensors=len(entries))


def _check_plain(value: Any, size: int) -> None:
    """Refuse what would trip those who use the content of a file of `size` bytes.

    It is lists, tables, plain data and plain tensors, not too deep, and no larger than the file.

    Raises:
        ValueError: something else is there, or it unfolds to much more.
    """
    claimed = count = 0
    left: list[tuple[str, Any, int]] = [("", value, 0)]
    while left:
        name, each, depth = left.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_OBJECTS:
            raise ValueError(f"it is nested too deeply or repeats itself, below {name!r:.80}")
        if type(each) in (dict, OrderedDict):
            _check_attributes(name, each, {"_metadata"})
            # By the type's own methods: an OrderedDict can carry others of these names.
            left += [
                (key if isinstance(key, str) else name, inner, depth + 1)
                for key, inner in dict.items(each)
            ]
        elif type(each) in (list, tuple, set, torch.Size):
            left += [(name, inner, depth + 1) for inner in each]
        elif type(each) in (Tensor, nn.Parameter):
            _check_attributes(name, each, set())
            if each.layout != torch.strided or each.is_quantized or each.device.type != "cpu":
                raise ValueError(f"{name:.80} is not a plain tensor (sparse, quantized or empty)")
            claimed += each.nbytes
        elif not isinstance(each, _PLAIN_TYPES):
            raise ValueError(f"it holds {type(each).__name__} under {name!r:.80}")
    if claimed > 4 * size:  # views can claim any size; shared weights double it at most
        raise ValueError(f"claims {claimed:,} bytes of tensors in a file of {size:,}")


def _check_attributes(name: str, value: Any, allowed: set[str]) -> None:
    """What a file has set on an object could stand in the place of its methods."""
    if found := getattr(value, "__dict__", {}).keys() - allowed:
        raise ValueError(f"{name!r:.80} has the attributes {sorted(map(str, found))!r:.80}")


def _foreign(path: Path, stream: BinaryIO) -> ModelError:
    stream.seek(0)
    start = stream.read(24)
    if start.startswith(b"version https://git-lfs"):
        return ModelError(f"{path} is a Git LFS pointer, not the file itself", "run: git lfs pull")
    return ModelError(
        f"{path} is not a file written by torch.save: it starts with {start!r}",
        "expected a state dict written by torch.save, or a .safetensors file",
    )


def _load_error(path: Path, error: Exception) -> ModelError:
    """What torch.load said, without its advice to switch the protection off."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text) if isinstance(error, pickle.UnpicklingError) else None
    if isinstance(error, PythonObjectError) or named:
        return ModelError(
            f"{path} holds the Python object {named[1] if named else text}, expected tensors and "
            "plain data only: "
            "no code is run from a file",
            "where you trust the file, save only its weights: "
            "torch.save(model.state_dict(), 'weights.pth')",
        )
    if "TorchScript" in text:
        return ModelError(
            f"{path} is a TorchScript archive, expected a state dict",
            "save the state dict: torch.save(torch.jit.load(path).state_dict(), 'weights.pth')",
        )
    reason = text.rpartition("WeightsUnpickler error:")[2].strip()
    if not reason or reason.startswith("Weights only load failed"):
        reason = f"no valid pickle ({type(error).__name__})"
    return damaged_file(path, reason.splitlines()[0][:200])
