"""How often attacks succeed and what they cost: the numbers of wang2021's Tables II and IV, from records.

Every function takes the records of one setup (one network, one attack, one budget); most those of one region.
A rate's denominator is the images that were attacked: those the model got right and whose region had pixels.
Where searches are repeated, the first one (repeat 0) counts, so that a rate never depends on ``--repeats``;
:func:`repeat_statistics` uses them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from pixelsem.metrics.intervals import Paired, Rate, clustered_rate, rate
from pixelsem.records import AttackRecord, Outcome

Goal = Literal["untargeted", "targeted"]

#: Every goal, in the order of tables.
GOALS: tuple[Goal, ...] = ("untargeted", "targeted")

#: What makes two records be about the same image: its path and the class attacked away from.
Image = tuple[str, str]

#: The order of regions in tables; others follow by name.
REGION_ORDER = ("original", "foreground", "background")


@dataclass(frozen=True)
class Mean:
    """A mean over ``n`` values, with their median; ``n`` is at least 1."""

    value: float
    median: float
    n: int


@dataclass(frozen=True)
class Success:
    """One cell of Table II (wang2021): a network × pixels × region. None where nothing of the kind was run.

    :ivar untargeted1: images misclassified by untargeted attacks.
    :ivar confidence_u: confidence of the predicted class over the successes of untargeted attacks.
    :ivar untargeted2: images for which at least one targeted attack reached its target.
    :ivar targeted: image × target pairs that reached their target; the interval allows for pairs of one
        image not being independent.
    :ivar confidence_t: confidence of the predicted class (the target) over the successes of targeted attacks.
    :ivar targets: how many targets were tried per image, least and most; (0, 0) for none.
    """

    untargeted1: Rate | None
    confidence_u: Mean | None
    untargeted2: Rate | None
    targeted: Rate | None
    confidence_t: Mean | None
    targets: tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """What became of the images drawn for one goal and region; ``of_all`` is the success over all of them."""

    images: int
    attacked: int
    misclassified: int
    empty_region: int
    flagged_mask: int
    of_all: Rate | None


@dataclass(frozen=True)
class Cost:
    """What searches cost, over successes and over all (a failure counts what it spent until it gave up)."""

    searches: int
    queries: Mean | None
    queries_all: Mean | None
    candidates: Mean | None
    candidates_all: Mean | None


@dataclass(frozen=True)
class Repeats:
    """Several searches of the same images, untargeted.

    :ivar searches: searches per image, at most.
    :ivar per_search: successful searches over all searches: the mean over images of an image's success
        probability where all had the same number; the interval is by images.
    :ivar any: images with at least one successful search.
    """

    searches: int
    per_search: Rate | None
    any: Rate | None


def sort_regions(regions: Iterable[str]) -> list[str]:
    """Return the distinct regions: original, foreground, background, then others by name."""
    known = {region: place for place, region in enumerate(REGION_ORDER)}
    return sorted(set(regions), key=lambda region: (known.get(region, len(known)), region))


def image_of(record: AttackRecord) -> Image:
    """Return what identifies the attacked image across stages."""
    return (record.id, record.label)


def select(records: Iterable[AttackRecord], goal: Goal, region: str | None = None) -> list[AttackRecord]:
    """Return the first searches (repeat 0) of one goal, of one region or of all, whatever became of them."""
    return [
        record
        for record in records
        if record.repeat == 0
        and (record.target is not None) == (goal == "targeted")
        and region in (None, record.region)
    ]


def attacked(records: Iterable[AttackRecord]) -> list[AttackRecord]:
    """Return the records of searches that ran."""
    return [record for record in records if record.outcome == "attacked"]


def mean_of(values: Iterable[float]) -> Mean | None:
    """Return mean and median; None for no values."""
    values = list(values)
    return Mean(fmean(values), float(median(values)), len(values)) if values else None


def success(records: Sequence[AttackRecord], region: str, confidence: float = 0.95) -> Success:
    """Return one cell of Table II from the records of one setup; ``confidence`` is the intervals' level."""
    untargeted = attacked(select(records, "untargeted", region))
    targeted = attacked(select(records, "targeted", region))
    by_image = successes_by_image(targeted)
    targets = [trials for _, trials in by_image.values()]
    return Success(
        untargeted1=rate(sum(record.success for record in untargeted), len(untargeted), confidence),
        confidence_u=_confidence(untargeted),
        untargeted2=rate(sum(hits > 0 for hits, _ in by_image.values()), len(by_image), confidence),
        targeted=clustered_rate(list(by_image.values()), confidence),
        confidence_t=_confidence(targeted),
        targets=(min(targets, default=0), max(targets, default=0)),
    )


def _confidence(records: Iterable[AttackRecord]) -> Mean | None:
    return mean_of(record.after.confidence for record in records if record.success and record.after is not None)


