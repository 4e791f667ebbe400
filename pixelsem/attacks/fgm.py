"""Fast gradient methods in the L2 norm: FGM, I-FGM and MI-FGM, the baselines of dong2020 (§3.3, §4.1).

All go T steps of the length α = ε/T along the gradient of the loss, each divided by its norm, so that the
whole way is within the budget ε = δ·√N of N = 3·H·W values (§4). With T = 1 it is FGM (Goodfellow et al.
2015), with several I-FGM (Kurakin et al. 2017), with the gradients before added to each MI-FGM (Dong et al.
2018). The superpixel-guided ones (:mod:`pixelsem.attacks.superpixel_fgm`) take the same steps in another
space of noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelsem.attacks.base import Outcome, Progress, Searches, is_hit
from pixelsem.attacks.rounding import round_image
from pixelsem.attacks.settings_dong2020 import FgmSettings
from pixelsem.fitness.evaluator import Evaluator, LossAndGradient


def fast_gradient(
    searches: Searches, evaluator: Evaluator, settings: FgmSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Change every pixel of the region along the gradient, within an L2 budget; yield an :class:`Outcome` each.

    ``settings`` are :class:`FgmSettings`, :class:`IFgmSettings` or :class:`MiFgmSettings` of
    :mod:`pixelsem.attacks.settings_dong2020`. The gradient is that of the pixels in the region, cut before it
    is divided by its norm; after each step the image is clipped to 0 … 255.
    """
    return ascend(PixelNoise(searches, evaluator.device, settings), searches, evaluator, settings, progress)


class Noise(ABC):
    """The noise of n searches, float [n, …], and how images are made of it. Units are those of 0 to 255.

    :ivar values: the noise, at first all 0.
    """

    values: Tensor

    @abstractmethod
    def images(self) -> Tensor:
        """Return the images with the noise in them, float32 [n, 3, H, W] of 0 to 255."""

    @abstractmethod
    def gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the noise, as ``values``, of that of the images, float [n, 3, H, W]."""

    @abstractmethod
    def move(self, step: Tensor) -> None:
        """Add a step, as ``values``."""

    @abstractmethod
    def rounded(self, rows: Tensor) -> Tensor:
        """Return the images of some searches, int64 [k], on 8 bits and within the budget: uint8 [k, 3, H, W]."""

    @abstractmethod
    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""


class PixelNoise(Noise):
    """Every value of the region has its own noise."""

    def __init__(self, searches: Searches, device: torch.device, settings: FgmSettings) -> None:
        self._clean = searches.images.to(device)[searches.image.to(device)]
        self._region = searches.regions.to(device)[:, None]
        self._budget = budget_of(settings.delta, self._clean)
        self.values = torch.zeros(self._clean.shape, device=device)

    def images(self) -> Tensor:
        """Return the images with the noise in them."""
        return self._clean + self.values

    def gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient in the region, 0 elsewhere."""
        return gradient * self._region

    def move(self, step: Tensor) -> None:
        """Add a step; no image leaves 0 … 255."""
        self.values = (self.images() + step).clamp_(0, 255).sub_(self._clean)

    def rounded(self, rows: Tensor) -> Tensor:
        """Return images on 8 bits, no farther from the clean ones than the noise is long."""
        return round_image(self._clean[rows], self.images()[rows], self._budget)

    def keep(self, which: Tensor) -> None:
        """Drop searches."""
        self._clean, self._region, self.values = (each[which] for each in (self._clean, self._region, self.values))


def budget_of(delta: float, images: Tensor) -> float:
    """Return ε = δ·√N (dong2020 §4) of images [n, 3, H, W], in units of 0 to 255."""
    return delta * math.sqrt(images[0].numel())


