"""The segmentation methods by name. A new one is one module, one settings dataclass and one line here.

Nothing heavy is imported: the command line makes its options from the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol, cast

from pixelsem.errors import PixelsemError
from pixelsem.regions.settings import GrabCutSettings
from pixelsem.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Segmenter(Protocol):
    """A method with its settings, ready for many images."""

    @property
    def batch(self) -> int:
        """How many images it takes at a time: 1, called from several threads at once, or more, from one at a time."""

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

        What comes out for an image does not depend on the others. Raises :class:`pixelsem.errors.InputError`
        where one of them cannot be segmented.
        """


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
