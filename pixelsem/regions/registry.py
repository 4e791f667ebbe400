"""The segmentation methods by name. A new one is one module, one settings dataclass and one line here.

Nothing heavy is imported: the command line makes its options from the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from pixelsem.errors import PixelsemError
from pixelsem.regions.settings import (
    CamSettings,
    GrabCutSettings,
    LscSettings,
    RembgSettings,
    SaliencySettings,
    SeedsSettings,
    SlicSettings,
)
from pixelsem.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Segmenter(Protocol):
    """A method with its settings, ready for many images."""

    @property
    def batch(self) -> int:
        """How many images it takes at a time."""

    @property
    def whole(self) -> bool:
        """Do the masks divide the whole image, so that a foreground of all of it is as it should be?"""

    @property
    def kind(self) -> Literal["binary", "soft", "labels"]:
        """What the values of its masks mean (see :class:`pixelsem.regions.masks.MaskEntry`)."""

    @property
    def identity(self) -> dict[str, object]:
        """Plain data: all that can change the masks beside the images, contents of files included."""

    def __call__(self, images: Sequence[NDArray[np.uint8]], ids: Sequence[str]) -> list[NDArray[np.integer]]:
        """Return the mask, integers [H, W] in the kind's range, of each image, uint8 [H, W, 3] RGB of any sizes.

        What comes out for an image does not depend on the others. It is called from several threads at once; a network,
        which uses all cores by itself, is kept to one of them. Raises :class:`pixelsem.errors.InputError`
        where one of them cannot be segmented.
        """


@runtime_checkable
class CutsSoftMasks(Protocol):
    """A segmenter whose soft masks have their foreground elsewhere than from half of 65535."""

    @property
    def threshold(self) -> float:
        """The share of 65535, in [0, 1], from which a pixel is foreground."""


@runtime_checkable
class ShowsClass(Protocol):
    """A segmenter whose masks show where a classifier sees a class, another one from image to image."""

    def shown(self, image_id: str) -> str:
        """Return the class that the latest mask of an image shows; asked once per mask."""


@runtime_checkable
class AsksModel(Protocol):
    """A segmenter whose masks come from a model that the user may choose."""

    @property
    def model(self) -> dict[str, object]:
        """Plain data for ``stage.yaml``: the model's name, its digest, and what of it is looked at."""

    @property
    def remarks(self) -> list[str]:
        """What the user should know before the masks are made, one line each."""


@dataclass(frozen=True)
class Method:
    """One method: its settings, and ``module:factory`` below ``pixelsem.regions`` that opens a segmenter.

    The factory takes the settings and the ids of the images to come. ``modules`` are those whose versions
    are noted.
    """

    settings: type[Settings]
    factory: str
    modules: tuple[str, ...]


METHODS = {
    "grabcut": Method(GrabCutSettings, "grabcut:GrabCut", ("numpy", "cv2")),
    "u2net": Method(SaliencySettings, "saliency:open_u2net", ("numpy", "torch")),
    "u2netp": Method(SaliencySettings, "saliency:open_u2netp", ("numpy", "torch")),
    "rembg": Method(RembgSettings, "rembg:Rembg", ("numpy", "onnxruntime")),
    "cam": Method(CamSettings, "cam:open_cam", ("numpy", "torch", "torchvision")),
    "gradcam": Method(CamSettings, "cam:open_gradcam", ("numpy", "torch", "torchvision")),
    "slic": Method(SlicSettings, "superpixels:Superpixels", ("numpy", "scipy", "cv2")),
    "lsc": Method(LscSettings, "superpixels:Superpixels", ("numpy", "scipy", "cv2")),
    "seeds": Method(SeedsSettings, "superpixels:Superpixels", ("numpy", "scipy", "cv2")),
}


def open_segmenter(method: str, settings: Settings, ids: Iterable[str]) -> Segmenter:
    """Make the segmenter of a method of :data:`METHODS` for the images named ``ids``.

    Raises :class:`PixelsemError` for an unknown method, or where the settings do not fit the images.
    """
    if method not in METHODS:
        raise PixelsemError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    module, factory = METHODS[method].factory.split(":")
    make = getattr(import_module(f"pixelsem.regions.{module}"), factory)
    return cast(Segmenter, make(settings, list(ids)))
