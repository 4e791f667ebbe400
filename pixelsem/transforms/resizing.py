"""Resizing down and up again (dong2020, §4.2 and Fig. 4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from pixelsem.transforms.rounding import to_8_bits, to_unit
from pixelsem.transforms.settings import ResizeSettings


def resize(images: Tensor, settings: ResizeSettings) -> Tensor:
    """Shrink uint8 [N, 3, H, W] to H/γ × W/γ (rounded, at least 1 × 1) and enlarge it again; uint8 [N, 3, H, W].

    The small image is one of 8 bits too, as image libraries make it. γ = 1 changes nothing.
    """
    small = _small(images, settings)
    if small == tuple(images.shape[2:]):
        return images.clone()
    shrunk = to_unit(to_8_bits(_to(to_unit(images), small, settings)))
    return to_8_bits(_to(shrunk, (images.shape[2], images.shape[3]), settings))


def smooth_resize(images: Tensor, settings: ResizeSettings) -> Tensor:
    """As :func:`resize` for float [N, 3, H, W], without rounding and without bounds: linear, so its own gradient."""
    return _to(_to(images, _small(images, settings), settings), (images.shape[2], images.shape[3]), settings)


def _small(images: Tensor, settings: ResizeSettings) -> tuple[int, int]:
    height, width = images.shape[2:]
    return max(1, round(height / settings.gamma)), max(1, round(width / settings.gamma))


def _to(images: Tensor, size: tuple[int, int], settings: ResizeSettings) -> Tensor:
    return functional.interpolate(images, size, mode=settings.interpolation, align_corners=False, antialias=True)
