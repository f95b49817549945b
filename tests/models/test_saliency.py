"""Maps of what speaks for a class: where they lie, for every kind of network, and what refuses."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from tests.models.test_classifier import fill
from vtrain.config.keys import HeadConfig
from vtrain.errors import UsageError
from vtrain.inference.forward import prepare_for_inference
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.classifier import Classifier, build_classifier, build_pretrained_classifier
from vtrain.models.precision import Precision
from vtrain.models.saliency import (
    compute_class_maps,
    enlarge_maps,
    find_map_stage,
    find_map_stages,
    name_method,
)
from vtrain.models.zoo import backbone_names, find_backbone
from vtrain.results.explain import take_full_precision

CPU = torch.device("cpu")
PATCH = 8


@pytest.fixture
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisations draw nothing: every value is filled in afterwards, which is faster."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **settings: tensor)


def small_size(spec: BackboneSpec) -> int:
    """A small size in pixels that leaves several cells in the last map."""
    if spec.image_size_multiple > 1:
        return 224 if spec.name == "maxvit_t" else 3 * spec.image_size_multiple
    return max(96, spec.min_image_size + 64)


def build_random(name: str) -> Classifier:
    """A classifier with its own kind of head and random weights, in evaluation mode."""
    spec = find_backbone(name)
    classifier = build_pretrained_classifier(spec, image_size=small_size(spec), pretrained=False)
    fill(classifier)
    return classifier.eval()


def draw_noise(spec: BackboneSpec, count: int = 2) -> Tensor:
    size = small_size(spec)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def find_smallest_of_each_family() -> list[str]:
    smallest: dict[str, BackboneSpec] = {}
    for spec in map(find_backbone, backbone_names()):
        if spec.family not in smallest or spec.params < smallest[spec.family].params:
            smallest[spec.family] = spec
    return [spec.name for spec in smallest.values()]


# --- the whole zoo -------------------------------------------------------------------------------

SMALLEST = find_smallest_of_each_family()


def assert_maps_are_sound(name: str) -> None:
    classifier = build_random(name)
    images = draw_noise(classifier.spec, 1)
    maps, logits = compute_class_maps(classifier, images)
    assert maps.dim() == 3
    assert len(maps) == 1
    assert min(maps.shape[1:]) > 1
    assert bool(torch.isfinite(maps).all())
    assert float(maps.amin()) >= 0
    assert float(maps.amax()) == 1
    assert float(maps.flatten(1).std(dim=1).amax()) > 1e-3
    assert not maps.requires_grad
    assert not logits.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(logits, classifier(images), rtol=1e-4, atol=1e-4)
    if name == "maxvit_t":  # takes seconds
        return
    first = find_map_stages(classifier.spec)[0].name
    early, _ = compute_class_maps(classifier, images, stage=first)
    assert early.shape[1] >= maps.shape[1]
    assert bool(torch.isfinite(early).all())


@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", SMALLEST)
def test_every_family(name: str) -> None:
    assert_maps_are_sound(name)


@pytest.mark.soak
@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", [each for each in backbone_names() if each not in SMALLEST])
def test_the_rest_of_the_zoo(name: str) -> None:
    assert_maps_are_sound(name)


# --- what the maps are ---------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_average_pooling_and_a_linear_layer_give_the_class_activation_map(name: str) -> None:
    # Zhou et al. 2016, arXiv:1512.04150, of which Grad-CAM is a generalisation.
    classifier = build_random(name)
    images = draw_noise(classifier.spec)
    classes = torch.tensor([3, 0])
    maps, _ = compute_class_maps(classifier, images, classes)
    with torch.no_grad():
        features = classifier.forward_layer(images, "pooled", feature_maps=True)
        last = cast(nn.Linear, cast(nn.Sequential, classifier.head)[-1])
        expected = torch.einsum("bd,bdhw->bhw", last.weight[classes], features).relu()
    expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)  # 0 where nothing speaks
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext_tiny"])
def test_layer_norm_behind_the_map_counts_as_a_division_by_a_constant(name: str) -> None:
    # Then the map is that of the linear layer alone, and its sum is the logit without the bias.
    # By the true gradient the weighted channels always add up to 0: no logit behind the norm
    # changes with the scale of the features.
    classifier = build_classifier(find_backbone(name), num_classes=5, head=HeadConfig())
    fill(classifier)
    images = draw_noise(classifier.spec)
    classes = torch.tensor([3, 0])
    maps, _ = compute_class_maps(classifier.eval(), images, classes)
    with torch.no_grad():
        features = classifier.forward_layer(images, "pooled", feature_maps=True)
        weights = cast(nn.Linear, cast(nn.Sequential, classifier.head)[-1]).weight[classes]
        weights = weights - weights.mean(dim=1, keepdim=True)
        if name == "convnext_tiny":  # its own norm has weights, and lies below the head's
            norm = cast(nn.LayerNorm, classifier.backbone.get_submodule("classifier.0"))
            weights = weights * norm.weight
            weights = weights - weights.mean(dim=1, keepdim=True)
        expected = torch.einsum("bd,bdhw->bhw", weights, features).relu()
    expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)


def test_images_of_a_batch_do_not_influence_one_another() -> None:
    classifier = build_random("simple_cnn")
    images = draw_noise(classifier.spec, 3)
    together, _ = compute_class_maps(classifier, images)
    for row, image in enumerate(images):
        alone, _ = compute_class_maps(classifier, image[None])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_within_inference_mode_and_with_frozen_weights() -> None:
    classifier = build_random("simple_cnn")
    images = draw_noise(classifier.spec)
    expected, _ = compute_class_maps(classifier, images)
    classifier.requires_grad_(False)
    with torch.inference_mode():
        maps, _ = compute_class_maps(classifier, images.clone())
    assert torch.equal(maps, expected)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_folded_model_in_low_precision_explains_in_float32(name: str) -> None:
    classifier = build_random(name)
    images = draw_noise(classifier.spec)
    classes = classifier(images).argmax(dim=1)
    expected, _ = compute_class_maps(classifier, images, classes)
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.1)):
        prepared = prepare_for_inference(classifier, Precision(precision, CPU))
        full = take_full_precision(prepared)
        assert (full is prepared) == (precision == "fp32")
        maps, logits = compute_class_maps(full, images, classes)
        assert maps.dtype == logits.dtype == torch.float32
        torch.testing.assert_close(maps, expected, rtol=0, atol=tolerance)


def test_nothing_that_speaks_for_a_class_gives_zeros() -> None:
    classifier = build_random("simple_cnn")
    last = cast(nn.Linear, cast(nn.Sequential, classifier.head)[-1])
    with torch.no_grad():
        last.weight[2].abs_().neg_()  # the features are not negative
    images = draw_noise(classifier.spec)
    maps, _ = compute_class_maps(classifier, images, torch.tensor([2, 2]))
    assert not maps.any()


def test_squeezenet_with_its_own_head_and_with_a_new_one() -> None:
    own = build_random("squeezenet1_1")
    assert own.head_on_map
    new = build_classifier(find_backbone("squeezenet1_1"), num_classes=5, head=HeadConfig())
    fill(new)
    for classifier in (own, new.eval()):
        for stage in ("stem", "fire9"):
            maps, _ = compute_class_maps(classifier, draw_noise(own.spec), stage=stage)
            assert float(maps.amax()) == 1


def test_enlarged_maps_keep_cells_where_they_are() -> None:
    small = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    large = enlarge_maps(small, (6, 6))
    assert large.shape == (1, 6, 6)
    assert float(large[0, 1, 4]) == 1  # the centre of its cell
    assert float(large[0, 4, 1]) == 0
    assert float(large[0, :3, 3:].mean()) > 3 * float(large[0, 3:, :3].mean())


# --- stages --------------------------------------------------------------------------------------


def test_default_stages() -> None:
    found = {name: find_map_stage(find_backbone(name), None).name for name in SMALLEST}
    assert found["resnet18"] == "layer4"
    assert found["squeezenet1_1"] == "fire9"
    assert found["vgg11"] == "block5"
    assert found["maxvit_t"] == "block4"
    assert found["vit_b_16"] == "stem"
    assert name_method(find_backbone("vit_b_16")) != name_method(find_backbone("swin_t"))


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        ("resnet18", "layer5", "unknown stage 'layer5' of resnet18, did you mean layer4?"),
        ("vgg11", "fc6", "stage 'fc6' of vgg11 has no map: it gives vectors"),
        ("vit_b_16", "block12", "stage 'block12' of vit_b_16 has no map: nothing reads"),
    ],
)
def test_stages_that_cannot_be(name: str, stage: str, message: str) -> None:
    spec = find_backbone(name)
    with pytest.raises(UsageError) as caught:
        find_map_stage(spec, stage)
    assert caught.value.message.startswith(message)
    listed = str(caught.value.hint).partition(": ")[2].split(", ")
    assert listed == [each.name for each in find_map_stages(spec)]
    assert stage not in listed


# --- planted objects (sanity checks after Adebayo et al. 2018, arXiv:1810.03292) -----------------


def plant_squares(count: int, *, seed: int, size: int, edge: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a square of one of three colours: images, classes, centres (row, column)."""
    random = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, 3, size, size, generator=random)
    labels = torch.randint(0, 3, (count,), generator=random)
    corners = torch.randint(0, (size - edge) // PATCH + 1, (count, 2), generator=random) * PATCH
    for image, label, (row, column) in zip(images, labels, corners.tolist(), strict=True):
        square = image[:, row : row + edge, column : column + edge]
        square.fill_(-1.0)
        square[label] = 2.0
    return images, labels, corners + edge / 2


def train(classifier: Classifier, *, steps: int, size: int, edge: int) -> Classifier:
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for step in range(steps):
        images, labels, _ = plant_squares(32, seed=step, size=size, edge=edge)
        loss = functional.cross_entropy(classifier.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return classifier.eval()


def find_centres(maps: Tensor, size: int) -> Tensor:
    """Centres of mass (row, column) in pixels, [B, 2]."""
    places = (torch.arange(maps.shape[1]) + 0.5) * size / maps.shape[1]
    weights = maps / maps.sum(dim=(1, 2), keepdim=True)
    return torch.stack([weights.sum(dim=2) @ places, weights.sum(dim=1) @ places], dim=1)


def correlate_ranks(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation of all values."""
    ranks = [each.flatten().argsort().argsort().double() for each in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.fixture(scope="module")
def trained() -> Classifier:
    torch.manual_seed(0)
    spec = find_backbone("simple_cnn")
    classifier = build_classifier(
        spec, num_classes=3, head=HeadConfig(), options={"width_mult": 0.25}
    )
    return train(classifier, steps=60, size=64, edge=16)


def test_maps_follow_a_planted_object(trained: Classifier) -> None:
    images, labels, centres = plant_squares(60, seed=999, size=64, edge=16)
    maps, logits = compute_class_maps(trained, images, labels)
    assert float((logits.argmax(dim=1) == labels).double().mean()) > 0.95
    found = find_centres(maps, 64)
    same_quadrant = ((found > 32) == (centres > 32)).all(dim=1)
    # A square across the middle has no quadrant.
    clear = ((centres - 32).abs() >= PATCH).all(dim=1)
    assert int(clear.sum()) > 20
    assert float(same_quadrant[clear].double().mean()) > 0.95


def test_maps_change_when_the_weights_are_randomised(trained: Classifier) -> None:
    images, labels, _ = plant_squares(20, seed=999, size=64, edge=16)
    maps, _ = compute_class_maps(trained, images, labels)
    again, _ = compute_class_maps(trained, images, labels)
    assert correlate_ranks(maps, again) == pytest.approx(1.0)
    random = build_classifier(
        trained.spec, num_classes=3, head=HeadConfig(), options={"width_mult": 0.25}
    )
    fill(random)
    other, _ = compute_class_maps(random.eval(), images, labels)
    assert correlate_ranks(maps, other) < 0.5


def test_maps_tell_classes_apart(trained: Classifier) -> None:
    first, first_labels, _ = plant_squares(40, seed=5, size=64, edge=16)
    second, second_labels, _ = plant_squares(40, seed=6, size=64, edge=16)
    rows = (first_labels != second_labels).nonzero()[:, 0]
    images = torch.cat([first[rows], second[rows]], dim=3)
    left, _ = compute_class_maps(trained, images, first_labels[rows])
    right, _ = compute_class_maps(trained, images, second_labels[rows])
    middle = left.shape[2] // 2
    on_left = left[:, :, :middle].sum(dim=(1, 2)) > left[:, :, middle:].sum(dim=(1, 2))
    on_right = right[:, :, :middle].sum(dim=(1, 2)) < right[:, :, middle:].sum(dim=(1, 2))
    assert float((on_left & on_right).double().mean()) > 0.9


def build_tiny_vit() -> Classifier:
    """Two blocks, 3 × 3 patches: the real thing has 86 million parameters."""
    spec = find_backbone("vit_b_16")
    stages = (*spec.stages[:2], replace(spec.stages[-1], prefixes=spec.stages[2].prefixes))
    backbone = VisionTransformer(
        image_size=24, patch_size=PATCH, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64
    )
    backbone.heads = nn.Identity()
    head = nn.Sequential(nn.Linear(32, 3))
    spec = replace(spec, stages=stages)
    return Classifier(backbone, head, spec=spec, feature_dim=32, num_classes=3)


def test_maps_of_a_transformer_follow_a_planted_object() -> None:
    torch.manual_seed(0)
    classifier = train(build_tiny_vit(), steps=150, size=24, edge=PATCH)
    images, labels, centres = plant_squares(60, seed=999, size=24, edge=PATCH)
    maps, logits = compute_class_maps(classifier, images, labels)
    assert maps.shape == (60, 3, 3)
    assert float((logits.argmax(dim=1) == labels).double().mean()) > 0.9
    top = maps.flatten(1).argmax(dim=1)
    planted = (centres // PATCH).long()
    assert float((top == planted[:, 0] * 3 + planted[:, 1]).double().mean()) > 0.9
