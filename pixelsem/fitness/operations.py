"""What the operations of a network do to windows: the few kinds there are, and which operation is of which.

An operation that no rule here knows, or knows in another form, is of no kind: it is computed on whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pixelsem.fitness.graph import (
    BINARY_NAMES,
    ELEMENTWISE_MODULES,
    ELEMENTWISE_NAMES,
    canonical_name,
    is_affine,
    plain_module,
)
from pixelsem.fitness.windows import Placement, Slide

#: Of each node: the shape of its tensor for a batch of probes, those of a tuple of tensors, or None.
Shape = tuple[int, ...]
Shapes = Mapping[fx.Node, "Shape | list[Shape] | None"]


@dataclass(frozen=True)
class Value:
    """What is known of a tensor that can be kept as windows.

    :ivar shape: of the whole maps; dimension 0 is the batch.
    :ivar axes: the dimensions of the map's height and width, (2, 3) but for networks that permute.
    """

    shape: Shape
    axes: tuple[int, int]
    placement: Placement

    @property
    def channels(self) -> list[int]:
        """The dimensions that are neither the batch nor an axis of the map."""
        return [dim for dim in range(1, len(self.shape)) if dim not in self.axes]

    def dim(self, dim: int) -> int:
        """Return a dimension counted from the front."""
        return dim % len(self.shape)


@dataclass(frozen=True)
class Pointwise:
    """Every position of the map for itself.

    :ivar axes: the dimensions of height and width in the result.
    :ivar call: what to do to the windows; None: what the node does to maps.
    """

    axes: tuple[int, int]
    call: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Join:
    """Several maps of one size, every position for itself, as the node does it: sums, products, concatenations."""

    axes: tuple[int, int]


@dataclass(frozen=True)
class Sliding:
    """A convolution, pooling, padding or subsampling of maps [N, C, H, W].

    :ivar call: the operation without padding, on what :meth:`Slide.reads` of both axes has gathered.
    :ivar outside: the value around the map.
    :ivar weight: float64 [H'] and [W'], what to multiply the results at each row and column with.
    """

    y: Slide
    x: Slide
    size: tuple[int, int]
    call: Callable[[Tensor], Tensor]
    outside: float = 0.0
    weight: tuple[Tensor, Tensor] | None = None
    axes: tuple[int, int] = (2, 3)


Operation = Pointwise | Join | Sliding


@dataclass(frozen=True)
class _Case:
    """One node to understand: its windowed operands, and whatever a rule may ask about it."""

    node: fx.Node
    values: Mapping[fx.Node, Value]
    shapes: Shapes

    @property
    def operand(self) -> Value:
        return self.values[self.node.args[0]]  # type: ignore[index]

    @property
    def shape(self) -> Shape:
        shape = self.shapes[self.node]
        return shape if isinstance(shape, tuple) else ()

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[2], self.shape[3]

    def of_operand(self, name: str, place: int, default: Any = None) -> Any:
        """Return an argument given by place or name."""
        args = self.node.args
        return args[place] if len(args) > place else self.node.kwargs.get(name, default)

    def is_map(self) -> bool:
        return len(self.operand.shape) == 4 and self.operand.axes == (2, 3) and len(self.shape) == 4


def understand(node: fx.Node, values: Mapping[fx.Node, Value], shapes: Shapes) -> Operation | None:
    """Return what ``node`` does to windows, if it is known.

    ``values`` are all nodes that can be windows; ``node`` has at least one of them as an operand and, apart from
    these, only constants of the network.
    """
    operands = [other for other in node.all_input_nodes if other in values]
    case = _Case(node, values, shapes)
    if node.op == "call_module":
        module = plain_module(node)
        rule = _MODULES.get(type(module))
        return rule(case, module) if rule else None
    name = canonical_name(node)
    if name in BINARY_NAMES:
        return _binary(case, operands)
    if name in ("cat", "concat"):
        return _concatenation(case, operands)
    if len(operands) != 1 or not node.args or node.args[0] is not operands[0]:
        return None
    function = _FUNCTIONS.get(name)
    return function(case) if function else None


def _elementwise(case: _Case, _: object = None) -> Operation | None:
    constants = [other for other in case.node.all_input_nodes if case.shapes[other] is not None]
    same = case.shape == case.operand.shape and len(constants) == 1
    return Pointwise(case.operand.axes) if same else None


def _batch_norm(case: _Case, module: nn.Module) -> Operation | None:
    return Pointwise((2, 3)) if is_affine(module) and case.is_map() else None


def _across_channels(case: _Case, _: nn.Module) -> Operation | None:
    return Pointwise((2, 3)) if case.is_map() and case.shape == case.operand.shape else None


def _last_channels(case: _Case, count: int) -> Operation | None:
    """An operation over the last ``count`` dimensions that keeps the others."""
    value = case.operand
    free = max(0, *value.axes) < len(value.shape) - count
    return Pointwise(value.axes) if free and len(case.shape) == len(value.shape) else None


def _linear(case: _Case, _: object = None) -> Operation | None:
    return _last_channels(case, 1)


def _layer_norm_module(case: _Case, module: Any) -> Operation | None:
    return _last_channels(case, len(module.normalized_shape))


def _layer_norm(case: _Case) -> Operation | None:
    shape = case.of_operand("normalized_shape", 1)
    known = isinstance(shape, (list, tuple)) and all(isinstance(length, int) for length in shape)
    return _last_channels(case, len(shape)) if known else None


def _binary(case: _Case, operands: list[fx.Node]) -> Operation | None:
    values = [case.values[node] for node in operands]
    first = values[0]
    if any(case.shape != value.shape or first.axes != value.axes for value in values):
        return None
    if len(values) > 1:
        return Join(first.axes)
    constants = [case.shapes[node] for node in case.node.all_input_nodes if node not in operands]
    varies = (0, *first.axes)
    for shape in constants:
        front = len(first.shape) - len(shape or ())
        if isinstance(shape, list) or any(dim >= front and shape and shape[dim - front] != 1 for dim in varies):
            return None
    return Pointwise(first.axes)


def _concatenation(case: _Case, operands: list[fx.Node]) -> Operation | None:
    values = [case.values[node] for node in operands]
    first, dim = values[0], case.of_operand("dim", 1, 0)
    parts = case.node.args[0] if case.node.args else None
    if not isinstance(dim, int) or not isinstance(parts, (list, tuple)) or any(part not in operands for part in parts):
        return None
    alike = all(len(value.shape) == len(first.shape) and value.axes == first.axes for value in values)
    return Join(first.axes) if alike and first.dim(dim) in first.channels else None


def _convolution(case: _Case, module: Any) -> Operation | None:
    if module.padding_mode != "zeros" or not case.is_map():
        return None
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if module.padding == "same":
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    else:
        padding = [0, 0] if module.padding == "valid" else module.padding
    y, x = (Slide(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
    if kernel == stride == (1, 1) and not any(padding):
        return Pointwise((2, 3))
    inner = (y.inner_stride, x.inner_stride)
    return Sliding(
        y, x, case.size, lambda t: F.conv2d(t, module.weight, module.bias, inner, 0, dilation, module.groups)
    )


def _max_pool(case: _Case, module: Any) -> Operation | None:
    if module.return_indices or not case.is_map():
        return None
    kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
    axes = zip(kernel, _pair(module.stride), _pair(module.padding), dilation, strict=True)
    y, x = (Slide(*axis) for axis in axes)
    inner = (y.inner_stride, x.inner_stride)
    return Sliding(y, x, case.size, lambda t: F.max_pool2d(t, kernel, inner, 0, dilation), outside=-math.inf)


def _average_pool(case: _Case, module: Any) -> Operation | None:
    if not case.is_map():
        return None
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    y, x = (Slide(*axis) for axis in zip(kernel, stride, padding, strict=True))
    inner, divisor = (y.inner_stride, x.inner_stride), module.divisor_override
    weight = None
    if divisor is None:
        lengths = [case.operand.shape[dim] for dim in (2, 3)]
        counts = [
            _counts(slide, length, out, module.count_include_pad)
            for slide, length, out in zip((y, x), lengths, case.size, strict=True)
        ]
        if not all(bool((count == slide.kernel).all()) for count, slide in zip(counts, (y, x), strict=True)):
            weight = kernel[0] / counts[0], kernel[1] / counts[1]
    return Sliding(
        y, x, case.size, lambda t: F.avg_pool2d(t, kernel, inner, divisor_override=divisor), weight=weight
    )


def _counts(slide: Slide, length: int, out: int, with_padding: bool) -> Tensor:
    """Return float64 [out]: over how many inputs of an axis PyTorch's average pooling takes each mean."""
    first = torch.arange(out, dtype=torch.float64) * slide.stride - slide.padding
    last = (first + slide.kernel).clamp(max=length + slide.padding)
    return last - first if with_padding else last.clamp(max=length) - first.clamp(min=0)


