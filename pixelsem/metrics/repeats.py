"""How far chance goes: the same search of the same images with other random numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pixelsem.metrics.intervals import Rate, rate
from pixelsem.metrics.success import Image, attacked, image_of, successes_by_image
from pixelsem.records import AttackRecord


@dataclass(frozen=True)
class SeedVariance:
    """Success of several searches of the same images that differ in their random numbers alone.

    :ivar searches: how many searches: seeds, and repeats of each.
    :ivar images: images that all of them attacked.
    :ivar mean: mean over searches of the share of images that succeed.
    :ivar deviation: standard deviation of that share between searches (n − 1).
    :ivar least: the least share.
    :ivar most: the greatest.
    :ivar never: images that no search succeeds on.
    :ivar sometimes: images that some succeed on and some do not.
    :ivar always: images that all succeed on.
    """

    searches: int
    images: int
    mean: float
    deviation: float
    least: float
    most: float
    never: int
    sometimes: int
    always: int


def seed_variance(records: Iterable[AttackRecord], region: str) -> SeedVariance | None:
    """Return how untargeted success varies between seeds and repeats; None without two searches of one image."""
    by_search: dict[tuple[int, int], dict[Image, bool]] = defaultdict(dict)
    for record in untargeted(records, region):
        by_search[record.seed, record.repeat][image_of(record)] = record.success
    common = sorted(set.intersection(*map(set, by_search.values()))) if len(by_search) > 1 else []
    if not common:
        return None
    hits = [sum(search[image] for search in by_search.values()) for image in common]
    shares = [fmean(search[image] for image in common) for search in by_search.values()]
    count = len(by_search)
    return SeedVariance(
        searches=count, images=len(common), mean=fmean(shares), deviation=stdev(shares), least=min(shares),
        most=max(shares), never=hits.count(0), sometimes=sum(0 < hit < count for hit in hits), always=hits.count(count),
    )  # fmt: skip


def image_probabilities(records: Iterable[AttackRecord], region: str, confidence: float = 0.95) -> dict[Image, Rate]:
    """Return each image's share of successful untargeted searches; empty where none was searched more than once."""
    found = successes_by_image(untargeted(records, region))
    if max((trials for _, trials in found.values()), default=0) < 2:
        return {}
    shares = {image: rate(*counts, confidence) for image, counts in found.items()}
    return {image: share for image, share in shares.items() if share is not None}


def untargeted(records: Iterable[AttackRecord], region: str) -> Sequence[AttackRecord]:
    """Return all untargeted searches of one region that ran, repeats included."""
    return [record for record in attacked(records) if record.target is None and record.region == region]
