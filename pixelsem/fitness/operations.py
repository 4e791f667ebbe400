"""What the operations of a network do to windows: the few kinds there are, and which operation is of which.

An operation that no rule here knows, or knows in another form, is of no kind: it is computed on whole maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from pixelsem.fitness import rearranging, sliding
from pixelsem.fitness.graph import (
    BINARY_NAMES,
    ELEMENTWISE_MODULES,
    ELEMENTWISE_NAMES,
    canonical_name,
    is_affine,
    plain_module,
)
from pixelsem.fitness.kinds import Case, Join, Operation, Pointwise, Shapes, Value
from pixelsem.fitness.products import Linear


def understand(node: fx.Node, values: Mapping[fx.Node, Value], shapes: Shapes) -> Operation | None:
    """Return what ``node`` does to windows, if it is known.

    ``values`` are all nodes that can be windows; ``node`` has at least one of them as an operand and, apart from
    these, only constants of the network.
    """
    operands = [other for other in node.all_input_nodes if other in values]
    case = Case(node, values, shapes)
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


def _elementwise(case: Case, _: object = None) -> Operation | None:
    tensors = [other for other in case.node.all_input_nodes if case.shapes[other] is not None]
    same = case.shape == case.operand.shape and len(tensors) == 1
    return Pointwise(case.operand.axes) if same else None


def _batch_norm(case: Case, module: nn.Module) -> Operation | None:
    return Pointwise((2, 3)) if is_affine(module) and case.is_map() else None


def _across_channels(case: Case, _: nn.Module) -> Operation | None:
    return Pointwise((2, 3)) if case.is_map() and case.shape == case.operand.shape else None


def _last_channels(case: Case, count: int) -> Operation | None:
    """An operation over the last ``count`` dimensions that keeps the others."""
    value = case.operand
    free = max(0, *value.axes) < len(value.shape) - count
    return Pointwise(value.axes) if free and len(case.shape) == len(value.shape) else None


def _linear(case: Case, _: object = None) -> Operation | None:
    return _last_channels(case, 1)


def _layer_norm_module(case: Case, module: Any) -> Operation | None:
    return _last_channels(case, len(module.normalized_shape))


def _layer_norm(case: Case) -> Operation | None:
    shape = case.argument("normalized_shape", 1)
    known = isinstance(shape, (list, tuple)) and all(isinstance(length, int) for length in shape)
    return _last_channels(case, len(shape)) if known else None


def _binary(case: Case, operands: list[fx.Node]) -> Operation | None:
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


def _concatenation(case: Case, operands: list[fx.Node]) -> Operation | None:
    values = [case.values[node] for node in operands]
    first, dim = values[0], case.argument("dim", 1, 0)
    parts = case.node.args[0] if case.node.args else None
    if not isinstance(dim, int) or not isinstance(parts, (list, tuple)) or any(part not in operands for part in parts):
        return None
    alike = all(len(value.shape) == len(first.shape) and value.axes == first.axes for value in values)
    return Join(first.axes) if alike and first.dim(dim) in first.channels else None


_MODULES: dict[type, Callable[[Case, Any], Operation | None]] = {
    **dict.fromkeys(ELEMENTWISE_MODULES, _elementwise),
    nn.BatchNorm2d: _batch_norm,
    nn.LocalResponseNorm: _across_channels,
    nn.ChannelShuffle: _across_channels,
    nn.PReLU: _across_channels,
    nn.LayerNorm: _layer_norm_module,
    nn.Linear: _linear,
    Linear: _linear,
    nn.Conv2d: sliding.convolution,
    nn.MaxPool2d: sliding.max_pool,
    nn.AvgPool2d: sliding.average_pool,
    nn.ZeroPad2d: sliding.padding_module,
    nn.ConstantPad2d: sliding.padding_module,
}
_FUNCTIONS: dict[str, Callable[[Case], Operation | None]] = {
    **dict.fromkeys(ELEMENTWISE_NAMES, _elementwise),
    "linear": _linear,
    "layer_norm": _layer_norm,
    "max_pool2d": sliding.max_pool_function,
    "avg_pool2d": sliding.average_pool_function,
    "pad": sliding.pad_function,
    "permute": rearranging.permute,
    "transpose": rearranging.transpose,
    "view": rearranging.regrouped,
    "reshape": rearranging.regrouped,
    "contiguous": rearranging.contiguous,
    "unsqueeze": rearranging.unsqueeze,
    "chunk": rearranging.parts,
    "split": rearranging.parts,
    "split_with_sizes": rearranging.parts,
    "slice": rearranging.sliced,
    "select": rearranging.selected,
    "getitem": rearranging.item,
}
