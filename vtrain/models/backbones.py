"""Backbones as built by torchvision (or here), their preprocessing, classes, stages and facts."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import MNASNet, VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops import StochasticDepth

from vtrain.config.preprocessing import Preprocessing
from vtrain.errors import ModelError
from vtrain.models.backbone_spec import DEPTHWISE_FAMILIES, BackboneSpec, OptionValue, StageInfo
from vtrain.models.small_backbones import (
    build_preact_resnet,
    build_separable_cnn,
    build_simple_cnn,
)
from vtrain.models.zoo import check_image_size, check_options, find_weights

NO_OPTIONS: Mapping[str, OptionValue] = {}

# torchvision hard-codes these, so the built model is scaled instead
_FIXED_STOCHASTIC_DEPTH = {"swin_t": 0.2, "swin_s": 0.3, "swin_b": 0.5, "maxvit_t": 0.2} | {
    "swin_v2_t": 0.2,
    "swin_v2_s": 0.3,
    "swin_v2_b": 0.5,
}
_MNASNET_WIDTHS = {"mnasnet0_5": 0.5, "mnasnet0_75": 0.75, "mnasnet1_0": 1.0, "mnasnet1_3": 1.3}
_PREACT_DEPTHS = {"preact_resnet18": (2, 2, 2, 2), "preact_resnet50": (3, 4, 6, 3)}
# depth, width, input px (EfficientNet, Tan & Le 2019, arXiv:1905.11946, reference code)
_EFFICIENTNET_FACTORS = {
    "efficientnet_b0": (1.0, 1.0, 224),
    "efficientnet_b1": (1.1, 1.0, 240),
    "efficientnet_b2": (1.2, 1.1, 260),
    "efficientnet_b3": (1.4, 1.2, 300),
    "efficientnet_b4": (1.8, 1.4, 380),
    "efficientnet_b5": (2.2, 1.6, 456),
    "efficientnet_b6": (2.6, 1.8, 528),
    "efficientnet_b7": (3.1, 2.0, 600),
}
# Depthwise 3 × 3 or 5 × 5 and 1 × 1 convolutions in every block; the rest have others too.
_SEPARABLE_FAMILIES = DEPTHWISE_FAMILIES - {"convnext", "efficientnet_v2", "maxvit"}
_FAMILY_FACTS: Mapping[str, tuple[str, ...]] = {
    "alexnet": ("fc6 and fc7 hold most of the parameters and little of the work",),
    "convnext": ("the norm behind the pooling belongs to stage4",),
    "densenet": ("each dense layer sees the outputs of all layers before it in its block",),
    "inception": (
        "auxiliary heads are left out",
        "with pretrained weights the network converts the usual normalisation to its own",
    ),
    "maxvit": ("attention in 7 × 7 windows and grids ties the input to multiples of 224 px",),
    "preact_resnet": ("norm and ReLU before each convolution; 3 × 3 stem of stride 2, no pooling",),
    "separable_cnn": ("pools the maximum; instance norm on half of the stem's channels",),
    "simple_cnn": (
        "pools the maximum; instance norm on half of the channels of all but one layer",
    ),
    "squeezenet": (
        "its own head is a 1 × 1 convolution and ReLU before the pooling; a new head is linear on "
        "the pooled map",
    ),
    "swin": ("attention within windows, shifted every other block; takes any input size",),
    "vgg": ("fc6 and fc7 hold most of the parameters and little of the work",),
}
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_DENSENET_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_VIT_OLD_KEY = re.compile(r"(\.mlp\.)linear_([12])\.")
_VIT_MLP_LAYERS = {"1": "0.", "2": "3."}


class _VersionedMNASNet(MNASNet):  # type: ignore[misc]
    """MNASNet that also loads state dicts without version numbers, such as safetensors files."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        *rest: Any,
    ) -> None:
        versioned = {"version": self._version} | local_metadata
        super()._load_from_state_dict(state_dict, prefix, versioned, *rest)


