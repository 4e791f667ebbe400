"""Masks laid over their images, and both made small, for contact sheets and pages."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pixelsem.images import resize_image, resize_mask

Pixels = NDArray[np.uint8]

#: The foreground's colour in every figure (Okabe and Ito's blue), as RGB.
_BLUE = (0, 114, 178)

#: Hues in steps of the golden angle are far from each other, however many there are.
_PALETTE = np.array(
    [[round(255 * c) for c in hsv_to_rgb(n * 0.381966 % 1, 0.75, 0.6 + 0.13 * (n % 4))] for n in range(256)], np.uint8
)

#: Images of at most this many pixels a side are shown pixel by pixel.
TINY = 96


def shown_size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Return (height, width) of an image of ``shape`` shrunk to at most ``side``; small ones stay."""
    factor = min(1.0, side / max(shape[:2]))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def fitted(pixels: Pixels, side: int) -> Pixels:
    """Shrink uint8 [H, W, 3] to at most ``side`` pixels, or enlarge a tiny one by a whole number."""
    if max(pixels.shape[:2]) <= TINY:
        return _enlarged(pixels, side)
    return resize_image(pixels, shown_size(pixels.shape, side), "lanczos")


def fitted_mask(mask: NDArray[Any], side: int) -> NDArray[Any]:
    """Bring a mask [H, W] (integers or bool) to the size that :func:`fitted` gives its image; no new values come up."""
    if max(mask.shape) <= TINY:
        return _enlarged(mask, side)
    return resize_mask(mask, shown_size(mask.shape, side))


def _enlarged(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    factor = max(1, side // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_binary(image: Pixels, foreground: NDArray[np.bool_]) -> Pixels:
    """Tint the foreground (bool [H, W]) of uint8 [H, W, 3] blue, outline it, and fade the rest."""
    outside = 0.45 * _grey(image) + 0.55 * 255
    shown = np.where(foreground[:, :, None], 0.72 * image + 0.28 * np.array(_BLUE), outside)
    border = _border(foreground)
    shown[border & foreground] = _BLUE
    shown[border & ~foreground] = 255
    return np.rint(shown).astype(np.uint8)


def draw_soft(image: Pixels, heat: NDArray[np.integer], threshold: float = 0.5) -> Pixels:
    """Lay a soft mask (0 to 65535) over uint8 [H, W, 3] as heat; a white line is drawn at ``threshold`` × 65535."""
    level = heat / 65535
    colours = cv2.applyColorMap(np.rint(255 * level).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    weight = (0.35 + 0.4 * level)[:, :, None]
    shown = (1 - weight) * _grey(image) + weight * colours
    inside = level >= threshold
    shown[_border(inside) & inside] = 255
    return np.rint(shown).astype(np.uint8)


def draw_labels(image: Pixels, labels: NDArray[np.integer]) -> Pixels:
    """Tint the labels of uint8 [H, W, 3] in colours of their own and draw their borders; 0 is faded."""
    colours = label_colours(labels)
    shown = np.where((labels == 0)[:, :, None], 0.55 * _grey(image) + 0.45 * 255, 0.6 * image + 0.4 * colours)
    right, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    border = np.zeros(labels.shape, bool)
    border[:, :-1] |= right
    border[:-1] |= below
    shown[border] = 255
    return np.rint(shown).astype(np.uint8)


def label_colours(labels: NDArray[np.integer]) -> Pixels:
    """Return a colour for every label, uint8 [H, W, 3]: the same one everywhere, unlike its neighbours' numbers."""
    return np.asarray(_PALETTE[labels.astype(np.int64) % len(_PALETTE)])


def _grey(image: Pixels) -> NDArray[np.float64]:
    return np.asarray((image @ np.array([0.299, 0.587, 0.114]))[:, :, None])


def _border(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels on both sides of the border of a region, bool [H, W]; the image's edge is none."""
    plain = inside.astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    return np.asarray(cv2.dilate(plain, kernel) != cv2.erode(plain, kernel))
