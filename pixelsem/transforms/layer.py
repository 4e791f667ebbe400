"""Transforms as a layer in front of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixelsem.transforms.rounding import to_8_bits, to_unit
from pixelsem.transforms.specs import Defense


class DefenseLayer(nn.Module):
    """Applies transforms in their order: float [N, 3, H, W] in [0, 1] to float32 [N, 3, H, W] in [0, 1].

    What comes out is exactly what the transforms make of the 8-bit image: the input is rounded to 8 bits first, each
    transform gives 8 bits. Gradients go back through each transform by its differentiable stand-in, or straight
    through where it has none (BPDA: Athalye et al. 2018, §4.1), and straight through the rounding.
    """

    def __init__(self, defenses: Sequence[Defense]) -> None:
        super().__init__()
        self.defenses = tuple(defenses)
        self._loaded = [(each.info.load(), each.info.load_surrogate(), each.settings) for each in self.defenses]

    def forward(self, images: Tensor) -> Tensor:
        """Return the transformed images."""
        wanted = torch.is_grad_enabled() and images.requires_grad
        for transform, surrogate, settings in self._loaded:
            with torch.no_grad():
                exact = to_unit(transform(to_8_bits(images.detach()), settings))
            smooth = images if surrogate is None or not wanted else surrogate(images, settings)
            images = _Exact.apply(exact, smooth) if wanted else exact
        return images


class _Exact(torch.autograd.Function):
    """The value of its first argument with the gradient of its second."""

    @staticmethod
    def forward(context: Any, exact: Tensor, smooth: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def apply(images: Tensor, defenses: Sequence[Defense]) -> Tensor:
    """Apply transforms in their order to uint8 [N, 3, H, W]: uint8 [N, 3, H, W]."""
    for defense in defenses:
        images = defense.info.load()(images, defense.settings)
    return images
