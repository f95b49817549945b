"""Freeze policies on every family of the zoo: gradients, statistics, dropout, groups, phases."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from vtrain.config.keys import (
    DataConfig,
    FitConfig,
    FreezeRule,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from vtrain.errors import ConfigError, ModelError
from vtrain.models.backbone_spec import OptionValue
from vtrain.models.backbones import WithoutMemory
from vtrain.models.classifier import HEAD, Classifier, build_classifier
from vtrain.models.freezing import (
    FROZEN,
    TRAINED,
    ParamRule,
    Phase,
    apply_freeze,
    build_phases,
    find_scheduled_phases,
    frozen_digests,
    match_rules,
    summarize_stages,
    tensor_digest,
    verify_frozen,
)
from vtrain.models.zoo import backbone_names, find_backbone
from vtrain.training.learning_rates import stage_factor
from vtrain.training.optim import ParamGroup, build_param_groups, find_stage_rates

# One small member of each family, with every random layer that its options can switch on.
FAMILIES: dict[str, dict[str, OptionValue]] = {
    "resnet18": {},
    "resnext50_32x4d": {},
    "wide_resnet50_2": {},
    "regnet_y_400mf": {},
    "regnet_x_400mf": {},
    "convnext_tiny": {"stochastic_depth_prob": 0.5},
    "efficientnet_b0": {"stochastic_depth_prob": 0.5},
    "efficientnet_v2_s": {"stochastic_depth_prob": 0.5},
    "mobilenet_v3_small": {},
    "mobilenet_v2": {},
    "mnasnet0_5": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "vit_b_32": {"dropout": 0.5, "attention_dropout": 0.5},
    "swin_t": {"dropout": 0.5, "attention_dropout": 0.5, "stochastic_depth_prob": 0.5},
    "swin_v2_t": {"dropout": 0.5, "attention_dropout": 0.5, "stochastic_depth_prob": 0.5},
    "maxvit_t": {"mlp_dropout": 0.5, "attention_dropout": 0.5, "stochastic_depth_prob": 0.5},
    "densenet121": {"drop_rate": 0.5},
    "inception_v3": {},
    "googlenet": {},
    "vgg11_bn": {"dropout": 0.5},
    "alexnet": {"dropout": 0.5},
    "simple_cnn": {},
    "separable_cnn": {},
    "preact_resnet18": {},
}
RANDOM = (nn.Dropout, StochasticDepth, nn.MultiheadAttention)
# The random modules that no stage's prefix names, with the stage they go with.
BETWEEN_STAGES = {
    "backbone.encoder.dropout": "stem",  # of ViT, behind the position embedding
    "backbone.classifier.0": "fc6",  # of AlexNet, in front of its linear layers
    "backbone.classifier.2": "fc7",  # of VGG
    "backbone.classifier.3": "fc7",  # of AlexNet
}


@cache
def meta_classifier(name: str) -> Classifier:
    """A classifier whose parameters have no memory; the tests share it and change its freeze."""
    with WithoutMemory():
        return build_classifier(
            find_backbone(name),
            num_classes=3,
            head=HeadConfig(dropout=0.5),
            pretrained=True,
            options=FAMILIES.get(name, {}),
        )


def build_small(name: str, *, image_size: int | None = None) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(
        find_backbone(name),
        num_classes=3,
        head=HeadConfig(dropout=0.5),
        image_size=image_size,
        options=FAMILIES[name],
    )


def config(
    freeze: str | tuple[FreezeRule, ...], *, epochs: int = 10, probe_epochs: int | None = None
) -> FitConfig:
    return FitConfig(
        model=ModelConfig(backbone="resnet18"),
        freeze=freeze,
        data=DataConfig(train="train", val="val"),
        train=TrainConfig(epochs=epochs, probe_epochs=probe_epochs),
    )


def phases_of(policy: str, name: str, *, epochs: int = 10) -> list[Phase]:
    return build_phases(
        config(policy, epochs=epochs), find_backbone(name).stage_names, epochs=epochs
    )


def policies_of(name: str) -> Iterator[tuple[str, Phase, set[str]]]:
    """Every policy's every phase with the stages that it trains by its definition."""
    stages = [*find_backbone(name).stage_names, HEAD]
    for policy in ("none", "head", "lp-ft", *(f"until:{stage}" for stage in stages[:-1])):
        for phase in phases_of(policy, name):
            first = 0
            if policy == "head" or phase.name == "probe":
                first = len(stages) - 1
            elif policy.startswith("until:"):
                first = stages.index(policy.removeprefix("until:")) + 1
            yield policy, phase, set(stages[first:])
    thawing = phases_of("gradual", name, epochs=len(stages))
    assert len(thawing) == len(stages)
    for index, phase in enumerate(thawing):
        yield "gradual", phase, set(stages[len(stages) - 1 - index :])


