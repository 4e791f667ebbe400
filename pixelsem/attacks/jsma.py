"""The Jacobian-based saliency map attack (Papernot et al. 2016), a baseline of qian2021 §IV-D."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.fgm import log_odds_against
from pixelsem.attacks.rows import Rows
from pixelsem.attacks.settings_jsma import JsmaSettings
from pixelsem.fitness.evaluator import Evaluator

_PAIRS = 2**22  # looked at together


def saliency_map(
    searches: Searches, evaluator: Evaluator, settings: JsmaSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Change the most salient pair of values by θ, step by step, until the class is reached; yield an Outcome each.

    With F the logits (Papernot et al. 2016 §IV-A take the last layer before the softmax, whose derivatives are
    extreme), t the target, α_i = ∂F_t/∂x_i and β_i = Σ_{j≠t} ∂F_j/∂x_i, the pair (p, q) is the one with the largest
    −(α_p + α_q)·(β_p + β_q) among those with α_p + α_q > 0 > β_p + β_q (Algorithm 3); with θ < 0 both signs are
    the other way round. A value at its bound is out of the search. An untargeted search aims at the class that
    is second on the clean image, and ends with any other than the label.

    A search ends where its image is a hit and still is when rounded to 8 bits, where no pair is left, or after
    ⌊Υ·3HW/2⌋ steps. The history has ``pairs``, int32 [steps, 2], each value's place in the flattened [3, H, W], and
    ``loss``, float32 [steps + 1], log((1 − p)/p) of the class aimed at, before each step and at the end.

    Unlike those of other attacks that run all of their steps, these wait for the device: searches that are over are
    dropped at once, so that only the others go through the network, and of the M² pairs only those of a few values
    are looked at (:func:`best_pairs`). The host must know how many there are left of both.
    """
    progress = progress or Progress()
    run = _Run(searches, evaluator, settings)
    while len(run.rows):
        if progress.should_stop():
            return
        yield from run.advance()
        progress.queries = evaluator.queries
        progress.on_change(progress)


