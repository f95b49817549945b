"""Files that are intact as files, with intact digests, and hold what no run has written."""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.faults.made_files import (
    build_checkpoint,
    build_small_classifier,
    build_state,
    describe_model,
)
from tests.faults.pickles import Content
from vtrain.models.model_file import BANK, METADATA_KEY, MODEL_FORMAT
from vtrain.runs.checkpoint import CHECKPOINT_FORMAT, Checkpoint
from vtrain.system.json_csv import to_plain
from vtrain.system.tensor_files import save_tensors
from vtrain.system.torch_files import save_torch
from vtrain.training.state import TrainState

GONE = object()  # in place of a value: the entry is left out


# --- checkpoints ---------------------------------------------------------------------------------


def checkpoint_contents() -> Iterator[tuple[str, Content]]:
    """Checkpoints with one entry of another type, out of range, missing or unknown."""
    for name, changes in change_checkpoints():
        yield name, partial(write_checkpoint, changes)


def write_checkpoint(changes: dict[str, Any], folder: Path) -> Path:
    content = {name: getattr(build_checkpoint(1), name) for name in Checkpoint.__dataclass_fields__}
    content |= {"format": CHECKPOINT_FORMAT, "state": asdict(build_checkpoint(1).state)}
    kept = {name: value for name, value in {**content, **changes}.items() if value is not GONE}
    save_torch(folder / "last.ckpt", kept)
    return folder / "last.ckpt"


def change_checkpoints() -> Iterator[tuple[str, dict[str, Any]]]:
    wrong: dict[str, Any] = {
        "text": "\x1b[31mtext",
        "a negative number": -1,
        "a huge number": 1 << 80,
        "a list": [1, [2, [3]]],
        "nothing at all": GONE,
    }
    for entry in ("format", *Checkpoint.__dataclass_fields__):
        for name, value in wrong.items():
            yield f"{name} as {entry}", {entry: value}
    tables: dict[str, Any] = {"numbered keys": {1: 2}, "tables of tables": {"a": {"b": {}}}}
    for entry in ("model", "ema", "scaler", "frozen"):
        for name, value in tables.items():
            yield f"{name} as {entry}", {entry: value}
    yield "no epochs as planned_epochs", {"planned_epochs": None}
    yield "a fraction as planned_epochs", {"planned_epochs": 1.5}
    yield "an unknown entry", {"more": 1}
    yield "an unknown entry with a long name", {"x\x1b[2J" * 100_000: 1}
    yield "a format of the future", {"format": CHECKPOINT_FORMAT + 1}
    yield "a format far in the future", {"format": (1 << 2000)}
    yield from change_tensors()
    yield from change_states()
    yield from change_optimizers()
    for name, value in {"text": "2", "zero": 0, "a list": [2], "a huge number": 1 << 70}.items():
        machine = {**build_checkpoint(1).machine, "batch_size": value}
        yield f"{name} as batch size", {"machine": machine}
    yield "a machine without precision", {"machine": {}}
    yield "a number as precision", {"machine": {**build_checkpoint(1).machine, "precision": 16}}
    for name, value in {"text": "four", "a list": [4], "a fraction": 4.5}.items():
        yield f"{name} as epochs in config", {"config": {"train.epochs": value}}


def change_tensors() -> Iterator[tuple[str, dict[str, Any]]]:
    state = build_state(1)
    first = next(iter(state))
    made: dict[str, Any] = {
        "NaN": torch.full_like(state[first], math.nan),
        "infinity": torch.full_like(state[first], math.inf),
        "a sparse tensor": torch.eye(3).to_sparse(),
        "a tensor without data": torch.empty(1 << 40, device="meta"),
        "2^50 equal elements": torch.ones(1).expand(1 << 50),
        "a number": 1.0,
        "a list of numbers": [1.0, 2.0],
    }
    for name, value in made.items():
        for entry in ("model", "ema"):
            yield f"{name} in {entry}", {entry: {**state, first: value}}


