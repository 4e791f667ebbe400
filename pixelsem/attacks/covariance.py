"""CMA-ES of many independent searches in lock-step (Hansen 2016, "The CMA Evolution Strategy: A Tutorial").

The search is asked for candidates and told their fitness, so that it serves any vectorised objective::

    search = CovarianceAdaptation(generators, start, sigma=0.3, offspring=8)
    for _ in range(generations):
        search.tell(objective(search.ask()))

All searches are rows of the same tensors, in float64; the only loop over searches draws each one's random
numbers from its own generator. Nothing bounds the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LARGEST_SIGMA = 1e32
_TINY = 1e-8


class _Weights:
    """The strategy's parameters for D dimensions and λ offspring (Hansen 2016, Eqs. 48–58 and Table 1)."""

    def __init__(self, dims: int, offspring: int, device: torch.device) -> None:
        raw = math.log((offspring + 1) / 2) - torch.arange(1, offspring + 1, dtype=torch.float64, device=device).log()
        parents = offspring // 2
        best, rest = raw[:parents], raw[parents:]
        self.mass = mass = float(best.sum() ** 2 / best.square().sum())
        rest_mass = float(rest.sum() ** 2 / rest.square().sum())
        self.rank_one = 2 / ((dims + 1.3) ** 2 + mass)
        self.rank_mu = min(1 - self.rank_one, 2 * (mass - 2 + 1 / mass) / ((dims + 2) ** 2 + mass))
        negative = min(
            1 + self.rank_one / self.rank_mu,
            1 + 2 * rest_mass / (mass + 2),
            (1 - self.rank_one - self.rank_mu) / (dims * self.rank_mu),
        )
        scale = torch.where(raw >= 0, 1 / raw.clamp(min=0).sum(), -negative / raw.clamp(max=0).sum())
        self.of_rank = raw * scale
        self.total = float(self.of_rank.sum())
        self.parents = self.of_rank[:parents]
        self.sigma_rate = (mass + 2) / (dims + mass + 5)
        self.damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (dims + 1)) - 1) + self.sigma_rate
        self.path_rate = (4 + mass / dims) / (dims + 4 + 2 * mass / dims)
        self.length = math.sqrt(dims) * (1 - 1 / (4 * dims) + 1 / (21 * dims**2))  # E‖N(0, I)‖


class CovarianceAdaptation:
    """n searches over D real variables with λ candidates each per generation.

    :ivar mean: float64 [n, D].
    :ivar sigma: float64 [n], the step sizes.
    :ivar covariance: float64 [n, D, D].
    """

    def __init__(
        self, generators: Sequence[np.random.Generator], start: Tensor, *, sigma: float, offspring: int
    ) -> None:
        """Start at the means ``start``, float64 [n, D], on whose device the search stays; λ is at least 4."""
        self._generators = list(generators)
        self._first_sigma, self._offspring = sigma, offspring
        count, dims = start.shape
        self._weights = _Weights(dims, offspring, start.device)
        self.mean = start
        self.sigma = torch.empty(count, dtype=torch.float64, device=start.device)
        self.covariance = start.new_empty(count, dims, dims)
        self._sigma_path, self._path = torch.empty_like(start), torch.empty_like(start)
        self._age = torch.empty_like(self.sigma)  # generations since the last start
        self.restart(torch.ones_like(self.sigma, dtype=torch.bool), start)
        self._steps = self._spheric = start.new_empty(count, offspring, dims)

    def restart(self, which: Tensor, start: Tensor) -> None:
        """Forget everything of the searches that bool [n] ``which`` marks; they go on from ``start``, [n, D]."""
        identity = torch.eye(start.shape[1], dtype=torch.float64, device=start.device)
        self.mean = torch.where(which[:, None], start, self.mean)
        self.sigma = torch.where(which, self._first_sigma, self.sigma)
        self.covariance = torch.where(which[:, None, None], identity, self.covariance)
        self._sigma_path = torch.where(which[:, None], 0.0, self._sigma_path)
        self._path = torch.where(which[:, None], 0.0, self._path)
        self._age = torch.where(which, 0.0, self._age)

    def ask(self) -> Tensor:
        """Return the candidates to score next, float64 [n, λ, D] (Eqs. 38–40)."""
        normal = np.empty((len(self._generators), self._offspring, self.mean.shape[1]))
        for row, rng in zip(normal, self._generators, strict=True):
            rng.standard_normal(out=row)
        values, vectors = torch.linalg.eigh(self.covariance)
        drawn = torch.from_numpy(normal).to(self.mean.device)
        self._spheric = drawn @ vectors.mT  # C^(−1/2) y
        self._steps = (drawn * values.clamp(min=_TINY**2).sqrt()[:, None]) @ vectors.mT
        return self.mean[:, None] + self.sigma[:, None, None] * self._steps

    def tell(self, fitness: Tensor) -> None:
        """Take the fitness of what :meth:`ask` returned, float [n, λ]; lower is better, NaN is worst."""
        weights, dims = self._weights, self.mean.shape[1]
        order = torch.nan_to_num(fitness, nan=torch.inf).argsort(dim=1, stable=True)[..., None].expand_as(self._steps)
        steps, spheric = self._steps.gather(1, order), self._spheric.gather(1, order)
        mean_step, mean_spheric = (_weighted(each, weights.parents) for each in (steps, spheric))
        self.mean = self.mean + self.sigma[:, None] * mean_step  # Eqs. 41 and 42
        self._age = self._age + 1

        rate = weights.sigma_rate
        self._sigma_path = (1 - rate) * self._sigma_path + math.sqrt(rate * (2 - rate) * weights.mass) * mean_spheric
        length = self._sigma_path.norm(dim=1)
        sigma = self.sigma * (rate / weights.damping * (length / weights.length - 1)).exp()  # Eqs. 43 and 44
        self.sigma = sigma.clamp(max=_LARGEST_SIGMA)

        expected = (1.4 + 2 / (dims + 1)) * weights.length
        moving = (length / (1 - (1 - rate) ** (2 * (self._age + 1))).sqrt() < expected).double()[:, None]
        self._adapt(steps, spheric, mean_step, moving)

    def _adapt(self, steps: Tensor, spheric: Tensor, mean_step: Tensor, moving: Tensor) -> None:
        """Update path and covariance (Eqs. 45–47); a path is not lengthened where ``moving`` is 0."""
        weights, dims = self._weights, steps.shape[2]
        rate = weights.path_rate
        self._path = (1 - rate) * self._path + moving * math.sqrt(rate * (2 - rate) * weights.mass) * mean_step
        shorter = dims / (spheric.square().sum(2) + _TINY)
        of_step = torch.where(weights.of_rank >= 0, weights.of_rank, weights.of_rank * shorter)
        rank_one = self._path[:, :, None] * self._path[:, None, :]
        rank_mu = (steps * of_step[..., None]).mT @ steps
        missing = (1 - moving[..., None]) * rate * (2 - rate)
        kept = 1 + weights.rank_one * missing - weights.rank_one - weights.rank_mu * weights.total
        covariance = kept * self.covariance + weights.rank_one * rank_one + weights.rank_mu * rank_mu
        self.covariance = (covariance + covariance.mT) / 2

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self._generators = [rng for rng, wanted in zip(self._generators, which.tolist(), strict=True) if wanted]
        for name in ("mean", "sigma", "covariance", "_sigma_path", "_path", "_age", "_steps", "_spheric"):
            setattr(self, name, getattr(self, name)[which])


def _weighted(steps: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum, [n, D], of the first of [n, λ, D] ``steps``."""
    return (steps[:, : len(weights)] * weights[:, None]).sum(1)
