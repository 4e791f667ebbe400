"""What goes into every attack and what comes out: plain tensors, no files, no printing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pixelsem.attacks.random import generator
from pixelsem.fitness.evaluator import Evaluator


@dataclass(frozen=True)
class Searches:
    """S independent searches over N images.

    :ivar images: uint8 [N, 3, H, W], the clean images at the classifier's resolution.
    :ivar image: int64 [S], which image each search is about.
    :ivar labels: int64 [S], the class each search attacks away from.
    :ivar targets: int64 [S], the class it must reach, -1 where any other will do.
    :ivar regions: bool [S, H, W], the pixels it may change; never empty.
    :ivar generators: one random generator per search, already keyed.
    :ivar superpixels: int64 [S, H, W], for attacks that are guided by them: labels from 0 on, every one in use.
    :ivar attention: float32 [S, H, W] in [0, 1], for attacks that are guided by it; its maximum is 1.
    :ivar patches: uint8 [S, 4, h, w] (RGB and opacity), a patch that is given, the same in all searches.
    """

    images: Tensor
    image: Tensor
    labels: Tensor
    targets: Tensor
    regions: Tensor
    generators: Sequence[np.random.Generator]
    superpixels: Tensor | None = None
    attention: Tensor | None = None
    patches: Tensor | None = None

    @classmethod
    def of(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        regions: Tensor | None = None,
        targets: Tensor | None = None,
        seed: int = 0,
        region: str = "original",
    ) -> Searches:
        """Make one search per image: uint8 [N, 3, H, W] ``images``, int64 [N] ``labels`` and ``targets``.

        ``regions`` is bool [N, H, W], every pixel by default; ``region`` is its name, which together with
        ``seed``, the pixels and the target keys the random draws.
        """
        count, _, height, width = images.shape
        no_targets = torch.full((count,), -1)
        whole = torch.ones(count, height, width, dtype=torch.bool)
        targets = no_targets if targets is None else targets
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        wanted = [None if target < 0 else target for target in targets.tolist()]
        generators = [generator(seed, 0, p, region, target) for p, target in zip(pixels, wanted, strict=True)]
        return cls(images, torch.arange(count), labels, targets, whole if regions is None else regions, generators)

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Vulnerability:
    """What one search tells of every pixel.

    :ivar level: float32 [H, W] in [0, 1], the lowest confidence of the label that a change of this pixel alone
        reached (1 outside of the region); of a targeted search the highest of the target (0 outside).
    :ivar vulnerable: bool [H, W], where some colour is enough to reach what the search is after.
    :ivar reached: uint8 [H, W, ⌈classes / 8⌉], bits as :func:`numpy.packbits` sets them: the classes other than the
        label that some colour of this pixel makes the top-1.
    """

    level: np.ndarray[Any, np.dtype[np.float32]]
    vulnerable: np.ndarray[Any, np.dtype[np.bool_]]
    reached: np.ndarray[Any, np.dtype[np.uint8]]

    def pixels_by_class(self, classes: int) -> list[int]:
        """Return for each class how many pixels reach it."""
        counts: list[int] = np.unpackbits(self.reached, axis=2, count=classes).sum((0, 1)).tolist()
        return counts


@dataclass(frozen=True)
class Outcome:
    """What one search came to.

    :ivar search: its index in the searches given.
    :ivar adversarial: uint8 [3, H, W] on the CPU, the best candidate found, hit or not.
    :ivar queries: candidates that went through the model.
    :ivar candidates: all candidates, free ones included.
    :ivar generations: rounds done; for population-based attacks the initial one counts.
    :ivar history: arrays by name that tell how the search went.
    :ivar vulnerability: the map of the pixels, from attacks that make one.
    """

    search: int
    adversarial: Tensor
    queries: int
    candidates: int
    generations: int
    history: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    vulnerability: Vulnerability | None = None


@dataclass
class Progress:
    """What an attack reports while it runs, and how it is asked to stop."""

    queries: int = 0
    on_change: Callable[[Progress], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False


class Attack(Protocol):
    """The one shape of every attack: searches in, outcomes out, in any order.

    Searches that were not finished when ``progress.should_stop()`` turned true have no outcome.
    """

    def __call__(
        self, searches: Searches, evaluator: Evaluator, settings: Any, progress: Progress
    ) -> Iterator[Outcome]:
        """Run the searches."""


def fitness_of(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return what is minimised, float32 [C]: the label's confidence, or minus the target's (wang2021 §IV-B).

    ``logits`` is [C, classes], ``labels`` and ``targets`` int64 [C] with -1 for no target.
    """
    confidence = logits.float().softmax(1)
    wanted = torch.where(targets >= 0, targets, labels)[:, None]
    value = confidence.gather(1, wanted)[:, 0]
    return torch.where(targets >= 0, -value, value)


def is_hit(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return bool [C]: is the top-1 another class than the label, or the target where there is one?"""
    top = logits.argmax(1)
    return torch.where(targets >= 0, top == targets, top != labels)
