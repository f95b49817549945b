"""Where in its images a classifier finds a class: Grad-CAM at any stage of any backbone."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from vtrain.errors import UsageError
from vtrain.models.backbones import as_feature_map
from vtrain.models.classifier import Classifier
from vtrain.zoo import BackboneSpec, Stage

# Too little to change an activation, and above zero: ReLU lets the gradient through everywhere.
_ABOVE_ZERO = 1e-30


def compute_class_maps(
    classifier: Classifier, images: Tensor, classes: Tensor | None = None, *, stage: str | None
) -> tuple[Tensor, Tensor]:
    """How much each place of a stage's feature map speaks for a class, by Grad-CAM.

    Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2: the channels of the map are added
    up, each weighted by the gradient of the class's logit with respect to it, averaged over space;
    what is negative becomes 0. Here each map is then divided by its maximum. The same for
    transformers, with their patch tokens as the map and the class token left out. In the last
    block of a ViT the map is what its attention reads: no gradient reaches the patch tokens behind
    it, since the class token alone is read there.

    Gradients are taken with respect to the map alone, so that frozen, folded weights will do, and
    what lies below the stage keeps no activations. Works inside `torch.inference_mode` too.

    Args:
        classifier: in evaluation mode; in float32, see `take_full_precision`.
        images: normalised float32 [B, 3, H, W] on the classifier's device.
        classes: int64 [B], the class to look for in each image; None: the most probable one.
        stage: name of a stage that gives a map; None: the last one.

    Returns:
        Maps [B, h, w] from 0 to 1, of 0 alone where nothing speaks for the class, and the logits
        [B, C]; both float32, without gradients. NaN where the network itself gives it.

    Raises:
        UsageError: no such stage, or one without spatial extent.
    """
    spec = classifier.spec
    chosen = find_map_stage(spec, stage)
    with torch.inference_mode(False), torch.enable_grad():
        if images.is_inference():
            images = images.clone()  # autograd refuses such tensors
        with _tapped(classifier, chosen) as taken:
            logits = classifier(images)
        if classes is None:
            classes = logits.argmax(dim=1)
        scores = logits.gather(1, classes[:, None].to(logits.device))
        # Images do not influence one another in evaluation mode, so the sum keeps them apart.
        (gradients,) = torch.autograd.grad(scores.sum(), taken)
    activations = as_feature_map(spec, taken[0].detach()).float()
    weights = as_feature_map(spec, gradients).float().mean(dim=(2, 3), keepdim=True)
    maps = torch.relu((weights * activations).sum(dim=1))
    return _scale_to_one(maps), logits.detach().float()


def find_map_stage(spec: BackboneSpec, name: str | None) -> Stage:
    """The stage of this name, or the last one with a map.

    Raises:
        UsageError: no such stage, or one without spatial extent.
    """
    stages = {stage.name: stage for stage in spec.stages if stage.is_map}
    if name is None:
        return list(stages.values())[-1]
    if name in stages:
        return stages[name]
    hint = f"stages with maps, from input to output: {', '.join(stages)}"
    if name in (stage.name for stage in spec.stages):
        raise UsageError(f"stage {name!r} of {spec.name} has no map, only vectors", hint)
    close = difflib.get_close_matches(name, stages, n=1)
    message = f"unknown stage {name!r} of {spec.name}"
    raise UsageError(message + (f", did you mean {close[0]}?" if close else ""), hint)


@contextmanager
def _tapped(classifier: Classifier, stage: Stage) -> Iterator[list[Tensor]]:
    """Takes the stage's output of the forward pass within, as a leaf that the rest depends on."""
    taken: list[Tensor] = []
    activates_later = classifier.spec.family == "densenet" and stage == classifier.spec.stages[-1]

    def take(_module: object, _inputs: object, output: Tensor) -> Tensor:
        leaf = output.detach()
        if activates_later:  # torchvision's ReLU behind the last norm is no module
            leaf = torch.relu(leaf)
        taken.append(leaf.requires_grad_())
        # Not the leaf itself: an in-place activation may follow.
        return leaf + _ABOVE_ZERO if activates_later else leaf.clone()

    module = classifier.backbone.get_submodule(_find_place(classifier.spec, stage))
    handle = module.register_forward_hook(take)
    try:
        yield taken
    finally:
        handle.remove()


def _find_place(spec: BackboneSpec, stage: Stage) -> str:
    """The module whose output is the stage's map."""
    if spec.family == "vit" and stage == spec.stages[-1]:
        return f"{stage.prefixes[0]}.ln_1"
    return stage.output


def _scale_to_one(maps: Tensor) -> Tensor:
    """Each of [B, h, w], at least 0, divided by its maximum; those of 0 alone stay."""
    top = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(top > 0, maps / top, maps)


def enlarge_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h, w] to [B, *size], each value at the centre of its cell, linear in between."""
    large = functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    return large[:, 0].clamp(0, 1)