def change_states() -> Iterator[tuple[str, dict[str, Any]]]:
    state = asdict(build_checkpoint(1).state)
    for each in fields(TrainState):
        values: dict[str, Any] = {"text": "3", "a list": [1], "a huge number": 1 << 80}
        if each.name not in ("best_top1", "best_loss", "seconds", "loss_sum", "history"):
            values |= {"a negative number": -1, "a fraction": 1.5, "a truth": True}
        for name, value in values.items():
            if not (each.name in ("history", "left_out") and name == "a list"):
                yield f"{name} as state.{each.name}", {"state": {**state, each.name: value}}
    yield "an unknown part of state", {"state": {**state, "more": 1}}
    yield "a history of numbers", {"state": {**state, "history": [1, 2]}}
    yield "a history of numbered tables", {"state": {**state, "history": [{1: 2}]}}
    yield "no number as the sum of losses", {"state": {**state, "loss_sum": math.nan}}
    yield "endless seconds", {"state": {**state, "seconds": math.inf}}
    yield "no parts of a batch", {"state": {**state, "splits": 0}}


def change_optimizers() -> Iterator[tuple[str, dict[str, Any]]]:
    stored = build_checkpoint(1).optimizer
    groups = stored["param_groups"]
    made: dict[str, Any] = {
        "nothing in it": {},
        "no groups": {"state": stored["state"]},
        "no state": {"param_groups": groups},
        "a group without parameters": {**stored, "param_groups": [{"lr": 1.0}]},
        "a group that is a list": {**stored, "param_groups": [[1]]},
        "parameters that are text": {**stored, "param_groups": [{**groups[0], "params": "abc"}]},
        "parameters below zero": {**stored, "param_groups": [{**groups[0], "params": [-1]}]},
        "state that is a list": {**stored, "state": [1]},
        "state of a name": {**stored, "state": {"a": {}}},
        "state that is text": {**stored, "state": {0: "a"}},
        "state of text": {**stored, "state": {0: {"exp_avg": "a"}}},
    }
    for name, value in made.items():
        yield f"an optimizer with {name}", {"optimizer": value}


# --- model files ---------------------------------------------------------------------------------


def described_models() -> Iterator[tuple[str, Content]]:
    """Model files whose description has one entry that cannot be."""
    for name, changes in change_descriptions():
        yield name, partial(write_described, changes)
    for name, text in TEXTS.items():
        yield name, partial(write_text_model, text)
    for name, tensors in change_states_of_models():
        yield name, partial(write_tensors, tensors)
    for name, novelty, bank in change_novelties():
        yield name, partial(write_novelty, novelty, bank)


def write_described(changes: dict[str, Any], folder: Path) -> Path:
    content = {"format": MODEL_FORMAT, **to_plain(describe_model()), **changes}
    kept = {name: value for name, value in content.items() if value is not GONE}
    return write_text_model(json.dumps(kept), folder)


def write_text_model(text: str, folder: Path) -> Path:
    save_tensors(folder / "model.safetensors", build_state(1), {METADATA_KEY: text})
    return folder / "model.safetensors"


def write_tensors(tensors: dict[str, Tensor], folder: Path) -> Path:
    described = json.dumps({"format": MODEL_FORMAT, **to_plain(describe_model())})
    save_tensors(folder / "model.safetensors", tensors, {METADATA_KEY: described})
    return folder / "model.safetensors"


def write_novelty(novelty: Any, bank: Tensor | None, folder: Path) -> Path:
    described = {"format": MODEL_FORMAT, **to_plain(describe_model()), "novelty": novelty}
    tensors = build_state(1) | ({} if bank is None else {BANK: bank})
    metadata = {METADATA_KEY: json.dumps(described)}
    save_tensors(folder / "model.safetensors", tensors, metadata)
    return folder / "model.safetensors"


