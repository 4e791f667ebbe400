"""How often a classifier is right on clean images (wang2021, Table I)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelsem.metrics.intervals import Rate, rate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Accuracy:
    """Correct predictions: overall and by class (by index; None for a class without images)."""

    top1: Rate | None
    top5: Rate | None
    per_class: Sequence[Rate | None]


def accuracy(
    batches: Iterable[tuple[NDArray[np.floating], NDArray[np.integer]]], classes: int, confidence: float = 0.95
) -> Accuracy:
    """Count over batches of (logits [N, classes], labels [N]).

    A label is in the top five where fewer than five classes are strictly ahead of it, or equal to it with a
    lower index; so top-1 is exactly what ``argmax`` says.
    """
    import numpy as np

    hits = np.zeros((2, classes), np.int64)
    count = np.zeros(classes, np.int64)
    for logits, labels in batches:
        rows = np.arange(len(labels))
        own = logits[rows, labels][:, None]
        earlier = np.arange(classes)[None, :] < labels[:, None]
        rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
        count += np.bincount(labels, minlength=classes)
        for top, row in zip((1, 5), hits, strict=True):
            row += np.bincount(labels[rank < top], minlength=classes)
    n = int(count.sum())
    return Accuracy(
        top1=rate(int(hits[0].sum()), n, confidence),
        top5=rate(int(hits[1].sum()), n, confidence),
        per_class=[rate(int(hit), int(of), confidence) for hit, of in zip(hits[0], count, strict=True)],
    )
