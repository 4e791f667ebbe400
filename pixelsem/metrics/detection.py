"""How well clean and adversarial images are told apart: rates, P_E and the ROC, images being the units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelsem.metrics.bootstrap import Estimate, bootstrap, bootstrap_draws
from pixelsem.metrics.intervals import Rate, clustered_rate, rate
from pixelsem.records import DetectionRecord

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ROC:
    """A receiver operating characteristic: the points of all thresholds, from (0, 0) to (1, 1).

    :ivar false_alarms: share of the clean images called adversarial, float64 [K], rising.
    :ivar detections: share of the adversarial images called so, float64 [K], rising.
    """

    false_alarms: Array
    detections: Array

    @property
    def area(self) -> float:
        """The area under the curve in [0, 1]; 0.5 is chance."""
        return float(np.trapezoid(self.detections, self.false_alarms))

    @property
    def least_error(self) -> float:
        """The least P_E = (P_FA + P_MD) / 2 of any threshold, in [0, 0.5]."""
        return float((self.false_alarms + 1 - self.detections).min() / 2)


def roc(clean: Array, adversarial: Array) -> ROC:
    """Return the ROC of scores [N] and [M], greater ones being more adversarial; both need at least one."""
    thresholds = np.unique(np.concatenate([clean, adversarial]))[::-1]

    def shares(scores: Array) -> Array:
        above = len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
        return np.concatenate([[0.0], above / len(scores)])

    return ROC(shares(np.asarray(clean)), shares(np.asarray(adversarial)))


@dataclass(frozen=True)
class Detection:
    """What a detector makes of held-out images.

    :ivar images: distinct images, each clean and with one adversarial version or more.
    :ivar detected: adversarial images called so; its interval takes versions of one image as a cluster.
    :ivar false_alarms: clean images called adversarial.
    :ivar error: P_E = (P_FA + P_MD) / 2 at the detector's own threshold, resampled by image.
    :ivar area: the area under the ROC, resampled by image.
    :ivar roc: the curve itself.
    """

    images: int
    detected: Rate
    false_alarms: Rate
    error: Estimate
    area: Estimate
    roc: ROC

    @property
    def accuracy(self) -> float:
        """1 − P_E: the share of right answers at equal priors."""
        return 1.0 - self.error.value


def measure(records: Sequence[DetectionRecord], confidence: float = 0.95) -> Detection | None:
    """Return what the scores of clean images and their adversarial versions say; None where there are no pairs.

    An image counts where both its clean and at least one adversarial version are there. Intervals of P_E and of
    the area are bootstrap percentile intervals over images (see :mod:`pixelsem.metrics.bootstrap`): a photo and
    what was made of it are drawn together, as their scores are not independent (which DeLong's formula for two
    groups would take them to be).
    """
    clean = {record.id: record for record in records if record.kind == "clean"}
    made: dict[str, list[DetectionRecord]] = {name: [] for name in clean}
    for record in records:
        if record.kind == "adversarial" and record.id in made:
            made[record.id].append(record)
    names = [name for name, versions in made.items() if versions]
    if not names:
        return None
    hits = [(sum(version.detected for version in made[name]), len(made[name])) for name in names]
    alarms = [(int(clean[name].detected), 1) for name in names]
    detected = clustered_rate(hits, confidence)
    false_alarms = rate(sum(alarm for alarm, _ in alarms), len(alarms), confidence)
    assert detected is not None
    assert false_alarms is not None
    scores = [np.array([version.score for version in made[name]]) for name in names]
    quiet = np.array([clean[name].score for name in names])
    counts = np.array([[alarm, hit, versions] for (alarm, _), (hit, versions) in zip(alarms, hits, strict=True)])
    return Detection(
        len(names),
        detected,
        false_alarms,
        bootstrap(counts, confidence, lambda mean: (mean[..., 0] + 1 - mean[..., 1] / mean[..., 2]) / 2),
        _area(quiet, scores, confidence),
        roc(quiet, np.concatenate(scores)),
    )


def _area(clean: Array, adversarial: Sequence[Array], confidence: float) -> Estimate:
    """Return the area under the ROC (Mann–Whitney: half a win for a tie) with its interval over images.

    With w how often each image is drawn, a version of image i wins w_i times over the clean images below it, these
    counted as often as they are drawn: sums up to its place among the sorted ones.
    """
    versions = np.array([len(scores) for scores in adversarial])
    owners = np.repeat(np.arange(len(versions)), versions)
    order = np.argsort(clean)
    scores = np.concatenate(adversarial)
    below, up_to = (np.searchsorted(clean[order], scores, side) for side in ("left", "right"))

    def area(weights: NDArray[Any]) -> NDArray[Any]:
        """Return the area for weights [..., N] of the images."""
        nothing = np.zeros_like(weights[..., :1])
        sums = np.concatenate([nothing, np.cumsum(weights[..., order], -1)], -1)
        wins = ((sums[..., below] + sums[..., up_to]) * weights[..., owners]).sum(-1) / 2
        return np.asarray(wins / ((weights @ versions) * weights.sum(-1)))

    return bootstrap_draws(len(clean), confidence, area)
