"""The package's own backbones: small networks to train from scratch, with a last layer `fc`."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vtrain.models.blocks import (
    ConvBlock,
    DepthwiseSeparableBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
    initialize_weights,
)


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
