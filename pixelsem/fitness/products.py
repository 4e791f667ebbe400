"""Matrix products at the processor's full rate.

For float32 PyTorch multiplies matrices with MKL, which keeps to half-wide vectors on other makers' processors, and
convolves with oneDNN, which does not. A linear layer is a 1×1 convolution of a map that has its rows as pixels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Network = TypeVar("_Network", bound=nn.Module)

_FEWEST_ROWS = 128  # with fewer, the weights' way into oneDNN's layout is longer than the product
_FEWEST_WEIGHTS = 2**17


class Linear(nn.Linear):
    """A linear layer, computed as a convolution where that is the faster way to the same numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """Map float [..., inputs] to [..., outputs]."""
        rows = input.numel() // self.in_features
        if input.dtype != torch.float32 or input.is_cuda or rows < _FEWEST_ROWS or input.dim() < 2:
            return F.linear(input, self.weight, self.bias)
        pixels = input.reshape(1, 1, rows, self.in_features).permute(0, 3, 1, 2)
        result = F.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return result.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


def with_fast_products(network: _Network) -> _Network:
    """Return ``network`` with its large linear layers, in place, as :class:`Linear` where the processor gains by it."""
    if convolutions_are_faster():
        for module in network.modules():
            for name, layer in module.named_children():
                if type(layer) is nn.Linear and layer.weight.numel() >= _FEWEST_WEIGHTS and not _hooked(layer):
                    setattr(module, name, _fast(layer))
    return network


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _fast(layer: nn.Linear) -> Linear:
    fast = Linear(1, 1, device="meta")
    fast.in_features, fast.out_features = layer.in_features, layer.out_features
    fast.weight, fast.bias = layer.weight, layer.bias
    return fast.train(layer.training)


@cache
def convolutions_are_faster() -> bool:
    """Is this a processor on which oneDNN multiplies faster than MKL? Known by its maker, so always the same."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        maker = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return maker and "AVX512" in torch.backends.cpu.get_cpu_capability()