def change_novelties() -> Iterator[tuple[str, Any, Tensor | None]]:
    good = {"neighbors": 5, "threshold": 0.4}
    dim = build_small_classifier(1).feature_dim
    bank = torch.nn.functional.normalize(torch.ones(3, dim), dim=1).half()
    for entry, values in NOVELTIES.items():
        for value in values:
            yield f"a novelty with {entry} {value!r}", {**good, entry: value}, bank
        without = {key: value for key, value in good.items() if key != entry}
        yield f"a novelty without {entry}", without, bank
    yield "a novelty with more", {**good, "more": 1}, bank
    yield "a novelty that is empty", {}, bank
    yield "a bank without novelty", None, bank
    yield "a novelty without bank", good, None
    for name, value in {
        "NaN": torch.full((3, dim), math.nan),
        "infinity": torch.full((3, dim), math.inf),
        "whole numbers": torch.ones(3, dim, dtype=torch.int64),
        "truths": torch.ones(3, dim, dtype=torch.bool),
        "numbers too large for a float": torch.full((3, dim), 1e300, dtype=torch.float64),
        "long rows": torch.full((3, dim), 1e30),
        "one number": torch.tensor(1.0),
        "no table": torch.ones(dim),
        "no rows": torch.ones(0, dim),
        "rows of another model": torch.ones(3, dim + 1),
        "empty rows": torch.ones(3, 0),
        "many tables": torch.ones(1, 3, dim),
    }.items():
        yield f"a bank of {name}", good, value


NOVELTIES: dict[str, tuple[Any, ...]] = {
    "neighbors": (0, -1, 1 << 80, 5.0, "5", True, None),
    "threshold": (0, -0.4, 1e300, math.nan, math.inf, "0.4", True, None),
}


def change_descriptions() -> Iterator[tuple[str, dict[str, Any]]]:
    wrong: dict[str, Any] = {
        "text": "text",
        "a negative number": -1,
        "a huge number": 1 << 80,
        "nothing": None,
        "nothing at all": GONE,
        "a list": [[[]]],
    }
    for entry in ("format", *to_plain(describe_model())):
        for name, value in wrong.items():
            if (entry, value) != ("novelty", None):  # which says that there is none
                yield f"{name} as {entry}", {entry: value}
    for value in (0, -1.0, 1e-9, 1e9, math.nan, math.inf, True, "1.0"):
        yield f"the temperature {value!r}", {"temperature": value}
    for name in ("os.system", "../../x", "resnet50; import os", "Resnet50", "torch.nn.Linear", ""):
        yield f"the backbone {name!r}", {"backbone": name}
    yield "a backbone of a million letters", {"backbone": "resnet50" * 125_000}
    for name in ("regnet_y_128gf", "vit_h_14", "resnext101_64x4d", "swin_v2_b", "convnext_large"):
        yield f"the large backbone {name}", {"backbone": name, "options": {}}
    yield "another backbone", {"backbone": "separable_cnn"}
    wide = {"width_per_group": 512, "groups": 64}
    yield "a backbone of many gigabytes", {"backbone": "resnet152", "options": wide}
    for value in (1e6, 1e308, -1.0, math.nan, math.inf, "1.0", None, True, [1.0]):
        yield f"a width of {value!r}", {"options": {"width_mult": value}}
    for name, options in {
        "unknown": {"num_classes": 10**9},
        "callable": {"norm_layer": "eval"},
    }.items():
        yield f"an {name} option", {"options": options}
    for entry, values in HEADS.items():
        for value in values:
            head = {**describe_model().head, entry: value}
            yield f"a head with {entry} {value!r}", {"head": head}
    for entry, values in PREPROCESSING.items():
        for value in values:
            preprocessing = {**to_plain(describe_model().preprocessing), entry: value}
            yield f"preprocessing with {entry} {value!r}", {"preprocessing": preprocessing}
    yield "preprocessing of its own", {"preprocessing": {"crop": 32, "resize": 32, "run": "x"}}
    for name, classes in CLASSES.items():
        yield f"classes that are {name}", {"classes": classes}
    yield "an unknown entry", {"more": 1}
    yield "a format of the future", {"format": MODEL_FORMAT + 1}


