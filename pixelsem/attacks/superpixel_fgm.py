"""Superpixel-guided attentional fast gradient methods: SA-FGM, SAI-FGM and M-SAI-FGM (dong2020 §3.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.fgm import Noise, ascend, budget_of
from pixelsem.attacks.rounding import round_noise
from pixelsem.attacks.settings_dong2020 import SaFgmSettings
from pixelsem.fitness.evaluator import Evaluator


def superpixel_fast_gradient(
    searches: Searches, evaluator: Evaluator, settings: SaFgmSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Change the attended superpixels, each as a whole, within an L2 budget; yield an :class:`Outcome` each.

    ``settings`` are :class:`SaFgmSettings`, :class:`SaiFgmSettings` or :class:`MSaiFgmSettings` of
    :mod:`pixelsem.attacks.settings_dong2020`; ``searches`` have superpixels and attention. See
    :class:`SuperpixelNoise`. Raises :class:`ValueError` where these are missing.
    """
    return ascend(SuperpixelNoise(searches, evaluator.device, settings), searches, evaluator, settings, progress)


class SuperpixelNoise(Noise):
    """One noise per superpixel and colour channel: the vector n of Eqs. 3 to 5, float [n, 3, K].

    ``f(n; t)`` gathers it by the superpixel map, Crop keeps the pixels that are both in the region and attended
    (attention of at least φ, Eq. 2), Scale stretches the whole to the norm ε, and the sum with the clean image
    is clipped to 0 … 255. What clipping takes away is not given back: the paper's Eq. 3 has no such term. Scale of
    no noise is nothing, so that the first gradient is that of the clean image (Eq. 3, first line).

    The gradient of the noise is that of the pixels, summed over each superpixel. Scale's factor is taken for a
    constant in it: it only says how far to go. The paper's own ablation, the mean and the largest of the pixels'
    gradients, are made the same way, in one scatter over the batch. Images with fewer superpixels than the
    largest have noise that is never gathered.

    On 8 bits a superpixel's noise is one integer per channel still, so that all of its pixels change alike.
    """

    def __init__(self, searches: Searches, device: torch.device, settings: SaFgmSettings) -> None:
        """Raises :class:`ValueError` where the searches have no superpixels or no attention."""
        if searches.superpixels is None or searches.attention is None:
            raise ValueError("the searches have no superpixels or no attention to go by")
        self._clean = searches.images.to(device)[searches.image.to(device)]
        self._index = searches.superpixels.to(device).flatten(1)[:, None].expand(-1, 3, -1)
        attended = searches.attention.to(device) >= settings.phi
        self._crop = (searches.regions.to(device) & attended).flatten(1)[:, None]
        self._budget = budget_of(settings.delta, self._clean)
        self._reduce = settings.gradient
        self.values = torch.zeros(len(searches), 3, int(searches.superpixels.max()) + 1, device=device)
        # How many pixels each value moves, of those that are not cropped.
        self._area = self._sum(torch.ones(self._index.shape, device=device) * self._crop).long()

    def images(self) -> Tensor:
        """Return the images with the cropped and scaled noise in them."""
        return (self._clean + self._filled(self._scaled())).clamp_(0, 255)

    def gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of each superpixel's noise."""
        pixels = gradient.flatten(2) * self._crop
        if self._reduce == "max":
            high, low = (self._extreme(pixels, which) for which in ("amax", "amin"))
            return torch.where(high > -low, high, low)
        total = self._sum(pixels)
        return total / self._area.clamp(min=1) if self._reduce == "avg" else total

    def move(self, step: Tensor) -> None:
        """Add a step (Eq. 4)."""
        self.values = self.values + step

    def rounded(self, rows: Tensor) -> Tensor:
        """Return images on 8 bits: noise of whole numbers, no longer than ε before it is clipped."""
        scaled, area = self._scaled()[rows], self._area[rows]
        whole = round_noise(scaled.flatten(1), area.flatten(1), self._budget).view_as(scaled)
        noise = (whole.gather(2, self._index[rows]) * self._crop[rows]).view_as(self._clean[rows])
        return (self._clean[rows] + noise).clamp_(0, 255).to(torch.uint8)

    def keep(self, which: Tensor) -> None:
        """Drop searches."""
        for name in ("_clean", "_index", "_crop", "_area", "values"):
            setattr(self, name, getattr(self, name)[which])

    def _scaled(self) -> Tensor:
        """Return the noise such that it has the norm ε when it is filled in and cropped; nothing where it has none."""
        norm = (self._area * self.values**2).sum((1, 2), keepdim=True).sqrt()
        return torch.where(norm > 0, self.values * (self._budget / norm), 0.0)

    def _filled(self, values: Tensor) -> Tensor:
        """Return Crop(f(n)) of values [n, 3, K], [n, 3, H, W]."""
        return (values.gather(2, self._index) * self._crop).view(self._clean.shape)

    def _sum(self, pixels: Tensor) -> Tensor:
        """Return the sums over superpixels, [n, 3, K], of float [n, 3, H·W]."""
        return torch.zeros_like(self.values).scatter_add_(2, self._index, pixels)

    def _extreme(self, pixels: Tensor, which: str) -> Tensor:
        """Return the largest or least value in each superpixel, or 0 beyond it."""
        return torch.zeros_like(self.values).scatter_reduce_(2, self._index, pixels, which)
