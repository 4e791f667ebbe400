"""Settings of the attacks that put a visible patch into the image. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import Literal

from pixelsem.attacks.settings import AttackSettings
from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option, option_name

Place = Literal["random", "corner", "region"]
Shape = Literal["square", "circle"]

#: The file that ``attack adv-patch fit`` leaves in its stage.
PATCH_FILE = "patch.png"

_SHARE = "Size of the patch: its share of the image's pixels, to the nearest side. It is cut to the region."
_SHAPE = "Shape of the patch; both have the proportions of the image."
_LR = "Learning rate of Adam, for values of 0 to 1."
_WIDEST_CIRCLE = pi / 4

_PLACE = (
    "Where the patch lies: anywhere that it meets the region; in a corner of the image that does (where none does, as "
    "region); region: where it covers most of the region. Drawn by the seed where there are several."
)


def _check_shape(shape: Shape, share: float) -> None:
    if share <= 0:
        raise PixelsemError("--share: a patch of 0 changes nothing")
    if shape == "circle" and share > _WIDEST_CIRCLE:
        raise PixelsemError(f"--share: a circle covers {_WIDEST_CIRCLE:.3f} of the image at most, not {share}")


def _has_places(shape: Shape, share: float) -> bool:
    """Is a patch smaller than the image, so that its place can be drawn?"""
    return share < (_WIDEST_CIRCLE if shape == "circle" else 1)


@dataclass(frozen=True)
class AdvPatchSettings(AttackSettings):
    """The adversarial patch (Brown et al. 2017), with the settings of qian2021 §IV-D and Fig. 8.

    Their c = 1 is the weight of the only term there is, which Adam's steps do not depend on; it is no option.
    """

    share: float = option(0.15, _SHARE, low=0, high=1)
    shape: Shape = option("square", _SHAPE)
    place: Place = option("random", _PLACE)
    lr: float = option(0.01, _LR, low=0)
    steps: int = option(1000, "Steps.", low=1, high=1_000_000)
    early_stop: bool = option(False, "End a search with its first confirmed hit; the paper runs all steps.")
    patch: Path | None = option(
        None, "Put this patch into every image, and search nothing but a place: a PNG of which what is not "
        "transparent counts, at its own size, or the stage of `attack adv-patch fit`.", metavar="FILE",
    )  # fmt: skip

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a patch that is none, or for options that a given one leaves no use."""
        super().check()
        _check_shape(self.shape, self.share)
        if self.patch is None:
            return
        for field in dataclasses.fields(self):
            if field.name not in ("patch", "place") and getattr(self, field.name) != field.default:
                raise PixelsemError(f"{option_name(field.name)} does not go with --patch, which is as it is")

    @property
    def draws(self) -> bool:
        """Only the place of the patch is drawn at random."""
        return self.patch is not None or _has_places(self.shape, self.share)

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.steps if self.patch is None else 1

    @property
    def patch_file(self) -> Path | None:
        """The PNG that ``patch`` stands for."""
        return self.patch / PATCH_FILE if self.patch is not None and self.patch.is_dir() else self.patch

    @property
    def mask_inputs(self) -> Mapping[str, Path]:
        """The patch that is given, by the option's field: it counts by what it holds."""
        return {} if self.patch_file is None else {"patch": self.patch_file}


@dataclass(frozen=True)
class LavanSettings(AttackSettings):
    """Localised and visible adversarial noise (Karmon et al. 2018), with the settings of qian2021 §IV-D."""

    share: float = option(0.02, _SHARE, low=0, high=1)
    shape: Shape = option("square", _SHAPE)
    place: Place = option("corner", _PLACE)
    step: float = option(
        5.0, "Step ε in units of 0 to 255: what the noise moves by along the gradient, in the root mean square.", low=0,
        metavar="ε",
    )  # fmt: skip
    steps: int = option(10_000, "Iterations at most.", low=1, high=1_000_000)
    early_stop: bool = option(
        True, "End a search with its first confirmed hit (the paper trains “up to” 10,000 iterations); "
        "--no-early-stop goes on for a larger margin.",
    )  # fmt: skip

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a patch that is none."""
        super().check()
        _check_shape(self.shape, self.share)

    @property
    def draws(self) -> bool:
        """Only the place of the patch is drawn at random."""
        return _has_places(self.shape, self.share)

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.steps


@dataclass(frozen=True)
class PatchFitSettings(Settings):
    """Training of one patch for many images (Brown et al. 2017): the expectation is over images and places."""

    share: float = option(
        0.15, "Size of the patch: its share of the input's pixels, to the nearest side.", low=0, high=1
    )
    shape: Shape = option("square", _SHAPE)
    place: Place = option("random", _PLACE + " In training it is drawn anew for every image of every step.")
    lr: float = option(0.01, _LR, low=0)
    steps: int = option(1000, "Steps.", low=1, high=1_000_000)
    images_per_step: int = option(16, "Images drawn for a step.", low=1, high=4096)

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a patch that is none."""
        super().check()
        _check_shape(self.shape, self.share)


@dataclass(frozen=True)
class PatchGoalOptions(Settings):
    """What a patch that is trained is after."""

    labels: str = option(
        "auto",
        "The class attacked away from: given (the image's class folder), predicted, FILE.csv (id,class), or auto: "
        "given where the folder names a class, else predicted.",
        metavar="given|predicted|FILE.csv",
    )
    target: str | None = option(None, "The class to reach (default: any but the image's own).")