def build_backbone(
    spec: BackboneSpec,
    *,
    num_classes: int = 1000,
    pretrained: bool,
    image_size: int | None = None,
    options: Mapping[str, OptionValue] = NO_OPTIONS,
) -> nn.Module:
    """The full model with its own last layer and random weights; nothing is downloaded.

    Args:
        spec: Line of the zoo.
        num_classes: Outputs of the last layer.
        pretrained: Build it as torchvision does for pretrained weights: Inception and GoogLeNet
            then convert the input normalisation, and slow initialisations are left out.
        image_size: Input edge in pixels; matters to ViT and MaxViT. Default: that of the zoo.
        options: Values for `spec.options`.

    Raises:
        UsageError: Unknown option, value out of range, or image size the backbone cannot take.
    """
    check_options(spec, options)
    if image_size is not None:
        check_image_size(spec, image_size)
    if spec.own:
        return _build_own(spec, num_classes, options)
    if spec.family == "mnasnet":
        width = float(options.get("width_mult", _MNASNET_WIDTHS[spec.name]))
        return _VersionedMNASNet(width, num_classes=num_classes)
    arguments: dict[str, Any] = dict(options) | _fixed_arguments(spec, pretrained, image_size)
    stochastic_depth = None
    if spec.name in _FIXED_STOCHASTIC_DEPTH:
        stochastic_depth = arguments.pop("stochastic_depth_prob", None)
    builder: Callable[..., nn.Module] = torchvision.models.get_model_builder(spec.name)
    model = builder(weights=None, num_classes=num_classes, **arguments)
    if stochastic_depth is not None:
        for module in model.modules():
            if isinstance(module, StochasticDepth):
                module.p *= stochastic_depth / _FIXED_STOCHASTIC_DEPTH[spec.name]
    return model


def _build_own(
    spec: BackboneSpec, num_classes: int, options: Mapping[str, OptionValue]
) -> nn.Module:
    if spec.family == "preact_resnet":
        return build_preact_resnet(
            num_classes=num_classes,
            depths=_PREACT_DEPTHS[spec.name],
            bottleneck=spec.name == "preact_resnet50",
        )
    build = build_simple_cnn if spec.family == "simple_cnn" else build_separable_cnn
    return build(num_classes=num_classes, width_mult=float(options.get("width_mult", 1.0)))


def _fixed_arguments(
    spec: BackboneSpec, pretrained: bool, image_size: int | None
) -> dict[str, Any]:
    """Builder arguments that follow from the use rather than from the user's options."""
    size = spec.image_size if image_size is None else image_size
    if spec.family == "inception":
        return {
            "transform_input": pretrained,
            "aux_logits": False,
            "init_weights": not pretrained,
        }
    if spec.family == "vgg":
        return {"init_weights": not pretrained}
    if spec.family == "vit":
        return {"image_size": size}
    if spec.family == "maxvit":
        return {"input_size": (size, size)}
    return {}


def auxiliary_prefixes(spec: BackboneSpec) -> tuple[str, ...]:
    """Keys of weights files that start with one of these belong to auxiliary training heads."""
    return _AUXILIARY.get(spec.name, ())


