"""A backbone and a head as one module: features, logits, the output of any stage."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor, nn

from vtrain.config.keys import HeadConfig
from vtrain.errors import UsageError, suggest
from vtrain.models.backbone_spec import BackboneSpec, OptionValue
from vtrain.models.backbones import NO_OPTIONS, as_feature_map, build_backbone, hooked

HEAD = "head"
PENULTIMATE = "penultimate"
POOLED = "pooled"
LOGITS = "logits"


class Classifier(nn.Module):
    """Backbone without its last layer, and a head.

    State dict keys are `backbone.` plus torchvision's key, and `head.` plus the index of the
    layer. In evaluation mode `forward_features` depends on the images alone: dropout right before
    the last layer belongs to the head.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        spec: BackboneSpec,
        feature_dim: int,
        num_classes: int,
        head_on_map: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.spec = spec
        self.feature_dim = feature_dim
        self.num_classes = num_classes
        self.head_on_map = head_on_map
        self._eval_modules: tuple[nn.Module, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, C]."""
        if self.head_on_map:
            features = self.backbone.get_submodule(self.spec.feature_map)(images)
        else:
            features = self.forward_features(images)
        return cast(Tensor, self.head(features))

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: what the last layer sees."""
        return cast(Tensor, self.backbone(images))

    def forward_both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, 3, H, W] -> logits [B, C] as `forward` gives them, and the features [B, D].

        None in their place for SqueezeNet's own head, which has none.
        """
        if self.head_on_map:
            return self(images), None
        features = self.forward_features(images)
        return cast(Tensor, self.head(features)), features

    def forward_head(self, features: Tensor) -> Tensor:
        """[B, D] -> logits [B, C].

        Raises:
            UsageError: SqueezeNet's own head, which works on the feature map before the pooling.
        """
        if self.head_on_map:
            message = (
                f"{self.spec.name}'s own head works on the feature map, not on [B, D] features"
            )
            raise UsageError(message, hint="ask for logits of the images instead")
        return cast(Tensor, self.head(features))

    def forward_layer(self, images: Tensor, layer: str, *, feature_maps: bool = False) -> Tensor:
        """The output of one layer; computes no further than that layer.

        Args:
            images: [B, 3, H, W].
            layer: `penultimate` (what the last layer sees), `pooled` (the last feature map
                averaged over space; ViT: the normalised tokens without the class token),
                `logits`, or the name of a stage (its output averaged over space).
            feature_maps: Give the whole map instead of its average.

        Returns:
            [B, D], or [B, D, H, W] with `feature_maps`, for every backbone.

        Raises:
            UsageError: No such layer, or `feature_maps` of a layer without spatial extent.
        """
        path, is_map = self._find_output(layer)
        if feature_maps and not is_map:
            message = f"layer {layer!r} of {self.spec.name} has no feature maps, only vectors"
            maps = [POOLED, *(stage.name for stage in self.spec.stages if stage.is_map)]
            raise UsageError(message, hint=f"layers with maps: {', '.join(maps)}")
        if layer == LOGITS:
            return self(images)  # type: ignore[no-any-return]
        if path is None:
            return self.forward_features(images)
        output = _forward_until(self.backbone, path, images)
        if not is_map:
            return output
        if layer == POOLED and self.spec.family == "densenet":
            output = torch.relu(output)  # torchvision activates between the last norm and pooling
        output = as_feature_map(self.spec, output)
        return output if feature_maps else output.mean(dim=(2, 3))

    def _find_output(self, layer: str) -> tuple[str | None, bool]:
        """Path of the module that gives the layer (None: the backbone), and whether it is a map."""
        if layer in (PENULTIMATE, LOGITS):
            return None, False
        if layer == POOLED:
            return self.spec.feature_map, True
        for stage in self.spec.stages:
            if stage.name == layer:
                return stage.output, stage.is_map
        names = [PENULTIMATE, POOLED, LOGITS, *self.spec.stage_names]
        message = f"unknown layer {layer!r} of {self.spec.name}{suggest(layer, names)}"
        raise UsageError(message, hint=f"layers: {', '.join(names)}")

    def set_eval_modules(self, modules: Iterable[nn.Module]) -> None:
        """Hold these modules and all below them in evaluation mode, whatever `train()` says."""
        self._eval_modules = tuple(modules)
        self._hold_eval_modules()

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode of everything that is not held in evaluation mode."""
        super().train(mode)
        self._hold_eval_modules()
        return self

    def _hold_eval_modules(self) -> None:
        for held in self._eval_modules:
            for module in held.modules():
                module.training = False

    def stage_of(self, parameter_name: str) -> str:
        """Stage of a parameter, buffer or module: `backbone.layer1.0.bn1.weight` -> `layer1`.

        Raises:
            KeyError: The name lies in no stage and not in the head.
        """
        if parameter_name.partition(".")[0] == HEAD:
            return HEAD
        for stage in self.spec.stages:
            prefixes = tuple(f"backbone.{prefix}." for prefix in stage.prefixes)
            if f"{parameter_name}.".startswith(prefixes):
                return stage.name
        raise KeyError(parameter_name)


