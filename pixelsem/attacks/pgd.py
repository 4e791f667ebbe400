"""Projected gradient descent (Madry et al. 2018), a baseline of qian2021 §IV-D; and the ascent it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.rounding import round_image
from pixelsem.attacks.rows import Rows
from pixelsem.attacks.settings_qian2021 import AscentSettings, PgdSettings
from pixelsem.fitness.evaluator import Evaluator, LossAndGradient

_PROJECTION = 6  # rounds; each leaves the change within the budget, and nearer to using it up


def projected_gradient_descent(
    searches: Searches, evaluator: Evaluator, settings: PgdSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Step along the gradient of the cross-entropy within a ball; yield each :class:`Outcome`.

    A step of α follows the sign of the gradient (``linf``) or its direction (``l2``), both within the region,
    and is projected back into the ball, the region and the range of 8 bits. A random start is uniform in the
    ball for ``linf``; for ``l2`` it goes in a random direction by a uniform share of ε. Each start ends with
    its last image, rounded to 8 bits within the budget and scored; of several the best counts. The history has
    the ``loss``, float32 [starts, steps + 1]: the cross-entropy of the label, or of the target, before every step
    and of what came out; NaN where a hit came before.
    """
    yield from Ascent(searches, evaluator, settings).run(progress or Progress())


class Ascent:
    """Searches in lock-step that climb the loss inside a ball; how they climb may be replaced."""

    def __init__(self, searches: Searches, evaluator: Evaluator, settings: AscentSettings) -> None:
        self.evaluator = evaluator
        self.rows = Rows(searches, evaluator)
        self.queries = 0  # of each row that is still there
        self.step = 0
        self._settings = settings
        self._generators = searches.generators
        ball = LInfBall if settings.norm == "linf" else L2Ball
        self._ball = ball(self.rows.clean, self.rows.region, settings.radius)
        self._change = torch.zeros(self.rows.clean.shape, device=evaluator.device)  # of 0 to 255
        self._best = self.rows.clean
        self._best_loss = torch.full((len(searches),), -torch.inf, device=evaluator.device)
        self._best_hits = torch.zeros(len(searches), dtype=torch.bool, device=evaluator.device)
        shape = (len(searches), settings.restarts, settings.steps + 1)
        self._losses = torch.full(shape, torch.nan, device=evaluator.device)

    def run(self, progress: Progress) -> Iterator[Outcome]:
        """Run all starts and yield the outcomes; searches that are not over when asked to stop have none."""
        for restart in range(self._settings.restarts):
            self._start()
            for step in range(self._settings.steps):
                self.step = step
                if progress.should_stop():
                    return
                yield from self._advance(restart)
                progress.queries = self.evaluator.queries
                progress.on_change(progress)
                if not len(self.rows):
                    return
            self._finish(restart)
            if self._settings.early_stop:
                yield from self._take(self._best, self.rows.confirmed(self._best, self._best_hits))
        yield from self._take(self._best, torch.ones(len(self.rows), dtype=torch.bool))

    def gradient(self, images: Tensor) -> LossAndGradient:
        """Return the loss of float [n, 3, H, W] ``images`` in [0, 1], the gradient to climb, and logits."""
        self.queries += 1
        return self.evaluator.loss_and_gradient(images, self.rows.log_odds)

    def plain_logits(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the logits of ``images`` themselves, [n, classes], given what :meth:`gradient` returned."""
        return logits

    def keep(self, which: Tensor) -> None:
        """Drop every row that bool [n] ``which`` does not mark."""
        self.rows.keep(which)
        self._ball.keep(which)
        for name in ("_change", "_best", "_best_loss", "_best_hits", "_losses"):
            setattr(self, name, getattr(self, name)[which])

    def _start(self) -> None:
        """Begin at the clean images or at random."""
        if self._settings.random_start:
            own = [self._generators[search] for search in self.rows.search.tolist()]
            self._change = self._ball.project(self._ball.random(own))

    def _images(self) -> Tensor:
        return (self.rows.clean + self._change) / 255

    def _advance(self, restart: int) -> list[Outcome]:
        """Take one step; with ``early_stop`` return the searches that were at a confirmed hit before it."""
        images, before = self._images(), self._change
        result = self.gradient(images)
        self._losses[:, restart, self.step] = self.rows.cross_entropy(result.losses)
        ascent = self._ball.direction(result.gradients)
        self._change = self._ball.project(before + self._settings.stride * ascent)
        if not self._settings.early_stop:
            return []
        hits = self.rows.hits(self.plain_logits(images, result.logits))
        if not hits.any():
            return []
        rounded = self._ball.rounded(before)
        return self._take(rounded, self.rows.confirmed(rounded, hits))

    def _finish(self, restart: int) -> None:
        """Score what this start came to, as it would be written, and keep it where it is the best."""
        images = self._ball.rounded(self._change)
        self.queries += 1
        logits = self.evaluator.logits(images.float() / 255)
        losses = self.rows.log_odds(logits, torch.arange(len(self.rows), device=logits.device))
        hits = self.rows.hits(logits)
        self._losses[:, restart, -1] = self.rows.cross_entropy(losses)
        better = torch.where(hits == self._best_hits, losses > self._best_loss, hits)
        self._best = torch.where(better[:, None, None, None], images, self._best)
        self._best_loss = torch.where(better, losses, self._best_loss)
        self._best_hits = self._best_hits | hits

    def _take(self, images: Tensor, done: Tensor) -> list[Outcome]:
        """Return the outcomes of the rows that bool [n] ``done`` (on the CPU) marks, and drop them."""
        if not done.any():
            return []
        own = done.to(images.device)
        found, losses = images[own].cpu(), self._losses[own].cpu().numpy()
        searches = self.rows.search[done].tolist()
        self.keep(~own)
        starts = (~np.isnan(losses)).any(2).sum(1)
        return [
            Outcome(
                search=search,
                adversarial=found[row],
                queries=self.queries,
                candidates=self.queries,
                generations=self.queries,
                history={"loss": losses[row, : starts[row]]},
            )
            for row, search in enumerate(searches)
        ]


class _Ball(ABC):
    """Changes, float [n, 3, H, W] in units of 0 to 255, that keep to the budget, the region and 8 bits' range."""

    def __init__(self, clean: Tensor, region: Tensor, radius: float) -> None:
        """Take uint8 [n, 3, H, W] clean images, bool [n, 1, H, W] regions and the budget ε."""
        self.clean, self.region, self.radius = clean, region, radius
        self._low, self._high = -(clean.float() * region), (255 - clean.float()) * region

    @abstractmethod
    def project(self, change: Tensor) -> Tensor:
        """Return the nearest change that is allowed."""

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """Return the change of length 1, within the region, along which a linear loss grows most."""

    @abstractmethod
    def random(self, generators: Sequence[np.random.Generator]) -> Tensor:
        """Draw one change per row; it may leave the region and the range."""

    @abstractmethod
    def rounded(self, change: Tensor) -> Tensor:
        """Return changed images, uint8 [n, 3, H, W], within the budget."""

    def keep(self, which: Tensor) -> None:
        """Drop every row that bool [n] ``which`` does not mark."""
        for name in ("clean", "region", "_low", "_high"):
            setattr(self, name, getattr(self, name)[which])

    def _of_rows(self, drawn: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]) -> Tensor:
        return torch.from_numpy(np.stack(drawn)).to(self.clean.device, torch.float32)


