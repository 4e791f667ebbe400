"""JPEG compression (Das et al. 2017; dong2020, §4.2), by a real encoder and decoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from pixelsem.images import jpeg_round_trip
from pixelsem.transforms.settings import JpegSettings


def jpeg(images: Tensor, settings: JpegSettings) -> Tensor:
    """Compress and decode uint8 [N, 3, H, W]: uint8 [N, 3, H, W], bit for bit what Pillow gives.

    The images go to the processor and back; its threads share them.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    compress = partial(jpeg_round_trip, quality=settings.quality, subsampling=settings.subsampling)
    # A map over threads: the codecs leave the interpreter to others meanwhile.
    done = list(_pool().map(compress, pixels))
    out = np.stack(done) if done else pixels
    return torch.from_numpy(out).to(images.device).permute(0, 3, 1, 2).contiguous()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="jpeg")
