"""Where the change of one pixel can be seen in a map, and which rows of stored activations a window reads.

A window is the part of a map that one changed pixel of a candidate reaches. Pixels are sorted into classes
by row and by column; all windows of a map whose pixels are of the same two classes have one size, so that
they can be one tensor. Every window lies wholly in the map. The two axes of a map are independent of each
other: everything is computed per axis, once per coordinate a pixel can have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    :ivar classes: int64 [S], the class of each coordinate of a pixel.
    """

    length: int
    first: Tensor
    last: Tensor
    classes: Tensor

    @classmethod
    def of_input(cls, classes: Tensor) -> Reach:
        """Return the reach in the image itself: each pixel reaches itself."""
        each = torch.arange(len(classes), device=classes.device)
        return cls(len(classes), each, each, classes)

    def through(self, slide: Slide, length: int) -> Reach:
        """Return the reach in the output, ``length`` long, of an operation that slides over this map."""
        first = -(-(self.first + slide.padding - slide.extent + 1) // slide.stride)
        last = (self.last + slide.padding) // slide.stride
        first, last = first.clamp(min=0), last.clamp(max=length - 1)
        nothing = (self.first > self.last) | (first > last)
        return Reach(length, first.masked_fill(nothing, length), last.masked_fill(nothing, -1), self.classes)

    def union(self, other: Reach) -> Reach:
        """Return the smallest intervals that hold both."""
        first, last = torch.minimum(self.first, other.first), torch.maximum(self.last, other.last)
        return Reach(self.length, first, last, self.classes)

    def equals(self, other: Reach) -> bool:
        """Are all intervals the same?"""
        return torch.equal(self.first, other.first) and torch.equal(self.last, other.last)

    @cached_property
    def sizes(self) -> Tensor:
        """int64 [S]: how many coordinates each pixel reaches."""
        return (self.last - self.first + 1).clamp(min=0)

    @cached_property
    def windows(self) -> list[int]:
        """For each class, the length that holds the interval of all its pixels; at least 1."""
        least = self.classes.new_ones(int(self.classes.max()) + 1)
        return least.scatter_reduce(0, self.classes, self.sizes, "amax").tolist()

    @cached_property
    def mean_window(self) -> float:
        """The length of the window of a pixel, on average over all pixels."""
        return float(self._of_pixels.double().mean())

    @cached_property
    def origin(self) -> Tensor:
        """int64 [S]: where the window of a pixel begins, such that it lies in the map."""
        return torch.minimum(self.first, self.length - self._of_pixels)

    @property
    def _of_pixels(self) -> Tensor:
        """int64 [S]: the length of the window of each pixel."""
        return self.classes.new_tensor(self.windows)[self.classes]


@dataclass(frozen=True, eq=False)
class Placement:
    """The windows of a map: how large they are, and where each lies."""

    y: Reach
    x: Reach

    @property
    def map(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.y.length, self.x.length

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the largest window."""
        return max(self.y.windows), max(self.x.windows)

    @property
    def share(self) -> float:
        """The part of the map that one window is, on average over all pixels."""
        return self.y.mean_window * self.x.mean_window / (self.y.length * self.x.length)

    def mean(self, cost: Callable[[int, int], int]) -> float:
        """Return what a window costs on average over all pixels; ``cost`` is that of one by height and width."""
        sizes = [list(zip(reach.windows, reach.classes.bincount().tolist(), strict=True)) for reach in (self.y, self.x)]
        total: int = sum(
            rows * columns * cost(height, width) for height, rows in sizes[0] for width, columns in sizes[1]
        )
        return total / (len(self.y.classes) * len(self.x.classes))

    def through(self, y: Slide, x: Slide, size: tuple[int, int]) -> Placement:
        """Return the windows in the output, ``size`` large, of an operation that slides over this map."""
        return Placement(self.y.through(y, size[0]), self.x.through(x, size[1]))

    def union(self, other: Placement) -> Placement:
        """Return windows that hold those of both; one of the two where that suffices."""
        both = Placement(self.y.union(other.y), self.x.union(other.x))
        return next((one for one in (self, other) if one.y.equals(both.y) and one.x.equals(both.x)), both)


@dataclass(frozen=True)
class Group:
    """Windows of one size, one behind the other in a batch."""

    start: int
    stop: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        """How many rows of values the windows are."""
        return (self.stop - self.start) * self.height * self.width


@dataclass(frozen=True)
class Layout:
    """The windows of a batch in one map, in the order of the batch.

    Their values are rows [R, C]: group by group, window by window, y by y, x by x.

    :ivar top, left: int64 [M], where each window begins.
    :ivar height, width: int64 [M].
    :ivar base: int64 [M], the row of each window's first value.
    """

    placement: Placement
    groups: list[Group]
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    base: Tensor

    @property
    def rows(self) -> int:
        """How many rows all windows are."""
        return sum(group.rows for group in self.groups)

    def row_of(self, group: Group) -> int:
        """Return the row of the group's first value."""
        return sum(other.rows for other in self.groups if other.start < group.start)

    def coordinates(self, group: Group) -> tuple[Tensor, Tensor]:
        """Return y, int64 [n, h], and x, int64 [n, w], of the windows of ``group``."""
        part, device = slice(group.start, group.stop), self.top.device
        y = self.top[part, None] + torch.arange(group.height, device=device)
        return y, self.left[part, None] + torch.arange(group.width, device=device)


class Batch:
    """Which image and which pixels every candidate of a batch changes.

    The M windows of a batch are sorted by the classes of their pixels. They are C · K and a few twins: of the last
    one in a class, as many as make the class one of few sizes. A kernel is made for each size that comes up, and to
    make one takes longer than to compute a few windows more.

    :ivar image: int64 [C], numbers below ``images``.
    :ivar order: int64 [M], which of the pixels, numbered c · K + k, each window belongs to.
    :ivar pixels: K.
    """

    def __init__(self, image: Tensor, position: Tensor, of_input: Placement, images: int) -> None:
        self.image, self.images = image, images
        pixels, device = position.shape[1], position.device
        self.pixels = pixels
        y, x = (position // of_input.x.length).flatten(), (position % of_input.x.length).flatten()
        rows, columns = len(of_input.y.windows), len(of_input.x.windows)
        classes = of_input.y.classes[y] * columns + of_input.x.classes[x]
        order = torch.argsort(classes, stable=True)
        counts = torch.bincount(classes, minlength=rows * columns).tolist()
        sizes = [_rounded(count) for count in counts]
        self._classes = [(*divmod(i, columns), size) for i, size in enumerate(sizes) if size]
        place, shown = (t.to(device) for t in _with_twins(torch.tensor(counts), torch.tensor(sizes)))
        self.order = order[shown]
        self._y, self._x, self._candidate = y[self.order], x[self.order], self.order // pixels
        self._window = torch.empty_like(order)
        self._window[order] = place
        self._window = self._window.view(-1, pixels)
        self._layouts: dict[Placement, Layout] = {}

    def layout(self, placement: Placement) -> Layout:
        """Return where the windows of this batch lie in the map that ``placement`` is of."""
        if placement not in self._layouts:
            self._layouts[placement] = self._laid_out(placement)
        return self._layouts[placement]

    def partners(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield every window with each other one of its candidate, and whether that is of an earlier pixel.

        K − 1 times, each window once: int64 [M] windows and partners, bool [M].
        """
        window, slot = torch.arange(len(self.order), device=self.order.device), self.order % self.pixels
        for distance in range(1, self.pixels):
            other = (slot + distance) % self.pixels
            yield window, self._window[self._candidate, other], other < slot

    def _laid_out(self, placement: Placement) -> Layout:
        groups, start = [], 0
        for row, column, count in self._classes:
            groups.append(Group(start, start + count, placement.y.windows[row], placement.x.windows[column]))
            start += count
        device = self._y.device
        counts = torch.tensor([group.stop - group.start for group in groups], device=device)
        sizes = torch.tensor([(group.height, group.width) for group in groups], device=device)
        height, width = sizes.repeat_interleave(counts, 0, output_size=start).unbind(1)
        area = height * width
        top, left = placement.y.origin[self._y], placement.x.origin[self._x]
        return Layout(placement, groups, top, left, height, width, area.cumsum(0) - area)

    def rows_of_clean(self, layout: Layout, group: Group) -> Tensor:
        """Return int [n, h, w]: the rows of the clean maps that hold what is in each window of ``group`` there."""
        height, width = layout.placement.map
        y, x = layout.coordinates(group)
        map_start = self.image[self._candidate[group.start : group.stop], None] * (height * width)
        kind = torch.int32 if self.images * height * width < 2**31 else torch.int64
        return (map_start + y * width).to(kind)[:, :, None] + x.to(kind)[:, None, :]

    def rows_of_windows(self, layout: Layout) -> Tensor:
        """Return int64 [R]: the row of each value of the windows in the candidates' whole maps, [C · H · W] rows."""
        height, width = layout.placement.map
        parts = []
        for group in layout.groups:
            y, x = layout.coordinates(group)
            map_start = self._candidate[group.start : group.stop, None] * (height * width)
            parts.append(((map_start + y * width)[:, :, None] + x[:, None, :]).flatten())
        return torch.cat(parts)

    def rows_to_read(self, layout: Layout, group: Group, y: Tensor, x: Tensor) -> Tensor:
        """Return int [n · p · q]: the rows that hold the values at ``y``, ``x`` of each window's candidate.

        The n windows are those of ``group``; ``y`` is int64 [n, p], ``x`` int64 [n, q], and may lie outside the
        map. The rows are those of all clean maps, then of all windows of ``layout``, then one for all
        outside the map. What lies in several windows of a candidate is read from any: all windows are right.
        """
        height, width = layout.placement.map
        clean = self.images * height * width
        outside = clean + layout.rows
        kind = torch.int32 if 3 * outside < 2**31 else torch.int64  # half the traffic where it fits
        candidate = self._candidate[group.start : group.stop]
        map_start = self.image[candidate, None] * (height * width)
        from_y = torch.where((y >= 0) & (y < height), map_start + y * width, outside)
        from_x = torch.where((x >= 0) & (x < width), x, outside)
        rows = from_y.to(kind)[:, :, None] + from_x.to(kind)[:, None, :]
        for window in self._window[candidate].unbind(1):
            down, along = y - layout.top[window, None], x - layout.left[window, None]
            inside_y = (down >= 0) & (down < layout.height[window, None])
            inside_x = (along >= 0) & (along < layout.width[window, None])
            # Rows of windows come after all clean rows, so the larger one wins; misses are below zero.
            start = clean + layout.base[window, None]
            from_y = torch.where(inside_y, start + down * layout.width[window, None], -outside)
            from_x = torch.where(inside_x, along, -outside)
            rows = torch.maximum(rows, from_y.to(kind)[:, :, None] + from_x.to(kind)[:, None, :])
        return rows.clamp_(max=outside).flatten()


def _rounded(count: int) -> int:
    """Return one of sixteen sizes between powers of two, at or above ``count``."""
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


def _with_twins(counts: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return where things in groups of so many are in groups of such sizes, int64 [counts' sum], and which is where.

    The latter is int64 [sizes' sum], with the last of each group repeated.
    """
    starts, places = counts.cumsum(0) - counts, sizes.cumsum(0) - sizes
    thing = torch.arange(int(counts.sum())) + (places - starts).repeat_interleave(counts)
    within = torch.arange(int(sizes.sum())) - places.repeat_interleave(sizes)
    return thing, torch.minimum(within, (counts - 1).repeat_interleave(sizes)) + starts.repeat_interleave(sizes)


def to_rows(values: Tensor, axes: tuple[int, int]) -> Tensor:
    """Return [B · h · w, C] of values whose dimensions ``axes`` are h and w, and whose others make up C."""
    moved = values.movedim(axes, (1, 2))
    return moved.reshape(moved.shape[0] * moved.shape[1] * moved.shape[2], -1)


def from_rows(rows: Tensor, size: tuple[int, int], like: tuple[int, ...], axes: tuple[int, int]) -> Tensor:
    """Undo :func:`to_rows` for maps ``size`` large; ``like`` is a shape that has the right other dimensions."""
    others = [length for dim, length in enumerate(like) if dim not in (0, *axes)]
    return rows.view(-1, *size, *others).movedim((1, 2), axes)