def ascend(
    noise: Noise, searches: Searches, evaluator: Evaluator, settings: FgmSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Take the steps of dong2020's Eqs. 4 and 5 in any space of noise.

    With a target its loss is descended. ``history`` holds ``loss``, float32 [T]: the cross-entropy of the label,
    or of the target, before each step. With ``early_stop`` a search ends where its image, rounded to 8 bits, is a
    hit in fp32.
    """
    progress = progress or Progress()
    run = _Run(noise, searches, evaluator, settings)
    for _ in range(settings.steps):
        if progress.should_stop():
            return
        found = run.look()
        progress.queries = evaluator.queries
        progress.on_change(progress)
        if settings.early_stop:
            hits = run.hits(found.logits)
            yield from run.outcomes(hits)
            gradients = run.drop(hits, found.gradients)
            if not len(run.active):
                return
            run.step(gradients)
        else:
            run.step(found.gradients)
    yield from run.outcomes(torch.arange(len(run.active), device=evaluator.device))


class _Run:
    """Searches in lock-step; row i of every tensor belongs to ``active[i]``."""

    def __init__(self, noise: Noise, searches: Searches, evaluator: Evaluator, settings: FgmSettings) -> None:
        device = evaluator.device
        self.noise, self.evaluator, self.settings = noise, evaluator, settings
        self.active = torch.arange(len(searches))
        self.labels, self.targets = searches.labels.to(device), searches.targets.to(device)
        self.step_length = budget_of(settings.delta, searches.images) / settings.steps
        self.direction = torch.zeros_like(noise.values)
        self.losses: list[Tensor] = []  # before each step, float32 [n]

    def look(self) -> LossAndGradient:
        """Ask for losses and gradients of the images as they are."""
        own = torch.where(self.targets >= 0, self.targets, self.labels)
        sign = torch.where(self.targets >= 0, -1.0, 1.0)

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            return sign[index] * log_odds_against(logits, own[index])

        found = self.evaluator.loss_and_gradient(self.noise.images() / 255, loss)
        self.losses.append(F.softplus(sign * found.losses))
        return found

    def step(self, gradients: Tensor) -> None:
        """Go one step along the gradients of the images (Eq. 4; with momentum Eq. 5)."""
        gradient = self.noise.gradient(gradients)
        # Without momentum this is Eq. 4: what the gradient was divided by before makes no difference.
        self.direction = self.settings.momentum * self.direction + _over_norm(gradient, 1)
        self.noise.move(self.step_length * _over_norm(self.direction, 2))

    def hits(self, logits: Tensor) -> Tensor:
        """Return the rows, int64 [k], whose image is a hit when it is written; ``logits`` are those before that."""
        likely = is_hit(logits, self.labels, self.targets).nonzero()[:, 0]
        if not len(likely):
            return likely
        sure = self.evaluator.confirm(self.noise.rounded(likely))
        return likely[is_hit(sure, self.labels[likely], self.targets[likely])]

    def outcomes(self, rows: Tensor) -> Iterator[Outcome]:
        """Yield what some searches, int64 [k], have come to."""
        if not len(rows):
            return
        images = self.noise.rounded(rows).cpu()
        losses = torch.stack(self.losses, 1)[rows].cpu().numpy()
        for search, image, loss in zip(self.active[rows.cpu()].tolist(), images, losses, strict=True):
            looks = len(loss)
            yield Outcome(search, image, queries=looks, candidates=looks, generations=looks, history={"loss": loss})

    def drop(self, rows: Tensor, gradients: Tensor) -> Tensor:
        """Drop searches, int64 [k]; return the gradients of the others."""
        if not len(rows):
            return gradients
        left = torch.ones(len(self.active), dtype=torch.bool, device=rows.device).index_fill(0, rows, False)
        self.noise.keep(left)
        self.active = self.active[left.cpu()]
        self.labels, self.targets, self.direction = self.labels[left], self.targets[left], self.direction[left]
        self.losses = [loss[left] for loss in self.losses]
        return gradients[left]


def log_odds_against(logits: Tensor, classes: Tensor) -> Tensor:
    """Return log((1 − p)/p) of the probability p of ``classes``, int64 [n], float [n].

    The cross-entropy −log p is its softplus, and its gradient 1 − p times the one of this. Where gradients are
    divided by their norm both lead the same way; but where the network is sure, 1 − p is 0 in floating point
    and the cross-entropy has no gradient left.
    """
    own = torch.zeros_like(logits, dtype=torch.bool).scatter(1, classes[:, None], True)
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.gather(1, classes[:, None])[:, 0]


def _over_norm(values: Tensor, order: int) -> Tensor:
    """Divide each row of float [n, …] by its L1 or L2 norm; a row of zeros stays so."""
    norm = torch.linalg.vector_norm(values.flatten(1), order, dim=1).view(-1, *[1] * (values.ndim - 1))
    return torch.where(norm > 0, values / norm, 0.0)
