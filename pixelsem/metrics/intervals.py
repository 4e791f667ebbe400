"""Rates with intervals, and paired comparisons of rates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Rate:
    """A share of successes with its confidence interval.

    :ivar successes: how many of ``n`` succeeded.
    :ivar n: how many were tried; at least 1.
    :ivar low: lower end of the interval, in [0, 1].
    :ivar high: upper end of the interval, in [0, 1].
    :ivar effective_n: how many independent trials the interval stands on; ``n`` unless trials are clustered.
    """

    successes: int
    n: int
    low: float
    high: float
    effective_n: float

    @property
    def value(self) -> float:
        """The share itself, in [0, 1]."""
        return self.successes / self.n


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share: (low, high), both in [0, 1].

    ``successes`` and ``n`` need not be whole (see :func:`clustered_rate`). Raises :class:`ValueError` unless
    0 ≤ successes ≤ n, n > 0 and 0 < confidence < 1.
    """
    if not (0 <= successes <= n and n > 0 and 0 < confidence < 1):
        raise ValueError(f"no interval for {successes} of {n} at {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula gives exactly 0 or 1, but for rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def rate(successes: int, n: int, confidence: float = 0.95) -> Rate | None:
    """Return the share of ``n`` independent trials with its Wilson interval; None where ``n`` is 0."""
    if n == 0:
        return None
    return Rate(successes, n, *wilson(successes, n, confidence), effective_n=float(n))


def clustered_rate(clusters: Sequence[tuple[int, int]], confidence: float = 0.95) -> Rate | None:
    """Return the share over trials that come in clusters, each (successes, trials); None without trials.

    Several targets, or several searches, of one image are no independent trials. Wilson's interval is taken
    at the effective sample size n / D, D being the design effect of the ratio estimator (Rao & Scott,
    Biometrics 48, 1992), never below 1. Where the data cannot tell D (one cluster, or all trials alike),
    every cluster counts as one trial. Clusters of one trial each are independent trials: see :func:`rate`.
    """
    clusters = [(hits, trials) for hits, trials in clusters if trials]
    n = sum(trials for _, trials in clusters)
    if n == 0:
        return None
    successes = sum(hits for hits, _ in clusters)
    effect = _design_effect(clusters, successes, n)
    low, high = wilson(successes / effect, n / effect, confidence)
    return Rate(successes, n, low, high, effective_n=n / effect)


def rate_by_cluster(outcomes: Iterable[tuple[Hashable, bool]], confidence: float = 0.95) -> Rate | None:
    """Return :func:`clustered_rate` of trials given one by one, each as (its cluster, success)."""
    clusters: dict[Hashable, tuple[int, int]] = {}
    for cluster, success in outcomes:
        hits, trials = clusters.get(cluster, (0, 0))
        clusters[cluster] = (hits + success, trials + 1)
    return clustered_rate(list(clusters.values()), confidence)


def _design_effect(clusters: Sequence[tuple[int, int]], successes: int, n: int) -> float:
    share, count = successes / n, len(clusters)
    if n == count:
        return 1.0
    if count < 2 or successes in (0, n):
        return n / count
    spread = sum((hits - trials * share) ** 2 for hits, trials in clusters)
    variance = count / (count - 1) * spread / n**2
    return max(1.0, variance / (share * (1 - share) / n))


@dataclass(frozen=True)
class Paired:
    """Two conditions tried on the same n images: how many succeeded in which.

    :ivar both: images that succeeded in both conditions.
    :ivar only_first: images that succeeded in the first alone.
    :ivar only_second: images that succeeded in the second alone.
    :ivar neither: images that succeeded in none.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        """Images tried in both conditions."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """The first condition's share minus the second's, in [-1, 1]; needs n > 0."""
        return (self.only_first - self.only_second) / self.n

    @property
    def p_value(self) -> float:
        """McNemar's exact test of no difference."""
        return mcnemar_exact(self.only_first, self.only_second)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of :attr:`difference`, see :func:`paired_interval`."""
        return paired_interval(self, confidence)


def paired_interval(table: Paired, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval for the difference of two shares of the same images: (low, high) in [-1, 1].

    Newcombe's method 10 (Statistics in Medicine 17, 1998, 2635–2650): Wilson intervals of the two shares,
    squared and added, with the correlation phi corrected for continuity.
    """
    n = table.n
    first, second = (table.both + table.only_first) / n, (table.both + table.only_second) / n
    low1, high1 = wilson(table.both + table.only_first, n, confidence)
    low2, high2 = wilson(table.both + table.only_second, n, confidence)
    phi = _correlation(table)
    down = _combine(first - low1, high2 - second, phi)
    up = _combine(high1 - first, second - low2, phi)
    return max(-1.0, table.difference - down), min(1.0, table.difference + up)


def _combine(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(table: Paired) -> float:
    a, b, c, d = table.both, table.only_first, table.only_second, table.neither
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    product = float(a * d - b * c)
    if product > 0:
        product = max(0.0, product - table.n / 2)
    return product / math.sqrt(margins)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact (binomial) test from the two discordant counts.

    1 where no pair is discordant.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    # Whole numbers throughout: binomial coefficients of many pairs are beyond floats.
    tail, term = 0, 1
    for k in range(min(only_first, only_second) + 1):
        tail += term
        term = term * (discordant - k) // (k + 1)
    share: float = tail / 2**discordant
    return min(1.0, 2 * share)
