"""How far an attacked image is from its clean one: SSIM, PSNR and the norms of the change.

Functions take batches of uint8 [N, C, H, W] pairs on one device and return float64 [N] (SSIM, PSNR, norms) there.
A norm is over all channel values of an image, in units of 0 to 255 unless said otherwise: divided by 255 it is that
of images in [0, 1] (the L0 norms are counts and have no unit).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod
from statistics import fmean, median

import torch
from torch import Tensor

#: The largest value of a channel, L in Wang et al.'s constants.
LARGEST = 255.0

#: Side of the Gaussian window, and its standard deviation, in pixels (Wang et al. 2004, §III-C).
WINDOW, SIGMA = 11, 1.5

_K1, _K2 = 0.01, 0.03

#: Values that are measured at a time; SSIM holds some twenty times as many, of eight bytes each.
_VALUES = 2**19


@dataclass(frozen=True)
class Distortion:
    """What one attack changed in one image.

    :ivar ssim: structural similarity, 1 for equal images; None where the image is smaller than the window.
    :ivar psnr: peak signal-to-noise ratio in dB; None where nothing changed.
    :ivar l0_pixels: pixels with at least one changed value.
    :ivar l0_values: changed channel values (qian2021's ℓ0: 15 for five pixels of three channels).
    :ivar l1: sum of the absolute changes, units of 0 to 255.
    :ivar l2: Euclidean length of the change, units of 0 to 255.
    :ivar linf: largest absolute change, 0 to 255.
    """

    ssim: float | None
    psnr: float | None
    l0_pixels: float
    l0_values: float
    l1: float
    l2: float
    linf: float


#: The fields of :class:`Distortion`.
MEASURES = tuple(field.name for field in fields(Distortion))


@dataclass(frozen=True)
class Summary:
    """Mean and median of every measure over ``n`` images; a measure without any value is left out of both."""

    n: int
    mean: dict[str, float]
    median: dict[str, float]


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of Wang et al. (IEEE TIP 13(4), 2004), Eq. 13, mean over pixels and channels.

    Takes uint8 or float [N, C, H, W] with values in [0, 255]; returns float64 [N] in [-1, 1]. An 11×11 Gaussian
    window of σ = 1.5 (weights that sum to 1, as their §III-C has it), K1 = 0.01, K2 = 0.03, only where the whole
    window lies in the image. qian2021's Eqs. 11–14 with α = β = γ = 1 and c3 = c2 / 2 are the same. Raises
    :class:`ValueError` for images smaller than the window or of different shapes.
    """
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(
            f"two batches [N, C, H, W] of one shape are needed, not {[*first.shape]} and {[*second.shape]}"
        )
    if min(first.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}×{WINDOW} pixels, not {[*first.shape[2:]]}")
    x, y = first.double(), second.double()
    mean_x, mean_y, square_x, square_y, product = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    c1, c2 = (_K1 * LARGEST) ** 2, (_K2 * LARGEST) ** 2
    both = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    similarity = (2 * both + c1) * (2 * (product - both) + c2)
    similarity = similarity / ((squares + c1) * (square_x + square_y - squares + c2))
    means: Tensor = similarity.mean(dim=(1, 2, 3))
    return means


def _blurred(stacked: Tensor) -> Tensor:
    """Weigh float64 [K, N, C, H, W] by the window, where it fits: [K, N, C, H - 10, W - 10].

    As products with two banded matrices: PyTorch has no quick convolution of float64 planes on a CPU.
    """
    rows, columns = (_band(size, stacked.device) for size in stacked.shape[3:])
    return rows @ (stacked @ columns.T)


@lru_cache(maxsize=8)
def _band(size: int, device: torch.device) -> Tensor:
    """Return the window's weights at every place where it fits into ``size`` pixels: float64 [size - 10, size]."""
    places = torch.arange(size - WINDOW + 1, device=device)[:, None]
    offsets = torch.arange(size, device=device) - places - WINDOW // 2
    weights = torch.exp(-(offsets.double() ** 2) / (2 * SIGMA**2)) * (offsets.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Return 10 log10(255² / MSE) in dB, float64 [N]; infinite for equal images."""
    error = (first.double() - second.double()).square().mean(dim=(1, 2, 3))
    decibels: Tensor = 10 * torch.log10(LARGEST**2 / error)
    return decibels


def l2(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean length of the change, float64 [N], in units of 0 to 255."""
    lengths: Tensor = (first.double() - second.double()).flatten(1).norm(dim=1)
    return lengths


def measure(clean: Tensor, attacked: Tensor) -> list[Distortion]:
    """Measure a batch of pairs, uint8 [N, 3, H, W] on one device; one :class:`Distortion` per image.

    A few images at a time, as much as a cache holds. Raises :class:`ValueError` where the shapes differ.
    """
    if clean.shape != attacked.shape or clean.ndim != 4:
        raise ValueError(
            f"two batches [N, 3, H, W] of one shape are needed, not {[*clean.shape]} and {[*attacked.shape]}"
        )
    few = max(1, _VALUES // max(1, prod(clean.shape[1:])))
    return [one for pairs in zip(clean.split(few), attacked.split(few), strict=True) for one in _measure(*pairs)]


def _measure(clean: Tensor, attacked: Tensor) -> list[Distortion]:
    change = (attacked.double() - clean.double()).abs()
    changed = change > 0
    small = min(clean.shape[2:]) < WINDOW
    similarity = torch.full_like(change[:, 0, 0, 0], torch.nan) if small else ssim(clean, attacked)
    columns = (
        similarity,
        psnr(clean, attacked),
        changed.any(1).sum((1, 2)).double(),
        changed.sum((1, 2, 3)).double(),
        change.sum((1, 2, 3)),
        change.flatten(1).norm(dim=1),
        change.amax((1, 2, 3)),
    )
    rows = torch.stack(columns, dim=1).tolist()  # one copy from the device
    return [Distortion(_finite(row[0]), _finite(row[1]), *row[2:]) for row in rows]


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def summarize(found: Sequence[Distortion]) -> Summary | None:
    """Return means and medians over images; None for no image."""
    if not found:
        return None
    columns = {name: _values(getattr(one, name) for one in found) for name in MEASURES}
    known = {name: values for name, values in columns.items() if values}
    return Summary(
        len(found),
        {name: fmean(values) for name, values in known.items()},
        {name: float(median(values)) for name, values in known.items()},
    )


def _values(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
