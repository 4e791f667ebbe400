"""Sparse-RS, the few-pixel attack by random search (Croce et al. 2022, L0), restricted to a region."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.evolution import CLOSE
from pixelsem.attacks.lockstep import Fittest, Lockstep, Trace
from pixelsem.attacks.objectives import cross_entropy_of, margin_of, margin_or_cross_entropy_of
from pixelsem.attacks.sampling import RegionPixels, Uniforms, colours_of, numbers_left, subsets
from pixelsem.attacks.settings_black_box import SparseRSSettings
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator

_OBJECTIVES = {"auto": margin_or_cross_entropy_of, "margin": margin_of, "cross-entropy": cross_entropy_of}

#: After how many of 10,000 queries α is divided by what; before the first of them it is undivided.
_SCHEDULE = ((0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20))
_SCHEDULE_QUERIES = 10_000
_CONSTANT = 2  # what the constant schedule divides α by
_NOWHERE = 2**40


def sparse_rs(
    searches: Searches, evaluator: Evaluator, settings: SparseRSSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Search for few-pixel changes that alter the prediction; yield each :class:`Outcome` as it is decided.

    k pixels of the region get random colours; then some of them, fewer and fewer, are given back and as many
    others take their place in new colours, and what does not raise the loss stays. The paper never puts a pixel
    back that was just given back (``replacement='others'``), so that one in the right place with the wrong
    colour may stay so for good; where it may (``'any'``), the search can reach the best candidate from any other.
    The first hit confirmed in fp32 ends a search (``early_stop``). Otherwise the fittest confirmed hit is
    returned, or the fittest candidate where there was none.
    """
    lockstep = Lockstep(searches, evaluator, settings.budget, _OBJECTIVES[settings.loss])
    yield from lockstep.run(_RandomSearch(searches.generators, lockstep, settings), progress)


def pixels_replaced(query: int, settings: SparseRSSettings) -> int:
    """Return how many of the k pixels the candidates from the ``query``-th on (of a restart, from 0) replace.

    The schedule is that of 10,000 queries, stretched to those that a restart has.
    """
    place = query * _SCHEDULE_QUERIES // settings.queries
    divisor = next((value for start, value in reversed(_SCHEDULE) if place > start), 1)
    return max(1, int(settings.alpha / (_CONSTANT if settings.schedule == "constant" else divisor) * settings.pixels))


