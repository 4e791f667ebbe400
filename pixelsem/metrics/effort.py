"""What success costs: su2017's averages, success within a number of queries, fitness by generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelsem.metrics.bootstrap import Estimate, bootstrap_by_image, bootstrap_each
from pixelsem.metrics.intervals import Rate, clustered_rate
from pixelsem.metrics.success import Goal, Image, attacked, image_of, select, successes_by_image
from pixelsem.records import AttackRecord

Curve = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Effort:
    """What su2017 says of an attack's cost. None where there is no success, or nothing of the kind is recorded.

    :ivar evaluations: AvgEvaluation: candidates until success (population × generations).
    :ivar distortion: AvgDistortion: change of one channel of one changed pixel, in 8-bit levels (0 to 255).
    :ivar target_classes: how many target classes an image was turned into.
    """

    evaluations: Estimate | None
    distortion: Estimate | None
    target_classes: Estimate | None


def effort(records: Sequence[AttackRecord], region: str, goal: Goal, confidence: float = 0.95) -> Effort | None:
    """Return :class:`Effort` of one goal and region; None where nothing was attacked.

    Means are over successful searches, and for target classes over images.
    """
    searches = attacked(select(records, goal, region))
    if not searches:
        return None
    hits = [record for record in searches if record.success]
    distortions = [(image_of(record), found) for record in hits if (found := distortion(record)) is not None]
    reached = {image: count for image, (count, _) in successes_by_image(searches).items()}
    return Effort(
        evaluations=_mean([(image_of(record), record.candidates) for record in hits], confidence),
        distortion=_mean(distortions, confidence),
        target_classes=_mean(list(reached.items()), confidence) if goal == "targeted" else None,
    )


def _mean(values: Sequence[tuple[Image, float]], confidence: float) -> Estimate | None:
    if not values:
        return None
    images, numbers = zip(*values, strict=True)
    return bootstrap_by_image(np.array(numbers, np.float64), images, confidence)


def distortion(record: AttackRecord) -> float | None:
    """Return the mean absolute change of a channel over the changed pixels, in (0, 255] (su2017's AvgDistortion).

    That is L1 / 3 for one pixel. None where no changed pixel is listed, as after attacks on all of them.
    """
    changes = [
        fmean(abs(new - old) for old, new in zip(change.from_, change.to, strict=True))
        for change in record.pixels
        if change.from_ != change.to
    ]
    return fmean(changes) if changes else None


#: A curve has at most so many steps; of more, evenly spaced ones are kept.
_STEPS = 200


def success_within(
    records: Iterable[AttackRecord], region: str, goal: Goal, confidence: float = 0.95
) -> list[tuple[int, Rate]]:
    """Return (q, share of searches that succeeded within q queries), from q = 0 to the most that any search spent.

    One minus the Kaplan–Meier estimate where searches are only given up at the end of their budget: a failed one
    stays in the denominator throughout, whatever it spent. Intervals are pointwise, by images. Empty without
    searches.
    """
    searches = attacked(select(records, goal, region))
    if not searches:
        return []
    end = max(record.queries for record in searches)
    steps = _thinned(sorted({0, end, *(record.queries for record in searches if record.success)}))
    numbers = {image: number for number, image in enumerate(dict.fromkeys(map(image_of, searches)))}
    image = np.array([numbers[image_of(record)] for record in searches])
    cost = np.array([record.queries if record.success else end + 1 for record in searches])
    trials = np.bincount(image)
    curve = []
    for step in steps:
        hits = np.bincount(image[cost <= step], minlength=len(trials))
        share = clustered_rate(list(zip(hits.tolist(), trials.tolist(), strict=True)), confidence)
        if share is not None:
            curve.append((step, share))
    return curve


def _thinned(steps: list[int]) -> list[int]:
    if len(steps) <= _STEPS:
        return steps
    return [steps[place] for place in np.linspace(0, len(steps) - 1, _STEPS).round().astype(int).tolist()]


@dataclass(frozen=True)
class FitnessCurve:
    """Mean of the best fitness by generation over ``n`` searches, with its interval; all float64 [G]."""

    mean: Curve
    low: Curve | None
    high: Curve | None
    n: int


def mean_fitness(curves: Sequence[Curve], confidence: float = 0.95) -> FitnessCurve | None:
    """Return the mean of curves, float [G_i] each, of any lengths (wang2021, Fig. 6); None without curves.

    A search that has ended keeps its last fitness, so that the mean is over the same searches throughout.
    """
    if not curves:
        return None
    length = max(map(len, curves))
    values = np.stack([np.pad(np.asarray(one, np.float64), (0, length - len(one)), mode="edge") for one in curves])
    return FitnessCurve(*bootstrap_each(values, confidence), n=len(curves))


def in_every_region(records: Iterable[AttackRecord]) -> set[tuple[str, str]]:
    """Return the images whose untargeted attack succeeded in every region that there is, as wang2021's Fig. 6 wants."""
    searches = attacked(select(records, "untargeted"))
    regions = {record.region for record in searches}
    sets = [{image_of(r) for r in searches if r.region == region and r.success} for region in regions]
    return set.intersection(*sets) if sets else set()
