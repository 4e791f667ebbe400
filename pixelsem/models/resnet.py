"""ResNet-18 and -34 (He et al. 2016) with the 3×3 stem that 32×32 images need."""

from __future__ import annotations

from torch import Tensor, nn


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, Fig. 2; option B where shapes differ)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return out


def _resnet(blocks: tuple[int, int, int, int], num_classes: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for level, count in enumerate(blocks):
        width = 64 << level
        for index in range(count):
            layers.append(_BasicBlock(channels, width, 2 if level and not index else 1))
            channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(512, num_classes)]
    return nn.Sequential(*layers)


def resnet18(num_classes: int = 10, dropout: float = 0.0) -> nn.Sequential:
    """Build ResNet-18 for CIFAR: float [N, 3, 32, 32] (normalised) to logits [N, num_classes]."""
    return _resnet((2, 2, 2, 2), num_classes, dropout)


def resnet34(num_classes: int = 10, dropout: float = 0.0) -> nn.Sequential:
    """Build ResNet-34 for CIFAR: float [N, 3, 32, 32] (normalised) to logits [N, num_classes]."""
    return _resnet((3, 4, 6, 3), num_classes, dropout)
