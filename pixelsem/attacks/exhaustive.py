"""Every pixel of the region in every one of some colours: where one pixel is enough, and where it is not.

A search finds one such pixel or none; this finds all there are for its colours, so that "none" is a fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches, Vulnerability
from pixelsem.attacks.settings_exhaustive import ExhaustiveSettings
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator

#: Logits whose best two are closer than this (relative to the best, where that is over 1) are decided one by one.
_TIE = 1e-3
_FIRST_STEP = 128  # of 256 levels


def exhaustive(
    searches: Searches, evaluator: Evaluator, settings: ExhaustiveSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Give every pixel of the region every colour; yield an :class:`Outcome` with its map as each image is done.

    Every candidate is scored, whatever was found before. Those that equal the clean image are free and no hits.
    What a candidate's top-1 is, is decided in fp32 for all that change it in the search's precision, and on the
    image alone where two classes all but tie. The adversarial image is the hit with the lowest confidence of
    the label (targeted: the highest of the target), or where nothing hits the best candidate.

    Searches of one image share what they score; each counts it as if it were alone.

    ``settings.refine``: from the best colour of each of the ``refine_pixels`` best pixels the search goes on over
    all 8-bit colours, a step up or down in one channel at a time; where no step gains, steps are halved. Hits found
    on the way count in the map. It ends where steps of 1 gain nothing, or after ``refine_queries``.
    """
    progress = progress or Progress()
    run = _Run(searches, evaluator, settings)
    while run.left and not progress.should_stop():
        results = run.advance()
        if settings.refine and results:
            run.refine(results, progress)
        progress.queries = evaluator.queries
        progress.on_change(progress)
        if results and progress.should_stop() and settings.refine:
            return  # the refinement may be incomplete
        yield from map(run.outcome, results)


