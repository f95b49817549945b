"""Backbones: stages cover the network, figures, options, preprocessing, foreign state dicts."""

import re
import warnings
from collections.abc import Mapping

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vtrain.config.preprocessing import Preprocessing
from vtrain.errors import ModelError, UsageError
from vtrain.models.backbone_spec import OptionValue
from vtrain.models.backbones import (
    auxiliary_prefixes,
    build_backbone,
    build_meta_backbone,
    describe_facts,
    describe_stages,
    eval_preprocessing,
    interpolate_position_embedding,
    pretrained_classes,
    rename_legacy_keys,
)
from vtrain.models.zoo import backbone_names, find_backbone

SMALLEST = (
    "resnet18",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vit_b_32",
    "swin_t",
    "densenet121",
    "googlenet",
    "inception_v3",
    "vgg11",
    "alexnet",
    "preact_resnet18",
    "simple_cnn",
)


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", backbone_names())
def test_every_parameter_below_the_head_lies_in_exactly_one_stage(name: str) -> None:
    spec = find_backbone(name)
    model = build_meta_backbone(spec)
    used = set()
    for key, _ in model.named_parameters():
        if key.startswith(f"{spec.head_path}."):
            continue
        owners = [
            (stage.name, prefix)
            for stage in spec.stages
            for prefix in stage.prefixes
            if f"{key}.".startswith(f"{prefix}.")
        ]
        assert len(owners) == 1, key
        used.add(owners[0])
    modules = dict(model.named_modules())
    for stage in spec.stages:
        assert stage.output in modules
        assert any((stage.name, prefix) in used for prefix in stage.prefixes)
        for prefix in stage.prefixes:  # those without parameters are poolings and activations
            assert (stage.name, prefix) in used or not list(modules[prefix].parameters())
    assert spec.feature_map in modules
    assert isinstance(modules[spec.head_path], (nn.Linear, nn.Conv2d))
    auxiliary = 3_326_696 if name == "inception_v3" else 0
    assert count_params(model) == spec.params - auxiliary


@pytest.mark.parametrize(
    "name",
    [
        name if name in SMALLEST else pytest.param(name, marks=pytest.mark.soak)
        for name in backbone_names()
    ],
)
def test_stage_figures_add_up_to_the_published_ones(name: str) -> None:
    spec = find_backbone(name)
    stages = describe_stages(spec)
    head = build_meta_backbone(spec).get_submodule(spec.head_path)
    head_work = count_params(head)
    if spec.family == "squeezenet":
        head_work *= stages[-1].shape[1] * stages[-1].shape[2]
    total = sum(stage.multiply_adds for stage in stages) + head_work
    assert total / 1e9 == pytest.approx(spec.gflops, abs=0.002)
    auxiliary = 3_326_696 if name == "inception_v3" else 0
    params = sum(stage.params for stage in stages) + count_params(head)
    assert params == spec.params - auxiliary
    assert [stage.name for stage in stages] == [stage.name for stage in spec.stages]


def test_stage_shapes_are_channels_height_width() -> None:
    shapes = {
        name: describe_stages(find_backbone(name), image_size=size)[-1].shape
        for name, size in [("resnet18", 64), ("swin_t", 64), ("vit_b_32", 96), ("vgg11", 64)]
    }
    assert shapes == {
        "resnet18": (512, 2, 2),
        "swin_t": (768, 2, 2),
        "vit_b_32": (768, 3, 3),
        "vgg11": (4096,),
    }
    stem = describe_stages(find_backbone("resnet18"))[0]
    assert (stem.shape, stem.params) == ((64, 56, 56), 3 * 64 * 49 + 2 * 64)
    assert stem.multiply_adds == 3 * 64 * 49 * 112 * 112
    with pytest.raises(UsageError, match="multiple of 32 px, got 100 px"):
        describe_stages(find_backbone("vit_b_32"), image_size=100)


