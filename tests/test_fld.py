from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsem.defenses.fld import Pairs, _has_settled, best_threshold, fit_discriminant, train_ensemble
from pixelsem.defenses.settings_detection import EnsembleSettings
from pixelsem.metrics.detection import roc


def gaussians(shift: float, count: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two correlated Gaussian classes whose means differ by ``shift`` in every feature."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(features, features)) / np.sqrt(features) + np.eye(features)
    draw = rng.normal(size=(2, count, features)) @ mixing
    return draw[0], draw[1] + shift


def pairs(shift: float, count: int, features: int, seed: int = 0) -> Pairs:
    return Pairs(*gaussians(shift, count, features, seed), np.arange(count))


def test_a_discriminant_points_where_sklearns_does() -> None:
    discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")
    negative, positive = gaussians(0.3, 200, 12)
    weights, threshold = fit_discriminant(negative, positive, 1e-12)
    reference = discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr")
    reference.fit(np.concatenate([negative, positive]), np.repeat([0, 1], 200))
    (expected,) = reference.coef_
    np.testing.assert_allclose(weights, expected / np.linalg.norm(expected), atol=1e-9)
    own = (negative @ weights > threshold).mean() + (positive @ weights <= threshold).mean()
    theirs = reference.predict(negative).mean() + 1 - reference.predict(positive).mean()
    assert own <= theirs


def test_one_feature_that_varies_is_enough() -> None:
    negative, positive = np.zeros((2, 20, 3))
    negative[:, 1], positive[:, 1] = np.arange(20), np.arange(20) + 30
    ensemble = train_ensemble(Pairs(negative, positive, np.arange(20)), EnsembleSettings())
    assert set(ensemble.subspaces.ravel()) == {1}
    assert (ensemble.score(positive) > 0).all()
    assert (ensemble.score(negative) < 0).all()


@pytest.mark.parametrize("count", [1, 5, 20, 21, 40])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_a_discriminant_is_that_of_the_formula_with_few_images_and_many(count: int, ridge: float) -> None:
    """With 20 images of each class the rows are as many as the 40 features; some images are there twice."""
    rng = np.random.default_rng(count)
    negative, positive = rng.normal(size=(2, count, 40)) + np.array([0.0, 0.5])[:, None, None]
    negative[0] = negative[-1]
    weights, _ = fit_discriminant(negative, positive, ridge)
    within = (np.cov(negative.T, bias=True) + np.cov(positive.T, bias=True)) / 2
    expected = np.linalg.solve(within + ridge * np.eye(40), positive.mean(0) - negative.mean(0))
    np.testing.assert_allclose(weights, expected / np.linalg.norm(expected), atol=1e-8)


def test_the_search_ends_where_nothing_is_left_to_gain() -> None:
    """Classes far apart are told apart by the first subspace; the larger ones could only be as good."""
    tried: list[tuple[int, float]] = []
    train_ensemble(pairs(9.0, 12, 3000), EnsembleSettings(), lambda size, _, error: tried.append((size, error)))
    assert tried[0] == (200, 0.0)
    assert max(size for size, _ in tried) <= 300


def test_an_ensemble_of_one_is_that_discriminant_with_sklearns_ridge() -> None:
    discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")
    data = pairs(0.3, 300, 8)
    ensemble = train_ensemble(data, EnsembleSettings(learners=1, ridge=1e-10))
    both = np.concatenate([data.negative, data.positive])
    reference = discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr").fit(both, np.repeat([0, 1], 300))
    assert len(ensemble) == 1
    assert ensemble.subspaces.tolist() == [list(range(8))]
    cosine = (
        ensemble.weights[0] @ reference.coef_[0] / np.linalg.norm(ensemble.weights) / np.linalg.norm(reference.coef_)
    )
    assert cosine == pytest.approx(1, abs=1e-8)
    votes = ensemble.votes(both)[:, 0]
    assert np.mean(votes == (reference.predict(both) == 1)) > 0.97  # the thresholds differ: P_E against the middle
    errors = [votes[:300].mean() + 1 - votes[300:].mean(), reference.predict(both[:300]).mean() + 1]
    errors[1] -= reference.predict(both[300:]).mean()
    assert errors[0] <= errors[1]


values = st.lists(st.integers(-6, 6), min_size=1, max_size=12)


@given(values, values)
def test_no_threshold_is_better_than_the_best(negative: list[int], positive: list[int]) -> None:
    low, high = np.array(negative, float), np.array(positive, float)

    def error(threshold: float) -> float:
        return float((low > threshold).mean() + (high <= threshold).mean()) / 2

    tried = [error(threshold) for threshold in np.arange(-7, 8, 0.5)]
    assert error(best_threshold(low, high)) == pytest.approx(min(tried))


def test_the_threshold_is_in_the_middle_of_the_gap() -> None:
    assert best_threshold(np.array([0.0, 1.0]), np.array([5.0, 9.0])) == 3.0


def test_classes_apart_are_told_apart_and_equal_ones_are_not() -> None:
    for shift, low, high in ((6.0, 0.999, 1.0), (0.0, 0.4, 0.6)):
        ensemble = train_ensemble(pairs(shift, 150, 30), EnsembleSettings(learners=31, subspace=10))
        negative, positive = gaussians(shift, 400, 30, seed=1)
        assert low <= roc(ensemble.score(negative), ensemble.score(positive)).area <= high
        assert ensemble.error == pytest.approx(0.5 * (shift == 0), abs=0.1)


def test_the_out_of_bag_error_is_that_of_new_images() -> None:
    ensemble = train_ensemble(pairs(0.5, 300, 20), EnsembleSettings(learners=51, subspace=12))
    negative, positive = gaussians(0.5, 4000, 20, seed=1)
    fresh = ((ensemble.score(negative) > 0).mean() + (ensemble.score(positive) <= 0).mean()) / 2
    assert 0.05 < fresh < 0.45
    assert ensemble.error == pytest.approx(fresh, abs=0.05)


def test_the_search_prefers_subspaces_that_hold_the_signal() -> None:
    """One feature in 400 tells the classes apart: small subspaces mostly miss it."""
    rng = np.random.default_rng(0)
    negative, positive = rng.normal(size=(2, 120, 400))
    positive[:, 7] += 6
    tried: dict[int, float] = {}
    ensemble = train_ensemble(
        Pairs(negative, positive, np.arange(120)),
        EnsembleSettings(learners=15),
        lambda size, count, error: tried.update({size: error}),
    )
    assert len(tried) > 1
    assert ensemble.error == min(tried.values())
    assert tried[ensemble.subspaces.shape[1]] == ensemble.error


def test_equal_seeds_give_equal_ensembles_and_other_seeds_others() -> None:
    data = pairs(0.4, 60, 20)
    one, again, other = (
        train_ensemble(data, EnsembleSettings(learners=9, subspace=5, seed=seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(one.subspaces, again.subspaces)
    assert np.array_equal(one.weights, again.weights)
    assert not np.array_equal(one.subspaces, other.subspaces)


def test_the_number_of_discriminants_is_odd_and_found_where_none_is_given() -> None:
    data = pairs(3.0, 60, 20)
    assert len(train_ensemble(data, EnsembleSettings(learners=10, subspace=5))) == 11
    automatic = len(train_ensemble(data, EnsembleSettings(subspace=5)))
    assert automatic % 2 == 1
    assert 25 <= automatic < 501


def test_errors_have_settled_within_the_tube_of_the_article() -> None:
    assert _has_settled([0.3] * 40)
    assert not _has_settled([0.3] * 30 + [0.2] * 10)
    assert _has_settled([0.9] * 20 + [0.2] * 54)  # only the last fifty means count


def test_several_pairs_of_one_image_are_drawn_together() -> None:
    """Copies of an image out of the bag must not be predicted by its copies in it: noise would look learnt."""
    rng = np.random.default_rng(0)
    negative, positive = rng.normal(size=(2, 40, 60))
    copies = Pairs(np.tile(negative, (4, 1)), np.tile(positive, (4, 1)), np.tile(np.arange(40), 4))
    together = train_ensemble(copies, EnsembleSettings(learners=41, subspace=30)).error
    apart = train_ensemble(
        Pairs(copies.negative, copies.positive, np.arange(160)), EnsembleSettings(learners=41, subspace=30)
    ).error
    assert apart < 0.2
    assert 0.35 < together < 0.65


def test_features_that_do_not_vary_are_left_out_and_scales_do_not_matter() -> None:
    negative, positive = gaussians(0.5, 80, 6)
    scale = np.array([1e-9, 1, 1e6, 3, 1e-4, 7])
    constant = np.full((80, 1), 0.1)
    wide = Pairs(np.hstack([negative * scale, constant]), np.hstack([positive * scale, constant]), np.arange(80))
    options = EnsembleSettings(learners=9, subspace=4)
    scaled, plain = train_ensemble(wide, options), train_ensemble(Pairs(negative, positive, np.arange(80)), options)
    assert 6 not in scaled.subspaces
    np.testing.assert_array_equal(scaled.score(wide.positive), plain.score(positive))


@pytest.mark.parametrize("case", ["few", "constant", "nan"])
def test_what_cannot_be_learnt_from_is_refused(case: str) -> None:
    negative, positive = gaussians(1.0, 3 if case == "few" else 20, 5)
    if case == "constant":
        negative[:], positive[:] = 0.1, 0.1
    if case == "nan":
        positive[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite" if case == "nan" else "needed"):
        train_ensemble(Pairs(negative, positive, np.arange(len(negative))), EnsembleSettings(learners=3))


def test_another_number_of_features_is_refused() -> None:
    ensemble = train_ensemble(pairs(1.0, 20, 5), EnsembleSettings(learners=3, subspace=2))
    with pytest.raises(ValueError, match="5"):
        ensemble.score(np.zeros((2, 6)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_the_score_is_the_mean_of_the_votes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ensemble = train_ensemble(pairs(0.5, 20, 6, seed), EnsembleSettings(learners=5, subspace=3, seed=seed))
    rows = rng.normal(size=(7, 6))
    for row, score in zip(rows, ensemble.score(rows), strict=True):
        chosen = [
            w @ row[s] > t for w, s, t in zip(ensemble.weights, ensemble.subspaces, ensemble.thresholds, strict=True)
        ]
        assert score == pytest.approx(np.mean(np.where(chosen, 1, -1)))
