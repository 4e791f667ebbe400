"""SPAM: how differences of neighbouring pixels follow one another, as 686 numbers per plane.

Pevný, Bas & Fridrich, "Steganalysis by subtractive pixel adjacency matrix", IEEE TIFS 5(2), 2010, second order,
T = 3. As in the authors' program, and so in the steganalysis literature, a number is the joint frequency of three
successive differences (the article's text has it conditional on the first two), and differences beyond ±T count
as ±T.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Differences are cut to [-T, T].
T = 3

_LEVELS = 2 * T + 1

#: Numbers per plane: three differences along the rows and columns, and three along the diagonals.
SPAM_SIZE = 2 * _LEVELS**3

#: Rows and columns that a plane needs for three successive differences.
SMALLEST_SIDE = 4


def spam(planes: Tensor) -> Tensor:
    """Return the SPAM features of uint8 ``planes`` [N, H, W] (one channel each), float64 [N, 686] on their device.

    The first 343 are the mean over rows and columns in both directions, the last 343 over both diagonals; either
    sums to 1. Of three successive differences the one furthest along the direction varies fastest. Frequencies
    come from whole counts, so that batch size and device do not matter. Raises :class:`ValueError` for planes
    that are not uint8 [N, H, W] with at least 4×4 pixels.
    """
    if planes.ndim != 3 or planes.dtype != torch.uint8 or min(planes.shape[1:]) < SMALLEST_SIDE:
        raise ValueError(f"uint8 [N, H, W] of at least 4×4 pixels expected, {planes.dtype} {list(planes.shape)} given")
    wide = planes.to(torch.int16)
    along, down, diagonal, minor = (_both_ways(_frequencies(*line)) for line in _lines(wide))
    return torch.cat([_mean(*along, *down), _mean(*diagonal, *minor)], 1)


def _lines(wide: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield for each of the four lines the differences that follow one another: last, middle and first."""
    step = wide[:, :, :-1] - wide[:, :, 1:]
    yield step[:, :, 2:], step[:, :, 1:-1], step[:, :, :-2]
    step = wide[:, :-1] - wide[:, 1:]
    yield step[:, 2:], step[:, 1:-1], step[:, :-2]
    step = wide[:, :-1, :-1] - wide[:, 1:, 1:]
    yield step[:, 2:, 2:], step[:, 1:-1, 1:-1], step[:, :-2, :-2]
    step = wide[:, 1:, :-1] - wide[:, :-1, 1:]
    yield step[:, :-2, 2:], step[:, 1:-1, 1:-1], step[:, 2:, :-2]


def _frequencies(last: Tensor, middle: Tensor, first: Tensor) -> Tensor:
    """Return how often each triple occurs in each plane, float64 [N, first, middle, last]."""
    count = len(last)
    digits = [part.clamp(-T, T).add(T).int() for part in (first, middle, last)]
    plane = torch.arange(count, dtype=torch.int32, device=last.device)[:, None, None]
    index = ((plane * _LEVELS + digits[0]) * _LEVELS + digits[1]) * _LEVELS + digits[2]
    counts = torch.bincount(index.flatten(), minlength=count * _LEVELS**3).double()
    return counts.reshape(count, _LEVELS, _LEVELS, _LEVELS) / last[0].numel()


def _both_ways(forward: Tensor) -> tuple[Tensor, Tensor]:
    """Return a line's frequencies and those of walking it backwards: signs and order turn round."""
    return forward, forward.flip((1, 2, 3)).transpose(1, 3)


def _mean(one: Tensor, two: Tensor, three: Tensor, four: Tensor) -> Tensor:
    return ((one + two + three + four) / 4).flatten(1)
