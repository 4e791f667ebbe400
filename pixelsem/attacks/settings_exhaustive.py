"""Settings of the exhaustive one-pixel search. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from pixelsem.attacks.settings import AttackSettings
from pixelsem.errors import PixelsemError
from pixelsem.settings import option

_MOST_LEVELS = 32


@dataclass(frozen=True)
class ExhaustiveSettings(AttackSettings):
    """Every pixel of the region in every one of some colours: the map of where one pixel is enough."""

    colours: str = option(
        "corners",
        "Colours that every pixel is given: corners (the 8 of the colour cube) or grid:N (N levels per channel from "
        "0 to 255, so N³ colours).",
        metavar="corners|grid:N",
    )
    refine: bool = option(
        False, "Then search the colours of the best pixels locally, one channel at a time.", flag="--refine"
    )
    refine_pixels: int = option(10, "With --refine: pixels per search, the best ones.", low=1, high=10_000)
    refine_queries: int = option(1000, "With --refine: queries per search at most.", low=1)

    def check(self) -> None:
        """Raise :class:`PixelsemError` for colours that are none, or options that would have no effect."""
        name, _, number = self.colours.partition(":")
        grid = name == "grid" and number.isdecimal() and 2 <= int(number) <= _MOST_LEVELS
        if self.colours != "corners" and not grid:
            raise PixelsemError(f"--colours: {self.colours!r} is neither corners nor grid:N with N from 2 to 32")
        if not self.refine and (self.refine_pixels, self.refine_queries) != (10, 1000):
            raise PixelsemError("--refine-pixels and --refine-queries go with --refine")

    @property
    def levels(self) -> int:
        """Levels per channel, spread evenly from 0 to 255; the corners are the grid of two."""
        return 2 if self.colours == "corners" else int(self.colours.partition(":")[2])

    @property
    def draws(self) -> bool:
        """Nothing is drawn at random."""
        return False

    @property
    def budget(self) -> int:
        """How many queries a region of a single pixel takes at most; see :meth:`budget_in`."""
        return self.budget_in(1)

    def budget_in(self, pixels: int) -> int:
        """How many queries one search takes at most in a region of so many pixels."""
        return pixels * self.levels**3 + (self.refine_queries if self.refine else 0)

    @property
    def population(self) -> int:
        """How many candidates are scored together."""
        return 4096
