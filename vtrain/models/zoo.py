"""The zoo: every backbone with its stages, weights, figures and builder options, as one table.

Stages run from the input to the last block and together cover every parameter below the last
layer. What joins two stages belongs to the later one: a DenseNet transition, a ConvNeXt or Swin
downsampling. A final norm belongs to the last block.
"""

from collections.abc import Mapping
from typing import cast

from vtrain.errors import UsageError, suggest
from vtrain.models.backbone_spec import BUILDER_OPTIONS, BackboneSpec, OptionValue
from vtrain.models.torchvision_zoo import ROWS, build_spec

_ZOO: Mapping[str, BackboneSpec] = {row[0]: build_spec(row) for row in ROWS}


def backbone_names() -> tuple[str, ...]:
    """All names, families together, own networks last."""
    return tuple(_ZOO)


def find_backbone(name: str) -> BackboneSpec:
    """The line of the zoo with this name.

    Raises:
        UsageError: There is no such backbone.
    """
    if name not in _ZOO:
        message = f"unknown backbone {name!r}{suggest(name, _ZOO)}"
        raise UsageError(message, hint="vtrain backbones lists all names")
    return _ZOO[name]


def find_weights(spec: BackboneSpec, weights: str | None) -> str:
    """Name of a published weights entry; None and DEFAULT mean the default one.

    Raises:
        UsageError: The backbone has no such weights, or none at all.
    """
    if spec.default_weights is None:
        message = f"{spec.name} has no pretrained weights, got weights {weights!r}"
        raise UsageError(message, hint="set model.weights: none to train it from scratch")
    if weights in (None, "DEFAULT"):
        return spec.default_weights
    if weights not in spec.weights:
        near = suggest(str(weights), spec.weights)
        message = f"unknown weights {weights!r} of {spec.name}{near}"
        raise UsageError(message, hint=f"published weights: {', '.join(spec.weights)}")
    return str(weights)


def check_image_size(spec: BackboneSpec, image_size: int) -> None:
    """Refuse an input size in pixels that the backbone cannot take.

    Raises:
        UsageError: Too small, or not a multiple of what attention windows or patches need.
    """
    step = spec.image_size_multiple
    if image_size < spec.min_image_size or image_size % step:
        expected = f"at least {spec.min_image_size} px"
        if step > 1:
            expected = f"a multiple of {step} px"
        message = f"{spec.name} takes images of {expected}, got {image_size} px"
        raise UsageError(message, hint=f"its weights were evaluated at {spec.image_size} px")


def check_options(spec: BackboneSpec, options: Mapping[str, OptionValue]) -> None:
    """Refuse builder options that the backbone does not have, of wrong type or out of range.

    Raises:
        UsageError: Names the option and what is allowed.
    """
    for name, value in options.items():
        if name not in spec.options:
            near = suggest(name, spec.options)
            message = f"unknown model option {name!r} of {spec.name}{near}"
            allowed = ", ".join(spec.options) or "none"
            raise UsageError(message, hint=f"options of {spec.name}: {allowed}")
        _check_option_value(name, value)


def _check_option_value(name: str, value: OptionValue) -> None:
    option = BUILDER_OPTIONS[name]
    fits = type(value) is option.kind or (option.kind is float and type(value) is int)
    # Not as floats: a whole number can be too large for one.
    if not fits or not option.minimum <= cast(float, value) <= option.maximum:
        kind = {int: "a whole number", float: "a number", bool: "true or false"}[option.kind]
        between = "" if option.kind is bool else f" from {option.minimum:g} to {option.maximum:g}"
        message = f"model option {name} is {value!r}, expected {kind}{between}"
        raise UsageError(message, hint=f"{name}: {option.text}")
