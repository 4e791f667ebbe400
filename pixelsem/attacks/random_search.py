"""The few-pixel attack by chance: independent draws, what any search must beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.lockstep import Fittest, Lockstep, Trace
from pixelsem.attacks.sampling import RegionPixels, Uniforms, colours_of, subsets
from pixelsem.attacks.settings_black_box import RandomSettings
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator


def random_search(
    searches: Searches, evaluator: Evaluator, settings: RandomSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Draw few-pixel changes until one alters the prediction; yield each :class:`Outcome` as it is decided.

    Every candidate is k different pixels of the region, any such set as likely as another, in random colours.
    The fitness, which decides what comes of a search without a hit, is the confidence of the label, or minus
    that of the target. The first hit confirmed in fp32 ends a search (``early_stop``).
    """
    lockstep = Lockstep(searches, evaluator, settings.budget)
    yield from lockstep.run(_Draws(searches.generators, lockstep, settings), progress)


class _Draws:
    """Random candidates of searches in lock-step; row i belongs to the i-th search that is left."""

    def __init__(self, generators: Sequence[np.random.Generator], lockstep: Lockstep, settings: RandomSettings) -> None:
        self.settings = settings
        self.generation = self.candidates = 0
        self._image = lockstep.image
        self._region = RegionPixels(lockstep.regions, at_least=settings.pixels)
        self._uniforms = Uniforms(generators, lockstep.device)
        self._fittest = Fittest(len(generators), lockstep.device)
        self._asked: Edits | None = None
        self._best = Trace(len(generators), -(-settings.queries // settings.population), lockstep.device)

    def ask(self) -> Edits:
        """Return the next candidates, fewer at the end of the budget."""
        settings, pixels = self.settings, self.settings.pixels
        size = min(settings.population, settings.queries - self.candidates)
        uniform = self._uniforms.take(size * pixels * 4).view(-1, size, pixels, 4)
        position = self._region.at(subsets(uniform[..., 0], self._region.sizes[:, None]))
        colour = colours_of(uniform[..., 1:], settings.colours)
        image = self._image[:, None].expand(-1, size).reshape(-1)
        self._asked = Edits(image, position.flatten(0, 1), colour.flatten(0, 1))
        return self._asked

    def tell(self, fitness: Tensor) -> None:
        """Take their fitness, float32 [n, P]."""
        assert self._asked is not None
        self._fittest.offer(self._asked, fitness)
        self._best.add(self._fittest.fitness)
        self.generation += 1
        self.candidates += fitness.shape[1]

    def best(self) -> Edits:
        """Return the fittest candidate of every search."""
        return self._fittest.edits()

    def over(self, found: list[bool]) -> list[bool]:
        """Say which searches are over, given which of them have a confirmed hit."""
        if self.candidates >= self.settings.queries:
            return [True] * len(found)
        return found if self.settings.early_stop else [False] * len(found)

    def history(self, row: int) -> dict[str, NDArray[Any]]:
        """Return float32 [G] ``best``, the lowest fitness up to each step."""
        return {"best": self._best.row(row)}

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        which = which.to(self._image.device)
        for part in (self._region, self._uniforms, self._fittest, self._best):
            part.keep(which)
        self._image = self._image[which]