def successes_by_image(records: Iterable[AttackRecord]) -> dict[Image, tuple[int, int]]:
    """Return (successes, searches) of every image there are ``records`` of."""
    found: dict[Image, tuple[int, int]] = {}
    counts: dict[tuple[int, int], tuple[int, int]] = {}  # each pair once: of very many images most are alike
    for record in records:
        image = image_of(record)
        hits, trials = found.get(image, (0, 0))
        new = hits + record.success, trials + 1
        found[image] = counts.setdefault(new, new)
    return found


def drawn(records: Sequence[AttackRecord], region: str, goal: Goal, confidence: float = 0.95) -> Drawn | None:
    """Return what became of the images drawn for ``region``; None where ``goal`` was not run there.

    A targeted success is an image that reached at least one target (Untargeted2).
    """
    outcomes: dict[Image, Outcome] = {}
    hits: set[Image] = set()
    for record in select(records, goal, region):
        image = image_of(record)
        if outcomes.get(image) != "attacked":
            outcomes[image] = record.outcome
        if record.outcome == "attacked" and record.success:
            hits.add(image)
    if not outcomes:
        return None
    count = Counter(outcomes.values())
    return Drawn(
        images=len(outcomes),
        attacked=count["attacked"],
        misclassified=count["misclassified"],
        empty_region=count["empty-region"],
        flagged_mask=count["flagged-mask"],
        of_all=rate(len(hits), len(outcomes), confidence),
    )


def generations(records: Sequence[AttackRecord]) -> dict[str, Mean]:
    """Return the generations of successful untargeted searches by region (Table IV, each region by itself).

    The initial population is generation 1. Regions without a success are left out.
    """
    hits = [record for record in attacked(select(records, "untargeted")) if record.success]
    return _generations_by_region(hits)


def generations_in_common(records: Sequence[AttackRecord]) -> dict[str, Mean]:
    """Return :func:`generations` over the images that were successfully attacked in *every* region of the setup.

    The paper's "all images successfully attacked on the original image, its foreground and background" can be
    read either way; this is the stricter one, where all regions stand on the same images. Empty with fewer
    than two regions.
    """
    searches = attacked(select(records, "untargeted"))
    regions = {record.region for record in searches}
    if len(regions) < 2:
        return {}
    hits = [record for record in searches if record.success]
    where: dict[Image, set[str]] = defaultdict(set)
    for record in hits:
        where[image_of(record)].add(record.region)
    return _generations_by_region(record for record in hits if where[image_of(record)] == regions)


def _generations_by_region(records: Iterable[AttackRecord]) -> dict[str, Mean]:
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        values[record.region].append(record.generations)
    means = {region: mean_of(values[region]) for region in sort_regions(values)}
    return {region: mean for region, mean in means.items() if mean is not None}


def cost(records: Sequence[AttackRecord], region: str, goal: Goal) -> Cost | None:
    """Return queries and candidates per search; None where no search of ``goal`` ran in ``region``."""
    searches = attacked(select(records, goal, region))
    hits = [record for record in searches if record.success]
    if not searches:
        return None
    return Cost(
        searches=len(searches),
        queries=mean_of(record.queries for record in hits),
        queries_all=mean_of(record.queries for record in searches),
        candidates=mean_of(record.candidates for record in hits),
        candidates_all=mean_of(record.candidates for record in searches),
    )


def repeat_statistics(records: Iterable[AttackRecord], region: str, confidence: float = 0.95) -> Repeats | None:
    """Return the success of repeated untargeted searches; None where no image was searched more than once."""
    searches = [record for record in attacked(records) if record.target is None and record.region == region]
    by_image = successes_by_image(searches)
    most = max((trials for _, trials in by_image.values()), default=0)
    if most < 2:
        return None
    return Repeats(
        searches=most,
        per_search=clustered_rate(list(by_image.values()), confidence),
        any=rate(sum(hits > 0 for hits, _ in by_image.values()), len(by_image), confidence),
    )


def image_success(records: Iterable[AttackRecord], region: str, goal: Goal) -> dict[Image, bool]:
    """Return for every image attacked in ``region`` whether it succeeded (targeted: for at least one target)."""
    by_image = successes_by_image(attacked(select(records, goal, region)))
    return {image: hits > 0 for image, (hits, _) in by_image.items()}


def pair(first: Mapping[Image, bool], second: Mapping[Image, bool]) -> Paired:
    """Return the 2×2 counts over the images that are in both (see :func:`image_success`)."""
    count = Counter((first[image], second[image]) for image in first.keys() & second.keys())
    return Paired(count[True, True], count[True, False], count[False, True], count[False, False])


def area(records: Iterable[AttackRecord], region: str) -> Mean | None:
    """Return the region's share of the image, in [0, 1], over the images attacked in it."""
    shares = {
        image_of(record): record.region_pixels / (record.height * record.width)
        for record in attacked(records)
        if record.region == region
    }
    return mean_of(shares.values())
