"""A classifier cut at a stage: what lies below a boundary, and what goes on from there."""

from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from vtrain.models.classifier import PENULTIMATE, Classifier


def find_frozen_boundary(classifier: Classifier) -> str | None:
    """How far up from the input everything is frozen, for the freeze policy now applied.

    `penultimate` if the whole backbone is, else the name of the last stage of the frozen part;
    None where the first stage is trained, or a module of the frozen part is in training mode.
    """
    classifier.train()
    open_names = [
        *(name for name, each in classifier.named_parameters() if each.requires_grad),
        *(name for name, each in classifier.named_modules() if each.training),
    ]
    open_stages = set()
    for name in open_names:
        with suppress(KeyError):  # a module that holds stages is in none of them
            open_stages.add(classifier.stage_of(name))
    boundary = None
    for stage in classifier.spec.stages:
        if stage.name in open_stages:
            return boundary
        boundary = stage.name
    return PENULTIMATE


class LowerPart(nn.Module):
    """Images `[B, 3, H, W]` to the activations at a boundary, `[B, ...]`."""

    def __init__(self, classifier: Classifier, boundary: str) -> None:
        super().__init__()
        if boundary == PENULTIMATE:
            self.layers = classifier.backbone
        else:
            self.layers = _cut_below(classifier, boundary)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, ...]."""
        return cast(Tensor, self.layers(images))


class UpperPart(nn.Module):
    """Activations at a boundary `[B, ...]` to logits `[B, C]`; shares the classifier's modules."""

    def __init__(self, classifier: Classifier, boundary: str) -> None:
        super().__init__()
        self.layers = None if boundary == PENULTIMATE else _cut_above(classifier, boundary)
        self.head = classifier.head

    def forward(self, activations: Tensor) -> Tensor:
        """[B, ...] -> [B, C]."""
        features = activations if self.layers is None else self.layers(activations)
        return cast(Tensor, self.head(features))


class BoundaryError(Exception):
    """The network cannot be cut there; the message says why."""


class _Tracer(fx.Tracer):
    """Records which value is the output of each module, by the module's path."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What looks at its own `training` must be asked anew at each call: a graph would keep the
        # answer of today (stochastic depth, dropout in DenseNet's layers and Swin's attention).
        asks = "training" in type(m).forward.__code__.co_names
        return asks or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[path] = output.node
        return output


def _trace(classifier: Classifier, boundary: str) -> tuple[fx.GraphModule, fx.Node]:
    """The backbone as a graph over its own modules, and the node with the output of a stage."""
    name = classifier.spec.name
    stage = next(each for each in classifier.spec.stages if each.name == boundary)
    tracer = _Tracer()
    try:
        graph = tracer.trace(classifier.backbone)
    except Exception as error:  # whatever a network does that symbols cannot follow
        raise BoundaryError(f"{name} cannot be traced: {error}") from error
    if stage.output not in tracer.outputs:
        raise BoundaryError(f"{name} does not call {stage.output} as a module")
    return fx.GraphModule(classifier.backbone, graph), tracer.outputs[stage.output]


def _cut_below(classifier: Classifier, boundary: str) -> fx.GraphModule:
    module, node = _trace(classifier, boundary)
    (output,) = (each for each in module.graph.nodes if each.op == "output")
    output.args = (node,)
    _erase_asserts(module, behind=node)
    return _tidy(module, classifier)


def _cut_above(classifier: Classifier, boundary: str) -> fx.GraphModule:
    module, node = _trace(classifier, boundary)
    with module.graph.inserting_before(node):
        entry = module.graph.placeholder("activations")
    node.replace_all_uses_with(entry)
    _erase_asserts(module)  # also of the size of the images, which went below
    _tidy(module, classifier)
    for each in list(module.graph.nodes):
        if each.op == "placeholder" and each is not entry:
            if each.users:
                name = classifier.spec.name
                raise BoundaryError(f"{boundary} is not the only way up in {name}")
            module.graph.erase_node(each)
    return _tidy(module, classifier)


def _erase_asserts(module: fx.GraphModule, *, behind: fx.Node | None = None) -> None:
    """Drop ViT's checks of shapes, which would keep alive all that they look at."""
    nodes = list(module.graph.nodes)
    for each in nodes[0 if behind is None else nodes.index(behind) :]:
        if each.target is torch._assert:
            module.graph.erase_node(each)


def _tidy(module: fx.GraphModule, classifier: Classifier) -> fx.GraphModule:
    """The graph without what nothing depends on, with no other tensors than those it uses."""
    module.graph.eliminate_dead_code()
    return fx.GraphModule(classifier.backbone, module.graph)