def test_describing_the_largest_network_takes_no_memory() -> None:
    model = build_meta_backbone(find_backbone("regnet_y_128gf"))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_facts_of_transformers_separable_networks_and_efficientnets() -> None:
    facts = describe_facts(find_backbone("vit_b_16"))
    assert "14 × 14 patches of 16 px and one class token make 197" in facts[0]
    facts = describe_facts(find_backbone("vit_b_16"), image_size=384)
    assert "make 577" in facts[0]
    facts = describe_facts(find_backbone("mobilenet_v2"))
    assert "1 / C_out + 1 / k²" in facts[0]
    assert "12%" in facts[0]
    facts = describe_facts(find_backbone("efficientnet_b4"))
    assert "depth × 1.8, width × 1.4, designed for 380 px" in facts[-1]
    assert describe_facts(find_backbone("resnet18")) == []


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("efficientnet_b2", (1.2, 1.1)),
        ("efficientnet_b4", (1.8, 1.4)),
        ("efficientnet_b7", (3.1, 2.0)),
    ],
)
def test_efficientnet_factors_are_those_that_torchvision_builds_with(
    name: str, factors: tuple[float, float]
) -> None:
    depth, width = factors
    fact = describe_facts(find_backbone(name))[-1]
    assert f"depth × {depth}, width × {width}," in fact
    last = build_meta_backbone(find_backbone(name)).get_submodule("features.7")
    base = build_meta_backbone(find_backbone("efficientnet_b0")).get_submodule("features.7")
    blocks = [len(list(stage.children())) for stage in (base, last)]
    assert blocks[1] == -int(-blocks[0] * depth // 1)
    channels = [stage.state_dict()["0.block.3.0.weight"].shape[0] for stage in (base, last)]
    assert channels[1] / channels[0] == pytest.approx(width, rel=0.03)


def test_building_is_seeded_and_free_of_warnings() -> None:
    spec = find_backbone("googlenet")
    states = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            torch.manual_seed(3)
            model = build_backbone(spec, num_classes=2, pretrained=True)
            states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inception_networks_are_built_as_torchvision_does_for_its_weights(name: str) -> None:
    spec = find_backbone(name)
    for pretrained in (True, False):
        with torch.device("meta"):
            model = build_backbone(spec, num_classes=2, pretrained=pretrained)
        assert vars(model)["transform_input"] is pretrained
        assert not any(key.startswith(auxiliary_prefixes(spec)) for key in model.state_dict())


OPTION_VALUES: Mapping[str, OptionValue] = {
    "attention_dropout": 0.3,
    "drop_rate": 0.3,
    "dropout": 0.3,
    "groups": 2,
    "layer_scale": 0.3,
    "memory_efficient": True,
    "mlp_dropout": 0.3,
    "reduced_tail": True,
    "stochastic_depth_prob": 0.3,
    "width_mult": 0.5,
    "width_per_group": 32,
    "zero_init_residual": True,
}
ONE_PER_LAYOUT = {find_backbone(name).stages: name for name in reversed(backbone_names())}
# these change initial values, which the meta device does not hold
INITIAL_VALUES = {"layer_scale", "zero_init_residual"}
LAYOUT_OPTIONS = [
    (name, option)
    for name in (*ONE_PER_LAYOUT.values(), "resnet50", "mnasnet1_0")
    for option in find_backbone(name).options
    if option not in INITIAL_VALUES
]


@pytest.mark.parametrize(("name", "option"), LAYOUT_OPTIONS)
def test_every_option_reaches_the_network(name: str, option: str) -> None:
    spec = find_backbone(name)
    plain = build_meta_backbone(spec)
    changed = build_meta_backbone(spec, options={option: OPTION_VALUES[option]})
    if option in ("width_mult", "width_per_group", "reduced_tail"):
        assert count_params(changed) < count_params(plain)
    else:
        assert list_settings(changed) != list_settings(plain)


def list_settings(model: nn.Module) -> list[object]:
    """Every scalar setting of every module."""
    return [
        (name, key, value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float))
    ]


def test_options_that_change_initial_values() -> None:
    resnet = build_backbone(
        find_backbone("resnet18"), pretrained=False, options={"zero_init_residual": True}
    )
    assert not resnet.state_dict()["layer1.0.bn2.weight"].any()
    block = torchvision.models.convnext.CNBlock
    convnext = build_backbone(
        find_backbone("convnext_tiny"), pretrained=True, options={"layer_scale": 0.5}
    )
    scales = [m.state_dict()["layer_scale"] for m in convnext.modules() if isinstance(m, block)]
    assert len(scales) == 18
    assert torch.equal(torch.cat(scales), torch.full_like(torch.cat(scales), 0.5))


@pytest.mark.parametrize("name", ["swin_v2_s", "maxvit_t", "convnext_tiny", "efficientnet_b0"])
def test_stochastic_depth_is_that_of_the_last_block(name: str) -> None:
    model = build_meta_backbone(find_backbone(name), options={"stochastic_depth_prob": 0.4})
    probabilities = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
    assert probabilities[0] < 0.03
    assert probabilities[-1] == pytest.approx(0.4, abs=0.03)
    assert probabilities == sorted(probabilities)