def freeze_to(name: str, trained: Sequence[str]) -> tuple[ParamRule, ...]:
    return (*(ParamRule(stage, 1.0) for stage in trained), FROZEN)


def test_the_families_are_all_of_the_zoo() -> None:
    families = {find_backbone(name).family for name in backbone_names()}
    assert {find_backbone(name).family for name in FAMILIES} == families


# --- every policy on every family ----------------------------------------------------------------


def stage_of_module(classifier: Classifier, name: str) -> str | None:
    """Stage of a module with weights or randomness of its own, None for all others."""
    module = classifier.get_submodule(name)
    if name in BETWEEN_STAGES and isinstance(module, RANDOM):
        return BETWEEN_STAGES[name]
    if isinstance(module, (*RANDOM, _BatchNorm, nn.Linear, nn.Conv2d)) or (
        name.count(".") > 1 and list(module.parameters(recurse=False))
    ):
        return classifier.stage_of(name)
    return None


@pytest.mark.parametrize("name", FAMILIES)
def test_policies_freeze_gradients_statistics_and_randomness(name: str) -> None:
    classifier = meta_classifier(name)
    stages = {n: stage_of_module(classifier, n) for n, _ in classifier.named_modules()}
    for policy, phase, trained in policies_of(name):
        scales = apply_freeze(classifier, phase.rules)
        classifier.eval()
        classifier.train()
        where = f"{policy} {phase.name}"
        for key, parameter in classifier.named_parameters():
            is_trained = classifier.stage_of(key) in trained
            tuned_head = where == "lp-ft finetune" and key.startswith("head.")
            scale = 0.2 if tuned_head else 1.0
            assert scales[key] == (scale if is_trained else None), f"{where} {key}"
            assert parameter.requires_grad == is_trained, f"{where} {key}"
        for key, module in classifier.named_modules():
            if (stage := stages[key]) is not None:
                assert module.training == (stage in trained), f"{where} {key}"


@pytest.mark.parametrize("name", [n for n in FAMILIES if FAMILIES[n]])
def test_options_do_switch_on_random_layers(name: str) -> None:
    backbone = meta_classifier(name).backbone
    random = [m for m in backbone.modules() if getattr(m, "p", 0) or getattr(m, "dropout", 0)]
    functional = [m for m in backbone.modules() if getattr(m, "drop_rate", 0)]
    functional += [m for m in backbone.modules() if getattr(m, "attention_dropout", 0)]
    assert random or functional


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_batch_norm_holds_statistics_and_trains_weights(name: str) -> None:
    classifier = meta_classifier(name)
    apply_freeze(classifier, (TRAINED,), freeze_batch_norm=True)
    classifier.train()
    for key, module in classifier.named_modules():
        assert module.training != isinstance(module, _BatchNorm), key
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    modes = {row.batch_norm for row in summarize_stages(classifier, {})}
    assert modes <= {"frozen", "-"}


# --- what that means for real forward passes -----------------------------------------------------


