"""One flipped bit, anywhere in a checkpoint or a model file: found by everything that reads it."""

import json
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import torch

from tests.faults.case import Case
from tests.faults.made_files import checkpoint_bytes, model_bytes
from vtrain.errors import ModelError
from vtrain.models.model_file import load_model_file
from vtrain.models.weights import load_weights_file
from vtrain.runs.checkpoint import load_checkpoint
from vtrain.runs.model_argument import load_model
from vtrain.system.reporter import SILENT

SEED = 3
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Target:
    """A file, its parts as ranges of bytes, and what loads it whole."""

    name: str
    content: bytes
    parts: dict[str, Sequence[int]]
    loaders: tuple[Callable[[Path], object], ...]


def cases(full: bool) -> Iterator[Case]:
    """300 flipped bits, or 40: as many in each part of a file as in the others."""
    for target in (checkpoint_target(), model_target()):
        draw = random.Random(SEED)
        # Drawn in turns, so that the short form has the first ones of every part.
        for turn in range(30 if full else 4):
            for part, places in target.parts.items():
                place, bit = draw.choice(places), draw.randrange(8)
                name = f"{target.name}, {part} {turn}: bit {bit} of byte {place}"
                yield Case(name, partial(try_flip, target, place, bit))


def try_flip(target: Target, place: int, bit: int, folder: Path) -> None:
    """Flip a bit and load: ModelError, whoever loads it; whole again, it loads."""
    path = folder / target.name
    content = bytearray(target.content)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    for load in target.loaders:
        try:
            load(path)
        except ModelError as error:
            assert str(path) in error.message, error.message  # noqa: PT017 - where it came from
        else:
            raise AssertionError(f"{load.__qualname__} has not noticed")


@cache
def checkpoint_target() -> Target:
    content = checkpoint_bytes()
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entries = {each.filename.partition("/")[2]: each for each in archive.infolist()}
        directory = archive.start_dir
    pickle = entries["data.pkl"]
    tensors = [each for name, each in entries.items() if name.startswith("data/")]
    starts = [each.header_offset for each in entries.values()]
    return Target(
        "last.ckpt",
        content,
        {
            "headers of entries": [start + byte for start in starts for byte in range(30)],
            "pickle": range(pickle.header_offset + 30, pickle.header_offset + pickle.file_size),
            "tensors": [
                each.header_offset + 128 + byte
                for each in tensors
                for byte in range(each.file_size)
            ],
            "zip directory": range(directory, len(content) - 120),
            "end": range(len(content) - 120, len(content)),
        },
        (load_checkpoint, load_weights_file),
    )


@cache
def model_target() -> Target:
    content = model_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    description = content.index(
        header["__metadata__"]["vtrain"].encode()[:10].replace(b'"', b'\\"')
    )
    return Target(
        "model.safetensors",
        content,
        {
            "length of the header": range(8),
            "digests": range(content.index(b"metadata_sha256"), description),
            "description": range(description, content.index(b"}}") + 2),
            "table of tensors": range(content.index(b"}}") + 2, data),
            "tensors": range(data, len(content)),
        },
        (load_model_file, load_weights_file, load_named),
    )


def load_named(path: Path) -> object:
    """As `-m FILE` does."""
    return load_model(str(path), device=CPU, precision="fp32", reporter=SILENT)
