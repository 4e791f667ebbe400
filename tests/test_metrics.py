from __future__ import annotations

import dataclasses
import itertools

import msgspec
import numpy as np
import pytest
from attack_stages import info, record
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from pixelsem.metrics import differences, success
from pixelsem.metrics.accuracy import accuracy
from pixelsem.metrics.compact import Compactor
from pixelsem.metrics.intervals import (
    Paired,
    clustered_rate,
    mcnemar_exact,
    paired_interval,
    rate,
    rate_by_cluster,
    wilson,
)
from pixelsem.metrics.setups import AttackStage, alike_but, combine, opposites, search_identity
from pixelsem.records import AttackRecord

# --- intervals


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_wilson_is_that_of_statsmodels(counts, level):
    expected = proportion_confint(*counts, alpha=1 - level, method="wilson")
    np.testing.assert_allclose(wilson(*counts, level), np.clip(expected, 0, 1), atol=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_that_of_statsmodels_and_scipy(b, c):
    p = mcnemar_exact(b, c)
    if b + c:
        assert p == pytest.approx(binomtest(b, b + c).pvalue, abs=1e-12)
        assert p == pytest.approx(mcnemar([[0, b], [c, 0]], exact=True).pvalue, abs=1e-12)
    else:
        assert p == 1


def test_mcnemar_of_counts_beyond_floats():
    assert mcnemar_exact(3000, 3000) == 1
    assert 0 < mcnemar_exact(2900, 3100) < 0.02


def test_wilson_refuses_what_is_no_share():
    for counts in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no interval"):
            wilson(*counts)


def test_paired_interval_is_the_published_one():
    """Airway hyper-responsiveness, Fagerland, Lydersen & Laake, Stat. Med. 33 (2014): −0.507 to −0.026."""
    np.testing.assert_allclose(paired_interval(Paired(1, 1, 7, 12)), (-0.507, -0.026), atol=5e-4)


@given(*[st.integers(0, 40)] * 4)
def test_paired_interval_holds_the_difference_and_turns_with_the_sides(a, b, c, d):
    if a + b + c + d == 0:
        return
    table = Paired(a, b, c, d)
    low, high = table.interval()
    assert -1 <= low <= table.difference <= high <= 1
    np.testing.assert_allclose(Paired(a, c, b, d).interval(), (-high, -low), atol=1e-12)


@pytest.mark.parametrize("shares", [(0.1, 0.3, 0.1, 0.5), (0.4, 0.1, 0.05, 0.45), (0.05, 0.2, 0.2, 0.55)])
def test_paired_interval_covers_what_it_says(shares):
    """Exact coverage over all 2×2 tables of n = 20 pairs drawn with known probabilities."""
    n, truth, covered = 20, shares[1] - shares[2], 0.0
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        if a + b + c > n:
            continue
        low, high = Paired(a, b, c, n - a - b - c).interval()
        if low <= truth <= high:
            rest = 1 - shares[0]
            left = n - a
            covered += (
                binom.pmf(a, n, shares[0])
                * binom.pmf(b, left, shares[1] / rest)
                * binom.pmf(c, left - b, shares[2] / (rest - shares[1]))
            )
    assert 0.94 <= covered <= 0.99


def test_clustered_rate_of_single_trials_is_wilsons():
    assert clustered_rate([(1, 1)] * 3 + [(0, 1)] * 7) == rate(3, 10)


def test_rate_by_cluster_gathers_the_trials_of_a_cluster():
    trials = [("a", True), ("b", False), ("a", False), ("b", True), ("b", True)]
    assert rate_by_cluster(trials) == clustered_rate([(1, 2), (2, 3)])
    assert rate_by_cluster([]) is None


def test_clustered_rate_of_equal_clusters_counts_clusters():
    """Nine targets that always succeed or fail together are one trial."""
    found = clustered_rate([(9, 9)] * 5 + [(0, 9)] * 5)
    assert found.effective_n == pytest.approx(9)
    assert clustered_rate([(0, 9)] * 10).effective_n == pytest.approx(10)
    assert clustered_rate([(2, 9)]).effective_n == pytest.approx(1)
    assert clustered_rate([]) is None
    assert clustered_rate([(0, 0)]) is None


def test_rate_of_nothing():
    assert rate(0, 0) is None


# --- Table II


def targeted(image: str, target: str, **changes) -> AttackRecord:
    return record(image, target=target, **changes)


@pytest.fixture
def records() -> list[AttackRecord]:
    return [
        record("cat/1.png", to="dog", confidence=0.6, queries=300, generations=2),
        record("cat/2.png", queries=1000, generations=100),
        record("cat/3.png", to="ship", confidence=0.8, queries=100, generations=1),
        record("cat/4.png", outcome="misclassified"),
        record("cat/5.png", outcome="misclassified"),
        targeted("cat/1.png", "dog", to="dog", confidence=0.5),
        targeted("cat/1.png", "ship"),
        targeted("cat/2.png", "dog"),
        targeted("cat/2.png", "ship"),
        targeted("cat/4.png", "dog", outcome="misclassified"),
        targeted("cat/4.png", "ship", outcome="misclassified"),
    ]


def test_success_by_hand(records):
    cell = success.success(records, "original")
    assert (cell.untargeted1.successes, cell.untargeted1.n) == (2, 3)
    assert (cell.untargeted1.low, cell.untargeted1.high) == wilson(2, 3)
    assert cell.confidence_u.value == pytest.approx(0.7)
    assert (cell.untargeted2.successes, cell.untargeted2.n) == (1, 2)
    assert (cell.targeted.successes, cell.targeted.n) == (1, 4)
    assert cell.confidence_t.value == pytest.approx(0.5)
    assert cell.targets == (2, 2)


def test_success_where_nothing_was_attacked():
    cell = success.success([record(outcome="misclassified")], "original")
    assert cell == success.Success(None, None, None, None, None, (0, 0))


def test_images_drawn_by_hand(records):
    found = success.drawn(records, "original", "untargeted")
    assert (found.images, found.attacked, found.misclassified) == (5, 3, 2)
    assert (found.of_all.successes, found.of_all.n) == (2, 5)
    found = success.drawn(records, "original", "targeted")
    assert (found.images, found.attacked, found.misclassified) == (3, 2, 1)
    assert (found.of_all.successes, found.of_all.n) == (1, 3)
    assert success.drawn(records, "foreground", "untargeted") is None


def test_skips_are_counted_by_reason():
    skips = ("empty-region", "flagged-mask", "misclassified")
    records = [record(f"{n}.png", "foreground", outcome=outcome) for n, outcome in enumerate(skips)]
    found = success.drawn(records, "foreground", "untargeted")
    assert (found.empty_region, found.flagged_mask, found.misclassified, found.attacked) == (1, 1, 1, 0)


def test_cost_by_hand(records):
    found = success.cost(records, "original", "untargeted")
    assert (found.searches, found.queries.value, found.queries.median) == (3, 200, 200)
    assert (found.queries_all.value, found.queries_all.median) == (pytest.approx(1400 / 3), 300)
    assert success.cost(records, "background", "untargeted") is None


def test_repeats_leave_the_first_search_alone():
    searches = [("a.png", 0, "dog"), ("a.png", 1, None), ("b.png", 0, None), ("b.png", 1, "dog"), ("c.png", 0, None)]
    records = [record(image, repeat=repeat, to=to) for image, repeat, to in searches]
    assert success.success(records, "original").untargeted1.successes == 1
    assert success.success(records, "original").untargeted1.n == 3
    found = success.repeat_statistics(records, "original")
    assert (found.searches, found.any.successes, found.any.n) == (2, 2, 3)
    assert (found.per_search.successes, found.per_search.n) == (2, 5)
    assert success.repeat_statistics(records[::2], "original") is None


# --- Table IV


def test_generations_in_two_readings():
    records = []
    hits = {"original": {1: 1, 2: 3}, "foreground": {1: 2, 2: 4}, "background": {2: 9}}
    for region, found in hits.items():
        for image in (1, 2, 3):
            hit = image in found
            records.append(record(f"{image}.png", region, to="dog" if hit else None, generations=found.get(image, 50)))
    own = success.generations(records)
    assert {region: (mean.value, mean.n) for region, mean in own.items()} == {
        "original": (2, 2),
        "foreground": (3, 2),
        "background": (9, 1),
    }
    common = success.generations_in_common(records)
    assert {region: (mean.value, mean.n) for region, mean in common.items()} == {
        "original": (3, 1),
        "foreground": (4, 1),
        "background": (9, 1),
    }
    assert list(common) == ["original", "foreground", "background"]
    assert success.generations_in_common([r for r in records if r.region == "original"]) == {}


def test_generations_in_common_need_a_success_in_every_region():
    records = [record("1.png", to="dog"), record("1.png", "foreground", to="dog"), record("1.png", "background")]
    assert success.generations_in_common(records) == {}


# --- pairs and areas


def test_pairs_are_of_the_same_image_and_label():
    records = [
        record("1.png", "foreground", to="dog"), record("1.png", "background", to="dog"),
        record("2.png", "foreground", to="dog"), record("2.png", "background"),
        record("3.png", "foreground"), record("3.png", "background"),
        record("4.png", "foreground", to="dog"), record("4.png", "background", outcome="empty-region"),
        record("5.png", "foreground", to="dog"), record("5.png", "background", label="dog"),
    ]  # fmt: skip
    sides = [success.image_success(records, region, "untargeted") for region in ("foreground", "background")]
    assert success.pair(*sides) == Paired(both=1, only_first=1, only_second=0, neither=1)


def test_area_counts_an_image_once():
    records = [record("1.png", "foreground", target=target) for target in ("dog", "ship")]
    records += [record("2.png", "foreground", region_pixels=20), record("3.png", "foreground", outcome="flagged-mask")]
    share = success.area(records, "foreground")
    assert (share.value, share.n) == (pytest.approx(0.3), 2)


def test_regions_in_the_order_of_the_paper():
    assert success.sort_regions(["label:2", "background", "original", "foreground", "background"]) == [
        "original", "foreground", "background", "label:2",
    ]  # fmt: skip


# --- which stages belong together


def stages(*pairs) -> list[AttackStage]:
    return [AttackStage(name, what, records) for name, what, records in pairs]


def test_regions_of_one_search_are_one_setup():
    regions = ("original", "foreground", "background")
    setups, notes = combine(stages(*((r, info(r, grow=2), [record(region=r)]) for r in regions)))
    assert notes == []
    assert len(setups) == 1
    assert setups[0].regions == list(regions)
    assert (setups[0].network, setups[0].attack, setups[0].pixels, setups[0].variant) == ("allconv", "de", 1, "")


def test_another_search_is_another_setup_and_is_named():
    setups, _ = combine(stages(("a", info(), [record()]), ("b", info(population=100), [record("cat/2.png")])))
    assert [setup.variant for setup in setups] == ["population=400", "population=100"]


def test_what_the_whole_image_has_no_option_for_tells_nothing_apart():
    regions = [(f"r{n}", info("foreground", flagged=how), [record(region="foreground")]) for n, how in enumerate("ab")]
    whole = ("o", info(population=100), [record()])
    setups, _ = combine(stages(regions[0], whole))
    assert [setup.variant for setup in setups] == ["population=400", "population=100"]
    setups, _ = combine(stages(*regions, whole))
    assert [setup.variant for setup in setups] == [
        "flagged=a, population=400",
        "flagged=b, population=400",
        "population=100",
    ]


def test_other_pixels_need_no_further_name():
    setups, _ = combine(stages(("a", info(), [record()]), ("b", info(pixels=3), [record()])))
    assert [(setup.pixels, setup.variant) for setup in setups] == [(1, ""), (3, "")]


def test_the_same_records_count_once():
    setups, notes = combine(stages(("a", info(), [record(), record()]), ("b", info(), [record()])))
    assert len(setups) == 1
    assert len(setups[0].records) == 1
    assert notes == [
        "a: 1 records are there twice; the first of each counts",
        "b: 1 records are also in a; counted once",
    ]


def test_contradicting_runs_stay_apart():
    setups, _ = combine(stages(("a", info(), [record()]), ("b", info(seed=1), [record(to="dog", seed=1)])))
    assert [setup.variant for setup in setups] == ["seed=0", "seed=1"]
    setups, _ = combine(stages(("a", info(), [record()]), ("b", info(), [record(to="dog")])))
    assert [setup.variant for setup in setups] == ["a", "b"]


@pytest.mark.parametrize("kept", [list, lambda records: list(map(Compactor(), records))], ids=["full", "compact"])
def test_images_of_one_name_that_are_not_the_same_stay_apart(kept):
    def of(name: str, region: str, clean: str, seed: int = 0, **options) -> AttackStage:
        one = record(region=region, digests={"clean": clean}, seed=seed)
        return AttackStage(name, info(region, seed=seed, **options), kept([one]))

    front, behind, whole = (of(region[0], region, "ab" * 16) for region in ("foreground", "background", "original"))
    other = of("other", "background", "cd" * 16)
    assert [setup.stages for setup in combine([front, behind, whole])[0]] == [["f", "b", "o"]]
    setups, _ = combine([front, other, whole])
    assert [(setup.stages, setup.variant) for setup in setups] == [(["f", "o"], "f+o"), (["other"], "other")]
    for clean, count in (("ab", 1), ("cd", 0)):
        revert = of("revert", "foreground", clean * 16, constraint="revert")
        assert len(list(opposites(combine([front, revert])[0], "constraint", "encode", "revert"))) == count
        seeded = of("seeded", "foreground", clean * 16, seed=1)
        assert len(alike_but(combine([front, seeded])[0], "seed")) == count


def test_two_networks_of_one_name_are_told_apart():
    other = dataclasses.replace(info(), model={"name": "allconv", "digest": "cd" * 32})
    setups, _ = combine(stages(("a", info(), [record()]), ("b", other, [record()])))
    assert [setup.variant for setup in setups] == ["model digest=abababab", "model digest=cdcdcdcd"]


def test_networks_are_called_by_the_files_of_their_weights_where_these_differ():
    def of(digest, weights):
        return dataclasses.replace(info(weights=weights), model={"name": "allconv", "digest": digest * 32})

    made = stages(("a", of("ab", None), [record()]), ("b", of("cd", "../w/fast.safetensors"), [record()]))
    assert [setup.variant for setup in combine(made)[0]] == ["weights=default", "weights=fast.safetensors"]
    # One name for two networks, or two for one, tells nothing.
    made = stages(("a", of("ab", "1/w.pt"), [record()]), ("b", of("cd", "2/w.pt"), [record()]))
    assert [setup.variant for setup in combine(made)[0]] == ["model digest=abababab", "model digest=cdcdcdcd"]
    made = stages(("a", of("ab", "1.pt"), [record()]), ("b", of("ab", "2.pt"), [record(to="dog")]))
    assert [setup.variant for setup in combine(made)[0]] == ["a", "b"]


def test_where_a_search_was_run_is_no_difference():
    local, ray = info(engine="local"), info(engine="ray", address="head:6379", ray_workers=4)
    setups, _ = combine(stages(("a", local, [record("1.png")]), ("b", ray, [record("2.png")])))
    assert [(setup.stages, setup.variant) for setup in setups] == [(["a", "b"], "")]
    assert search_identity(local) == search_identity(ray)


def test_regions_changed_in_another_way_stay_apart():
    made = stages(
        ("a", info("foreground"), [record(region="foreground")]),
        ("b", info("background", match_area=True), [record(region="background")]),
    )
    assert len(combine(made)[0]) == 2


def test_variants_are_worded_as_options_are():
    made = stages(
        (
            "a",
            info("foreground", match_area=False, early_stop=True, phi=1 / 3, top_k=None),
            [record(region="foreground")],
        ),
        ("b", info("foreground", match_area=True, early_stop=False, phi=0.0, top_k=3), [record(region="foreground")]),
    )
    expected = ["early-stop, phi=0.333333, top-k=-", "no-early-stop, match-area, phi=0, top-k=3"]
    assert [setup.variant for setup in combine(made)[0]] == expected


def test_opposites_differ_in_one_option():
    made = [info(), info(constraint="revert"), info(constraint="revert", population=9)]
    setups, _ = combine(stages(*((str(n), what, [record()]) for n, what in enumerate(made))))
    assert list(opposites(setups, "constraint", "encode", "revert")) == [(setups[0], setups[1])]


# --- accuracy


def test_accuracy_by_hand_and_ties_go_to_the_lower_index():
    logits = np.array([[3, 1, 2, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]], np.float32)
    found = accuracy([(logits[:2], np.array([0, 1])), (logits[2:], np.array([1]))], 7)
    assert (found.top1.successes, found.top1.n) == (1, 3)
    assert found.top5.successes == 2
    assert [share and (share.successes, share.n) for share in found.per_class[:3]] == [(1, 1), (0, 2), None]


@given(st.integers(0, 2**32 - 1))
def test_accuracy_is_that_of_argmax_and_sorting(seed):
    draw = np.random.default_rng(seed)
    logits = draw.integers(0, 4, (30, 8)).astype(np.float32)
    labels = draw.integers(0, 8, 30)
    found = accuracy([(logits, labels)], 8)
    assert found.top1.successes == (logits.argmax(1) == labels).sum()
    best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert found.top5.successes == (best == labels[:, None]).any(1).sum()


def test_accuracy_of_nothing():
    assert accuracy([], 3).top1 is None


# --- differences


def changed(base: AttackRecord, **changes) -> AttackRecord:
    return msgspec.structs.replace(base, **changes)


def history(accepted: list[list[int]], close: list[list[int]] | None = None) -> dict[str, np.ndarray]:
    packed = [np.packbits(np.array(bits, bool), axis=1) for bits in (accepted, close or np.zeros_like(accepted))]
    return {"accepted": packed[0], "close": packed[1], "best": np.zeros(len(accepted) + 1, np.float32)}


def with_after(base: AttackRecord, top5: list[tuple[str, float]], **changes) -> AttackRecord:
    ranks = [(name, share, rank) for rank, (name, share) in enumerate(top5, 1)]
    name, share = top5[0]
    after = msgspec.structs.replace(base.after, class_=name, confidence=share, top5=top5, of_before_top5=ranks)
    return changed(base, after=after, **changes)


def test_confidences_agree_within_a_tie_and_not_beyond():
    one = with_after(record(to="dog"), [("dog", 0.5), ("cat", 0.3), ("ship", 0.2)])
    assert differences.agree(one, with_after(one, [("dog", 0.500009), ("cat", 0.299991), ("ship", 0.2)]))
    assert not differences.agree(one, with_after(one, [("dog", 0.50002), ("cat", 0.3), ("ship", 0.2)]))
    assert not differences.agree(one, changed(one, queries=1))


def test_classes_that_tie_may_swap_ranks():
    one = with_after(record(to="dog"), [("dog", 0.5), ("cat", 0.250001), ("ship", 0.249999)])
    two = with_after(one, [("dog", 0.5), ("ship", 0.250001), ("cat", 0.249999)])
    assert differences.agree(one, two)
    far = with_after(one, [("dog", 0.5), ("cat", 0.26), ("ship", 0.24)])
    assert not differences.agree(far, with_after(one, [("dog", 0.5), ("ship", 0.26), ("cat", 0.24)]))
    # The fifth and the unseen sixth class tie.
    assert differences.agree(one, with_after(one, [("dog", 0.5), ("cat", 0.250001), ("frog", 0.249999)]))
    assert not differences.agree(one, with_after(one, [("dog", 0.5), ("frog", 0.250001), ("ship", 0.1)]))


def traced(one: AttackRecord, two: AttackRecord, histories=None) -> tuple[str, int | None]:
    found = differences.trace(one, two, histories)
    return found.cause, found.generation


ONE = record(to="dog", generations=4, confidence=0.6)
TWO = changed(ONE, generations=3)
SAME = [[1, 0, 1], [0, 0, 1], [1, 1, 1]]


def test_a_tied_comparison_explains_what_follows():
    other = [SAME[0], [0, 1, 1], [0, 0, 0]]
    close = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert traced(ONE, TWO, (history(SAME), history(other, close))) == ("float tie", 3)
    assert traced(ONE, TWO, (history(SAME, close), history(other))) == ("float tie", 3)


def test_a_comparison_that_was_no_tie_is_unexplained():
    other = [SAME[0], [1, 1, 1], SAME[2]]
    close = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]  # explains one of the two slots
    assert traced(ONE, TWO, (history(SAME), history(other, close))) == ("unexplained", 3)


