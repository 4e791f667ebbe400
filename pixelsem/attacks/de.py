"""The few-pixel attack by differential evolution (su2017; region-restricted as in wang2021 §III-D)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.evolution import Evolution
from pixelsem.attacks.few_pixel import GENES, PixelCoding, colour_genes
from pixelsem.attacks.lockstep import Lockstep
from pixelsem.attacks.settings import DESettings
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator


def differential_evolution(
    searches: Searches, evaluator: Evaluator, settings: DESettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Search for few-pixel changes that alter the prediction; yield each :class:`Outcome` as it is decided.

    The fitness is the confidence of the label, or minus that of the target (wang2021 §IV-B). After every
    generation, the initial population included, candidates that hit are confirmed in fp32, the fittest
    first; the first confirmed one ends its search (``early_stop``, ``stop='hit'``). Otherwise the fittest
    confirmed hit is returned, or the fittest member where there was none.
    """
    lockstep = Lockstep(searches, evaluator, settings.budget)
    yield from lockstep.run(_Population(searches.generators, lockstep, settings), progress)


class _Population:
    """The populations of searches in lock-step; row i of every tensor belongs to the i-th search that is left."""

    def __init__(self, generators: Sequence[np.random.Generator], lockstep: Lockstep, settings: DESettings) -> None:
        self.settings = settings
        self._lockstep = lockstep
        self._coding = PixelCoding(lockstep.images, lockstep.image, lockstep.regions, settings.constraint)
        colours = colour_genes(settings.pixels)
        self._evolution = Evolution(
            generators, GENES * settings.pixels, settings, normal=colours, device=lockstep.device
        )
        self._histories = [_History() for _ in generators]

    @property
    def generation(self) -> int:
        """Populations evaluated so far."""
        return self._evolution.generation

    @property
    def candidates(self) -> int:
        """Candidates per search in them."""
        return self.generation * self.settings.population

    def ask(self) -> Edits:
        """Return the next generation."""
        return self._coding.edits(self._evolution.ask())

    def tell(self, fitness: Tensor) -> None:
        """Take its fitness, float32 [n, P]."""
        self._evolution.tell(fitness)
        for history, record in zip(self._histories, self._records(), strict=True):
            history.add(record)

    def _records(self) -> list[dict[str, Any]]:
        """Return what the history notes of this generation, for every search."""
        fitness = self._evolution.fitness.cpu().numpy()
        known = np.where(np.isfinite(fitness), fitness, np.nan)
        columns: dict[str, Any] = {"best": fitness.min(1), "mean": np.nanmean(known, 1)}
        if self.generation > 1:
            columns["accepted"] = np.packbits(self._evolution.accepted.cpu().numpy(), axis=1)
            columns["close"] = np.packbits(self._evolution.close.cpu().numpy(), axis=1)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def best(self) -> Edits:
        """Return the fittest member of every search."""
        genes, _ = self._evolution.best()
        return self._coding.edits(genes[:, None, :])

    def over(self, found: list[bool]) -> list[bool]:
        """Say which searches are over, given which of them have a confirmed hit."""
        settings = self.settings
        if self.generation >= settings.generations:
            return [True] * len(found)
        if not settings.early_stop:
            return [False] * len(found)
        if settings.stop == "hit":
            return found
        limit = torch.where(self._lockstep.targets >= 0, -settings.stop_target, settings.stop_true)
        _, best = self._evolution.best()
        return [bool(over) for over in (best <= limit).tolist()]

    def history(self, row: int) -> dict[str, NDArray[Any]]:
        """Return float32 [G] ``best`` and ``mean``, and uint8 [G − 1, ⌈P / 8⌉] ``accepted`` and ``close``."""
        return self._histories[row].arrays(self.settings.population)

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self._histories = [h for h, wanted in zip(self._histories, which.tolist(), strict=True) if wanted]
        self._evolution.keep(which)
        self._coding.keep(which.to(self._lockstep.device))


class _History:
    """How one search has gone so far."""

    def __init__(self) -> None:
        self._lists: dict[str, list[Any]] = {"best": [], "mean": [], "accepted": [], "close": []}

    def add(self, generation: dict[str, Any]) -> None:
        """Append one generation: best and mean fitness, and (after the first) which trials were accepted or close."""
        for name, value in generation.items():
            self._lists[name].append(value)

    def arrays(self, population: int) -> dict[str, NDArray[Any]]:
        """Return all of it, for populations of that size."""
        width = -(-population // 8)
        packed = {k: np.array(self._lists[k], np.uint8).reshape(-1, width) for k in ("accepted", "close")}
        return {**{k: np.array(self._lists[k], np.float32) for k in ("best", "mean")}, **packed}
