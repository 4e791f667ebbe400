"""Settings of the segmentation methods. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option


@dataclass(frozen=True)
class GrabCutSettings(Settings):
    """GrabCut (Rother et al. 2004), as wang2021 uses it on CIFAR-10 (§III-B, §IV-B)."""

    rect: tuple[float, float, float, float] | None = option(
        None, "Rectangle that holds the object, in pixels, or in fractions of the image where all are at most 1 "
        "(default: the image without a border of --margin).", metavar="X,Y,W,H",
    )  # fmt: skip
    margin: float = option(
        0.04, "Width of the border taken as background, as a fraction of each side.", low=0.0, high=0.49
    )
    iterations: int = option(5, "Rounds of learning the colour models and cutting.", low=1, high=1000)
    # 192: the best of 128 to 256 on photos of known masks shrunk to 32×32. The smoothness term (Eq. 8) grows with
    # the outline and the data term with the area, so that on tiny images the cheapest cut is often nothing.
    upscale: int = option(
        192, "Enlarge an image whose shorter side is under N pixels to N for the cut; 0: never.", low=0, high=4096,
        metavar="N",
    )  # fmt: skip
    hints: Path | None = option(
        None, "Folder of scribbles named as the images: white is object, black is background, mid-grey is open.",
        metavar="DIR",
    )  # fmt: skip

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a rectangle that cannot hold a pixel of any image."""
        if self.rect is None:
            return
        x, y, width, height = self.rect
        if not (x >= 0 and y >= 0 and width > 0 and height > 0):
            raise PixelsemError(f"rect: {_join(self.rect)} is not X,Y,W,H with X, Y of at least 0 and W, H over 0")


def _join(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