HEADS: dict[str, tuple[Any, ...]] = {
    "type": ("eval", 3, None, ["linear"]),
    "hidden": (10**9, -1, "512", 1.5),
    "dropout": (-1, 2, "0.5", math.nan),
    "norm": ("batch", 1),
    "more": (1,),
}
PREPROCESSING: dict[str, tuple[Any, ...]] = {
    "resize": (10**6, 0, -5, "36", 36.5, None),
    "crop": (10**6, 0, -5, "32", [32], True),
    "interpolation": ("exec", 3),
    "mean": ([0.5], [math.nan] * 3, ["a"] * 3, [1e300] * 3, "abc"),
    "std": ([0.0] * 3, [-1.0] * 3, [1.0] * 4, None),
    "background": ([256, 0, 0], [0.5] * 3),
    "exif": ("ignored",),
    "alpha": ("dropped",),
}
CLASSES: dict[str, Any] = {
    "none": [],
    "two": ["ant", "bee"],
    "a hundred thousand": [f"class {n}" for n in range(100_000)],
    "twice the same": ["ant", "ant", "bee"],
    "numbers": [1, 2, 3],
    "empty": ["ant", "", "bee"],
    "half a letter": ["ant", "\ud800", "bee"],
    "a table": {"ant": 0},
}
TEXTS = {
    "no JSON": "{",
    "a list": "[1, 2, 3]",
    "nothing": "",
    "a number": "7",
    "deep lists": "[" * 100_000,
    "deep tables": '{"a":' * 100_000,
    "a deep config": json.dumps({"format": MODEL_FORMAT, **to_plain(describe_model())}).replace(
        '"seed": 0', '"seed": ' + "[" * 100_000 + "]" * 100_000
    ),
    "a number of many digits": '{"format": ' + "9" * 100_000 + "}",
    "a null character": "\0",
}


def change_states_of_models() -> Iterator[tuple[str, dict[str, Tensor]]]:
    state = build_state(1)
    first, last = min(state), max(state)
    yield "no tensors", {}
    yield "a tensor too few", {name: state[name] for name in state if name != first}
    yield "a tensor too many", {**state, "backbone.more": torch.ones(3)}
    yield "a tensor with an odd name", {**state, "\x1b[2J": torch.ones(3)}
    yield "a tensor with a long name", {**state, "x" * 1_000_000: torch.ones(3)}
    for name, value in {
        "NaN": torch.full_like(state[first], math.nan),
        "infinity": torch.full_like(state[first], -math.inf),
        "a scalar": torch.tensor(1.0),
        "an empty tensor": torch.empty(0),
        "a larger tensor": torch.ones(1000, 1000),
    }.items():
        yield f"{name} as weights", {**state, first: value}
    yield (
        "another model's weights",
        {name: value[:1] for name, value in state.items() if value.ndim},
    )
    yield "a transposed layer", {**state, last: state[last].reshape(-1, 1)}


# --- headers of safetensors ----------------------------------------------------------------------


def tensor_headers() -> Iterator[tuple[str, Content]]:
    """safetensors files without digests, whose headers lie."""
    for name, header in HEADERS.items():
        text = header if isinstance(header, str) else json.dumps(header)
        yield name, headed(text.encode())
    for name, length in {"2^63": 1 << 63, "2^64 - 1": (1 << 64) - 1, "0": 0, "1": 1}.items():
        yield f"a header of {name} bytes", struct.pack("<Q", length) + b"{}" + bytes(100)
    yield "a header of 40 MB", lambda folder: headed(b"{}" + b" " * (40 << 20))
    yield "a header of 30 MB of spaces", lambda folder: headed(b"{}" + b" " * (30 << 20))
    yield "a header of 30 MB of brackets", lambda folder: headed(b"[" * (30 << 20))
    yield "many tensors", lambda folder: headed(json.dumps(many_tensors()).encode())
    yield "a header of no letters", headed(b'{"\xff\xfe": 1}')
    yield "a file of 12 TB", make_sparse


