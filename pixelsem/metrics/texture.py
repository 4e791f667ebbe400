"""HILL: how much texture there is at a pixel, as what a change there would cost (dong2020, §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelsem.metrics.bootstrap import Estimate, bootstrap
from pixelsem.metrics.intervals import Rate, rate

#: What a pixel costs around which nothing varies at all: the 1 / 1e-10 of the authors' own program.
WET_COST = 1e10

_HIGH_PASS = (1, -2, 1)  # its outer product with itself is the 3×3 KB filter, but for the sign


def to_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma (ITU-R 601, rounded) of uint8 [..., H, W, 3] as uint8 [..., H, W]."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


def hill_cost(grey: NDArray[np.uint8], wet_cost: float = WET_COST) -> NDArray[np.float64]:
    """Return HILL's cost of changing each pixel, float64 [..., H, W] in (0, ``wet_cost``]; less is more texture.

    Li, Wang, Huang & Li, "A new cost function for spatial image steganography", ICIP 2014:
    1 / (|I ⊗ H| ⊗ L1) ⊗ L2, with the 3×3 KB high-pass H = [-1 2 -1; 2 -4 2; -1 2 -1], L1 the mean of 3×3 and L2
    that of 15×15 pixels; all mirror the image at its border (the border pixel is repeated).

    ``grey`` are 8-bit grey levels [..., H, W]. 1 / ``wet_cost`` is added to the denominator, which is 0 where H
    sees nothing in 3×3 places: in 5×5 pixels of one level, or whose levels are a row's plus a column's. Any
    other pixel costs 9 at most before L2. So where there are such flat pixels (see :func:`flat`) a mean cost is
    little more than ``wet_cost`` times their share: means are comparable for one wet cost only.
    """
    cost = 1.0 / (_variation(grey) / 9.0 + 1.0 / wet_cost)
    return _box(cost, 15) / 225.0


def flat(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where HILL sees no variation at all, bool [..., H, W]; ``grey`` as in :func:`hill_cost`."""
    return np.asarray(_variation(grey) == 0)


def _variation(grey: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return 9 · |I ⊗ H| ⊗ L1, whole numbers, so that 0 is 0."""
    residual = _filter(grey.astype(np.int32), _HIGH_PASS)
    return _box(np.abs(residual), 3)


def _box(values: NDArray[Any], size: int) -> NDArray[Any]:
    # A running sum would be faster, but carries the rounding of wet costs into the cheap pixels behind them.
    return _filter(values, (1,) * size)


def _filter(values: NDArray[Any], weights: Sequence[int]) -> NDArray[Any]:
    """Correlate with the outer product of ``weights`` with themselves, mirrored at the border; the dtype stays."""
    from scipy.ndimage import correlate1d

    down = correlate1d(values, weights, axis=-2, mode="reflect")
    return np.asarray(correlate1d(down, weights, axis=-1, mode="reflect"))


@dataclass(frozen=True)
class RegionTexture:
    """One image: mean cost and share of flat pixels, of its foreground and of its background."""

    foreground: float
    background: float
    flat_foreground: float
    flat_background: float


def region_texture(
    grey: NDArray[np.uint8], foreground: NDArray[np.bool_], wet_cost: float = WET_COST
) -> RegionTexture | None:
    """Return the mean cost per region of grey levels [H, W]; None where bool [H, W] ``foreground`` is all or none."""
    if foreground.all() or not foreground.any():
        return None
    cost, smooth = hill_cost(grey, wet_cost), flat(grey)
    regions = (foreground, ~foreground)
    means = [float(values[region].mean()) for values in (cost, smooth) for region in regions]
    return RegionTexture(*means)


@dataclass(frozen=True)
class TextureSummary:
    """Means over images of the regions' mean costs.

    :ivar difference: background minus foreground, image by image: above 0 where the foreground has more texture.
    :ivar textured: images whose foreground has more texture (costs less) than their background.
    :ivar median_foreground: median over the images, which a few flat ones cannot move.
    :ivar median_background: the same of the background.
    """

    foreground: Estimate
    background: Estimate
    difference: Estimate
    textured: Rate
    median_foreground: float
    median_background: float
    flat_foreground: float
    flat_background: float


def summarize(images: Sequence[RegionTexture], confidence: float = 0.95) -> TextureSummary:
    """Return the means over ``images``, at least one."""
    foreground = np.array([one.foreground for one in images])
    background = np.array([one.background for one in images])
    textured = rate(int((foreground < background).sum()), len(images), confidence)
    if textured is None:
        raise ValueError("no images to summarize")
    return TextureSummary(
        foreground=bootstrap(foreground, confidence),
        background=bootstrap(background, confidence),
        difference=bootstrap(background - foreground, confidence),
        textured=textured,
        median_foreground=float(np.median(foreground)),
        median_background=float(np.median(background)),
        flat_foreground=float(np.mean([one.flat_foreground for one in images])),
        flat_background=float(np.mean([one.flat_background for one in images])),
    )
