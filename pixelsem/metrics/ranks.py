"""What becomes of the classes that were best before an attack (wang2021, Table III)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pixelsem.metrics.bootstrap import Estimate, bootstrap
from pixelsem.metrics.intervals import Rate, clustered_rate
from pixelsem.metrics.success import Goal, attacked, select
from pixelsem.records import AttackRecord

#: How many of the original classes are looked at: the best, the best three and all five that a record holds.
ORIGINAL = (1, 3, 5)

#: (k, m): are the original top k among the top m afterwards?
WITHIN = ((1, 3), (1, 5), (3, 3), (3, 5), (5, 5))


@dataclass(frozen=True)
class OriginalClasses:
    """The original top-k classes of some attacked images, before and after.

    :ivar images: how many images.
    :ivar decrease: by k: confidence before minus after, in [-1, 1], mean over the k classes and the images.
    :ivar within: by (k, m): image × class pairs whose class, one of the original top k, is in the top m
        afterwards. That these are the paper's shares can be seen from its numbers: of AlexNet's 373 images that
        stood firm 92.58 % are 1036 of 3 × 373. The interval allows for classes of one image not being independent.
    """

    images: int
    decrease: Mapping[int, Estimate]
    within: Mapping[tuple[int, int], Rate]


def original_classes(
    records: Iterable[AttackRecord], region: str, goal: Goal, *, succeeded: bool, confidence: float = 0.95
) -> OriginalClasses | None:
    """Return Table III's numbers over the searches that succeeded, or over those that did not; None without any.

    Each search counts as an image: those towards several targets count apart. A k beyond the number of classes
    is left out.
    """
    chosen = [
        record
        for record in attacked(select(records, goal, region))
        if record.success == succeeded and record.after is not None
    ]
    if not chosen:
        return None
    decrease = {k: found for k in ORIGINAL if (found := _decrease(chosen, k, confidence)) is not None}
    within = {(k, m): share for k, m in WITHIN if (share := _within(chosen, k, m, confidence)) is not None}
    return OriginalClasses(len(chosen), decrease, within)


def _pairs(record: AttackRecord, k: int) -> list[tuple[float, float, int]]:
    """Return (confidence before, confidence after, rank after) of the original top k; nothing for fewer classes."""
    before = record.before.top5[:k]
    left = {name: (share, rank) for name, share, rank in record.after.of_before_top5} if record.after else {}
    if len(before) < k or any(name not in left for name, _ in before):
        return []
    return [(share, *left[name]) for name, share in before]


def _decrease(records: Sequence[AttackRecord], k: int, confidence: float) -> Estimate | None:
    means = [np.mean([old - new for old, new, _ in pairs]) for record in records if (pairs := _pairs(record, k))]
    return bootstrap(np.array(means), confidence) if means else None


def _within(records: Sequence[AttackRecord], k: int, m: int, confidence: float) -> Rate | None:
    ranks = [[rank for *_, rank in _pairs(record, k)] for record in records]
    return clustered_rate([(sum(rank <= m for rank in image), len(image)) for image in ranks], confidence)
