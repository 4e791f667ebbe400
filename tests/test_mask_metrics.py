from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap as scipy_bootstrap

from pixelsem.metrics import bootstrap as resampling
from pixelsem.metrics import masks
from pixelsem.metrics.bootstrap import bootstrap
from pixelsem.metrics.masks import Measured, f_measure, iou, precision_recall, s_measure, score, summarize
from pixelsem.regions.masks import region_of


def waves(height: int, width: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a soft mask and a truth that overlap in part; levels lie well within k/255 and (k+1)/255."""
    y, x = np.indices((height, width)) / 10.0
    truth = np.sin(y + number) + np.cos(1.3 * x - number) > 0.6
    levels = np.floor(255 * (0.5 + 0.5 * np.sin(1.1 * y + number) * np.cos(1.2 * x - number)) ** 3)
    return np.minimum((np.clip(levels, 0, 255) + 0.25) / 255, 1.0), truth


#: What pysodmetrics 1.6.2 says of :func:`waves`, with ``normalize=False``: height, width, number, whether the mask
#: was cut at 0.5, S-measure, MAE, adaptive F, maximum and mean of F over the thresholds. It is not asked here, as
#: the OpenCV it requires would replace the one with superpixels.
GOLDEN = [
    (40, 60, 0, False, 0.491361004, 0.380328431, 0.601791120, 0.757851462, 0.509039994),
    (40, 60, 0, True, 0.393832625, 0.383750000, 0.577547220, 0.577547220, 0.577492654),
    (31, 17, 1, False, 0.394726082, 0.412890204, 0.563913244, 0.969721275, 0.701886596),
    (31, 17, 1, True, 0.327274794, 0.407969639, 0.796337228, 0.818377713, 0.796423323),
    (64, 64, 2, False, 0.461812577, 0.318209540, 0.487968039, 0.586684208, 0.372459628),
    (64, 64, 2, True, 0.366267696, 0.301513672, 0.429881043, 0.429881043, 0.429695087),
    (9, 50, 3, False, 0.360310571, 0.267185185, 0.000000000, 0.209677419, 0.030358988),
    (9, 50, 3, True, 0.388252923, 0.171111111, 0.000000000, 0.193205945, 0.000754711),
    (120, 80, 4, False, 0.397265607, 0.349600286, 0.283135637, 0.375741460, 0.245903337),
    (120, 80, 4, True, 0.343090113, 0.327812500, 0.267447471, 0.323192304, 0.267665224),
]


@pytest.mark.parametrize("row", GOLDEN)
def test_scores_are_those_of_pysodmetrics(row):
    height, width, number, cut, structure, error, adaptive, best, mean = row
    prediction, truth = waves(height, width, number)
    found = score((prediction >= 0.5).astype(float) if cut else prediction, truth)
    curve = f_measure(found.precision, found.recall)
    measures = (found.s_measure, found.mae, found.adaptive_f, curve.max(), curve.mean())
    assert measures == pytest.approx((structure, error, adaptive, best, mean), abs=2e-9)


def test_precision_and_recall_by_counting():
    prediction, truth = waves(31, 17, 1)
    precision, recall = precision_recall(prediction, truth)
    for k in range(256):
        chosen = prediction >= k / 255
        assert recall[k] == pytest.approx((chosen & truth).sum() / truth.sum())
        assert precision[k] == pytest.approx((chosen & truth).sum() / chosen.sum() if chosen.any() else 0)


@given(st.integers(0, 255))
def test_a_level_is_at_its_own_threshold(k):
    """16-bit values of exactly k/255 are foreground at threshold k and not at the next."""
    prediction = np.array([[257 * k / 65535]])
    _, recall = precision_recall(prediction, np.array([[True]]))
    assert recall.tolist() == [1.0] * (k + 1) + [0.0] * (255 - k)


def test_f_measure_weighs_precision():
    assert f_measure(np.array(0.9), np.array(0.5)) == pytest.approx(1.3 * 0.45 / 0.77)
    assert f_measure(np.array(0.0), np.array(0.0)) == 0


@given(arrays(bool, (4, 5)), arrays(bool, (4, 5)))
def test_iou_and_agreement_by_sets(first, second):
    one, two = set(np.flatnonzero(first)), set(np.flatnonzero(second))
    assert iou(first, second) == (len(one & two) / len(one | two) if one | two else 1.0)
    assert masks.agreement(first, second) == pytest.approx(1 - len(one ^ two) / 20)


@given(st.integers(0, 65535))
def test_half_is_where_a_region_begins(value):
    """The default threshold and the regions of attacks mean the same foreground."""
    values = np.array([[value]])
    assert (values / 65535 >= 0.5).tolist() == region_of(values, "soft", "foreground").tolist()


def test_a_perfect_mask():
    _, truth = waves(40, 60, 0)
    found = score(truth.astype(float), truth)
    assert (found.iou, found.mae) == (1, 0)
    assert found.s_measure == pytest.approx(1)
    assert found.adaptive_f == pytest.approx(1)
    assert f_measure(found.precision, found.recall).max() == pytest.approx(1)


@pytest.mark.parametrize("fill", [0.0, 0.3, 1.0])
def test_empty_and_full_truths(fill):
    prediction = np.full((6, 8), fill)
    nothing, everything = score(prediction, np.zeros((6, 8), bool)), score(prediction, np.ones((6, 8), bool))
    assert nothing.empty_truth
    assert nothing.iou == (1 if fill < 0.5 else 0)
    assert nothing.s_measure == pytest.approx(1 - fill)
    assert nothing.mae == pytest.approx(fill)
    assert not nothing.precision.any()
    assert not nothing.recall.any()
    assert not everything.empty_truth
    assert everything.iou == (0 if fill < 0.5 else 1)
    assert everything.s_measure == pytest.approx(fill)
    assert everything.precision[0] == everything.recall[0] == 1


def test_an_empty_prediction():
    _, truth = waves(40, 60, 0)
    found = score(np.zeros(truth.shape), truth)
    assert (found.iou, found.mae) == (0, pytest.approx(truth.mean()))
    assert found.recall[0] == 1
    assert not found.recall[1:].any()
    assert not found.precision[1:].any()


@settings(max_examples=60)
@given(arrays(bool, (5, 7)), arrays(float, (5, 7), elements=st.floats(0, 1, width=32)))
def test_s_measure_is_a_share_wherever_the_object_lies(truth, prediction):
    """An object in the last row or column leaves blocks without pixels."""
    assert 0 <= s_measure(prediction, truth) <= 1 + 1e-12


def measured(prediction, truth, flagged=False) -> Measured:
    return Measured(float((prediction >= 0.5).mean()), flagged, score(prediction, truth))


def test_max_f_is_of_the_mean_curve():
    """Two images whose best thresholds differ: the mean curve's maximum is below the mean of the maxima."""
    truth = np.zeros((4, 4), bool)
    truth[0] = True
    low, high = np.where(truth, 0.3, 0.1), np.where(truth, 0.9, 0.6)
    found = summarize([measured(low, truth), measured(high, truth, flagged=True)]).quality
    precision = np.mean([precision_recall(p, truth)[0] for p in (low, high)], axis=0)
    recall = np.mean([precision_recall(p, truth)[1] for p in (low, high)], axis=0)
    curve = 1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)
    assert found.max_f.value == pytest.approx(curve.max())
    assert found.max_f.value < 0.99
    assert found.mean_f.value == pytest.approx(curve.mean())
    assert found.iou.value == pytest.approx((0 + 0.25) / 2)
    assert found.empty_truths == 0


