"""What is saved and loaded: the model file, the checkpoint of a run, and what `-m MODEL` means."""

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtrain.config import HeadConfig
from vtrain.errors import ModelError
from vtrain.models.backbones import eval_preprocessing, pretrained_classes
from vtrain.models.classifier import (
    Classifier,
    build_classifier,
    build_pretrained_classifier,
)
from vtrain.models.weights import load_native_weights
from vtrain.records import Preprocessing, to_plain
from vtrain.run_folder import CHECKPOINT_NAME, MODEL_NAME, RUNS, find_newest_run
from vtrain.runtime import place_model, seed_everything
from vtrain.tensor_files import load_tensors, load_torch, read_metadata, save_tensors, save_torch
from vtrain.training.loop import TrainState
from vtrain.zoo import backbone_names, find_backbone

MODEL_FORMAT = 1
CHECKPOINT_FORMAT = 1
METADATA_KEY = "vtrain"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Everything besides the tensors that makes a trained model usable on its own.

    `pretrained_input`: the backbone was built as torchvision builds it for pretrained weights
    (Inception and GoogLeNet then normalise their input a second time).
    """

    backbone: str
    options: dict[str, Any]
    pretrained_input: bool
    head: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    config: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier in evaluation mode on its device, with all that its use needs."""

    classifier: Classifier
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of `last.ckpt`: tensors and plain data only.

    `planned_epochs` is the number the run started with, which fixes its phases; `frozen` holds the
    digests of the tensors that the current phase must not change; `config` and `data` are flat.
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
    threads: int


def save_model(path: Path, classifier: Classifier, model_file: ModelFile) -> None:
    """Write the model file: safetensors, self-contained, whole or not at all.

    Raises:
        ResourceError: no space left; an earlier file at `path` is intact.
    """
    metadata = {"format": MODEL_FORMAT, **to_plain(model_file)}
    save_tensors(path, classifier.state_dict(), {METADATA_KEY: json.dumps(metadata)})


def read_model_file(path: Path) -> ModelFile:
    """The description stored in a model file, without its tensors.

    Raises:
        ModelError: not a vtrain model file, damaged, or written by a newer version.
    """
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        raise ModelError(
            f"{path} is a safetensors file, but not a vtrain model: its description is missing",
            f"for plain weights type: -m BACKBONE:{path}",
        )
    try:
        metadata = json.loads(text)
        found = metadata.pop("format")
        if found > MODEL_FORMAT:
            raise ModelError(
                f"{path} has model format {found}, this vtrain reads up to {MODEL_FORMAT}",
                "update vtrain: pip install --upgrade vtrain",
            )
        metadata["classes"] = tuple(metadata["classes"])
        metadata["preprocessing"] = read_preprocessing(metadata["preprocessing"])
        return ModelFile(**metadata)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the model's description is damaged: {error}") from error


def read_preprocessing(data: Mapping[str, Any]) -> Preprocessing:
    """A `Preprocessing` from its JSON form."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    return Preprocessing(**fields)


def load_model_file(path: Path) -> tuple[Classifier, ModelFile]:
    """The classifier of a model file, on the CPU in evaluation mode, and its description.

    Raises:
        ModelError: damaged, foreign, or from a newer version.
    """
    description = read_model_file(path)
    tensors, _ = load_tensors(path)
    classifier = build_classifier(
        find_backbone(description.backbone),
        num_classes=len(description.classes),
        head=HeadConfig(**description.head),
        image_size=description.preprocessing.crop,
        pretrained=description.pretrained_input,
        options=description.options,
    )
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: the tensors do not fit {description.backbone}: {error}"
        ) from error
    return classifier.eval(), description


def load_model(
    model: str | None,
    *,
    device: torch.device,
    runs: Path = RUNS,
    notify: Callable[[str], None],
) -> LoadedModel:
    """The model that `-m MODEL` names: a run folder, a model file, or a torchvision name.

    None is the newest finished run below `runs`, named through `notify`.

    Raises:
        ModelError: nothing usable there.
        UsageError: unknown backbone.
    """
    if model is None:
        path = find_newest_run(runs) / MODEL_NAME
        notify(f"model: {path}")
        return _load_own(path, device)
    if Path(model).exists():
        return _load_own(find_model_file(Path(model)), device)
    name, _, weights = model.partition(":")
    if name in backbone_names():
        return _load_native(name, weights or "DEFAULT", device, notify)
    raise ModelError(f"no model {model!r}: no such path, and no such backbone", _suggest(model))


def _suggest(model: str) -> str:
    folders = [str(path) for path in Path(model).parent.glob("*")]
    close = difflib.get_close_matches(model, [*backbone_names(), *folders], n=1)
    start = f"did you mean {close[0]}? " if close else ""
    return f"{start}give a run folder, a model file, or a name that `vtrain backbones` lists"


def _load_own(path: Path, device: torch.device) -> LoadedModel:
    classifier, description = load_model_file(path)
    place_model(classifier, device)
    return LoadedModel(classifier, description.preprocessing, description.classes, str(path))


def _load_native(
    name: str, weights: str, device: torch.device, notify: Callable[[str], None]
) -> LoadedModel:
    spec = find_backbone(name)
    seed_everything(0)  # `:none` is random, and the same every time
    classifier = build_pretrained_classifier(spec, pretrained=weights != "none")
    enum_name = load_native_weights(classifier, weights, notify=notify)
    classes = pretrained_classes(spec, enum_name)
    if len(classes) != classifier.num_classes:
        classes = tuple(f"class {index}" for index in range(classifier.num_classes))
    place_model(classifier.eval(), device)
    return LoadedModel(
        classifier, eval_preprocessing(spec, enum_name), classes, f"{name}:{weights}"
    )


def find_model_file(path: Path) -> Path:
    """The model file at `path`, which may be a run folder.

    Raises:
        ModelError: the folder holds no model file.
    """
    if not path.is_dir():
        return path
    if not (path / MODEL_NAME).exists():
        hint = "train a model into it, or name another folder"
        if (path / CHECKPOINT_NAME).exists():
            hint = "its training has not finished an epoch; continue with: vtrain fit … --resume"
        raise ModelError(f"{path} holds no {MODEL_NAME}", hint)
    return path / MODEL_NAME


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `last.ckpt`, whole or not at all.

    Raises:
        ResourceError: no space left; the earlier checkpoint is intact.
    """
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    content["state"] = asdict(checkpoint.state)
    save_torch(path, {"format": CHECKPOINT_FORMAT, **content})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read `last.ckpt`; no code in the file is run.

    Raises:
        ModelError: damaged, foreign, or from a newer version.
    """
    content = load_torch(path)
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ModelError(f"{path} is not a vtrain checkpoint")
    found = content.pop("format")
    if found > CHECKPOINT_FORMAT:
        raise ModelError(
            f"{path} has checkpoint format {found}, this vtrain reads up to {CHECKPOINT_FORMAT}",
            "update vtrain: pip install --upgrade vtrain",
        )
    try:
        content["state"] = TrainState(**content["state"])
        return Checkpoint(**content)
    except (TypeError, KeyError) as error:
        raise ModelError(f"{path}: the checkpoint's content is damaged: {error}") from error
