"""Settings of the Jacobian-based saliency map attack. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pixelsem.attacks.settings import AttackSettings
from pixelsem.errors import PixelsemError
from pixelsem.settings import option


@dataclass(frozen=True)
class JsmaSettings(AttackSettings):
    """The Jacobian-based saliency map attack (Papernot et al. 2016), with θ of qian2021 §IV-D."""

    theta: float = option(
        0.3, "What the two values of a pair change by, in units of 0 to 1; below 0 they are made darker.", low=-1,
        high=1, metavar="θ",
    )  # fmt: skip
    gamma: float = option(
        0.145, "Distortion Υ allowed: the share of the image's 3·H·W values that may change, two per step at most.",
        low=0, high=1, metavar="Υ",
    )  # fmt: skip
    steps: int = option(
        10_000, "Steps at most, of one pair and two queries each, where --gamma allows more: it allows 222 at 32×32 "
        "and 10,913 at 224×224.", low=1, high=1_000_000,
    )  # fmt: skip

    def check(self) -> None:
        """Raise :class:`PixelsemError` for steps that lead nowhere."""
        super().check()
        if self.theta == 0:
            raise PixelsemError("--theta: 0 changes nothing")

    @property
    def draws(self) -> bool:
        """Nothing is drawn at random."""
        return False

    @property
    def budget(self) -> int:
        """How many queries one search takes at most, whatever the size of the images."""
        return 2 * (self.steps + 1) + 1

    def budget_in(self, pixels: int) -> int:
        """How many queries one search of an image of so many pixels takes at most: one first, two for every look."""
        return 2 * (self.steps_for(3 * pixels) + 1) + 1

    def steps_for(self, values: int) -> int:
        """Return the steps at most for images of so many values: ⌊Υ·values / 2⌋, or fewer."""
        return min(self.steps, int(self.gamma * values / 2))


#: Papernot et al. 2016 §V: values are changed fully, 14.5 % of them at most.
JSMA_PRESETS: dict[str, dict[str, Any]] = {"papernot2016": {"theta": 1.0, "gamma": 0.145}}
