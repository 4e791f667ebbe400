"""Network in Network (Lin et al. 2014, *Network in Network*, §4.2) with batch normalisation."""

from __future__ import annotations

from torch import nn


def _mlpconv(channels: int, widths: tuple[int, int, int], kernel: int) -> list[nn.Module]:
    """One mlpconv block: a spatial convolution and two 1×1 convolutions, each with ReLU."""
    layers: list[nn.Module] = []
    for width, size in zip(widths, (kernel, 1, 1), strict=True):
        layers += [nn.Conv2d(channels, width, size, 1, size // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return layers


def nin(num_classes: int = 10, dropout: float = 0.5) -> nn.Sequential:
    """Build NiN for CIFAR-10: three mlpconv blocks, max then average pooling, global average pooling.

    Maps float [N, 3, H, W] (normalised) to logits [N, num_classes]; meant for 32×32.
    ``dropout`` follows each of the first two blocks, as in the paper.
    """
    return nn.Sequential(
        *_mlpconv(3, (192, 160, 96), 5),
        nn.MaxPool2d(3, 2, 1),
        nn.Dropout(dropout),
        *_mlpconv(96, (192, 192, 192), 5),
        nn.AvgPool2d(3, 2, 1),
        nn.Dropout(dropout),
        *_mlpconv(192, (192, 192, 192), 3)[:-3],
        nn.Conv2d(192, num_classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
