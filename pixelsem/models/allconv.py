"""All-CNN-C (Springenberg et al. 2015, *Striving for Simplicity*, Table 1) with batch normalisation."""

from __future__ import annotations

from torch import nn

#: (output channels, kernel size, stride) of the nine convolutions; the last one emits the class scores.
_LAYERS = ((96, 3, 1), (96, 3, 1), (96, 3, 2), (192, 3, 1), (192, 3, 1), (192, 3, 2), (192, 3, 1), (192, 1, 1))


def allconv(num_classes: int = 10, dropout: float = 0.5) -> nn.Sequential:
    """Build All-CNN-C: strided convolutions in place of pooling, global average pooling at the end.

    Maps float [N, 3, H, W] (normalised) to logits [N, num_classes]; meant for 32×32.
    ``dropout`` follows each strided convolution, as in the paper. The paper's input dropout is left
    out and batch normalisation added: with it the network trains in tens of epochs, not hundreds.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width, kernel, stride in _LAYERS:
        layers += [
            nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        if stride == 2:
            layers.append(nn.Dropout(dropout))
        channels = width
    layers += [nn.Conv2d(channels, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)