class _RandomSearch:
    """The current set of pixels of searches in lock-step; row i belongs to the i-th search that is left.

    ``_pixels`` is int64 [n, k], numbers of the region's pixels, ``_colours`` uint8 [n, k, 3], ``_loss`` float32
    [n]; ``_trial`` what was asked about last, as the first two with P candidates each.
    """

    def __init__(
        self, generators: Sequence[np.random.Generator], lockstep: Lockstep, settings: SparseRSSettings
    ) -> None:
        self.settings = settings
        self.generation = self.candidates = 0
        self._query = 0  # candidates since the last restart
        count, device = len(generators), lockstep.device
        self._image = lockstep.image
        # Twice as many as are in use, so that all of them can be replaced.
        self._region = RegionPixels(lockstep.regions, at_least=2 * settings.pixels)
        self._uniforms = Uniforms(generators, device)
        self._pixels = torch.zeros(count, settings.pixels, dtype=torch.int64, device=device)
        self._colours = torch.zeros(count, settings.pixels, 3, dtype=torch.uint8, device=device)
        self._trial = self._pixels[:, None], self._colours[:, None]
        self._loss = torch.full((count,), torch.inf, device=device)
        self._fittest = Fittest(count, device)
        self._asked: Edits | None = None
        steps = settings.restarts * -(-settings.queries // settings.population)
        self._losses = Trace(count, steps, device)
        self._accepted, self._close = (Trace(count, steps, device, torch.bool) for _ in range(2))

    def ask(self) -> Edits:
        """Return new sets of k pixels at the start, else the current ones with some pixels replaced."""
        settings = self.settings
        size = min(settings.population, settings.queries - self._query)
        self._trial = self._replaced(size, pixels_replaced(self._query, settings)) if self._query else self._drawn(size)
        pixels, colours = self._trial
        position = self._region.at(pixels).flatten(0, 1)
        image = self._image[:, None].expand(-1, size).reshape(-1)
        self._asked = Edits(image, position, colours.flatten(0, 1))
        return self._asked

    def _drawn(self, size: int) -> tuple[Tensor, Tensor]:
        pixels = self.settings.pixels
        uniform = self._uniforms.take(size * pixels * 4).view(-1, size, pixels, 4)
        return subsets(uniform[..., 0], self._region.sizes[:, None]), colours_of(
            uniform[..., 1:], self.settings.colours
        )

    def _replaced(self, size: int, count: int) -> tuple[Tensor, Tensor]:
        pixels = self.settings.pixels
        uniform = self._uniforms.take(size * count * 5).view(-1, size, count, 5)
        current = self._pixels[:, None].expand(-1, size, -1)
        place = subsets(uniform[..., 0], pixels)
        # Numbers beyond the region's take no place in it.
        kept, free = current, self._region.sizes[:, None] - pixels
        if self.settings.replacement == "any":
            kept, free = current.scatter(2, place, _NOWHERE + place), free + count
        new = numbers_left(subsets(uniform[..., 1], free), kept)
        colour = colours_of(uniform[..., 2:], self.settings.colours)
        colours = self._colours[:, None].expand(-1, size, -1, -1)
        return current.scatter(2, place, new), colours.scatter(2, place[..., None].expand(-1, -1, -1, 3), colour)

    def tell(self, fitness: Tensor) -> None:
        """Take the candidates' losses, float32 [n, P]; of each search the best is accepted if it is no worse."""
        assert self._asked is not None
        fitness = torch.nan_to_num(fitness, nan=torch.inf)
        loss, column = fitness.min(1)
        accepted = loss <= self._loss
        row = torch.arange(len(loss), device=loss.device)
        pixels, colours = (each[row, column] for each in self._trial)
        self._pixels = torch.where(accepted[:, None], pixels, self._pixels)
        self._colours = torch.where(accepted[:, None, None], colours, self._colours)
        self._close.add(self._decided_by_little(fitness, loss))
        self._accepted.add(accepted)
        self._loss = torch.minimum(loss, self._loss)
        self._losses.add(self._loss)
        self._fittest.offer(self._asked, fitness)
        self._count(fitness.shape[1])

    def _decided_by_little(self, fitness: Tensor, loss: Tensor) -> Tensor:
        """Return bool [n]: could the choice have come out otherwise, had candidates been batched otherwise?"""
        rivals = torch.cat([fitness, self._loss[:, None]], 1)
        tie = CLOSE * loss.abs().clamp(min=1)
        return ((rivals - loss[:, None]).abs() <= tie[:, None]).sum(1) > 1

    def _count(self, candidates: int) -> None:
        self.generation += 1
        self.candidates += candidates
        self._query += candidates
        if self._query == self.settings.queries:
            self._query = 0
            self._loss = torch.full_like(self._loss, torch.inf)

    def best(self) -> Edits:
        """Return the best candidate of every search, of all restarts."""
        return self._fittest.edits()

    def over(self, found: list[bool]) -> list[bool]:
        """Say which searches are over, given which of them have a confirmed hit."""
        if self.candidates >= self.settings.budget:
            return [True] * len(found)
        return found if self.settings.early_stop else [False] * len(found)

    def history(self, row: int) -> dict[str, NDArray[Any]]:
        """Return float32 [G] ``best``, the loss that each step ends with, and what the steps but the first decided.

        ``accepted``: was the set replaced; ``close``: by next to nothing; packed bits, uint8 [G − 1, 1] each.
        """
        bits = {"accepted": self._accepted, "close": self._close}
        return {
            "best": self._losses.row(row),
            **{name: np.packbits(each.row(row)[1:, None], axis=1) for name, each in bits.items()},
        }

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        which = which.to(self._image.device)
        parts = (self._region, self._uniforms, self._fittest, self._losses, self._accepted, self._close)
        for part in parts:
            part.keep(which)
        for name in ("_image", "_pixels", "_colours", "_loss"):
            setattr(self, name, getattr(self, name)[which])
