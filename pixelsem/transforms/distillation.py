"""Feature distillation: JPEG's quantisation made for networks (Liu et al. 2018; "DNN-Oriented JPEG" in dong2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pixelsem.transforms.settings import DnnJpegSettings

_BLOCK = 8
_LOW = 4  # frequencies per axis that count as low
_LOW_STEP, _HIGH_STEP = 25, 30


def distil(images: Tensor, settings: DnnJpegSettings) -> Tensor:
    """Quantise the DCT of uint8 [N, 3, H, W] and turn it back: uint8 [N, 3, H, W].

    Each 8×8 block of each RGB channel (values 0 to 255, no level shift, no change of colour space) goes through the
    orthonormal DCT-II; each coefficient is rounded to a multiple of its step (:func:`steps`), halves up. Where a side
    is no multiple of 8, its last pixels are repeated as far as the last block needs.
    """
    height, width = images.shape[2:]
    padded = functional.pad(images.double(), (0, -width % _BLOCK, 0, -height % _BLOCK), mode="replicate")
    basis = dct_basis(images.device)
    table = steps(settings.quality).to(images.device)
    quantised = _rounded(basis @ _to_blocks(padded) @ basis.T / table) * table
    restored = _from_blocks(basis.T @ quantised @ basis, padded.shape)
    return _rounded(restored[:, :, :height, :width]).clamp(0, 255).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    # Flat blocks come to lie on halves; these go up whatever the order of a sum makes of them.
    rounded: Tensor = torch.floor(values + (0.5 + 1e-9))
    return rounded


def steps(quality: int) -> Tensor:
    """Return the quantisation steps, float64 [8, 8], by vertical and horizontal frequency.

    25 in the low 4×4 frequencies and 30 elsewhere at quality 50; scaled by 50/q below that and by 2 − q/50 above, as
    libjpeg scales its tables, in whole numbers and at least 1.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = torch.full((_BLOCK, _BLOCK), _HIGH_STEP)
    table[:_LOW, :_LOW] = _LOW_STEP
    scaled: Tensor = (table * scale + 50) // 100
    return scaled.clamp(min=1).double()


def dct_basis(device: torch.device | str = "cpu") -> Tensor:
    """Return the orthonormal DCT-II of 8 values as a matrix, float64 [8, 8] (frequency, place)."""
    frequency = torch.arange(_BLOCK, dtype=torch.float64)[:, None]
    place = torch.arange(_BLOCK, dtype=torch.float64)[None]
    basis = torch.cos(torch.pi * (place + 0.5) * frequency / _BLOCK) * (2 / _BLOCK) ** 0.5
    basis[0] /= 2**0.5
    moved: Tensor = basis.to(device)
    return moved


def _to_blocks(images: Tensor) -> Tensor:
    """Cut [N, 3, H, W] into blocks, [N, 3, H/8, W/8, 8, 8]."""
    blocks: Tensor = images.unflatten(3, (-1, _BLOCK)).unflatten(2, (-1, _BLOCK))
    return blocks.transpose(3, 4)


def _from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.transpose(3, 4).reshape(shape)
