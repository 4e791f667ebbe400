from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsem.metrics.bootstrap import draws
from pixelsem.metrics.detection import measure, roc
from pixelsem.metrics.intervals import wilson
from pixelsem.records import DetectionRecord
from pixelsem.report.detection import (
    DetectionRow,
    Source,
    delta_table,
    detection_table,
    draw_roc,
    flagged_table,
    tell_apart,
)
from pixelsem.report.tables import to_plain


def scored(image: int, kind: Any, score: float, repeat: int = 0) -> DetectionRecord:
    region = "original" if kind == "adversarial" else None
    return DetectionRecord(str(image), f"{image}.png", kind, "test", score, score > 0, region, None, repeat)


def paired(clean: list[float], adversarial: list[float]) -> list[DetectionRecord]:
    records = [scored(number, "clean", score) for number, score in enumerate(clean)]
    return records + [scored(number, "adversarial", score) for number, score in enumerate(adversarial)]


scores = st.lists(st.integers(-5, 5).map(lambda number: number / 5), min_size=1, max_size=30)


@given(scores, scores)
def test_the_curve_is_that_of_every_threshold(clean: list[float], adversarial: list[float]) -> None:
    low, high = np.array(clean), np.array(adversarial)
    curve = roc(low, high)
    found = set(zip(curve.false_alarms.tolist(), curve.detections.tolist(), strict=True))
    tried = {(float((low >= t).mean()), float((high >= t).mean())) for t in [*clean, *adversarial, 2.0]}
    assert found == tried
    wins = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    assert curve.area == pytest.approx(wins)
    assert curve.least_error == pytest.approx(min((alarm + 1 - hit) / 2 for alarm, hit in tried))


def test_the_area_is_that_of_sklearn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(size=40).round(1) / 9, (rng.normal(size=40) + 1).round(1) / 9
    expected = sklearn.roc_auc_score(np.repeat([0, 1], 40), np.concatenate([clean, adversarial]))
    found = measure(paired(clean.tolist(), adversarial.tolist()))
    assert found is not None
    assert found.area.value == pytest.approx(expected)
    assert found.roc.area == pytest.approx(expected)


def test_the_areas_interval_is_that_of_images_drawn_with_all_their_versions() -> None:
    rng = np.random.default_rng(1)
    clean = rng.integers(-4, 3, 7) / 5
    versions = [rng.integers(-2, 6, 1 + number % 3) / 5 for number in range(7)]
    records = [scored(number, "clean", score) for number, score in enumerate(clean.tolist())]
    for number, own in enumerate(versions):
        records += [scored(number, "adversarial", score, repeat) for repeat, score in enumerate(own.tolist())]

    def area(times: np.ndarray) -> float:
        low = np.repeat(clean, times)
        high = np.concatenate([np.tile(own, count) for own, count in zip(versions, times, strict=True)])
        return float((high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean())

    found = measure(records, 0.9)
    assert found is not None
    assert found.area.value == pytest.approx(area(np.ones(7, int)))
    resampled = [area(times) for some in draws(7) for times in some.astype(int)]
    assert (found.area.low, found.area.high) == pytest.approx(np.quantile(resampled, [0.05, 0.95]))


def test_rates_are_counted_by_hand() -> None:
    found = measure(paired([-1, -0.5, 0.2, -0.1], [0.5, -0.2, 1, 0.9]))
    assert found is not None
    assert (found.images, found.detected.successes, found.false_alarms.successes) == (4, 3, 1)
    assert (found.detected.low, found.detected.high) == wilson(3, 4)
    assert found.error.value == pytest.approx((0.25 + 0.25) / 2)
    assert found.accuracy == pytest.approx(0.75)


def test_only_images_with_both_versions_count() -> None:
    records = [scored(0, "clean", 1), scored(1, "clean", -1), scored(1, "adversarial", 1), scored(2, "adversarial", -1)]
    found = measure(records)
    assert found is not None
    assert (found.images, found.detected.n, found.false_alarms.n) == (1, 1, 1)
    assert (found.detected.value, found.false_alarms.value, found.area.value) == (1, 0, 1)
    assert (found.area.low, found.area.high) == (None, None)
    assert measure(records[:2]) is None


def test_versions_of_one_image_are_a_cluster() -> None:
    """Ten versions of each image, all alike: no more is known than from one of each."""
    clean = [scored(image, "clean", -0.5) for image in range(20)]
    versions = [scored(image, "adversarial", 0.5 if image < 12 else -0.7, k) for image in range(20) for k in range(10)]
    many, few = measure(clean + versions), measure(clean + [record for record in versions if record.repeat == 0])
    assert many is not None
    assert few is not None
    assert many.detected.value == few.detected.value == 0.6
    assert many.detected.high - many.detected.low >= few.detected.high - few.detected.low
    for one, other in ((many.area, few.area), (many.error, few.error)):
        assert [one.value, one.low, one.high] == pytest.approx([other.value, other.low, other.high])


def test_the_interval_of_the_area_covers_the_truth() -> None:
    """Scores of a photo and its adversarial version are correlated; the area of the two Gaussians is known."""
    truth = 0.5 * (1 + 0.5205)  # Φ(1 / √2), the error function of 1/2 being 0.5205
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=80)
        clean = (shared + rng.normal(size=80)) / np.sqrt(2)
        adversarial = (shared + rng.normal(size=80)) / np.sqrt(2) + 1
        low, high = np.tanh(clean / 9), np.tanh(adversarial / 9)
        found = measure(paired(low.tolist(), high.tolist()))
        assert found is not None
        assert found.area.low is not None
        assert found.area.high is not None
        covered += found.area.low <= truth <= found.area.high
    assert covered >= 52  # of 60; 57 are expected