def rename_legacy_keys(spec: BackboneSpec, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with today's keys, as torchvision maps those of its own files.

    DenseNet's files still hold `norm.1` for `norm1`, old ones of ViT `mlp.linear_1` for `mlp.0`.
    """

    def rename(key: str) -> str:
        if spec.family == "densenet":
            return _DENSENET_OLD_KEY.sub(r"\1\2", key)
        if spec.family == "vit":
            return _VIT_OLD_KEY.sub(lambda found: found[1] + _VIT_MLP_LAYERS[found[2]], key)
        return key

    return {rename(key): value for key, value in state_dict.items()}


def interpolate_position_embedding(
    state_dict: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """The state dict with ViT's position embedding resized (bicubic) to the model's image size.

    Raises:
        ModelError: The embedding belongs to another architecture (width, or no square grid).
    """
    key = "encoder.pos_embedding"
    resized = dict(state_dict)
    if not isinstance(model, VisionTransformer) or key not in resized:
        return resized
    expected, got = model.encoder.pos_embedding.shape, resized[key].shape
    if got == expected:
        return resized
    grid = round(max(got[1] - 1, 0) ** 0.5) if len(got) == 3 else 0
    if grid < 1 or grid**2 + 1 != got[1] or got[0] != 1 or got[2] != expected[2]:
        message = f"position embedding of shape {tuple(got)} does not fit {tuple(expected)}"
        raise ModelError(message, hint="the weights belong to another backbone")
    resized = interpolate_embeddings(model.image_size, model.patch_size, resized)
    return dict(resized)


def eval_preprocessing(spec: BackboneSpec, weights: str | None) -> Preprocessing:
    """The preprocessing that published weights were evaluated with; None: the default ones.

    Raises:
        UsageError: Unknown weights, or weights named for a backbone that has none.
    """
    if spec.own and weights is None:
        half = (0.5, 0.5, 0.5)
        return Preprocessing(spec.resize, spec.image_size, mean=half, std=half)
    transforms = _weights_entry(spec, weights).transforms()
    return Preprocessing(
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def pretrained_classes(spec: BackboneSpec, weights: str | None) -> tuple[str, ...]:
    """Names of the classes that published weights tell apart, in the order of the logits.

    Raises:
        UsageError: Unknown weights.
    """
    classes: Sequence[str] = _weights_entry(spec, weights).meta["categories"]
    return tuple(classes)


def _weights_entry(spec: BackboneSpec, weights: str | None) -> Any:
    """The enum member of torchvision, which knows url, transforms and metadata."""
    name = find_weights(spec, weights)
    return torchvision.models.get_model_weights(spec.name)[name]


class WithoutMemory(TorchFunctionMode):
    """Tensors that modules make for their parameters get neither memory nor random numbers.

    `torch.device("meta")` would do, if RegNet did not compute its widths with tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_meta_backbone(
    spec: BackboneSpec,
    *,
    image_size: int | None = None,
    options: Mapping[str, OptionValue] = NO_OPTIONS,
) -> nn.Module:
    """The full model on the meta device: shapes without memory, in milliseconds."""
    with WithoutMemory():
        model = build_backbone(spec, pretrained=True, image_size=image_size, options=options)
    return model.to("meta").eval()


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Within the block `hook(module, inputs, output)` follows each forward pass of the modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe_stages(spec: BackboneSpec, *, image_size: int | None = None) -> list[StageInfo]:
    """Output shape, parameters and multiply-adds of each stage for one image; no weights needed.

    Multiply-adds are half the operations that torch.utils.flop_counter counts: convolutions,
    matrix products and attention.

    Raises:
        UsageError: An image size that the backbone cannot take.
    """
    size = spec.image_size if image_size is None else image_size
    model = build_meta_backbone(spec, image_size=size)
    outputs = {stage.name: model.get_submodule(stage.output) for stage in spec.stages}
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, _inputs: object, output: Tensor) -> None:
        shapes[module] = tuple(as_feature_map(spec, output).shape[1:])

    counter = FlopCounterMode(display=False)
    with hooked(outputs.values(), record), counter:
        model(torch.zeros(1, 3, size, size, device="meta"))
    root = type(model).__name__
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return [
        StageInfo(
            name=stage.name,
            shape=shapes[outputs[stage.name]],
            params=sum(
                parameter.numel()
                for name, parameter in model.named_parameters()
                if f"{name}.".startswith(tuple(f"{prefix}." for prefix in stage.prefixes))
            ),
            multiply_adds=sum(counts.get(f"{root}.{p}", 0) for p in stage.prefixes) // 2,
        )
        for stage in spec.stages
    ]


def as_feature_map(spec: BackboneSpec, output: Tensor) -> Tensor:
    """A stage's output as [B, C, H, W]; outputs without space stay [B, D].

    Swin's blocks give [B, H, W, C]. ViT's give tokens [B, 1 + H · W, D], of which the class token
    is left out.
    """
    if spec.family == "vit":
        tokens = output[:, 1:]
        edge = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, edge, edge)
    if spec.family == "swin":
        return output.permute(0, 3, 1, 2)
    return output


def describe_facts(spec: BackboneSpec, *, image_size: int | None = None) -> list[str]:
    """What is worth knowing about the architecture, one sentence each."""
    size = spec.image_size if image_size is None else image_size
    facts = list(_FAMILY_FACTS.get(spec.family, ()))
    if spec.family == "vit":
        patch = spec.image_size_multiple
        grid = size // patch
        facts.append(
            f"(H / P) × (W / P) + 1 tokens: {grid} × {grid} patches of {patch} px and one class "
            f"token make {grid**2 + 1}"
        )
    if spec.family in _SEPARABLE_FAMILIES:
        channels = 128
        facts.append(
            f"a depthwise-separable k × k convolution costs 1 / C_out + 1 / k² of a full one: "
            f"{1 / channels + 1 / 9:.0%} for k = 3 and {channels} output channels"
        )
    if spec.name in _EFFICIENTNET_FACTORS:
        depth, width, resolution = _EFFICIENTNET_FACTORS[spec.name]
        facts.append(
            f"compound scaling of efficientnet_b0: depth × {depth}, width × {width}, "
            f"designed for {resolution} px (b0: 224 px)"
        )
    return facts
