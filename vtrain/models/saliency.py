"""Where in its images a classifier finds a class, by the map of any stage of any backbone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.convnext import LayerNorm2d

from vtrain.errors import UsageError, suggest
from vtrain.models.backbone_spec import BackboneSpec, Stage
from vtrain.models.backbones import as_feature_map, hooked
from vtrain.models.classifier import Classifier

# Too little to change an activation, and above zero: ReLU lets the gradient through everywhere.
_ABOVE_ZERO = 1e-30


def compute_class_maps(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    stage: str | None = None,
) -> tuple[Tensor, Tensor]:
    """How much each place of a stage's feature map speaks for a class.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2): the channels of the map
    are added up, each weighted by the gradient of the class's logit with respect to it, averaged
    over space; what is negative becomes 0.

    A ViT reads its class token alone, to which the patches speak by attention alone, so that it has
    a rule of its own (Chefer et al. 2021, arXiv:2103.15679, equations 5 and 6): the attention of
    all blocks behind the stage, weighted by its gradient, negative parts left out, averaged over
    the heads and followed from the class token down to the patches; the smallest value of each map
    is subtracted.

    Layer norms pass gradients as if the spread that they divide by were a constant (Ali et al.
    2022, arXiv:2202.07304, section 4.2). A logit behind one does not change when all features grow
    in proportion, so that by the true gradient whatever made the features speaks for no class.

    Each map is then divided by its maximum. Gradients are taken with respect to activations alone:
    frozen, folded weights will do, and what lies below the stage keeps no activations. Works
    inside `torch.inference_mode` too.

    Args:
        classifier: in evaluation mode and computing in float32.
        images: normalised float32 [B, 3, H, W] on the classifier's device.
        classes: int64 [B], the class to look for in each image; None: the most probable one.
        stage: one of `find_map_stages`; None: see `find_map_stage`.

    Returns:
        Maps [B, h, w] from 0 to 1, of 0 alone where nothing speaks for the class, and the logits
        [B, C]; both float32, without gradients. NaN where the network itself gives it.

    Raises:
        UsageError: no such stage, or one without a map.
    """
    spec = classifier.spec
    chosen = find_map_stage(spec, stage)
    tap = _tap_attention if spec.family == "vit" else _tap_output
    with torch.inference_mode(False), torch.enable_grad():
        if images.is_inference():
            images = images.clone()  # autograd refuses such tensors
        with _spread_held(classifier), tap(classifier, chosen) as taken:
            logits = classifier(images)
        if classes is None:
            classes = logits.argmax(dim=1)
        scores = logits.gather(1, classes[:, None].to(logits.device))
        # Images do not influence one another in evaluation mode, so the sum keeps them apart.
        gradients = torch.autograd.grad(scores.sum(), taken)
        found = [each.detach() for each in taken]
    with torch.no_grad():
        combine = _follow_attention if spec.family == "vit" else _weigh_channels
        return _scale_to_one(combine(spec, found, gradients)), logits.detach().float()


def name_method(spec: BackboneSpec) -> str:
    """What computes the maps of this backbone."""
    return "gradient-weighted attention" if spec.family == "vit" else "Grad-CAM"


def find_map_stages(spec: BackboneSpec) -> list[Stage]:
    """The stages that a map can be had of, from input to output.

    Not the last block of a ViT: nothing reads the patch tokens that leave it.
    """
    stages = [stage for stage in spec.stages if stage.is_map]
    return stages[:-1] if spec.family == "vit" else stages


def find_map_stage(spec: BackboneSpec, name: str | None) -> Stage:
    """The stage of this name; None: the last one with a map, of a ViT the first one.

    A ViT is followed through all its attention by default: in the map of a late stage its patches
    have told one another what they show, and places mean little.

    Raises:
        UsageError: no such stage, or one without a map.
    """
    stages = find_map_stages(spec)
    if name is None:
        return stages[0 if spec.family == "vit" else -1]
    for stage in stages:
        if stage.name == name:
            return stage
    names = [stage.name for stage in stages]
    hint = f"stages with maps, from input to output: {', '.join(names)}"
    if name in spec.stage_names:
        why = "nothing reads its patches" if spec.family == "vit" else "it gives vectors"
        raise UsageError(f"stage {name!r} of {spec.name} has no map: {why}", hint)
    raise UsageError(f"unknown stage {name!r} of {spec.name}{suggest(name, names)}", hint)


@contextmanager
def _tap_output(classifier: Classifier, stage: Stage) -> Iterator[list[Tensor]]:
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

    with hooked([classifier.backbone.get_submodule(stage.output)], take):
        yield taken


def _weigh_channels(
    spec: BackboneSpec, outputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tensor:
    """Grad-CAM [B, h, w] of a stage's output and the gradient with respect to it."""
    activations, slopes = (as_feature_map(spec, each[0]).float() for each in (outputs, gradients))
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    return torch.relu((weights * activations).sum(dim=1))