def row(attack: str, delta: float | None, trained_on: str | None = None, **changes: Any) -> DetectionRow:
    found = measure(paired([-1, -0.5, 0.2, -0.1], [0.5, -0.2, 1, 0.9]))
    assert found is not None
    common = {"network": "net", "pixels": None, "variant": None, "region": "original", "features": "spam (separate)"}
    values: dict[str, Any] = common | changes
    return DetectionRow(attack=attack, delta=delta, trained_on=trained_on, found=found, **values)


def test_table_2_has_a_row_per_attack_and_a_column_per_budget() -> None:
    rows = [row("fgm", 2), row("fgm", 4), row("sai-fgm", 4), row("de", None), row("fgm", 4, "i-fgm, δ=4")]
    table = delta_table(rows)
    assert table is not None
    plain = to_plain(table)["rows"]
    assert [line["attack"] for line in plain] == ["fgm", "sai-fgm"]
    assert [line["delta_2"] is None for line in plain] == [False, True]
    assert plain[1]["delta_4"]["rate"] == 0.75
    assert delta_table(rows[3:]) is None
    long = to_plain(detection_table(rows))["rows"]
    assert len(long) == 5
    assert long[0] | {"error": 0.25, "false_alarms": long[0]["false_alarms"]} == long[0]
    assert [line["trained_on"] for line in long] == [None] * 4 + ["i-fgm, δ=4"]


def source(stage: str, *, held_out: bool = True, **training: Any) -> Source:
    return Source(training or None, held_out, stage)


def told(rows: list[DetectionRow], *sources: Source) -> list[str | None]:
    return [each.detector for each in tell_apart(rows, sources)]


def test_rows_of_one_attack_and_budget_are_told_apart_by_what_differs() -> None:
    twins = [row("fgm", 4), row("fgm", 4)]
    a, b = source("a", seed=0, ridge=0.1), source("b", seed=1, ridge=0.1)
    assert told(twins, a, b) == ["seed=0", "seed=1"]
    scored = source("c", held_out=False, seed=0, ridge=0.1)
    assert told(twins, a, scored) == ["held out", "scored"]
    assert told([*twins, row("fgm", 4)], a, b, scored) == ["seed=0, held out", "seed=1, held out", "seed=0, scored"]
    # The line of the attack's other budgets goes on.
    assert told([*twins, row("fgm", 2)], a, b, source("c", seed=1, ridge=0.1)) == ["seed=0", "seed=1", "seed=1"]


