"""What changed values of a map add to the result of a convolution, with few multiplications.

A convolution is linear: its result for a changed map is that for the clean map plus what it makes of the change.
A change is zero outside its window, so that this is a product of polynomials, window by kernel: s values and r taps of
one axis make s + r − 1 results. Toom and Cook multiply the values of both polynomials at as many points and
interpolate, which takes s + r − 1 multiplications where the sum over all taps takes s · r, and far fewer than
(s + r − 1) · r, those of a convolution that does not know of the zeros. Two axes multiply. Points beyond ±2 would cost
precision, so that long windows are cut into tiles of a few values, whose results overlap and are added.

Toom 1963, Cook 1966; for convolutions of whole maps, with the same points, Lavin and Gray 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import lcm, prod
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelsem.fitness import products

#: Finite points in the order in which they are taken; infinity is one more.
_POINTS = (0, 1, -1, 2, -2)
_MOST_POINTS = 6  # which leave an error of about 1e-6 of the change in float32
#: bfloat16 bears four points, whose products are too little fewer to make up for the steps around them: there the
#: windows of changes are convolved with a border of zeros, most of whose products oneDNN leaves out.
_POINT_DTYPES = (torch.float32, torch.float64)
_FEWEST_VALUES = 800  # of a kernel, per channel of its smaller side, of which the matrices are large enough
_FEWEST_WINDOWS = 16  # to multiply with them
_LONGEST_KERNEL = 5
_AT_ONCE = 2**25  # bytes of products: larger ones gain nothing, smaller ones make small matrices
_FEWEST_ROWS = 64  # of a matrix, below which each product costs more than it gains

_Matrix = list[list[Fraction]]
_Products = list[list[Callable[[Tensor], Tensor]]]

#: Of each convolution, the products with its kernel's values, by the length of tiles; 0: with the kernel itself.
_kernels: WeakKeyDictionary[nn.Module, dict[int, _Products]] = WeakKeyDictionary()


def spread(module: nn.Conv2d, padding: tuple[int, int], single: bool) -> Spread | None:
    """Return what ``module`` makes of changes, where that is faster than to convolve windows; ``single``: of pixels."""
    weight = module.weight
    known = module.groups == 1 and module.stride == module.dilation == (1, 1)
    if not known or weight.device.type != "cpu" or module.kernel_size[0] != module.kernel_size[1]:
        return None
    pays = min(weight.shape[:2]) * module.kernel_size[0] ** 2 >= _FEWEST_VALUES
    return Spread(module, padding) if single or (pays and module.kernel_size[0] <= _LONGEST_KERNEL) else None


class Spread:
    """What a convolution without stride and dilation makes of changes.

    :ivar taps: the length of the kernel along both axes.
    :ivar margin: how far before a window its results begin.
    :ivar by_window: whether changes are best kept window after window in memory, not place after place.
    """

    def __init__(self, module: nn.Conv2d, padding: tuple[int, int]) -> None:
        self._module = module
        self.taps = module.kernel_size[0]
        self.margin = self.taps - 1 - padding[0], self.taps - 1 - padding[1]
        self.by_window = module.weight.dtype not in _POINT_DTYPES
        self._kernels = _kernels.setdefault(module, {})

    def macs(self, height: int, width: int) -> int:
        """Return how many multiplications and additions, in pairs, the products for a window of changes take."""
        return self._count(self._tile(height, width), height, width) * prod(self._module.weight.shape[:2])

    def windows_at_once(self, height: int, width: int, size: int) -> int:
        """Return of how many windows to take the changes at once, given the bytes of the channels at one place."""
        tile = self._tile(height, width)
        tiles = -(-width // tile)
        return max(-(-_FEWEST_ROWS // tiles), _AT_ONCE // (self._count(tile, height, width) * size))

    def __call__(self, changes: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return float [h', w', n, C'], what is added to ``rows`` and ``columns`` of the results.

        ``changes`` is float [h, w, n, C]; without the slices, results are h + r − 1 by w + r − 1.
        """
        height, width, count, _ = changes.shape
        if height == width == 1:
            return self._of_pixels(changes)[rows, columns]
        if self.by_window or count < _FEWEST_WINDOWS:
            return self._plainly(changes)[rows, columns]
        tile = self._tile(height, width)
        along = -(-width // tile) * count
        y, x = (_axis(length, self.taps, tile, changes.dtype) for length in (height, width))
        points = tile + self.taps - 1
        values = (y.evaluate @ changes.flatten(1)).view(len(y.evaluate), width, -1)
        values = (x.evaluate @ values).view(points, -1, points, along, changes.shape[3])
        result = values.new_empty(*values.shape[:4], self._module.out_channels)
        for p, kernels in enumerate(self._kernels_for(tile)):
            for q, multiply in enumerate(kernels):
                for part in range(values.shape[1]):
                    result[p, part, q] = multiply(values[p, part, q])
        interpolated = x.interpolate[columns] @ result.view(len(y.evaluate), len(x.evaluate), -1)
        result = y.interpolate[rows] @ interpolated.flatten(1)
        return result.view(len(result), interpolated.shape[1], count, -1)

    def _tile(self, height: int, width: int) -> int:
        """Return the length of tiles that takes the fewest multiplications."""
        most = max(1, _MOST_POINTS - self.taps + 1)
        return min(range(1, most + 1), key=lambda tile: self._count(tile, height, width))

    def _count(self, tile: int, height: int, width: int) -> int:
        if self.by_window:
            return height * width * self.taps**2
        return -(-height // tile) * -(-width // tile) * (tile + self.taps - 1) ** 2

    def _of_pixels(self, changes: Tensor) -> Tensor:
        """Return all results for windows of one value each: one product with the kernel of all taps."""
        if 0 not in self._kernels:
            taps = self._module.weight.flip(2, 3).permute(2, 3, 0, 1)
            self._kernels[0] = [[products.by_matrix(taps.flatten(0, 2).contiguous(), changes.shape[2])]]
        result = self._kernels[0][0][0](changes[0, 0])
        return result.view(-1, self.taps, self.taps, self._module.out_channels).permute(1, 2, 0, 3)

    def _plainly(self, changes: Tensor) -> Tensor:
        """Return all results by PyTorch's convolution."""
        weight, padding = self._module.weight, self.taps - 1
        return F.conv2d(changes.permute(2, 3, 0, 1), weight, None, 1, padding).permute(2, 3, 0, 1)

    def _kernels_for(self, tile: int) -> _Products:
        """Return, for each pair of points, the product with the kernel's values there, as a function of [R, C]."""
        if tile not in self._kernels:
            weight, at = self._module.weight, _matrix(_kernel_points(self.taps, tile))
            values = torch.einsum("pi,ocij,qj->pqoc", at, weight.double().flip(2, 3), at).to(weight.dtype)
            self._kernels[tile] = [[products.by_matrix(one, _FEWEST_ROWS) for one in row] for row in values]
        return self._kernels[tile]


class _Axis(NamedTuple):
    """The same along one axis, of windows cut into tiles; Q = points · tiles, point by point.

    :ivar evaluate: [Q, s], from values to those at points.
    :ivar interpolate: [s + r − 1, Q], from products to results; what tiles have in common is added.
    """

    evaluate: Tensor
    interpolate: Tensor


@cache
def _axis(length: int, taps: int, tile: int, dtype: torch.dtype) -> _Axis:
    tiles, points = -(-length // tile), tile + taps - 1
    at, back = (_matrix(rows) for rows in (_points(taps, tile), _interpolation(taps, tile)))
    evaluate = torch.zeros(points, tiles, tiles * tile, dtype=torch.float64)
    interpolate = torch.zeros(tiles * tile + taps - 1, points, tiles, dtype=torch.float64)
    for number in range(tiles):
        start = number * tile
        evaluate[:, number, start : start + tile] = at
        interpolate[start : start + points, :, number] = back
    evaluate, interpolate = evaluate[..., :length], interpolate[: length + taps - 1]
    return _Axis(evaluate.flatten(0, 1).to(dtype), interpolate.flatten(1).to(dtype))


def _points(taps: int, tile: int) -> _Matrix:
    """Return [points, tile]: what the values of a tile are at each point."""
    return [[Fraction(1)]] * taps if tile == 1 else _powers(tile + taps - 1, tile)


def _kernel_points(taps: int, tile: int) -> _Matrix:
    """Return [points, taps]: what a kernel's values are at each point, such that :func:`_interpolation` is whole."""
    if tile == 1:
        return [[Fraction(int(i == j)) for j in range(taps)] for i in range(taps)]
    factors = _factors(tile + taps - 1)
    return [[value / factor for value in row] for row, factor in zip(_powers(len(factors), taps), factors, strict=True)]


def _interpolation(taps: int, tile: int) -> _Matrix:
    """Return [points, points]: from products at all points to the coefficients of the product, in whole numbers."""
    if tile == 1:
        return _kernel_points(taps, 1)
    count = tile + taps - 1
    return [
        [value * factor for value, factor in zip(row, _factors(count), strict=True)]
        for row in _inverse(_powers(count, count))
    ]


def _powers(count: int, length: int) -> _Matrix:
    """Return [count, length]: the powers of all points but the last, infinity, which leaves the highest coefficient."""
    finite = [[Fraction(point) ** power for power in range(length)] for point in _POINTS[: count - 1]]
    return [*finite, [Fraction(int(power == length - 1)) for power in range(length)]]


@cache
def _factors(count: int) -> list[int]:
    """Return, per point, what makes its part in interpolation whole."""
    return [
        lcm(*(value.denominator for value in column)) for column in zip(*_inverse(_powers(count, count)), strict=True)
    ]


def _inverse(matrix: _Matrix) -> _Matrix:
    """Return the inverse, by elimination."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(row for row in range(column, size) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for row in range(size):
            if row != column and rows[row][column]:
                factor = rows[row][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[size:] for row in rows]


def _matrix(rows: _Matrix) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
