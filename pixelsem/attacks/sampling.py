"""Random pixels and colours for many searches at once, each from its own generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

_BLOCK = 4096  # numbers drawn ahead per search: one call of its generator for many steps


class Uniforms:
    """Uniform numbers in [0, 1) of n searches, one row each, in the order in which their generators give them.

    They are drawn in blocks; how large these are changes no number.
    """

    def __init__(self, generators: Sequence[np.random.Generator], device: torch.device) -> None:
        self._generators = list(generators)
        self._ready = torch.empty(len(self._generators), 0, dtype=torch.float64, device=device)

    def take(self, count: int) -> Tensor:
        """Return the next ``count`` numbers of every search, float64 [n, count] on the device."""
        missing = count - self._ready.shape[1]
        if missing > 0:
            fresh = np.empty((len(self._generators), max(missing, _BLOCK)))
            for row, rng in zip(fresh, self._generators, strict=True):
                rng.random(out=row)
            self._ready = torch.cat([self._ready, torch.from_numpy(fresh).to(self._ready.device)], 1)
        taken, self._ready = self._ready[:, :count], self._ready[:, count:]
        return taken

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self._generators = [rng for rng, wanted in zip(self._generators, which.tolist(), strict=True) if wanted]
        self._ready = self._ready[which]


class RegionPixels:
    """The pixels of n regions, bool [n, H, W], by numbers from 0 on.

    Where a region has fewer pixels than ``at_least``, further numbers stand for the same pixels once more, so
    that so many different numbers can always be drawn.

    :ivar sizes: int64 [n], how many numbers each region has.
    """

    def __init__(self, regions: Tensor, at_least: int) -> None:
        flat = regions.flatten(1)
        counts = flat.sum(1)
        self.sizes = counts.clamp(min=at_least)
        inside_first = (~flat).to(torch.uint8).argsort(dim=1, stable=True)
        number = torch.arange(int(self.sizes.max()), device=flat.device)
        self._positions = inside_first.gather(1, number % counts[:, None])

    def at(self, numbers: Tensor) -> Tensor:
        """Return the flat positions, int64 [n, …], of int64 [n, …] ``numbers`` below ``sizes``."""
        return self._positions.gather(1, numbers.flatten(1)).view_as(numbers)

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self.sizes, self._positions = self.sizes[which], self._positions[which]


def subsets(uniform: Tensor, sizes: Tensor | int) -> Tensor:
    """Turn uniform [..., m] numbers into m different int64 numbers below ``sizes``, int64 [...] of m or more.

    Every subset is as likely as any other; the order is not (Floyd's algorithm, Bentley & Floyd 1987).
    """
    count = uniform.shape[-1]
    picks = torch.empty_like(uniform, dtype=torch.int64)
    for turn in range(count):
        last = sizes - count + turn
        pick = (uniform[..., turn] * (last + 1)).long()
        taken = (picks[..., :turn] == pick[..., None]).any(-1)
        picks[..., turn] = torch.where(taken, last, pick)
    return picks


def numbers_left(index: Tensor, taken: Tensor) -> Tensor:
    """Return the ``index``-th of the numbers from 0 on that are not in ``taken``.

    ``index`` is int64 [..., m], ``taken`` int64 [..., k] with different numbers in each row.
    """
    before = taken.sort(-1).values - torch.arange(taken.shape[-1], device=taken.device)  # free ones below each
    return index + (before[..., None, :] <= index[..., None]).sum(-1)


def colours_of(uniform: Tensor, kind: Literal["corners", "uniform"]) -> Tensor:
    """Turn uniform [..., 3] numbers into RGB colours, uint8 [..., 3]: each channel 0 or 255, or any value."""
    if kind == "corners":
        return (uniform >= 0.5).to(torch.uint8) * 255
    return (uniform * 256).to(torch.uint8)
