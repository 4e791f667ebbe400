"""GrabCut: the foreground as the cheapest cut between two colour models (wang2021 §III-B, Eqs. 5–8)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pixelsem.errors import InputError, ModelError, PixelsemError
from pixelsem.images import read_hints
from pixelsem.regions.masks import FolderMasks, Kind, MaskSource, region_of
from pixelsem.regions.opencv import require
from pixelsem.regions.settings import GrabCutSettings

if TYPE_CHECKING:
    from pixelsem.regions.registry import Segmenter

Rect = tuple[int, int, int, int]

#: Scribbles at least this bright are surely foreground …
WHITE = 192
#: … at most this bright surely background; what lies between is open.
BLACK = 63

#: Where a soft mask is at least this, there surely is object, …
SURE_OBJECT = 0.9
#: … from here on probably, and below probably not, …
PROBABLE_OBJECT = 0.5
#: … and up to this surely not.
SURE_AROUND = 0.05

#: Where the centre prior ends, in radii of the ellipse inscribed in the rectangle: the best of ellipses from 0.6 to
#: 1.45, with and without a band of probable background around, on 60 photos of ECSSD at half size. On 100 others it
#: does no better than the rectangle (mean IoU 0.576 against 0.588, standard error of the difference 0.010).
CENTRE_RADIUS = 1.2

_MARGIN = 0.04

_SEED = 20210403


def grabcut(
    image: NDArray[np.uint8],
    settings: GrabCutSettings | None = None,
    hints: NDArray[np.integer] | None = None,
    prior: NDArray[np.floating] | None = None,
) -> NDArray[np.bool_]:
    """Return the foreground of one image, bool [H, W].

    ``image`` is uint8 [H, W, 3] RGB. The energy of Eq. 5 (data term: two mixtures of five Gaussians over the
    colours, Eqs. 6 and 7; smoothness: contrast between neighbours, Eq. 8) is minimised ``iterations`` times.
    What lies outside of the rectangle is sure background, and with ``init`` of ``center-prior`` its corners, too:
    what is outside of the ellipse inscribed in it, widened to :data:`CENTRE_RADIUS`. The rest is probable foreground.

    A ``prior``, float [H, W] in [0, 1], takes the rectangle's place: how likely each pixel is object. From
    :data:`SURE_OBJECT` on it surely is, from :data:`PROBABLE_OBJECT` on probably, up to :data:`SURE_AROUND` surely
    not. It is what settings with ``init`` of ``saliency`` or a ``prior`` ask for, and no others take.

    ``hints``, integers [H, W] in [0, 255], are the paper's scribbles (§IV-B): at least :data:`WHITE` is surely
    foreground, at most :data:`BLACK` surely background; they win over what the cut starts from, and the rectangle is
    widened to hold every white one.

    The result depends on the arguments only: not on the thread, or on what was segmented before. Where there
    is nothing to cut (no pixel left to one side), the answer is all one side: an image under 3 pixels a side
    has no foreground. Raises :class:`InputError` for hints or a prior of another size, a rectangle outside of
    the image or one that leaves no background; :class:`PixelsemError` where settings and prior do not belong together.
    """
    settings = settings or GrabCutSettings()
    if (prior is None) == settings.from_mask:
        raise PixelsemError("a prior is given to GrabCut exactly where its settings say that it starts from a mask")
    height, width = image.shape[:2]
    for name, given in (("hints", hints), ("prior", prior)):
        if given is not None and given.shape != (height, width):
            plural = "are" if name == "hints" else "is"
            raise InputError(f"the {name} {plural} {given.shape[1]}×{given.shape[0]}, the image is {width}×{height}")
    if min(height, width) < 3 and settings.rect is None and hints is None:
        return np.zeros((height, width), bool)
    trimap = _start(settings, (height, width), prior, hints)
    factor = max(1.0, settings.upscale / min(height, width))
    if factor == 1.0:
        return _cut(image, trimap, settings.iterations)
    cv2 = require("resize")
    size = (round(width * factor), round(height * factor))
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    # The trimap is enlarged, not made anew, so that a scribble or rectangle covers the same pixels' areas.
    found = _cut(large, cv2.resize(trimap, size, interpolation=cv2.INTER_NEAREST), settings.iterations)
    share = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 0.5, bool)


def _start(
    settings: GrabCutSettings,
    shape: tuple[int, int],
    prior: NDArray[np.floating] | None,
    hints: NDArray[np.integer] | None,
) -> NDArray[np.uint8]:
    """Return OpenCV's labels, uint8 [H, W]: sure and probable background and foreground."""
    cv2 = require("grabCut")
    if prior is not None:
        trimap = _prior_trimap(prior)
    else:
        rect = _widened(_rectangle(settings, shape[1], shape[0]), hints)
        trimap = _rectangle_trimap(rect, shape) if settings.init == "rect" else _centre_trimap(rect, shape)
    if hints is not None:
        trimap[hints >= WHITE] = cv2.GC_FGD
        trimap[hints <= BLACK] = cv2.GC_BGD
    if prior is None and _is_foreground(trimap).all():
        raise InputError("the rectangle leaves no background; leave a border, or draw some with --hints")
    return trimap


