"""Where a patch lies in an image, and how it is pasted there."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from pixelsem.attacks.settings_patches import Place, Shape


def patch_mask(share: float, shape: Shape, height: int, width: int) -> Tensor:
    """Return the patch's pixels, bool [h, w], for images of height × width: about ``share`` of them.

    A square has the proportions of the image, and so has the box of a circle, which becomes an ellipse where
    the image is no square. Both sides are rounded and at least 1.
    """
    scale = (share * (4 / pi if shape == "circle" else 1)) ** 0.5
    h, w = (max(1, min(side, round(side * scale))) for side in (height, width))
    if shape == "square":
        return torch.ones(h, w, dtype=torch.bool)
    y, x = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1 for side in (h, w))
    inside: Tensor = y[:, None] ** 2 + x**2 <= 1
    return inside


def find_places(regions: Tensor, mask: Tensor, place: Place, draws: Tensor) -> Tensor:
    """Return the top left corner of a patch in each region, int64 [n, 2] (row, column).

    ``regions`` is bool [n, H, W], none empty; ``mask`` bool [h, w], the patch's pixels, no larger than the image;
    ``draws`` float64 [n] in [0, 1) choose among the places that are equally good: ``random`` those where the patch
    meets the region, ``corner`` those in a corner of the image among them, ``region`` those where it covers most of
    the region, which also stands in where no corner meets it.
    """
    covered = _overlap(regions, mask)
    rows, columns = covered.shape[1:]
    good = covered > 0
    most = covered == covered.amax((1, 2), keepdim=True)
    if place == "region":
        good = most
    elif place == "corner":
        ends = [torch.zeros(count, dtype=torch.bool, device=good.device) for count in (rows, columns)]
        for end in ends:
            end[[0, -1]] = True
        good = good & ends[0][:, None] & ends[1]
        good = torch.where(good.any(2, keepdim=True).any(1, keepdim=True), good, most)
    flat = good.flatten(1)
    chosen = (draws * flat.sum(1)).floor().long()
    at = (flat.cumsum(1) > chosen[:, None]).long().argmax(1)
    return torch.stack([at // columns, at % columns], 1)


def _overlap(regions: Tensor, mask: Tensor) -> Tensor:
    """Return how many pixels of each region a patch covers, int64 [n, H − h + 1, W − w + 1], by its top left corner.

    It is a correlation, computed by FFT; whole numbers, so that rounding makes it exact. Within these places
    nothing wraps around.
    """
    (height, width), (h, w) = regions.shape[1:], mask.shape
    spectrum = torch.fft.rfft2(regions.double()) * torch.fft.rfft2(mask.double(), s=(height, width)).conj()
    counts = torch.fft.irfft2(spectrum, s=(height, width))
    valid: Tensor = counts[:, : height - h + 1, : width - w + 1]
    return valid.round().long()


class Placement:
    """Patches of one shape in n images, each at its own place and cut to its own region.

    :ivar usable: bool [n, 1, h, w], the patch's pixels that are in the region.
    :ivar boxes: int64 [n, 4], top, left, h, w.
    """

    def __init__(self, clean: Tensor, regions: Tensor, mask: Tensor, corners: Tensor) -> None:
        """Take float [n, 3, H, W] images, bool [n, H, W] regions, bool [h, w] mask and int64 [n, 2] corners."""
        (h, w), width = mask.shape, clean.shape[3]
        rows = corners[:, :1] + torch.arange(h, device=corners.device)
        columns = corners[:, 1:] + torch.arange(w, device=corners.device)
        self._clean = clean
        self._position = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, 3, -1)
        self._under = clean.flatten(2).gather(2, self._position).view(-1, 3, h, w)
        inside = regions.flatten(1).gather(1, self._position[:, 0]).view(-1, 1, h, w)
        self.usable = inside & mask
        self.boxes = torch.cat([corners, torch.tensor([[h, w]], device=corners.device).expand(len(corners), 2)], 1)

    def paste(self, content: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Return the images ``index`` with float [k, 3, h, w] ``content`` in them; differentiable."""
        cut = torch.where(self.usable[index], content, self._under[index])
        clean = self._clean[index]
        return clean.flatten(2).scatter(2, self._position[index], cut.flatten(2)).view(clean.shape)

    @property
    def clean_content(self) -> Tensor:
        """What is under the patches, float [n, 3, h, w]."""
        return self._under

    @property
    def areas(self) -> Tensor:
        """How many pixels each patch has left, int64 [n]."""
        return self.usable.sum((1, 2, 3))

    def keep(self, which: Tensor) -> None:
        """Drop every image that bool [n] ``which`` does not mark."""
        for name in ("_clean", "_position", "_under", "usable", "boxes"):
            setattr(self, name, getattr(self, name)[which])
