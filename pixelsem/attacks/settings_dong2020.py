"""Settings of the fast gradient methods of dong2020. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixelsem.attacks.settings import AttackSettings
from pixelsem.errors import PixelsemError
from pixelsem.settings import option

_METHODS = ("slic", "lsc", "seeds")
_SIZE = 5


@dataclass(frozen=True)
class FgmSettings(AttackSettings):
    """The fast gradient method: one step along the gradient, of the length that the budget allows."""

    delta: float = option(
        4.0, "Budget δ in units of 0 to 255: the L2 norm of the change is at most ε = δ·√(3·H·W), those of the whole "
        "image, whatever the region. dong2020 compares 2, 4, 6, 8 and 16.", low=0, high=255, metavar="δ",
    )  # fmt: skip

    @property
    def steps(self) -> int:
        """Steps T, each of the length α = ε/T."""
        return 1

    @property
    def momentum(self) -> float:
        """How much of the gradients before is kept (μ of Eq. 5)."""
        return 0.0

    @property
    def early_stop(self) -> bool:
        """Does a search end with its first confirmed hit?"""
        return False

    @property
    def draws(self) -> bool:
        """Nothing is drawn at random."""
        return False

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.steps


@dataclass(frozen=True)
class IFgmSettings(FgmSettings):
    """The iterative fast gradient method (Kurakin et al. 2017; dong2020 §3.3)."""

    steps: int = option(10, "Steps T, each of the length α = ε/T.", low=1, high=100_000)
    early_stop: bool = option(
        False,
        "End a search with its first confirmed hit, which may use less than the budget; the paper runs all steps.",
    )


@dataclass(frozen=True)
class MiFgmSettings(IFgmSettings):
    """The iterative fast gradient method with momentum (Dong et al. 2018)."""

    momentum: float = option(
        1.0, "Decay μ of the gradients before, each divided by its L1 norm (Eq. 5).", low=0, metavar="μ"
    )


@dataclass(frozen=True)
class SaFgmSettings(FgmSettings):
    """What makes a fast gradient method superpixel-guided and attentional (dong2020 §3.3)."""

    superpixels: str = option(
        "slic", "Pixels that change alike: found by slic, lsc or seeds at the model's resolution; or a segmentation "
        "stage or a folder of label maps.", metavar="slic|lsc|seeds|PATH",
    )  # fmt: skip
    size: int = option(
        _SIZE, "Grid interval: superpixels are of about S×S pixels before they are merged.", low=2, high=4096,
        metavar="S",
    )  # fmt: skip
    merge_threshold: float = option(
        0.0, "Make neighbouring superpixels one where their mean CIELAB colours (L of 0 to 100) differ by less than "
        "β, and so on from neighbour to neighbour; 0: never. dong2020 compares 0, 2 and 4.", low=0.0, metavar="β",
    )  # fmt: skip
    # 4/12: the best of 0 to 11/12 in dong2020 (§4.4, Figure 8b).
    phi: float = option(
        4 / 12, "Only pixels with at least this share of the highest attention of the class change (Eq. 2); 0: all of "
        "the region's.", low=0, high=1, metavar="φ",
    )  # fmt: skip
    layer: str | None = option(
        None, "The module whose feature map the attention is taken from (default: the one that is pooled, or else the "
        "last convolution's).", metavar="NAME",
    )  # fmt: skip
    gradient: Literal["noise", "max", "avg"] = option(
        "noise", "Gradient of a superpixel: noise, with respect to its noise, the sum over its pixels; avg and max "
        "(the largest of them in magnitude) are the paper's ablation (§4.4).",
    )  # fmt: skip

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a grid interval where superpixels are given."""
        super().check()
        if self.maps is not None and self.size != _SIZE:
            raise PixelsemError(f"--size goes with --superpixels {', '.join(_METHODS)}; a PATH's are as they are")

    @property
    def maps(self) -> Path | None:
        """The stage or folder that the superpixels come from, None where a method finds them."""
        return None if self.superpixels in _METHODS else Path(self.superpixels)

    @property
    def mask_inputs(self) -> Mapping[str, Path]:
        """Stages and folders of masks among the options, by the option's field."""
        return {} if self.maps is None else {"superpixels": self.maps}


@dataclass(frozen=True)
class SaiFgmSettings(SaFgmSettings, IFgmSettings):
    """SAI-FGM (dong2020 Eqs. 3 and 4)."""


@dataclass(frozen=True)
class MSaiFgmSettings(SaFgmSettings, MiFgmSettings):
    """M-SAI-FGM (dong2020 Eqs. 3 and 5)."""
