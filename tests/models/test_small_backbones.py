"""The package's own networks: their blocks, options, pooling, and that they learn."""

import pytest
import torch
from torch import Tensor, nn

from vtrain.models.backbones import build_backbone
from vtrain.models.small_backbones import (
    ConvBlock,
    DepthwiseSeparableBlock,
    InstanceBatchNorm,
    PreActBasicBlock,
    PreActBottleneckBlock,
    initialize_weights,
)
from vtrain.models.zoo import find_backbone


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


# --- blocks ---------------------------------------------------------------------------------------


def make_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("block", [ConvBlock, PreActBasicBlock, PreActBottleneckBlock])
@pytest.mark.parametrize(("in_channels", "stride"), [(16, 1), (8, 1), (8, 2)])
def test_blocks_give_the_channels_and_size_asked_for(
    block: type[nn.Module], in_channels: int, stride: int
) -> None:
    module = block(in_channels, 16, stride=stride)
    output = module(make_images(2, in_channels, 10, 10))
    assert output.shape == (2, 16, 10 // stride, 10 // stride)
    assert all(conv.bias is None for conv in module.modules() if isinstance(conv, nn.Conv2d))
    output.square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_separable_block_costs_what_the_mobilenet_paper_says() -> None:
    full, separable = ConvBlock(64, 128), DepthwiseSeparableBlock(64, 128)
    ratio = count_weights(separable) / count_weights(full)
    assert ratio == pytest.approx(1 / 128 + 1 / 9)


def test_a_separable_block_first_filters_each_channel_by_itself() -> None:
    depthwise = DepthwiseSeparableBlock(4, 8)[0].eval()
    images = make_images(1, 4, 6, 6)
    changed = images.clone()
    changed[:, 2] += 1.0
    differs = (depthwise(images) != depthwise(changed)).any(dim=(0, 2, 3))
    assert not differs[[0, 1, 3]].any()


@pytest.mark.parametrize("block", [PreActBasicBlock, PreActBottleneckBlock])
def test_a_preactivation_block_leaves_the_identity_path_clean(
    block: type[PreActBasicBlock] | type[PreActBottleneckBlock],
) -> None:
    module = block(16, 16)
    for parameter in module.convolutions.parameters():
        nn.init.zeros_(parameter)
    images = make_images(2, 16, 5, 5)
    assert torch.equal(module(images), images)  # no ReLU after the sum: negative values pass


def test_a_preactivation_shortcut_projects_the_activated_input() -> None:
    module = PreActBasicBlock(4, 8, stride=2).eval()
    for parameter in module.convolutions.parameters():
        nn.init.zeros_(parameter)
    images = make_images(2, 4, 6, 6)
    assert module.shortcut is not None
    scaled = images / (1 + 1e-5) ** 0.5  # batch norm with its initial statistics
    expected = module.shortcut(scaled.relu())
    torch.testing.assert_close(module(images), expected)


def test_bottlenecks_work_on_a_quarter_of_the_channels() -> None:
    convolutions = [m for m in PreActBottleneckBlock(64, 64).modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [16, 16, 64]
    assert [conv.kernel_size for conv in convolutions] == [(1, 1), (3, 3), (1, 1)]


def test_instance_norm_forgets_brightness_and_contrast_and_batch_norm_keeps_them() -> None:
    norm = InstanceBatchNorm(6).eval()
    images = make_images(2, 6, 8, 8)
    plain, brighter = norm(images), norm(3 * images + 1)
    torch.testing.assert_close(plain[:, :3], brighter[:, :3], rtol=1e-3, atol=1e-3)
    assert (plain[:, 3:] - brighter[:, 3:]).abs().mean() > 0.5
    assert norm(images[:1]).equal(plain[:1])  # an image does not see its neighbours


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_initialisation_keeps_the_scale_of_activations(groups: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False)
    initialize_weights(convolution)
    images = make_images(4, 64, 32, 32).relu()
    ratio = convolution(images).square().mean() / images.square().mean()
    assert 1.5 < ratio < 2.5  # a ReLU halves it
