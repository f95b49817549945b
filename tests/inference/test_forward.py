"""Classifiers prepared for inference: what is cast, what is not, and that all paths still work."""

import copy
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import CPU
from vtrain.config.keys import HeadConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.errors import UsageError
from vtrain.inference.forward import (
    InferenceClassifier,
    compute_outputs,
    prepare_for_inference,
    prepare_module,
)
from vtrain.models.classifier import Classifier, build_classifier, build_pretrained_classifier
from vtrain.models.precision import DTYPES, Precision
from vtrain.models.zoo import backbone_names, find_backbone

PRECISIONS = ("fp32", "bf16")
# A norm behind convolutions, attention with a packed projection, windows, a scale per channel, a
# head on the map, squeeze and excitation: one of each kind.
CHEAP = (
    "simple_cnn", "separable_cnn", "resnet18", "squeezenet1_1", "mobilenet_v3_small", "swin_v2_t",
    "convnext_tiny",
)  # fmt: skip
SLOW = tuple(name for name in backbone_names() if name not in CHEAP)
# Largest difference to float32, relative to the largest output: bf16 keeps 8 bits.
CLOSE = {"fp32": 1e-5, "bf16": 0.1}


def build(name: str = "simple_cnn") -> Classifier:
    """With the network's own head, for images as small as the network takes them."""
    torch.manual_seed(0)
    spec = find_backbone(name)
    size = spec.image_size_multiple if spec.image_size_multiple > 1 else None
    classifier = build_pretrained_classifier(spec, image_size=size).eval()
    for parameter in classifier.head.parameters():  # ViT's starts with zeros
        nn.init.normal_(parameter, std=0.1)
    return classifier.to(memory_format=torch.channels_last)


def build_new_head(head: str = "mlp") -> Classifier:
    torch.manual_seed(0)
    config = HeadConfig.model_validate({"type": head})
    return build_classifier(find_backbone("simple_cnn"), num_classes=3, head=config).eval()


def images(size: int = 64, count: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, size, size).contiguous(memory_format=torch.channels_last)


def images_for(classifier: Classifier) -> Tensor:
    spec = classifier.spec
    return images(
        spec.image_size_multiple if spec.image_size_multiple > 1 else max(spec.min_image_size, 64)
    )


def prepare(classifier: Classifier, precision: str) -> InferenceClassifier:
    return prepare_for_inference(classifier, Precision(precision, CPU))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.soak) for name in SLOW)]
)
@torch.inference_mode()
def test_every_backbone_gives_what_it_gave(name: str, precision: str) -> None:
    classifier = build(name)
    prepared, x = prepare(classifier, precision), images_for(classifier)
    layers = ("logits", "penultimate", "pooled", classifier.spec.stages[0].name)
    for layer in layers:
        got, expected = prepared.forward_layer(x, layer), classifier.forward_layer(x, layer)
        assert got.shape == expected.shape
        assert relative(got, expected) <= CLOSE[precision], layer
    assert torch.equal(prepared(x), prepared.forward_layer(x, "logits"))
    assert torch.equal(prepared.forward_features(x), prepared.forward_layer(x, "penultimate"))
    for _, layer in prepared.backbone.named_modules():
        if type(layer) in (nn.Conv2d, nn.Linear):
            assert {each.dtype for each in layer.parameters()} == {DTYPES[precision]}
            assert not any(each.requires_grad for each in layer.parameters())


@torch.inference_mode()
def test_feature_maps() -> None:
    classifier = build()
    maps = prepare(classifier, "bf16").forward_layer(images(), "block2", feature_maps=True)
    expected = classifier.forward_layer(images(), "block2", feature_maps=True)
    assert maps.shape == expected.shape
    assert relative(maps, expected) <= CLOSE["bf16"]


@pytest.mark.parametrize("head", ["linear", "mlp"])
@torch.inference_mode()
def test_the_head_computes_in_float32(head: str) -> None:
    classifier = build_new_head(head)
    prepared = prepare(classifier, "bf16")
    features = prepared.forward_features(images())
    assert features.dtype == torch.bfloat16
    logits = prepared(images())
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert torch.equal(logits, classifier.head(features.float()))
    assert torch.equal(logits, prepared.forward_head(features))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # whatever the caller has switched on
        assert torch.equal(logits, prepared(images()))
        assert torch.equal(logits, prepared.forward_head(features))


@torch.inference_mode()
def test_fp32_is_fp32_also_within_autocast() -> None:
    prepared = prepare(build(), "fp32")
    expected = prepared.forward_features(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prepared.forward_features(images()), expected)


def test_a_head_on_the_map_takes_no_features() -> None:
    prepared = prepare(build("squeezenet1_1"), "bf16")
    with pytest.raises(UsageError, match="own head works on the feature map"):
        prepared.forward_head(torch.zeros(1, prepared.feature_dim))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_copy_is_not_changed_by_training(precision: str) -> None:
    classifier = build_new_head().train()
    before = copy.deepcopy(classifier.state_dict())
    prepared = prepare(classifier, precision)
    expected = prepared(images())
    assert classifier.training
    assert classifier.backbone.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    for name, value in classifier.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    classifier(images())  # moves the running statistics
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1)
    assert torch.equal(prepared(images()), expected)


def test_in_place_uses_the_given_classifier_up() -> None:
    classifier = build()
    prepared = prepare_for_inference(classifier, Precision("bf16", CPU), in_place=True)
    assert prepared.backbone is classifier.backbone
    assert torch.equal(prepared(images()), prepare(build(), "bf16")(images()))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layout_is_channels_last(precision: str) -> None:
    classifier = build("resnet18").to(memory_format=torch.contiguous_format)
    for layer in prepare(classifier, precision).modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_batches_of_one_and_of_many_agree() -> None:
    prepared, batch = prepare(build("resnet18"), "bf16"), images(count=4)
    single = torch.cat([prepared.forward_features(batch[i : i + 1]) for i in range(4)])
    assert relative(single, prepared.forward_features(batch).float()) <= 0.03


def test_part_of_a_network_is_prepared_for_the_callers_autocast() -> None:
    """Frozen layers below others that are trained."""
    lower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    upper = nn.Linear(4, 2)
    precision = Precision("bf16", CPU)
    prepared = prepare_module(lower, precision)
    assert isinstance(prepared.get_submodule("1"), nn.Identity)
    with precision.autocast():
        activations = prepared(images(8))
        loss = upper(activations.mean(dim=(2, 3))).sum()
    assert activations.dtype == torch.bfloat16
    assert not activations.requires_grad
    loss.backward()
    assert upper.weight.grad is not None
    assert lower.training
    with torch.no_grad():
        assert relative(activations, lower.eval()(images(8))) <= 0.03


@torch.inference_mode()
def test_attention_stays_on_its_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    precision = Precision("bf16", CPU)
    prepared = prepare_module(attention, precision)
    assert {each.dtype for each in prepared.parameters()} == {torch.float32}
    x = torch.randn(1, 5, 8)
    fast_path = Mock(wraps=torch._native_multi_head_attention)
    monkeypatch.setattr(torch, "_native_multi_head_attention", fast_path)
    with precision.autocast():
        got = prepared(x, x, x, need_weights=False)[0]
    assert fast_path.call_count == 1
    assert relative(got, attention(x, x, x)[0]) <= 0.05


def test_outputs_are_float32_for_every_precision() -> None:
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for precision in PRECISIONS:
        prepared = prepare(build(), precision)
        for forward in (prepared, prepared.forward_features):
            outputs = compute_outputs(forward, pixels, Preprocessing(64, 64), CPU)
            assert outputs.dtype == torch.float32