def test_another_end_needs_a_tie_at_the_end():
    assert traced(ONE, TWO, (history(SAME), history(SAME[:2]))) == ("unexplained", None)
    tied = with_after(TWO, [("dog", 0.400001), ("cat", 0.4), ("ship", 0.2)])
    assert traced(ONE, tied, (history(SAME), history(SAME[:2]))) == ("float tie", None)


def test_another_candidate_needs_a_label_as_likely():
    pixels = [changed(ONE.pixels[0], x=9)]
    alike = with_after(ONE, [("dog", 0.65), ("cat", 0.2), ("ship", 0.15)], pixels=pixels)
    assert traced(ONE, alike, (history(SAME), history(SAME))) == ("float tie", None)
    unlike = with_after(ONE, [("dog", 0.65), ("cat", 0.15), ("ship", 0.2)], pixels=pixels)
    assert traced(ONE, unlike, (history(SAME), history(SAME))) == ("unexplained", None)


def test_the_clean_image_may_tie():
    sure, unsure = record(), record(outcome="misclassified")
    assert traced(sure, unsure) == ("unexplained", None)
    top = [("cat", 0.400001), ("dog", 0.4), ("ship", 0.199999)]
    tied = changed(unsure, before=msgspec.structs.replace(unsure.before, confidence=0.400001, top5=top))
    assert traced(sure, tied) == ("float tie", None)


