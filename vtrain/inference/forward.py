"""The one path from uint8 images to logits and features that every command takes."""

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vtrain.config.preprocessing import Preprocessing
from vtrain.data.transforms import normalize_images
from vtrain.inference.metrics import sum_dtype
from vtrain.models.classifier import Classifier
from vtrain.models.folding import apply_folding
from vtrain.models.precision import DTYPES, Precision
from vtrain.system.machine import place_model

Forward = Callable[[Tensor], Tensor]
NOT_FINITE = "the model's output for this image is not finite"
# What autocast runs in low precision: their weights are cast once instead of at each call. Not
# the Linear within nn.MultiheadAttention, a subclass: with weights of another type than its
# inputs, attention leaves its fast path, and a ViT on a CPU takes four times as long.
LOW_PRECISION_LAYERS = (nn.Conv2d, nn.Linear)


def prepare_module(module: nn.Module, precision: Precision) -> nn.Module:
    """A frozen copy of a network, or of a part of it, that computes the same as fast as it can.

    In evaluation mode on the precision's device, channels last, batch norms folded, weights of
    convolutions and linear layers in the precision. All paths stay. Call it under
    `precision.autocast()`, which casts what is left; the output has the type that autocast gives
    it: the precision's behind a convolution, float32 behind a ViT's last norm.
    """
    prepared = copy.deepcopy(module)
    apply_preparation(prepared, precision)
    return prepared


def apply_preparation(
    module: nn.Module, precision: Precision, *, keep: Collection[str] = ()
) -> None:
    """What `prepare_module` does, in place: no second copy of the weights is needed.

    `keep` are the paths of submodules whose outputs are looked at (see `find_foldable`).
    """
    module.eval().requires_grad_(False)
    apply_folding(module, keep=keep)
    for layer in module.modules():
        if type(layer) in LOW_PRECISION_LAYERS:
            layer.to(DTYPES[precision.name])
    place_model(module, precision.device)


class InferenceClassifier(Classifier):
    """A classifier for evaluation alone, in one precision, that switches autocast by itself.

    The backbone comes from `prepare_module`. The head computes in float32, so that logits are not
    rounded to the precision of the features.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, precision: Precision, *, like: Classifier
    ) -> None:
        super().__init__(
            backbone,
            head,
            spec=like.spec,
            feature_dim=like.feature_dim,
            num_classes=like.num_classes,
            head_on_map=like.head_on_map,
        )
        self.precision = precision
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> float32 logits [B, C]."""
        path = self.spec.feature_map if self.head_on_map else ""
        with self.precision.autocast():
            features = self.backbone.get_submodule(path)(images)
        return self._compute_logits(features)

    def forward_both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Classifier.forward_both`, the logits in float32."""
        if self.head_on_map:
            return self(images), None
        features = self.forward_features(images)
        return self._compute_logits(features), features

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: what the last layer sees."""
        with self.precision.autocast():
            return super().forward_features(images)

    def forward_head(self, features: Tensor) -> Tensor:
        """[B, D] -> float32 logits [B, C]; raises as `Classifier.forward_head`."""
        with self.precision.full():
            return super().forward_head(features.float())

    def forward_layer(self, images: Tensor, layer: str, *, feature_maps: bool = False) -> Tensor:
        """As `Classifier.forward_layer`."""
        with self.precision.autocast():
            return super().forward_layer(images, layer, feature_maps=feature_maps)

    def _compute_logits(self, features: Tensor) -> Tensor:
        with self.precision.full():
            return cast(Tensor, self.head(features.float()))


def prepare_for_inference(
    classifier: Classifier, precision: Precision, *, in_place: bool = False
) -> InferenceClassifier:
    """The classifier as every command runs it, on the precision's device.

    It is a copy, which later training does not change. With `in_place` the given classifier is
    used up, which saves the memory of a second one.
    """
    backbone, head = classifier.backbone, classifier.head
    if not in_place:
        backbone, head = copy.deepcopy((backbone, head))
    keep = {classifier.spec.feature_map, *(stage.output for stage in classifier.spec.stages)}
    apply_preparation(backbone, precision, keep=keep)
    head.requires_grad_(False)
    place_model(head, precision.device)
    return InferenceClassifier(backbone, head, precision, like=classifier)


@torch.inference_mode()
def compute_outputs(
    forward: Forward, images: Tensor, preprocessing: Preprocessing, device: torch.device
) -> Tensor:
    """Float32 outputs `[B, ...]` on the device of uint8 images `[B, 3, H, W]`, B at least 1.

    `forward` gets normalised float32 images, channels last.
    """
    return forward(normalize_images(images, preprocessing, device=device)).float()


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What a model says of a batch: float32 logits `[B, C]`, and its features `[B, D]` if any."""

    logits: Tensor
    features: Tensor | None = None


@torch.inference_mode()
def compute_both(
    classifier: Classifier, images: Tensor, preprocessing: Preprocessing, device: torch.device
) -> Outputs:
    """Logits and features of uint8 images `[B, 3, H, W]`, B at least 1; both on the device."""
    normalized = normalize_images(images, preprocessing, device=device)
    logits, features = classifier.forward_both(normalized)
    return Outputs(logits.float(), None if features is None else features.float())


# Test-time augmentation: each image as it is and mirrored, whole and its middle enlarged.
TTA_ZOOM = 0.875


@torch.inference_mode()
def compute_averaged(
    classifier: Classifier,
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    temperature: float,
) -> Outputs:
    """As `compute_both`, averaged over four views of each image.

    The softmax of the logits is the mean of the views' probabilities at `temperature`; the features
    are those of the image itself.
    """
    plain = compute_both(classifier, images, preprocessing, device)
    middle = _enlarge_middle(images)
    views = [images.flip(3), middle, middle.flip(3)]
    logits = [plain.logits]
    logits += [compute_both(classifier, view, preprocessing, device).logits for view in views]
    wide = torch.stack(logits).to(sum_dtype(device)) / temperature
    mean = wide.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
    return Outputs(mean.float(), plain.features)


def _enlarge_middle(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = round(TTA_ZOOM * height), round(TTA_ZOOM * width)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = images[:, :, top : top + rows, left : left + columns].float()
    larger = torch.nn.functional.interpolate(
        middle, size=(height, width), mode="bilinear", align_corners=False
    )
    return larger.round().clamp(0, 255).to(torch.uint8)


def compute_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Softmax `[B, C]` of logits divided by the temperature, in float64 where the device has it."""
    return (logits.to(sum_dtype(logits.device)) / temperature).softmax(dim=1)


def find_finite_rows(outputs: Tensor) -> Tensor:
    """Whether each row of `[B, ...]` has neither NaN nor infinity; bool `[B]` on the device."""
    return torch.isfinite(outputs).flatten(1).all(dim=1)


def find_model_device(module: nn.Module) -> torch.device:
    """The device of the module's parameters."""
    return next(module.parameters()).device
