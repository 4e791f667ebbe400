"""What became of classes, what success costs, and what areas, borders and seeds do: against counts by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from attack_stages import info, record
from scipy.optimize import minimize_scalar

from pixelsem.metrics import areas, classes, effort, ranks, repeats, vulnerability
from pixelsem.metrics.bootstrap import bootstrap, bootstrap_by_image, bootstrap_each, draws
from pixelsem.metrics.setups import AttackStage, alike_but, combine
from pixelsem.records import AttackRecord
from pixelsem.report.areas import borders, borders_table, density_table, matched_table, probabilities_table, seeds_table
from pixelsem.report.classes import class_pairs_table, ranks_table, target_classes_table
from pixelsem.report.effort import effort_table, within_table

TEN = tuple("abcdefghij")


def ranked(image: str, before: np.ndarray, after: np.ndarray, *, success: bool, **changes) -> AttackRecord:
    """Return a record of an image whose confidences (float [10]) were ``before`` and are ``after``."""
    old, new = np.argsort(-before, kind="stable"), np.argsort(-after, kind="stable").tolist()
    top = [[TEN[c], float(after[c])] for c in new[:5]]
    plain = {
        "label": TEN[old[0]],
        "before": {
            "class": TEN[old[0]], "confidence": float(before.max()),
            "top5": [[TEN[c], float(before[c])] for c in old[:5]],
        },
        "after": {
            "class": top[0][0], "confidence": top[0][1], "top5": top,
            "of_before_top5": [[TEN[c], float(after[c]), new.index(c) + 1] for c in old[:5]],
        },
        "success": success,
    }  # fmt: skip
    return record(image, **(plain | changes))


@pytest.fixture(scope="module")
def confidences() -> np.ndarray:
    """Return confidences before and after of 40 images, float [40, 2, 10]."""
    return np.random.default_rng(0).dirichlet(np.ones(10), size=(40, 2))


@pytest.fixture(scope="module")
def many(confidences) -> list[AttackRecord]:
    return [ranked(f"{n}.png", *pair, success=n % 4 == 0) for n, pair in enumerate(confidences)]


class TestOriginalClasses:
    @pytest.mark.parametrize("succeeded", [True, False])
    def test_against_sorting_every_image_again(self, many, confidences, succeeded):
        found = ranks.original_classes(many, "original", "untargeted", succeeded=succeeded)
        mine = [pair for n, pair in enumerate(confidences) if (n % 4 == 0) == succeeded]
        assert found.images == len(mine) == (10 if succeeded else 30)
        for k in ranks.ORIGINAL:
            drops = [old[c] - new[c] for old, new in mine for c in np.argsort(-old)[:k]]
            assert found.decrease[k].value == pytest.approx(np.mean(drops))
        for k, m in ranks.WITHIN:
            left = sum(len({*np.argsort(-old)[:k]} & {*np.argsort(-new)[:m]}) for old, new in mine)
            assert (found.within[k, m].successes, found.within[k, m].n) == (left, k * len(mine))

    def test_classes_of_one_image_are_not_independent(self, many):
        found = ranks.original_classes(many, "original", "untargeted", succeeded=False)
        assert 29 <= found.within[1, 3].effective_n <= 30
        assert found.within[5, 5].effective_n <= 150

    def test_too_few_classes_for_a_k(self):
        found = ranks.original_classes([record(to="dog")], "original", "untargeted", succeeded=True)
        assert set(found.decrease) == {1, 3}
        assert set(found.within) == {(1, 3), (1, 5), (3, 3), (3, 5)}
        assert found.decrease[1].value == pytest.approx(0.9 - 0.2)

    def test_only_searches_of_the_goal_region_and_outcome_count(self, many):
        others = [record("x.png", "foreground"), record("y.png", target="dog", to="dog"), record("z.png", repeat=1)]
        others += [record("w.png", outcome="misclassified")]
        one = ranks.original_classes(many, "original", "untargeted", succeeded=False)
        assert ranks.original_classes(many + others, "original", "untargeted", succeeded=False) == one
        assert ranks.original_classes(many, "background", "untargeted", succeeded=True) is None

    def test_the_table(self, many):
        setups, _ = combine([AttackStage("s", info(), many)])
        table = ranks_table(setups)
        rows = {row[7]: dict(zip((c.key for c in table.columns), row, strict=True)) for row in table.rows}
        assert list(rows) == ["successful", "unsuccessful"]
        assert rows["unsuccessful"]["n"] == 30
        assert rows["unsuccessful"]["top3_in_top5"].n == 90
        assert rows["successful"]["decrease_top1_low"] < rows["successful"]["decrease_top1"]


def targeted(image: str, *reached: str, tried: tuple[str, ...] = ("dog", "ship"), **changes) -> list[AttackRecord]:
    return [record(image, target=name, to=name if name in reached else None, **changes) for name in tried]


class TestClasses:
    def test_images_by_number_of_targets(self):
        records = [*targeted("1", "dog", "ship"), *targeted("2"), *targeted("3", "ship"), *targeted("4")]
        found = classes.target_classes(records, "original")
        assert [share.successes for share in found] == [2, 1, 1]
        assert {share.n for share in found} == {4}
        assert sum(share.value for share in found) == 1
        assert classes.target_classes([record(to="dog")], "original") == []

    def test_a_number_that_nobody_reaches_is_there(self):
        found = classes.target_classes(targeted("1"), "original")
        assert [share.successes for share in found] == [1, 0, 0]

    def test_untargeted_pairs(self):
        records = [record("1", to="dog"), record("2", to="dog"), record("3", to="ship"), record("4")]
        records += [record("5", label="dog", to="ship"), record("6", repeat=1, to="ship")]
        found = classes.class_pairs(records, "original", "untargeted")
        assert {pair: count for pair, count in found.hits.items() if count} == {
            ("cat", "dog"): 2, ("cat", "ship"): 1, ("dog", "ship"): 1,
        }  # fmt: skip
        assert found.tried == {("cat", "dog"): 4, ("cat", "ship"): 4, ("dog", "ship"): 1}

    def test_targeted_pairs_count_the_target_and_all_that_were_tried(self):
        found = classes.class_pairs([*targeted("1", "dog"), *targeted("2")], "original", "targeted")
        assert found.hits == {("cat", "dog"): 1, ("cat", "ship"): 0}
        assert found.tried == {("cat", "dog"): 2, ("cat", "ship"): 2}

    def test_pairs_add_up_to_the_successes(self, many):
        found = classes.class_pairs(many, "original", "untargeted")
        assert sum(found.hits.values()) == 10

    def test_numbers_are_ordered_by_value_before_words(self):
        assert classes.sort_classes(["10", "b", "9", "a", "b"]) == ["9", "10", "a", "b"]

    def test_all_classes_or_those_that_matter(self, many):
        assert classes.class_names(many, 24) == list(TEN)
        records = [record("1", to="dog"), record("2", to="dog"), record("3", to="ship"), record("4", label="zebra")]
        assert classes.class_names(records, 3) == ["cat", "dog", "ship"]
        assert classes.class_names(records, 2) == ["cat", "dog"]

    def test_tables(self):
        records = [*targeted("1", "dog"), *targeted("2", "dog", "ship")]
        setups, _ = combine([AttackStage("s", info(), records)])
        assert [row[-2:] for row in class_pairs_table(setups).rows] == [[2, 2], [1, 2]]
        assert [(row[-2], row[-1].successes) for row in target_classes_table(setups).rows] == [(0, 0), (1, 1), (2, 1)]


def change(*colours: tuple[list[int], list[int]]) -> list[dict]:
    return [{"x": n, "y": 0, "from": old, "to": new} for n, (old, new) in enumerate(colours)]


class TestEffort:
    def test_distortion_is_per_channel_of_the_changed_pixels(self):
        one = record(to="dog", pixels=change(([0, 10, 20], [30, 10, 5])))
        assert effort.distortion(one) == 15  # (30 + 0 + 15) / 3
        both = record(to="dog", pixels=change(([0, 0, 0], [3, 3, 3]), ([0, 0, 0], [0, 0, 9]), ([7, 7, 7], [7, 7, 7])))
        assert effort.distortion(both) == 3
        assert effort.distortion(record(to="dog", pixels=[])) is None

    def test_averages_are_over_successes(self):
        records = [
            record("1", to="dog", candidates=100, pixels=change(([0, 0, 0], [30, 30, 30]))),
            record("2", to="dog", candidates=300, pixels=change(([0, 0, 0], [60, 60, 60]))),
            record("3", candidates=9000, pixels=change(([0, 0, 0], [255, 255, 255]))),
        ]
        found = effort.effort(records, "original", "untargeted")
        assert (found.evaluations.value, found.evaluations.n, found.distortion.value) == (200, 2, 45)
        assert found.target_classes is None
        reached = effort.effort([*targeted("1", "dog", "ship"), *targeted("2")], "original", "targeted")
        assert (reached.target_classes.value, reached.target_classes.n) == (1, 2)
        assert effort.effort([record()], "original", "untargeted").evaluations is None
        assert effort.effort([], "original", "untargeted") is None

    def test_success_within_queries_is_what_counting_says(self):
        rng = np.random.default_rng(1)
        spent = rng.integers(1, 400, 60).tolist()
        records = [
            record(str(n), to="dog" if n % 3 else None, queries=q if n % 3 else 400) for n, q in enumerate(spent)
        ]
        curve = effort.success_within(records, "original", "untargeted")
        assert curve[0][0] == 0
        assert curve[0][1].successes == 0
        assert curve[-1][0] == 400
        assert curve[-1][1].value == pytest.approx(40 / 60)
        for queries, share in curve:
            assert (share.successes, share.n) == (sum(r.success and r.queries <= queries for r in records), 60)
        assert [q for q, _ in curve] == sorted({0, 400, *(r.queries for r in records if r.success)})

    def test_failures_that_spent_little_stay_in_the_denominator(self):
        records = [record("1", queries=5), record("2", to="dog", queries=50)]
        assert [(q, share.value) for q, share in effort.success_within(records, "original", "untargeted")] == [
            (0, 0), (50, 0.5),
        ]  # fmt: skip

    def test_long_curves_are_thinned_but_keep_their_ends(self):
        records = [record(str(n), to="dog", queries=n + 1) for n in range(1000)]
        curve = effort.success_within(records, "original", "untargeted")
        assert len(curve) == 200
        assert (curve[0][0], curve[-1][0], curve[-1][1].successes) == (0, 1000, 1000)

    def test_searches_for_several_targets_of_one_image_are_clustered(self):
        records = [*targeted("1", "dog", "ship"), *targeted("2")]
        last = effort.success_within(records, "original", "targeted")[-1][1]
        assert (last.value, last.n) == (0.5, 4)
        assert last.effective_n < 4

    def test_ended_curves_keep_their_last_value(self):
        found = effort.mean_fitness([np.array([0.9, 0.1]), np.array([0.8, 0.7, 0.6, 0.5])])
        assert found.mean == pytest.approx([0.85, 0.4, 0.35, 0.3])
        assert found.n == 2
        assert np.all(found.low <= found.mean)
        assert np.all(found.mean <= found.high)
        assert effort.mean_fitness([np.array([0.5])]).low is None
        assert effort.mean_fitness([]) is None

    def test_images_that_succeed_everywhere(self):
        hits = {"original": "12", "foreground": "123", "background": "2"}
        records = [
            record(n, region, to="dog" if n in names else None) for region, names in hits.items() for n in "1234"
        ]
        assert effort.in_every_region(records) == {("2", "cat")}

    def test_tables_leave_out_what_says_nothing_of_success(self):
        records = [record("1", to="dog"), record("2")]
        setups, _ = combine([AttackStage("s", info(early_stop=False), records)])
        assert within_table(setups).rows == []
        assert "went on after their first hit" in effort_table(setups).notes[-1]
        setups, _ = combine([AttackStage("s", info(early_stop=True), records)])
        assert [row[-2] for row in within_table(setups).rows] == [0, 400]


def test_bootstrapping_columns_at_once_is_bootstrapping_each():
    values = np.random.default_rng(2).normal(size=(30, 4))
    means, low, high = bootstrap_each(values)
    for column, expected in enumerate(map(bootstrap, values.T)):
        found = (means[column], low[column], high[column])
        assert found == pytest.approx((expected.value, expected.low, expected.high))


def test_values_of_one_image_are_drawn_together():
    values = np.random.default_rng(2).normal(size=30)
    alone = bootstrap(values)
    # Four times the same values of the same images tell nothing new.
    for times in (1, 4):
        found = bootstrap_by_image(np.tile(values, times), [*range(30)] * times)
        assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
        assert found.n == 30
    # A mean over values, of which some images have more.
    uneven = bootstrap_by_image(np.array([1.0, 1.0, 1.0, 5.0]), ["a", "a", "a", "b"])
    assert (uneven.value, uneven.low, uneven.high, uneven.n) == (2, 1, 5, 2)


def test_targets_that_say_the_same_leave_every_interval_as_it_is():
    """Nine targets of an image that all go alike are as one: no interval may be narrower for them."""
    rng = np.random.default_rng(3)
    hit, cost = rng.random(20) < 0.6, rng.integers(100, 900, 20).tolist()
    one, nine = (
        [
            record(
                f"{n}.png",
                target=target,
                to="dog" if hit[n] else None,
                candidates=cost[n],
                vulnerable_pixels=cost[n] // 9,
            )
            for n in range(20)
            for target in targets
        ]
        for targets in (["a"], list("abcdefghi"))
    )

    def ends(records):
        spent = effort.effort(records, "original", "targeted").evaluations
        left = ranks.original_classes(records, "original", "targeted", succeeded=False)
        dense = vulnerability.density(records)
        return [
            *(spent.low, spent.high, spent.n),
            *(left.decrease[1].low, left.decrease[1].high, left.within[1, 3].low, left.within[1, 3].high),
            *(dense.images.low, dense.images.high, dense.density.low, dense.density.high),
        ]

    assert ends(nine) == pytest.approx(ends(one))


def test_draws_draw_as_many_as_there_are():
    counts = np.concatenate(list(draws(7)))
    assert counts.shape == (2000, 7)
    assert set(counts.sum(1)) == {7}
    assert counts.mean() == 1


def likelihood(density: float, found: dict, times=None) -> float:
    return -sum(
        count * (math.log(-math.expm1(-density * one.area)) if one.success else -density * one.area)
        for count, one in zip(itertools.repeat(1) if times is None else times, found.values(), strict=False)
        if count
    )


class TestDensity:
    @pytest.fixture
    def found(self) -> dict[tuple[str, str], areas.Searched]:
        rng = np.random.default_rng(3)
        sizes = rng.uniform(0.05, 0.9, 300)
        hits = rng.random(300) < 1 - np.exp(-2 * sizes)
        return {
            (str(n), "cat"): areas.Searched(a, bool(h)) for n, (a, h) in enumerate(zip(sizes, hits, strict=True))
        }  # fmt: skip

    def test_is_the_most_likely_one_and_covers_the_truth(self, found):
        best = minimize_scalar(likelihood, args=(found,), bounds=(1e-6, 50), method="bounded", options={"xatol": 1e-9})
        mine = areas.density(found)
        assert mine.density.value == pytest.approx(best.x, rel=1e-6)
        assert mine.density.low < 2 < mine.density.high
        for end in (mine.density.low, mine.density.high):
            assert 2 * (likelihood(end, found) - likelihood(best.x, found)) == pytest.approx(3.8414588, rel=1e-5)
        assert mine.images == 300
        assert mine.area.value == pytest.approx(np.mean([one.area for one in found.values()]))

    def test_resamples_are_their_own_most_likely_ones(self, found):
        sizes = np.array([one.area for one in found.values()])
        hits = np.array([one.success for one in found.values()], float)
        times = next(draws(300))[:5]
        for row, value in zip(times, areas._densities(times, sizes, hits), strict=True):
            best = minimize_scalar(likelihood, args=(found, row), bounds=(1e-6, 50), method="bounded")
            assert value == pytest.approx(best.x, rel=2e-3)

    def test_of_one_area_is_the_formula_turned_round(self):
        found = {(str(n), "cat"): areas.Searched(0.25, n < 3) for n in range(4)}
        assert areas.density(found).density.value == pytest.approx(-math.log(1 - 3 / 4) / 0.25)

    def test_nothing_and_everything(self):
        none = areas.density({("1", "cat"): areas.Searched(0.5, False)})
        every = areas.density({(str(n), "cat"): areas.Searched(0.5, True) for n in range(3)})
        half_chi = 3.841458820694124 / 2  # of one degree of freedom, at 95 %
        assert (none.density.value, none.density.low) == (0, 0)
        assert none.density.high == pytest.approx(half_chi / 0.5)
        assert math.isinf(every.density.value)
        assert math.isinf(every.density.high)
        assert -3 * math.log(-math.expm1(-every.density.low / 2)) == pytest.approx(half_chi)
        assert areas.density({}) is None

    def test_a_region_that_is_only_bigger_has_the_same_density(self):
        rng = np.random.default_rng(4)
        big = {str(n): areas.Searched(0.6, bool(rng.random() < 1 - math.exp(-0.9))) for n in range(4000)}
        small = {str(n): areas.Searched(0.2, bool(rng.random() < 1 - math.exp(-0.3))) for n in range(4000)}
        assert sum(one.success for one in big.values()) > 2 * sum(one.success for one in small.values())
        ratio = areas.density_ratio(big, small)
        assert ratio.low < 1 < ratio.high
        assert ratio.high / ratio.low < 1.3

    def test_a_ratio_needs_images_and_a_bound(self):
        hit, miss = areas.Searched(0.5, True), areas.Searched(0.5, False)
        assert areas.density_ratio({"1": hit}, {"2": miss}) is None
        assert areas.density_ratio({"1": hit, "2": miss}, {"1": miss, "2": miss}) is None
        assert areas.density_ratio({"1": hit}, {"1": miss}) is None
        swapped = areas.density_ratio({"1": hit, "2": miss}, {"1": miss, "2": hit})
        assert swapped.value == 1
        assert (swapped.low, swapped.high) == (0, math.inf)

    def test_the_table_says_no_number_where_there_is_no_bound(self):
        setups, _ = combine([AttackStage("s", info("foreground"), [record("1", "foreground", to="dog")])])
        ((*_, area, share, value, low, high, ratio, _, _),) = density_table(setups).rows
        assert (area, share.value) == (0.4, 1)
        assert (value, high, ratio) == (None, None, None)
        assert low > 0


def run(name: str, hits: dict[str, str], images: str = "1234", seed: int = 0, **options) -> AttackStage:
    """Return a stage of some regions; ``hits`` names the images that succeed in each."""
    made = [
        record(n, region, to="dog" if n in names else None, seed=seed, **options.get("record", {}))
        for region, names in hits.items()
        for n in images
    ]
    options = {key: value for key, value in options.items() if key != "record"}
    return AttackStage(name, info("all", seed=seed, **options), made)


REGIONS = {"match_area": False, "grow": 0, "shrink": 0, "flagged": "skip"}


class TestRegionsCompared:
    def test_equal_areas_beside_own_areas_on_the_same_images(self):
        own = run("own", {"foreground": "123", "background": "1"}, **REGIONS)
        equal = run(
            "equal", {"foreground": "1", "background": "1"}, "123", **REGIONS | {"match_area": True},
            record={"region_pixels": 40},
        )  # fmt: skip
        setups, _ = combine([own, equal])
        table = matched_table(setups)
        rows = [dict(zip((c.key for c in table.columns), row, strict=True)) for row in table.rows]
        assert [row["areas"] for row in rows] == ["own", "equal"]
        assert [row["n"] for row in rows] == [3, 3]
        assert [row["foreground_area"] for row in rows] == pytest.approx([0.4, 0.4])
        assert [row["background_area"] for row in rows] == pytest.approx([0.6, 0.4])
        assert [(row["foreground"].successes, row["background"].successes) for row in rows] == [(3, 1), (1, 1)]
        assert [row["difference"] for row in rows] == pytest.approx([2 / 3, 0])
        assert rows[0]["variant"] is None
        assert matched_table(setups[:1]).rows == []

    def test_other_differences_are_no_match(self):
        own = run("own", {"foreground": "1"}, **REGIONS)
        equal = run("equal", {"foreground": "1"}, **REGIONS | {"match_area": True}, population=10)
        setups, _ = combine([own, equal])
        assert alike_but(setups, "match_area") == []

    def test_borders_go_from_inwards_to_outwards(self):
        stages = [
            run("grown", {"foreground": "1234"}, **REGIONS | {"grow": 2}),
            run("own", {"foreground": "12"}, **REGIONS),
            run("shrunk", {"foreground": "1"}, "123", **REGIONS | {"shrink": 1}),
        ]
        setups, _ = combine(stages)
        found = borders(setups)
        assert [(one.offset, one.success.successes, one.success.n) for one in found] == [
            (-1, 1, 3),
            (0, 2, 4),
            (2, 4, 4),
        ]
        assert [one.change and one.change.difference for one in found] == [pytest.approx(-1 / 3), None, 0.5]
        table = borders_table(setups)
        assert [row[7] for row in table.rows] == [-1, 0, 2]
        assert {row[4] for row in table.rows} == {None}
        assert borders(combine(stages[:1])[0]) == []

    def test_seeds_and_repeats_are_searches(self):
        first = run("0", {"original": "12"}, seed=0)
        second = run("1", {"original": "1"}, "123", seed=1)
        repeated = AttackStage("0", first.info, [*first.records, *(record(n, repeat=1, to="dog") for n in "123")])
        found = repeats.seed_variance([*repeated.records, *second.records], "original")
        shares = [2 / 3, 1, 1 / 3]
        assert (found.searches, found.images) == (3, 3)
        assert (found.mean, found.deviation) == pytest.approx((np.mean(shares), np.std(shares, ddof=1)))
        assert (found.least, found.most) == (1 / 3, 1)
        assert (found.never, found.sometimes, found.always) == (0, 2, 1)
        assert repeats.seed_variance(first.records, "original") is None

    def test_stages_with_other_seeds_become_one_row(self):
        stages = [
            run("a", {"foreground": "12"}, seed=0, **REGIONS),
            run("b", {"foreground": "1"}, seed=1, **REGIONS),
        ]
        setups, _ = combine(stages)
        assert len(setups) == 2
        (row,) = seeds_table(setups).rows
        assert row[4:8] == [None, "foreground", 2, 4]
        chances = {row[6]: row[-1] for row in probabilities_table(setups).rows}
        assert {image: (share.successes, share.n) for image, share in chances.items()} == {
            "1": (2, 2), "2": (1, 2), "3": (0, 2), "4": (0, 2),
        }  # fmt: skip
        assert probabilities_table(setups[:1]).rows == []

    def test_seeds_of_the_whole_image_are_compared_whether_or_not_regions_are_there(self):
        front = run("front", {"foreground": "1"}, seed=0, **REGIONS)
        whole = [
            AttackStage(f"whole{seed}", info("original", seed=seed), run("", {"original": hits}, seed=seed).records)
            for seed, hits in enumerate(("12", "1", "123"))
        ]
        for stages in (whole, [front, *whole]):
            (row,) = seeds_table(combine(stages)[0]).rows
            assert row[5:8] == ["original", 3, 4]
            assert row[8:10] == pytest.approx([0.5, 0.25])

    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
    def test_regions_attacked_with_the_same_seed_stand_together(self, order):
        made = [
            AttackStage(
                f"{region}{seed}", info(region, seed=seed, **REGIONS), run("", {region: "1"}, seed=seed).records
            )
            for region in ("original", "background")
            for seed in (0, 1)
        ]
        made += [
            run("all0", {"foreground": "1"}, seed=0, **REGIONS),
            run("all1", {"foreground": "2"}, seed=1, **REGIONS),
        ]
        setups, _ = combine([*(made[place] for place in order), *made[4:]])
        assert sorted((setup.seed, sorted(setup.stages)) for setup in setups) == [
            (seed, [f"all{seed}", f"background{seed}", f"original{seed}"]) for seed in (0, 1)
        ]