def test_summary_counts_flags_and_goes_without_truth():
    found = summarize([Measured(0.2, True, None), Measured(0.4, False, None)])
    assert (found.n, found.coverage, found.flagged.successes) == (2, pytest.approx(0.3), 1)
    assert found.quality is None
    with pytest.raises(ValueError, match="no masks"):
        summarize([])


# --- bootstrap


def test_bootstrap_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(1).gamma(2, 3, 80)
    found = bootstrap(values, 0.9)
    theirs = scipy_bootstrap((values,), np.mean, n_resamples=20000, confidence_level=0.9, method="percentile", rng=2)
    spread = values.std() / np.sqrt(80)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.12 * spread)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.12 * spread)


def test_bootstrap_resamples_alike_and_repeats(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    first = bootstrap(values)
    shifted = bootstrap(values + 5)
    assert (shifted.low - 5, shifted.high - 5) == (pytest.approx(first.low), pytest.approx(first.high))
    monkeypatch.setattr(resampling, "_NUMBERS_AT_A_TIME", 50 * 7)
    assert bootstrap(values).low == pytest.approx(first.low, abs=1e-12)


def test_bootstrap_of_a_statistic_of_two_means():
    pairs = np.random.default_rng(4).uniform(1, 2, (60, 2))
    found = bootstrap(pairs, 0.95, lambda means: means[..., 0] / means[..., 1])
    assert found.value == pytest.approx(pairs[:, 0].mean() / pairs[:, 1].mean())
    assert found.low < found.value < found.high
    upside = bootstrap(pairs, 0.95, lambda means: means[..., 1] / means[..., 0])
    assert 1 / upside.high == pytest.approx(found.low, rel=1e-3)


def test_one_image_has_no_interval():
    found = bootstrap(np.array([0.4]))
    assert (found.value, found.low, found.high, found.n) == (0.4, None, None, 1)
