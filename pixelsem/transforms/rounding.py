"""Between 8 bits and floats in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.float() / 255


def to_8_bits(images: Tensor) -> Tensor:
    """Return floats as uint8, rounded to the nearest level; what lies outside of [0, 1] is cut off."""
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8)
