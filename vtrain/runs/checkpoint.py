"""What is saved and loaded: the model file, the checkpoint of a run, and what `-m MODEL` means."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtrain.config.run_files import CHECKPOINT_NAME
from vtrain.errors import ModelError, NewerFormatError
from vtrain.runs.folder import DAMAGED_NAME, PREVIOUS_NAME
from vtrain.runs.metric_log import COLUMNS
from vtrain.system.reporter import Reporter
from vtrain.system.tensor_files import find_non_finite, shorten_names
from vtrain.system.torch_files import load_torch, save_torch
from vtrain.training.state import TrainState

CHECKPOINT_FORMAT = 1
NO_CHECKPOINT_HINT = "start a new run: without --resume, and with another run_dir if it is set"
_MOST = 2**53  # epochs, steps, images: far beyond any run, and exact as a float
_READ = ("lr", "peak_lrs", "stage", "weight_decay")
_NUMBERS = ("planned_epochs", "epoch", "batch", "step", "image_count", "best_epoch", "splits")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of `last.ckpt`: tensors and plain data only.

    `planned_epochs` is the number the run started with, which fixes its phases; `frozen` holds the
    digests of the tensors that the current phase must not change; `config` and `data` are flat;
    `machine` has the device, precision, batch size, and numbers of threads and processes.
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    state: TrainState
    planned_epochs: int
    frozen: dict[str, str]
    config: dict[str, Any]
    data: dict[str, Any]
    machine: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `last.ckpt`, whole or not at all; the one before stays beside it as `previous.ckpt`.

    Raises:
        ResourceError: no space left; the earlier checkpoint is intact.
    """
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    content["state"] = asdict(checkpoint.state)
    previous = path.with_name(PREVIOUS_NAME)
    save_torch(path, {"format": CHECKPOINT_FORMAT, **content}, previous=previous)


