"""Visible patches: the adversarial patch (Brown et al. 2017) and LaVAN (Karmon et al. 2018), as in qian2021 §IV-D."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.carlini_wagner import Adam
from pixelsem.attacks.fgm import log_odds_against
from pixelsem.attacks.objectives import margin_of
from pixelsem.attacks.placement import Placement, find_places, patch_mask
from pixelsem.attacks.rows import Rows
from pixelsem.attacks.settings_patches import AdvPatchSettings, LavanSettings, Place
from pixelsem.fitness.evaluator import Evaluator

_TINY = 1e-30

#: float [k] losses of logits, float [k, classes], of labels and targets, int64 [k].
GoalLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def adversarial_patch(
    searches: Searches, evaluator: Evaluator, settings: AdvPatchSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Train one patch per image, at a place drawn once, or paste one that is given; yield each :class:`Outcome`.

    Adam minimises the log-odds against the target, or those of the label: Brown et al. maximise the log-probability
    of the target, which falls and rises with them but has no gradient left where the network is sure. The patch
    starts grey and keeps to 0 … 1. Of all steps the image counts whose wanted class has the largest margin over
    the others, rounded to 8 bits.

    The history has ``loss``, float32 [steps], ``box``, int64 [4]: top, left, height, width, and ``area``, int64:
    the pixels of the patch that its region leaves. Where ``searches`` have a patch, it is put where its place is
    drawn, at one query.
    """
    if searches.patches is not None:
        return _paste_given(searches, evaluator, settings.place)
    rows = Rows(searches, evaluator)
    mask = patch_mask(settings.share, settings.shape, *searches.images.shape[2:])
    placement = _placement(rows, searches, mask, settings.place)
    trainer = Adam(torch.full_like(placement.clean_content, 0.5), settings.lr)
    run = _Run(rows, placement, evaluator, trainer, goal_log_odds)
    return run.run(settings.steps, settings.early_stop, progress or Progress())


