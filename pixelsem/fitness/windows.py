"""Where the change of one pixel can be seen in a map, and which rows of stored activations a window reads.

A window is the part of a map that one changed pixel of a candidate reaches. All windows of a map have one
size, so that the windows of a batch are one tensor; each lies wholly in the map. The two axes of a map
are independent of each other: everything is computed per axis, once per coordinate a pixel can have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slide:
    """How an operation slides along one axis: output ``o`` reads inputs ``o · stride − padding + i · dilation``.

    ``padding`` is what precedes the map; what follows it need not be known.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def extent(self) -> int:
        """Inputs from the first to the last that one output reads."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def inner_stride(self) -> int:
        """The stride left for the operation on what :meth:`reads` has gathered; one input per output needs none."""
        return 1 if self.kernel == 1 else self.stride

    def reads(self, first: Tensor, count: int) -> Tensor:
        """Return int64 [..., n]: the coordinates that ``count`` outputs from ``first`` (int64 [...]) on read."""
        start = first[..., None] * self.stride - self.padding
        if self.kernel == 1:
            return start + torch.arange(count, device=first.device) * self.stride
        return start + torch.arange((count - 1) * self.stride + self.extent, device=first.device)


@dataclass(frozen=True, eq=False)
class Reach:
    """The interval of one axis of a map that a changed pixel reaches, for every coordinate it can have.

    :ivar length: of the axis of the map.
    :ivar first: int64 [S], the first coordinate reached by a pixel at 0 … S − 1.
    :ivar last: int64 [S], the last one; below ``first`` where the pixel reaches nothing.
    """

    length: int
    first: Tensor
    last: Tensor

    @classmethod
    def of_input(cls, length: int) -> Reach:
        """Return the reach in the image itself: each pixel reaches itself."""
        return cls(length, torch.arange(length), torch.arange(length))

    def through(self, slide: Slide, length: int) -> Reach:
        """Return the reach in the output, ``length`` long, of an operation that slides over this map."""
        first = -(-(self.first + slide.padding - slide.extent + 1) // slide.stride)
        last = (self.last + slide.padding) // slide.stride
        first, last = first.clamp(min=0), last.clamp(max=length - 1)
        nothing = (self.first > self.last) | (first > last)
        return Reach(length, first.masked_fill(nothing, length), last.masked_fill(nothing, -1))

    def union(self, other: Reach) -> Reach:
        """Return the smallest intervals that hold both."""
        return Reach(self.length, torch.minimum(self.first, other.first), torch.maximum(self.last, other.last))

    def equals(self, other: Reach) -> bool:
        """Are all intervals the same?"""
        return torch.equal(self.first, other.first) and torch.equal(self.last, other.last)

    @cached_property
    def window(self) -> int:
        """The length that holds every interval, at least 1."""
        return max(1, int((self.last - self.first).max()) + 1)

    @cached_property
    def origin(self) -> Tensor:
        """int64 [S]: where the window of a pixel begins, such that it lies in the map."""
        return self.first.clamp(0, self.length - self.window)


@dataclass(frozen=True, eq=False)
class Placement:
    """The windows of a map: their size, and where each lies."""

    y: Reach
    x: Reach

    @property
    def map(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.y.length, self.x.length

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of a window."""
        return self.y.window, self.x.window

    @property
    def share(self) -> float:
        """The part of the map that one window is."""
        return self.y.window * self.x.window / (self.y.length * self.x.length)

    def through(self, y: Slide, x: Slide, size: tuple[int, int]) -> Placement:
        """Return the windows in the output, ``size`` large, of an operation that slides over this map."""
        return Placement(self.y.through(y, size[0]), self.x.through(x, size[1]))

    def union(self, other: Placement) -> Placement:
        """Return windows that hold those of both; one of the two where that suffices."""
        both = Placement(self.y.union(other.y), self.x.union(other.x))
        return next((one for one in (self, other) if one.y.equals(both.y) and one.x.equals(both.x)), both)