@contextmanager
def _spread_held(classifier: Classifier) -> Iterator[None]:
    """Layer norms give what they always do, and gradients that take their spread for a constant."""

    def normalize(module: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> Tensor:
        assert isinstance(module, nn.LayerNorm)
        values = inputs[0]
        over_channels = isinstance(module, LayerNorm2d)
        if over_channels:
            values = values.movedim(1, -1)
        dims = tuple(range(-len(module.normalized_shape), 0))
        centred = values - values.mean(dims, keepdim=True)
        spread = (centred.square().mean(dims, keepdim=True) + module.eps).sqrt().detach()
        normalized = centred / spread
        if module.weight is not None:
            normalized = normalized * module.weight
        if module.bias is not None:
            normalized = normalized + module.bias
        return normalized.movedim(-1, 1) if over_channels else normalized

    norms = [module for module in classifier.modules() if isinstance(module, nn.LayerNorm)]
    with hooked(norms, normalize):
        yield


@contextmanager
def _tap_attention(classifier: Classifier, stage: Stage) -> Iterator[list[Tensor]]:
    """Takes the attention [B, heads, T, T] of each block behind the stage of a ViT, in order."""
    spec, taken = classifier.spec, list[Tensor]()

    def attend(
        module: nn.Module, inputs: tuple[Tensor, ...], _output: object
    ) -> tuple[Tensor, None]:
        assert isinstance(module, nn.MultiheadAttention)
        attention, values = _attend(module, inputs[0])
        if not attention.requires_grad:  # that of the first block
            attention.requires_grad_()
        taken.append(attention)
        mixed = (attention @ values).transpose(1, 2).flatten(2)
        return module.out_proj(mixed), None

    behind = spec.stages[spec.stages.index(stage) + 1 :]
    names = [f"{each.prefixes[0]}.self_attention" for each in behind]
    with hooked(map(classifier.backbone.get_submodule, names), attend):
        yield taken


def _attend(module: nn.MultiheadAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B, heads, T, T] and values [B, heads, T, d] of tokens [B, T, D].

    The module itself tells its attention only where no gradient can be had of it.
    """
    projected = functional.linear(tokens, module.in_proj_weight, module.in_proj_bias)
    batch, length, _ = tokens.shape
    split = projected.view(batch, length, 3, module.num_heads, module.head_dim)
    queries, keys, values = split.permute(2, 0, 3, 1, 4)
    scaled = queries @ keys.transpose(2, 3) * module.head_dim**-0.5
    return scaled.softmax(dim=3), values


def _follow_attention(
    _spec: BackboneSpec, attentions: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tensor:
    """Relevance [B, h, w] of the patches to the class token, by the blocks from last to first."""
    batch, _, length, _ = attentions[0].shape
    relevance = torch.zeros(batch, 1, length, device=attentions[0].device)
    relevance[:, :, 0] = 1
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        relevance = relevance + relevance @ torch.relu(attention * gradient).mean(dim=1)
    edge = round((length - 1) ** 0.5)
    maps = relevance[:, 0, 1:].view(batch, edge, edge)
    return maps - maps.amin(dim=(1, 2), keepdim=True)


def _scale_to_one(maps: Tensor) -> Tensor:
    """Each of [B, h, w], at least 0, divided by its maximum; those of 0 alone stay."""
    top = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(top > 0, maps / top, maps)


def enlarge_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h, w] to [B, *size], each value at the centre of its cell, linear in between."""
    large = functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    return large[:, 0].clamp(0, 1)