def test_options_that_the_backbone_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown model option 'groups' of resnet18"):
        build_backbone(find_backbone("resnet18"), pretrained=False, options={"groups": 2})


def test_preprocessing_is_that_of_the_weights() -> None:
    resnet50 = find_backbone("resnet50")
    assert eval_preprocessing(resnet50, None) == Preprocessing(232, 224)
    assert eval_preprocessing(resnet50, "DEFAULT") == Preprocessing(232, 224)
    assert eval_preprocessing(resnet50, "IMAGENET1K_V1") == Preprocessing(256, 224)
    half = (0.5, 0.5, 0.5)
    assert eval_preprocessing(find_backbone("efficientnet_v2_l"), None) == Preprocessing(
        480, 480, "bicubic", half, half
    )
    swag = eval_preprocessing(find_backbone("vit_b_16"), "IMAGENET1K_SWAG_E2E_V1")
    assert swag == Preprocessing(384, 384, "bicubic")
    own = eval_preprocessing(find_backbone("simple_cnn"), None)
    assert own == Preprocessing(64, 64, mean=half, std=half)
    with pytest.raises(UsageError, match="unknown weights 'V2' of resnet50"):
        eval_preprocessing(resnet50, "V2")
    with pytest.raises(UsageError, match="simple_cnn has no pretrained weights"):
        eval_preprocessing(find_backbone("simple_cnn"), "IMAGENET1K_V1")


def test_classes_are_those_of_the_weights() -> None:
    classes = pretrained_classes(find_backbone("resnet18"), None)
    assert (len(classes), classes[0], classes[-1]) == (1000, "tench", "toilet tissue")
    with pytest.raises(UsageError, match="no pretrained weights"):
        pretrained_classes(find_backbone("simple_cnn"), None)


def make_embedding(tokens: int, *, dim: int = 768) -> dict[str, Tensor]:
    values = torch.randn(1, tokens, dim, generator=torch.Generator().manual_seed(0))
    return {"encoder.pos_embedding": values, "class_token": torch.ones(1, 1, dim)}


def test_position_embeddings_are_resized_to_the_image() -> None:
    spec = find_backbone("vit_b_32")
    model = build_meta_backbone(spec, image_size=96)
    state = make_embedding(50)
    resized = interpolate_position_embedding(state, model)
    embedding = resized["encoder.pos_embedding"]
    assert embedding.shape == (1, 10, 768)
    assert torch.equal(embedding[:, 0], state["encoder.pos_embedding"][:, 0])
    corner = state["encoder.pos_embedding"][:, 1]
    torch.testing.assert_close(embedding[:, 1], corner)
    assert state["encoder.pos_embedding"].shape == (1, 50, 768)  # the caller's stays as it was
    assert torch.equal(resized["class_token"], state["class_token"])
    fitting = build_meta_backbone(spec, image_size=224)
    same = interpolate_position_embedding(state, fitting)["encoder.pos_embedding"]
    assert torch.equal(same, state["encoder.pos_embedding"])


@pytest.mark.parametrize(("tokens", "dim"), [(51, 768), (50, 1024), (0, 768), (1, 768)])
def test_a_foreign_position_embedding_is_refused(tokens: int, dim: int) -> None:
    model = build_meta_backbone(find_backbone("vit_b_32"), image_size=96)
    with pytest.raises(ModelError, match=r"does not fit \(1, 10, 768\)"):
        interpolate_position_embedding(make_embedding(tokens, dim=dim), model)


def test_other_networks_have_no_position_embedding_to_resize() -> None:
    state = {"conv1.weight": torch.ones(1)}
    model = build_meta_backbone(find_backbone("resnet18"))
    assert interpolate_position_embedding(state, model) == state


def test_the_key_names_in_densenet_files_are_mapped() -> None:
    spec = find_backbone("densenet121")
    state = build_meta_backbone(spec).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in state.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert rename_legacy_keys(spec, old).keys() == state.keys()
    assert rename_legacy_keys(spec, state).keys() == state.keys()
    resnet = find_backbone("resnet18")
    assert rename_legacy_keys(resnet, old).keys() == old.keys()


def test_mnasnet_loads_a_plain_dictionary() -> None:
    model = build_backbone(find_backbone("mnasnet0_5"), num_classes=2, pretrained=True)
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
    width = {"width_mult": 0.75}
    wider = build_meta_backbone(find_backbone("mnasnet1_0"), options=width)
    assert count_params(wider) == find_backbone("mnasnet0_75").params
