"""The package's own backbones: small networks to train from scratch, with a last layer `fc`.

Their blocks map [B, C, H, W] to [B, C', H / stride, W / stride]. Convolutions carry no bias where a
norm follows.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the others (IBN-Net).

    The first half no longer depends on brightness, contrast and colour cast, the second half
    still knows them (Pan et al. 2018, arXiv:1807.09441). For the first layers of a network; needs
    more than one pixel.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.split = [num_channels // 2, num_channels - num_channels // 2]
        self.instance_norm = nn.InstanceNorm2d(self.split[0], affine=True)
        self.batch_norm = nn.BatchNorm2d(self.split[1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        first, second = torch.split(x, self.split, dim=1)
        return torch.cat([self.instance_norm(first), self.batch_norm(second)], dim=1)


class ConvBlock(nn.Sequential):
    """Convolution, norm, ReLU; the padding keeps the size at stride 1.

    The norm is a batch norm, or `InstanceBatchNorm` with `instance_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        instance_norm: bool = False,
    ) -> None:
        norm = InstanceBatchNorm if instance_norm else nn.BatchNorm2d
        padding = kernel_size // 2
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
            ),
            norm(out_channels),
            nn.ReLU(inplace=True),
        )


class DepthwiseSeparableBlock(nn.Sequential):
    """A 3 × 3 convolution of each channel by itself, then a 1 × 1 convolution across channels.

    Costs 1 / C' + 1 / 9 of a full 3 × 3 convolution (MobileNet, Howard et al. 2017,
    arXiv:1704.04861, section 3.1); batch norm and ReLU follow both.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            ConvBlock(in_channels, in_channels, groups=in_channels),
            ConvBlock(in_channels, out_channels, kernel_size=1),
        )


class _PreActivationConv(nn.Sequential):
    """Batch norm, ReLU, convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1
    ) -> None:
        padding = kernel_size // 2
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False),
        )


class _PreActivationBlock(nn.Module):
    """Norm and ReLU come before each convolution, so that the identity path stays clean.

    He et al. 2016, arXiv:1603.05027, figure 4(e). Where the shape changes, the shortcut is a
    1 × 1 convolution of the activated input; the sum is neither normalised nor activated.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, convolutions: nn.Sequential
    ) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.convolutions = convolutions
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        activated = self.activation(x)
        identity = x if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.convolutions(activated)
        return identity + residual


class PreActBasicBlock(_PreActivationBlock):
    """Two pre-activated 3 × 3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        convolutions = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            _PreActivationConv(out_channels, out_channels, kernel_size=3),
        )
        super().__init__(in_channels, out_channels, stride, convolutions)


class PreActBottleneckBlock(_PreActivationBlock):
    """Pre-activated 1 × 1, 3 × 3, 1 × 1 with a quarter of the channels inside."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        width = out_channels // 4
        convolutions = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            _PreActivationConv(width, width, kernel_size=3, stride=stride),
            _PreActivationConv(width, out_channels, kernel_size=1),
        )
        super().__init__(in_channels, out_channels, stride, convolutions)


def initialize_weights(module: nn.Module) -> None:
    """He initialisation of every convolution: variance 2 / fan-out (arXiv:1502.01852).

    An input pixel of a grouped convolution reaches the outputs of its own group only, so that its
    fan-out is kernel size² · C' / groups. Counting all C' would make depthwise outputs so small
    that the running statistics of the norm need hundreds of steps to get there.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            fan_out = child.kernel_size[0] * child.kernel_size[1] * child.out_channels
            nn.init.normal_(child.weight, std=(2 * child.groups / fan_out) ** 0.5)


class SmallBackbone(nn.Module):
    """Stem, blocks under their names, optional final norm, global pooling, linear layer.

    The pooling takes the maximum, which asks whether something is there rather than how much of
    the image it fills, or the average.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[tuple[str, nn.Module]],
        *,
        feature_dim: int,
        num_classes: int,
        norm: nn.Module | None = None,
        max_pooling: bool = True,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.block_names = tuple(name for name, _ in blocks)
        for name, block in blocks:
            self.add_module(name, block)
        self.norm = nn.Identity() if norm is None else norm
        self.max_pooling = max_pooling
        self.fc = nn.Linear(feature_dim, num_classes)
        initialize_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C]."""
        x = self.stem(images)
        for name in self.block_names:
            x = self.get_submodule(name)(x)
        x = self.norm(x)
        pooled = x.amax(dim=(2, 3)) if self.max_pooling else x.mean(dim=(2, 3))
        logits: Tensor = self.fc(pooled)
        return logits


def build_simple_cnn(*, num_classes: int, width_mult: float = 1.0) -> SmallBackbone:
    """Five 3 × 3 convolutions; 1/8 of the input size at the end.

    Instance norm in all layers but the last, so that a few hundred images are not told apart by
    the colours of their backgrounds.
    """
    widths = [_channels(width, width_mult) for width in (24, 32, 64, 128)]
    stem = ConvBlock(3, widths[0], stride=2, instance_norm=True)
    first, second, third = (
        ConvBlock(inputs, outputs, instance_norm=True) for inputs, outputs in pairwise(widths)
    )
    last = ConvBlock(widths[3], widths[3])
    blocks = [
        ("block1", nn.Sequential(first, nn.MaxPool2d(2))),
        ("block2", nn.Sequential(second, nn.MaxPool2d(2))),
        ("block3", nn.Sequential(third, last)),
    ]
    return SmallBackbone(stem, blocks, feature_dim=widths[3], num_classes=num_classes)


def build_separable_cnn(*, num_classes: int, width_mult: float = 1.0) -> SmallBackbone:
    """`simple_cnn` with depthwise-separable convolutions behind the stem, one more of them."""
    widths = [_channels(width, width_mult) for width in (32, 64, 128, 256)]
    stem = ConvBlock(3, widths[0], stride=2, instance_norm=True)
    first, second, third = (
        DepthwiseSeparableBlock(inputs, outputs) for inputs, outputs in pairwise(widths)
    )
    middle = DepthwiseSeparableBlock(widths[2], widths[2])
    blocks = [
        ("block1", nn.Sequential(first, nn.MaxPool2d(2))),
        ("block2", nn.Sequential(second, nn.MaxPool2d(2))),
        ("block3", nn.Sequential(middle, third)),
    ]
    return SmallBackbone(stem, blocks, feature_dim=widths[3], num_classes=num_classes)


def build_preact_resnet(
    *, num_classes: int, depths: Sequence[int], bottleneck: bool
) -> SmallBackbone:
    """Pre-activation ResNet with a 3 × 3 stem of stride 2 and no pooling, for small images."""
    block = PreActBottleneckBlock if bottleneck else PreActBasicBlock
    in_channels = 64
    layers = []
    for index, depth in enumerate(depths):
        out_channels = 64 * 2**index * (4 if bottleneck else 1)
        strides = [1 if index == 0 else 2] + [1] * (depth - 1)
        inputs = [in_channels] + [out_channels] * (depth - 1)
        stage = [
            block(channels, out_channels, stride=stride)
            for channels, stride in zip(inputs, strides, strict=True)
        ]
        layers.append((f"layer{index + 1}", nn.Sequential(*stage)))
        in_channels = out_channels
    return SmallBackbone(
        nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
        layers,
        feature_dim=in_channels,
        num_classes=num_classes,
        norm=nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)),
        max_pooling=False,
    )


def _channels(width: int, width_mult: float) -> int:
    """Scaled number of channels, a multiple of 8 for the sake of vector units."""
    return max(8, round(width * width_mult / 8) * 8)
