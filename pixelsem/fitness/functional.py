"""Layers that a network calls as functions of its parameters, as the modules that they could be as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Given = Mapping[str, Any]


def layer(name: str, given: Given) -> nn.Module | None:
    """Return the layer that the function ``name`` is for the arguments ``given``; None where it is none of those known.

    ``given`` are the arguments by the names that PyTorch gives them, parameters as tensors, the input left out.
    The parameters are those of the layer, not copies.
    """
    make = _LAYERS.get(name)
    made = make(given) if make else None
    return made.eval() if made else None


def _convolution(given: Given) -> nn.Module | None:
    weight, bias, padding = given["weight"], given["bias"], given["padding"]
    if not isinstance(weight, Tensor) or weight.ndim != 4:
        return None
    out, each, *kernel = weight.shape
    stride, dilation = _pair(given["stride"]), _pair(given["dilation"])
    padding = padding if isinstance(padding, str) else _pair(padding)
    groups = given["groups"]
    options = {"groups": groups, "bias": bias is not None, "device": "meta"}
    module = nn.Conv2d(groups * each, out, (kernel[0], kernel[1]), stride, padding, dilation, **options)
    return _with(module, weight=weight, bias=bias)


def _batch_norm(given: Given) -> nn.Module | None:
    weight, bias, mean, variance = (given[key] for key in ("weight", "bias", "running_mean", "running_var"))
    if given.get("training") or mean is None or variance is None or (weight is None) != (bias is None):
        return None
    module = nn.BatchNorm2d(len(mean), given["eps"], affine=weight is not None, device="meta")
    return _with(module, weight=weight, bias=bias, running_mean=mean, running_var=variance, num_batches_tracked=None)


def _prelu(given: Given) -> nn.Module | None:
    return _with(nn.PReLU(given["weight"].numel(), device="meta"), weight=given["weight"])


def _with(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, value in tensors.items():
        if name in module._parameters and value is not None and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        setattr(module, name, value)
    return module


def _pair(value: Any) -> tuple[int, int]:
    first, last = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return int(first), int(last)


_LAYERS: dict[str, Callable[[Given], nn.Module | None]] = {
    "conv2d": _convolution,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "prelu": _prelu,
}
