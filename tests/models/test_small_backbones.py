"""The package's own networks: options, pooling, and that they learn."""

import pytest
import torch
from torch import Tensor, nn

from vtrain.models.backbones import build_backbone
from vtrain.zoo import find_backbone


def draw_stripes(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Stripes across or down in any two colours: [count, 3, 32, 32] and labels 0 or 1."""
    random = torch.Generator().manual_seed(seed)
    images, labels = [], torch.arange(count) % 2
    for label in labels.tolist():
        colours = torch.rand(2, 3, generator=random) * 2 - 1
        phase, period = torch.randint(2, 6, (2,), generator=random).tolist()
        wave = ((torch.arange(32) + phase) // period % 2).long()
        stripes = colours[wave].T[:, None, :].expand(3, 32, 32)
        images.append(stripes if label else stripes.transpose(1, 2))
    return torch.stack(images), labels


def train(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        chosen = torch.arange(16) + 16 * (step % (len(images) // 16))
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def test_simple_cnn_learns_a_pattern_from_few_images_in_any_colour() -> None:
    torch.manual_seed(0)
    model = build_backbone(find_backbone("simple_cnn"), num_classes=2, pretrained=False)
    train(model, *draw_stripes(64, seed=1), steps=40)
    images, labels = draw_stripes(100, seed=2)
    with torch.inference_mode():
        assert (model(images).argmax(dim=1) == labels).float().mean() >= 0.95


@pytest.mark.parametrize("name", ["simple_cnn", "separable_cnn"])
def test_learns_plain_colours_as_well(name: str) -> None:
    torch.manual_seed(0)
    model = build_backbone(find_backbone(name), num_classes=3, pretrained=False)
    labels = torch.arange(48) % 3
    images = torch.eye(3)[labels][:, :, None, None].expand(-1, -1, 32, 32) * 2 - 1
    images = images + 0.3 * torch.randn(48, 3, 1, 1)
    train(model, images, labels, steps=40)
    with torch.inference_mode():
        assert (model(images).argmax(dim=1) == labels).float().mean() == 1.0


@pytest.mark.parametrize("name", ["simple_cnn", "separable_cnn"])
def test_width_mult_scales_the_channels(name: str) -> None:
    spec = find_backbone(name)
    sizes = [
        sum(
            parameter.numel()
            for parameter in build_backbone(
                spec, num_classes=2, pretrained=False, options={"width_mult": width}
            ).parameters()
        )
        for width in (0.5, 1, 2)
    ]
    assert 2.5 < sizes[1] / sizes[0] < 4.5
    assert 3.0 < sizes[2] / sizes[1] < 4.5
    assert sizes[1] < 300_000


@pytest.mark.parametrize("size", [16, 33, 64])
@pytest.mark.parametrize("name", ["simple_cnn", "separable_cnn", "preact_resnet18"])
def test_any_image_size_from_the_smallest_on(name: str, size: int) -> None:
    spec = find_backbone(name)
    assert spec.min_image_size == 16
    model = build_backbone(spec, num_classes=5, pretrained=False)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_simple_cnn_pools_the_maximum_and_preact_resnet_the_average() -> None:
    for name, pool in (("simple_cnn", torch.amax), ("preact_resnet18", torch.mean)):
        model = build_backbone(find_backbone(name), num_classes=2, pretrained=False).eval()
        model.fc = nn.Identity()
        maps: list[Tensor] = []
        last = model.get_submodule(find_backbone(name).feature_map)
        last.register_forward_hook(lambda module, inputs, output, maps=maps: maps.append(output))
        pooled = model(torch.randn(1, 3, 32, 32))
        assert torch.equal(pooled, pool(maps[0], dim=(2, 3)))
