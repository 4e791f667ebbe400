"""How far from the border between object and surroundings vulnerable pixels lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pixelsem.metrics.bootstrap import Estimate, bootstrap_by_image
from pixelsem.metrics.success import Image

#: Of pixels' distances from the border: more than the first, up to the second.
BANDS = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, inf))


@dataclass(frozen=True)
class Band:
    """The pixels of a region that lie so far from its border, more than ``low`` and up to ``high`` pixels.

    :ivar pixels: how many there are, mean over the images that have any.
    :ivar share: which share of them is vulnerable, mean over these images.
    """

    low: float
    high: float
    pixels: float
    share: Estimate


def distances(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far each pixel of a ``region``, [H, W], is from the nearest one outside of it, in pixels.

    Euclidean, from centre to centre: 1 beside the border. 0 outside; infinite where there is no outside, as the
    image's own edge is no border.
    """
    if region.all():
        return np.full(region.shape, inf)
    found: NDArray[np.float64] = distance_transform_edt(region)
    return found


def by_distance(
    maps: Iterable[tuple[Image, NDArray[np.bool_], NDArray[np.bool_]]], confidence: float = 0.95
) -> list[Band]:
    """Return the vulnerable share of every band of :data:`BANDS` in which there are pixels.

    ``maps`` are of one region: (image, the region's pixels, the vulnerable ones), bool [H, W]. A region that fills its
    image has no border and does not count.
    """
    images: list[Image] = []
    counts: list[NDArray[np.float64]] = []
    ends = [high for _, high in BANDS[:-1]]
    for image, region, vulnerable in maps:
        if region.all() or not region.any():
            continue
        band = np.searchsorted(ends, distances(region)[region])  # the first whose end is not below the distance
        both = [np.bincount(band, weights, len(BANDS)) for weights in (None, vulnerable[region])]
        images.append(image)
        counts.append(np.stack(both).astype(np.float64))
    found = np.array(counts).reshape(-1, 2, len(BANDS))
    return [
        _band(place, found[found[:, 0, place] > 0, :, place], _of(images, found[:, 0, place] > 0), confidence)
        for place in range(len(BANDS))
        if (found[:, 0, place] > 0).any()
    ]


def _of(images: list[Image], chosen: NDArray[np.bool_]) -> list[Image]:
    return [image for image, wanted in zip(images, chosen.tolist(), strict=True) if wanted]


def _band(place: int, counts: NDArray[np.float64], images: list[Image], confidence: float) -> Band:
    """Return a band of ``counts`` [N, 2], pixels and vulnerable ones."""
    share = bootstrap_by_image(counts[:, 1] / counts[:, 0], images, confidence)
    return Band(*BANDS[place], float(counts[:, 0].mean()), share)