def test_rows_that_differ_in_no_option_are_named_by_their_stage() -> None:
    twins = [row("fgm", 4), row("fgm", 4)]
    a, b, c = source("run/a", seed=0), source("run/b", seed=0), source("run/c", seed=1)
    assert told(twins, a, b) == ["run/a", "run/b"]
    assert told([*twins, row("fgm", 4)], a, b, c) == ["seed=0, run/a", "seed=0, run/b", "seed=1"]
    # Of a detector whose training is not known, no option is.
    unknown = source("run/d", held_out=False)
    assert told(twins, a, unknown) == ["run/a", "run/d"]
    assert told([*twins, row("fgm", 4)], a, c, unknown) == ["seed=0", "seed=1", "run/d"]
    assert told(twins, unknown, source("run/e", held_out=False)) == ["run/d", "run/e"]


def test_rows_that_differ_need_no_more() -> None:
    rows = [row("fgm", 4), row("fgm", 2), row("i-fgm", 4), row("fgm", 4, "i-fgm"), row("fgm", 4, region="foreground")]
    assert told(rows, *(source(letter, seed=n) for n, letter in enumerate("abcde"))) == [None] * 5
    keys = [column.key for column in detection_table(rows).columns]
    assert keys[:8] == ["network", "attack", "pixels", "variant", "region", "features", "delta", "trained_on"]


def test_table_2_has_a_row_per_detector() -> None:
    worse = measure(paired([-1, -0.5], [0.5, -0.2]))
    assert worse is not None
    rows = [row("fgm", 4), row("fgm", 2), replace(row("fgm", 4), found=worse), row("i-fgm", 4)]
    a, b = source("a", seed=0), source("b", seed=1)
    table = delta_table(tell_apart(rows, [a, a, b, b]))
    assert table is not None
    plain = to_plain(table)
    lines = [(line["attack"], line["detector"], line["delta_4"]["rate"]) for line in plain["rows"]]
    assert lines == [("fgm", "seed=0", 0.75), ("fgm", "seed=1", 0.5), ("i-fgm", None, 0.75)]
    assert [line["delta_2"] is None for line in plain["rows"]] == [False, True, True]
    assert "several of one attack and budget have a row each" in plain["notes"][0]
    labels = [each.label for each in tell_apart(rows, [a, a, b, b])]
    assert labels == ["fgm, δ=4, seed=0", "fgm, δ=2, seed=0", "fgm, δ=4, seed=1", "i-fgm, δ=4"]


def test_few_pixels_are_told_apart_by_their_number() -> None:
    rows = [row("de", None, pixels=1), row("de", None, pixels=5)]
    lines = to_plain(detection_table(rows))["rows"]
    assert [line["pixels"] for line in lines] == [1, 5]
    assert [line.label for line in rows] == ["de, pixels=1", "de, pixels=5"]


def test_the_table_of_unknown_images_has_their_rate() -> None:
    found = measure(paired([-1, 1], [1, 1]))
    assert found is not None
    (line,) = to_plain(flagged_table([("photos", "spam (luma)", "fgm, δ=4", found.false_alarms)]))["rows"]
    assert (line["input"], line["flagged"]["count"], line["flagged"]["n"]) == ("photos", 1, 2)


def test_the_figure_has_a_curve_per_row() -> None:
    pytest.importorskip("matplotlib")
    rows = [row("fgm", 4), row("fgm", 4, network="other"), row("i-fgm", 2, region="foreground")]
    (axes,) = draw_roc(rows).axes
    chance, *curves = axes.lines
    assert len(curves) == 3
    labels = [str(curve.get_label()) for curve in curves]
    assert labels == [
        "fgm, δ=4, net, spam (separate): 0.875",
        "fgm, δ=4, other, spam (separate): 0.875",
        "i-fgm, δ=2, foreground: 0.875",
    ]
    np.testing.assert_array_equal(curves[0].get_xdata(), rows[0].found.roc.false_alarms)
    np.testing.assert_array_equal(curves[0].get_ydata(), rows[0].found.roc.detections)
    assert list(chance.get_xdata()) == list(chance.get_ydata())
