"""GrabCut: the foreground as the cheapest cut between two colour models (wang2021 §III-B, Eqs. 5–8)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelsem.errors import InputError, PixelsemError
from pixelsem.images import read_hints
from pixelsem.regions.masks import FolderMasks
from pixelsem.regions.opencv import require
from pixelsem.regions.settings import GrabCutSettings

Rect = tuple[int, int, int, int]

#: Scribbles at least this bright are surely foreground …
WHITE = 192
#: … at most this bright surely background; what lies between is open.
BLACK = 63

_SEED = 20210403


def grabcut(
    image: NDArray[np.uint8], settings: GrabCutSettings | None = None, hints: NDArray[np.integer] | None = None
) -> NDArray[np.bool_]:
    """Return the foreground of one image, bool [H, W].

    ``image`` is uint8 [H, W, 3] RGB. The energy of Eq. 5 (data term: two mixtures of five Gaussians over the
    colours, Eqs. 6 and 7; smoothness: contrast between neighbours, Eq. 8) is minimised ``iterations`` times.
    What lies outside of the rectangle is background. ``hints``, integers [H, W] in [0, 255], are the paper's
    scribbles (§IV-B): at least :data:`WHITE` is surely foreground, at most :data:`BLACK` surely background;
    they win over the rectangle, which is widened to hold every white one.

    The result depends on the arguments only: not on the thread, or on what was segmented before. Where there
    is nothing to cut (no pixel left to one side), the answer is all one side: an image under 3 pixels a side
    has no foreground. Raises :class:`InputError` for hints of another size, a rectangle outside of the image
    or one that leaves no background.
    """
    settings = settings or GrabCutSettings()
    height, width = image.shape[:2]
    if hints is not None and hints.shape != (height, width):
        raise InputError(f"the hints are {hints.shape[1]}×{hints.shape[0]}, the image is {width}×{height}")
    if min(height, width) < 3 and settings.rect is None and hints is None:
        return np.zeros((height, width), bool)
    factor = max(1.0, settings.upscale / min(height, width))
    trimap = _trimap(_rectangle(settings, width, height), (height, width), hints)
    if factor == 1.0:
        return _cut(image, trimap, settings.iterations)
    cv2 = require("resize")
    size = (round(width * factor), round(height * factor))
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    # The trimap is enlarged, not made anew, so that a scribble or rectangle covers the same pixels' areas.
    found = _cut(large, cv2.resize(trimap, size, interpolation=cv2.INTER_NEAREST), settings.iterations)
    share = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 0.5, bool)


def _rectangle(settings: GrabCutSettings, width: int, height: int) -> Rect:
    """Return left, top, right, bottom (ends excluded) in pixels of an image of this size."""
    if settings.rect is None:
        # At least one pixel: without any background there is no second colour model.
        across, down = max(1, round(width * settings.margin)), max(1, round(height * settings.margin))
        return across, down, width - across, height - down
    x, y, w, h = settings.rect
    if max(settings.rect) <= 1:
        x, y, w, h = x * width, y * height, w * width, h * height
    left, top = round(x), round(y)
    right, bottom = min(width, max(left + 1, round(x + w))), min(height, max(top + 1, round(y + h)))
    if left >= width or top >= height:
        raise InputError(f"the rectangle {left},{top},{w:g},{h:g} lies outside of the image of {width}×{height}")
    return left, top, right, bottom


def _trimap(rect: Rect, shape: tuple[int, int], hints: NDArray[np.integer] | None) -> NDArray[np.uint8]:
    """Return OpenCV's labels, uint8 [H, W]: sure and probable background and foreground."""
    cv2 = require("grabCut")
    left, top, right, bottom = rect
    if hints is not None and (hints >= WHITE).any():
        rows, columns = np.nonzero(hints >= WHITE)
        left, right = min(left, int(columns.min())), max(right, int(columns.max()) + 1)
        top, bottom = min(top, int(rows.min())), max(bottom, int(rows.max()) + 1)
    trimap = np.full(shape, cv2.GC_BGD, np.uint8)
    trimap[top:bottom, left:right] = cv2.GC_PR_FGD
    if hints is not None:
        trimap[hints >= WHITE] = cv2.GC_FGD
        trimap[hints <= BLACK] = cv2.GC_BGD
    return trimap


def _cut(image: NDArray[np.uint8], trimap: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Minimise the energy from this trimap; bool [H, W]."""
    cv2 = require("grabCut")
    foreground = np.isin(trimap, (cv2.GC_PR_FGD, cv2.GC_FGD))
    if foreground.all():
        raise InputError("the rectangle leaves no background; leave a border, or draw some with --hints")
    if not foreground.any():
        return foreground
    models = np.zeros((1, 65)), np.zeros((1, 65))
    # The models start from k-means, whose generator OpenCV keeps per thread: seeded here, just before its use
    # on this very thread, the result is the same whatever ran before and on however many threads.
    cv2.setRNGSeed(_SEED)
    try:
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        cut, *_ = cv2.grabCut(bgr, trimap.copy(), None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error as error:
        raise InputError(f"GrabCut failed: {' '.join(str(error).split())}") from error
    return np.isin(cut, (cv2.GC_PR_FGD, cv2.GC_FGD))


class GrabCut:
    """GrabCut with its settings and scribbles, as a :class:`pixelsem.regions.registry.Segmenter`."""

    kind: Literal["binary"] = "binary"
    batch = 1
    whole = False

    def __init__(self, settings: GrabCutSettings, ids: Iterable[str] = ()) -> None:
        """Find the scribbles of the images ``ids``; raises :class:`PixelsemError` where they fit none of them."""
        require("grabCut")
        self.settings = settings
        self._hints: dict[str, Path] = {}
        if settings.hints is not None:
            folder = FolderMasks(settings.hints)
            self._hints = {image_id: path for image_id in ids if (path := folder.locate(image_id)) is not None}
            if not self._hints:
                raise PixelsemError(f"{settings.hints}: no scribbles there are named as one of the images")

    @property
    def identity(self) -> dict[str, object]:
        """The settings, and the scribbles by content: a scribble drawn anew makes another run."""
        contents = {image_id: _sha256(path) for image_id, path in self._hints.items()}
        return self.settings.to_dict() | {"hints": contents}

    def __call__(self, images: Sequence[NDArray[np.uint8]], ids: Sequence[str]) -> list[NDArray[np.integer]]:
        """Return the masks, uint8 [H, W] of 0 and 255; see :func:`grabcut`."""
        return [self._mask(image, image_id) for image, image_id in zip(images, ids, strict=True)]

    def _mask(self, image: NDArray[np.uint8], image_id: str) -> NDArray[np.uint8]:
        path = self._hints.get(image_id)
        try:
            inside = grabcut(image, self.settings, None if path is None else read_hints(path))
        except InputError as error:
            raise InputError(f"{path}: {error}" if path is not None else f"{image_id}: {error}") from error
        return np.where(inside, 255, 0).astype(np.uint8)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PixelsemError(f"{path}: cannot be read: {error.strerror}") from error
