"""Folded batch norms: the same function, for every backbone and at every stage."""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.classifier import POOLED, Classifier, build_pretrained_classifier
from vtrain.models.folding import FoldedPair, apply_folding, find_foldable
from vtrain.models.zoo import backbone_names, find_backbone

CHEAP = (
    "simple_cnn", "separable_cnn", "preact_resnet18", "preact_resnet50", "squeezenet1_1",
    "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "densenet121",
)  # fmt: skip
SLOW = tuple(name for name in backbone_names() if name not in CHEAP)
# Backbones whose norms all stand behind convolutions are not listed. The others:
NO_BATCH_NORM = {"alexnet", "convnext", "squeezenet", "swin", "vit"}
PARTLY = {  # folded, of all; the rest stands before its convolution or behind a split
    "simple_cnn": (1, 5), "separable_cnn": (8, 9),
    "preact_resnet18": (8, 17), "preact_resnet50": (32, 49), "maxvit_t": (23, 34),
    "densenet121": (59, 121), "densenet169": (83, 169), "densenet201": (99, 201),
    "densenet161": (79, 161),
}  # fmt: skip


def conv_norm(channels: int = 4, *, bias: bool = False) -> list[nn.Module]:
    return [nn.Conv2d(3, channels, 3, padding=1, bias=bias), nn.BatchNorm2d(channels)]


def randomize(module: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after some training."""
    torch.manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.3)
    return module.eval()


def images(size: int = 8) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@dataclass(frozen=True)
class Folding:
    """A folded copy, the pairs that were folded, and how many batch norms there were before."""

    module: nn.Module
    pairs: tuple[FoldedPair, ...]
    batch_norms: int


def fold_batch_norms(module: nn.Module, *, keep: Collection[str] = ()) -> Folding:
    folded = copy.deepcopy(module).eval()
    count = sum(isinstance(child, nn.BatchNorm2d) for child in folded.modules())
    return Folding(folded, tuple(apply_folding(folded, keep=keep)), count)


def fold_and_compare(module: nn.Module) -> Folding:
    folding = fold_batch_norms(randomize(module))
    with torch.inference_mode():
        assert relative(folding.module(images()), module(images())) <= 1e-6
    return folding


# --- single layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_norm_behind_a_convolution_goes_away(bias: bool, affine: bool) -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, groups=3, bias=bias)
    folding = fold_and_compare(nn.Sequential(conv, nn.BatchNorm2d(6, affine=affine), nn.ReLU()))
    assert folding.pairs == (("0", "1"),)
    assert folding.batch_norms == 1
    assert isinstance(folding.module.get_submodule("1"), nn.Identity)


def test_the_given_module_stays_as_it_is() -> None:
    module = nn.Sequential(*conv_norm())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folded = fold_batch_norms(module).module
    assert module.training
    assert not folded.training
    assert isinstance(module[1], nn.BatchNorm2d)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_small_variance_loses_no_digits() -> None:
    module = nn.Sequential(*conv_norm())
    randomize(module)
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.fill_(1e-12)
    folded = fold_batch_norms(module).module
    with torch.inference_mode():
        assert relative(folded(images()), module.double()(images().double()).float()) <= 1e-6


class Branches(nn.Module):
    """A convolution whose output goes into the norm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        normed: Tensor = self.norm(x)
        return x + normed


class Twice(nn.Module):
    """One norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = conv_norm()
        self.second = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.norm(self.first(x))
        second: Tensor = self.norm(self.second(x))
        return first + second


class Between(nn.Module):
    """Something stands between the convolution and the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu())  # type: ignore[no-any-return]


class OtherConv(nn.Conv2d):
    """Not what folding thinks it is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


@pytest.mark.parametrize(
    "module",
    [
        Branches(),
        Twice(),
        Between(),
        nn.Sequential(OtherConv(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    ],
)
def test_other_norms_stay(module: nn.Module) -> None:
    folding = fold_and_compare(module)
    assert folding.pairs == ()
    assert folding.batch_norms == 1


def test_a_norm_without_statistics_stays() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert find_foldable(module) == []


class Untraceable(nn.Module):
    """Looks at the values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x))
        return found if bool(found.sum() > 0) else -found


def test_what_cannot_be_traced_is_copied_unfolded_and_says_so() -> None:
    module = Untraceable()
    folding = fold_and_compare(module)
    assert (folding.pairs, folding.batch_norms) == ((), 1)
    assert folding.module is not module


@pytest.mark.parametrize(("keep", "count"), [([], 1), (["0"], 0), (["0.0"], 0), (["1"], 1)])
def test_outputs_that_are_looked_at_stay(keep: list[str], count: int) -> None:
    conv, norm = conv_norm()
    module = nn.Sequential(nn.Sequential(conv), nn.Sequential(norm)).eval()
    assert len(find_foldable(module, keep=keep)) == count
    assert len(find_foldable(module, keep=[*keep, ""])) == count


# --- the zoo -------------------------------------------------------------------------------------


def image_size_for(spec: BackboneSpec) -> int:
    """As small as the backbone takes it, but with some pixels left in the last stage."""
    if spec.image_size_multiple > 1:
        return spec.image_size_multiple
    return max(spec.min_image_size, 64)


def build(name: str) -> Classifier:
    torch.manual_seed(0)
    spec = find_backbone(name)
    fixed = image_size_for(spec) if spec.image_size_multiple > 1 else None
    classifier = build_pretrained_classifier(spec, image_size=fixed)
    randomize(classifier.to(memory_format=torch.channels_last))
    return classifier


def layers_of(spec: BackboneSpec) -> Iterator[str]:
    yield POOLED
    for stage in spec.stages:
        yield stage.name


@pytest.mark.parametrize(
    "name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.soak) for name in SLOW)]
)
@torch.inference_mode()
def test_backbones_compute_the_same_at_every_stage(name: str) -> None:
    classifier = build(name)
    spec, x = classifier.spec, images(image_size_for(classifier.spec))
    expected = {layer: classifier.forward_layer(x, layer) for layer in layers_of(spec)}
    features = classifier.forward_features(x)
    keep = {spec.feature_map, *(stage.output for stage in spec.stages)}
    folding = fold_batch_norms(classifier.backbone, keep=keep)
    classifier.backbone = folding.module
    assert relative(classifier.forward_features(x), features) <= 1e-5
    for layer, values in expected.items():
        assert relative(classifier.forward_layer(x, layer), values) <= 1e-5, layer
    counts = (len(folding.pairs), folding.batch_norms)
    if spec.family in NO_BATCH_NORM or name in ("vgg11", "vgg13", "vgg16", "vgg19"):
        assert counts == (0, 0)
    else:
        assert counts == PARTLY.get(name, (folding.batch_norms, folding.batch_norms))
        assert folding.pairs
