"""Pretrained weights: found, downloaded, checked, and fitted into a classifier."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torchvision
from torch import Tensor, nn

from vtrain.config.preprocessing import Preprocessing
from vtrain.errors import ModelError
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.backbones import (
    auxiliary_prefixes,
    eval_preprocessing,
    interpolate_position_embedding,
    rename_legacy_keys,
)
from vtrain.models.classifier import Classifier
from vtrain.models.downloads import find_published_file, is_cached, published_name
from vtrain.models.model_file import (
    METADATA_KEY,
    find_model_file,
    load_model_tensors,
    read_model_file,
)
from vtrain.models.zoo import backbone_names, find_backbone, find_weights
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.tensor_files import (
    find_misfits,
    find_non_finite,
    is_safetensors,
    load_tensors,
    read_metadata,
    shorten_names,
)
from vtrain.system.torch_files import load_torch

WeightsKind = Literal["none", "pretrained", "file", "vtrain"]

# What training scripts call the state dict inside their checkpoints, and wrap around its keys.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema")
_KEY_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
# Floating-point buffers; everything else that is floating-point is a parameter.
_BUFFERS = (".running_mean", ".running_var", ".relative_coords_table")
_POSITION_EMBEDDING = "encoder.pos_embedding"


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """What `model.weights` names, and what those weights expect of their input.

    `enum_name` names the published weights, also when they came as a file of the published name.
    `pretrained_input` is whether the backbone is built as torchvision builds it for its own
    weights (Inception and GoogLeNet then normalise once more).
    """

    kind: WeightsKind
    name: str
    preprocessing: Preprocessing
    pretrained_input: bool
    enum_name: str | None = None


def describe_weights(weights: str, spec: BackboneSpec) -> WeightsSource:
    """Find out what `weights` names, without loading or downloading any tensor.

    Raises:
        ModelError: A path where nothing usable lies, or a vtrain model that cannot be read.
        UsageError: No published weights of that name.
    """
    kind = find_weights_kind(weights, spec)
    if kind == "vtrain":
        stored = read_model_file(find_model_file(Path(weights)))
        return WeightsSource(kind, weights, stored.preprocessing, stored.pretrained_input)
    enum_name = None
    if kind == "pretrained":
        enum_name = find_weights(spec, weights)
    elif kind == "file":
        enum_name = _find_enum_name(spec, Path(weights))
    preprocessing = eval_preprocessing(spec, enum_name)
    return WeightsSource(kind, enum_name or weights, preprocessing, kind != "none", enum_name)


def load_weights(classifier: Classifier, weights: str, *, reporter: Reporter) -> WeightsSource:
    """Load what `model.weights` names into the backbone; the head stays as it is.

    Args:
        classifier: Its backbone is changed in place, unless `weights` is `none`.
        weights: DEFAULT, a published name such as IMAGENET1K_V2, `none`, a weights file, a vtrain
            model file, or a run folder.
        reporter: Is told what was downloaded, dropped or resized.

    Raises:
        ModelError: The weights are missing, damaged, foreign or do not fit.
        UsageError: No published weights of that name.
        ResourceError: A download has no place to go.
    """
    spec = classifier.spec
    source = describe_weights(weights, spec)
    if source.kind == "pretrained":
        state = load_pretrained_state(spec, source.name, reporter=reporter)
        label = f"{spec.name} {source.name}"
        fit_backbone_state(classifier, state, source=label, reporter=reporter)
    elif source.kind == "vtrain":
        _load_from_vtrain(classifier, find_model_file(Path(weights)), reporter)
    elif source.kind == "file":
        state = load_weights_file(Path(weights), reporter=reporter)
        fit_backbone_state(classifier, state, source=weights, reporter=reporter)
    return source


def load_native_weights(classifier: Classifier, weights: str, *, reporter: Reporter) -> None:
    """Load backbone and own head of a classifier from `build_pretrained_classifier`.

    A file may hold another number of classes: the last layer then takes that number.

    Raises: as `load_weights`.
    """
    spec = classifier.spec
    kind = find_weights_kind(weights, spec)
    if kind == "none":
        return
    if kind == "vtrain":
        raise ModelError(
            f"{weights} is a vtrain model or a folder, expected torchvision weights of {spec.name}",
            f"a vtrain model or run is used by its path alone: {weights}",
        )
    if kind == "pretrained":
        state = load_pretrained_state(spec, weights, reporter=reporter)
    else:
        state = load_weights_file(Path(weights), reporter=reporter)
    _fit_last_layer(classifier, state)
    try:
        load_torchvision_state(classifier, state)
    except ModelError as error:
        raise ModelError(f"{weights}: {error.message}", error.hint) from error


def find_weights_kind(weights: str, spec: BackboneSpec) -> WeightsKind:
    """What `weights` names: nothing, published weights, a weights file, or a vtrain model or run.

    Raises:
        ModelError: It is a path where nothing usable lies.
        UsageError: It is neither a published name nor a path.
    """
    if weights == "none":
        return "none"
    if weights == "DEFAULT" or weights in spec.weights:
        return "pretrained"
    path = Path(weights)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise ModelError(f"cannot read weights {weights!r}: {error.strerror}") from error
    if is_folder:
        return "vtrain"
    if not exists:
        if path.suffix or len(path.parts) > 1:
            names = ", ".join(["none", *(["DEFAULT"] if spec.weights else []), *spec.weights])
            hint = f"model.weights is a path or one of: {names}"
            raise ModelError(f"no weights file or run folder {weights!r}", hint)
        find_weights(spec, weights)  # raises, with what there is instead
    if is_safetensors(path) and METADATA_KEY in read_metadata(path):
        return "vtrain"
    return "file"


def load_pretrained_state(
    spec: BackboneSpec, weights: str, *, reporter: Reporter = SILENT
) -> dict[str, Tensor]:
    """State dict of published weights, from torch's cache folder or downloaded into it.

    The file must have the SHA-256 that its name promises, cached or not; no code in it is run.

    Raises:
        ModelError: No such file here and no way to download it, or it is damaged.
        ResourceError: The cache folder cannot be written or is full.
        UsageError: The backbone has no such weights.
    """
    url, folder = _locate_published(spec, weights)
    return load_weights_file(find_published_file(url, folder, reporter=reporter), reporter=reporter)


def has_pretrained_weights(spec: BackboneSpec, weights: str) -> bool:
    """Whether published weights are in torch's cache folder, whole: loading needs no network.

    Raises:
        UsageError: The backbone has no such weights.
    """
    return is_cached(*_locate_published(spec, weights))


def _locate_published(spec: BackboneSpec, weights: str) -> tuple[str, Path]:
    """The address of published weights, and the folder that they are kept in."""
    url = _find_url(spec, find_weights(spec, weights))
    return url, Path(torch.hub.get_dir()) / "checkpoints"


def load_weights_file(path: Path, *, reporter: Reporter = SILENT) -> dict[str, Tensor]:
    """State dict of a `.pth`, `.pt` or `.safetensors` file, with the keys of the bare model.

    Takes the state dict out of a training checkpoint (`state_dict`, `model`, `model_state_dict`,
    `model_ema`, in this order) and prefixes such as `module.` off its keys.

    Raises:
        ModelError: Missing, damaged, not finite, or no state dict; code in it is never run.
    """
    value: Any = load_tensors(path)[0] if is_safetensors(path) else load_torch(path)
    for _ in range(2):  # a checkpoint may hold a checkpoint
        if not isinstance(value, Mapping):
            break
        wrapper = next((key for key in _WRAPPERS if isinstance(value.get(key), Mapping)), None)
        if wrapper is None:
            break
        others = [str(key) for key in value if key != wrapper]
        reporter.say(f"{path}: taking {wrapper!r}, leaving {shorten_names(others) or 'nothing'}")
        value = value[wrapper]
    state = _check_state_dict(value, path)
    if names := find_non_finite(state):
        raise ModelError(f"{path} holds NaN or infinity in {shorten_names(names)}")
    return _strip_prefixes(state)


def fit_backbone_state(
    classifier: Classifier, state: Mapping[str, Tensor], *, source: str, reporter: Reporter
) -> None:
    """Load a state dict with torchvision's keys into the backbone, all of it or nothing.

    The head (of any number of classes) and auxiliary heads are dropped, old key names mapped,
    ViT's position embedding resized, missing BatchNorm counters left as they are.

    Raises:
        ModelError: Keys are missing, unexpected or of another shape, or values are not finite.
    """
    spec, backbone = classifier.spec, classifier.backbone
    own, renamed = backbone.state_dict(), rename_legacy_keys(spec, state)
    kept = _drop_heads(spec, renamed, own, source=source, reporter=reporter)
    kept = _resize_position_embedding(kept, backbone, source=source, reporter=reporter)
    _load_whole(backbone, kept, spec=spec, original=state, source=source)


def load_torchvision_state(classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    """Load a state dict with torchvision's keys, its last layer included, all of it or nothing.

    Auxiliary heads are dropped, old key names mapped, ViT's position embedding resized, missing
    BatchNorm counters left as they are.

    Raises:
        ModelError: Keys are missing, unexpected or of another shape, or values are not finite.
    """
    spec = classifier.spec
    renamed = rename_legacy_keys(spec, state)
    head = cast(nn.Sequential, classifier.head)
    last = max(i for i, layer in enumerate(head) if list(layer.parameters()))
    own_keys = {}
    for key, value in interpolate_position_embedding(renamed, classifier.backbone).items():
        if key.startswith(f"{spec.head_path}."):
            own_keys[f"head.{last}{key.removeprefix(spec.head_path)}"] = value
        elif not key.startswith(auxiliary_prefixes(spec)):
            own_keys[f"backbone.{key}"] = value
    _load_whole(classifier, own_keys, spec=spec, original=state, source="the state dict")


def _load_whole(
    module: nn.Module,
    state: dict[str, Tensor],
    *,
    spec: BackboneSpec,
    original: Mapping[str, Tensor],
    source: str,
) -> None:
    own = module.state_dict()
    state = {key: own[key] for key in own if key.endswith(".num_batches_tracked")} | state
    if problems := find_misfits(state, own):
        raise ModelError(
            f"{source} does not fit {spec.name}: {'; '.join(problems)}",
            _suggest_backbone(spec, original) or f"expected torchvision's keys of {spec.name}",
        )
    # The model's types are what counts: a double can be too large for a float.
    state = {key: value.to(own[key].dtype) for key, value in state.items()}
    if names := find_non_finite(state):
        raise ModelError(f"{source} holds NaN or infinity in {shorten_names(names)}")
    module.load_state_dict(state)


def _load_from_vtrain(classifier: Classifier, path: Path, reporter: Reporter) -> None:
    (tensors, stored), spec = load_model_tensors(path), classifier.spec
    if stored.backbone != spec.name:
        raise ModelError(
            f"{path} holds a {stored.backbone}, model.backbone is {spec.name}",
            f"set model.backbone: {stored.backbone}",
        )
    reporter.say(f"dropped the head of {path} ({len(stored.classes)} classes)")
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    source = str(path)
    if stored.options:
        source += f" with model.options {json.dumps(stored.options)}"
    fit_backbone_state(classifier, state, source=source, reporter=reporter)


# Published files


def _find_enum_name(spec: BackboneSpec, path: Path) -> str | None:
    """The published weights that a file carries, judged by its name."""
    names = (name for name in spec.weights if path.name == published_name(_find_url(spec, name)))
    return next(names, None)


def _find_url(spec: BackboneSpec, name: str) -> str:
    return str(torchvision.models.get_model_weights(spec.name)[name].url)


# State dicts


def _check_state_dict(value: object, path: Path) -> dict[str, Tensor]:
    """The value as plain tensors by name, whatever the file claimed."""
    expected = "expected a state dict: tensors by name"
    if not isinstance(value, Mapping) or not value:
        kind = type(value).__name__ if not isinstance(value, Mapping) else "an empty table"
        raise ModelError(f"{path} holds {kind}, {expected}")
    state: dict[str, Tensor] = {}
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ModelError(
                f"{path} holds {type(tensor).__name__} under {key!r:.80}, {expected}",
                f"in a checkpoint it is looked for under {', '.join(_WRAPPERS)}",
            )
        state[key] = tensor.detach()
    state.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel counts here
    return state


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put in front of every key."""
    while prefix := next((p for p in _KEY_PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        if not state or "" in state:
            break
    return state


def _drop_heads(
    spec: BackboneSpec,
    state: Mapping[str, Tensor],
    own: Iterable[str],
    *,
    source: str,
    reporter: Reporter,
) -> dict[str, Tensor]:
    """The state without its head and auxiliary heads, which are named."""
    head_prefix = f"{spec.head_path}."
    parent = spec.head_path.rpartition(".")[0]
    if parent and not any(key.startswith(f"{parent}.") for key in own):
        head_prefix = f"{parent}."  # `classifier` as a whole is the head, whatever is in it
    head = [key for key in state if key.startswith(head_prefix)]
    auxiliary = [key for key in state if key.startswith(auxiliary_prefixes(spec))]
    if head:
        weights = [state[key] for key in head if state[key].ndim >= 2]
        classes = f" ({weights[-1].shape[0]} classes)" if weights else ""
        reporter.say(f"dropped the head of {source}{classes}: {shorten_names(head)}")
    if auxiliary:
        reporter.say(f"dropped the auxiliary heads of {source}: {len(auxiliary)} tensors")
    dropped = {*head, *auxiliary}
    return {key: value for key, value in state.items() if key not in dropped}


def _resize_position_embedding(
    state: dict[str, Tensor], backbone: nn.Module, *, source: str, reporter: Reporter
) -> dict[str, Tensor]:
    try:
        resized = interpolate_position_embedding(state, backbone)
    except ModelError as error:
        raise ModelError(f"{source}: {error.message}", error.hint) from error
    before, after = state.get(_POSITION_EMBEDDING), resized.get(_POSITION_EMBEDDING)
    if before is not None and after is not None and before.shape != after.shape:
        sizes = [round((tensor.shape[1] - 1) ** 0.5) for tensor in (before, after)]
        reporter.say(
            f"resized the position embedding of {source} from {sizes[0]} × {sizes[0]} to "
            f"{sizes[1]} × {sizes[1]} patches"
        )
    return resized


def _suggest_backbone(spec: BackboneSpec, state: Mapping[str, Tensor]) -> str | None:
    """A hint at the backbone whose number of parameters below the head is that of `state`."""
    sizes = {
        key: value.numel()
        for key, value in state.items()
        if value.is_floating_point() and not key.endswith(_BUFFERS)
    }
    for name in backbone_names():
        other = find_backbone(name)
        weight = state.get(f"{other.head_path}.weight")
        if name == spec.name or weight is None or weight.ndim < 2:
            continue
        expected = other.params - 1000 * (weight.shape[1] + 1)
        below = sum(n for key, n in sizes.items() if not key.startswith(f"{other.head_path}."))
        auxiliary = sum(n for k, n in sizes.items() if k.startswith(auxiliary_prefixes(other)))
        # Published figures count Inception's auxiliary head, but not GoogLeNet's.
        if expected in (below, below - auxiliary):
            return f"the file looks like {name}: set model.backbone: {name}"
    return None


def _fit_last_layer(classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    """Give the last layer as many outputs as the state dict has classes."""
    weight = state.get(f"{classifier.spec.head_path}.weight")
    if weight is None or weight.ndim < 2 or weight.shape[0] in (0, classifier.num_classes):
        return
    head = cast(nn.Sequential, classifier.head)
    num_classes = weight.shape[0]
    for index, layer in enumerate(head):
        if isinstance(layer, nn.Linear):
            head[index] = nn.Linear(layer.in_features, num_classes, layer.bias is not None)
        elif isinstance(layer, nn.Conv2d):
            head[index] = nn.Conv2d(layer.in_channels, num_classes, layer.kernel_size)  # type: ignore[arg-type]
    classifier.num_classes = num_classes
