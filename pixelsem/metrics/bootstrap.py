"""Intervals of means over images, and of what is computed from such means, by resampling the images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

#: How often the images are drawn anew.
RESAMPLES = 2000

_SEED = 0
_NUMBERS_AT_A_TIME = 200_000


@dataclass(frozen=True)
class Estimate:
    """A number computed from ``n`` images, with its interval; the ends are None for fewer than two images."""

    value: float
    low: float | None
    high: float | None
    n: int


def _only(means: Array) -> Array:
    return means[..., 0]


def bootstrap(values: Array, confidence: float = 0.95, statistic: Callable[[Array], Array] = _only) -> Estimate:
    """Return a statistic of means over images with its percentile interval (Efron, 1979).

    ``values`` are [N] or [N, K], one row per image, N ≥ 1. ``statistic`` turns means [..., K] over images into
    numbers [...]; by default it is the (first) mean itself. :data:`RESAMPLES` times N images are drawn with
    replacement. The draws depend on N alone: the same call gives the same interval, and two methods on the same
    images are resampled alike.
    """
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    value = float(statistic(rows.mean(0)))
    return _estimate(value, len(rows), confidence, lambda times: statistic(times @ rows / len(rows)))


def bootstrap_draws(n: int, confidence: float, statistic: Callable[[Array], Array]) -> Estimate:
    """Return a statistic of ``n`` ≥ 1 images with its percentile interval, as :func:`bootstrap` draws them.

    ``statistic`` turns how often each image counts, float64 [..., n], into numbers [...].
    """
    return _estimate(float(statistic(np.ones(n))), n, confidence, statistic)


def bootstrap_by_image(values: Array, images: Sequence[Hashable], confidence: float = 0.95) -> Estimate:
    """Return the mean of ``values`` [M] with its interval where several of them are of one of ``images`` [M].

    Several targets, or several searches, of one image are not independent: images are drawn, each with all of its
    values. M ≥ 1; ``n`` is how many images there are. With one value per image this is :func:`bootstrap`.
    """
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    place = [numbers[image] for image in images]
    rows = np.stack([np.bincount(place, values), np.bincount(place)], axis=1).astype(np.float64)
    return bootstrap(rows, confidence, lambda means: means[..., 0] / means[..., 1])


def bootstrap_each(values: Array, confidence: float = 0.95) -> tuple[Array, Array | None, Array | None]:
    """Return the means of ``values`` [N, K] over images with their intervals, [K] each; no ends for one image.

    What :func:`bootstrap` says of each column, at once.
    """
    rows = np.asarray(values, np.float64)
    if len(rows) < 2:
        return rows.mean(0), None, None
    means = np.concatenate([times @ rows / len(rows) for times in draws(len(rows))])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return rows.mean(0), low, high


def draws(n: int) -> Iterator[Array]:
    """Yield how often each of ``n`` images is drawn, [some, n] at a time, :data:`RESAMPLES` in all; always the same."""
    rng = np.random.Generator(np.random.Philox(_SEED))
    step = max(1, _NUMBERS_AT_A_TIME // n)
    for start in range(0, RESAMPLES, step):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(step, RESAMPLES - start)).astype(np.float64)


def _estimate(value: float, n: int, confidence: float, statistic: Callable[[Array], Array]) -> Estimate:
    if n < 2:
        return Estimate(value, None, None, n)
    resampled = np.concatenate([statistic(times) for times in draws(n)])
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), n)
