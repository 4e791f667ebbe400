"""The few-pixel attack by differential evolution (su2017; region-restricted as in wang2021 §III-D)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches, fitness_of, is_hit
from pixelsem.attacks.evolution import Evolution
from pixelsem.attacks.few_pixel import GENES, PixelCoding, colour_genes
from pixelsem.attacks.settings import DESettings
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.fitness.seen import Seen, first_of_equal

#: Hits looked at per search and generation: in low precision there may be many that do not hold.
_MOST_CONFIRMED = 16


def differential_evolution(
    searches: Searches, evaluator: Evaluator, settings: DESettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Search for few-pixel changes that alter the prediction; yield each :class:`Outcome` as it is decided.

    The fitness is the confidence of the label, or minus that of the target (wang2021 §IV-B). After every
    generation, the initial population included, candidates that hit are confirmed in fp32, the fittest
    first; the first confirmed one ends its search (``early_stop``, ``stop='hit'``). Otherwise the fittest
    confirmed hit is returned, or the fittest member where there was none.
    """
    progress = progress or Progress()
    run = _Run(searches, evaluator, settings)
    while run.active and not progress.should_stop():
        run.advance()
        outcomes = run.take_finished()
        progress.queries = evaluator.queries
        progress.on_change(progress)
        yield from outcomes