def _rectangle(settings: GrabCutSettings, width: int, height: int) -> Rect:
    """Return left, top, right, bottom (ends excluded) in pixels of an image of this size."""
    if settings.rect is None:
        margin = _MARGIN if settings.margin is None else settings.margin
        # At least one pixel: without any background there is no second colour model.
        across, down = max(1, round(width * margin)), max(1, round(height * margin))
        return across, down, width - across, height - down
    x, y, w, h = settings.rect
    if max(settings.rect) <= 1:
        x, y, w, h = x * width, y * height, w * width, h * height
    left, top = round(x), round(y)
    right, bottom = min(width, max(left + 1, round(x + w))), min(height, max(top + 1, round(y + h)))
    if left >= width or top >= height:
        raise InputError(f"the rectangle {left},{top},{w:g},{h:g} lies outside of the image of {width}×{height}")
    return left, top, right, bottom


def _widened(rect: Rect, hints: NDArray[np.integer] | None) -> Rect:
    """Return the rectangle that holds the white hints, too."""
    if hints is None or not (hints >= WHITE).any():
        return rect
    left, top, right, bottom = rect
    rows, columns = np.nonzero(hints >= WHITE)
    left, right = min(left, int(columns.min())), max(right, int(columns.max()) + 1)
    top, bottom = min(top, int(rows.min())), max(bottom, int(rows.max()) + 1)
    return left, top, right, bottom


def _rectangle_trimap(rect: Rect, shape: tuple[int, int]) -> NDArray[np.uint8]:
    cv2 = require("grabCut")
    left, top, right, bottom = rect
    trimap = np.full(shape, cv2.GC_BGD, np.uint8)
    trimap[top:bottom, left:right] = cv2.GC_PR_FGD
    return trimap


def _centre_trimap(rect: Rect, shape: tuple[int, int]) -> NDArray[np.uint8]:
    cv2 = require("grabCut")
    left, top, right, bottom = rect
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    across = (x - (left + right) / 2) / ((right - left) / 2)
    down = (y - (top + bottom) / 2) / ((bottom - top) / 2)
    inside = (np.hypot(across, down) < CENTRE_RADIUS) & (np.maximum(abs(across), abs(down)) < 1)
    return np.asarray(np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD), np.uint8)


