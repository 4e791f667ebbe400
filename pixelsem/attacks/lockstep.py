"""Few-pixel searches side by side: what they share, however their candidates are proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches, fitness_of, is_hit
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.fitness.seen import Seen, first_of_equal

#: Hits looked at per search and generation: in low precision there may be many that do not hold.
_MOST_CONFIRMED = 16

#: What is minimised, float32 [C], of logits [C, classes], labels and targets, int64 [C] each; -1 for no target.
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class Method(Protocol):
    """Proposes candidates for n searches, as many for each, and is told how they did."""

    @property
    def generation(self) -> int:
        """Rounds told so far."""

    @property
    def candidates(self) -> int:
        """Candidates per search in them."""

    def ask(self) -> Edits:
        """Return the candidates to score next: P of the first search, P of the second, and so on."""

    def tell(self, fitness: Tensor) -> None:
        """Take the fitness of these, float32 [n, P]; lower is better, NaN is worst."""

    def best(self) -> Edits:
        """Return the best candidate of each search so far."""

    def over(self, found: list[bool]) -> list[bool]:
        """Say which searches are over, given which of them have a confirmed hit."""

    def history(self, row: int) -> dict[str, NDArray[Any]]:
        """Return how the search of a row went, arrays by name."""

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which``, on the CPU, does not mark."""


class Scores(NamedTuple):
    """Of n searches with P candidates each: fitness float32, hit bool, scored by the model bool; [n, P] each."""

    fitness: Tensor
    hits: Tensor
    scored: Tensor


