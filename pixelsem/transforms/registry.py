"""Every image transform by name. A new one is one module, one settings dataclass, and one entry here.

Nothing heavy is imported: the command line makes its options from the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from pixelsem.settings import Settings
from pixelsem.transforms.settings import (
    BitDepthSettings,
    DnnJpegSettings,
    JpegSettings,
    PoolSettings,
    ResizeSettings,
    TvmSettings,
)

if TYPE_CHECKING:
    from torch import Tensor


class Transform(Protocol):
    """Transforms a batch of images."""

    def __call__(self, images: Tensor, settings: Any) -> Tensor:
        """Return uint8 [N, 3, H, W] for uint8 [N, 3, H, W], on the same device.

        What comes out for an image depends on its pixels and the settings alone.
        """


class Surrogate(Protocol):
    """A differentiable stand-in for a transform, by which gradients go back through it."""

    def __call__(self, images: Tensor, settings: Any) -> Tensor:
        """Return float [N, 3, H, W] for float [N, 3, H, W] in [0, 1]: the transform but for rounding."""


@dataclass(frozen=True)
class TransformInfo:
    """What there is to know of a transform without running it.

    ``function`` is ``module:name`` under ``pixelsem.transforms``, ``surrogate`` that of its differentiable stand-in:
    empty where gradients go straight through, as if the transform changed nothing (BPDA, Athalye et al. 2018).
    ``main`` is the setting that says how strong it is.
    """

    name: str
    summary: str
    settings: type[Settings]
    function: str
    main: str
    paper: str
    surrogate: str = ""

    @property
    def gradient(self) -> str:
        """How gradients go back through the transform, in words."""
        return "its own gradient" if self.surrogate else "straight through (BPDA)"

    def load(self) -> Transform:
        """Import and return the transform's function."""
        return cast(Transform, _load(self.function))

    def load_surrogate(self) -> Surrogate | None:
        """Import and return the differentiable stand-in; None where gradients go straight through."""
        return cast(Surrogate, _load(self.surrogate)) if self.surrogate else None


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"pixelsem.transforms.{module}"), name)


TRANSFORMS = {
    info.name: info
    for info in (
        TransformInfo(
            name="resize",
            summary="Shrink the image by a factor and enlarge it again.",
            settings=ResizeSettings,
            function="resizing:resize",
            surrogate="resizing:smooth_resize",
            main="gamma",
            paper="dong2020",
        ),
        TransformInfo(
            name="jpeg",
            summary="Compress the image as JPEG and decode it.",
            settings=JpegSettings,
            function="jpeg:jpeg",
            main="quality",
            paper="Das et al. 2017, dong2020",
        ),
        TransformInfo(
            name="dnn-jpeg",
            summary="Quantise the 8×8 DCT of each colour channel (feature distillation).",
            settings=DnnJpegSettings,
            function="distillation:distil",
            main="quality",
            paper="Liu et al. 2018, dong2020",
        ),
        TransformInfo(
            name="avg-pool",
            summary="Replace every pixel by the mean of the window around it.",
            settings=PoolSettings,
            function="pooling:average_pool",
            surrogate="pooling:smooth_average",
            main="kernel",
            paper="dong2020",
        ),
        TransformInfo(
            name="max-pool",
            summary="Replace every pixel by the maximum of the window around it, channel by channel.",
            settings=PoolSettings,
            function="pooling:max_pool",
            surrogate="pooling:smooth_max",
            main="kernel",
            paper="dong2020",
        ),
        TransformInfo(
            name="median",
            summary="Replace every pixel by the median of the window around it, channel by channel.",
            settings=PoolSettings,
            function="pooling:median",
            main="kernel",
            paper="Xu et al. 2018",
        ),
        TransformInfo(
            name="tvm",
            summary="Drop pixels at random and fill them in with least total variation.",
            settings=TvmSettings,
            function="tvm:minimise_variation",
            main="weight",
            paper="Guo et al. 2018, dong2020",
        ),
        TransformInfo(
            name="bit-depth",
            summary="Keep a few bits of each colour channel.",
            settings=BitDepthSettings,
            function="bit_depth:reduce_depth",
            main="depth",
            paper="Xu et al. 2018, dong2020",
        ),
    )
}