def colour_grid(levels: int) -> Tensor:
    """Return uint8 [levels³, 3]: every colour of so many levels per channel, spread evenly from 0 to 255."""
    values = torch.tensor([(255 * n + (levels - 1) // 2) // (levels - 1) for n in range(levels)], dtype=torch.uint8)
    return torch.cartesian_prod(values, values, values)


@dataclass
class _Table:
    """What each of K colours at each of n pixels of one image came to.

    ``confidence`` is float32 [W, n, K], of the ``classes`` that the image's searches ask for; ``reached`` int32
    [n, K] is the top-1, -1 where nothing changes.
    """

    start: int  # its first pixel's row
    positions: Tensor
    classes: list[int]
    confidence: Tensor
    reached: Tensor


@dataclass
class _Result:
    """What one search has come to, for the n pixels of its region."""

    search: int
    positions: Tensor  # int64 [n]
    fitness: Tensor  # float32 [n], the lowest at each pixel
    colour: Tensor  # uint8 [n, 3], which has it
    reached: Tensor  # bool [n, classes], the label's column False
    hits: Tensor  # bool [n, K]
    vulnerable: Tensor  # bool [n]
    best: tuple[float, int, Tensor]  # fitness, position and colour of the fittest hit, else of the fittest candidate
    queries: int
    candidates: int
    rounds: int = 1

    def offer(self, fitness: Tensor, hits: Tensor, pixel: Tensor, colour: Tensor) -> None:
        """Take the fittest of the new candidates, float32 [m] etc., where it is a better answer than the present."""
        found = bool(self.vulnerable.any())
        if found and not hits.any():
            return
        value, place = (torch.where(hits, fitness, torch.inf) if hits.any() else fitness).min(0)
        if float(value) < self.best[0] or (hits.any() and not found):
            self.best = (float(value), int(self.positions[pixel[place]]), colour[place])


class _Run:
    """The candidates of all searches in one row, image by image, pixel by pixel, colour by colour."""

    def __init__(self, searches: Searches, evaluator: Evaluator, settings: ExhaustiveSettings) -> None:
        device = evaluator.device
        self.settings, self.evaluator = settings, evaluator
        self.images = searches.images.to(device)
        self.clean = evaluator.attach(self.images).softmax(1)
        self.image: list[int] = searches.image.tolist()
        self.labels: list[int] = searches.labels.tolist()
        self.targets: list[int] = searches.targets.tolist()
        self.regions = searches.regions.flatten(1).to(device)
        self.size = tuple(searches.regions.shape[1:])
        self.colours = colour_grid(settings.levels).to(device)
        areas = torch.zeros(len(self.images), self.regions.shape[1], dtype=torch.int32, device=device)
        areas.index_add_(0, searches.image.to(device), self.regions.int())
        self.row_image, self.row_position = (areas > 0).nonzero().unbind(1)
        self.ends: list[int] = (areas > 0).sum(1).cumsum(0).tolist()
        self.tables: dict[int, _Table] = {}
        self.next = 0
        # The class that is no hit for any search of an image; -1 where searches differ.
        labels = [{self.labels[search] for search in self._searches_of(image)} for image in range(len(self.images))]
        self.safe = torch.tensor([own.pop() if len(own) == 1 else -1 for own in labels], device=device)
        self.exact: Evaluator | None = None
        if evaluator.precision != "fp32":
            self.exact = Evaluator(evaluator.classifier, device=device, precision="fp32", scorer="dense")
            self.exact.attach(self.images)

    @property
    def left(self) -> bool:
        """Are there candidates that were not scored yet?"""
        return self.next < len(self.row_image) * len(self.colours)

    @torch.inference_mode()
    def advance(self) -> list[_Result]:
        """Score the next candidates; return the results of the searches whose images are done with them."""
        count = len(self.colours)
        stop = min(self.next + self.settings.population, len(self.row_image) * count)
        chunk = torch.arange(self.next, stop, device=self.images.device)
        row, colour = chunk // count, chunk % count
        edits = Edits(self.row_image[row], self.row_position[row][:, None], self.colours[colour][:, None])
        changed = edits.changes(self.images).nonzero()[:, 0]
        logits = self._logits(edits[changed])
        first, last = int(self.row_image[row[0]]), int(self.row_image[row[-1]])
        for image in range(first, last + 1):
            own = (edits.image[changed] == image).nonzero()[:, 0]
            self._note(image, row[changed[own]], colour[changed[own]], logits[own])
        self.next = stop
        done = [image for image in range(first, last + 1) if self.ends[image] * count <= stop and image in self.tables]
        return [result for image in done for result in self._results(image)]

    def _logits(self, edits: Edits) -> Tensor:
        """Return logits whose top-1 is that of the image as it will be written; see :func:`exhaustive`."""
        logits = self.evaluator.score(edits)
        if self.exact is not None:
            hits = (logits.argmax(1) != self.safe[edits.image]).nonzero()[:, 0]
            logits = logits.index_copy(0, hits, self.exact.score(edits[hits]))
        first, second = logits.topk(2, dim=1).values.unbind(1)
        close = (first - second <= _TIE * first.abs().clamp(min=1)).nonzero()[:, 0]
        if len(close):
            logits = logits.index_copy(0, close, self.evaluator.confirm(edits[close].render(self.images)))
        return logits

    def _note(self, image: int, row: Tensor, colour: Tensor, logits: Tensor) -> None:
        if image not in self.tables:
            self.tables[image] = self._table(image)
        table = self.tables[image]
        table.confidence[:, row - table.start, colour] = logits.softmax(1)[:, table.classes].T
        table.reached[row - table.start, colour] = logits.argmax(1).int()

    def _table(self, image: int) -> _Table:
        start = self.ends[image - 1] if image else 0
        positions = self.row_position[start : self.ends[image]]
        wanted = {self._wanted(search) for search in self._searches_of(image)}
        classes = sorted(wanted)
        shape = (len(positions), len(self.colours))
        confidence = self.clean[image, classes][:, None, None].repeat(1, *shape)
        reached = torch.full(shape, -1, dtype=torch.int32, device=positions.device)
        return _Table(start, positions, classes, confidence, reached)

    def _searches_of(self, image: int) -> list[int]:
        return [search for search, of in enumerate(self.image) if of == image]

    def _wanted(self, search: int) -> int:
        """Return the class whose confidence a search is about."""
        return self.targets[search] if self.targets[search] >= 0 else self.labels[search]

    def _results(self, image: int) -> Iterator[_Result]:
        table = self.tables.pop(image)
        for search in self._searches_of(image):
            inside = self.regions[search, table.positions]
            confidence = table.confidence[table.classes.index(self._wanted(search))][inside]
            yield self._result(search, table.positions[inside], confidence, table.reached[inside])

    def _result(self, search: int, positions: Tensor, confidence: Tensor, reached: Tensor) -> _Result:
        """Reduce float32 ``confidence`` and int32 ``reached``, [n, K], to what is known of each pixel."""
        fitness = -confidence if self.targets[search] >= 0 else confidence
        hits = self._hits(search, reached)
        lowest, colour = fitness.min(1)
        answers = torch.where(hits, fitness, torch.inf) if hits.any() else fitness
        value, place = answers.flatten().min(0)
        pixel, chosen = divmod(int(place), len(self.colours))
        classes = torch.zeros(len(positions), self.clean.shape[1] + 1, dtype=torch.bool, device=positions.device)
        classes.scatter_(1, reached.long() + 1, True)  # column 0 takes what changed nothing
        classes[:, self.labels[search] + 1] = False
        return _Result(
            search=search,
            positions=positions,
            fitness=lowest,
            colour=self.colours[colour],
            reached=classes[:, 1:],
            hits=hits,
            vulnerable=hits.any(1),
            best=(float(value), int(positions[pixel]), self.colours[chosen]),
            queries=int((reached >= 0).sum()),
            candidates=reached.numel(),
        )

    def _hits(self, search: int, reached: Tensor) -> Tensor:
        """Return where the top-1, -1 for an unchanged image, is what the search is after."""
        label, target = self.labels[search], self.targets[search]
        hits: Tensor = reached == target if target >= 0 else (reached >= 0) & (reached != label)
        return hits

    @torch.inference_mode()
    def refine(self, results: Sequence[_Result], progress: Progress) -> None:
        """Improve the colours of the best pixels of some searches, in lock-step."""
        climbs = [_Climb(result, self.settings.refine_pixels) for result in results]
        spent = [0] * len(climbs)
        while not progress.should_stop():
            proposals = []
            for number, climb in enumerate(climbs):
                edits = climb.edits(self.image[climb.result.search])
                new = edits.changes(self.images) & climb.moved
                if not climb.active or spent[number] + int(new.sum()) > self.settings.refine_queries:
                    climb.active = False
                    continue
                spent[number] += int(new.sum())
                proposals.append((climb, edits, new))
            if not proposals:
                break
            self._climb(proposals)
            progress.queries = self.evaluator.queries
            progress.on_change(progress)

    def _climb(self, proposals: Sequence[tuple[_Climb, Edits, Tensor]]) -> None:
        """Score one round of proposals together and let each climb take its best steps."""
        parts = [edits[new.nonzero()[:, 0]] for _, edits, new in proposals]
        logits = self._logits(_joined(parts))
        for (climb, _, new), own in zip(proposals, logits.split([len(part) for part in parts]), strict=True):
            search = climb.result.search
            confidence = own.softmax(1)[:, self._wanted(search)]
            fitness = -confidence if self.targets[search] >= 0 else confidence
            top = own.argmax(1)
            climb.step(new, fitness, self._hits(search, top), top, self.labels[search])

    def outcome(self, result: _Result) -> Outcome:
        """Lay out a result as maps [H, W], on the CPU."""
        search = result.search
        image = self.images[self.image[search]]
        _, position, colour = result.best
        adversarial = image.flatten(1).clone()
        adversarial[:, position] = colour
        targeted = self.targets[search] >= 0
        level = torch.full((image[0].numel(),), 0.0 if targeted else 1.0)
        level[result.positions.cpu()] = result.fitness.abs().cpu()
        best = image.flatten(1).T.clone()
        best[result.positions] = result.colour
        reached = self._packed(result.positions, result.reached)
        vulnerable = self._laid_out(result.positions, result.vulnerable[:, None])[..., 0]
        return Outcome(
            search=search,
            adversarial=adversarial.view_as(image).cpu(),
            queries=result.queries,
            candidates=result.candidates,
            generations=result.rounds,
            history={
                "colours": self.colours.cpu().numpy(),
                "hits": self._packed(result.positions, result.hits),
                "reached": reached,
                "vulnerable": vulnerable,
                "best": best.view(*self.size, 3).cpu().numpy(),
            },
            vulnerability=Vulnerability(level.view(self.size).numpy(), vulnerable, reached),
        )

    def _packed(self, positions: Tensor, marks: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Lay out bool [n, M] as packed bits, uint8 [H, W, ⌈M / 8⌉]."""
        return np.packbits(self._laid_out(positions, marks), axis=2)

    def _laid_out(self, positions: Tensor, marks: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        laid = np.zeros((self.regions.shape[1], marks.shape[1]), np.bool_)
        laid[positions.cpu().numpy()] = marks.cpu().numpy()
        return laid.reshape(*self.size, -1)


class _Climb:
    """The local search over the colours of the best pixels of one search: m pixels, six steps each."""

    def __init__(self, result: _Result, pixels: int) -> None:
        self.result = result
        order = result.fitness.argsort(stable=True)
        self.pixel = order[:pixels]  # int64 [m], rows of the result
        self.colour = result.colour[self.pixel].long()
        self.fitness = result.fitness[self.pixel].clone()
        self.length = torch.full_like(self.pixel, _FIRST_STEP)
        unit = torch.eye(3, dtype=torch.int64, device=self.pixel.device)
        self._directions = torch.cat([unit, -unit])
        self.active = True

    @property
    def _proposed(self) -> Tensor:
        """The colours next to the present ones, int64 [m, 6, 3]."""
        return (self.colour[:, None] + self.length[:, None, None] * self._directions).clamp(0, 255)

    @property
    def moved(self) -> Tensor:
        """Which proposals are another colour than the present one and still wanted, bool [6m]."""
        return ((self._proposed != self.colour[:, None]).any(2) & (self.length > 0)[:, None]).flatten()

    def edits(self, image: int) -> Edits:
        """Return the 6m proposals as candidates of the image so numbered."""
        position = self.result.positions[self.pixel].repeat_interleave(6)
        return Edits(torch.full_like(position, image), position[:, None], self._proposed.view(-1, 1, 3).to(torch.uint8))

    def step(self, new: Tensor, fitness: Tensor, hits: Tensor, top: Tensor, label: int) -> None:
        """Take in what the ``new`` of the proposals, bool [6m], came to; move where it is better, else look closer."""
        result, proposed = self.result, self._proposed.to(torch.uint8)
        pixel = self.pixel.repeat_interleave(6)[new]
        if len(pixel):
            result.offer(fitness, hits, pixel, proposed.view(-1, 3)[new])
        result.vulnerable[pixel[hits]] = True
        other = top != label
        result.reached[pixel[other], top[other]] = True
        values = torch.full(new.shape, torch.inf, device=new.device).masked_scatter(new, fitness)
        value, chosen = values.view(-1, 6).min(1)
        better = value < self.fitness
        self.fitness = torch.where(better, value, self.fitness)
        picked = proposed[torch.arange(len(chosen), device=chosen.device), chosen].long()
        self.colour = torch.where(better[:, None], picked, self.colour)
        self.length = torch.where(better, self.length, self.length // 2)
        result.fitness[self.pixel], result.colour[self.pixel] = self.fitness, self.colour.to(torch.uint8)
        result.queries += len(pixel)
        result.candidates += len(new)
        result.rounds += 1
        self.active = bool((self.length > 0).any())


def _joined(parts: Sequence[Edits]) -> Edits:
    return Edits(*(torch.cat([getattr(part, name) for part in parts]) for name in ("image", "position", "colour")))
