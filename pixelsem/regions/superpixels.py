"""Superpixels: SLIC, LSC and SEEDS, merged where their colours are alike (dong2020 §3.3, §4.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pixelsem.errors import InputError
from pixelsem.regions.opencv import require
from pixelsem.regions.settings import LscSettings, SeedsSettings, SlicSettings, SuperpixelSettings

Labels = NDArray[np.int32]
Lab = NDArray[np.float32]

#: The largest number that a label map holds.
MOST = 65535

#: Pieces under this share of S×S pixels are given to a neighbour.
_LEAST_SHARE = 0.25


def superpixels(image: NDArray[np.uint8], settings: SuperpixelSettings) -> Labels:
    """Return the superpixels of one image, int32 [H, W] of labels from 1 to n without a gap.

    ``image`` is uint8 [H, W, 3] RGB of any size; ``settings`` (:class:`SlicSettings`, :class:`LscSettings` or
    :class:`SeedsSettings`) name the method. Every pixel has a label, every superpixel is connected by its
    pixels' sides, and labels are numbered in the order of their first pixels, row by row. A piece that hangs
    together with nothing else of its superpixel is one of its own, and one under a quarter of S×S pixels goes
    to the neighbour of the most similar mean colour.

    All methods work in CIELAB: SLIC on true numbers, so that its compactness is in units of colour
    difference; LSC and SEEDS, which want numbers from 0 to 1, on (L/100, (a+128)/255, (b+128)/255), LSC's
    relative to the largest in the image. OpenCV's SLIC compares d_c² + (p/S)²·d_s², the form of Achanta et
    al. 2012, not Eq. 1's sum of the roots. Superpixels are merged by :func:`merge` at ``merge_threshold``.

    The result depends on the arguments only, not on threads.
    """
    lab = cielab(image)
    labels = _numbered(_cleaned(_clustered(lab, settings), lab, settings.size))
    return merge(labels, image, settings.merge_threshold) if settings.merge_threshold > 0 else labels


def merge(labels: NDArray[np.integer], image: NDArray[np.uint8], threshold: float) -> Labels:
    """Make similar neighbouring superpixels one (dong2020 §3.3); int32 [H, W] of labels from 1 to n.

    ``labels``, integers [H, W], are superpixels of ``image``, uint8 [H, W, 3] RGB. Two are neighbours where
    pixels of them share a side, and similar where their mean CIELAB colours (:func:`cielab`) are less than
    ``threshold`` (β, not negative) apart, Euclidean. "We combine them" is taken transitively: what is linked
    by a chain of similar neighbours becomes one, with all colours those of the superpixels given. So the
    result does not depend on any order, and a larger β only joins what a smaller one gave; the ends of a long
    chain may differ by more than β. With β = 0 nothing is merged.
    """
    # Labels may be any numbers; in the order of their first pixels, they do not depend on the naming.
    _, flat = np.unique(labels, return_inverse=True)
    own = flat.reshape(labels.shape).astype(np.int32)
    first, second = _neighbours(own)
    colours = _mean_colours(own, cielab(image))
    similar = np.linalg.norm(colours[first] - colours[second], axis=1) < threshold
    return _numbered(_united(len(colours), first[similar], second[similar])[own])


def cielab(image: NDArray[np.uint8]) -> Lab:
    """Return an sRGB image, uint8 [H, W, 3], in CIELAB (D65, 2°): float32 [H, W, 3], L of 0 to 100.

    Computed here: OpenCV's is off by up to 0.4, and its 8-bit L is scaled to 255.
    """
    # Of 256 levels there are only so many to linearise (IEC 61966-2-1).
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).astype(np.float32)
    xyz = linear[image] @ (_XYZ_OF_RGB / _WHITE[:, None]).T.astype(np.float32)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * np.float32((29 / 6) ** 2 / 3) + np.float32(4 / 29))
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])


def _clustered(lab: Lab, settings: SuperpixelSettings) -> Labels:
    """Run OpenCV's method; int32 [H, W] of labels that may have gaps and hold several pieces."""
    height, width = lab.shape[:2]
    with _one_thread():
        if isinstance(settings, SlicSettings):
            found = _slic(lab, settings)
        elif isinstance(settings, LscSettings):
            found = _lsc(_of_unit_range(lab), settings)
        elif isinstance(settings, SeedsSettings):
            found = _seeds(_of_unit_range(lab), settings)
        else:
            raise TypeError(f"{type(settings).__name__} belongs to no superpixel method")
    return found[:height, :width]