def _max_pool_function(case: _Case) -> Operation | None:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return _pool_function(case, nn.MaxPool2d, names, _max_pool)


def _average_pool_function(case: _Case) -> Operation | None:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _pool_function(case, nn.AvgPool2d, names, _average_pool)


def _pool_function(
    case: _Case, kind: Callable[..., nn.Module], names: tuple[str, ...], rule: Callable[[_Case, Any], Operation | None]
) -> Operation | None:
    given = dict(zip(names, case.node.args[1:], strict=False)) | case.node.kwargs
    if len(case.node.all_input_nodes) > 1 or not set(given) <= set(names):
        return None
    given["stride"] = given.get("stride") or given["kernel_size"]  # [] and None mean the kernel's size
    return rule(case, kind(**given))


def _padding_module(case: _Case, module: Any) -> Operation | None:
    return _pad(case, module.padding, module.value)


def _pad_function(case: _Case) -> Operation | None:
    pad, mode = case.of_operand("pad", 1), case.of_operand("mode", 2, "constant")
    if mode != "constant" or not isinstance(pad, (list, tuple)) or not all(isinstance(p, int) for p in pad):
        return None
    return _pad(case, pad, case.of_operand("value", 3) or 0.0)


def _pad(case: _Case, pad: Any, value: Any) -> Operation | None:
    """Padding of the map is a slide of single values; that of the channels leaves every position for itself."""
    if not case.is_map() or len(pad) not in (4, 6) or not isinstance(value, (int, float)):
        return None
    if not any(pad[:4]):
        return Pointwise((2, 3))
    if any(pad[4:]):
        return None
    return Sliding(Slide(1, 1, pad[2]), Slide(1, 1, pad[0]), case.size, lambda t: t, outside=value)