class Batch:
    """Which image and which pixels every candidate of a batch changes.

    :ivar image: int64 [C].
    """

    def __init__(self, image: Tensor, position: Tensor, width: int) -> None:
        self.image = image
        self._y, self._x = position // width, position % width
        self._origins: dict[Placement, tuple[Tensor, Tensor]] = {}

    @property
    def pixels(self) -> int:
        """Windows per candidate, K."""
        return self._y.shape[1]

    def origins(self, placement: Placement) -> tuple[Tensor, Tensor]:
        """Return (y, x), int64 [C, K]: where the windows begin."""
        if placement not in self._origins:
            device = self.image.device
            y, x = placement.y.origin.to(device)[self._y], placement.x.origin.to(device)[self._x]
            self._origins[placement] = y, x
        return self._origins[placement]

    def rows_of_windows(self, placement: Placement) -> Tensor:
        """Return int64 [C · K · h · w]: each element's row among the maps of the candidates, [C · H · W] rows."""
        (height, width), (h, w) = placement.map, placement.window
        top, left = self.origins(placement)
        y = top[:, :, None] + torch.arange(h, device=top.device)
        x = left[:, :, None] + torch.arange(w, device=top.device)
        candidate = torch.arange(len(top), device=top.device)[:, None, None] * (height * width)
        return ((candidate + y * width)[..., None] + x[:, :, None, :]).flatten()

    def rows_to_read(self, placement: Placement, y: Tensor, x: Tensor, images: int) -> Tensor:
        """Return int [C · K · n · m]: the rows that hold the candidates' values at (y, x) of the map.

        ``y`` is int64 [C, K, n], ``x`` int64 [C, K, m], and may lie outside the map. The rows are those of
        ``images`` clean maps, then of the windows ([C, K, h, w]), then one row for all outside the map.
        A value that lies in several windows of its candidate is read from any: all windows are right.
        """
        (height, width), (h, w) = placement.map, placement.window
        clean = images * height * width
        outside = clean + self._y.numel() * h * w
        kind = torch.int32 if 3 * outside < 2**31 else torch.int64  # half the traffic where it fits
        inside_y, inside_x = (y >= 0) & (y < height), (x >= 0) & (x < width)
        from_y = torch.where(inside_y, self.image[:, None, None] * (height * width) + y * width, outside)
        from_x = torch.where(inside_x, x, outside)
        rows = from_y.to(kind)[..., None] + from_x.to(kind)[:, :, None, :]
        top, left = self.origins(placement)
        blocks = clean + torch.arange(self._y.numel(), device=y.device).view_as(top) * (h * w)
        for k in range(self.pixels):
            down, along = y - top[:, k, None, None], x - left[:, k, None, None]
            # Rows of windows come after all clean rows, so the larger one wins; misses are below zero.
            in_y = torch.where((down >= 0) & (down < h), blocks[:, k, None, None] + down * w, -outside)
            in_x = torch.where((along >= 0) & (along < w), along, -outside)
            rows = torch.maximum(rows, in_y.to(kind)[..., None] + in_x.to(kind)[:, :, None, :])
        return rows.clamp_(max=outside).flatten()


def to_rows(values: Tensor, axes: tuple[int, int]) -> Tensor:
    """Return [B · h · w, C] of values whose dimensions ``axes`` are h and w, and whose others make up C."""
    moved = values.movedim(axes, (1, 2))
    return moved.reshape(moved.shape[0] * moved.shape[1] * moved.shape[2], -1)


def from_rows(rows: Tensor, size: tuple[int, int], like: tuple[int, ...], axes: tuple[int, int]) -> Tensor:
    """Undo :func:`to_rows` for maps ``size`` large; ``like`` is a shape that has the right other dimensions."""
    others = [length for dim, length in enumerate(like) if dim not in (0, *axes)]
    return rows.view(-1, *size, *others).movedim((1, 2), axes)