def load_last_checkpoint(run_dir: Path, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint of a run: its last, or the one before where that is missing or damaged.

    The latter is said, and `previous.ckpt` becomes `last.ckpt`. None where there never was one.

    Raises:
        ModelError: none of the two is usable; or the last is from a newer version.
    """
    last, previous = run_dir / CHECKPOINT_NAME, run_dir / PREVIOUS_NAME
    if not (last.exists() or previous.exists()):
        return None
    try:
        return load_checkpoint(last)
    except NewerFormatError:
        raise
    except ModelError as error:
        if not previous.exists():
            raise ModelError(error.message, NO_CHECKPOINT_HINT) from error
        try:
            checkpoint = load_checkpoint(previous)
        except ModelError as second:
            both = f"{error.message}; {second.message}"
            raise ModelError(both, NO_CHECKPOINT_HINT) from second
        reporter.warn(
            f"{error.message}: going on from the checkpoint before it, "
            f"of step {checkpoint.state.step}"
        )
    if last.exists():  # what this version cannot read, another program may
        last.replace(run_dir / DAMAGED_NAME)
    previous.replace(last)
    return checkpoint


def load_checkpoint(path: Path) -> Checkpoint:
    """Read `last.ckpt`; no code in the file is run.

    Raises:
        ModelError: damaged, foreign, or from a newer version.
    """
    content = load_torch(path)
    found = content.pop("format", None) if isinstance(content, dict) else None
    if type(found) is not int or found < 1:
        raise ModelError(f"{path} is not a vtrain checkpoint")
    if found > CHECKPOINT_FORMAT:
        raise NewerFormatError(
            f"{path} has checkpoint format {found}, this vtrain reads up to {CHECKPOINT_FORMAT}",
            "update vtrain: pip install --upgrade vtrain",
        )
    try:
        check_content(content)
        content["state"] = TrainState(**content["state"])
        return Checkpoint(**content)
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: the checkpoint's content is damaged: {error!s:.400}") from error


def check_content(content: Mapping[str, Any]) -> None:
    """Refuse entries of another type or range than a run saves.

    Raises:
        KeyError: an entry is missing.
        ValueError: an entry cannot be what a run has saved.
    """
    _check_tensors("model", content["model"])
    if content["ema"] is not None:
        _check_tensors("ema", content["ema"])
    _check_optimizer(content["optimizer"])
    _require("planned_epochs", content["planned_epochs"], _is_count)
    for name in ("scaler", "frozen", "config", "data", "machine", "state"):
        _require(name, content[name], _is_table)
    _require("scaler", content["scaler"], lambda table: all(map(_is_number, table.values())))
    _require("frozen", content["frozen"], lambda table: all(map(_is_text, table.values())))
    _check_state(content["state"])
    machine, config = content["machine"], content["config"]
    _require("machine.precision", machine.get("precision"), _is_text)
    for name in ("batch_size", "processes", "threads"):
        _require(f"machine.{name}", machine.get(name, 1), lambda n: _is_count(n) and n > 0)
    for name in ("train.epochs", "train.early_stop"):
        _require(
            f"config.{name}", config.get(name), lambda value: value is None or _is_count(value)
        )


def check_fit(
    content: Any, optimizer: torch.optim.Optimizer, *, batches: int, averaged: bool
) -> None:
    """Refuse a checkpoint (one that `check_content` took) of a run that is not like this one.

    `content` has `optimizer`, `ema` and `state`; `batches` is the number of them in an epoch,
    `averaged` is whether this run keeps an average of its weights.

    Raises:
        ValueError: its optimizer has other parameters, or its place in the run cannot be.
    """
    if averaged != (content.ema is not None):
        raise ValueError("it has no average of the weights" if averaged else "it has an average")
    state: TrainState = content.state
    begun = state.batch > 0
    counted = state.image_count > 0 or (begun and len(state.left_out) > 0)
    if state.batch > batches or begun != counted:
        raise ValueError(f"batch {state.batch} of {batches} after {state.image_count} images")
    if len(state.history) != state.epoch:
        raise ValueError(f"{len(state.history)} rows of metrics after {state.epoch} epochs")
    for row in state.history:
        if row.keys() != set(COLUMNS):
            raise ValueError("its history of epochs has other columns")
    own, groups = optimizer.state_dict()["param_groups"], content.optimizer["param_groups"]
    if len(own) != len(groups) or not all(map(_agree, groups, own)):
        raise ValueError("its optimizer has other settings or numbers of parameters")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for index, values in content.optimizer["state"].items():
        for name, value in values.items():
            whole = index < len(parameters) and (
                not isinstance(value, Tensor) or value.shape in ((), parameters[index].shape)
            )
            if not whole:
                raise ValueError(f"its optimizer's {name} of parameter {index} has another shape")


def _agree(group: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether two groups have the same parameters and the same types of settings.

    Settings that another version of torch has or lacks do not count, but for those that we read.
    """
    if group["params"] != own["params"] or any(name not in group for name in _READ):
        return False
    common = group.keys() & own.keys()
    return all(_describe(group[name]) == _describe(own[name]) for name in common)


def _describe(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_describe(each) for each in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if number else type(value).__name__


def _check_tensors(name: str, table: object) -> None:
    _require(name, table, lambda value: _is_table(value) and len(value) > 0)
    _require(name, table, lambda value: all(isinstance(t, Tensor) for t in value.values()))
    if names := find_non_finite(dict(table)):  # type: ignore[call-overload]
        raise ValueError(f"{name} holds NaN or infinity in {shorten_names(names):.200}")


def _check_optimizer(content: object) -> None:
    _require("optimizer", content, lambda value: isinstance(value, dict))
    assert isinstance(content, dict)
    states, groups = content["state"], content["param_groups"]
    _require("optimizer.state", states, lambda value: isinstance(value, dict))
    for index, values in states.items():
        _require("optimizer.state", index, _is_count)
        _require("optimizer.state", values, _is_table)
        for value in values.values():
            _require("optimizer.state", value, lambda v: isinstance(v, Tensor) or _is_number(v))
    _require("optimizer.param_groups", groups, _is_list_of_tables)
    for group in groups:
        _require("optimizer.param_groups", group["params"], _is_list_of_counts)


def _check_state(state: Mapping[str, Any]) -> None:
    for each in fields(TrainState):
        value = state.get(each.name, each.default)
        if each.name == "history":
            _require("state.history", state.get("history", []), _is_list_of_tables)
        elif each.name == "left_out":
            _require("state.left_out", state.get("left_out", []), _is_list_of_counts)
        elif each.name in _NUMBERS:
            _require(f"state.{each.name}", value, _is_count)
        else:
            _require(f"state.{each.name}", value, _is_number)
    _require("state.splits", state.get("splits", 1), lambda value: value > 0)
    for name in ("loss_sum", "seconds"):
        _require(f"state.{name}", state.get(name, 0.0), math.isfinite)


def _require(name: str, value: Any, fits: Callable[[Any], bool]) -> None:
    if not fits(value):
        shown = f"{value!r:.80}" if isinstance(value, str | int | float) else type(value).__name__
        raise ValueError(f"{name} is {shown}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _MOST)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_table, value))


def _is_list_of_counts(value: object) -> bool:
    return isinstance(value, Sequence) and all(map(_is_count, value))