def _permute(case: _Case) -> Operation | None:
    dims = case.node.args[1:] or (case.node.kwargs.get("dims"),)
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims
    return _reordered(case, list(order))


def _transpose(case: _Case) -> Operation | None:
    order: list[Any] = list(range(len(case.operand.shape)))
    one, other = case.of_operand("dim0", 1), case.of_operand("dim1", 2)
    if not isinstance(one, int) or not isinstance(other, int):
        return None
    one, other = case.operand.dim(one), case.operand.dim(other)
    order[one], order[other] = other, one
    return _reordered(case, order)


def _reordered(case: _Case, order: list[Any]) -> Operation | None:
    if not all(isinstance(dim, int) for dim in order):
        return None
    order = [case.operand.dim(dim) for dim in order]
    height, width = case.operand.axes
    return Pointwise((order.index(height), order.index(width))) if order[0] == 0 else None


def _regrouped(case: _Case) -> Operation | None:
    """``view`` and ``reshape`` that regroup channels before a height and width that stay last."""
    value, shape = case.operand, case.shape
    last = (len(value.shape) - 2, len(value.shape) - 1)
    if value.axes != last or len(shape) < 3 or (shape[0], *shape[-2:]) != (value.shape[0], *value.shape[-2:]):
        return None
    groups = shape[1:-2]
    return Pointwise((len(shape) - 2, len(shape) - 1), lambda t: t.reshape(len(t), *groups, *t.shape[-2:]))


def _contiguous(case: _Case) -> Operation | None:
    return Pointwise(case.operand.axes, lambda t: t)


