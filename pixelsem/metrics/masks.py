"""How well masks agree with true ones, and with each other: IoU, F-measure, MAE, S-measure.

A prediction is a float array [H, W] in [0, 1] (0 and 1 for a mask that is not soft), a truth a bool one.
Nothing is rescaled: a soft mask whose values do not reach 0 and 1 is scored as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelsem.metrics.bootstrap import Estimate, bootstrap
from pixelsem.metrics.intervals import Rate, rate

Array = NDArray[np.floating[Any]]
Truth = NDArray[np.bool_]

#: Thresholds of the precision-recall curve: k / 255 for k = 0 … 255.
LEVELS = 256

#: The weight of precision against recall that the field has settled on (Achanta et al., CVPR 2009).
BETA_SQUARED = 0.3

_ALPHA = 0.5


@dataclass(frozen=True)
class Scores:
    """One mask against its truth.

    :ivar iou: intersection over union of the foregrounds at the threshold, in [0, 1].
    :ivar mae: mean absolute difference of the mask from 0 and 1, in [0, 1].
    :ivar s_measure: see :func:`s_measure`.
    :ivar adaptive_f: F-measure of the foreground at twice the mask's mean.
    :ivar precision: share of the foreground that is true, [256], at every threshold.
    :ivar recall: share of the truth that is foreground, [256], at every threshold.
    :ivar empty_truth: has the truth no foreground at all?
    """

    iou: float
    mae: float
    s_measure: float
    adaptive_f: float
    precision: Array
    recall: Array
    empty_truth: bool


def score(prediction: Array, truth: Truth, threshold: float = 0.5) -> Scores:
    """Score one mask; ``threshold`` says from where on a soft value is foreground, for the IoU alone."""
    precision, recall = precision_recall(prediction, truth)
    return Scores(
        iou=iou(prediction >= threshold, truth),
        mae=float(np.abs(prediction - truth).mean()),
        s_measure=s_measure(prediction, truth),
        adaptive_f=adaptive_f(prediction, truth),
        precision=precision,
        recall=recall,
        empty_truth=not truth.any(),
    )


def iou(first: Truth, second: Truth) -> float:
    """Return intersection over union of two bool [H, W], in [0, 1]; two empty ones agree: 1."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def agreement(first: Truth, second: Truth) -> float:
    """Return the share of the pixels on which two bool [H, W] say the same, in [0, 1]."""
    return float((first == second).mean())


def precision_recall(prediction: Array, truth: Truth) -> tuple[Array, Array]:
    """Return precision and recall, each [256], of ``prediction >= k / 255`` for k = 0 … 255.

    Precision is 0 where nothing is foreground, recall is 0 where the truth is empty (as the field's tools
    have it).
    """
    # The tolerance keeps a stored value of k / 255 on its own side whatever floats make of it.
    levels = np.clip(np.floor(prediction * (LEVELS - 1) + 1e-6), 0, LEVELS - 1).astype(np.int64)
    positive, hits = (_at_least(levels[where]) for where in (slice(None), truth))
    return hits / np.maximum(positive, 1), hits / max(int(truth.sum()), 1)