class _ReachedError(Exception):
    """Ends a forward pass as soon as the wanted output is there."""


def _forward_until(model: nn.Module, path: str, images: Tensor) -> Tensor:
    """Output of the module at `path`; what comes behind it is not computed.

    Leaving at once also keeps the output from being changed by an in-place activation behind it.
    """
    outputs: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)
        raise _ReachedError

    with hooked([model.get_submodule(path)], stop), suppress(_ReachedError):
        model(images)
    return outputs[0]


def build_classifier(
    spec: BackboneSpec,
    *,
    num_classes: int,
    head: HeadConfig,
    image_size: int | None = None,
    pretrained: bool = False,
    options: Mapping[str, OptionValue] = NO_OPTIONS,
) -> Classifier:
    """A classifier to train: the backbone with a new head for `num_classes` classes.

    `pretrained` and `options` as in `build_backbone`. The weights are random, drawn from torch's
    global generator.

    Raises:
        UsageError: Unknown option, value out of range, or image size the backbone cannot take.
    """
    backbone = build_backbone(
        spec, num_classes=1, pretrained=pretrained, image_size=image_size, options=options
    )
    feature_dim = _input_dim(_cut_head(spec, backbone))
    return Classifier(
        backbone,
        _build_head(feature_dim, num_classes, head),
        spec=spec,
        feature_dim=feature_dim,
        num_classes=num_classes,
    )


def build_pretrained_classifier(
    spec: BackboneSpec,
    *,
    image_size: int | None = None,
    pretrained: bool = True,
) -> Classifier:
    """A classifier with the model's own head, whose logits equal torchvision's bit for bit.

    The weights are random, and the classes 1,000.

    Raises:
        UsageError: An image size that the backbone cannot take.
    """
    backbone = build_backbone(spec, pretrained=pretrained, image_size=image_size)
    head = _cut_head(spec, backbone)
    feature_dim = _input_dim(head)
    head_on_map = spec.family == "squeezenet"
    if head_on_map:
        head.extend([nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    return Classifier(
        backbone,
        head,
        spec=spec,
        feature_dim=feature_dim,
        num_classes=1000,
        head_on_map=head_on_map,
    )


def _cut_head(spec: BackboneSpec, backbone: nn.Module) -> nn.Sequential:
    """Take the last layer, and the dropout right before it, out of the backbone.

    Identities are left in their places, so that the keys of all other layers stay.
    """
    parent_path, _, name = spec.head_path.rpartition(".")
    parent = backbone.get_submodule(parent_path)
    last_layer = parent.get_submodule(name)
    names = [child_name for child_name, _ in parent.named_children()]
    dropout = nn.Dropout(0.0)
    before = names[names.index(name) - 1] if names.index(name) else name
    if isinstance(before_layer := parent.get_submodule(before), nn.Dropout):
        dropout.p = before_layer.p
        setattr(parent, before, nn.Identity())
    setattr(parent, name, nn.Identity())
    if spec.family == "squeezenet":
        # A ReLU on logits that average to less than zero would silence a class for good. The map
        # below is never negative, so that leaving the ReLU out changes nothing else.
        setattr(parent, names[names.index(name) + 1], nn.Identity())
    return nn.Sequential(dropout, last_layer)


def _input_dim(head: nn.Sequential) -> int:
    last_layer = cast(nn.Linear | nn.Conv2d, head[-1])
    return last_layer.weight.shape[1]


def _build_head(feature_dim: int, num_classes: int, settings: HeadConfig) -> nn.Sequential:
    """Linear, or one hidden layer, after a normalisation without parameters.

    The scale of features differs a hundredfold between backbones (about 0.4 in ResNets, 14 in
    SqueezeNets). The last layer starts small, so that the first steps do not disturb a pretrained
    backbone.
    """
    layers: list[nn.Module] = []
    if settings.norm == "layer":
        layers.append(nn.LayerNorm(feature_dim, elementwise_affine=False))
    last_dim = feature_dim
    if settings.type == "mlp":
        last_dim = settings.hidden
        hidden = nn.Linear(feature_dim, last_dim)
        nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
        nn.init.zeros_(hidden.bias)
        layers += [hidden, nn.ReLU()]
    last = nn.Linear(last_dim, num_classes)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.Dropout(settings.dropout), last)