def _prior_trimap(prior: NDArray[np.floating]) -> NDArray[np.uint8]:
    cv2 = require("grabCut")
    trimap = np.where(prior >= PROBABLE_OBJECT, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    trimap[prior >= SURE_OBJECT] = cv2.GC_FGD
    trimap[prior <= SURE_AROUND] = cv2.GC_BGD
    return np.asarray(trimap, np.uint8)


def _is_foreground(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    cv2 = require("grabCut")
    return np.isin(labels, (cv2.GC_PR_FGD, cv2.GC_FGD))


def _cut(image: NDArray[np.uint8], trimap: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Minimise the energy from this trimap; bool [H, W]."""
    cv2 = require("grabCut")
    foreground = _is_foreground(trimap)
    if foreground.all() or not foreground.any():
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
    return _is_foreground(cut)


class GrabCut:
    """GrabCut with its settings, scribbles and masks to start from, as a ``Segmenter`` of the registry."""

    kind: Literal["binary"] = "binary"
    batch = 1
    whole = False

    def __init__(self, settings: GrabCutSettings, ids: Iterable[str] = ()) -> None:
        """Find scribbles and masks of the images ``ids``; raises :class:`PixelsemError` where they fit none of them."""
        require("grabCut")
        ids = list(ids)
        self.settings = settings
        self._hints: dict[str, Path] = {}
        if settings.hints is not None:
            folder = FolderMasks(settings.hints)
            self._hints = {image_id: path for image_id in ids if (path := folder.locate(image_id)) is not None}
            if not self._hints:
                raise PixelsemError(f"{settings.hints}: no scribbles there are named as one of the images")
        self._prior = _open_prior(settings, ids)

    @property
    def identity(self) -> dict[str, object]:
        """The settings, and scribbles and masks to start from by content: one drawn anew makes another run."""
        contents = {image_id: _sha256(path) for image_id, path in self._hints.items()}
        prior = None if self._prior is None else self._prior.identity
        return self.settings.to_dict() | {"hints": contents, "prior": prior}

    def __call__(self, images: Sequence[NDArray[np.uint8]], ids: Sequence[str]) -> list[NDArray[np.integer]]:
        """Return the masks, uint8 [H, W] of 0 and 255; see :func:`grabcut`."""
        return [self._mask(image, image_id) for image, image_id in zip(images, ids, strict=True)]

    def _mask(self, image: NDArray[np.uint8], image_id: str) -> NDArray[np.uint8]:
        path = self._hints.get(image_id)
        hints = None if path is None else read_hints(path)
        prior = None if self._prior is None else self._prior.find(image, image_id)
        try:
            inside = grabcut(image, self.settings, hints, prior)
        except InputError as error:
            raise InputError(f"{path}: {error}" if path is not None else f"{image_id}: {error}") from error
        return np.where(inside, 255, 0).astype(np.uint8)


class _SaliencyPrior:
    """What the method u2netp finds."""

    def __init__(self, network: Segmenter) -> None:
        self._network = network

    @property
    def identity(self) -> object:
        """That of the method, weights included."""
        return self._network.identity

    def find(self, image: NDArray[np.uint8], image_id: str) -> NDArray[np.floating]:
        """Return the soft mask, float32 [H, W] in [0, 1]."""
        (values,) = self._network([image], [image_id])
        return to_prior(values, self._network.kind)


class _MaskPrior:
    """Masks of a folder or stage."""

    def __init__(self, source: MaskSource, ids: Sequence[str]) -> None:
        self._source = source
        self._contents = {image_id: self._digest(image_id) for image_id in ids if image_id in source}
        if ids and not self._contents:
            raise PixelsemError(f"{source.path}: no mask there is named as one of the images")

    @property
    def identity(self) -> object:
        """The masks by content."""
        return self._contents

    def _digest(self, image_id: str) -> str:
        """Return the sha256 of a mask; of one that cannot be read, which its image's turn tells, an empty text."""
        try:
            return hashlib.sha256(self._read(image_id).tobytes()).hexdigest()
        except InputError:
            return ""

    def _read(self, image_id: str) -> NDArray[np.floating]:
        entry = self._source.find(image_id)
        if entry is None:
            raise InputError(f"{image_id}: has no mask in {self._source.path} to start from")
        return to_prior(entry.values, entry.kind, entry.threshold)

    def find(self, image: NDArray[np.uint8], image_id: str) -> NDArray[np.floating]:
        """Return the mask, float32 [H, W] in [0, 1]; raises :class:`InputError` where none can be read."""
        return self._read(image_id)


def _open_prior(settings: GrabCutSettings, ids: Sequence[str]) -> _MaskPrior | _SaliencyPrior | None:
    if settings.prior is not None:
        return _MaskPrior(MaskSource.open(settings.prior), ids)
    if settings.init != "saliency":
        return None
    # Here, as the registry's methods take long to import.
    from pixelsem.regions.registry import METHODS, open_segmenter

    try:
        return _SaliencyPrior(open_segmenter("u2netp", METHODS["u2netp"].settings(), ids))
    except ModelError as error:
        raise ModelError(
            "--init saliency starts from u2netp, and this package has no weights of it; make masks with --method "
            "u2netp --weights FILE, and give their stage with --prior"
        ) from error


def to_prior(values: NDArray[np.integer], kind: Kind, threshold: float = 0.5) -> NDArray[np.float32]:
    """Return a mask, integers [H, W], as what GrabCut starts from: float32 [H, W] in [0, 1].

    A soft one is scaled so that ``threshold``, the share of 65535 from which it is foreground, comes to 0.5. What
    others hold is only probable, 0.75 in the foreground and 0.25 in the background: else nothing is left to cut.
    """
    if kind == "soft":
        return np.interp(values / 65535, [0, threshold, 1], [0, 0.5, 1]).astype(np.float32)
    return np.where(region_of(values, kind, "foreground"), np.float32(0.75), np.float32(0.25))


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PixelsemError(f"{path}: cannot be read: {error.strerror}") from error
