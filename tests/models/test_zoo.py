"""The zoo's table against torchvision's own metadata, and what it refuses."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torchvision

from vtrain.errors import UsageError
from vtrain.models.backbone_spec import BUILDER_OPTIONS
from vtrain.models.zoo import (
    backbone_names,
    check_image_size,
    check_options,
    find_backbone,
    find_weights,
)

OWN = ("simple_cnn", "separable_cnn", "preact_resnet18", "preact_resnet50")
PUBLISHED = tuple(name for name in backbone_names() if name not in OWN)
# torchvision counts the auxiliary head of inception_v3, which is never built here
AUXILIARY_PARAMS = {"inception_v3": 3_326_696}
# torchvision: "missing values in the `classifier` module", so that neither fc6 and fc7 nor the
# classes can be had from them
UNUSABLE_WEIGHTS = {"vgg16": ("IMAGENET1K_FEATURES",)}


def published_metadata(name: str) -> SimpleNamespace:
    """What torchvision says about the default weights."""
    entry = torchvision.models.get_model_weights(name).DEFAULT
    return SimpleNamespace(transforms=entry.transforms(), **entry.meta)


def test_the_zoo_holds_every_classification_model_of_torchvision_and_four_own() -> None:
    known = set(torchvision.models.list_models(module=torchvision.models))
    assert known == set(PUBLISHED)
    assert backbone_names()[-4:] == OWN
    assert [find_backbone(name).own for name in OWN] == [True] * 4


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_and_weights_are_those_that_torchvision_publishes(name: str) -> None:
    spec, published = find_backbone(name), published_metadata(name)
    weights = torchvision.models.get_model_weights(name)
    published_names = tuple(entry.name for entry in weights)
    assert spec.weights + UNUSABLE_WEIGHTS.get(name, ()) == published_names
    assert spec.default_weights == weights.DEFAULT.name
    assert spec.params == published.num_params
    assert spec.gflops == pytest.approx(published._ops, rel=0.01, abs=0.001)
    accuracy = published._metrics["ImageNet-1K"]["acc@1"]
    assert spec.top1 == pytest.approx(accuracy, abs=0.1)
    assert spec.file_size_mb == pytest.approx(published._file_size, rel=0.01)
    assert [spec.image_size] == published.transforms.crop_size
    assert [spec.resize] == published.transforms.resize_size


@pytest.mark.parametrize("name", backbone_names())
def test_every_line_has_stages_and_a_short_note(name: str) -> None:
    spec = find_backbone(name)
    names = find_backbone(name).stage_names
    assert names[0] == {"alexnet": "conv1", "vgg": "block1"}.get(spec.family, "stem")
    assert len(set(names)) == len(names)
    assert {"head", "penultimate", "pooled", "logits"}.isdisjoint(names)
    assert len(names) <= 12 or spec.family == "vit"
    assert 15 < len(spec.note) <= 80
    assert set(spec.options) <= set(BUILDER_OPTIONS)
    assert spec.image_size >= spec.min_image_size
    check_image_size(spec, spec.image_size)


def test_stage_names_of_some_families() -> None:
    assert find_backbone("resnet50").stage_names == ("stem", "layer1", "layer2", "layer3", "layer4")
    assert find_backbone("vgg16").stage_names[-3:] == ("block5", "fc6", "fc7")
    assert find_backbone("vit_h_14").stage_names[::32] == ("stem", "block32")
    assert find_backbone("squeezenet1_1").stage_names == (
        "stem",
        *(f"fire{i}" for i in range(2, 10)),
    )
    assert find_backbone("mobilenet_v3_small").stage_names[-2:] == ("last_conv", "pre_logits")


def test_an_unknown_backbone_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError) as error:
        find_backbone("resnet5")
    assert error.value.message == "unknown backbone 'resnet5', did you mean resnet50?"
    assert error.value.hint == "vtrain backbones lists all names"
    with pytest.raises(UsageError) as error:
        find_backbone("☃")
    assert error.value.message == "unknown backbone '☃'"


def test_weights_are_found_by_name_and_refused_with_what_there_is() -> None:
    resnet50 = find_backbone("resnet50")
    assert find_weights(resnet50, None) == "IMAGENET1K_V2"
    assert find_weights(resnet50, "DEFAULT") == "IMAGENET1K_V2"
    assert find_weights(resnet50, "IMAGENET1K_V1") == "IMAGENET1K_V1"
    with pytest.raises(UsageError, match="did you mean IMAGENET1K_V2") as error:
        find_weights(resnet50, "IMAGENET1K_V3")
    assert error.value.hint == "published weights: IMAGENET1K_V1, IMAGENET1K_V2"
    with pytest.raises(UsageError, match="simple_cnn has no pretrained weights"):
        find_weights(find_backbone("simple_cnn"), "DEFAULT")
    with pytest.raises(UsageError, match="unknown weights 'IMAGENET1K_FEATURES' of vgg16"):
        find_weights(find_backbone("vgg16"), "IMAGENET1K_FEATURES")


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("vit_b_16", 200, "a multiple of 16 px"),
        ("vit_h_14", 224 + 1, "a multiple of 14 px"),
        ("maxvit_t", 256, "a multiple of 224 px"),
        ("inception_v3", 64, "at least 75 px"),
        ("resnet18", 0, "at least 1 px"),
        ("vit_b_16", 0, "a multiple of 16 px"),
    ],
)
def test_an_image_size_that_does_not_fit_is_refused(name: str, size: int, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        check_image_size(find_backbone(name), size)
    assert error.value.message == f"{name} takes images of {expected}, got {size} px"


def test_options_are_checked_by_name_type_and_range() -> None:
    mobilenet, resnet = find_backbone("mobilenet_v2"), find_backbone("resnet50")
    check_options(mobilenet, {"width_mult": 1})
    check_options(resnet, {"groups": 2, "zero_init_residual": True})
    with pytest.raises(UsageError, match="'width_mul' of mobilenet_v2, did you mean width_mult"):
        check_options(mobilenet, {"width_mul": 0.5})
    with pytest.raises(UsageError) as error:
        check_options(find_backbone("shufflenet_v2_x1_0"), {"width_mult": 0.5})
    assert error.value.hint == "options of shufflenet_v2_x1_0: none"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("groups", 2.0, "a whole number from 1 to 64"),
        ("groups", True, "a whole number from 1 to 64"),
        ("groups", 0, "a whole number from 1 to 64"),
        ("zero_init_residual", 1, "true or false"),
        ("zero_init_residual", "yes", "true or false"),
    ],
)
def test_a_wrong_option_value_is_refused(
    option: str, value: int | float | bool | str, expected: str
) -> None:
    with pytest.raises(UsageError) as error:
        check_options(find_backbone("resnet50"), {option: value})
    assert error.value.message == f"model option {option} is {value!r}, expected {expected}"


@pytest.mark.parametrize("value", [-1, 0.0, 100, True, "0.5", float("nan"), 10**400])
def test_width_mult_must_be_a_number_in_range(value: int | float | bool | str) -> None:
    with pytest.raises(UsageError, match=r"expected a number from 0\.1 to 4"):
        check_options(find_backbone("simple_cnn"), {"width_mult": value})


def test_the_table_loads_without_torch() -> None:
    code = (
        "import sys, vtrain.models.zoo; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
