"""The model file: one safetensors file with everything that using a trained model needs."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vtrain.config import HeadConfig
from vtrain.errors import ModelError, NewerFormatError, UsageError
from vtrain.models.classifier import Classifier, build_classifier
from vtrain.records import Interpolation, Preprocessing, to_plain
from vtrain.run_folder import CHECKPOINT_NAME, MODEL_NAME
from vtrain.tensor_files import (
    is_safetensors,
    load_tensors,
    read_metadata,
    save_tensors,
    shorten_names,
)
from vtrain.zoo import find_backbone

MODEL_FORMAT = 2  # since 2: temperature and novelty
BANK = "novelty.bank"  # the one tensor that is none of the classifier's
MAX_BANK_ROWS = 100_000
METADATA_KEY = "vtrain"
MAX_EDGE = 4096  # pixels
_LONGEST_NAME = 100  # of a backbone; to find one that is near to a name takes long for a long one


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Everything besides the tensors that makes a trained model usable on its own.

    `pretrained_input`: the backbone was built as torchvision builds it for pretrained weights
    (Inception and GoogLeNet then normalise their input a second time). `temperature` divides the
    logits. `novelty` has `neighbors` and `threshold` of the distance from training images, whose
    features are the tensor `novelty.bank` `[M, D]`; None where there is none.
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
    temperature: float = 1.0
    novelty: dict[str, Any] | None = None


def save_model(path: Path, state: Mapping[str, Tensor], model_file: ModelFile) -> None:
    """Write the model file: safetensors, self-contained, whole or not at all.

    Raises:
        ResourceError: no space left; an earlier file at `path` is intact.
    """
    metadata = {"format": MODEL_FORMAT, **to_plain(model_file)}
    save_tensors(path, state, {METADATA_KEY: json.dumps(metadata)})


def read_model_file(path: Path) -> ModelFile:
    """The description stored in a model file, without its tensors.

    Raises:
        ModelError: not a vtrain model file, damaged, or written by a newer version.
    """
    if not is_safetensors(path):
        raise ModelError(f"{path} is not a vtrain model file", _hint_at_weights(path))
    return _parse_description(path, read_metadata(path))


def load_model_tensors(path: Path) -> tuple[dict[str, Tensor], ModelFile]:
    """Tensors and description of one model file, also when another takes its place meanwhile.

    Raises:
        ModelError: not a vtrain model file, damaged, or written by a newer version.
    """
    read_model_file(path)  # what cannot be used is refused before its tensors are read
    tensors, metadata = load_tensors(path)
    return tensors, _parse_description(path, metadata)


def _parse_description(path: Path, stored: Mapping[str, str]) -> ModelFile:
    text = stored.get(METADATA_KEY)
    if text is None:
        message = "is a safetensors file, but not a vtrain model: its description is missing"
        raise ModelError(f"{path} {message}", _hint_at_weights(path))
    try:
        metadata = json.loads(text)
        found = metadata.pop("format")
        if not _is_whole(found, 1):
            raise ValueError(f"format is {found!r:.80}")
        if found > MODEL_FORMAT:
            raise NewerFormatError(
                f"{path} has model format {found}, this vtrain reads up to {MODEL_FORMAT}",
                "update vtrain: pip install --upgrade vtrain",
            )
        if found < 2:
            metadata |= {"temperature": 1.0, "novelty": None}
        _check_types(metadata)
        metadata["classes"] = tuple(metadata["classes"])
        metadata["preprocessing"] = read_preprocessing(metadata["preprocessing"])
        return ModelFile(**metadata)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: the model's description is damaged: {error}") from error


def _hint_at_weights(path: Path) -> str:
    return f"for plain weights type: -m BACKBONE:{path}"


def _check_types(metadata: Mapping[str, Any]) -> None:
    """Refuse entries that another part of the program would stumble over."""
    kinds = {
        "backbone": str,
        "pretrained_input": bool,
        "classes": list,
        "options": dict,
        "head": dict,
        "preprocessing": dict,
        "config": dict,
        "metrics": dict,
        "versions": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(metadata[name], kind):
            raise TypeError(f"{name} is {metadata[name]!r:.80}")
    classes = metadata["classes"]
    if not classes or not all(isinstance(name, str) and name for name in classes):
        raise ValueError("classes are not a list of names")
    if len(set(classes)) < len(classes):
        raise ValueError("classes hold the same name twice")
    _check_scores(metadata)
    for name in classes:
        name.encode("utf-8", "surrogateescape")  # as every output writes it
    if len(metadata["backbone"]) > _LONGEST_NAME:
        raise ValueError(f"backbone is {metadata['backbone']!r:.80}")


def _check_scores(metadata: Mapping[str, Any]) -> None:
    if not _is_number(metadata["temperature"], 1e-3, 1e3):
        raise ValueError(f"temperature is {metadata['temperature']!r:.80}")
    novelty = metadata["novelty"]
    if novelty is None:
        return
    fits = isinstance(novelty, dict) and set(novelty) == {"neighbors", "threshold"}
    if not (
        fits
        and _is_whole(novelty["neighbors"], 1, MAX_BANK_ROWS)
        and _is_number(novelty["threshold"], 1e-9, 1e9)
    ):
        raise ValueError(f"novelty is {novelty!r:.80}")


def read_preprocessing(data: Mapping[str, Any]) -> Preprocessing:
    """A `Preprocessing` from its JSON form, every value of it checked.

    Raises:
        TypeError, ValueError: an entry is unknown, or of the wrong type, or out of range.
    """
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    found = Preprocessing(**fields)
    fits = {
        "resize": _is_whole(found.resize, 1, MAX_EDGE),
        "crop": _is_whole(found.crop, 1, MAX_EDGE),
        "interpolation": found.interpolation in get_args(Interpolation),
        "mean": _are_three(found.mean) and all(_is_number(each, 0, 1) for each in found.mean),
        "std": _are_three(found.std) and all(_is_number(each, 1e-6, 1e6) for each in found.std),
        "background": _are_three(found.background)
        and all(_is_whole(each, 0, 255) for each in found.background),
        "exif": found.exif == "applied",
        "alpha": found.alpha == "composited",
    }
    for name, fitting in fits.items():
        if not fitting:
            raise ValueError(f"preprocessing.{name} is {getattr(found, name)!r:.80}")
    return found


def _are_three(values: object) -> bool:
    return isinstance(values, tuple) and len(values) == 3


def _is_whole(value: object, low: int, high: float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # type: ignore[operator]


def load_model_file(path: Path) -> tuple[Classifier, ModelFile]:
    """The classifier of a model file, on the CPU in evaluation mode, and its description.

    Raises:
        ModelError: damaged, foreign, or from a newer version.
    """
    classifier, description, _ = load_scoring_model(path)
    return classifier, description


def load_scoring_model(path: Path) -> tuple[Classifier, ModelFile, Tensor | None]:
    """As `load_model_file`, and the float32 features `[M, D]` of training images if there are any.

    Raises:
        ModelError: damaged, foreign, or from a newer version.
    """
    tensors, description = load_model_tensors(path)
    bank = tensors.pop(BANK, None)
    if (bank is None) != (description.novelty is None):
        lacking = BANK if bank is None else "its description"
        raise ModelError(f"{path}: the distance from training images lacks {lacking}")
    classifier = _build_described(path, description)
    if misfits := _find_misfits(tensors, classifier):
        raise ModelError(
            f"{path}: the tensors do not fit {description.backbone}: {shorten_names(misfits)}"
        )
    own = classifier.state_dict()
    fitting = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    classifier.load_state_dict(fitting, assign=True)
    if bank is not None:
        bank = _read_bank(path, bank, classifier.feature_dim)
    return classifier.eval(), description, bank


def _read_bank(path: Path, stored: Tensor, feature_dim: int) -> Tensor:
    bank = stored.float() if stored.is_floating_point() else stored.new_empty(0)
    fits = bank.ndim == 2 and 1 <= len(bank) <= MAX_BANK_ROWS and bank.shape[1] == feature_dim
    # Rows have the length 1; of a double much larger than that a float would be infinite.
    if not fits or not bool(bank.abs().amax() <= 2):
        kind = f"{str(stored.dtype).removeprefix('torch.')} {list(stored.shape)}"
        raise ModelError(f"{path}: {BANK} is {kind:.80}, expected features [M, {feature_dim}]")
    return bank


def _find_misfits(tensors: Mapping[str, Tensor], classifier: Classifier) -> list[str]:
    own = classifier.state_dict()
    return sorted(
        name
        for name in {*tensors, *own}
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )


class _WithoutMemory(TorchFunctionMode):
    """Tensors that modules make for their parameters get neither memory nor random numbers.

    Weights of a file take their places. Until then a description can be of any size, and the file
    decides what it needs.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _build_described(path: Path, description: ModelFile) -> Classifier:
    """The network without memory for its parameters."""
    try:
        with _WithoutMemory():
            return build_classifier(
                find_backbone(description.backbone),
                num_classes=len(description.classes),
                head=HeadConfig(**description.head),
                image_size=description.preprocessing.crop,
                pretrained=description.pretrained_input,
                options=description.options,
            )
    except (UsageError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path} describes a model that this vtrain cannot build: {error}",
            "if a newer vtrain wrote it: pip install --upgrade vtrain",
        ) from error


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