def many_tensors() -> dict[str, Any]:
    return {f"tensor {n}": entry("F32", [0], 0, 0) for n in range(30_000)}


def headed(header: bytes, data: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def make_sparse(folder: Path) -> Path:
    path = folder / "model.safetensors"
    header = json.dumps({"w": entry("U8", [12 << 40], 0, 12 << 40)}).encode()
    with path.open("wb") as stream:
        stream.write(headed(header, b""))
        stream.truncate(len(header) + 8 + (12 << 40))
    return path


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


HEADERS: dict[str, Any] = {
    "a good tensor of no model": {"w": entry("F32", [4], 0, 16)},
    "a shape larger than its data": {"w": entry("F32", [400], 0, 16)},
    "a shape that overflows": {"w": entry("F32", [1 << 40, 1 << 40], 0, 16)},
    "an empty shape that overflows": {
        "w": entry("F32", [0, 1 << 40, 1 << 40], 0, 0),
        "x": entry("U8", [16], 0, 16),
    },
    "a negative shape": {"w": entry("F32", [-4], 0, 16)},
    "a fraction as shape": {"w": entry("F32", [1.5], 0, 16)},
    "a number as shape": {"w": entry("F32", 4, 0, 16)},
    "a thousand dimensions": {"w": entry("U8", [1] * 999 + [16], 0, 16)},
    "offsets beyond the end": {"w": entry("F32", [4], 16, 32)},
    "offsets backwards": {"w": entry("F32", [4], 16, 0)},
    "negative offsets": {"w": entry("F32", [4], -16, 0)},
    "huge offsets": {"w": entry("F32", [4], 1 << 63, (1 << 63) + 16)},
    "one offset": {"w": entry("F32", [4], 16)},
    "overlapping tensors": {"w": entry("F32", [4], 0, 16), "x": entry("F32", [4], 0, 16)},
    "a gap": {"w": entry("F32", [1], 0, 4), "x": entry("F32", [2], 8, 16)},
    "data that nobody has": {"w": entry("F32", [1], 0, 4)},
    "an unknown type": {"w": entry("F33", [4], 0, 16)},
    "a type that is a list": {"w": entry(["F32"], [4], 0, 16)},
    "8-bit floats": {"w": entry("F8_E5M2", [16], 0, 16)},
    "8-bit floats with scales": {"w": entry("F8_E8M0", [16], 0, 16)},
    "4-bit floats": {"w": entry("F4", [32], 0, 16)},
    "6-bit floats": {"w": entry("F6_E2M3", [16], 0, 12), "x": entry("U8", [4], 12, 16)},
    "complex numbers": {"w": entry("C64", [2], 0, 16)},
    "unsigned numbers": {"w": entry("U64", [2], 0, 16)},
    "an entry that is a list": {"w": [1]},
    "an entry without offsets": {"w": {"dtype": "F32", "shape": [4]}},
    "metadata that is a list": {"__metadata__": [1], "w": entry("F32", [4], 0, 16)},
    "metadata of numbers": {"__metadata__": {"vtrain": 1}, "w": entry("F32", [4], 0, 16)},
    "a digest alone": {"__metadata__": {"sha256": "0"}, "w": entry("F32", [4], 0, 16)},
    "metadata alone": {"__metadata__": {"vtrain": "{}"}, "w": entry("F32", [4], 0, 16)},
    "the same name twice": '{"w":1,"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "NaN": '{"w":NaN}',
    "a comment": '/* */{"w":1}',
    "spaces first": '   {"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "a list": "[1,2,3]",
    "a text": '"text"',
    "a number of many digits": '{"w":' + "9" * 100_000 + "}",
    "deep lists": '{"w":' + "[" * 100_000 + "]" * 100_000 + "}",
    "half a letter as name": '{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "an empty name": {"": entry("F32", [4], 0, 16)},
    "no tensors": {},
}
