"""What a classifier still sees without a region, and of the region alone (qian2021, §IV-B and Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelsem.metrics.intervals import Paired, Rate, rate


@dataclass(frozen=True)
class Seen:
    """What a model makes of one image: is it right on it clean, without the region, and on the region alone?

    ``area`` is the region's share of the image, in [0, 1].
    """

    clean: bool
    without: bool
    alone: bool
    area: float


@dataclass(frozen=True)
class Occlusion:
    """Accuracies over images.

    :ivar clean: on the images as they are.
    :ivar without: with the region filled: the paper's Adv-CFR.
    :ivar alone: with all but the region filled: Adv-non-CFR.
    :ivar drop_without: clean against without the region, on the same images.
    :ivar drop_alone: clean against the region alone.
    :ivar area: the region's share of the image, mean, in [0, 1].
    :ivar empty: images whose region has no pixel.
    """

    clean: Rate
    without: Rate
    alone: Rate
    drop_without: Paired
    drop_alone: Paired
    area: float
    empty: int


def fill(
    image: NDArray[np.uint8], region: NDArray[np.bool_], colour: Sequence[int] = (0, 0, 0)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return uint8 [H, W, 3] with the ``region`` (bool [H, W]) filled, and with all but the region filled.

    ``colour`` is 8-bit red, green and blue; the paper sets pixels to 0.
    """
    paint, inside = np.asarray(colour, np.uint8), region[:, :, None]
    return np.where(inside, paint, image), np.where(inside, image, paint)


def occlusion(seen: Sequence[Seen], confidence: float = 0.95) -> Occlusion | None:
    """Count over images, with Wilson intervals at level ``confidence``; None for no image."""
    clean, without, alone = ([getattr(one, name) for one in seen] for name in ("clean", "without", "alone"))
    rates = [found for hits in (clean, without, alone) if (found := rate(sum(hits), len(hits), confidence))]
    if not rates:
        return None
    return Occlusion(
        clean=rates[0],
        without=rates[1],
        alone=rates[2],
        drop_without=_pair(clean, without),
        drop_alone=_pair(clean, alone),
        area=float(np.mean([one.area for one in seen])),
        empty=sum(one.area == 0 for one in seen),
    )


def _pair(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    pairs = list(zip(first, second, strict=True))
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    return Paired(*counts)