def stage_outputs(classifier: Classifier, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Output of every stage for one pass in training mode."""
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[name] = output.detach().clone()

        return hook

    handles = [
        classifier.backbone.get_submodule(stage.output).register_forward_hook(record(stage.name))
        for stage in classifier.spec.stages
    ]
    torch.manual_seed(seed)
    outputs[HEAD] = classifier(images).detach()
    for handle in handles:
        handle.remove()
    return outputs


def buffers_of(classifier: Classifier) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in classifier.named_buffers()}


@pytest.mark.parametrize(
    ("name", "image_size", "until"),
    [
        ("resnet18", 32, "layer2"),
        ("densenet121", 32, "denseblock2"),
        ("vit_b_32", 64, "block3"),
        ("swin_t", 32, "stage2"),
        ("efficientnet_b0", 32, "stage3"),
        ("alexnet", 63, "fc6"),
        ("preact_resnet18", 16, "layer1"),
    ],
)
def test_frozen_stages_depend_on_the_images_alone(name: str, image_size: int, until: str) -> None:
    size = image_size if find_backbone(name).family == "vit" else None
    classifier = build_small(name, image_size=size)
    images = torch.rand(2, 3, image_size, image_size)
    stages = list(find_backbone(name).stage_names)
    cut = stages.index(until) + 1
    apply_freeze(classifier, freeze_to(name, [*stages[cut:], HEAD]))
    classifier.train()
    before = buffers_of(classifier)
    first, again = (stage_outputs(classifier, images, seed) for seed in (1, 2))
    for stage in stages[:cut]:
        assert torch.equal(first[stage], again[stage]), stage
    assert not torch.equal(first[HEAD], again[HEAD])  # dropout of the head is on
    moved = {classifier.stage_of(key) for key, buffer in classifier.named_buffers()
             if not torch.equal(buffer, before[key])}  # fmt: skip
    normed = {classifier.stage_of(key) for key, _ in classifier.named_buffers()
              if key.endswith("running_mean")}  # fmt: skip
    assert moved == normed & set(stages[cut:])
    classifier.zero_grad()
    classifier(images).sum().backward()
    with_gradient = {classifier.stage_of(k) for k, p in classifier.named_parameters()
                     if p.grad is not None}  # fmt: skip
    assert with_gradient == {*stages[cut:], HEAD}


@pytest.mark.parametrize(("name", "image_size"), [("densenet121", 32), ("swin_t", 32)])
def test_the_same_stages_are_random_where_they_train(name: str, image_size: int) -> None:
    classifier = build_small(name)
    apply_freeze(classifier, (TRAINED,))
    classifier.train()
    images = torch.rand(2, 3, image_size, image_size)
    first, again = (stage_outputs(classifier, images, seed) for seed in (1, 2))
    last = find_backbone(name).stage_names[-1]
    assert not torch.equal(first[last], again[last])


# --- rules ---------------------------------------------------------------------------------------


def rules(*pairs: tuple[str, float | None]) -> list[ParamRule]:
    return [ParamRule(pattern, scale) for pattern, scale in pairs]


def test_first_match_wins_and_globs_span_dots() -> None:
    classifier = meta_classifier("resnet18")
    scales = match_rules(
        classifier,
        rules(("backbone.layer4.*.conv2.weight", 0.5), ("layer4", None), ("head", 2.0), ("*", 0.1)),
    )
    assert scales["backbone.layer4.0.conv2.weight"] == 0.5
    assert scales["backbone.layer4.1.conv2.weight"] == 0.5
    assert scales["backbone.layer4.0.conv1.weight"] is None
    assert scales["head.2.bias"] == 2.0
    assert scales["backbone.conv1.weight"] == 0.1
    assert set(scales) == {name for name, _ in classifier.named_parameters()}


def test_stage_name_is_not_a_prefix() -> None:
    # block1 must not catch block10 to block12 of a ViT.
    scales = match_rules(meta_classifier("vit_b_32"), rules(("block1", 1.0), ("*", None)))
    trained = {name for name, scale in scales.items() if scale is not None}
    assert trained
    assert all("encoder_layer_0." in name for name in trained)


def test_names_are_matched_with_their_case() -> None:
    with pytest.raises(ConfigError, match=r"'Layer4' matches no parameter of resnet18"):
        match_rules(meta_classifier("resnet18"), rules(("Layer4", 1.0), ("*", None)))


def test_uncovered_parameter_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        match_rules(meta_classifier("resnet18"), rules(("head", 1.0), ("layer4", 1.0)))
    assert caught.value.message == (
        "freeze: no rule covers parameter backbone.conv1.weight (stage stem)"
    )
    assert '{pattern: "*", lr_scale: null}' in (caught.value.hint or "")


def test_pattern_that_matches_nothing_is_an_error_with_the_names() -> None:
    with pytest.raises(ConfigError) as caught:
        match_rules(meta_classifier("resnet18"), rules(("layer5", 1.0), ("*", None)))
    assert caught.value.message == "freeze: pattern 'layer5' matches no parameter of resnet18"
    hint = caught.value.hint or ""
    assert "stem, layer1, layer2, layer3, layer4, head" in hint
    assert "backbone.conv1.weight" in hint


def test_shadowed_rules_and_a_last_star_are_allowed() -> None:
    scales = match_rules(
        meta_classifier("resnet18"),
        rules(("backbone.*", None), ("layer4", 1.0), ("head", 1.0), ("*", None)),
    )
    assert {name for name, scale in scales.items() if scale} == {"head.2.weight", "head.2.bias"}


def test_rules_that_leave_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        apply_freeze(meta_classifier("resnet18"), rules(("head", None), ("*", None)))


def test_gradients_of_what_gets_frozen_are_dropped() -> None:
    classifier = build_small("simple_cnn")
    classifier(torch.rand(2, 3, 32, 32)).sum().backward()
    apply_freeze(classifier, freeze_to("simple_cnn", ["block3", HEAD]))
    kept = {classifier.stage_of(n) for n, p in classifier.named_parameters() if p.grad is not None}
    assert kept == {"block3", HEAD}


def test_partly_frozen_stage_holds_its_frozen_modules_only() -> None:
    classifier = meta_classifier("resnet18")
    apply_freeze(classifier, rules(("backbone.layer4.0.*", None), ("layer4", 1.0), ("*", None)))
    classifier.train()
    block = classifier.backbone.get_submodule
    assert not any(module.training for module in block("layer4.0").modules())
    assert all(module.training for module in block("layer4.1").modules())
    modes = {row.name: row.batch_norm for row in summarize_stages(classifier, {})}
    assert modes == {"stem": "frozen", "layer1": "frozen", "layer2": "frozen",
                     "layer3": "frozen", "layer4": "mixed", "head": "-"}  # fmt: skip


def test_a_frozen_head_drops_nothing_out() -> None:
    classifier = meta_classifier("resnet18")
    apply_freeze(classifier, rules((HEAD, None), ("*", 1.0)))
    classifier.train()
    assert not any(module.training for module in classifier.head.modules())
    assert classifier.backbone.training


def test_a_new_table_replaces_the_old_one() -> None:
    classifier = build_small("simple_cnn")
    apply_freeze(classifier, freeze_to("simple_cnn", [HEAD]))
    apply_freeze(classifier, (TRAINED,))
    classifier.train()
    assert all(module.training for module in classifier.modules())
    assert all(parameter.requires_grad for parameter in classifier.parameters())


# --- phases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "simple_cnn", "vit_b_32", "squeezenet1_1"])
@pytest.mark.parametrize("epochs", range(1, 13))
def test_gradual_starts_with_the_head_and_ends_with_everything(name: str, epochs: int) -> None:
    stages = find_backbone(name).stage_names
    phases = phases_of("gradual", name, epochs=epochs)
    assert sum(phase.epochs for phase in phases) == epochs
    assert all(phase.epochs >= 1 for phase in phases)
    assert len(phases) == min(epochs, len(stages) + 1)
    assert len({phase.name for phase in phases}) == len(phases)
    assert [phase.restart_schedule for phase in phases] == [True] + [False] * (len(phases) - 1)
    classifier = meta_classifier(name)
    trained: list[set[str]] = []
    for phase in phases:
        scales = match_rules(classifier, phase.rules)
        trained.append({classifier.stage_of(key) for key, scale in scales.items() if scale})
    assert trained[-1] == {*stages, HEAD}
    if epochs > 1:
        assert trained[0] == {HEAD}
    for before, after in pairwise(trained):
        assert before < after  # never the same twice, and nothing freezes again
        assert after == {*stages[len(stages) + 1 - len(after) :], HEAD}  # from the last on


@pytest.mark.parametrize("epochs", range(2, 13))
def test_lp_ft_probes_a_third_of_the_epochs(epochs: int) -> None:
    probe, finetune = phases_of("lp-ft", "resnet18", epochs=epochs)
    assert probe.epochs + finetune.epochs == epochs
    assert probe.epochs == {2: 1, 3: 1, 4: 1, 5: 1}.get(epochs, epochs // 3)
    assert (probe.restart_schedule, finetune.restart_schedule) == (True, True)


def test_lp_ft_with_given_probe_epochs() -> None:
    phases = build_phases(
        config("lp-ft", probe_epochs=7), find_backbone("resnet18").stage_names, epochs=10
    )
    assert [(phase.name, phase.epochs) for phase in phases] == [("probe", 7), ("finetune", 3)]


def test_lp_ft_needs_two_epochs() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs: lp-ft needs at least 2 epochs, .* 1$"):
        phases_of("lp-ft", "resnet18", epochs=1)


@pytest.mark.parametrize("policy", ["none", "head", "until:layer2"])
def test_other_policies_have_one_phase(policy: str) -> None:
    (phase,) = phases_of(policy, "resnet18", epochs=4)
    assert (phase.epochs, phase.restart_schedule) == (4, True)


def test_rules_of_the_config_become_one_phase() -> None:
    given = (FreezeRule(pattern="layer4", lr_scale=0.5), FreezeRule(pattern="*", lr_scale=None))
    (phase,) = build_phases(config(given), find_backbone("resnet18").stage_names, epochs=10)
    assert phase == Phase("train", 10, (ParamRule("layer4", 0.5), ParamRule("*", None)))


def test_phases_that_share_a_schedule() -> None:
    restarts = [True, True, False, False, True, False]
    phases = [Phase(str(i), 1, (TRAINED,), restart) for i, restart in enumerate(restarts)]
    found = [find_scheduled_phases(phases, index) for index in range(6)]
    assert found == [slice(0, 1), *[slice(1, 4)] * 3, *[slice(4, 6)] * 2]


# --- groups and rates ----------------------------------------------------------------------------


def groups_of(
    classifier: Classifier,
    *tables: Sequence[ParamRule],
    layer_decay: float | None = None,
    backbone_lr: float = 1e-4,
) -> list[ParamGroup]:
    config = OptimConfig(lr=1e-3, layer_decay=layer_decay, weight_decay=0.05)
    scales = [match_rules(classifier, table) for table in tables]
    return build_param_groups(classifier, scales, config, backbone_lr=backbone_lr)


def by_name(groups: Sequence[ParamGroup], key: str) -> dict[str, Any]:
    return {name: getattr(group, key) for group in groups for name in group.names}


@pytest.mark.parametrize("name", FAMILIES)
def test_decay_is_for_weights_of_linear_layers_and_convolutions_alone(name: str) -> None:
    classifier = meta_classifier(name)
    decayed = {
        k for k, v in by_name(groups_of(classifier, (TRAINED,)), "weight_decay").items() if v
    }
    expected = set()
    for path, module in classifier.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            expected.add(f"{path}.weight")
        if isinstance(module, nn.MultiheadAttention):
            expected.add(f"{path}.in_proj_weight")
    assert decayed == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_groups_hold_every_trained_parameter_once(name: str) -> None:
    classifier = meta_classifier(name)
    last = find_backbone(name).stage_names[-1]
    groups = groups_of(classifier, freeze_to(name, [HEAD]), freeze_to(name, [last, HEAD]))
    held = [name for group in groups for name in group.names]
    wanted = [n for n, _ in classifier.named_parameters()
              if classifier.stage_of(n) in (last, HEAD)]  # fmt: skip
    assert sorted(held) == sorted(wanted)
    assert len(set(held)) == len(held)
    peaks = by_name(groups, "peak_lrs")
    assert peaks["head.2.weight"] == (1e-3, 1e-3)
    assert {v for k, v in peaks.items() if not k.startswith("head.")} == {(0.0, 1e-4)}
    for group in groups:
        assert {classifier.stage_of(key) for key in group.names} == {group.stage}


def test_layer_decay_lowers_the_rate_stage_by_stage() -> None:
    classifier = meta_classifier("resnet18")
    groups = groups_of(classifier, (TRAINED,), layer_decay=0.5, backbone_lr=1.6e-3)
    rates = {group.stage: group.peak_lrs for group in groups}
    assert rates == {
        "stem": (pytest.approx(1e-4),),
        "layer1": (pytest.approx(2e-4),),
        "layer2": (pytest.approx(4e-4),),
        "layer3": (pytest.approx(8e-4),),
        "layer4": (pytest.approx(1.6e-3),),
        "head": (1e-3,),
    }


def test_stage_factors() -> None:
    classifier = meta_classifier("vit_b_32")
    assert stage_factor(classifier, "block12", 0.75) == 1.0
    assert stage_factor(classifier, "block1", 0.75) == pytest.approx(0.75**11)
    assert stage_factor(classifier, "stem", 0.75) == pytest.approx(0.75**12)
    assert stage_factor(classifier, HEAD, 0.75) == 1.0
    assert stage_factor(classifier, "stem", None) == 1.0


def test_scale_of_a_rule_multiplies_the_rate_of_its_part() -> None:
    classifier = meta_classifier("resnet18")
    table = rules(("backbone.layer4.1.*", 0.1), ("layer4", 0.5), ("head", 3.0), ("*", None))
    peaks = by_name(groups_of(classifier, table, layer_decay=0.5), "peak_lrs")
    assert peaks["backbone.layer4.1.conv1.weight"] == (pytest.approx(1e-5),)
    assert peaks["backbone.layer4.0.conv1.weight"] == (pytest.approx(5e-5),)
    assert peaks["head.2.weight"] == (pytest.approx(3e-3),)
    assert not any(key.startswith("backbone.layer3") for key in peaks)


def test_summary_counts_parameters_and_shows_peak_rates() -> None:
    classifier = meta_classifier("resnet18")
    tables = [freeze_to("resnet18", [HEAD]), rules(("layer1", None), ("*", 1.0))]
    groups = groups_of(classifier, *tables, layer_decay=0.5)
    apply_freeze(classifier, tables[1])
    rows = summarize_stages(classifier, find_stage_rates(groups, 1))
    assert [row.name for row in rows] == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert sum(row.parameters for row in rows) == 11_689_512 - 513_000 + 3 * 513
    assert [row.trainable == row.parameters for row in rows] == [
        True,
        False,
        True,
        True,
        True,
        True,
    ]
    assert rows[1].trainable == 0
    assert rows[1].learning_rates is None
    assert rows[4].learning_rates == (1e-4, 1e-4)
    assert rows[5].learning_rates == (1e-3, 1e-3)
    assert [row.batch_norm for row in rows] == ["train", "frozen", *["train"] * 3, "-"]
    apply_freeze(classifier, tables[0])
    probe = summarize_stages(classifier, find_stage_rates(groups, 0))
    assert [row.learning_rates for row in probe] == [*[None] * 5, (1e-3, 1e-3)]


# --- the proof -----------------------------------------------------------------------------------


def test_digests_cover_frozen_parameters_and_buffers_and_no_others() -> None:
    classifier = build_small("simple_cnn")
    apply_freeze(classifier, freeze_to("simple_cnn", ["block3", HEAD]))
    digests = frozen_digests(classifier)
    frozen = {key for key in classifier.state_dict()
              if classifier.stage_of(key) in ("stem", "block1", "block2")}  # fmt: skip
    assert set(digests) == frozen
    assert any(key.endswith("num_batches_tracked") for key in digests)
    assert verify_frozen(classifier, digests) == len(frozen)


def test_frozen_batch_norm_statistics_of_a_trained_part_are_covered() -> None:
    classifier = build_small("simple_cnn")
    apply_freeze(classifier, (TRAINED,), freeze_batch_norm=True)
    buffers = {name for name, _ in classifier.named_buffers()}
    assert set(frozen_digests(classifier)) == buffers


def test_training_passes_verification_and_drift_does_not() -> None:
    classifier = build_small("simple_cnn")
    apply_freeze(classifier, freeze_to("simple_cnn", [HEAD]))
    digests = frozen_digests(classifier)
    optimizer = torch.optim.SGD(classifier.head.parameters(), lr=1.0)
    classifier.train()
    classifier(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert verify_frozen(classifier, digests) == len(digests)
    buffer = next(b for n, b in classifier.named_buffers() if n.endswith("num_batches_tracked"))
    buffer.add_(1)
    with pytest.raises(ModelError, match=f"1 of {len(digests)} frozen tensors changed"):
        verify_frozen(classifier, digests)


def test_digest_is_of_the_values_whatever_the_layout() -> None:
    tensor = torch.rand(2, 3, 4, 5)
    digest = tensor_digest(tensor)
    assert digest == tensor_digest(tensor.to(memory_format=torch.channels_last))
    assert digest == tensor_digest(tensor.clone().requires_grad_())
    assert digest != tensor_digest(tensor.flip(0))
    assert tensor_digest(torch.tensor(0.0)) != tensor_digest(torch.tensor(-0.0))
    assert tensor_digest(torch.tensor(7)) != tensor_digest(torch.tensor(8))
