"""From real numbers to 8 bits within an L2 budget."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rounds of filling up what is left of a budget; each takes at least one value where any fits.
_FILLING = 8


def round_image(clean: Tensor, adversarial: Tensor, budget: Tensor | float) -> Tensor:
    """Round images to 8 bits so that their L2 distance from the clean ones is kept; uint8 [n, 3, H, W].

    ``clean`` is uint8, ``adversarial`` float of the same shape, both of 0 to 255; ``budget`` (ε, in the same
    units) is one number or float [n]. The distance of what comes out is at most ε and at most the one given, and
    below the smaller of them by little; a value that does not differ from the clean one stays as it is. See
    :func:`round_noise`.
    """
    change = (adversarial.clamp(0, 255).double() - clean).flatten(1)
    flat = clean.flatten(1).long()
    most = torch.where(change > 0, 255 - flat, flat)
    rounded = round_noise(change, torch.ones_like(flat), budget, most)
    return (flat + rounded).to(torch.uint8).view_as(clean)


def round_noise(noise: Tensor, weight: Tensor, budget: Tensor | float, most: Tensor | int = 255) -> Tensor:
    """Round values so that their weighted L2 norm is kept and within a budget; int64 [n, M].

    ``noise`` is float [n, M]; ``weight`` int64 [n, M], not negative, how many pixels each value stands for;
    ``budget`` one number or float [n]; ``most`` the largest magnitude allowed, of integers that no magnitude in
    ``noise`` exceeds. The target is the smaller of the budget and the norm √Σ w·v² of what is given, which is
    scaled down to it first. Every value is rounded; rounding noise is 0.29 per value and would carry the norm
    beyond a small budget. Then the values are moved by one, towards zero while the norm is above the target, and
    away from it while there is room below, those first whose move costs the least squared error per change of the
    squared norm. No value changes its sign or moves from zero where it was zero. The result is never above the
    target, and below it by less than a single move more would add, as a rule.
    """
    value = noise.double()
    share = weight.double()
    budget = torch.as_tensor(budget, dtype=torch.float64, device=noise.device).expand(len(noise))
    squares = (share * value**2).sum(1)
    scale = torch.where(squares > budget**2, budget / squares.sqrt(), 1.0)
    wanted = (value * scale[:, None]).abs()
    # An integer is at most a real number where it is at most its floor; 12 digits are what the squares are good for.
    target = (torch.minimum(squares, budget**2) * (1 + 1e-12)).floor().long()
    size = wanted.round().long()
    size = _reduced(size, wanted, weight, target)
    for _ in range(_FILLING):
        movable = _fitting(size, wanted, weight, target, most)
        if not movable.any():
            break
        size = _filled(size, wanted, weight, target, movable)
    return size * value.sign().long()


def _norm(size: Tensor, weight: Tensor) -> Tensor:
    """Return the squared norm, int64 [n]."""
    return (weight * size**2).sum(1)


def _reduced(size: Tensor, wanted: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Move values towards zero until the squared norm is at most ``target``, as few as it takes.

    One move of each is always enough: it takes every magnitude below the one wanted.
    """
    gain = weight * (2 * size - 1)
    movable = (size > 0) & (weight > 0)
    error = 1 - 2 * (size - wanted)
    cost = torch.where(movable, error / (2 * size - 1), torch.inf)
    gain = torch.where(movable, gain, 0)
    order = cost.argsort(dim=1, stable=True)
    gained = gain.gather(1, order).cumsum(1)
    before = gained - gain.gather(1, order)
    moved = before < (_norm(size, weight) - target)[:, None]
    return size - torch.zeros_like(size).scatter(1, order, moved.long()) * movable


def _fitting(size: Tensor, wanted: Tensor, weight: Tensor, target: Tensor, most: Tensor | int) -> Tensor:
    """Return bool [n, M]: could this value alone move away from zero by one?"""
    room = (target - _norm(size, weight))[:, None]
    return (wanted > 0) & (weight > 0) & (size < most) & (weight * (2 * size + 1) <= room)


def _filled(size: Tensor, wanted: Tensor, weight: Tensor, target: Tensor, movable: Tensor) -> Tensor:
    """Move values away from zero, the cheapest first, as long as the squared norm stays at most ``target``."""
    room = (target - _norm(size, weight))[:, None]
    gain = torch.where(movable, weight * (2 * size + 1), 0)
    error = 1 + 2 * (size - wanted)
    cost = torch.where(movable, error / (2 * size + 1), torch.inf)
    order = cost.argsort(dim=1, stable=True)
    moved = gain.gather(1, order).cumsum(1) <= room
    return size + torch.zeros_like(size).scatter(1, order, moved.long()) * movable
