"""Layers at the processor's full rate: oneDNN with weights that were brought into its own layout once.

A call of a convolution brings its weights into that layout anew, which is felt where many small batches of windows
go through large kernels. And float32 linear layers go to MKL, which keeps to half-wide vectors on other makers'
processors; oneDNN does not. These operations are what PyTorch's own compiler uses for both; where they are not
there, or not as expected, the layers are called as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Network = TypeVar("_Network", bound=nn.Module)

_FEWEST_WEIGHTS = 2**17  # of a linear layer
_LARGE_KERNEL = 2**19  # values, from which on their way into the layout is felt
_packed: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


class Linear(nn.Linear):
    """A linear layer whose weights are kept in oneDNN's layout as well, for where no gradient is asked."""

    def forward(self, input: Tensor) -> Tensor:
        """Map float [..., inputs] to [..., outputs]."""
        if input.dtype != torch.float32 or not _packs(input):
            return F.linear(input, self.weight, self.bias)
        weight = _packed.get(self)
        if weight is None:
            rows = input.numel() // self.in_features
            weight = _packed[self] = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, self.bias, "none", [], "")
        return result


def with_fast_products(network: _Network) -> _Network:
    """Return ``network`` with its large linear layers, in place, as :class:`Linear` where the processor gains by it."""
    if mkl_is_held_back():
        for module in network.modules():
            for name, layer in module.named_children():
                if type(layer) is nn.Linear and layer.weight.numel() >= _FEWEST_WEIGHTS and not _hooked(layer):
                    setattr(module, name, _fast(layer))
    return network


def convolution(module: nn.Conv2d, stride: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return ``module`` without padding, of another stride, as a function of float [N, C, H, W]."""
    dilation: Any = module.dilation
    # The layout depends on the batch's shape; for other kernels than these the one found first suits few others.
    suits = module.kernel_size == (3, 3) and module.weight.numel() >= _LARGE_KERNEL and module.groups == 1

    def convolve(x: Tensor) -> Tensor:
        if not suits or not _packs(x):
            return F.conv2d(x, module.weight, module.bias, stride, 0, dilation, module.groups)
        weight = _packed.get(module)
        if weight is None:
            weight = _packed[module] = _pack(module.weight, stride, dilation, x.shape)
        return _convolved(x, weight, module.bias, stride, dilation)

    return convolve


def by_matrix(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """Return the product of float [N, inputs] with ``weight``, float [outputs, inputs], as a function.

    It has no gradient. ``rows`` is about how many N will be.
    """
    if weight.device.type != "cpu" or not packing_works(weight.dtype):
        return partial(F.linear, weight=weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def multiply(rows: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
        return result

    return multiply


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _fast(layer: nn.Linear) -> Linear:
    fast = Linear(1, 1, device="meta")
    fast.in_features, fast.out_features = layer.in_features, layer.out_features
    fast.weight, fast.bias = layer.weight, layer.bias
    return fast.train(layer.training)


def _packs(x: Tensor) -> bool:
    """Can the operations on packed weights take ``x``? They have no gradient."""
    plain = torch.is_inference_mode_enabled() and x.device.type == "cpu" and x.numel() > 0
    return plain and packing_works(x.dtype)


def _pack(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], shape: Sequence[int]) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, [0, 0], list(stride), list(dilation), 1, list(shape)
    )
    return packed


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [0, 0], list(stride), list(dilation), 1, "none", [], ""
    )
    return result


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Are PyTorch's operations on packed weights here, and do they compute what they should?"""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, kernel, rows, matrix = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 8, 5, 5), (8, 8, 3, 3), (4, 8), (6, 8))
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    try:
        packed = _pack(kernel, (1, 1), (1, 1), x.shape)
        same = torch.allclose(_convolved(x, packed, None, (1, 1), (1, 1)), F.conv2d(x, kernel), atol=tolerance)
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix, len(rows))
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return same and torch.allclose(product, F.linear(rows, matrix), atol=tolerance)


@cache
def mkl_is_held_back() -> bool:
    """Is this a processor on which oneDNN multiplies faster than MKL? Known by its maker, so always the same."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        maker = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return maker and "AVX512" in torch.backends.cpu.get_cpu_capability()
