"""Sparse-RS, and the drawing of pixels and colours that it shares with chance."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import combinations
from typing import Any

import known
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import recorded
from test_de import SIZE, classifier_of, linear_classifier, random_weight
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.objectives import cross_entropy_of, margin_of, margin_or_cross_entropy_of
from pixelsem.attacks.sampling import RegionPixels, Uniforms, colours_of, numbers_left, subsets
from pixelsem.attacks.settings_black_box import SparseRSSettings
from pixelsem.attacks.sparse_rs import pixels_replaced, sparse_rs
from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models import Classifier


def run(classifier: Classifier, searches: Searches, how: SparseRSSettings, batch_size: int = 256) -> list[Outcome]:
    evaluator = Evaluator(classifier, device="cpu", batch_size=batch_size)
    return sorted(sparse_rs(searches, evaluator, how), key=lambda outcome: outcome.search)


pictures = partial(known.random_images, size=(SIZE, SIZE))


def ring() -> Tensor:
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, 2:9, 3:11] = True
    region[0, 4:6, 4:6] = False
    return region


def optimum(weight: Tensor, image: Tensor, region: Tensor, pixels: int) -> float:
    """The largest change of (logit 1 − logit 0) that k pixels can bring: of each its best corner colour."""
    slope = weight[1] - weight[0]
    unit = image.float() / 255
    gain = torch.where(slope > 0, slope * (1 - unit), -slope * unit).sum(0)
    return float(gain[region].topk(pixels).values.sum())


def gained(weight: Tensor, image: Tensor, adversarial: Tensor) -> float:
    change = (adversarial.float() - image.float()) / 255
    return float((change * (weight[1] - weight[0])).sum())


def check_optimum(pixels: int, queries: int, regions: Tensor, **options: Any) -> None:
    weight, count = random_weight(2), len(regions)
    images, labels = pictures(count), torch.zeros(count, dtype=torch.int64)
    classifier = linear_classifier(weight, torch.tensor([100.0, 0.0]))  # nothing can flip it: all queries are used
    targets = torch.ones(count, dtype=torch.int64) if options.pop("targeted", False) else None
    searches = Searches.of(images, labels, regions=regions, targets=targets)
    outcomes = run(classifier, searches, SparseRSSettings(pixels=pixels, queries=queries, **options))
    for image, region, outcome in zip(images, regions, outcomes, strict=True):
        best = optimum(weight, image, region, pixels)
        assert 0.95 * best <= gained(weight, image, outcome.adversarial) <= best + 1e-3
        changed = (outcome.adversarial != image).any(0)
        assert int(changed.sum()) <= pixels
        assert bool(region[changed].all())
        colours = outcome.adversarial[:, changed]
        assert bool(((colours == 0) | (colours == 255)).all())
        assert outcome.candidates == outcome.generations == queries
        assert outcome.history["best"].shape == (queries,)
        assert (np.diff(outcome.history["best"]) <= 0).all()


@pytest.mark.parametrize(("pixels", "targeted"), [(1, True), (3, False)])
def test_the_optimum_of_a_linear_model_is_reached(pixels: int, targeted: bool) -> None:
    regions = ring().repeat(4, 1, 1)
    regions[:, 5:] = False  # 20 pixels are left
    check_optimum(pixels, 1500, regions, targeted=targeted)


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [1, 3, 5])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_optimum_is_reached_with_the_papers_queries(pixels: int, targeted: bool) -> None:
    check_optimum(pixels, 10_000, torch.ones(8, SIZE, SIZE, dtype=torch.bool), targeted=targeted)


@pytest.mark.parametrize("replacement", ["any", "others"])
def test_only_where_any_pixel_may_take_the_place_can_one_change_its_colour_alone(replacement: str) -> None:
    """A region of one pixel and another that never helps: the first start decides, or it does not."""
    weight = torch.zeros(2, 3, SIZE, SIZE)
    weight[1, :, 5, 5] = torch.tensor([1.0, 2.0, 4.0])
    images = torch.full((16, 3, SIZE, SIZE), 1, dtype=torch.uint8)
    region = torch.zeros(16, SIZE, SIZE, dtype=torch.bool)
    region[:, 5, 5:7] = True
    images[torch.arange(16), 0, 0, 0] = torch.arange(16, dtype=torch.uint8)  # so that each draws other numbers
    searches = Searches.of(images, torch.zeros(16, dtype=torch.int64), regions=region)
    how = SparseRSSettings(queries=200, replacement=replacement)  # type: ignore[arg-type]
    outcomes = run(linear_classifier(weight, torch.tensor([100.0, 0.0])), searches, how)
    reached = sum(outcome.adversarial[:, 5, 5].tolist() == [255, 255, 255] for outcome in outcomes)
    assert reached == 16 if replacement == "any" else 0 < reached < 16


def test_a_targeted_search_reaches_its_target_and_no_other_class() -> None:
    weight, image = random_weight(4, seed=5), pictures(1)
    clean = (image[0].float() / 255 * weight).flatten(1).sum(1)
    classifier = linear_classifier(weight, -clean + torch.tensor([1.5, 0.0, 0.0, 0.0]))
    labels, targets = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 3])
    for loss in ("auto", "margin", "cross-entropy"):
        how = SparseRSSettings(pixels=3, queries=1000, loss=loss)  # type: ignore[arg-type]
        outcomes = run(classifier, Searches.of(image.repeat(3, 1, 1, 1), labels, targets=targets), how)
        reached = [int(classifier(o.adversarial[None].float() / 255).argmax()) for o in outcomes]
        assert reached == [1, 2, 3]
        assert max(o.candidates for o in outcomes) < 1000


@pytest.mark.parametrize("allowed", [1, 2, 7])
def test_a_region_smaller_than_k_is_searched_all_the_same(allowed: int) -> None:
    weight, image = random_weight(2), pictures(1)
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, 5, 2 : 2 + allowed] = True
    classifier = linear_classifier(weight, torch.tensor([100.0, 0.0]))
    searches = Searches.of(image, torch.tensor([0]), regions=region)
    outcome = run(classifier, searches, SparseRSSettings(pixels=4, queries=1000))[0]
    changed = (outcome.adversarial != image[0]).any(0)
    assert bool(region[0][changed].all())
    assert int(changed.sum()) <= min(4, allowed)
    best = optimum(weight, image[0], region[0], min(4, allowed))
    assert gained(weight, image[0], outcome.adversarial) >= 0.95 * best


def test_no_picture_goes_through_the_model_twice_and_queries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(1)
    image[0, :, 4, 4] = 255  # so that one corner colour changes nothing
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, 4, 4:6] = True
    seen = recorded(monkeypatch, image)
    classifier = linear_classifier(random_weight(2), torch.tensor([100.0, 0.0]))
    searches = Searches.of(image, torch.tensor([0]), regions=region)
    outcome = run(classifier, searches, SparseRSSettings(queries=400))[0]
    assert outcome.candidates == 400
    assert outcome.queries == len(seen) == len(set(seen)) == 15  # 2 pixels × 8 corners, less the clean picture


@pytest.mark.parametrize(("step", "restarts"), [(1, 1), (7, 1), (1, 3), (64, 2)])
def test_the_budget_is_used_and_not_exceeded(step: int, restarts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(1)
    seen = recorded(monkeypatch, image)
    classifier = linear_classifier(random_weight(2), torch.tensor([100.0, 0.0]))
    how = SparseRSSettings(pixels=3, queries=50, candidates_per_step=step, restarts=restarts)
    outcome = run(classifier, Searches.of(image, torch.tensor([0])), how)[0]
    assert outcome.candidates == how.budget == 50 * restarts
    assert outcome.generations == restarts * -(-50 // step)
    assert outcome.queries == len(seen) <= how.budget
    losses = outcome.history["best"].reshape(restarts, -1)
    assert (np.diff(losses, axis=1) <= 0).all()
    logits = classifier(outcome.adversarial[None].float() / 255)[0].detach()
    assert float(logits[0] - logits[1]) == pytest.approx(float(losses.min()), abs=1e-4)


def test_a_new_start_forgets_the_old_one() -> None:
    """The first steps of every start change all that a start changes: k pixels, not some of the last ones."""
    classifier = linear_classifier(random_weight(2), torch.tensor([100.0, 0.0]))
    how = SparseRSSettings(pixels=3, queries=200, restarts=3)
    losses = run(classifier, Searches.of(pictures(1), torch.tensor([0])), how)[0].history["best"].reshape(3, 200)
    assert (losses[1:, 0] > losses[:-1, -1]).all()
    assert len(set(losses[:, 0].tolist())) == 3


class _Hole(nn.Module):
    """Class 1 where the pixel (5, 7) is pure red, else class 0."""

    def forward(self, image: Tensor) -> Tensor:
        red = image[:, 0, 7, 5] - image[:, 1:, 7, 5].sum(1)
        return torch.stack([torch.zeros_like(red), 20 * (red - 0.5)], 1)


def test_it_ends_with_the_first_hit_unless_told_otherwise() -> None:
    image, classifier = torch.full((1, 3, SIZE, SIZE), 100, dtype=torch.uint8), classifier_of(_Hole(), 2)
    outcomes = {}
    region = ring()
    for early in (True, False):
        how = SparseRSSettings(queries=1000, early_stop=early)
        outcomes[early] = run(classifier, Searches.of(image, torch.tensor([0]), regions=region), how)[0]
        assert outcomes[early].adversarial[:, 7, 5].tolist() == [255, 0, 0]
    early, late = outcomes[True], outcomes[False]
    assert early.candidates < late.candidates == 1000
    assert np.array_equal(late.history["best"][: early.generations], early.history["best"])
    assert early.history["accepted"].shape == early.history["close"].shape == (early.generations - 1, 1)
    assert early.history["accepted"][-1] == 128  # the hit was accepted


def test_colours_may_be_any() -> None:
    image, weight = pictures(1), random_weight(2)
    classifier = linear_classifier(weight, torch.tensor([100.0, 0.0]))
    how = SparseRSSettings(pixels=5, queries=50, colours="uniform")
    outcome = run(classifier, Searches.of(image, torch.tensor([0])), how)[0]
    colours = outcome.adversarial[:, (outcome.adversarial != image[0]).any(0)]
    assert int(((colours > 0) & (colours < 255)).sum()) > 0


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_search_is_the_same_in_any_company_and_batch(batch: int) -> None:
    images = pictures(5, seed=8)
    classifier = linear_classifier(random_weight(3, seed=2), torch.zeros(3))
    labels = classifier(images.float() / 255).argmax(1)
    regions = torch.from_numpy(np.random.default_rng(1).random((5, SIZE, SIZE)) < 0.4)
    how = SparseRSSettings(pixels=2, queries=100, restarts=2)
    together = run(classifier, Searches.of(images, labels, regions=regions), how, batch_size=batch)
    assert len({outcome.generations for outcome in together}) > 1  # some leave while others go on
    for index, outcome in enumerate(together):
        one = slice(index, index + 1)
        alone = run(classifier, Searches.of(images[one], labels[one], regions=regions[one]), how)[0]
        assert torch.equal(alone.adversarial, outcome.adversarial)
        assert (alone.queries, alone.generations) == (outcome.queries, outcome.generations)
        assert np.array_equal(alone.history["accepted"], outcome.history["accepted"])


def test_asking_to_stop_leaves_unfinished_searches_out() -> None:
    calls: list[int] = []
    progress = Progress(on_change=lambda p: calls.append(p.queries), should_stop=lambda: len(calls) >= 3)
    evaluator = Evaluator(linear_classifier(random_weight(2), torch.tensor([100.0, 0.0])), device="cpu", batch_size=8)
    assert list(sparse_rs(Searches.of(pictures(1), torch.tensor([0])), evaluator, SparseRSSettings(), progress)) == []
    assert calls == [1, 2, 3]


def test_the_schedule_is_the_papers() -> None:
    """Croce et al. 2022, L0: α = 0.3 of k = 150 pixels, divided by 2, 4, 5, 6, 8, 10, 12, 15 and 20."""
    how = SparseRSSettings(pixels=150, queries=10_000)
    starts = [1, 50, 51, 200, 201, 500, 501, 1001, 2001, 4001, 6001, 8000, 8001, 9999]
    assert [pixels_replaced(query, how) for query in starts] == [22, 22, 11, 11, 9, 9, 7, 5, 4, 3, 3, 3, 2, 2]
    half = SparseRSSettings(pixels=150, queries=5000)
    assert [pixels_replaced(query // 2, half) for query in (52, 202, 8002)] == [11, 9, 2]
    constant = SparseRSSettings(pixels=150, schedule="constant")
    assert {pixels_replaced(query, constant) for query in starts} == {22}
    assert pixels_replaced(1, SparseRSSettings(pixels=5)) == 1


@pytest.mark.parametrize("replacement", ["any", "others"])
def test_a_step_replaces_as_many_pixels_as_the_schedule_says(replacement: str) -> None:
    """The image is grey, so every one of the k pixels shows."""
    image = torch.full((1, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    how = SparseRSSettings(pixels=20, queries=60, alpha=1.0, schedule="constant", replacement=replacement)  # type: ignore[arg-type]
    classifier = linear_classifier(random_weight(2), torch.tensor([100.0, 0.0]))
    evaluator = Evaluator(classifier, device="cpu", batch_size=1, scorer="dense")
    seen: list[Tensor] = []
    asked = evaluator.score

    def score(edits: Edits) -> Tensor:
        seen.append((edits.render(image)[0] != 100).any(0))
        return asked(edits)

    evaluator.score = score  # type: ignore[method-assign]
    outcome = next(iter(sparse_rs(Searches.of(image, torch.tensor([0])), evaluator, how)))
    accepted = np.unpackbits(outcome.history["accepted"], axis=1)[:, 0].astype(bool)
    assert accepted.any()
    assert not accepted.all()
    current, moved = seen[0], list[int]()
    for candidate, replaced in zip(seen[1:], accepted, strict=True):
        assert int(candidate.sum()) == 20
        moved.append(int((candidate & ~current).sum()))
        assert moved[-1] == int((current & ~candidate).sum())
        current = candidate if replaced else current
    assert max(moved) == 10
    assert min(moved) == 10 if replacement == "others" else 7 <= min(moved) < 10


def test_losses_are_what_the_paper_says() -> None:
    logits = torch.tensor([[2.0, 0.5, 1.0], [0.0, 3.0, 1.0]])
    labels, none, target = torch.tensor([0, 0]), torch.tensor([-1, -1]), torch.tensor([2, 1])
    assert margin_of(logits, labels, none).tolist() == [1.0, -3.0]
    assert margin_of(logits, labels, target).tolist() == [1.0, -2.0]
    confidence = logits.softmax(1)
    torch.testing.assert_close(cross_entropy_of(logits, labels, none), confidence[:, 0].log())
    torch.testing.assert_close(cross_entropy_of(logits, labels, target), -confidence[[0, 1], [2, 1]].log())
    mixed = margin_or_cross_entropy_of(logits, labels, torch.tensor([-1, 1]))
    torch.testing.assert_close(mixed, torch.stack([torch.tensor(1.0), -confidence[1, 1].log()]))


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_subsets_are_of_different_numbers_below_the_size(count: int, more: int, seed: int) -> None:
    uniform = torch.from_numpy(np.random.default_rng(seed).random((7, 3, count)))
    sizes = torch.arange(7)[:, None] + count + more
    picks = subsets(uniform, sizes)
    assert bool(((picks >= 0) & (picks < sizes[..., None])).all())
    assert bool((picks.sort(-1).values.diff(dim=-1) > 0).all())


def test_every_subset_is_as_likely() -> None:
    draws = 20_000
    picks = subsets(torch.from_numpy(np.random.default_rng(0).random((draws, 3))), 6)
    counts = Counter(tuple(sorted(row)) for row in picks.tolist())
    assert counts.keys() == set(combinations(range(6), 3))
    expected = draws / 20
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 43.8  # chi², 19 degrees of freedom, p = 0.001


@given(st.sets(st.integers(0, 30), min_size=1, max_size=12), st.lists(st.integers(0, 25), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_numbers_left_are_those_not_taken(taken: set[int], index: list[int]) -> None:
    left = [number for number in range(60) if number not in taken]
    found = numbers_left(torch.tensor(index), torch.tensor(list(taken)))
    assert found.tolist() == [left[i] for i in index]


def test_region_pixels_are_all_pixels_of_the_region_in_turn() -> None:
    regions = torch.from_numpy(np.random.default_rng(2).random((4, 5, 7)) < 0.3)
    regions[0] = False
    regions[0, 3, 2] = regions[0, 1, 6] = True
    table = RegionPixels(regions, at_least=5)
    for row, region in enumerate(regions):
        places = region.flatten().nonzero()[:, 0].tolist()
        size = int(table.sizes[row])
        assert size == max(5, len(places))
        numbers = torch.arange(size).expand(4, -1) % table.sizes[:, None]
        assert table.at(numbers)[row].tolist() == [places[i % len(places)] for i in range(size)]


def test_uniform_numbers_are_those_of_the_generators_however_taken() -> None:
    def rngs() -> list[np.random.Generator]:
        return [np.random.Generator(np.random.Philox(key=seed)) for seed in (1, 2)]

    source = Uniforms(rngs(), torch.device("cpu"))
    taken = [source.take(count) for count in (3, 5000, 1, 4096, 200)]
    expected = np.stack([rng.random(9300) for rng in rngs()])
    assert np.array_equal(torch.cat(taken, 1).numpy(), expected)
    source.keep(torch.tensor([False, True]))
    assert np.array_equal(source.take(700).numpy()[0], [*rngs()[1].random(10_000)][9300:])


def test_colours_cover_corners_and_all_values_evenly() -> None:
    uniform = torch.from_numpy(np.random.default_rng(0).random((40_000, 3)))
    corners = Counter(map(tuple, colours_of(uniform, "corners").tolist()))
    assert len(corners) == 8
    assert sum((n - 5000) ** 2 / 5000 for n in corners.values()) < 24.3  # chi², 7 degrees of freedom, p = 0.001
    values = torch.bincount(colours_of(uniform, "uniform").flatten().long(), minlength=256).double()
    assert float(((values - 468.75) ** 2 / 468.75).sum()) < 330.5  # 255 degrees of freedom


def test_settings_out_of_range_are_refused() -> None:
    bad: list[dict[str, Any]] = [{"pixels": 0}, {"alpha": 1.1}, {"queries": 0}, {"loss": "confidence"}]
    for values in bad:
        with pytest.raises(PixelsemError, match="--" + next(iter(values))):
            SparseRSSettings(**values)
