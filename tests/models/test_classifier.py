"""The classifier against torchvision's own models, its layers, its modes, its heads."""

import copy
import io
import math
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from typing import Any, cast

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vtrain.config.keys import HeadConfig, HeadType
from vtrain.errors import ModelError, UsageError
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.backbones import build_backbone
from vtrain.models.classifier import (
    Classifier,
    build_classifier,
    build_pretrained_classifier,
)
from vtrain.models.weights import load_torchvision_state
from vtrain.models.zoo import backbone_names, find_backbone

SMALLEST = (
    "resnet18",
    "regnet_y_400mf",
    "convnext_tiny",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "densenet121",
    "googlenet",
    "inception_v3",
    "simple_cnn",
    "separable_cnn",
    "preact_resnet18",
)
TRAINED = set(SMALLEST) - {"efficientnet_v2_s", "convnext_tiny", "swin_v2_t", "densenet121"}


def mark_all_but(names: Iterable[str]) -> list[Any]:
    """Every model of the zoo, those not named only with `-m soak`."""
    chosen = set(names)
    soak = pytest.mark.soak
    return [n if n in chosen else pytest.param(n, marks=soak) for n in backbone_names()]


PLAIN = HeadConfig(norm="none", dropout=0.0)


def small_image_size(spec: BackboneSpec) -> int:
    """A small size that the network takes: several pixels in the last map where possible."""
    if spec.image_size_multiple > 1:
        return 224 if spec.name == "maxvit_t" else 3 * spec.image_size_multiple
    return max(64, spec.min_image_size + 20)


def make_images(spec: BackboneSpec, count: int = 2) -> Tensor:
    size = small_image_size(spec)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisations draw nothing: every value is filled in afterwards, which is faster."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **settings: tensor)


def fill(model: nn.Module) -> None:
    """Random values everywhere, norm statistics included, that keep activations finite."""
    random = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        if tensor.dim() > 1:
            scale = tensor[0].numel() ** -0.5
            tensor.data.normal_(0.0, scale, generator=random)
        else:
            tensor.data.uniform_(0.5, 1.0, generator=random)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            cast(Tensor, module.running_mean).uniform_(-0.2, 0.2, generator=random)
            cast(Tensor, module.running_var).uniform_(0.5, 1.5, generator=random)


def build_reference(spec: BackboneSpec) -> nn.Module:
    """The full model from torchvision's builder (own networks: from ours), filled."""
    size = small_image_size(spec)
    by_family: dict[str, dict[str, Any]] = {
        "inception": {"aux_logits": False, "init_weights": False, "transform_input": True},
        "vit": {"image_size": size},
        "maxvit": {"input_size": (size, size)},
    }
    settings = by_family.get(spec.family, {})
    if spec.own:
        model = build_backbone(spec, pretrained=False)
    else:
        model = torchvision.models.get_model(spec.name, weights=None, **settings)
    fill(model)
    return model.eval()


