"""Pooling with stride 1: average and maximum (dong2020, Table 3), median (Xu et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pixelsem.transforms.settings import PoolSettings


def average_pool(images: Tensor, settings: PoolSettings) -> Tensor:
    """Return the mean of the window around each pixel, rounded: uint8 [N, 3, H, W] for uint8 [N, 3, H, W].

    At the border the mean is that of the pixels that are there. Halves go to the even level.
    """
    pooled = functional.avg_pool2d(images.double(), *_window(settings), count_include_pad=False)
    return pooled.round_().to(torch.uint8)


def smooth_average(images: Tensor, settings: PoolSettings) -> Tensor:
    """As :func:`average_pool` for float [N, 3, H, W], without rounding: linear, so its own gradient."""
    return functional.avg_pool2d(images, *_window(settings), count_include_pad=False)


def max_pool(images: Tensor, settings: PoolSettings) -> Tensor:
    """Return the maximum of the window around each pixel: uint8 [N, 3, H, W] for uint8 [N, 3, H, W].

    Each colour channel has its own; at the border it is that of the pixels that are there.
    """
    return smooth_max(images.float(), settings).to(torch.uint8)  # floats hold 8 bits exactly


def smooth_max(images: Tensor, settings: PoolSettings) -> Tensor:
    """As :func:`max_pool` for float [N, 3, H, W]; the gradient goes to the pixel that is the maximum."""
    return functional.max_pool2d(images, *_window(settings))


def median(images: Tensor, settings: PoolSettings) -> Tensor:
    """Return the median of the window around each pixel: uint8 [N, 3, H, W] for uint8 [N, 3, H, W].

    Each colour channel has its own; beyond its border the image is mirrored, the border's own pixels included.
    """
    kernel = settings.kernel
    height, width = images.shape[2:]
    around = images[:, :, _mirrored(height, kernel, images.device)][..., _mirrored(width, kernel, images.device)]
    # The largest level that more than half of the window reaches, found bit by bit: eight passes over the
    # shifted images, and never all windows at a time in memory.
    found = torch.zeros_like(images)
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        level = found | bit
        reached = torch.zeros_like(images, dtype=torch.int16)
        for row in range(kernel):
            for column in range(kernel):
                reached += around[:, :, row : row + height, column : column + width] >= level
        found = torch.where(reached > kernel * kernel // 2, level, found)
    return found


def _mirrored(length: int, kernel: int, device: torch.device) -> Tensor:
    """Return int64 [length + kernel − 1]: the places of an axis with its mirrored ends, however short it is."""
    places = torch.arange(-(kernel // 2), length + kernel // 2, device=device) % (2 * length)
    return torch.minimum(places, 2 * length - 1 - places)


def _window(settings: PoolSettings) -> tuple[int, int, int]:
    """Return kernel, stride and padding."""
    return settings.kernel, 1, settings.kernel // 2
