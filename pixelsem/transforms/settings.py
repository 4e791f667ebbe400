"""Settings of the image transforms. Imports nothing heavy.

dong2020, §4.2, names the transforms and the ranges of their strengths; what it leaves open is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option


@dataclass(frozen=True)
class ResizeSettings(Settings):
    """Resize to 1/γ of both sides and back (dong2020: γ from 1 to 3)."""

    gamma: float = option(2.0, "Factor γ by which both sides shrink before they grow back.", low=1, high=64)
    interpolation: Literal["bilinear", "bicubic"] = option(
        "bilinear", "How pixels are interpolated, both ways; antialiased when shrinking."
    )


@dataclass(frozen=True)
class JpegSettings(Settings):
    """Compress as JPEG and decode again (Das et al. 2017; dong2020: q from 95 to 5)."""

    quality: int = option(75, "Quality factor q of libjpeg.", low=1, high=100)
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = option(
        "4:2:0", "Resolution of the colour channels against that of the luma."
    )


@dataclass(frozen=True)
class DnnJpegSettings(Settings):
    """Quantise the DCT of each colour channel (feature distillation, Liu et al. 2018).

    At quality 50 the steps are the table's own, 25 in the low 4×4 frequencies and 30 elsewhere; other qualities
    scale them as libjpeg scales its tables.
    """

    quality: int = option(50, "Quality factor q; 50: steps of 25 (low 4×4 frequencies) and 30.", low=1, high=100)


@dataclass(frozen=True)
class PoolSettings(Settings):
    """Pool a window around every pixel: stride 1, the size stays (dong2020, Table 3: kernels 3, 5, 7)."""

    kernel: int = option(3, "Side of the window in pixels; odd.", low=1, high=31)

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a window without a centre."""
        if self.kernel % 2 == 0:
            raise PixelsemError(f"--kernel: {self.kernel} is even; a window around a pixel has an odd side")


@dataclass(frozen=True)
class TvmSettings(Settings):
    """Drop pixels at random and fill them in with least total variation (Guo et al. 2018; as dong2020 sets it)."""

    drop: float = option(0.5, "Probability that a pixel is dropped.", low=0, high=0.99)
    weight: float = option(0.03, "Weight of the total variation, for values in [0, 1].", low=1e-4, high=10)
    iterations: int = option(150, "Steps of the solver.", low=1, high=100_000)
    seed: int = option(0, "Seed of everything that is drawn.", low=0)


@dataclass(frozen=True)
class BitDepthSettings(Settings):
    """Keep a few bits of each colour channel (Xu et al. 2018; dong2020: d from 2 to 4)."""

    depth: int = option(4, "Bits kept per colour channel, d.", low=1, high=8)
