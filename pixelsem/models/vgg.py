"""VGG-11, -13 and -16 (Simonyan & Zisserman 2015) for 32×32 images, with batch normalisation."""

from __future__ import annotations

from torch import nn

#: Widths of the convolutions; "M" is 2×2 max pooling (configurations A, B and D of the paper's Table 1).
_CONFIGURATIONS: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}


def _vgg(depth: int, num_classes: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for item in _CONFIGURATIONS[depth]:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, item, 3, 1, 1, bias=False), nn.BatchNorm2d(item), nn.ReLU()]
        channels = item
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(512, num_classes)]
    return nn.Sequential(*layers)


def vgg11(num_classes: int = 10, dropout: float = 0.5) -> nn.Sequential:
    """Build VGG-11 for CIFAR: float [N, 3, 32, 32] (normalised) to logits [N, num_classes]."""
    return _vgg(11, num_classes, dropout)


def vgg13(num_classes: int = 10, dropout: float = 0.5) -> nn.Sequential:
    """Build VGG-13 for CIFAR: float [N, 3, 32, 32] (normalised) to logits [N, num_classes]."""
    return _vgg(13, num_classes, dropout)


def vgg16(num_classes: int = 10, dropout: float = 0.5) -> nn.Sequential:
    """Build VGG-16 for CIFAR: float [N, 3, 32, 32] (normalised) to logits [N, num_classes]."""
    return _vgg(16, num_classes, dropout)
