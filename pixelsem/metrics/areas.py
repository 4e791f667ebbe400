"""Is a region more fragile, or only bigger? Success for its area, with equal areas, and as its border moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelsem.metrics.bootstrap import draws
from pixelsem.metrics.intervals import Rate, rate
from pixelsem.metrics.success import Goal, Image, Mean, attacked, image_of, mean_of, select, successes_by_image
from pixelsem.records import AttackRecord

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Searched:
    """One image in one region: the region's share of the image, in (0, 1], and whether the attack succeeded."""

    area: float
    success: bool


def searched(records: Sequence[AttackRecord], region: str, goal: Goal) -> dict[Image, Searched]:
    """Return what became of every image attacked in ``region`` (targeted: did it reach at least one target)."""
    searches = attacked(select(records, goal, region))
    areas = {image_of(record): record.region_pixels / (record.height * record.width) for record in searches}
    return {image: Searched(areas[image], hits > 0) for image, (hits, _) in successes_by_image(searches).items()}


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its interval; ``high`` is infinite where the images set no bound."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Density:
    """Success for the area of a region.

    :ivar images: how many were attacked.
    :ivar area: mean share of the image.
    :ivar success: share of the images.
    :ivar density: λ of success = 1 − exp(−λ · area): how many ways to succeed the region has per area of a whole
        image, were they strewn at random. Equal densities and unequal areas give unequal success. Infinite where
        every attack succeeded.
    """

    images: int
    area: Mean
    success: Rate
    density: Interval


def density(found: Mapping[Image, Searched], confidence: float = 0.95) -> Density | None:
    """Return :class:`Density` over images (see :func:`searched`), with a likelihood-ratio interval, or None."""
    area = mean_of(one.area for one in found.values())
    success = rate(sum(one.success for one in found.values()), len(found), confidence)
    if area is None or success is None:
        return None
    areas, hits = _arrays(list(found.values()))
    return Density(len(found), area, success, _likely(_density(areas, hits), areas, hits, confidence))


def _likely(density: float, areas: Array, hits: Array, confidence: float) -> Interval:
    """Return the densities that the images do not speak against: the likelihood-ratio interval.

    It has both ends where a bootstrap has none: without a success, and without a failure.
    """
    won, lost = areas[hits > 0], float(((1 - hits) * areas).sum())

    def likelihood(value: float) -> float:
        return float(np.log(-np.expm1(-value * won)).sum()) - value * lost

    best = likelihood(density) if 0 < density < np.inf else 0.0
    least = best - NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / 2
    # Where to start from: a density at which even the greatest area rarely succeeds, or the least rarely fails.
    middle = density if 0 < density < np.inf else 1e-3 if density == 0 else 50.0 / float(areas.min())
    low = 0.0 if density == 0 else _crossing(likelihood, least, middle, 0.5)
    high = np.inf if density == np.inf else _crossing(likelihood, least, middle, 2.0)
    return Interval(density, low, float(high))


def _crossing(likelihood: Callable[[float], float], least: float, start: float, factor: float) -> float:
    """Return where a likelihood, falling from ``start`` in steps of ``factor`` on, is ``least``."""
    inside, outside = start, start * factor
    while likelihood(outside) > least:
        inside, outside = outside, outside * factor
    for _ in range(60):
        middle = (inside * outside) ** 0.5
        inside, outside = (middle, outside) if likelihood(middle) > least else (inside, middle)
    return inside


def density_ratio(
    first: Mapping[Image, Searched], second: Mapping[Image, Searched], confidence: float = 0.95
) -> Interval | None:
    """Return the first region's density over the second's, on the images attacked in both.

    None without such images, and where either has no bound or the second is 0. The interval is the percentile
    bootstrap over images; a resample without a success in the second counts as an infinite ratio.
    """
    both = [image for image in first if image in second]
    if not both:
        return None
    one, two = _arrays([first[image] for image in both]), _arrays([second[image] for image in both])
    top, bottom = _density(*one), _density(*two)
    if not (np.isfinite(top) and np.isfinite(bottom) and bottom > 0):
        return None
    resampled = np.concatenate([_ratios(_densities(t, *one), _densities(t, *two)) for t in draws(len(both))])
    return _interval(top / bottom, resampled, confidence)


def _arrays(found: Sequence[Searched]) -> tuple[Array, Array]:
    return np.array([one.area for one in found]), np.array([one.success for one in found], np.float64)


def _ratios(top: Array, bottom: Array) -> Array:
    """Return top / bottom; where that is no number (0 / 0, ∞ / ∞) the resample says nothing: 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = top / bottom
    return np.where(np.isnan(found), 1.0, found)


def _interval(value: float, resampled: Array, confidence: float) -> Interval:
    # Order statistics, as there is nothing between a number and infinity.
    ends = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return Interval(value, float(ends[0]), float(ends[1]))


#: Resampled densities are looked up in a grid: so many points, from and to so many times the images' own density.
_POINTS, _SPAN = 160, 30.0


def _densities(times: Array, areas: Array, hits: Array) -> Array:
    """Return the most likely λ of success = 1 − exp(−λ·area) of every resample, [R], to 3 digits.

    ``times`` [R, N] says how often each of N images counts, ``areas`` and ``hits`` (1 or 0) are [N]. λ is where
    the derivative of the log-likelihood, Σ hits·a / (exp(λa) − 1) − Σ misses·a, which falls with λ, is 0: the
    derivatives of all resamples at all points of a grid are one product of matrices.
    """
    whole = _density(areas, hits)
    if not 0 < whole < np.inf:
        return np.full(len(times), whole)
    grid = whole * np.geomspace(1 / _SPAN, _SPAN, _POINTS)
    won = times @ _slopes(grid, areas, hits)
    lost = times @ ((1 - hits) * areas)
    # The last point whose derivative is not negative; between it and the next, log λ is as good as linear.
    place = np.clip((won >= lost[:, None]).sum(1) - 1, 0, _POINTS - 2)
    rows = np.arange(len(times))
    before, fall = won[rows, place] - lost, won[rows, place] - won[rows, place + 1]
    share = np.divide(before, fall, out=np.zeros_like(before), where=fall > 0)
    found = grid[place] * (grid[1] / grid[0]) ** share.clip(0, 1)
    return np.where(lost == 0, np.inf, np.where(times @ hits == 0, 0.0, found))


def _density(areas: Array, hits: Array) -> float:
    """Return the most likely λ of some images: 0 without a success, infinite without a failure."""
    lost = float(((1 - hits) * areas).sum())
    if not hits.any():
        return 0.0
    if lost == 0:
        return float("inf")
    # The derivative is convex and falls: Newton's method climbs to its root from below, where it starts because of
    # 1 / (exp(x) - 1) >= 1 / x - 1 / 2.
    won = areas[hits > 0]
    found = len(won) / (float(won.sum()) / 2 + lost)
    while True:
        grown = np.expm1(found * won)
        step = float((won / grown).sum() - lost) / float((won**2 * (grown + 1) / grown**2).sum())
        found += step
        if step <= 1e-12 * found:
            return found


def _slopes(grid: Array, areas: Array, hits: Array) -> Array:
    """Return hits·a / (exp(λa) − 1) for every image and every λ of the grid, [N, points]."""
    return (hits * areas)[:, None] / np.expm1(np.minimum(areas[:, None] * grid, 700.0))