def _slic(lab: Lab, settings: SlicSettings) -> Labels:
    cv2 = require("ximgproc.createSuperpixelSLIC")
    # Below half a grid interval a side there is no seed, and OpenCV crashes.
    padded = _padded(lab, settings.size, settings.size)
    method = cv2.ximgproc.createSuperpixelSLIC(padded, cv2.ximgproc.SLIC, settings.size, settings.compactness)
    method.iterate(settings.iterations)
    return np.asarray(method.getLabels(), np.int32)


def _lsc(lab: Lab, settings: LscSettings) -> Labels:
    cv2 = require("ximgproc.createSuperpixelLSC")
    # Below two grid intervals a side, rounding can leave no row or column of seeds, and OpenCV divides by zero.
    padded = _padded(lab, 2 * settings.size, 2 * settings.size)
    method = cv2.ximgproc.createSuperpixelLSC(padded, settings.size, settings.compactness)
    method.iterate(settings.iterations)
    return np.asarray(method.getLabels(), np.int32)


def _seeds(lab: Lab, settings: SeedsSettings) -> Labels:
    cv2 = require("ximgproc.createSuperpixelSEEDS")
    # OpenCV is told a number of superpixels, not of pixels in one, and arrives at another number by rounding; on
    # narrow images it never ends. On whole blocks, at least three each way, the numbers below come out exactly.
    smallest = 2 ** (settings.levels - 1)
    block = smallest * max(1, math.floor(settings.size / smallest + 0.5))
    down, across = (max(3, math.ceil(side / block)) for side in lab.shape[:2])
    padded = _padded(lab, down * block, across * block)
    # Between down × across, which rounding may miss, and what would be one more row.
    number = down * across + across
    method = cv2.ximgproc.createSuperpixelSEEDS(
        across * block, down * block, 3, number, settings.levels, settings.smoothness, settings.bins
    )
    method.iterate(padded, settings.iterations)
    return np.asarray(method.getLabels(), np.int32)


def _of_unit_range(lab: Lab) -> Lab:
    lowest, range_ = np.array([0, -128, -128], np.float32), np.array([100, 255, 255], np.float32)
    return np.asarray(np.clip((lab - lowest) / range_, 0, 1))


def _padded(lab: Lab, height: int, width: int) -> Lab:
    """Repeat the last row and column until the image is at least of this size."""
    below, right = max(0, height - lab.shape[0]), max(0, width - lab.shape[1])
    return np.pad(lab, ((0, below), (0, right), (0, 0)), mode="edge")