class _Search:
    """The hit that one search has found, if any."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.hit: Tensor | None = None  # uint8 [3, H, W], the fittest confirmed hit
        self.hit_fitness = float("inf")


class Lockstep:
    """Scores and confirms the candidates of searches; row i of every tensor belongs to the i-th that is left.

    Candidates that change nothing are free and no hit; those that came before are free too.

    :ivar images: uint8 [N, 3, H, W] on the evaluator's device.
    :ivar image: int64 [n], which of them each search is about.
    :ivar regions: bool [n, H, W], the pixels it may change.
    :ivar labels: int64 [n], the class it attacks away from.
    :ivar targets: int64 [n], the class it must reach, -1 where any other will do.
    """

    def __init__(
        self, searches: Searches, evaluator: Evaluator, candidates: int, objective: Objective = fitness_of
    ) -> None:
        """Attach the images; ``candidates`` are what one search may come to at most."""
        device = evaluator.device
        self._evaluator, self._objective = evaluator, objective
        self.images, self.image = searches.images.to(device), searches.image.to(device)
        self.regions = searches.regions.to(device)
        self.labels, self.targets = searches.labels.to(device), searches.targets.to(device)
        self._clean = objective(evaluator.attach(self.images)[self.image], self.labels, self.targets)
        self._queries = torch.zeros(len(searches), dtype=torch.int64, device=device)
        self._seen = Seen(len(searches), candidates, device)
        self._active = [_Search(index) for index in range(len(searches))]

    @property
    def device(self) -> torch.device:
        """Where the candidates live."""
        return self._evaluator.device

    def run(self, method: Method, progress: Progress | None) -> Iterator[Outcome]:
        """Let ``method`` search; yield each :class:`Outcome` as it is decided.

        In every round candidates that hit are confirmed in fp32, the fittest first. The outcome is the fittest
        confirmed hit, or the fittest candidate where there was none.
        """
        progress = progress or Progress()
        while self._active and not progress.should_stop():
            edits = method.ask()
            scores = self._score(edits)
            method.tell(scores.fitness)
            self._confirm(edits, scores)
            self._queries += scores.scored.sum(1)
            outcomes = self._take_finished(method)
            progress.queries = self._evaluator.queries
            progress.on_change(progress)
            yield from outcomes

    def _score(self, edits: Edits) -> Scores:
        keys = edits.keys(self.images).view(len(self._active), -1)
        known, fitness, hits = self._seen.recall(keys)
        first = first_of_equal(keys)
        scored = (keys != 0) & ~known & (first == torch.arange(keys.shape[1], device=keys.device))
        fitness = torch.where(keys == 0, self._clean[:, None], fitness)
        hits &= known
        if scored.any():
            row = scored.nonzero()[:, 0]
            logits = self._evaluator.score(edits[scored.flatten().nonzero()[:, 0]])
            fitness[scored] = self._objective(logits, self.labels[row], self.targets[row])
            hits[scored] = is_hit(logits, self.labels[row], self.targets[row])
        fitness, hits = fitness.gather(1, first), hits.gather(1, first)
        self._seen.note(keys, fitness, hits, scored)
        return Scores(fitness, hits, scored)

    def _confirm(self, edits: Edits, scores: Scores) -> None:
        """Look at the fittest hits of each search until one holds in fp32."""
        size = scores.fitness.shape[1]
        values = torch.where(scores.hits, scores.fitness, torch.inf).cpu().numpy()  # one copy, not one per look
        for row in np.flatnonzero(np.isfinite(values).any(1)).tolist():
            search = self._active[row]
            for column in values[row].argsort(kind="stable")[:_MOST_CONFIRMED].tolist():
                if values[row, column] >= search.hit_fitness:
                    break
                image = edits[row * size + column : row * size + column + 1].render(self.images)
                if self._holds(image, row):
                    search.hit, search.hit_fitness = image[0].cpu(), float(values[row, column])
                    break

    def _holds(self, image: Tensor, row: int) -> bool:
        logits = self._evaluator.confirm(image)
        return bool(is_hit(logits, self.labels[row : row + 1], self.targets[row : row + 1])[0])

    def _take_finished(self, method: Method) -> list[Outcome]:
        """Drop the searches that are over and return their outcomes."""
        done = method.over([search.hit is not None for search in self._active])
        if not any(done):
            return []
        best = method.best().render(self.images).cpu()
        queries = self._queries.tolist()
        outcomes = [
            Outcome(
                search=search.index,
                adversarial=best[row] if search.hit is None else search.hit,
                queries=queries[row],
                candidates=method.candidates,
                generations=method.generation,
                history=method.history(row),
            )
            for row, search in enumerate(self._active)
            if done[row]
        ]
        left = torch.tensor([not over for over in done])
        method.keep(left)
        self._keep(left)
        return outcomes

    def _keep(self, which: Tensor) -> None:
        self._active = [search for search, wanted in zip(self._active, which.tolist(), strict=True) if wanted]
        which = which.to(self.device)
        self._seen.keep(which)
        for name in ("image", "regions", "labels", "targets", "_clean", "_queries"):
            setattr(self, name, getattr(self, name)[which])


class Fittest:
    """The fittest candidate of n searches so far, each with K pixels; of equal ones the first.

    :ivar fitness: float32 [n]; infinite before the first candidate.
    """

    def __init__(self, searches: int, device: torch.device) -> None:
        self.fitness = torch.full((searches,), torch.inf, device=device)
        self._edits: Edits | None = None

    def offer(self, edits: Edits, fitness: Tensor) -> None:
        """Take n·P candidates and their fitness, float32 [n, P]."""
        count, size = fitness.shape
        value, column = torch.nan_to_num(fitness, nan=torch.inf).min(1)
        chosen = edits[torch.arange(count, device=column.device) * size + column]
        if self._edits is not None:
            better = value < self.fitness
            position = torch.where(better[:, None], chosen.position, self._edits.position)
            colour = torch.where(better[:, None, None], chosen.colour, self._edits.colour)
            chosen = Edits(chosen.image, position, colour)
        self._edits, self.fitness = chosen, torch.minimum(self.fitness, value)

    def edits(self) -> Edits:
        """Return the n fittest candidates. There must have been an offer."""
        assert self._edits is not None
        return self._edits

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self.fitness, self._edits = self.fitness[which], self.edits()[which]


class Trace:
    """One value of n searches per round, kept for their histories. There are ``rounds`` at most."""

    def __init__(self, searches: int, rounds: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._values = torch.zeros(searches, rounds, dtype=dtype, device=device)
        self._rounds = 0

    def add(self, values: Tensor) -> None:
        """Append one round, [n]."""
        self._values[:, self._rounds] = values
        self._rounds += 1

    def row(self, row: int) -> NDArray[Any]:
        """Return the values of one search, [rounds so far]."""
        return self._values[row, : self._rounds].cpu().numpy()

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        self._values = self._values[which]
