"""Operations that move, regroup, drop or pick dimensions and channels, without arithmetic."""

from __future__ import annotations

from typing import Any

from pixelsem.fitness.graph import canonical_name
from pixelsem.fitness.kinds import Case, Operation, Pointwise, Shape
from pixelsem.fitness.sliding import subsampled


def permute(case: Case) -> Operation | None:
    """``permute``, by which height and width may come to lie at other dimensions."""
    dims = case.node.args[1:] or (case.node.kwargs.get("dims"),)
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims
    return _reordered(case, list(order))


def transpose(case: Case) -> Operation | None:
    """``transpose``, the same for two dimensions."""
    order: list[Any] = list(range(len(case.operand.shape)))
    one, other = case.argument("dim0", 1), case.argument("dim1", 2)
    if not isinstance(one, int) or not isinstance(other, int):
        return None
    one, other = case.operand.dim(one), case.operand.dim(other)
    order[one], order[other] = other, one
    return _reordered(case, order)


def _reordered(case: Case, order: list[Any]) -> Operation | None:
    if not all(isinstance(dim, int) for dim in order):
        return None
    order = [case.operand.dim(dim) for dim in order]
    height, width = case.operand.axes
    return Pointwise((order.index(height), order.index(width))) if order[0] == 0 else None


def regrouped(case: Case) -> Operation | None:
    """``view`` and ``reshape`` that regroup channels before a height and width that stay last."""
    value, shape = case.operand, case.shape
    last = (len(value.shape) - 2, len(value.shape) - 1)
    if value.axes != last or len(shape) < 3 or (shape[0], *shape[-2:]) != (value.shape[0], *value.shape[-2:]):
        return None
    groups = shape[1:-2]
    return Pointwise((len(shape) - 2, len(shape) - 1), lambda t: t.reshape(len(t), *groups, *t.shape[-2:]))


def contiguous(case: Case) -> Operation | None:
    """``contiguous``, which changes no value; how windows are stored is decided elsewhere."""
    return Pointwise(case.operand.axes, lambda t: t)


def unsqueeze(case: Case) -> Operation | None:
    """``unsqueeze`` anywhere behind the batch."""
    dim = case.argument("dim", 1)
    if not isinstance(dim, int):
        return None
    dim %= len(case.operand.shape) + 1
    height, width = (axis + (axis >= dim) for axis in case.operand.axes)
    return Pointwise((height, width)) if dim > 0 else None


def parts(case: Case) -> Operation | None:
    """``chunk`` and ``split`` of channels stay whole as windows; the :func:`item` rule takes the parts."""
    dim = case.argument("dim", 2, 0)
    taken = all(canonical_name(user) == "getitem" and type(user.args[1]) is int for user in case.node.users)
    known = isinstance(dim, int) and case.operand.dim(dim) in case.operand.channels and taken
    return Pointwise(case.operand.axes, lambda t: t) if known else None


def item(case: Case) -> Operation | None:
    """``[...]``: one of several parts, or some channels, or every n-th row and column."""
    source, which = case.node.args
    shapes = case.shapes[source]  # type: ignore[index]
    if isinstance(shapes, list):
        return _part(case, source, shapes, int(which))  # type: ignore[arg-type]
    return _slices(case, which if isinstance(which, tuple) else (which,))


def sliced(case: Case) -> Operation | None:
    """ATen's ``slice``, of one dimension at a time."""
    dim = case.argument("dim", 1, 0)
    return _one_index(case, dim, slice(*(case.argument(*one) for one in (("start", 2), ("end", 3), ("step", 4)))))


def selected(case: Case) -> Operation | None:
    """ATen's ``select``, one channel."""
    return _one_index(case, case.argument("dim", 1), case.argument("index", 2))


def _one_index(case: Case, dim: Any, index: Any) -> Operation | None:
    if not isinstance(dim, int):
        return None
    all_before: list[Any] = [slice(None)] * case.operand.dim(dim)
    return _slices(case, (*all_before, index))


def _part(case: Case, source: Any, shapes: list[Shape], which: int) -> Operation | None:
    which %= len(shapes)
    dim = case.operand.dim(Case(source, case.values, case.shapes).argument("dim", 2, 0))
    start, length = sum(shape[dim] for shape in shapes[:which]), shapes[which][dim]
    return Pointwise(case.operand.axes, lambda t: t.narrow(dim, start, length))


def _slices(case: Case, index: tuple[Any, ...]) -> Operation | None:
    """Channels by number or slice, or the map's rows and columns by slices."""
    value = case.operand
    index = (*index, *[slice(None)] * (len(value.shape) - len(index)))
    if len(index) > len(value.shape) or not all(map(_is_constant, index)):
        return None
    plain = [dim for dim, one in enumerate(index) if one == slice(None)]
    if {0, *value.axes} <= set(plain):
        height, width = (axis - sum(isinstance(one, int) for one in index[:axis]) for axis in value.axes)
        return Pointwise((height, width))
    along_map = case.is_map() and plain[:2] == [0, 1]
    return subsampled(case, index) if along_map else None


def _is_constant(index: Any) -> bool:
    """Is ``index`` a number or a slice of numbers, not a mask, a new dimension or something computed?"""
    if isinstance(index, slice):
        return all(part is None or type(part) is int for part in (index.start, index.stop, index.step))
    return type(index) is int
