"""Settings of the black-box attacks beside differential evolution. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pixelsem.attacks.settings import AttackSettings
from pixelsem.errors import PixelsemError
from pixelsem.settings import option

_GENES = 5  # x, y, r, g, b


@dataclass(frozen=True)
class SparseRSSettings(AttackSettings):
    """Few-pixel attack by random search (Sparse-RS, Croce et al. 2022, L0)."""

    pixels: int = option(1, "Pixels k that may change.", low=1, high=1024, metavar="k")
    queries: int = option(
        10_000,
        "Candidates per restart at most, the initial one included; one that came before costs no query.",
        low=1,
        high=10_000_000,
    )
    restarts: int = option(1, "Times the search starts anew where it finds nothing.", low=1, high=1000)
    alpha: float = option(
        0.3, "Share α of the k pixels that is drawn anew at first, one pixel at least.", low=0, high=1, metavar="α"
    )
    schedule: Literal["decreasing", "constant"] = option(
        "decreasing",
        "How the share goes on: divided by 2, 4, 5, 6, 8, 10, 12, 15 and 20 after the paper's 0, 50, 200, 500, 1,000, "
        "2,000, 4,000, 6,000 and 8,000 of 10,000 queries; or always α/2.",
    )
    replacement: Literal["any", "others"] = option(
        "any",
        "Which pixels take the place of those given back: any that are free, or only others than these (the paper's, "
        "which can leave a pixel with the wrong colour for good).",
    )
    loss: Literal["auto", "margin", "cross-entropy"] = option(
        "auto",
        "What is minimised: the margin of the label's logit above the others, or the cross-entropy, which falls as "
        "the confidence does; auto is the paper's, margin untargeted and cross-entropy targeted.",
    )
    colours: Literal["corners", "uniform"] = option(
        "corners", "Colours of changed pixels: each channel 0 or 255, or any of 0 to 255."
    )
    early_stop: bool = option(True, "End a search with its first confirmed hit; --no-early-stop uses all queries.")
    candidates_per_step: int = option(
        1, "Candidates compared per step, of which the best may be accepted; the paper's is 1.", low=1, high=4096
    )

    @property
    def population(self) -> int:
        """Candidates of one search that are scored together."""
        return min(self.candidates_per_step, self.queries)

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.queries * self.restarts


#: The paper's settings untargeted and targeted, whatever the number of pixels.
SPARSE_RS_PRESETS: dict[str, dict[str, Any]] = {
    "croce2022": {"queries": 10_000, "alpha": 0.3, "replacement": "others"},
    "croce2022-targeted": {"queries": 100_000, "alpha": 0.1, "replacement": "others"},
}


@dataclass(frozen=True)
class RandomSettings(AttackSettings):
    """Few-pixel attack by chance: independent draws."""

    pixels: int = option(1, "Pixels k that may change.", low=1, high=1024, metavar="k")
    queries: int = option(40_000, "Candidates at most; one that came before costs no query.", low=1, high=10_000_000)
    colours: Literal["corners", "uniform"] = option(
        "uniform", "Colours of changed pixels: any of 0 to 255, or each channel 0 or 255."
    )
    early_stop: bool = option(True, "End a search with its first confirmed hit; --no-early-stop uses all queries.")
    candidates_per_step: int = option(
        100, "Candidates scored together; a hit among them is seen after the last.", low=1, high=4096
    )

    @property
    def population(self) -> int:
        """Candidates of one search that are scored together."""
        return min(self.candidates_per_step, self.queries)

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.queries


@dataclass(frozen=True)
class CMASettings(AttackSettings):
    """Few-pixel attack by CMA-ES over (x, y, r, g, b) × K pixels (Hansen 2016)."""

    pixels: int = option(1, "Pixels that may change.", low=1, high=64)
    queries: int = option(
        40_000,
        "Candidates at most, in whole generations; one that came before costs no query.",
        low=4,
        high=10_000_000,
    )
    offspring: int | None = option(
        None, "Candidates per generation, λ (default: Hansen's, 4 + 3·ln of the number of genes).", low=4, metavar="λ"
    )
    sigma: float = option(0.3, "First step size σ, in units of the genes' range.", low=0.001, high=10, metavar="σ")
    early_stop: bool = option(True, "End a search with its first confirmed hit; --no-early-stop uses all queries.")

    @property
    def genes(self) -> int:
        """Dimensions of the search."""
        return _GENES * self.pixels

    @property
    def population(self) -> int:
        """Candidates per generation."""
        return self.offspring or 4 + math.floor(3 * math.log(self.genes))

    @property
    def generations(self) -> int:
        """Generations at most."""
        return self.queries // self.population

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.generations * self.population

    def check(self) -> None:
        """Raise :class:`PixelsemError` where there are too few queries for one generation."""
        if not self.generations:
            raise PixelsemError(f"--queries: {self.queries} is less than one generation of {self.population}")
