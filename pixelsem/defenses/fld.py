"""Ensembles of Fisher linear discriminants (FLD): Kodovský, Fridrich & Holub, IEEE TIFS 7(2), 2012, 432–444.

Every discriminant sees a random subspace of the features and a bootstrap sample of the images; the majority of
their votes decides. The error on the images that a discriminant did not see (out of bag) chooses how large the
subspaces are and how many discriminants there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.sparse import csr_array

from pixelsem.defenses.settings_detection import EnsembleSettings

Array = NDArray[np.float64]
Rows = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]

#: Eqs. 6 and 7: training ends once the last 50 means of 5 out-of-bag errors lie within 0.005 of one another.
_SMOOTHED, _REMEMBERED, _SETTLED = 5, 50, 0.005
_FEWEST, _MOST = 25, 501

#: Fewer images cannot be split into those in and out of the bag.
FEWEST_IMAGES = 4

#: A feature whose standard deviation is less than this share of its mean does not vary, but for rounding.
_NO_SPREAD = 1e-9

#: Directions in which images vary by less than this share of the most, in variance, are those that they do not span.
_SPANNED = 1e-12

#: The search for the subspace's size (their Algorithm 2): first step, and the error that a finer step must gain.
_FIRST_STEP, _WORTH = 200, 0.02


@dataclass(frozen=True)
class Ensemble:
    """Trained discriminants, L of them, on d of D features each.

    :ivar features: D, how many numbers an image has.
    :ivar subspaces: which of them each discriminant takes, int64 [L, d].
    :ivar weights: float64 [L, d].
    :ivar thresholds: a projection above it is a vote for adversarial, float64 [L].
    :ivar error: its out-of-bag error P_E in [0, 1]; NaN where no image was out of bag.
    """

    features: int
    subspaces: Indices
    weights: Array
    thresholds: Array
    error: float = float("nan")

    def __len__(self) -> int:
        """Return the number of discriminants."""
        return len(self.thresholds)

    def votes(self, rows: Array) -> NDArray[np.bool_]:
        """Return which discriminants call which images adversarial, bool [N, L], of features ``rows`` [N, D].

        Raises :class:`ValueError` for another number of features.
        """
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise ValueError(f"[N, {self.features}] features expected, {list(rows.shape)} given")
        count, size = self.subspaces.shape
        starts = np.arange(0, count * size + 1, size)
        matrix = csr_array((self.weights.ravel(), self.subspaces.ravel(), starts), shape=(count, self.features))
        projections = (matrix @ rows.T).T
        return np.asarray(projections > self.thresholds)

    def score(self, rows: Array) -> Array:
        """Return the mean vote, float64 [N] in [-1, 1]; above 0 is adversarial. Raises as :meth:`votes` does."""
        return np.asarray(2.0 * self.votes(rows).mean(1) - 1.0)


def fit_discriminant(negative: Array, positive: Array, ridge: float) -> tuple[Array, float]:
    """Return a discriminant's weights, float64 [d] of length 1, and its threshold (their Eqs. 2–4).

    ``negative`` and ``positive`` are [N, d]. The weights are (S_W + ridge·I)⁻¹ (μ₊ − μ₋), S_W being the mean of
    the classes' covariances; the threshold is the one of least P_E on these rows at equal priors, in the middle of
    the widest gap where several do.
    """
    means = negative.mean(0), positive.mean(0)
    sides = zip((negative, positive), means, strict=True)
    # Their products are the mean of the covariances.
    centred = np.concatenate([(rows - mean) / np.sqrt(2 * len(rows)) for rows, mean in sides])
    solve = _solve if centred.shape[0] >= centred.shape[1] else _solve_wide
    weights = solve(centred, means[1] - means[0], ridge)
    length = np.linalg.norm(weights)
    weights = weights / length if length > 0 else weights
    return weights, best_threshold(negative @ weights, positive @ weights)


def _solve(centred: Array, difference: Array, ridge: float) -> Array:
    """Return (AᵀA + ridge·I)⁻¹ b, float64 [d], A being ``centred`` [N, d] and b ``difference`` [d]."""
    within = centred.T @ centred
    within[np.diag_indices_from(within)] += ridge
    solved: Array = cho_solve(cho_factor(within, overwrite_a=True, check_finite=False), difference)
    return solved


def _solve_wide(centred: Array, difference: Array, ridge: float) -> Array:
    """Return the same where there are fewer rows than features, without a d×d matrix.

    Outside of what the rows span, AᵀA is zero and only the ridge counts.
    """
    values, vectors = eigh(centred @ centred.T, check_finite=False)
    spanned = values > _SPANNED * values[-1]
    values = values[spanned]
    basis = centred.T @ (vectors[:, spanned] / np.sqrt(values))
    inside = basis.T @ difference
    outside = difference - basis @ inside
    outside -= basis @ (basis.T @ outside)  # what rounding left inside would be divided by the ridge
    solved: Array = basis @ (inside / (values + ridge)) + outside / ridge
    return solved


def best_threshold(negative: Array, positive: Array) -> float:
    """Return the threshold of least P_E = (P_FA + P_MD) / 2 for calling greater values positive.

    ``negative`` and ``positive`` are projections [N]. Of several equally good ones it is the middle of the widest gap.
    """
    values = np.concatenate([negative, positive])
    order = np.argsort(values, kind="stable")
    values = values[order]
    below = np.where(order < len(negative), -1.0 / len(negative), 1.0 / len(positive))
    errors = 1.0 + np.concatenate([[0.0], np.cumsum(below)])  # twice P_E with the threshold before value i
    gaps = np.concatenate([[0.0], np.diff(values), [0.0]])
    # Between equal values there is no threshold; below and above them all there always is one.
    errors[1:-1][gaps[1:-1] <= 0] = np.inf
    best = np.flatnonzero(errors <= errors.min() + 1e-12)
    place = int(best[np.argmax(gaps[best])])
    if place == 0:
        return float(np.nextafter(values[0], -np.inf))
    if place == len(values):
        return float(values[-1])
    return float((values[place - 1] + values[place]) / 2)


@dataclass(frozen=True)
class Pairs:
    """What is trained on: N pairs of features, and which image each pair is of.

    :ivar negative: features of the clean images, float [N, D].
    :ivar positive: features of what was made of them, float [N, D].
    :ivar groups: the image of each pair, int64 [N], from 0; several pairs of one image are drawn together.
    """

    negative: Rows
    positive: Rows
    groups: Indices


#: Told after every ensemble that was tried: the subspace's size, its discriminants and its out-of-bag error.
Progress = Callable[[int, int, float], None]


def train_ensemble(pairs: Pairs, settings: EnsembleSettings, progress: Progress = lambda *_: None) -> Ensemble:
    """Train an ensemble; equal pairs, in whatever order the groups are numbered alike, and seed give equal ensembles.

    Features are scaled to unit variance of both classes together; the ensemble returned takes them as they are. Raises
    :class:`ValueError` for fewer than :data:`FEWEST_IMAGES` images, features that are not finite, or none that varies.
    """
    return _Trainer(pairs, settings, progress).train()


class _Trainer:
    def __init__(self, pairs: Pairs, settings: EnsembleSettings, progress: Progress) -> None:
        sides = (pairs.negative, pairs.positive)
        if not all(np.isfinite(rows).all() for rows in sides):
            raise ValueError("features are not finite")
        means = [rows.mean(0, dtype=np.float64) for rows in sides]
        spread = np.sqrt(sum(rows.var(0, dtype=np.float64) for rows in sides) / 2 + (means[0] - means[1]) ** 2 / 4)
        self._live = np.flatnonzero(spread > _NO_SPREAD * np.maximum(np.abs(means[0]), 1e-300))
        self._images = int(pairs.groups.max(initial=-1)) + 1
        if self._images < FEWEST_IMAGES or not len(self._live):
            raise ValueError(f"{FEWEST_IMAGES} images and a feature that varies are needed")
        self._centre = ((means[0] + means[1]) / 2)[self._live]
        self._scale = spread[self._live]
        self._pairs, self._settings, self._progress = pairs, settings, progress
        self._tried: dict[int, Ensemble] = {}

    def train(self) -> Ensemble:
        most = len(self._live)
        if self._settings.learners == 1 or self._settings.subspace is not None:
            return self._ensemble(min(self._settings.subspace or most, most))
        self._search()
        return self._tried[self._best()]

    def _search(self) -> None:
        """Grow the subspace while the error falls, then look on both sides of the best with finer steps."""
        most = len(self._live)
        step = min(_FIRST_STEP, max(1, most // 2))
        size = step
        self._error(size)  # where one feature varies there is nothing else to try
        # Of sizes without any error the smallest is the best: none beyond the first is looked at.
        while size < most and 0 < self._error(size) <= self._least() + _WORTH * self._least():
            size += step
        best = self._best()
        while step > 1:
            step = max(1, step // 2)
            before = self._least()
            for other in (best - step, best + step):
                if 0 < other <= most:
                    self._error(other)
            best = self._best()
            if before - self._least() <= _WORTH * before:
                break

    def _error(self, size: int) -> float:
        if size not in self._tried:
            self._tried[size] = self._ensemble(size)
        return self._tried[size].error

    def _least(self) -> float:
        return min((ensemble.error for ensemble in self._tried.values()), default=1.0)

    def _best(self) -> int:
        """Return the smallest of the sizes with the least error."""
        return min(size for size, ensemble in self._tried.items() if ensemble.error == self._least())

    def _ensemble(self, size: int) -> Ensemble:
        bag = _OutOfBag(len(self._pairs.groups))
        learners: list[tuple[Indices, Array, float]] = []
        while not self._enough(bag.errors):
            learners.append(self._learner(len(learners), size, bag))
        chosen, weights, thresholds = (np.stack(part) for part in zip(*learners, strict=True))
        weights = weights / self._scale[chosen]
        thresholds = thresholds + (weights * self._centre[chosen]).sum(1)
        self._progress(size, len(learners), bag.errors[-1])
        features = self._pairs.negative.shape[1]
        return Ensemble(features, self._live[chosen], weights, thresholds, bag.errors[-1])

    def _learner(self, number: int, size: int, bag: _OutOfBag) -> tuple[Indices, Array, float]:
        # One generator per discriminant: it is the same whatever was tried before.
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._settings.seed, number, size])))
        chosen = np.sort(rng.permutation(len(self._live))[:size])
        times = self._draw(rng)[self._pairs.groups]
        drawn, unseen = np.repeat(np.arange(len(times)), times), np.flatnonzero(times == 0)
        negative, positive = (self._scaled(rows, chosen) for rows in (self._pairs.negative, self._pairs.positive))
        weights, threshold = fit_discriminant(negative[drawn], positive[drawn], self._settings.ridge)
        bag.add(unseen, negative[unseen] @ weights > threshold, positive[unseen] @ weights > threshold)
        return chosen, weights, threshold

    def _scaled(self, rows: Rows, chosen: Indices) -> Array:
        wide: Array = rows[:, self._live[chosen]].astype(np.float64)
        scaled: Array = (wide - self._centre[chosen]) / self._scale[chosen]
        return scaled

    def _draw(self, rng: np.random.Generator) -> Indices:
        """Return how often each image is drawn: a bootstrap sample, or all alike where one discriminant is wanted."""
        if self._settings.learners == 1:
            return np.ones(self._images, np.int64)
        return rng.multinomial(self._images, np.full(self._images, 1 / self._images))

    def _enough(self, errors: list[float]) -> bool:
        count, wanted = len(errors), self._settings.learners
        if count % 2 == 0:  # an even number could tie
            return False
        if wanted is not None:
            return count >= wanted
        return count >= _MOST or (count >= _FEWEST and _has_settled(errors))


def _has_settled(errors: list[float]) -> bool:
    means = np.convolve(errors[-_REMEMBERED - _SMOOTHED + 1 :], np.full(_SMOOTHED, 1 / _SMOOTHED), mode="valid")
    return bool(means.max() - means.min() < _SETTLED)


class _OutOfBag:
    """Votes on pairs that a discriminant was not trained on, and the ensemble's error by them (their Eq. 5)."""

    def __init__(self, count: int) -> None:
        self._balance = np.zeros((2, count), np.int64)
        self._asked = np.zeros(count, np.bool_)
        self.errors: list[float] = []

    def add(self, unseen: Indices, negative: NDArray[np.bool_], positive: NDArray[np.bool_]) -> None:
        """Count one discriminant's votes on its ``unseen`` pairs; an undecided image counts as half an error."""
        self._asked[unseen] = True
        self._balance[:, unseen] += np.where(np.stack([negative, positive]), 1, -1)
        alarms, hits = np.sign(self._balance[:, self._asked])
        error = (2 + alarms.mean() - hits.mean()) / 4 if self._asked.any() else np.nan
        self.errors.append(float(error))
