"""What candidates have scored before, so that none goes through the model twice."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelsem.fitness.edits import mixed

_MOST_BYTES = 2**29  # for all searches together
_SLOT_BYTES = 8 + 4 + 1
_TRIES = 8


class Seen:
    """Remembers fitness and hit of the candidates of n searches that run side by side.

    A hash table per search, of twice as many slots as it has ``candidates`` where memory allows. What finds no
    free slot within a few tries is forgotten and would be scored again: only the number of queries depends on it.
    """

    def __init__(self, searches: int, candidates: int, device: torch.device) -> None:
        affordable = (_MOST_BYTES // (_SLOT_BYTES * max(1, searches))).bit_length() - 1
        self._slots: int = 2 ** min(candidates.bit_length() + 1, affordable)
        self._keys = torch.zeros(searches, self._slots, dtype=torch.int64, device=device)
        self._fitness = torch.zeros(searches, self._slots, device=device)
        self._hits = torch.zeros(searches, self._slots, dtype=torch.bool, device=device)

    def recall(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for int64 [n, P] ``keys`` (see :meth:`Edits.keys`) what is known: known, fitness, hit; [n, P] each."""
        keys_flat, place = keys.flatten(), torch.full((keys.numel(),), -1, device=keys.device)
        left = keys_flat.nonzero()[:, 0]
        for number in range(_TRIES):
            slots = self._slot(keys_flat[left], left // keys.shape[1], number)
            there = self._keys.view(-1)[slots]
            same = there == keys_flat[left]
            place[left[same]] = slots[same]
            left = left[~same & (there != 0)]  # behind an empty slot there is nothing
            if not len(left):
                break
        known = (place >= 0).view_as(keys)
        place = place.clamp_(min=0).view_as(keys)
        return known, self._fitness.view(-1)[place], self._hits.view(-1)[place]

    def note(self, keys: Tensor, fitness: Tensor, hits: Tensor, which: Tensor) -> None:
        """Remember float32 [n, P] ``fitness`` and bool [n, P] ``hits`` of those ``keys`` that ``which`` marks.

        These are all different in a row, not 0, and not known yet.
        """
        row, column = which.nonzero(as_tuple=True)
        new, values, hit = keys[row, column], fitness[row, column], hits[row, column]
        for number in range(_TRIES):
            slots = self._slot(new, row, number)
            # Of those that want one slot the first gets it: the order of a scatter is not defined.
            first = first_of_equal(slots[None])[0] == torch.arange(len(slots), device=slots.device)
            goes = first & (self._keys.view(-1)[slots] == 0)
            place = slots[goes]
            self._keys.view(-1)[place], self._fitness.view(-1)[place] = new[goes], values[goes]
            self._hits.view(-1)[place] = hit[goes]
            row, new, values, hit = (each[~goes] for each in (row, new, values, hit))
            if not len(new):
                break

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self._keys, self._fitness, self._hits = self._keys[which], self._fitness[which], self._hits[which]

    def _slot(self, keys: Tensor, rows: Tensor, number: int) -> Tensor:
        """Return where to look for ``keys`` of the searches ``rows`` at the so-manieth try (double hashing)."""
        start = mixed(keys)
        step = (start >> 32) | 1  # odd, so that no slot comes twice
        return rows * self._slots + ((start + number * step) & (self._slots - 1))


def first_of_equal(values: Tensor) -> Tensor:
    """Return int64 [n, P]: for each of ``values`` [n, P] the column of the first equal one in its row."""
    ordered, order = values.sort(dim=1, stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(begins, torch.arange(values.shape[1], device=values.device), 0).cummax(1).values
    return torch.empty_like(order).scatter_(1, order, order.gather(1, start))