def run_reference(spec: BackboneSpec, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer sees ([B, D], pooled where it is a convolution), and the logits."""
    seen: list[Tensor] = []
    last_layer = model.get_submodule(spec.head_path)
    handle = last_layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = model(images)
    handle.remove()
    if spec.family == "squeezenet":
        return nn.functional.adaptive_avg_pool2d(seen[0], 1).flatten(1), logits
    return seen[0], logits


@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", mark_all_but(SMALLEST))
def test_features_and_logits_equal_torchvisions_bit_for_bit(name: str) -> None:
    spec = find_backbone(name)
    reference, images = build_reference(spec), make_images(spec)
    with torch.inference_mode():
        features, logits = run_reference(spec, reference, images)
    assert logits.isfinite().all()
    assert logits.std(dim=0).max() > 0  # the two images differ
    size = small_image_size(spec)
    native = build_pretrained_classifier(spec, image_size=size).eval()
    load_torchvision_state(native, reference.state_dict())
    del reference
    with torch.inference_mode():
        assert torch.equal(native(images), logits)
        assert torch.equal(native.forward_features(images), features)
    assert features.shape == (2, native.feature_dim)
    state = {k: v for k, v in native.state_dict().items() if k.startswith("backbone.")}
    trainable = build_classifier(spec, num_classes=3, head=PLAIN, image_size=size, pretrained=True)
    missing, unexpected = trainable.load_state_dict(state, strict=False, assign=True)
    assert (missing, unexpected) == (["head.1.weight", "head.1.bias"], [])
    with torch.inference_mode():
        assert torch.equal(trainable.eval().forward_features(images), features)


@pytest.mark.parametrize("name", mark_all_but(TRAINED))
def test_every_model_trains_a_step_with_its_frozen_parts_held(name: str) -> None:
    spec = find_backbone(name)
    torch.manual_seed(0)
    classifier = build_classifier(
        spec, num_classes=3, head=PLAIN, image_size=small_image_size(spec)
    )
    first_stage = spec.stages[0].name
    stages = {key: classifier.stage_of(key) for key, _ in classifier.named_parameters()}
    prefixes = spec.stages[0].prefixes
    modules = dict(classifier.backbone.named_modules())
    classifier.set_eval_modules(modules[prefix] for prefix in prefixes if prefix in modules)
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    trained = [p for k, p in classifier.named_parameters() if stages[k] != first_stage]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    classifier.train()
    loss = nn.functional.cross_entropy(classifier(make_images(spec)), torch.tensor([0, 2]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert all(p.grad is not None for p in classifier.parameters())
    optimizer.step()
    after = classifier.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {"head.1.weight", "head.1.bias"} <= changed
    assert not {k for k in changed if k.startswith("backbone.") and in_stage(classifier, k)}


def in_stage(classifier: Classifier, key: str) -> bool:
    return classifier.stage_of(key) == classifier.spec.stages[0].name


@cache
def build_shared(name: str, *, image_size: int | None = None) -> Classifier:
    """One classifier for several tests, none of which may change it."""
    return build(name, image_size=image_size)


def build(
    name: str, *, image_size: int | None = None, head: HeadConfig | None = None
) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(
        find_backbone(name), num_classes=4, head=head or PLAIN, image_size=image_size
    ).eval()


def test_the_head_is_linear_with_its_dropout_in_front() -> None:
    classifier = build("mobilenet_v3_small", head=HeadConfig(norm="none", dropout=0.3))
    head = cast(nn.Sequential, classifier.head)
    assert [type(layer) for layer in head] == [nn.Dropout, nn.Linear]
    assert cast(nn.Dropout, head[0]).p == 0.3
    assert cast(nn.Linear, head[1]).weight.shape == (4, 1024)
    assert cast(nn.Dropout, cast(nn.Sequential, build("resnet18").head)[0]).p == 0.0


def test_the_head_may_have_a_hidden_layer() -> None:
    classifier = build(
        "squeezenet1_1", head=HeadConfig(type="mlp", hidden=32, norm="none", dropout=0.2)
    )
    head = cast(nn.Sequential, classifier.head)
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    shapes = [tuple(parameter.shape) for parameter in head.parameters()]
    assert shapes == [(32, 512), (32,), (4, 32), (4,)]
    features = classifier.forward_features(torch.randn(2, 3, 64, 64))
    assert classifier.forward_head(features).shape == (2, 4)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_with_norm_does_not_see_the_scale_of_the_features(kind: HeadType) -> None:
    classifier = build("resnet18", head=HeadConfig(type=kind, dropout=0.2))
    head = cast(nn.Sequential, classifier.head)
    assert isinstance(head[0], nn.LayerNorm)
    assert not list(head[0].parameters())
    assert [type(layer) for layer in head[-2:]] == [nn.Dropout, nn.Linear]
    features = classifier.forward_features(torch.randn(2, 3, 64, 64))
    logits = classifier.forward_head(features)
    torch.testing.assert_close(
        classifier.forward_head(100 * features), logits, rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize(
    "head", [PLAIN, HeadConfig(type="mlp", hidden=16), HeadConfig(dropout=0.0)]
)
def test_a_new_head_starts_undecided(head: HeadConfig) -> None:
    classifier = build("resnet18", head=head)
    logits = classifier(torch.randn(8, 3, 64, 64))
    loss = nn.functional.cross_entropy(logits, torch.arange(8) % 4)
    assert loss.item() == pytest.approx(math.log(4), abs=0.15)


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "efficientnet_b0", "mnasnet0_5", "squeezenet1_1", "googlenet", "vgg11"],
)
def test_dropout_right_before_the_last_layer_moves_to_the_head(name: str) -> None:
    with torch.device("meta"):
        native = build_pretrained_classifier(find_backbone(name))
        classifier = build(name, head=HeadConfig(norm="none", dropout=0.1))
    dropouts = [key for key, m in classifier.backbone.named_modules() if isinstance(m, nn.Dropout)]
    assert dropouts == (["classifier.2"] if name == "vgg11" else [])  # between fc6 and fc7
    assert cast(nn.Dropout, cast(nn.Sequential, native.head)[0]).p > 0.1  # torchvision's own


def test_features_do_not_depend_on_the_heads_dropout() -> None:
    classifier = build("mobilenet_v2", head=HeadConfig(norm="none", dropout=0.9))
    images = torch.randn(2, 3, 64, 64)
    expected = classifier.forward_features(images)
    classifier.set_eval_modules([classifier.backbone])
    classifier.train()
    assert torch.equal(classifier.forward_features(images), expected)
    assert not torch.equal(classifier(images), classifier(images))


def test_state_dict_keys_are_torchvisions_below_backbone() -> None:
    classifier = build("resnet18")
    reference = torchvision.models.resnet18().state_dict()
    keys = {key for key in reference if not key.startswith("fc.")}
    expected = {f"backbone.{key}" for key in keys} | {"head.1.weight", "head.1.bias"}
    assert classifier.state_dict().keys() == expected


def test_stage_of_every_parameter_module_and_buffer() -> None:
    classifier = build("resnet18")
    names = {
        "backbone.conv1.weight": "stem",
        "backbone.bn1.running_mean": "stem",
        "backbone.layer1.0.bn1.weight": "layer1",
        "backbone.layer4": "layer4",
        "head.1.weight": "head",
        "head": "head",
    }
    assert {name: classifier.stage_of(name) for name in names} == names
    for unknown in ("backbone.avgpool", "layer1.0.bn1.weight", "backbone.layer11", "backbone", ""):
        with pytest.raises(KeyError):
            classifier.stage_of(unknown)


def test_stages_with_two_digits_are_told_from_those_with_one() -> None:
    classifier = build("mobilenet_v2")
    assert classifier.stage_of("backbone.features.1.conv.0.0.weight") == "stage1"
    assert classifier.stage_of("backbone.features.18.0.weight") == "last_conv"


@pytest.mark.parametrize(
    ("name", "size", "layer", "shape"),
    [
        ("resnet18", 64, "stem", (64, 16, 16)),
        ("resnet18", 64, "pooled", (512, 2, 2)),
        ("vgg11", 64, "block5", (512, 2, 2)),
        ("swin_t", 64, "stage2", (192, 8, 8)),
        ("swin_t", 64, "stage4", (768, 2, 2)),
        ("swin_t", 64, "pooled", (768, 2, 2)),
        ("vit_b_32", 96, "stem", (768, 3, 3)),
        ("vit_b_32", 96, "block12", (768, 3, 3)),
        ("vit_b_32", 96, "pooled", (768, 3, 3)),
        ("convnext_tiny", 64, "stage4", (768, 2, 2)),
        ("densenet121", 64, "denseblock2", (512, 8, 8)),
        ("squeezenet1_1", 64, "pooled", (512, 3, 3)),
        ("mobilenet_v3_small", 64, "last_conv", (576, 2, 2)),
    ],
)
def test_a_layer_is_a_map_or_its_average(
    name: str, size: int, layer: str, shape: tuple[int, ...]
) -> None:
    classifier = build_shared(name, image_size=size)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        maps = classifier.forward_layer(images, layer, feature_maps=True)
        averages = classifier.forward_layer(images, layer)
    assert maps.shape == (2, *shape)
    torch.testing.assert_close(averages, maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "swin_t", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5"],
)
def test_pooled_is_what_the_last_layer_sees_where_nothing_lies_between(name: str) -> None:
    classifier = build_shared(name, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        pooled = classifier.forward_layer(images, "pooled")
        penultimate = classifier.forward_layer(images, "penultimate")
    torch.testing.assert_close(pooled, penultimate)


def test_pooled_of_a_vit_averages_the_normalised_tokens_without_the_class_token() -> None:
    classifier = build_shared("vit_b_32", image_size=96)
    images = torch.randn(2, 3, 96, 96)
    seen: list[Tensor] = []
    norm = classifier.backbone.get_submodule("encoder.ln")
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    penultimate = classifier.forward_layer(images, "penultimate")
    handle.remove()
    pooled = classifier.forward_layer(images, "pooled")
    assert torch.equal(penultimate, seen[0][:, 0])
    torch.testing.assert_close(pooled, seen[0][:, 1:].mean(dim=1))


def test_fully_connected_stages_are_vectors_after_their_activation() -> None:
    with torch.inference_mode():
        classifier = build("alexnet")
        images = torch.randn(2, 3, 64, 64)
        fc7 = classifier.forward_layer(images, "fc7")
        assert fc7.shape == (2, 4096)
        assert torch.equal(fc7, classifier.forward_layer(images, "penultimate"))
        assert fc7.min() == 0
    with pytest.raises(UsageError) as error:
        classifier.forward_layer(images, "fc6", feature_maps=True)
    assert error.value.message == "layer 'fc6' of alexnet has no feature maps, only vectors"
    assert error.value.hint == "layers with maps: pooled, conv1, conv2, conv3, conv4, conv5"


def test_layers_by_name() -> None:
    classifier = build_shared("resnet18")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(classifier.forward_layer(images, "logits"), classifier(images))
    with pytest.raises(UsageError) as error:
        classifier.forward_layer(images, "layer5")
    assert error.value.message == "unknown layer 'layer5' of resnet18, did you mean layer4?"
    assert error.value.hint is not None
    assert error.value.hint.startswith("layers: penultimate, pooled, logits, stem, layer1")
    with pytest.raises(UsageError, match="'logits' of resnet18 has no feature maps"):
        classifier.forward_layer(images, "logits", feature_maps=True)


def test_an_early_layer_is_not_followed_by_work_and_leaves_no_hook() -> None:
    classifier = build("resnet18")
    images = torch.randn(2, 3, 64, 64)
    expected = classifier(images)
    layer2 = classifier.backbone.get_submodule("layer2")
    handle = layer2.register_forward_pre_hook(lambda module, inputs: pytest.fail("went on"))
    assert classifier.forward_layer(images, "layer1").shape == (2, 64)
    handle.remove()
    hooks = chain.from_iterable(m._forward_hooks.values() for m in classifier.modules())
    assert list(hooks) == []
    assert torch.equal(classifier(images), expected)


def test_a_failing_forward_pass_leaves_no_hook() -> None:
    classifier = build("resnet18")
    with pytest.raises(RuntimeError):
        classifier.forward_layer(torch.randn(2, 5, 64, 64), "layer4")
    assert not any(module._forward_hooks for module in classifier.modules())


def list_training(classifier: nn.Module) -> Iterator[str]:
    return (name for name, module in classifier.named_modules() if module.training)


def test_held_modules_stay_in_evaluation_mode() -> None:
    classifier = build("resnet18")
    layer1, stem = (classifier.backbone.get_submodule(name) for name in ("layer1", "bn1"))
    classifier.train()
    classifier.set_eval_modules([layer1, stem])
    for _ in range(2):
        names = set(list_training(classifier))
        assert {"", "head", "backbone", "backbone.layer2.0.bn1"} <= names
        assert not any(n.startswith(("backbone.layer1", "backbone.bn1")) for n in names)
        classifier.train()
    classifier.set_eval_modules([])
    assert set(list_training(classifier.train())) == {n for n, _ in classifier.named_modules()}
    classifier.set_eval_modules([classifier])
    assert list(list_training(classifier.train())) == []


def test_a_copy_holds_its_own_modules() -> None:
    classifier = build("simple_cnn")
    classifier.set_eval_modules([classifier.backbone])
    stored = io.BytesIO()
    torch.save(classifier, stored)
    stored.seek(0)
    images = torch.randn(2, 3, 32, 32)
    for twin in (copy.deepcopy(classifier), torch.load(stored, weights_only=False)):
        twin.train()
        assert set(list_training(twin)) == {"", "head", "head.0", "head.1"}
        assert twin.spec == classifier.spec
        assert torch.equal(twin(images), classifier(images))
        held = {id(module) for module in twin._eval_modules}
        assert held == {id(twin.backbone)}


def test_squeezenets_own_head_works_on_the_map_only() -> None:
    native = build_pretrained_classifier(find_backbone("squeezenet1_0")).eval()
    images = torch.randn(2, 3, 64, 64)
    assert native(images).shape == (2, 1000)
    features = native.forward_layer(images, "penultimate")
    assert features.shape == (2, 512)
    assert torch.equal(native.forward_layer(images, "logits"), native(images))
    with pytest.raises(UsageError, match="squeezenet1_0's own head works on the feature map"):
        native.forward_head(features)


def test_a_new_squeezenet_head_gives_negative_logits_too() -> None:
    classifier = build("squeezenet1_0")
    logits = classifier(torch.randn(8, 3, 64, 64))
    assert logits.min() < 0 < logits.max()


def test_foreign_weights_are_refused_with_the_first_reasons() -> None:
    native = build_pretrained_classifier(find_backbone("resnet18"))
    for name, reason in [
        ("resnet34", "unexpected (backbone.layer1.2.conv1.weight"),
        ("mobilenet_v2", "missing (backbone.conv1.weight"),
        ("resnet50", "backbone.layer1.0.conv1.weight [64, 64, 1, 1], expected [64, 64, 3, 3]"),
    ]:
        state = torchvision.models.get_model(name, weights=None).state_dict()
        with pytest.raises(ModelError, match="does not fit resnet18: ") as error:
            load_torchvision_state(native, state)
        assert reason in error.value.message
        assert len(error.value.message) < 800


def test_files_with_auxiliary_heads_and_old_keys_load() -> None:
    googlenet = build_pretrained_classifier(find_backbone("googlenet"))
    state = {f"backbone.{k}": v for k, v in googlenet.backbone.state_dict().items()}
    plain = {k.removeprefix("backbone."): v for k, v in state.items()}
    plain |= {"fc.weight": torch.ones(1000, 1024), "fc.bias": torch.zeros(1000)}
    plain |= {"aux1.fc2.weight": torch.ones(1), "aux2.conv.bn.bias": torch.ones(1)}
    plain = {k: v for k, v in plain.items() if not k.endswith("num_batches_tracked")}
    load_torchvision_state(googlenet, plain)
    assert torch.equal(googlenet.state_dict()["head.1.weight"], torch.ones(1000, 1024))


def test_a_vit_loads_weights_of_another_image_size() -> None:
    spec = find_backbone("vit_b_32")
    native = build_pretrained_classifier(spec, image_size=64)
    state: dict[str, Tensor] = native.backbone.state_dict()
    state |= {"heads.head.weight": torch.ones(1000, 768), "heads.head.bias": torch.zeros(1000)}
    state["encoder.pos_embedding"] = torch.ones(1, 50, 768)
    load_torchvision_state(native, state)
    assert native.state_dict()["backbone.encoder.pos_embedding"].shape == (1, 5, 768)
    assert native.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
