"""What becomes of the classes that were best before an attack (wang2021, Table III)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelsem.metrics.bootstrap import Estimate, bootstrap_by_image
from pixelsem.metrics.intervals import Rate, clustered_rate
from pixelsem.metrics.success import Goal, Image, attacked, image_of, select
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

    Each search counts as an image: those towards several targets count apart, but no interval takes them for
    independent. A k beyond the number of classes is left out.
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

    :ivar images: which image each search is of.
    :ivar lost: confidence before minus after.
    :ivar rank: afterwards, from 1.
    """

    images: Sequence[Image]
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
        return cls([image_of(record) for record in records], *found)

    def _known(self, k: int) -> NDArray[np.bool_]:
        """Return of which searches there is something recorded of each of the best k; bool [N]."""
        return np.asarray(~np.isnan(self.rank[:, :k]).any(1))

    def decrease(self, k: int, confidence: float) -> Estimate | None:
        known = self._known(k)
        images = [image for image, there in zip(self.images, known, strict=True) if there]
        return bootstrap_by_image(self.lost[known, :k].mean(1), images, confidence) if images else None

    def within(self, k: int, m: int, confidence: float) -> Rate | None:
        known = self._known(k)
        hits = np.where(known, (self.rank[:, :k] <= m).sum(1), 0)
        by_image: dict[Image, tuple[int, int]] = {}
        for image, own, tried in zip(self.images, hits.tolist(), (k * known).tolist(), strict=True):
            before = by_image.get(image, (0, 0))
            by_image[image] = (before[0] + own, before[1] + tried)
        return clustered_rate(list(by_image.values()), confidence)
