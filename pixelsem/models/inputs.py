"""From an image of any size to the classifier's resolution, and its mask with it.

The tool's own outputs and CIFAR's images already have that resolution. Those are taken as they are,
also where the classifier's own pipeline would first enlarge and then crop: what was attacked, saved and
shown is then what is scored, pixel for pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pixelsem.errors import InputError
from pixelsem.images import resize_image, resize_mask

if TYPE_CHECKING:
    from pixelsem.models.classifier import Preprocessing

Resize = Literal["crop", "squash"]


def fit_image(pixels: NDArray[np.uint8], preprocessing: Preprocessing, resize: Resize = "crop") -> NDArray[np.uint8]:
    """Bring uint8 [H, W, 3] to the classifier's (h, w): uint8 [h, w, 3].

    ``crop`` is the classifier's own way: resize so that the shorter side becomes
    ``preprocessing.resize``, then crop the centre, to the pixel as torchvision does on PIL images.
    ``squash`` resizes both sides to (h, w), whatever the proportions. An image of that size is
    returned unchanged.
    """
    if pixels.shape[:2] == preprocessing.size:
        return pixels
    if resize == "squash":
        return resize_image(pixels, preprocessing.size, preprocessing.interpolation)
    scaled = resize_image(pixels, _resized(pixels.shape[:2], preprocessing), preprocessing.interpolation)
    return scaled[_centre(scaled.shape[:2], preprocessing.size)]


def fit_mask(
    mask: NDArray[np.integer], image_shape: tuple[int, ...], preprocessing: Preprocessing, resize: Resize = "crop"
) -> NDArray[np.integer]:
    """Bring integers [H, W] the way :func:`fit_image` takes an image of ``image_shape``: the same dtype, [h, w].

    Every value is one of the mask's own (nearest neighbour). Raises :class:`InputError` where the mask
    is not as large as its image.
    """
    if mask.shape != tuple(image_shape[:2]):
        sizes = f"{mask.shape[1]}×{mask.shape[0]}, its image {image_shape[1]}×{image_shape[0]}"
        raise InputError(f"the mask is {sizes}; both must have the same size")
    if mask.shape == preprocessing.size:
        return mask
    if resize == "squash":
        return resize_mask(mask, preprocessing.size)
    scaled = resize_mask(mask, _resized(mask.shape, preprocessing))
    return scaled[_centre(scaled.shape, preprocessing.size)]


def unfit_map(
    values: NDArray[np.floating], image_shape: tuple[int, ...], preprocessing: Preprocessing, resize: Resize = "crop"
) -> NDArray[np.float32]:
    """Lay a map of the classifier's (h, w) over the image that :func:`fit_image` took there: float32 [H, W].

    ``values`` are floats [h, w]; what lies between two of them is interpolated (bilinear). Pixels wholly
    outside of the crop are 0. :func:`fit_mask` takes the map back, but for the interpolation.
    """
    shape = (image_shape[0], image_shape[1])
    laid = np.asarray(values, np.float32)
    if shape == preprocessing.size:
        return laid
    scaled = preprocessing.size if resize == "squash" else _resized(shape, preprocessing)
    starts = [crop.start for crop in _centre(scaled, preprocessing.size)]
    laid = _spread(laid, shape[0], scaled[0], starts[0])
    return _spread(laid.T, shape[1], scaled[1], starts[1]).T


def _spread(values: NDArray[np.float32], length: int, scaled: int, start: int) -> NDArray[np.float32]:
    """Interpolate float32 [n, …] along the first axis for ``length`` pixels.

    The pixels together are as long as ``scaled`` values, of which the given ones are those from ``start`` on.
    """
    edges = np.arange(length + 1) * (scaled / length) - start
    place = np.clip((edges[:-1] + edges[1:]) / 2 - 0.5, 0, len(values) - 1)
    low = np.floor(place).astype(np.intp)
    share = (place - low).astype(np.float32)[:, None]
    spread = values[low] * (1 - share) + values[np.minimum(low + 1, len(values) - 1)] * share
    spread[(edges[1:] <= 0) | (edges[:-1] >= len(values))] = 0
    return spread


def _resized(shape: tuple[int, ...], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (height, width) before the crop, with torchvision's rounding, large enough for the crop."""
    size = preprocessing.size
    tight = 0 if shape[0] * size[1] <= shape[1] * size[0] else 1  # the axis along which the crop fills the image
    length = round(size[tight] * preprocessing.resize / min(size))
    other = max(int(length * shape[1 - tight] / shape[tight]), size[1 - tight])
    return (length, other) if tight == 0 else (other, length)


def _centre(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[slice, slice]:
    # Python's round goes to the even number at one half; so does torchvision's centre crop.
    top, left = (round((have - want) / 2) for have, want in zip(shape, size, strict=True))
    return slice(top, top + size[0]), slice(left, left + size[1])