def _at_least(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many values are k or more, for every k."""
    counts = np.bincount(levels.ravel(), minlength=LEVELS)
    return np.asarray(counts[::-1].cumsum()[::-1])


def f_measure(precision: Array, recall: Array, beta_squared: float = BETA_SQUARED) -> Array:
    """Return (1 + β²)·P·R / (β²·P + R), elementwise; 0 where both are 0."""
    below = beta_squared * precision + recall
    return np.asarray((1 + beta_squared) * precision * recall / np.where(below > 0, below, 1))


def adaptive_f(prediction: Array, truth: Truth) -> float:
    """Return the F-measure at the threshold of twice the mask's mean, at most 1 (Achanta et al., 2009)."""
    found = prediction >= min(2 * float(prediction.mean()), 1.0)
    hits = float((found & truth).sum())
    precision, recall = hits / max(int(found.sum()), 1), hits / max(int(truth.sum()), 1)
    return float(f_measure(np.array(precision), np.array(recall)))


def s_measure(prediction: Array, truth: Truth, alpha: float = _ALPHA) -> float:
    """Return the structure measure of Fan et al. (ICCV 2017), in [0, 1].

    ``alpha`` · S_object (λ = 0.5) + (1 − ``alpha``) · S_region, the one comparing the values inside and outside the
    object, the other the four blocks around its centroid. Against an empty truth it is 1 minus the mean of the
    mask, against a full one that mean.
    """
    if not truth.any():
        return 1.0 - float(prediction.mean())
    if truth.all():
        return float(prediction.mean())
    return max(0.0, alpha * _s_object(prediction, truth) + (1 - alpha) * _s_region(prediction, truth))


def _s_object(prediction: Array, truth: Truth) -> float:
    share = float(truth.mean())
    return share * _likeness(prediction[truth]) + (1 - share) * _likeness(1 - prediction[~truth])


def _likeness(values: Array) -> float:
    """Return how near values [n] are to 1 and how much alike (with λ = 0.5, so that 2λ = 1)."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + spread)


def _s_region(prediction: Array, truth: Truth) -> float:
    """Compare the four blocks around the truth's centroid, weighted by their areas."""
    rows, columns = (_cut(truth.sum(axis)) for axis in (1, 0))
    total = 0.0
    for vertical in (slice(None, rows), slice(rows, None)):
        for horizontal in (slice(None, columns), slice(columns, None)):
            block = truth[vertical, horizontal]
            if block.size:
                total += block.size / truth.size * _similarity(prediction[vertical, horizontal], block)
    return total


def _cut(counts: NDArray[np.int64]) -> int:
    """Return how many rows (or columns) lie up to the centroid, that one included."""
    centre = float((counts * np.arange(len(counts))).sum() / counts.sum())
    return int(np.floor(centre + 0.5)) + 1


def _similarity(prediction: Array, truth: Truth) -> float:
    """Return the structural similarity of a whole block, without constants."""
    x, y = float(prediction.mean()), float(truth.mean())
    dx, dy = prediction - x, truth - y
    freedom = max(truth.size - 1, 1)
    xx, yy, xy = (float((a * b).sum()) / freedom for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    above, below = 4 * x * y * xy, (x * x + y * y) * (xx + yy)
    if above != 0:
        return above / below
    return 1.0 if below == 0 else 0.0


@dataclass(frozen=True)
class Measured:
    """One mask of one method: its foreground's share, whether it is flagged, and its scores given a truth."""

    coverage: float
    flagged: bool
    scores: Scores | None


@dataclass(frozen=True)
class Quality:
    """Means over the images of a truth; ``max_f`` and ``mean_f`` are those of the curve of means.

    Precision and recall are averaged over the images at each threshold, then F is taken (as saliency papers do).
    """

    iou: Estimate
    max_f: Estimate
    mean_f: Estimate
    adaptive_f: Estimate
    mae: Estimate
    s_measure: Estimate
    empty_truths: int


@dataclass(frozen=True)
class Summary:
    """One method: mean coverage, the flagged ones, and its quality where there is a truth."""

    n: int
    coverage: float
    flagged: Rate
    quality: Quality | None


def summarize(masks: Sequence[Measured], confidence: float = 0.95) -> Summary:
    """Return the means over the masks of one method, at least one; all have scores or none has."""
    flagged = rate(sum(mask.flagged for mask in masks), len(masks), confidence)
    if flagged is None:
        raise ValueError("no masks to summarize")
    scores = [mask.scores for mask in masks if mask.scores is not None]
    coverage = float(np.mean([mask.coverage for mask in masks]))
    return Summary(len(masks), coverage, flagged, _quality(scores, confidence) if scores else None)


def _quality(scores: Sequence[Scores], confidence: float) -> Quality:
    curves = np.array([[one.precision, one.recall] for one in scores]).reshape(len(scores), -1)

    def mean(name: str) -> Estimate:
        return bootstrap(np.array([getattr(one, name) for one in scores]), confidence)

    return Quality(
        iou=mean("iou"),
        max_f=bootstrap(curves, confidence, lambda means: _curve(means).max(-1)),
        mean_f=bootstrap(curves, confidence, lambda means: _curve(means).mean(-1)),
        adaptive_f=mean("adaptive_f"),
        mae=mean("mae"),
        s_measure=mean("s_measure"),
        empty_truths=sum(one.empty_truth for one in scores),
    )


def _curve(means: Array) -> Array:
    """Return F [..., 256] of mean precisions and recalls [..., 512]."""
    return f_measure(means[..., :LEVELS], means[..., LEVELS:])
