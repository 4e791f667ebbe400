"""The regions of an image as an attack gets them: from its mask, at the classifier's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pixelsem.attacks.random import generator
from pixelsem.attacks.settings import RegionOptions
from pixelsem.errors import InputError, PixelsemError
from pixelsem.models.classifier import Preprocessing
from pixelsem.models.inputs import Resize, fit_mask
from pixelsem.regions.masks import MaskEntry, MaskSource, grow, match_area


class RegionMaker:
    """Makes the regions that an attack run needs, image by image."""

    def __init__(self, options: RegionOptions, masks: MaskSource | None, seed: int) -> None:
        """Raises :class:`PixelsemError` where a region needs masks and there are none."""
        self._options = options
        self._masks = masks
        self._seed = seed
        if masks is None and options.regions != ("original",):
            raise PixelsemError(
                f"--region {options.region} needs masks: give --masks DIR, or run `pixelsem segment` first"
            )

    def of(
        self, image_id: str, shape: tuple[int, ...], pixels: NDArray[np.uint8], preprocessing: Preprocessing
    ) -> tuple[dict[str, NDArray[np.bool_]], tuple[str, ...]]:
        """Return the bool [h, w] region for every name asked for, and the flags of the mask.

        ``shape`` is that of the source image, which the mask must share; ``pixels`` uint8 [h, w, 3] is the
        image at the classifier's resolution. Raises :class:`InputError` for a mask that is missing,
        unreadable or of another size.
        """
        whole = {"original": np.ones(pixels.shape[:2], np.bool_)}
        if self._masks is None or self._options.regions == ("original",):
            return whole, ()
        mask = fitted_mask(self._masks, image_id, shape, preprocessing, self._options.resize)
        return whole | self._split(mask, pixels), mask.flags

    def _split(self, mask: MaskEntry, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
        def region(name: str) -> NDArray[np.bool_]:
            return mask.region(name)

        names = self._options.regions
        labelled = {name: region(name) for name in names if name.startswith("label:")}
        if labelled:
            return {name: grow(inside, self._border) for name, inside in labelled.items()}
        foreground = grow(region("foreground"), self._border)
        background = ~foreground
        if self._options.match_area:
            rng = generator(self._seed, 0, pixels, "match-area", None)
            foreground, background = match_area(foreground, background, rng)
        return {"foreground": foreground, "background": background}

    @property
    def _border(self) -> int:
        return self._options.grow - self._options.shrink


def stack_regions(
    maker: RegionMaker, name: str, ids: Sequence[str], images: NDArray[np.uint8], preprocessing: Preprocessing
) -> tuple[NDArray[np.bool_], int]:
    """Return the region ``name`` of every image, bool [N, H, W], and how many of them have a flagged mask.

    ``images`` is uint8 [N, H, W, 3] at the classifier's resolution. The region of a flagged mask is empty. Raises
    :class:`InputError` for a mask that is missing, unreadable or of another size.
    """

    def one(image_id: str, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], bool]:
        regions, flags = maker.of(image_id, pixels.shape, pixels, preprocessing)
        return regions[name] & (not flags), bool(flags)

    with ThreadPoolExecutor() as pool:
        made, flagged = zip(*pool.map(one, ids, images), strict=True)
    return np.stack(made), sum(flagged)


class RegionReader:
    """Reads the region ``name`` of every image, by its number in ``ids``, at the size of the image's file."""

    def __init__(self, masks: MaskSource, name: str, ids: Sequence[str]) -> None:
        """Raises :class:`InputError` where an image has no mask."""
        missing = next((image_id for image_id in ids if image_id not in masks), None)
        if missing is not None:
            raise InputError(f"{missing}: has no mask in {masks.path}")
        self._masks, self._name, self._ids = masks, name, ids

    def __call__(self, number: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the region, bool (height, width) ``shape``; that of a flagged mask is empty.

        Raises :class:`InputError` for a mask that is unreadable or of another size.
        """
        entry = _found(self._masks, self._ids[number])
        if entry.values.shape != shape:
            raise _other_size(entry, shape)
        return entry.region(self._name) & (not entry.flags)


def fitted_mask(
    masks: MaskSource, image_id: str, shape: tuple[int, ...], preprocessing: Preprocessing, resize: Resize
) -> MaskEntry:
    """Return the mask of an image, its values [h, w] at the classifier's resolution.

    The mask has the size of the source image, ``shape``, or that of the classifier's. Raises
    :class:`InputError` for one that is missing, unreadable or of another size.
    """
    entry = _found(masks, image_id)
    mask = entry.values
    if mask.shape != tuple(shape[:2]) and mask.shape != preprocessing.size:
        raise _other_size(entry, shape)
    source_shape = shape if mask.shape == tuple(shape[:2]) else preprocessing.size
    return replace(entry, values=fit_mask(mask, source_shape, preprocessing, resize))


def _found(masks: MaskSource, image_id: str) -> MaskEntry:
    entry = masks.find(image_id)
    if entry is None:
        raise InputError(f"{image_id}: has no mask in {masks.path}")
    return entry


def _other_size(entry: MaskEntry, shape: tuple[int, ...]) -> InputError:
    height, width = entry.values.shape
    return InputError(
        f"{entry.path}: is {width}×{height}, its image {shape[1]}×{shape[0]}; masks must have the size of their images"
    )
