"""What windows change in their maps, and how what a convolution makes of it comes into the windows of its result.

Changes are kept plane by plane: for every place in a window, the values there of all windows of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pixelsem.fitness.spreading import Spread
from pixelsem.fitness.windows import Batch, Group, Layout


class _Piece(NamedTuple):
    """Some windows of a group, ``before`` and ``after``, with the first of their rows."""

    before: Group
    after: Group
    first_before: int
    first_after: int


@dataclass(frozen=True)
class Passage:
    """A convolution on the windows of a batch, from their ``before`` to their ``after`` it."""

    spread: Spread
    batch: Batch
    before: Layout
    after: Layout

    def fill(
        self,
        out: Tensor,
        rows: Tensor,
        clean_before: Tensor,
        clean_after: Tensor,
        finish: Callable[[Tensor], Tensor] | None,
    ) -> None:
        """Write the windows of the result to ``out``, float [R', C']; ``rows``, float [R, C], are the operand's.

        The other two are the rows of the clean maps of operand and result; ``finish`` is done to the result in place.
        """
        pieces = self._pieces(max(rows.shape[1], out.shape[1]) * rows.itemsize)
        several = self.batch.pixels > 1
        changes: Iterable[Tensor] = (self._change(piece, rows, clean_before) for piece in pieces)
        if several:
            changes = self._counted_once(pieces, list(changes))
        added = []
        for piece, change in zip(pieces, changes, strict=True):
            windows = out[piece.first_after : piece.first_after + piece.after.rows]
            index = self.batch.rows_of_clean(self.after, piece.after)
            torch.index_select(clean_after, 0, index.flatten(), out=windows)
            windows = windows.view(*index.shape, -1)
            parts = list(self._parts(piece))
            if len(parts) == 1 and parts[0].windows is None and not several:
                parts[0].add(windows, self.spread(change, parts[0].rows, parts[0].columns))
            else:
                whole = self.spread(change, slice(None), slice(None))
                for part in parts:
                    part.add(windows, part.of(whole))
            if several:
                added.append(whole.flatten(0, 2))
            elif finish is not None:
                finish(windows)
        if several:
            self._add_from_others(out, pieces, added)
            if finish is not None:
                finish(out)

    def _pieces(self, size: int) -> list[_Piece]:
        """Return the groups in pieces that stay in the processor's caches; ``size``: bytes of a position's values."""
        pieces = []
        for before, after in zip(self.before.groups, self.after.groups, strict=True):
            step = self.spread.windows_at_once(before.height, before.width, size)
            for start in range(before.start, before.stop, step):
                span = start, min(start + step, before.stop)
                one, other = (Group(*span, group.height, group.width) for group in (before, after))
                rows = (
                    layout.row_of(group) + (start - group.start) * group.height * group.width
                    for layout, group in ((self.before, before), (self.after, after))
                )
                pieces.append(_Piece(one, other, *rows))
        return pieces

    def _change(self, piece: _Piece, rows: Tensor, clean: Tensor) -> Tensor:
        """Return float [h, w, n, C]."""
        group, first = piece.before, piece.first_before
        order, back = ((0, 1, 2), (1, 2, 0)) if self.spread.by_window else ((1, 2, 0), (0, 1, 2))
        index = self.batch.rows_of_clean(self.before, group).permute(order)
        change = clean.index_select(0, index.flatten()).view(*index.shape, -1)
        changed = rows[first : first + group.rows].view(-1, group.height, group.width, rows.shape[1])
        return torch.sub(changed.permute(*order, 3), change, out=change).permute(*back, 3)

    def _counted_once(self, pieces: list[_Piece], changes: list[Tensor]) -> list[Tensor]:
        """Return ``changes``, in which a place that is in several windows of a candidate counts once."""
        planes = _Planes.of(self.before, [piece.before for piece in pieces])
        again = []
        for ours, theirs, earlier in self.batch.partners():
            windows, _, y, x = planes.common(planes, ours[earlier], theirs[earlier])
            again.append(planes.rows(windows, y, x))
        if not any(map(len, again)):
            return changes
        joined = torch.cat([change.flatten(0, 2) for change in changes])
        joined.index_fill_(0, torch.cat(again), 0)
        parts = joined.split([piece.before.rows for piece in pieces])
        return [part.view_as(change) for part, change in zip(parts, changes, strict=True)]

    def _parts(self, piece: _Piece) -> Iterator[_Part]:
        """Yield the windows of a piece by how they lie to what their changes add."""
        group, result = piece.before, piece.after
        which = slice(group.start, group.stop)
        margin, reach = self.spread.margin, self.spread.taps - 1
        down = self.after.top[which] - self.before.top[which] + margin[0]
        along = self.after.left[which] - self.before.left[which] + margin[1]
        # Offsets fit into 32 bits; as one number each they are sorted far faster than as pairs.
        offsets, number = ((down << 32) + along).unique(return_inverse=True)
        for i, offset in enumerate(offsets.tolist()):
            y, x = (offset + 2**31) >> 32, (offset + 2**31) % 2**32 - 2**31
            rows = slice(max(0, y), min(group.height + reach, y + result.height))
            columns = slice(max(0, x), min(group.width + reach, x + result.width))
            if rows.start < rows.stop and columns.start < columns.stop:
                windows = (number == i).nonzero()[:, 0] if len(offsets) > 1 else None
                yield _Part(windows, rows, columns, rows.start - y, columns.start - x)

    def _add_from_others(self, out: Tensor, pieces: list[_Piece], added: list[Tensor]) -> None:
        """Add to each window what the changes of the candidate's other windows add there."""
        theirs = _Planes.of(self.before, [piece.before for piece in pieces], self.spread)
        ours = _Planes.of(self.after, self.after.groups)
        values = None
        for window, other, _ in self.batch.partners():
            windows, others, y, x = ours.common(theirs, window, other)
            if len(windows):
                values = torch.cat(added) if values is None else values
                place = (
                    self.after.base[windows] + (y - ours.top[windows]) * ours.width[windows] + x - ours.left[windows]
                )
                sums = out.index_select(0, place).add_(values.index_select(0, theirs.rows(others, y, x)))
                out.index_copy_(0, place, sums)


