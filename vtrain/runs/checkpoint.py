"""The checkpoint of a run: what it holds, how it is saved, and what is refused of one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    TypeAdapter,
    ValidationError,
)
from torch import Tensor
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from vtrain.config.run_files import CHECKPOINT_NAME
from vtrain.errors import ModelError, NewerFormatError
from vtrain.runs.folder import DAMAGED_NAME, PREVIOUS_NAME
from vtrain.runs.metric_log import COLUMNS
from vtrain.system.reporter import Reporter
from vtrain.system.tensor_files import find_non_finite, shorten_names
from vtrain.system.torch_files import load_torch, save_torch
from vtrain.training.state import Count, TrainState

CHECKPOINT_FORMAT = 1
NO_CHECKPOINT_HINT = "start a new run: without --resume, and with another run_dir if it is set"


class _ParamGroup(TypedDict):
    params: list[Count]
    lr: float
    weight_decay: float
    betas: NotRequired[tuple[float, float]]  # of AdamW
    momentum: NotRequired[float]  # of SGD
    stage: str
    peak_lrs: list[float]


class _Optimizer(TypedDict):
    state: dict[Count, dict[str, Tensor | float]]
    param_groups: list[_ParamGroup]


class _Machine(TypedDict):
    precision: str
    threads: NotRequired[Annotated[Count, Field(gt=0)]]
    processes: NotRequired[Annotated[Count, Field(gt=0)]]
    batch_size: NotRequired[Annotated[Count, Field(gt=0)]]


_Lengths = TypedDict(
    "_Lengths", {"train.epochs": Count | None, "train.early_stop": Count | None}, total=False
)


def _like(table: type) -> GetPydanticSchema:
    """Check a dictionary as `table`, which names those of its entries that we read."""
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(table))


def _require_finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if names := find_non_finite(tensors):
        raise ValueError(f"NaN or infinity in {shorten_names(names):.200}")
    return tensors


_Weights = Annotated[dict[str, Tensor], Field(min_length=1), AfterValidator(_require_finite)]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of `last.ckpt`: tensors and plain data only.

    `planned_epochs` is the number the run started with, which fixes its phases; `frozen` holds the
    digests of the tensors that the current phase must not change; `config` and `data` are flat;
    `machine` has the device, precision, batch size, and numbers of threads and processes.
    """

    __pydantic_config__ = ConfigDict(
        strict=True, arbitrary_types_allowed=True, revalidate_instances="always"
    )

    model: _Weights
    ema: _Weights | None
    optimizer: Annotated[dict[str, Any], _like(_Optimizer)]
    scaler: dict[str, float]
    state: TrainState
    planned_epochs: Count
    frozen: dict[str, str]
    config: Annotated[dict[str, Any], _like(_Lengths)]
    data: dict[str, Any]
    machine: Annotated[dict[str, Any], _like(_Machine)]


_CHECKER = TypeAdapter(Checkpoint)


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
        checkpoint = Checkpoint(**{**content, "state": TrainState(**content["state"])})
        _CHECKER.validate_python(checkpoint)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, value = ".".join(map(str, first["loc"])), first["input"]
        shown = f"{value!r:.80}" if isinstance(value, str | int | float) else type(value).__name__
        reason = f"{place:.100} is {shown}: {first['msg']:.300}"
        raise ModelError(f"{path}: the checkpoint's content is damaged: {reason}") from error
    except (TypeError, KeyError) as error:  # entries that are missing or unknown
        raise ModelError(f"{path}: the checkpoint's content is damaged: {error!s:.400}") from error
    return checkpoint


def check_fit(
    checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, *, batches: int, averaged: bool
) -> None:
    """Refuse a checkpoint of a run that is not like this one.

    `batches` is the number of them in an epoch, `averaged` is whether this run keeps an average of
    its weights.

    Raises:
        ValueError: its optimizer has other parameters, or its place in the run cannot be.
    """
    if averaged != (checkpoint.ema is not None):
        raise ValueError("it has no average of the weights" if averaged else "it has an average")
    state = checkpoint.state
    begun = state.batch > 0
    counted = state.image_count > 0 or (begun and len(state.left_out) > 0)
    if state.batch > batches or begun != counted:
        raise ValueError(f"batch {state.batch} of {batches} after {state.image_count} images")
    if len(state.history) != state.epoch:
        raise ValueError(f"{len(state.history)} rows of metrics after {state.epoch} epochs")
    if any(row.keys() != set(COLUMNS) for row in state.history):
        raise ValueError("its history of epochs has other columns")
    stored, own = (
        [(group["params"], len(group["peak_lrs"])) for group in content["param_groups"]]
        for content in (checkpoint.optimizer, optimizer.state_dict())
    )
    if stored != own:
        raise ValueError("its optimizer has other groups or numbers of parameters")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for index, values in checkpoint.optimizer["state"].items():
        shapes = ((), parameters[index].shape) if index < len(parameters) else ()
        for name, value in values.items():
            if torch.as_tensor(value).shape not in shapes:
                raise ValueError(f"its optimizer's {name} of parameter {index} has another shape")
