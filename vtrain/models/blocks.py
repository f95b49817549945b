"""Building blocks of small convolutional networks; all map [B, C, H, W] to [B, C', H', W'].

Convolutions carry no bias, since a norm follows. `stride` divides the height and width.
"""

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
        activation: bool = True,
        instance_norm: bool = False,
    ) -> None:
        norm = InstanceBatchNorm if instance_norm else nn.BatchNorm2d
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding=kernel_size // 2,
                groups=groups,
                bias=False,
            ),
            norm(out_channels),
        ]
        if activation:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class DepthwiseSeparableBlock(nn.Sequential):
    """A 3 × 3 convolution of each channel by itself, then a 1 × 1 convolution across channels.

    Costs 1 / C' + 1 / 9 of a full 3 × 3 convolution (MobileNet, Howard et al. 2017,
    arXiv:1704.04861, section 3.1); batch norm and ReLU follow both.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(
            ConvBlock(in_channels, in_channels, stride=stride, groups=in_channels),
            ConvBlock(in_channels, out_channels, kernel_size=1),
        )


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut: `relu(shortcut(x) + residual(x))`.

    ResNet, He et al. 2015, arXiv:1512.03385. The last norm of the residual starts at zero, so that
    the block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        last = ConvBlock(out_channels, out_channels, activation=False)
        self.residual = nn.Sequential(ConvBlock(in_channels, out_channels, stride=stride), last)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvBlock(
                in_channels, out_channels, kernel_size=1, stride=stride, activation=False
            )
        nn.init.zeros_(last.get_parameter("1.weight"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        return torch.relu(self.shortcut(x) + self.residual(x))


class _PreActivationConv(nn.Sequential):
    """Batch norm, ReLU, convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1
    ) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding=kernel_size // 2,
                bias=False,
            ),
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
