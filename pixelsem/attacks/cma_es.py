"""The few-pixel attack by CMA-ES (Hansen 2016), restarted where it is stuck (Auger & Hansen 2005)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.covariance import CovarianceAdaptation
from pixelsem.attacks.few_pixel import PixelCoding
from pixelsem.attacks.lockstep import Fittest, Lockstep, Trace
from pixelsem.attacks.settings_black_box import CMASettings
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator

#: A search whose largest step is below this share of the genes' range proposes the same picture again and again.
_SMALLEST_STEP = 1 / 1024


def cma_es(
    searches: Searches, evaluator: Evaluator, settings: CMASettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Search for few-pixel changes that alter the prediction; yield each :class:`Outcome` as it is decided.

    The genes (x, y, r, g, b) × K and the fitness are those of differential evolution: (x, y) spans the region's
    bounding box and is snapped to its nearest pixel. CMA-ES knows no bounds; genes beyond the unit cube are
    mirrored into it when they are decoded. A search starts at a random place, and anew at another where its
    steps have become too small to change a picture or nothing better came for 10 + ⌈30·D/λ⌉ generations (the
    period that Auger & Hansen 2005 watch). The first hit confirmed in fp32 ends it (``early_stop``).
    """
    lockstep = Lockstep(searches, evaluator, settings.budget)
    yield from lockstep.run(_Populations(searches.generators, lockstep, settings), progress)


class _Populations:
    """The populations of searches in lock-step; row i of every tensor belongs to the i-th search that is left."""

    def __init__(self, generators: Sequence[np.random.Generator], lockstep: Lockstep, settings: CMASettings) -> None:
        self.settings = settings
        self.generation = 0
        count, device = len(generators), lockstep.device
        self._generators = list(generators)
        self._coding = PixelCoding(lockstep.images, lockstep.image, lockstep.regions, "encode")
        self._search = CovarianceAdaptation(
            generators, self._places(device), sigma=settings.sigma, offspring=settings.population
        )
        self._patience = 10 + math.ceil(30 * settings.genes / settings.population)
        self._record = torch.full((count,), torch.inf, device=device)  # lowest fitness since the last start
        self._waited = torch.zeros(count, dtype=torch.int64, device=device)  # generations since then
        self._fittest = Fittest(count, device)
        self._asked: Edits | None = None
        self._best = Trace(count, settings.generations, device)
        self._restarted = Trace(count, settings.generations, device, torch.bool)

    @property
    def candidates(self) -> int:
        """Candidates per search so far."""
        return self.generation * self.settings.population

    def _places(self, device: torch.device) -> Tensor:
        """Return a random place in the unit cube for every search, float64 [n, D]."""
        places = np.stack([rng.random(self.settings.genes) for rng in self._generators])
        return torch.from_numpy(places).to(device)

    def ask(self) -> Edits:
        """Return the next generation."""
        self._asked = self._coding.edits(mirrored(self._search.ask()))
        return self._asked

    def tell(self, fitness: Tensor) -> None:
        """Take its fitness, float32 [n, λ]."""
        assert self._asked is not None
        self._search.tell(fitness)
        self._fittest.offer(self._asked, fitness)
        self._best.add(self._fittest.fitness)
        self._restart(torch.nan_to_num(fitness, nan=torch.inf).amin(1))
        self.generation += 1

    def _restart(self, fitness: Tensor) -> None:
        """Start searches anew that are stuck, given the best of this generation, float32 [n]."""
        self._waited = torch.where(fitness < self._record, 0, self._waited + 1)
        self._record = torch.minimum(self._record, fitness)
        variance = self._search.covariance.diagonal(dim1=1, dim2=2).amax(1)
        stuck = (self._waited >= self._patience) | (self._search.sigma * variance.sqrt() < _SMALLEST_STEP)
        # Drawn whether needed or not: which numbers come next must not hang on the last bit of a fitness.
        self._search.restart(stuck, self._places(stuck.device))
        self._record = torch.where(stuck, torch.inf, self._record)
        self._waited = torch.where(stuck, 0, self._waited)
        self._restarted.add(stuck)

    def best(self) -> Edits:
        """Return the fittest candidate of every search, of all starts."""
        return self._fittest.edits()

    def over(self, found: list[bool]) -> list[bool]:
        """Say which searches are over, given which of them have a confirmed hit."""
        if self.generation >= self.settings.generations:
            return [True] * len(found)
        return found if self.settings.early_stop else [False] * len(found)

    def history(self, row: int) -> dict[str, NDArray[Any]]:
        """Return float32 [G] ``best``, the lowest fitness so far, and bool [G] ``restarted``, after each generation."""
        return {"best": self._best.row(row), "restarted": self._restarted.row(row)}

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self._generators = [rng for rng, wanted in zip(self._generators, which.tolist(), strict=True) if wanted]
        which = which.to(self._record.device)
        for part in (self._coding, self._search, self._fittest, self._best, self._restarted):
            part.keep(which)
        self._record, self._waited = self._record[which], self._waited[which]


def mirrored(genes: Tensor) -> Tensor:
    """Return float64 ``genes`` of any size reflected at 0 and 1 until they are between."""
    folded = genes.abs().remainder(2)
    return torch.where(folded > 1, 2 - folded, folded)