class LInfBall(_Ball):
    """No value changes by more than ε."""

    def project(self, change: Tensor) -> Tensor:
        """Return the nearest change that is allowed."""
        near = change.clamp(-self.radius, self.radius)
        return torch.minimum(torch.maximum(near, self._low), self._high)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient in the region."""
        return gradient.sign() * self.region

    def random(self, generators: Sequence[np.random.Generator]) -> Tensor:
        """Draw every value uniformly from −ε to ε."""
        shape = self.clean.shape[1:]
        return self._of_rows([each.uniform(-self.radius, self.radius, shape) for each in generators])

    def rounded(self, change: Tensor) -> Tensor:
        """Return changed images, uint8 [n, 3, H, W]; an ε between two integers is the lower one."""
        most = float(int(self.radius))
        near = torch.minimum(torch.maximum(change, self._low), self._high).round().clamp(-most, most)
        return (self.clean + near).to(torch.uint8)


class L2Ball(_Ball):
    """The whole change has a length of at most ε."""

    def project(self, change: Tensor) -> Tensor:
        """Return the nearest change that is allowed.

        It is min(max(t·change, low), high) for the largest t ≤ 1 that keeps the budget (the conditions of Karush,
        Kuhn and Tucker). t ← t·ε/length comes up to it from below, as the length grows less than t does.
        """
        share = torch.ones(len(change), 1, 1, 1, device=change.device)
        share = (share * self.radius / _length(change)).clamp(max=1)
        for _ in range(_PROJECTION):
            share = (share * self.radius / _length(self._clipped(share * change))).clamp(max=1)
        return self._clipped(share * change)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient in the region, of length 1; 0 where it is 0."""
        inside = gradient * self.region
        inside = inside / inside.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)  # squares must not vanish
        return inside / _length(inside)

    def random(self, generators: Sequence[np.random.Generator]) -> Tensor:
        """Draw a direction uniformly, among the region's values, and a length uniformly up to ε."""
        drawn = self._of_rows([each.normal(size=self.clean.shape[1:]) for each in generators])
        length = self._of_rows([each.uniform(0, self.radius, (1, 1, 1)) for each in generators])
        return self.direction(drawn) * length

    def rounded(self, change: Tensor) -> Tensor:
        """Return changed images, uint8 [n, 3, H, W]."""
        return round_image(self.clean, self.clean + change, self.radius)

    def _clipped(self, change: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(change, self._low), self._high)


def _length(change: Tensor) -> Tensor:
    """Return the L2 norm of every row, [n, 1, 1, 1], not quite 0."""
    length: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return length.clamp(min=1e-30)
