"""Differential evolution of many independent populations in lock-step (wang2021 §III-C, Eqs. 10–13).

The search is asked for candidates and told their fitness, so that it serves any vectorised objective::

    search = Evolution(generators, dimensions=5, settings=EvolutionSettings())
    for _ in range(settings.generations):
        search.tell(objective(search.ask()))

Genes lie in the unit cube [0, 1]; what they mean is the caller's business. All searches are rows of the
same tensors; the only loop over searches draws each one's random numbers from its own generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixelsem.attacks.settings import EvolutionSettings

#: Two fitness values this close may compare either way, depending on how candidates were batched.
CLOSE = 1e-5

_PICKS = 5  # most random members that a strategy combines (rand/2)


@dataclass(frozen=True)
class _Draws:
    """The random numbers of one generation, [n, …] over searches; ``u`` values are uniform in [0, 1)."""

    factor: Tensor  # [n, 1, 1], F (dithered)
    picks: Tensor  # int64 [n, P, 5], members, all different from each other and from the parent
    crossover: Tensor  # u, [n, P, D]
    forced: Tensor  # int64 [n, P], the gene that always comes from the mutant
    fresh: Tensor  # u, [n, P, D], replaces genes that leave their range


class Evolution:
    """n searches over D genes with P members each.

    :ivar genes: float64 [n, P, D] in [0, 1], the populations.
    :ivar fitness: float32 [n, P], lower is better; NaN counts as worst.
    :ivar trials: float64 [n, P, D], what :meth:`ask` returned last.
    :ivar accepted: bool [n, P], which trials replaced their parents in the last :meth:`tell`.
    :ivar close: bool [n, P], where trial and parent differed by at most :data:`CLOSE`.
    :ivar generation: populations evaluated so far; the initial one is generation 1.

    ``normal`` marks genes (bool [D]) that ``init='su'`` draws from N(128, 127) / 255 instead of uniformly.
    """

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        dimensions: int,
        settings: EvolutionSettings,
        *,
        normal: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.settings = settings
        self.generators = list(generators)
        self.device = device or torch.device("cpu")
        self.dimensions = dimensions
        self.generation = 0
        self.trials = self._initial(normal)
        shape = self.trials.shape[:2]
        self.genes = self.trials
        self.fitness = torch.full(shape, torch.inf, device=self.device)
        self.accepted = torch.ones(shape, dtype=torch.bool, device=self.device)
        self.close = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def ask(self) -> Tensor:
        """Return the candidates to score next, float64 [n, P, D]: the initial population, then trial vectors."""
        if self.generation:
            draws = self._draw()
            mutants = self._repair(self._mutate(draws), draws.fresh)
            self.trials = torch.where(self._from_mutant(draws), mutants, self.genes)
        return self.trials

    def tell(self, fitness: Tensor) -> None:
        """Take the fitness of what :meth:`ask` returned, float [n, P]; a trial no worse replaces its parent."""
        fitness = torch.nan_to_num(fitness.to(self.device, torch.float32), nan=torch.inf)
        self.accepted = fitness <= self.fitness
        self.close = (fitness - self.fitness).abs() <= CLOSE
        self.genes = torch.where(self.accepted[:, :, None], self.trials, self.genes)
        self.fitness = torch.where(self.accepted, fitness, self.fitness)
        self.generation += 1

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the best member's genes, float64 [n, D], and fitness, float32 [n], of every search."""
        value, index = self.fitness.min(1)
        return self.genes[torch.arange(len(index), device=self.device), index], value

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self.generators = [g for g, wanted in zip(self.generators, which.tolist(), strict=True) if wanted]
        which = which.to(self.device)
        for name in ("genes", "trials", "fitness", "accepted", "close"):
            setattr(self, name, getattr(self, name)[which])

    def _initial(self, normal: Tensor | None) -> Tensor:
        size, dims = self.settings.population, self.dimensions
        start = np.empty((len(self.generators), size, dims))
        for row, rng in zip(start, self.generators, strict=True):
            row[:] = rng.random((size, dims))
            if self.settings.init == "lhs":
                # One member per stratum of every gene, the strata in an order of their own per gene.
                strata = rng.random((size, dims)).argsort(axis=0)
                row[:] = (strata + row) / size
            elif self.settings.init == "su" and normal is not None:
                drawn = (128 + 127 * rng.standard_normal((size, dims))) / 255
                row[:] = np.where(normal.numpy(), drawn.clip(0, 1), row)
        return torch.from_numpy(start).to(self.device)

    def _draw(self) -> _Draws:
        """Draw one generation's random numbers: the same count for every search, whatever is done with them."""
        size, dims = self.settings.population, self.dimensions
        numbers = np.empty((len(self.generators), size, _PICKS + 1 + 2 * dims))
        factor = np.empty((len(self.generators), 1, 1))
        low, high = self.settings.mutation
        for row, scale, rng in zip(numbers, factor, self.generators, strict=True):
            scale[:] = low + (high - low) * rng.random()
            rng.random(out=row)
        drawn = torch.from_numpy(numbers).to(self.device)
        return _Draws(
            factor=torch.from_numpy(factor).to(self.device),
            picks=_distinct(drawn[..., :_PICKS]),
            forced=(drawn[..., _PICKS] * dims).long(),
            crossover=drawn[..., _PICKS + 1 : _PICKS + 1 + dims],
            fresh=drawn[..., _PICKS + 1 + dims :],
        )

    def _mutate(self, draws: _Draws) -> Tensor:
        """Combine members into mutants (Eq. 11 and its relatives; SciPy's names)."""
        kind = self.settings.strategy[:-3]
        count, size, dims = self.genes.shape
        index = draws.picks.reshape(count, -1, 1).expand(-1, -1, dims)
        a, b, c, d, e = self.genes.gather(1, index).view(count, size, _PICKS, dims).unbind(2)
        best, _ = self.best()
        top, factor = best[:, None, :], draws.factor
        if kind == "rand1":
            return a + factor * (b - c)
        if kind == "best1":
            return top + factor * (a - b)
        if kind == "rand2":
            return a + factor * (b + c - d - e)
        if kind == "best2":
            return top + factor * (a + b - c - d)
        base = a if kind == "randtobest1" else self.genes
        return base + factor * (top - base + b - c)

    def _from_mutant(self, draws: _Draws) -> Tensor:
        """Return bool [n, P, D]: which genes of a trial come from the mutant (Eq. 13)."""
        low = draws.crossover <= self.settings.crossover
        if self.settings.strategy.endswith("bin"):
            return low.scatter(2, draws.forced[..., None], True)
        # Exponential: a run of genes from the forced one on, as long as every next draw is low.
        run = torch.cat([torch.ones_like(low[..., :1]), low[..., 1:]], -1).cumprod(-1).bool()
        positions = (draws.forced[..., None] + torch.arange(self.dimensions, device=self.device)) % self.dimensions
        return torch.zeros_like(run).scatter(2, positions, run)

    def _repair(self, mutants: Tensor, fresh: Tensor) -> Tensor:
        """Bring genes that left [0, 1] back."""
        if self.settings.out_of_range == "clip":
            return mutants.clamp(0, 1)
        if self.settings.out_of_range == "reflect":
            folded = mutants.abs().remainder(2)
            return torch.where(folded > 1, 2 - folded, folded)
        return torch.where((mutants < 0) | (mutants > 1), fresh, mutants)


def _distinct(uniform: Tensor) -> Tensor:
    """Turn uniform [n, P, k] numbers into int64 indices below P, different from the row's own and from each other."""
    size = uniform.shape[1]
    own = torch.arange(size, device=uniform.device).expand(uniform.shape[:2])[..., None]
    taken = own
    for pick in range(uniform.shape[2]):
        index = (uniform[..., pick] * (size - 1 - pick)).long()[..., None]
        # The index counts the members not yet taken: step over the taken ones, smallest first.
        for other in taken.sort(-1).values.unbind(-1):
            index += index >= other[..., None]
        taken = torch.cat([taken, index], -1)
    return taken[..., 1:]