def _unsqueeze(case: _Case) -> Operation | None:
    dim = case.of_operand("dim", 1)
    if not isinstance(dim, int):
        return None
    dim %= len(case.operand.shape) + 1
    height, width = (axis + (axis >= dim) for axis in case.operand.axes)
    return Pointwise((height, width)) if dim > 0 else None


def _parts(case: _Case) -> Operation | None:
    """``chunk`` and ``split`` of channels stay whole as windows; the :func:`_item` rule takes the parts."""
    dim, taken = case.of_operand("dim", 2, 0), [canonical_name(user) == "getitem" for user in case.node.users]
    known = isinstance(dim, int) and case.operand.dim(dim) in case.operand.channels and all(taken)
    return Pointwise(case.operand.axes, lambda t: t) if known else None


def _item(case: _Case) -> Operation | None:
    source, which = case.node.args
    parts = case.shapes[source]  # type: ignore[index]
    if isinstance(parts, list):
        return _part(case, source, parts, which)
    return _slices(case, which if isinstance(which, tuple) else (which,))


def _part(case: _Case, source: Any, parts: list[Shape], which: Any) -> Operation | None:
    if not isinstance(which, int) or canonical_name(source) not in ("chunk", "split"):
        return None
    which %= len(parts)
    dim = case.operand.dim(_Case(source, case.values, case.shapes).of_operand("dim", 2, 0))
    start, length = sum(part[dim] for part in parts[:which]), parts[which][dim]
    return Pointwise(case.operand.axes, lambda t: t.narrow(dim, start, length))


def _slices(case: _Case, index: tuple[Any, ...]) -> Operation | None:
    """Channels by number or slice; or every n-th row and column of the map, from the first."""
    value = case.operand
    index = (*index, *[slice(None)] * (len(value.shape) - len(index)))
    if len(index) > len(value.shape) or not all(isinstance(one, (int, slice)) for one in index):
        return None
    plain = [dim for dim, one in enumerate(index) if one == slice(None)]
    if {0, *value.axes} <= set(plain):
        height, width = (axis - sum(isinstance(one, int) for one in index[:axis]) for axis in value.axes)
        return Pointwise((height, width)) if _constant(index) else None
    return _subsampled(case, index) if case.is_map() and plain[:2] == [0, 1] else None


def _constant(index: tuple[Any, ...]) -> bool:
    parts = [part for one in index for part in ((one.start, one.stop, one.step) if isinstance(one, slice) else (one,))]
    return all(part is None or isinstance(part, int) for part in parts)


def _subsampled(case: _Case, index: tuple[Any, ...]) -> Operation | None:
    if not all(isinstance(one, slice) for one in index) or not _constant(index):
        return None
    y, x = (one.indices(length) for one, length in zip(index[2:], case.operand.shape[2:], strict=True))
    return Sliding(Slide(1, y[2], -y[0]), Slide(1, x[2], -x[0]), case.size, lambda t: t)


def _pair(value: Any) -> tuple[int, int]:
    """Return an option of a pooling module for both axes."""
    if isinstance(value, int):
        return value, value
    first, last = value[0], value[-1]
    return int(first), int(last)


_MODULES: dict[type, Callable[[_Case, Any], Operation | None]] = {
    **dict.fromkeys((*ELEMENTWISE_MODULES, nn.Identity), _elementwise),
    nn.BatchNorm2d: _batch_norm,
    nn.LocalResponseNorm: _across_channels,
    nn.ChannelShuffle: _across_channels,
    nn.PReLU: _across_channels,
    nn.LayerNorm: _layer_norm_module,
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.ZeroPad2d: _padding_module,
    nn.ConstantPad2d: _padding_module,
}
_FUNCTIONS: dict[str, Callable[[_Case], Operation | None]] = {
    **dict.fromkeys(ELEMENTWISE_NAMES, _elementwise),
    "linear": _linear,
    "layer_norm": _layer_norm,
    "max_pool2d": _max_pool_function,
    "avg_pool2d": _average_pool_function,
    "pad": _pad_function,
    "permute": _permute,
    "transpose": _transpose,
    "view": _regrouped,
    "reshape": _regrouped,
    "contiguous": _contiguous,
    "unsqueeze": _unsqueeze,
    "chunk": _parts,
    "split": _parts,
    "getitem": _item,
}