class _Search:
    """What one search has come to so far."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.queries = 0
        self.hit: Tensor | None = None  # uint8 [3, H, W], the fittest confirmed hit
        self.hit_fitness = float("inf")
        self.history: dict[str, list[Any]] = {"best": [], "mean": [], "accepted": [], "close": []}

    def record(self, generation: dict[str, Any]) -> None:
        """Append one generation: best and mean fitness, and (after the first) which trials were accepted or close."""
        for name, value in generation.items():
            self.history[name].append(value)

    def arrays(self, population: int) -> dict[str, np.ndarray[Any, Any]]:
        """Return the history as arrays: float32 [G] twice, and uint8 [G − 1, ⌈P / 8⌉] twice."""
        width = -(-population // 8)
        packed = {k: np.array(self.history[k], np.uint8).reshape(-1, width) for k in ("accepted", "close")}
        return {**{k: np.array(self.history[k], np.float32) for k in ("best", "mean")}, **packed}


class _Run:
    """Searches in lock-step; row i of every tensor belongs to ``active[i]``."""

    def __init__(self, searches: Searches, evaluator: Evaluator, settings: DESettings) -> None:
        self.settings = settings
        self.evaluator = evaluator
        device = evaluator.device
        self.images = searches.images.to(device)
        image = searches.image.to(device)
        self.labels, self.targets = searches.labels.to(device), searches.targets.to(device)
        self.clean = fitness_of(evaluator.attach(self.images)[image], self.labels, self.targets)
        self.coding = PixelCoding(self.images, image, searches.regions.to(device), settings.constraint)
        self.evolution = Evolution(
            searches.generators, GENES * settings.pixels, settings, normal=colour_genes(settings.pixels), device=device
        )
        candidates = settings.population * settings.generations
        self.seen = Seen(len(searches), candidates, device)
        self.active = [_Search(index) for index in range(len(searches))]

    def advance(self) -> None:
        """Score and select one generation of every active search; confirm hits."""
        edits = self.coding.edits(self.evolution.ask())
        fitness, hits, scored = self._score(edits)
        self.evolution.tell(fitness)
        self._confirm(edits, fitness, hits)
        for search, queries, record in zip(self.active, scored.sum(1).tolist(), self._records(), strict=True):
            search.queries += queries
            search.record(record)

    def _records(self) -> list[dict[str, Any]]:
        """Return what the history notes of this generation, for every active search."""
        fitness = self.evolution.fitness.cpu().numpy()
        known = np.where(np.isfinite(fitness), fitness, np.nan)
        columns: dict[str, Any] = {"best": fitness.min(1), "mean": np.nanmean(known, 1)}
        if self.evolution.generation > 1:
            columns["accepted"] = np.packbits(self.evolution.accepted.cpu().numpy(), axis=1)
            columns["close"] = np.packbits(self.evolution.close.cpu().numpy(), axis=1)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _score(self, edits: Edits) -> tuple[Tensor, Tensor, Tensor]:
        """Return fitness, hit and scored, each [n, P].

        A candidate that changes nothing is free and no hit; one that came before is free too.
        """
        shape = (-1, self.settings.population)
        keys = edits.keys(self.images).view(shape)
        known, fitness, hits = self.seen.recall(keys)
        first = first_of_equal(keys)
        scored = (keys != 0) & ~known & (first == torch.arange(shape[1], device=keys.device))
        fitness = torch.where(keys == 0, self.clean[:, None], fitness)
        hits &= known
        if scored.any():
            row = scored.nonzero()[:, 0]
            logits = self.evaluator.score(edits[scored.flatten().nonzero()[:, 0]])
            fitness[scored] = fitness_of(logits, self.labels[row], self.targets[row])
            hits[scored] = is_hit(logits, self.labels[row], self.targets[row])
        fitness, hits = fitness.gather(1, first), hits.gather(1, first)
        self.seen.note(keys, fitness, hits, scored)
        return fitness, hits, scored

    def _confirm(self, edits: Edits, fitness: Tensor, hits: Tensor) -> None:
        """Look at the fittest hits of each search until one holds in fp32."""
        size = self.settings.population
        values = torch.where(hits, fitness, torch.inf).cpu().numpy()  # one copy, not one per look
        for row in np.flatnonzero(np.isfinite(values).any(1)).tolist():
            search = self.active[row]
            for column in values[row].argsort(kind="stable")[:_MOST_CONFIRMED].tolist():
                if values[row, column] >= search.hit_fitness:
                    break
                image = edits[row * size + column : row * size + column + 1].render(self.images)
                if self._holds(image, row):
                    search.hit, search.hit_fitness = image[0].cpu(), float(values[row, column])
                    break

    def _holds(self, image: Tensor, row: int) -> bool:
        logits = self.evaluator.confirm(image)
        return bool(is_hit(logits, self.labels[row : row + 1], self.targets[row : row + 1])[0])

    def take_finished(self) -> list[Outcome]:
        """Drop the searches that are over and return their outcomes."""
        done = self._over()
        if not any(done):
            return []
        genes, _ = self.evolution.best()
        best = self.coding.edits(genes[:, None, :]).render(self.images).cpu()
        outcomes = [self._outcome(search, best[row]) for row, search in enumerate(self.active) if done[row]]
        left = torch.tensor([not over for over in done])
        self.active = [search for search, over in zip(self.active, done, strict=True) if not over]
        self.evolution.keep(left)
        left = left.to(self.evaluator.device)
        self.coding.keep(left)
        self.seen.keep(left)
        self.labels, self.targets, self.clean = self.labels[left], self.targets[left], self.clean[left]
        return outcomes

    def _over(self) -> list[bool]:
        settings = self.settings
        if self.evolution.generation >= settings.generations:
            return [True] * len(self.active)
        if not settings.early_stop:
            return [False] * len(self.active)
        if settings.stop == "hit":
            return [search.hit is not None for search in self.active]
        limit = torch.where(self.targets >= 0, -settings.stop_target, settings.stop_true)
        _, best = self.evolution.best()
        return [bool(over) for over in (best <= limit).tolist()]

    def _outcome(self, search: _Search, best: Tensor) -> Outcome:
        generations = self.evolution.generation
        return Outcome(
            search=search.index,
            adversarial=best if search.hit is None else search.hit,
            queries=search.queries,
            candidates=generations * self.settings.population,
            generations=generations,
            history=search.arrays(self.settings.population),
        )
