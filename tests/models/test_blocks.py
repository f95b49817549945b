"""Building blocks: sizes, costs, starting points, and the published structure."""

import pytest
import torch
from torch import Tensor, nn

from vtrain.models.blocks import (
    BasicBlock,
    ConvBlock,
    DepthwiseSeparableBlock,
    InstanceBatchNorm,
    PreActBasicBlock,
    PreActBottleneckBlock,
    initialize_weights,
)

BLOCKS = (
    ConvBlock,
    DepthwiseSeparableBlock,
    BasicBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
)


def make_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("block", BLOCKS)
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


def test_a_residual_block_starts_as_the_identity() -> None:
    images = make_images(2, 16, 5, 5).relu()
    assert torch.equal(BasicBlock(16, 16)(images), images)


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