@dataclass(frozen=True)
class _Part:
    """Windows of a group that lie alike to what is added to them.

    :ivar windows: int64 [m], or None for all.
    :ivar rows, columns: of what is added, those that lie in the windows, from ``top`` and ``left`` on.
    """

    windows: Tensor | None
    rows: slice
    columns: slice
    top: int
    left: int

    def of(self, added: Tensor) -> Tensor:
        """Cut [h, w, n, C] to what :meth:`add` takes."""
        cut = added[self.rows, self.columns]
        return cut if self.windows is None else cut.index_select(2, self.windows)

    def add(self, windows: Tensor, cut: Tensor) -> None:
        """Add [h, w, m, C] to these of windows [n, h', w', C]."""
        place = windows[:, self.top : self.top + cut.shape[0], self.left : self.left + cut.shape[1]]
        if self.windows is None:
            place += cut.permute(2, 0, 1, 3)
        else:
            sums = place.index_select(0, self.windows).add_(cut.permute(2, 0, 1, 3))
            place.index_copy_(0, self.windows, sums)


@dataclass(frozen=True)
class _Planes:
    """Where the values of each window are, plane by plane, group after group; int64 [M] each.

    :ivar count: how many windows the group has, ``number`` is which of them this is.
    :ivar base: the row of the group's first value.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    count: Tensor
    number: Tensor
    base: Tensor

    @classmethod
    def of(cls, layout: Layout, groups: Sequence[Group], spread: Spread | None = None) -> _Planes:
        """Return those of the windows of ``layout`` in such groups, or of what their changes add by ``spread``."""
        reach, margin = (spread.taps - 1, spread.margin) if spread else (0, (0, 0))
        sizes = [(g.stop - g.start, (g.height + reach) * (g.width + reach) * (g.stop - g.start)) for g in groups]
        counts, rows = torch.tensor(sizes).unbind(1)
        starts = torch.tensor([group.start for group in groups])
        count, base, start = (t.repeat_interleave(counts) for t in (counts, rows.cumsum(0) - rows, starts))
        number = torch.arange(len(count)) - start
        size = layout.height + reach, layout.width + reach
        return cls(layout.top - margin[0], layout.left - margin[1], *size, count, number, base)

    def rows(self, windows: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Return int64 [T], the row of what is at ``y``, ``x`` of each of ``windows``; int64 [T] all three."""
        place = (y - self.top[windows]) * self.width[windows] + x - self.left[windows]
        return self.base[windows] + place * self.count[windows] + self.number[windows]

    def common(self, other: _Planes, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return every place that lies both in a window of ``ours`` and in its partner of ``theirs``, int64 [P].

        As windows of ours and theirs, y and x; int64 [T] each.
        """
        top, left = torch.maximum(self.top[ours], other.top[theirs]), torch.maximum(self.left[ours], other.left[theirs])
        bottom = torch.minimum(self.top[ours] + self.height[ours], other.top[theirs] + other.height[theirs])
        right = torch.minimum(self.left[ours] + self.width[ours], other.left[theirs] + other.width[theirs])
        height, width = (bottom - top).clamp(min=0), (right - left).clamp(min=0)
        area = height * width
        pair = torch.arange(len(area)).repeat_interleave(area)
        place = torch.arange(len(pair)) - (area.cumsum(0) - area)[pair]
        y, x = top[pair] + place // width[pair], left[pair] + place % width[pair]
        return ours[pair], theirs[pair], y, x
