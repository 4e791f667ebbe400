"""Which pixels get windows of one size: few classes, so that batches stay large, and little computed in vain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def classify(sizes: NDArray[np.float64], weight: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return int64 [S]: at most ``count`` classes of S coordinates, cheap to give windows of one size each.

    ``sizes`` [S, maps] is what a pixel at each coordinate reaches in each map, ``weight`` [maps] what a unit of
    size costs there. In each map the windows of a class are as long as its longest. The classes are the best
    among those that are intervals once the coordinates are sorted by cost.
    """
    order = np.argsort(sizes @ weight, kind="stable")
    ends = _best_ends(_costs(sizes[order], weight), min(count, len(np.unique(sizes, axis=0))))
    classes = np.empty(len(sizes), np.int64)
    classes[order] = np.searchsorted(ends, np.arange(len(sizes)), side="right")
    return classes


def _costs(sizes: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [S, S]: what a class of the coordinates i … j costs; infinite below the diagonal."""
    length = len(sizes)
    costs = np.full((length, length), np.inf)
    for i in range(length):
        costs[i, i:] = np.maximum.accumulate(sizes[i:]) @ weight * np.arange(1, length - i + 1)
    return costs


def _best_ends(costs: NDArray[np.float64], count: int) -> list[int]:
    """Return where each of ``count`` intervals ends (excluded), by dynamic programming over the last one's start."""
    length = len(costs)
    best, starts = costs[0], []
    for _ in range(count - 1):
        # totals[i, j]: all up to i − 1 in one interval less, i … j in the last.
        totals = np.full((length, length), np.inf)
        totals[1:] = best[:-1, None] + costs[1:]
        starts.append(totals.argmin(0))
        best = totals.min(0)
    ends, last = [length], length - 1
    for start in reversed(starts):
        ends.append(int(start[last]))
        last = ends[-1] - 1
    return ends[::-1]
