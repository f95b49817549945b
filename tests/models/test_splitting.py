"""A classifier cut in two: the parts compute together what the whole does, in both modes."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_classifier import fill, make_images, small_image_size
from vtrain.config.keys import FitConfig, HeadConfig
from vtrain.models.classifier import PENULTIMATE, Classifier, build_classifier
from vtrain.models.freezing import FROZEN, TRAINED, ParamRule, apply_freeze, build_phases
from vtrain.models.splitting import BoundaryError, LowerPart, UpperPart, find_frozen_boundary
from vtrain.models.zoo import backbone_names, find_backbone

CHEAP = (
    "simple_cnn", "preact_resnet18", "resnet18", "mobilenet_v3_small", "densenet121", "swin_t",
    "vit_b_32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisations draw nothing: every value is filled in afterwards, which is faster."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **settings: tensor)


def build(name: str, **options: Any) -> Classifier:
    spec = find_backbone(name)
    classifier = build_classifier(
        spec,
        num_classes=3,
        head=HeadConfig(),
        image_size=small_image_size(spec),
        options=options,
    )
    fill(classifier)
    return classifier.eval()


def freeze_until(classifier: Classifier, stage: str) -> None:
    names = classifier.spec.stage_names
    frozen = names[: names.index(stage) + 1]
    apply_freeze(classifier, [*(ParamRule(name, None) for name in frozen), TRAINED])


def apply_both(lower: nn.Module, upper: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        activations = lower(images)
    logits: Tensor = upper(activations)
    return logits


# --- the same function ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHEAP)
def test_both_parts_together_equal_the_whole_bit_for_bit(name: str) -> None:
    stages = find_backbone(name).stage_names
    compare_parts(name, stages if len(stages) <= 8 else stages[::6])


@pytest.mark.soak
@pytest.mark.parametrize("name", backbone_names())
def test_both_parts_equal_the_whole_at_every_stage_of_every_backbone(name: str) -> None:
    compare_parts(name, find_backbone(name).stage_names)


@torch.no_grad()
def compare_parts(name: str, stages: Sequence[str]) -> None:
    classifier = build(name)
    images = make_images(classifier.spec)
    expected = classifier(images)
    assert expected.std(dim=0).max() > 0  # the two images differ
    for boundary in (*stages, PENULTIMATE):
        lower, upper = LowerPart(classifier, boundary), UpperPart(classifier, boundary)
        activations = lower(images)
        assert torch.equal(upper(activations.clone()), expected), boundary
        # As stored: whatever the memory layout was.
        assert torch.allclose(upper(activations.contiguous()), expected, atol=1e-5), boundary


def test_the_lower_part_computes_no_further_than_its_stage() -> None:
    classifier = build("resnet18")
    lower = LowerPart(classifier, "layer1")
    names = {name for name, _ in lower.named_parameters()}
    assert any("layer1" in name for name in names)
    assert not any("layer2" in name for name in names)
    assert torch.equal(
        lower(make_images(classifier.spec)),
        classifier.forward_layer(make_images(classifier.spec), "layer1", feature_maps=True),
    )


@pytest.mark.parametrize("name", ["simple_cnn", "vit_b_32", "densenet121"])
def test_modules_are_shared_and_not_copied(name: str) -> None:
    classifier = build(name)
    middle = find_backbone(name).stage_names[len(find_backbone(name).stage_names) // 2]
    own = {id(each) for each in (*classifier.parameters(), *classifier.buffers())}
    for part in (LowerPart(classifier, middle), UpperPart(classifier, middle)):
        tensors = [*part.parameters(), *part.buffers()]
        assert tensors
        assert all(id(each) in own for each in tensors)
    lower, upper = LowerPart(classifier, middle), UpperPart(classifier, middle)
    below = {id(each) for each in lower.parameters()}
    above = {id(each) for each in upper.parameters()}
    assert not below & above
    assert below | above == {id(each) for each in classifier.parameters()}
    images = make_images(classifier.spec)
    with torch.no_grad():
        before = upper(lower(images))
        next(classifier.head.parameters()).mul_(2.0)
        after = upper(lower(images))
        assert torch.equal(after, classifier(images))
    assert not torch.equal(before, after)


# --- training ------------------------------------------------------------------------------------


def run_twice(
    classifier: Classifier, boundary: str, images: Tensor
) -> tuple[Tensor, Tensor, Classifier]:
    """Logits of both parts, and of a copy of the whole, from the same random numbers."""
    whole = copy.deepcopy(classifier)
    lower, upper = LowerPart(classifier, boundary), UpperPart(classifier, boundary)
    classifier.train()
    whole.train()
    torch.manual_seed(5)
    expected = whole(images)
    torch.manual_seed(5)
    return apply_both(lower, upper, images), expected, whole


@pytest.mark.parametrize("name", ["simple_cnn", "preact_resnet18", "mobilenet_v3_small"])
def test_statistics_of_the_upper_part_move_and_those_below_stand_still(name: str) -> None:
    classifier = build(name)
    middle = find_backbone(name).stage_names[len(find_backbone(name).stage_names) // 2]
    freeze_until(classifier, middle)
    start = {key: value.clone() for key, value in classifier.named_buffers()}
    got, expected, whole = run_twice(classifier, middle, make_images(classifier.spec))
    assert torch.equal(got, expected)
    moved = set()
    for (key, value), (_, other) in zip(
        classifier.named_buffers(), whole.named_buffers(), strict=True
    ):
        assert torch.equal(value, other), key
        if not torch.equal(value, start[key]):
            moved.add(classifier.stage_of(key))
    trained = find_backbone(name).stage_names[find_backbone(name).stage_names.index(middle) + 1 :]
    with_norms = {classifier.stage_of(key) for key in start}
    assert moved == with_norms.intersection(trained) != set()


@pytest.mark.parametrize(
    ("name", "stage", "options"),
    [
        ("swin_t", "stage1", {"stochastic_depth_prob": 0.5}),
        ("swin_t", "stage1", {"attention_dropout": 0.5}),
        ("densenet121", "denseblock2", {"drop_rate": 0.5}),
        pytest.param("vit_b_32", "block5", {"dropout": 0.3}, marks=pytest.mark.soak),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_random_draws_in_training_and_rests_in_evaluation(
    name: str, stage: str, options: dict[str, Any]
) -> None:
    classifier = build(name, **options)
    freeze_until(classifier, stage)
    images = make_images(classifier.spec)
    classifier.train()  # the mode in which a run cuts it, also before it evaluates
    lower, upper = LowerPart(classifier, stage), UpperPart(classifier, stage)
    got, expected, _ = run_twice(classifier, stage, images)
    assert torch.equal(got, expected)
    with torch.no_grad():
        assert torch.equal(lower(images), lower(images))
        assert not torch.equal(upper(lower(images)), upper(lower(images)))
        classifier.eval()
        assert torch.equal(upper(lower(images)), classifier(images))
        still = copy.deepcopy(upper).eval()
        assert torch.equal(still(lower(images)), classifier(images))


def test_gradients_equal_those_of_the_whole() -> None:
    classifier = build("resnet18")
    freeze_until(classifier, "layer3")
    got, expected, whole = run_twice(classifier, "layer3", make_images(classifier.spec))
    for logits in (got, expected):
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
    graded = 0
    for parameter, other in zip(classifier.parameters(), whole.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None) == (not parameter.requires_grad)
        if parameter.grad is not None and other.grad is not None:
            assert torch.equal(parameter.grad, other.grad)
            graded += 1
    assert graded > 10


# --- where to cut --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "boundaries"),
    [
        ("none", [None]),
        ("head", [PENULTIMATE]),
        ("until:stem", ["stem"]),
        ("until:block2", ["block2"]),
        ("until:block3", [PENULTIMATE]),
        ("lp-ft", [PENULTIMATE, None]),
        ("gradual", [PENULTIMATE, "block2", "block1", "stem", None]),
        # The first stage is trained, so that nothing above it can be kept.
        ([{"pattern": "stem", "lr_scale": 1.0}, {"pattern": "*", "lr_scale": None}], [None]),
        # A single tensor opens its stage.
        (
            [
                {"pattern": "backbone.block2.*bias", "lr_scale": 1.0},
                {"pattern": "*", "lr_scale": None},
            ],
            ["block1"],
        ),
    ],
    ids=str,
)
def test_boundary_of_each_policy(policy: Any, boundaries: list[str | None]) -> None:
    config = FitConfig.model_validate(
        {
            "model": {"backbone": "simple_cnn"},
            "freeze": policy,
            "data": {"train": "train", "val": "val"},
            "train": {"epochs": 5},
        }
    )
    classifier = build("simple_cnn", width_mult=0.25)
    found = []
    for phase in build_phases(config, find_backbone("simple_cnn").stage_names, epochs=5):
        apply_freeze(classifier, phase.rules)
        found.append(find_frozen_boundary(classifier))
    assert found == boundaries


def test_what_is_not_held_in_evaluation_mode_is_not_frozen() -> None:
    classifier = build("simple_cnn", width_mult=0.25)
    apply_freeze(classifier, [ParamRule("head", 1.0), FROZEN])
    assert find_frozen_boundary(classifier) == PENULTIMATE
    classifier.set_eval_modules([])  # no gradients, but statistics that move
    assert find_frozen_boundary(classifier) is None


def test_a_network_that_cannot_be_followed_says_so() -> None:
    class Undecided(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    classifier = build("simple_cnn", width_mult=0.25)
    classifier.backbone = nn.Sequential(Undecided(), classifier.backbone)
    with pytest.raises(BoundaryError, match="simple_cnn cannot be traced"):
        LowerPart(classifier, "block1")
    with pytest.raises(BoundaryError, match="simple_cnn"):
        UpperPart(classifier, "block1")


class Skipping(nn.Module):
    """A backbone whose input also goes around its first stage."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.rest = inner.get_submodule("stem"), nn.Flatten()

    def forward(self, images: Tensor) -> Tensor:
        flat: Tensor = self.rest(self.stem(images))
        return flat + images.mean()


def test_a_way_around_the_boundary_is_seen() -> None:
    classifier = build("simple_cnn", width_mult=0.25)
    output = classifier.spec.stages[0].output
    assert output.split(".")[0] == "stem"
    classifier.backbone = Skipping(classifier.backbone)
    with pytest.raises(BoundaryError, match="stem is not the only way up"):
        UpperPart(classifier, "stem")