def best_pairs(alpha: Tensor, beta: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs that maximise −(α_p + α_q)·(β_p + β_q) where the sums are > 0 and < 0, and if there are any.

    ``alpha`` and ``beta`` are float [n, M], ``allowed`` bool [n, M]; what is returned is int64 [n, 2] (0, 0 where
    there is no pair) and bool [n].

    Exact, without M² memory: with both sums of the right sign the product grows with each of α_p and −β_p. So where
    two other values have at least the α and −β of p, one of them is not q and can take p's place, and nothing is
    lost. What is left when all such p are dropped is the front of the values and the one below it, of the order of
    log M values unless α and β are tied to each other in a peculiar way. They are found in one sort (by α) and two
    running maxima (of −β), and all of their pairs are looked at, a limited number at a time.
    """
    gain, cost = (values.masked_fill(~allowed, -torch.inf) for values in (alpha, -beta))
    gain, order = gain.sort(dim=1, descending=True, stable=True)
    cost = cost.gather(1, order)
    keep = cost > _before(torch.minimum(cost, _before(cost.cummax(1).values)).cummax(1).values)
    row, column = keep.nonzero(as_tuple=True)
    slot = keep.cumsum(1)[row, column] - 1
    shape = len(keep), max(2, int(keep.sum(1).max()))
    index = torch.zeros(shape, dtype=torch.int64, device=alpha.device)
    index[row, slot] = order[row, column]
    a, b = (torch.full(shape, -torch.inf, dtype=alpha.dtype, device=alpha.device) for _ in range(2))
    a[row, slot], b[row, slot] = gain[row, column], cost[row, column]
    score, first, second = _best_of_all(a, b)
    found = score >= 0
    pairs = torch.stack([index.gather(1, each[:, None])[:, 0] for each in (first, second)], 1)
    return torch.where(found[:, None], pairs, 0), found


def _before(values: Tensor) -> Tensor:
    """Return float [n, M] moved to the right by one."""
    return torch.cat([torch.full_like(values[:, :1], -torch.inf), values[:, :-1]], 1)


def _best_of_all(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest (a_p + a_q)·(b_p + b_q) of all pairs with both sums > 0, -1 where there is none; p; q."""
    count, width = a.shape
    at_a_time = max(1, _PAIRS // (count * width))
    here = torch.arange(width, device=a.device)
    best = torch.full((count,), -1.0, dtype=a.dtype, device=a.device)
    first, second = (torch.zeros(count, dtype=torch.int64, device=a.device) for _ in range(2))
    for start in range(0, width, at_a_time):
        some = slice(start, start + at_a_time)
        sums = [values[:, some, None] + values[:, None, :] for values in (a, b)]
        usable = (sums[0] > 0) & (sums[1] > 0) & (here[some, None] < here)
        score, place = torch.where(usable, sums[0] * sums[1], -1.0).flatten(1).max(1)
        better = score > best
        best = torch.where(better, score, best)
        first = torch.where(better, start + place // width, first)
        second = torch.where(better, place % width, second)
    return best, first, second


class _Run:
    """Searches in lock-step; row i of every tensor is of the same search."""

    def __init__(self, searches: Searches, evaluator: Evaluator, settings: JsmaSettings) -> None:
        device = evaluator.device
        self.rows = Rows(searches, evaluator)
        self._evaluator, self._settings = evaluator, settings
        self._images = self.rows.clean.float() / 255
        clean = evaluator.logits(self._images)
        second = clean.scatter(1, self.rows.labels[:, None], -torch.inf).argmax(1)
        self._goal = torch.where(self.rows.targets >= 0, self.rows.targets, second)
        self._limit = settings.steps_for(self._images[0].numel())
        self._steps = 0
        self._pairs = torch.zeros(len(searches), self._limit, 2, dtype=torch.int32, device=device)
        self._losses = torch.zeros(len(searches), self._limit + 1, device=device)

    def advance(self) -> list[Outcome]:
        """Look at all images, return the outcomes of the searches that are over, change a pair in the others."""
        alpha, beta, logits = self._derivatives()
        self._losses[:, self._steps] = log_odds_against(logits, self._goal)
        over = self.rows.confirmed(self._written(), self.rows.hits(logits)).to(alpha.device)
        if self._steps == self._limit:
            return self._take(torch.ones_like(over))
        pairs, found = best_pairs(alpha, beta, self._free())
        over |= ~found
        outcomes = self._take(over)
        self._change(pairs[~over])
        return outcomes

    def _derivatives(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return α and β, float [n, M], with the signs that θ > 0 would have, and the logits."""
        count = len(self.rows)
        target, others = self._goal, torch.arange(2 * count, device=self._goal.device) >= count

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            own = logits.gather(1, target[index % count][:, None])[:, 0]
            return torch.where(others[index], logits.sum(1) - own, own)

        result = self._evaluator.loss_and_gradient(torch.cat([self._images] * 2), loss)
        gradients = result.gradients.flatten(1) * (1 if self._settings.theta > 0 else -1)
        return gradients[:count], gradients[count:], result.logits[:count]

    def _free(self) -> Tensor:
        """Return bool [n, M]: which values are in the region and not yet at the bound they go to?"""
        images = self._images
        free = images < 1 if self._settings.theta > 0 else images > 0
        return (free & self.rows.region).flatten(1)

    def _change(self, pairs: Tensor) -> None:
        """Change a pair of values in every image, int64 [n, 2]."""
        if not len(pairs):
            return
        flat = self._images.flatten(1)
        change = torch.zeros_like(flat).scatter(1, pairs, self._settings.theta)
        self._images = (flat + change).clamp(0, 1).view(self._images.shape)
        self._pairs[:, self._steps] = pairs.to(torch.int32)
        self._steps += 1

    def _written(self) -> Tensor:
        """Return the images on 8 bits, uint8 [n, 3, H, W]."""
        return (self._images * 255).round().to(torch.uint8)

    def _take(self, done: Tensor) -> list[Outcome]:
        """Return the outcomes of the rows that bool [n] ``done`` marks, and drop them."""
        if not done.any():
            return []
        found = self._written()[done].cpu()
        pairs, losses = self._pairs[done, : self._steps].cpu().numpy(), self._losses[done].cpu().numpy()
        queries = 2 * (self._steps + 1) + 1
        outcomes = [
            Outcome(
                search=search,
                adversarial=found[row],
                queries=queries,
                candidates=queries,
                generations=self._steps,
                history={"pairs": pairs[row], "loss": losses[row, : self._steps + 1]},
            )
            for row, search in enumerate(self.rows.search[done.cpu()].tolist())
        ]
        self.rows.keep(~done)
        for name in ("_images", "_goal", "_pairs", "_losses"):
            setattr(self, name, getattr(self, name)[~done])
        return outcomes