_lock = Lock()
_inside = 0
_threads = 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread per call: its LSC writes from several threads to the same pixels unguarded.

    The setting is the whole process's, so the last one to leave restores it.
    """
    global _inside, _threads
    cv2 = require("setNumThreads")
    with _lock:
        if _inside == 0:
            _threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                cv2.setNumThreads(_threads)


def _cleaned(labels: Labels, lab: Lab, size: int) -> Labels:
    """Split labels into connected pieces, from 0, and give small ones to the most similar neighbour."""
    pieces = _pieces(labels)
    least = int(_LEAST_SHARE * size * size)
    while True:
        areas = np.bincount(pieces.ravel())
        small = areas < least
        if len(areas) == 1 or not small.any():
            return pieces
        pieces = _united(len(areas), *_best_neighbours(pieces, small, lab))[pieces]


def _best_neighbours(pieces: Labels, small: NDArray[np.bool_], lab: Lab) -> tuple[Labels, Labels]:
    """Return every small piece and its neighbour of the most similar colour, of those not small if there are any."""
    first, second = _neighbours(pieces)
    source, target = np.concatenate([first, second]), np.concatenate([second, first])
    source, target = source[small[source]], target[small[source]]
    colours = _mean_colours(pieces, lab)
    distance = np.linalg.norm(colours[source] - colours[target], axis=1)
    order = np.lexsort((target, distance, small[target], source))
    source, target = source[order], target[order]
    best = np.diff(source, prepend=-1) > 0
    return source[best], target[best]


def _pieces(labels: NDArray[np.integer]) -> Labels:
    """Number the 4-connected pieces of equal labels from 0; int32 [H, W]."""
    height, width = labels.shape
    # Pixels at even places, and between two of them a bridge where they have the same label.
    bridged = np.zeros((2 * height - 1, 2 * width - 1), bool)
    bridged[::2, ::2] = True
    bridged[1::2, ::2] = labels[1:] == labels[:-1]
    bridged[::2, 1::2] = labels[:, 1:] == labels[:, :-1]
    numbers, _ = label(bridged)
    return np.asarray(numbers[::2, ::2] - 1, np.int32)


def _neighbours(labels: Labels) -> tuple[Labels, Labels]:
    """Return the pairs of different labels that share a side of a pixel, each once, the smaller one first."""
    pairs = np.concatenate(
        [
            np.stack([labels[1:].ravel(), labels[:-1].ravel()]),
            np.stack([labels[:, 1:].ravel(), labels[:, :-1].ravel()]),
        ],
        axis=1,
    )
    pairs = np.sort(pairs[:, pairs[0] != pairs[1]], axis=0).astype(np.int64)
    count = int(labels.max()) + 1
    keys = np.unique(pairs[0] * count + pairs[1])
    return (keys // count).astype(np.int32), (keys % count).astype(np.int32)


def _mean_colours(labels: Labels, lab: Lab) -> NDArray[np.float64]:
    """Return the mean of each label, float64 [n, 3]; every label from 0 to n−1 is somewhere."""
    flat = labels.ravel()
    sums = np.stack([np.bincount(flat, weights=lab[..., channel].ravel()) for channel in range(3)], axis=1)
    return np.asarray(sums / np.bincount(flat)[:, None])


def _united(count: int, first: Labels, second: Labels) -> Labels:
    """Return the number of the group, int32 [count], of each of ``count`` items linked in these pairs."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int32)


def _numbered(labels: Labels) -> Labels:
    """Number labels from 1 in the order of their first pixels; every one from 0 to n−1 is somewhere."""
    flat = labels.ravel()
    first = np.empty(int(flat.max()) + 1, np.int64)
    first[flat[::-1]] = np.arange(flat.size)[::-1]  # where an index comes several times, the last one stays
    numbers = np.empty(len(first), np.int32)
    numbers[np.argsort(first)] = np.arange(1, len(first) + 1)
    return numbers[labels]


class Superpixels:
    """A superpixel method with its settings, as a :class:`pixelsem.regions.registry.Segmenter`."""

    kind: Literal["labels"] = "labels"
    batch = 1
    whole = True

    def __init__(self, settings: SuperpixelSettings, ids: Iterable[str] = ()) -> None:
        """Take the settings; nothing depends on ``ids``. Raises as :func:`pixelsem.regions.opencv.require`."""
        require(_NEEDS[type(settings)])
        self.settings = settings

    @property
    def identity(self) -> dict[str, object]:
        """The settings."""
        return dict(self.settings.to_dict())

    def __call__(self, images: Sequence[NDArray[np.uint8]], ids: Sequence[str]) -> list[NDArray[np.integer]]:
        """Return the labels, uint16 [H, W]; see :func:`superpixels`.

        Raises :class:`InputError` for an image of more superpixels than 16 bits can tell apart.
        """
        return [self._labels(image, image_id) for image, image_id in zip(images, ids, strict=True)]

    def _labels(self, image: NDArray[np.uint8], image_id: str) -> NDArray[np.uint16]:
        found = superpixels(image, self.settings)
        count = int(found.max())
        if count > MOST:
            raise InputError(
                f"{image_id}: {count:,} superpixels, but a 16-bit label map tells only {MOST:,} apart; "
                "choose a larger --size or --merge-threshold"
            )
        return found.astype(np.uint16)


_NEEDS: dict[type[SuperpixelSettings], str] = {
    SlicSettings: "ximgproc.createSuperpixelSLIC",
    LscSettings: "ximgproc.createSuperpixelLSC",
    SeedsSettings: "ximgproc.createSuperpixelSEEDS",
}
