"""Batch norms folded into the convolutions before them: the same function with fewer layers."""

from collections import Counter
from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import fx, nn

FoldedPair = tuple[str, str]


def apply_folding(module: nn.Module, *, keep: Collection[str] = ()) -> list[FoldedPair]:
    """Fold the batch norms of `find_foldable` in place; the module is for evaluation from then on.

    Returns what was folded.
    """
    pairs = find_foldable(module, keep=keep)
    for conv_path, norm_path in pairs:
        conv, norm = module.get_submodule(conv_path), module.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        _absorb(conv, norm)
        module.set_submodule(norm_path, nn.Identity())
    return pairs


def find_foldable(module: nn.Module, *, keep: Collection[str] = ()) -> list[FoldedPair]:
    """Paths of (convolution, batch norm), where the norm alone uses the convolution's output.

    Both are called once in a forward pass, and between them stands nothing. `keep` are the paths
    of submodules whose outputs are looked at: a convolution whose output would be theirs is left
    out. The module must be in evaluation mode; nothing is found in one that cannot be traced.
    """
    modules = dict(module.named_modules())
    if not any(isinstance(each, nn.BatchNorm2d) for each in modules.values()):
        return []  # tracing a transformer takes long
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever a network does that symbols cannot follow
        return []
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    return [
        (conv, norm)
        for conv, norm in _find_pairs(graph, modules)
        if calls[conv] == calls[norm] == 1 and _may_fold(conv, norm, keep)
    ]


class _Tracer(fx.Tracer):
    """Looks into containers and into torchvision's blocks, not into layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A module without children computes something by itself; what, is of no interest here.
        is_layer = next(m.children(), None) is None
        return is_layer or super().is_leaf_module(m, module_qualified_name)


def _find_pairs(graph: fx.Graph, modules: dict[str, nn.Module]) -> Sequence[FoldedPair]:
    pairs = []
    for node in graph.nodes:
        if not _calls(node, nn.BatchNorm2d, modules) or not node.args:
            continue
        before = node.args[0]
        norm = modules[node.target]
        if (
            _calls(before, nn.Conv2d, modules)
            and len(before.users) == 1
            and norm.running_mean is not None
        ):
            pairs.append((before.target, node.target))
    return pairs


def _calls(node: Any, kind: type[nn.Module], modules: dict[str, nn.Module]) -> bool:
    # A subclass may compute something else, so the type must be the very one.
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and type(modules[str(node.target)]) is kind
    )


def _may_fold(conv: str, norm: str, keep: Collection[str]) -> bool:
    """Whether no module in `keep` holds the convolution but not the norm behind it."""
    return not any(_lies_in(conv, each) and not _lies_in(norm, each) for each in keep)


def _lies_in(path: str, module: str) -> bool:
    return not module or f"{path}.".startswith(f"{module}.")


@torch.no_grad()
def _absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give `conv` the weights with which it computes what `norm` made of its output."""
    # In float64 what is per channel, on a CPU for MPS, which has none: every rounding there shifts
    # a whole channel. `torch.nn.utils.fuse_conv_bn_eval` rounds to float32.
    device = "cpu" if conv.weight.device.type == "mps" else conv.weight.device
    exact = deepcopy(norm).to(device, torch.float64)
    assert exact.running_mean is not None
    assert exact.running_var is not None
    scale = (exact.running_var + exact.eps).rsqrt()
    bias = -exact.running_mean
    if conv.bias is not None:
        bias += conv.bias.to(bias)
    if exact.affine:
        scale *= exact.weight
    bias *= scale
    if exact.affine:
        bias += exact.bias
    weight = conv.weight * scale.to(conv.weight).view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias.to(weight), requires_grad=False)
