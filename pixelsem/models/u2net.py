"""U²-Net and its small version U²-NetP (Qin et al. 2020): nested U-shaped blocks, six side outputs, one fused.

The parts have the names of the authors' release, so that its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Input, inner and output channels of the six encoder stages, then of the five decoder stages from the deepest up.
_FULL = (
    (3, 32, 64), (64, 32, 128), (128, 64, 256), (256, 128, 512), (512, 256, 512), (512, 256, 512),
    (1024, 256, 512), (1024, 128, 256), (512, 64, 128), (256, 32, 64), (128, 16, 64),
)  # fmt: skip
_SMALL = ((3, 16, 64), *((64, 16, 64),) * 5, *((128, 16, 64),) * 5)

#: Levels of each stage's U in the same order; the stages of None have four, dilated instead of pooled (RSU-4F).
_LEVELS = (7, 6, 5, 4, None, None, None, 4, 5, 6, 7)

_NAMES = ("1", "2", "3", "4", "5", "6", "5d", "4d", "3d", "2d", "1d")


class _Convolution(nn.Module):
    """3×3 convolution, batch normalisation, ReLU; the size stays."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_s1(self.conv_s1(x)), inplace=True)


class _Block(nn.Module):
    """Residual U-block of ``levels`` levels (RSU-L, the paper's Fig. 2e); None: RSU-4F, which keeps the size."""

    def __init__(self, inputs: int, inner: int, outputs: int, levels: int | None) -> None:
        super().__init__()
        self.pooled = levels is not None
        self.levels = levels or 4
        self.rebnconvin = _Convolution(inputs, outputs, 1)
        for level in range(1, self.levels + 1):
            width = outputs if level == 1 else inner
            self.add_module(f"rebnconv{level}", _Convolution(width, inner, self._dilation(level)))
        for level in range(self.levels - 1, 0, -1):
            width = outputs if level == 1 else inner
            self.add_module(f"rebnconv{level}d", _Convolution(2 * inner, width, self._dilation(level)))

    def _dilation(self, level: int) -> int:
        if self.pooled:
            return 2 if level == self.levels else 1
        return 1 << (level - 1)

    def forward(self, x: Tensor) -> Tensor:
        start: Tensor = self.rebnconvin(x)
        found: list[Tensor] = []
        x = start
        for level in range(1, self.levels + 1):
            x = self.get_submodule(f"rebnconv{level}")(x)
            found.append(x)
            if self.pooled and level < self.levels - 1:
                x = _half(x)
        for level in range(self.levels - 1, 0, -1):
            beside = found[level - 1]
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat((_to_size_of(beside, x), beside), 1))
        return x + start


class U2Net(nn.Module):
    """The network: float [N, 3, H, W] (see :func:`pixelsem.regions.saliency.prepare`) to seven logit maps.

    Each is [N, 1, H, W]: the fused map first, then the side outputs from the finest to the coarsest. The
    sigmoid of the first is the saliency. Any size works; multiples of 32 need no rounding on the way.
    """

    def __init__(self, channels: tuple[tuple[int, int, int], ...] = _FULL) -> None:
        super().__init__()
        for name, (inputs, inner, outputs), levels in zip(_NAMES, channels, _LEVELS, strict=True):
            self.add_module(f"stage{name}", _Block(inputs, inner, outputs, levels))
        # Sides 1 to 5 look at the decoder, which is listed from the deepest stage up; side 6 at stage 6.
        widths = [outputs for _, _, outputs in reversed(channels[5:])]
        for number, width in enumerate(widths, 1):
            self.add_module(f"side{number}", nn.Conv2d(width, 1, 3, padding=1))
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the fused logits and those of the six sides, each [N, 1, H, W]."""
        size = x
        found: list[Tensor] = []
        for number in range(1, 7):
            x = self.get_submodule(f"stage{number}")(_half(x) if found else x)
            found.append(x)
        decoded = [x]
        for number in range(5, 0, -1):
            beside = found[number - 1]
            x = self.get_submodule(f"stage{number}d")(torch.cat((_to_size_of(beside, x), beside), 1))
            decoded.append(x)
        sides = [self.get_submodule(f"side{number}")(decoded[-number]) for number in range(1, 7)]
        sides = [_to_size_of(size, side) for side in sides]
        return (self.outconv(torch.cat(sides, 1)), *sides)


class U2NetP(U2Net):
    """U²-NetP: the same shape with 16 inner and 64 outer channels throughout; 1.13 million parameters."""

    def __init__(self) -> None:
        super().__init__(_SMALL)


def _half(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


def _to_size_of(beside: Tensor, x: Tensor) -> Tensor:
    if x.shape[2:] == beside.shape[2:]:
        return x
    return F.interpolate(x, size=beside.shape[2:], mode="bilinear", align_corners=False)


#: The networks by name.
NETWORKS: dict[str, Callable[[], U2Net]] = {"u2net": U2Net, "u2netp": U2NetP}