def localised_noise(
    searches: Searches, evaluator: Evaluator, settings: LavanSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Train the noise in a patch of each image, from what is there on; yield each :class:`Outcome`.

    What is minimised is the logit of the label less that of the target (Karmon et al. 2018 §3: source and target),
    or without one of the highest other. Each step goes along the gradient, its root mean square over the patch
    being ε; the noise keeps to 0 … 1. What counts, and the history, is as in :func:`adversarial_patch`.
    """
    rows = Rows(searches, evaluator)
    mask = patch_mask(settings.share, settings.shape, *searches.images.shape[2:])
    placement = _placement(rows, searches, mask, settings.place)
    trainer = NormalisedSteps(placement, settings.step / 255)
    run = _Run(rows, placement, evaluator, trainer, logit_gap)
    return run.run(settings.steps, settings.early_stop, progress or Progress())


def goal_log_odds(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the log-odds against the target, or those of the label where there is none (−1), float [k]."""
    aimed = targets >= 0
    against = log_odds_against(logits, torch.where(aimed, targets, labels))
    return torch.where(aimed, against, -against)


def logit_gap(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the label's logit less the target's, or less the highest other where there is none (−1), float [k]."""
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return own - torch.where(targets >= 0, logits.gather(1, targets.clamp(min=0)[:, None])[:, 0], other)


class Trainer(Protocol):
    """What changes patches, float [n, 3, h, w] ``parameters``, along gradients."""

    parameters: Tensor

    def step(self, gradients: Tensor) -> None:
        """Move the parameters against the gradients."""

    def keep(self, which: Tensor) -> None:
        """Drop every row that bool [n] ``which`` does not mark."""


class NormalisedSteps:
    """Steps against the gradient, all of one length: the root mean square over a patch's usable values."""

    def __init__(self, placement: Placement, length: float) -> None:
        self.parameters = placement.clean_content
        self._values = 3 * placement.areas
        self._length = length

    def step(self, gradients: Tensor) -> None:
        """Move the parameters; where the gradient is 0 they stay."""
        largest = gradients.abs().amax((1, 2, 3), keepdim=True).clamp(min=_TINY)  # squares must not vanish
        scaled = gradients / largest
        mean = scaled.square().sum((1, 2, 3), keepdim=True) / self._values.view(-1, 1, 1, 1)
        self.parameters = self.parameters - self._length * scaled / mean.sqrt().clamp(min=_TINY)

    def keep(self, which: Tensor) -> None:
        """Drop rows."""
        self.parameters, self._values = self.parameters[which], self._values[which]


class _Run:
    """Searches in lock-step; row i of every tensor is of the same search."""

    def __init__(
        self, rows: Rows, placement: Placement, evaluator: Evaluator, trainer: Trainer, loss: GoalLoss
    ) -> None:
        self._rows, self._placement, self._evaluator = rows, placement, evaluator
        self._trainer, self._loss = trainer, loss
        self._best = trainer.parameters
        self._margin = torch.full((len(rows),), torch.inf, device=evaluator.device)  # of what is not wanted
        self._losses: list[Tensor] = []  # of each step, float32 [n]

    def run(self, steps: int, early_stop: bool, progress: Progress) -> Iterator[Outcome]:
        """Take all steps and yield the outcomes; searches that are not over when asked to stop have none."""
        for _ in range(steps):
            if progress.should_stop():
                return
            hits = self._step()
            if early_stop:
                yield from self._take(self._confirmed(hits))
            progress.queries = self._evaluator.queries
            progress.on_change(progress)
            if not len(self._rows):
                return
        yield from self._take(torch.ones(len(self._rows), dtype=torch.bool))

    def _step(self) -> Tensor:
        """Score the patches as they are and change them; return bool [n], which were hits."""
        rows, content = self._rows, self._trainer.parameters

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            return self._loss(logits, rows.labels[index], rows.targets[index])

        result = self._evaluator.loss_and_gradient(content, loss, self._placement.paste)
        self._losses.append(result.losses)
        margin = margin_of(result.logits, rows.labels, rows.targets)
        better = margin < self._margin
        self._margin = torch.where(better, margin, self._margin)
        self._best = torch.where(better[:, None, None, None], content, self._best)
        self._trainer.step(result.gradients)
        self._trainer.parameters = self._trainer.parameters.clamp(0, 1)
        return rows.hits(result.logits)

    def _confirmed(self, hits: Tensor) -> Tensor:
        """Return bool [n] on the CPU: which ``hits`` are so on 8 bits too? The image with the largest margin is one."""
        if not hits.any():
            return torch.zeros(len(hits), dtype=torch.bool)
        return self._rows.confirmed(self._written(), hits)

    def _written(self) -> Tensor:
        """Return the best images so far, uint8 [n, 3, H, W]."""
        return (self._placement.paste(self._best) * 255).round().to(torch.uint8)

    def _take(self, done: Tensor) -> list[Outcome]:
        """Return the outcomes of the rows that bool [n] ``done`` (on the CPU) marks, and drop them."""
        if not done.any():
            return []
        own = done.to(self._best.device)
        losses = torch.stack(self._losses, 1)
        outcomes = _outcomes(self._rows, self._placement, self._written(), losses[own], own)
        self._rows.keep(~own)
        self._placement.keep(~own)
        self._trainer.keep(~own)
        self._best, self._margin = self._best[~own], self._margin[~own]
        self._losses = list(losses[~own].unbind(1))
        return outcomes


def _paste_given(searches: Searches, evaluator: Evaluator, place: Place) -> Iterator[Outcome]:
    """Put the patch of the searches, the same in all, into every image."""
    if searches.patches is None or not len(searches):
        return
    rows = Rows(searches, evaluator)
    given = searches.patches.to(evaluator.device)
    placement = _placement(rows, searches, given[0, 3] >= 128, place)
    images = placement.paste(given[:, :3].float() / 255)
    losses = goal_log_odds(evaluator.logits(images), rows.labels, rows.targets)[:, None]
    written = (images * 255).round().to(torch.uint8)
    yield from _outcomes(rows, placement, written, losses, torch.ones_like(rows.labels, dtype=torch.bool))


def _placement(rows: Rows, searches: Searches, mask: Tensor, place: Place) -> Placement:
    """Choose every patch's place, by one draw of its search."""
    regions, device = rows.region[:, 0], rows.region.device
    draws = torch.tensor([each.random() for each in searches.generators], dtype=torch.float64, device=device)
    corners = find_places(regions, mask.to(device), place, draws)
    return Placement(rows.clean.float() / 255, regions, mask.to(device), corners)


def _outcomes(rows: Rows, placement: Placement, images: Tensor, losses: Tensor, which: Tensor) -> list[Outcome]:
    """Make the outcomes of the rows that bool [n] ``which`` marks, whose losses are float [k, steps]."""
    found, areas, boxes = (each[which].cpu() for each in (images, placement.areas, placement.boxes))
    columns: dict[str, np.ndarray[Any, Any]] = {
        "loss": losses.float().cpu().numpy(), "area": areas.numpy(), "box": boxes.numpy(),
    }  # fmt: skip
    steps = losses.shape[1]
    return [
        Outcome(search, found[row], steps, steps, steps, {name: values[row] for name, values in columns.items()})
        for row, search in enumerate(rows.search[which.cpu()].tolist())
    ]