def test_another_seed_is_no_tie():
    assert traced(ONE, changed(ONE, seed=1), (history(SAME), history(SAME))) == ("unexplained", None)


def test_histories_of_other_sizes_are_unexplained():
    wide = history([[1] * 20] * 3)
    assert traced(ONE, TWO, (history(SAME), wide)) == ("unexplained", None)


def test_histories_without_traces_are_as_none():
    assert traced(ONE, TWO, ({"best": np.zeros(3)}, {"best": np.zeros(3)})) == ("unexplained", None)


def test_compare_ignores_the_order_and_names_what_is_missing():
    a = [record("1.png"), record("2.png"), record("3.png")]
    b = [record("4.png"), record("3.png", queries=7), record("1.png")]
    found = differences.compare(a, b, lambda one, two: None)
    assert [key[0] for key in found.identical] == ["1.png"]
    assert [difference.key[0] for difference in found.of("unexplained")] == ["3.png"]
    assert ([key[0] for key in found.only_first], [key[0] for key in found.only_second]) == (["2.png"], ["4.png"])


def test_attacks_on_the_whole_image_count_in_every_variant_that_they_fit() -> None:
    whole = ("whole", info(), [record()])
    grown = [(f"grow{n}", info("foreground", grow=n), [record(region="foreground")]) for n in (0, 2)]
    for order in ([whole, *grown], [*grown, whole]):
        setups, notes = combine(stages(*order))
        assert [setup.regions for setup in setups] == [["original", "foreground"]] * 2
        assert [setup.variant for setup in setups] == ["", "grow=2"]
        assert notes == []


def test_searches_that_differ_in_more_than_the_constraint_say_so() -> None:
    paper = info(constraint="revert", strategy="rand1bin", stop="confidence")
    ours = info(constraint="encode", strategy="rand1bin", stop="hit")
    setups, _ = combine(stages(("a", ours, [record()]), ("b", paper, [record()])))
    assert [setup.variant for setup in setups] == ["stop=hit", "stop=confidence"]
    plain = info(constraint="revert", strategy="rand1bin", stop="hit")
    setups, _ = combine(stages(("a", ours, [record()]), ("b", plain, [record()])))
    assert [setup.variant for setup in setups] == ["", ""]
