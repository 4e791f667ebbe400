"""Bit-depth reduction (Xu et al. 2018, "Feature Squeezing"; dong2020, §4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelsem.transforms.settings import BitDepthSettings


def reduce_depth(images: Tensor, settings: BitDepthSettings) -> Tensor:
    """Round uint8 [N, 3, H, W] to 2^d levels per channel, spread evenly from 0 to 255; uint8 [N, 3, H, W].

    x becomes round(x/255 · (2^d − 1)) / (2^d − 1) · 255, rounded. Depth 8 changes nothing.
    """
    steps = 2**settings.depth - 1
    # In whole numbers: no half ever comes up, as 255 and steps are odd.
    levels = torch.arange(256, device=images.device)
    kept = (2 * levels * steps + 255) // 510
    table: Tensor = ((510 * kept + steps) // (2 * steps)).to(torch.uint8)
    reduced: Tensor = table[images.long()]
    return reduced
