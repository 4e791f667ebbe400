"""Convolutions, pooling, padding and subsampling, which read a neighbourhood of every position."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelsem.fitness import products
from pixelsem.fitness.kinds import Case, Operation, Pointwise, Sliding
from pixelsem.fitness.spreading import spread
from pixelsem.fitness.windows import Slide


def convolution(case: Case, module: Any) -> Operation | None:
    """``Conv2d`` with zeros around the map; a 1×1 convolution is pointwise."""
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
    return Sliding(
        *(y, x, case.size, products.convolution(module, (y.inner_stride, x.inner_stride))),
        spread=spread(module, (y.padding, x.padding), single=case.operand.placement.largest == (1, 1)),
    )


def max_pool(case: Case, module: Any) -> Operation | None:
    """``MaxPool2d``."""
    if module.return_indices or not case.is_map():
        return None
    kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
    stride, padding = _pair(module.stride), _pair(module.padding)
    y, x = (Slide(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
    inner = (y.inner_stride, x.inner_stride)
    return Sliding(y, x, case.size, lambda t: F.max_pool2d(t, kernel, inner, 0, dilation), outside=-math.inf)


def average_pool(case: Case, module: Any) -> Operation | None:
    """``AvgPool2d``; at the border its means may be over fewer values."""
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
    return Sliding(y, x, case.size, lambda t: F.avg_pool2d(t, kernel, inner, divisor_override=divisor), weight=weight)


def _counts(slide: Slide, length: int, out: int, with_padding: bool) -> Tensor:
    """Return float64 [out]: over how many inputs of an axis PyTorch's average pooling takes each mean."""
    first = torch.arange(out, dtype=torch.float64) * slide.stride - slide.padding
    last = (first + slide.kernel).clamp(max=length + slide.padding)
    return last - first if with_padding else last.clamp(max=length) - first.clamp(min=0)


def max_pool_function(case: Case) -> Operation | None:
    """``max_pool2d``."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return _pool_function(case, nn.MaxPool2d, names, max_pool)


def average_pool_function(case: Case) -> Operation | None:
    """``avg_pool2d``."""
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _pool_function(case, nn.AvgPool2d, names, average_pool)


def _pool_function(
    case: Case, kind: Callable[..., nn.Module], names: tuple[str, ...], rule: Callable[[Case, Any], Operation | None]
) -> Operation | None:
    given = dict(zip(names, case.node.args[1:], strict=False)) | case.node.kwargs
    if len(case.node.all_input_nodes) > 1 or not set(given) <= set(names):
        return None
    given["stride"] = given.get("stride") or given["kernel_size"]  # [] and None mean the kernel's size
    return rule(case, kind(**given))


def padding_module(case: Case, module: Any) -> Operation | None:
    """``ZeroPad2d`` and ``ConstantPad2d``."""
    return _pad(case, module.padding, module.value)


def pad_function(case: Case) -> Operation | None:
    """``pad`` with a constant."""
    pad, mode = case.argument("pad", 1), case.argument("mode", 2, "constant")
    if mode != "constant" or not isinstance(pad, (list, tuple)) or not all(isinstance(p, int) for p in pad):
        return None
    return _pad(case, pad, case.argument("value", 3) or 0.0)


def _pad(case: Case, pad: Any, value: Any) -> Operation | None:
    """Padding of the map is a slide of single values; that of the channels leaves every position for itself."""
    if not case.is_map() or len(pad) not in (2, 4, 6) or not isinstance(value, (int, float)):
        return None
    if not any(pad[:4]):
        return Pointwise((2, 3))
    if any(pad[4:]):
        return None
    pad = (*pad, 0, 0)
    return Sliding(Slide(1, 1, pad[2]), Slide(1, 1, pad[0]), case.size, lambda t: t, outside=value)


def subsampled(case: Case, index: tuple[slice, ...]) -> Operation | None:
    """Slices of a map [N, C, H, W] along its height and width alone."""
    y, x = (one.indices(length) for one, length in zip(index[2:], case.operand.shape[2:], strict=True))
    return Sliding(Slide(1, y[2], -y[0]), Slide(1, x[2], -x[0]), case.size, lambda t: t)


def _pair(value: Any) -> tuple[int, int]:
    """Return an option of a pooling module for both axes."""
    if isinstance(value, int):
        return value, value
    first, last = value[0], value[-1]
    return int(first), int(last)
