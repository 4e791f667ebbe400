"""Perturbations of contributing feature regions (qian2021 §III, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.rows import Rows
from pixelsem.attacks.settings_qian2021 import CfrSettings
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator

_TINY = 1e-8  # below any norm and any loss that a change of one level has
_SURE = 1e-6  # the least cross-entropy that is told from none


def contributing_features(
    searches: Searches, evaluator: Evaluator, settings: CfrSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Change what a class's evidence lies in, by SGD on Eq. 9; yield each :class:`Outcome`.

    The soft mask M̃ is the attention of the label where it is at least τ (Eq. 6), 0 outside the region. With the
    image X + δ⊙M̃, S_y the confidence of the label, each of the N steps is δ ← (δ − η·∇(1/J)) ⊙ M̃ for
    J = −log(S_y)/T + β/‖δ⊙M̃‖₂ (Eqs. 7 to 9, line 8 of Algorithm 1; images in [0, 1]), after which δ is taken back
    to where X + δ⊙M̃ is an image. A targeted attack, which the paper has not, has −1/log(S_t) in the place of
    −log(S_y): it too is positive and grows with success. The last image counts, rounded to 8 bits. The history
    has J before every step as ``loss``, float32 [steps].

    Where neither the attention nor the region leaves a pixel to change, the image stays as it is.
    """
    yield from _Run(searches, evaluator, settings).run(progress or Progress())


def soft_masks(attention: Tensor, regions: Tensor, tau: float, norm: str) -> Tensor:
    """Return M̃ (Eq. 6), float32 [n, 1, H, W], of ``attention`` (float [n, H, W], maximum 1) in bool ``regions``.

    τ is a share of the maximum. ``norm`` says what the attention that is left is divided by: its ``max``, or its
    ``sum`` over the image; the region cuts afterwards, so that inside it the mask is the same for every region.
    """
    left = torch.where(attention >= tau, attention, 0.0)[:, None]
    total = left.amax((2, 3), keepdim=True) if norm == "max" else left.sum((2, 3), keepdim=True)
    return left / total.clamp(min=_TINY) * regions[:, None]


class _Run:
    """Searches in lock-step; row i of every tensor is of the same search."""

    def __init__(self, searches: Searches, evaluator: Evaluator, settings: CfrSettings) -> None:
        if searches.attention is None:
            raise PixelsemError("cfr: the searches have no attention to go by")
        self._evaluator, self._settings = evaluator, settings
        self._rows = Rows(searches, evaluator)
        self._clean = self._rows.clean.float() / 255
        attention = searches.attention.to(evaluator.device)
        self._mask = soft_masks(attention, searches.regions.to(evaluator.device), settings.tau, settings.mask_norm)
        self._eta = settings.eta_for(*searches.images.shape[2:])
        self._delta = self._boxed(self._start(searches))
        self._losses = torch.full((len(searches), settings.steps), torch.nan, device=evaluator.device)
        self._steps = 0

    def run(self, progress: Progress) -> Iterator[Outcome]:
        """Take all steps and yield the outcomes; searches that are not over when asked to stop have none."""
        while self._steps < self._settings.steps:
            if progress.should_stop():
                return
            yield from self._advance()
            progress.queries = self._evaluator.queries
            progress.on_change(progress)
            if not len(self._rows):
                return
        yield from self._take(self._written(), torch.ones(len(self._rows), dtype=torch.bool))

    def _start(self, searches: Searches) -> Tensor:
        """Return δ at the start: Eq. 7 has no value, and no gradient, where it is 0."""
        if self._settings.init == "grey":
            return torch.full_like(self._clean, 1 / 255)
        shape = self._clean.shape[1:]
        drawn = [torch.from_numpy(each.uniform(-1 / 255, 1 / 255, shape)) for each in searches.generators]
        return torch.stack(drawn).to(self._clean)

    def _boxed(self, delta: Tensor) -> Tensor:
        """Return δ with X + δ⊙M̃ in [0, 1]."""
        change = torch.minimum(torch.maximum(delta * self._mask, -self._clean), 1 - self._clean)
        return torch.where(self._mask > 0, change / self._mask.clamp(min=1e-30), 0.0)

    def _advance(self) -> list[Outcome]:
        """Take one step (lines 6 to 8); with ``early_stop`` return the searches that were at a confirmed hit."""
        settings, mask = self._settings, self._mask
        losses, gradients, logits = self._evaluator.loss_and_gradient(self._delta, self._loss, self._render)
        norm = (self._delta * mask).flatten(1).norm(dim=1).clamp(min=_TINY)
        total = (losses + settings.beta / norm).clamp(min=_TINY)
        self._losses[:, self._steps] = total
        before = self._written()
        # ∇(1/J) = −∇J / J², and the gradient of 1/‖δ⊙M̃‖ is −M̃²⊙δ / ‖δ⊙M̃‖³.
        gradients = gradients - settings.beta * mask**2 * self._delta / _per_row(norm**3)
        self._delta = self._boxed((self._delta + self._eta * gradients / _per_row(total**2)) * mask)
        self._steps += 1
        if not settings.early_stop:
            return []
        return self._take(before, self._rows.confirmed(before, self._rows.hits(logits)))

    def _render(self, delta: Tensor, index: Tensor) -> Tensor:
        return self._clean[index] + delta * self._mask[index]

    def _loss(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return J'_CE (Eq. 8) of the rows ``index``."""
        odds, aimed = self._rows.log_odds(logits, index), self._rows.targets[index] >= 0
        # softplus(log((1 − p)/p)) is −log(p), also where p is next to 0 or 1.
        entropy = F.softplus(torch.where(aimed, -odds, odds))
        return torch.where(aimed, 1 / entropy.clamp(min=_SURE), entropy) / self._settings.temperature

    def _written(self) -> Tensor:
        """Return the images as they are now, uint8 [n, 3, H, W]."""
        return ((self._clean + self._delta * self._mask) * 255).round().clamp(0, 255).to(torch.uint8)

    def _take(self, images: Tensor, done: Tensor) -> list[Outcome]:
        """Return the outcomes of the rows that bool [n] ``done`` (on the CPU) marks, and drop them."""
        if not done.any():
            return []
        own = done.to(images.device)
        found, losses = images[own].cpu(), self._losses[own, : self._steps].cpu().numpy()
        outcomes = [
            Outcome(search, found[row], self._steps, self._steps, self._steps, {"loss": losses[row]})
            for row, search in enumerate(self._rows.search[done].tolist())
        ]
        self._rows.keep(~own)
        for name in ("_clean", "_mask", "_delta", "_losses"):
            setattr(self, name, getattr(self, name)[~own])
        return outcomes


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]
