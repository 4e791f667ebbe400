"""What becomes of the classes that were best before an attack (wang2021, Table III)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    of_best = _OfBest.of(chosen)
    decrease = {k: found for k in ORIGINAL if (found := of_best.decrease(k, confidence)) is not None}
    within = {(k, m): share for k, m in WITHIN if (share := of_best.within(k, m, confidence)) is not None}
    return OriginalClasses(len(chosen), decrease, within)


@dataclass(frozen=True)
class _OfBest:
    """What became of the best classes of N searches, best first; float64 [N, 5], NaN where that is not recorded.

    :ivar lost: confidence before minus after.
    :ivar rank: afterwards, from 1.
    """

    lost: NDArray[np.float64]
    rank: NDArray[np.float64]

    @classmethod
    def of(cls, records: Sequence[AttackRecord]) -> _OfBest:
        found = np.full((2, len(records), max(ORIGINAL)), np.nan)
        for row, record in enumerate(records):
            after = record.after
            left = {name: (share, rank) for name, share, rank in after.of_before_top5} if after else {}
            for column, (name, share) in enumerate(record.before.top5[: max(ORIGINAL)]):
                if name in left:
                    found[:, row, column] = share - left[name][0], left[name][1]
        return cls(*found)

    def _known(self, k: int) -> NDArray[np.bool_]:
        """Return of which searches there is something recorded of each of the best k; bool [N]."""
        return np.asarray(~np.isnan(self.rank[:, :k]).any(1))

    def decrease(self, k: int, confidence: float) -> Estimate | None:
        means = self.lost[self._known(k), :k].mean(1)
        return bootstrap(means, confidence) if len(means) else None

    def within(self, k: int, m: int, confidence: float) -> Rate | None:
        known = self._known(k)
        hits = np.where(known, (self.rank[:, :k] <= m).sum(1), 0)
        return clustered_rate(list(zip(hits.tolist(), (k * known).tolist(), strict=True)), confidence)
