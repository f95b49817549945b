"""The model file: one safetensors file with everything that using a trained model needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError
from torch import Tensor

from vtrain.config.keys import HeadConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.config.run_files import CHECKPOINT_NAME, MODEL_NAME
from vtrain.errors import ModelError, NewerFormatError, UsageError
from vtrain.models.backbones import WithoutMemory
from vtrain.models.classifier import Classifier, build_classifier
from vtrain.models.zoo import find_backbone
from vtrain.system.json_csv import to_plain
from vtrain.system.tensor_files import (
    find_misfits,
    is_safetensors,
    load_tensors,
    read_metadata,
    save_tensors,
)

MODEL_FORMAT = 3  # since 2: temperature and novelty, since 3: class_ids
BANK = "novelty.bank"  # the one tensor that is none of the classifier's
MAX_BANK_ROWS = 100_000
METADATA_KEY = "vtrain"


def _check_classes(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        name.encode("utf-8", "surrogateescape")  # as every output writes it
    if "" in names or len(set(names)) < len(names):
        raise ValueError("an empty name, or the same name twice")
    return names


@dataclass(frozen=True, slots=True)
class StoredNovelty:
    """What belongs to the features `novelty.bank` `[M, D]` of training images.

    Unlike them is an image whose distance to the `neighbors`-th nearest is above `threshold`.
    """

    neighbors: Annotated[int, Field(ge=1, le=MAX_BANK_ROWS)]
    threshold: Annotated[float, Field(ge=1e-9, le=1e9)]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Everything besides the tensors that makes a trained model usable on its own.

    `pretrained_input`: the backbone was built as torchvision builds it for pretrained weights
    (Inception and GoogLeNet then normalise their input a second time). `temperature` divides the
    logits. `novelty` is None where the file has no features of training images. `class_ids` are the
    names that classes have in folders and lists, if those are others.
    """

    __pydantic_config__ = ConfigDict(strict=True, revalidate_instances="always")

    # To find a backbone that is near to a name takes long for a long one.
    backbone: Annotated[str, Field(max_length=100)]
    options: dict[str, Any]
    pretrained_input: bool
    head: dict[str, Any]
    # Names of folders may hold bytes that are no text, which pydantic's own check refuses.
    classes: Annotated[
        tuple[InstanceOf[str], ...], Field(min_length=1), AfterValidator(_check_classes)
    ]
    preprocessing: Preprocessing
    config: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, Any]
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    novelty: StoredNovelty | None = None
    class_ids: tuple[InstanceOf[str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse names in folders that do not go with the classes."""
        if len(self.class_ids) not in (0, len(self.classes)):
            raise ValueError(f"{len(self.class_ids)} class_ids for {len(self.classes)} classes")


_CHECKER = TypeAdapter(ModelFile)


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
        if type(found) is not int or found < 1:
            raise ValueError(f"format is {found!r:.80}")
        if found > MODEL_FORMAT:
            raise NewerFormatError(
                f"{path} has model format {found}, this vtrain reads up to {MODEL_FORMAT}",
                "update vtrain: pip install --upgrade vtrain",
            )
        if found < 2:
            metadata |= {"temperature": 1.0, "novelty": None}
        if found < 3:
            metadata |= {"class_ids": []}
        if missing := ModelFile.__dataclass_fields__.keys() - metadata.keys():
            raise KeyError(", ".join(sorted(missing)))
        for name, record in (("preprocessing", Preprocessing), ("novelty", StoredNovelty)):
            if isinstance(metadata[name], dict):
                metadata[name] = record(**_with_tuples(metadata[name]))
        return _CHECKER.validate_python(ModelFile(**_with_tuples(metadata)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place} is {first['input']!r:.80}: {first['msg']}"
        raise ModelError(f"{path}: the model's description is damaged: {reason}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: the model's description is damaged: {error}") from error


def _with_tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {key: tuple(each) if isinstance(each, list) else each for key, each in table.items()}


def _hint_at_weights(path: Path) -> str:
    return f"for plain weights type: -m BACKBONE:{path}"


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
    own = classifier.state_dict()
    if misfits := find_misfits(tensors, own):
        raise ModelError(
            f"{path}: the tensors do not fit {description.backbone}: {'; '.join(misfits)}"
        )
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


def _build_described(path: Path, description: ModelFile) -> Classifier:
    try:
        # A description can be of any size, and the file decides what memory it needs.
        with WithoutMemory():
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
