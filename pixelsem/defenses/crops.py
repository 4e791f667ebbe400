"""Random resized crops: a part of an image, enlarged or shrunk to the size that a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelsem.images import resize_image, resize_mask

#: A crop's width over its height lies between these, evenly in its logarithm.
_SIDES = (3 / 4, 4 / 3)

#: So often an area and a shape are drawn until they fit into the image.
_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A box in an image, from row ``top`` and column ``left`` on, in pixels; ``mirrored`` left to right or not."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False

    def image(self, pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
        """Return what is in the box of uint8 [H, W, 3], resized to (h, w) ``size``: uint8 [h, w, 3].

        ``interpolation`` is one of PIL's filters, see :func:`pixelsem.images.resize_image`.
        """
        made = resize_image(np.ascontiguousarray(pixels[self._box]), size, interpolation)
        return made[:, ::-1] if self.mirrored else made

    def region(self, region: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return what is in the box of bool [H, W], resized to (h, w) ``size`` by nearest neighbour: bool [h, w]."""
        made = resize_mask(region[self._box].astype(np.uint8), size).astype(np.bool_)
        return made[:, ::-1] if self.mirrored else made

    @property
    def _box(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def draw_crop(rng: np.random.Generator, shape: tuple[int, int], least: float, flip: bool) -> Crop:
    """Draw a crop of an image of (height, width) ``shape``, as GoogLeNet was trained on (Szegedy et al. 2015, §6).

    Its area is drawn evenly between the share ``least`` of the image's and all of it, its proportions between 3:4 and
    4:3. Where ten draws do not fit into the image, it is the largest box in the middle with these proportions. With
    ``flip`` half of the crops are mirrored. Four numbers are drawn per try, whatever becomes of them.
    """
    height, width = shape
    mirrored = bool(flip and rng.random() < 0.5)
    draws = rng.random((_TRIES, 4))
    area = height * width * (least + (1 - least) * draws[:, 0])
    low, high = map(math.log, _SIDES)
    sides = np.exp(low + (high - low) * draws[:, 1])
    across, down = np.rint(np.sqrt(area * sides)).astype(int), np.rint(np.sqrt(area / sides)).astype(int)
    fits = np.flatnonzero((across >= 1) & (across <= width) & (down >= 1) & (down <= height))
    if not len(fits):
        return _middle(height, width, mirrored)
    chosen = fits[0]
    tall, wide = int(down[chosen]), int(across[chosen])
    top, left = int((height - tall + 1) * draws[chosen, 2]), int((width - wide + 1) * draws[chosen, 3])
    return Crop(top, left, tall, wide, mirrored)


def _middle(height: int, width: int, mirrored: bool) -> Crop:
    """Return the largest box in the middle whose proportions are within the limits."""
    low, high = _SIDES
    tall = min(height, max(1, round(width / low)))
    wide = min(width, max(1, round(height * high)))
    return Crop((height - tall) // 2, (width - wide) // 2, tall, wide, mirrored)
