"""CMA-ES against another implementation, and the attack that it makes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known import recorded
from test_de import SIZE, classifier_of, linear_classifier, random_weight
from test_sparse_rs import gained, optimum, pictures, ring
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Searches
from pixelsem.attacks.cma_es import cma_es, mirrored
from pixelsem.attacks.covariance import CovarianceAdaptation
from pixelsem.attacks.settings_black_box import CMASettings
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models import Classifier

Objective = Callable[[Tensor], Tensor]


def sphere(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def ellipsoid(x: Tensor) -> Tensor:
    return (10.0 ** torch.linspace(0, 4, x.shape[-1], dtype=x.dtype) * x.square()).sum(-1)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(-1)


def philox(count: int) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(key=seed)) for seed in range(count)]


def starts(count: int, dims: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((count, dims)))


def generations_here(objective: Objective, start: Tensor, offspring: int, limit: int) -> Tensor:
    """Return in which generation each search came below 1e-8, int64 [n]; ``limit`` where it did not."""
    search = CovarianceAdaptation(philox(len(start)), start, sigma=0.3, offspring=offspring)
    reached = torch.full((len(start),), limit)
    for generation in range(1, limit):
        fitness = objective(search.ask())
        search.tell(fitness)
        reached = torch.where((fitness.amin(1) < 1e-8) & (reached == limit), generation, reached)
        if (reached < limit).all():
            break
    return reached


def generations_there(objective: Objective, start: Tensor, offspring: int, limit: int) -> Tensor:
    """The same by the cmaes package."""
    cmaes = pytest.importorskip("cmaes")
    reached = torch.full((len(start),), limit)
    for seed, mean in enumerate(start.numpy()):
        search = cmaes.CMA(mean=mean, sigma=0.3, seed=seed, population_size=offspring)
        for generation in range(1, limit):
            asked = np.stack([search.ask() for _ in range(offspring)])
            values = objective(torch.from_numpy(asked)).numpy()
            search.tell(list(zip(asked, values.tolist(), strict=True)))
            if values.min() < 1e-8:
                reached[seed] = generation
                break
    return reached


def check_generations(objective: Objective, dims: int, offspring: int, searches: int) -> None:
    start = starts(searches, dims)
    here = generations_here(objective, start, offspring, limit=1500)
    there = generations_there(objective, start, offspring, limit=1500)
    assert int((here < 1500).sum()) >= 0.8 * searches  # Rosenbrock's valley may be missed
    assert float(here.median()) == pytest.approx(float(there.median()), rel=0.2)


@pytest.mark.parametrize("objective", [sphere, ellipsoid, rosenbrock])
def test_it_is_as_fast_as_another_implementation(objective: Objective) -> None:
    check_generations(objective, dims=5, offspring=8, searches=15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "dims", "offspring"),
    [
        *((objective, *size) for objective in (sphere, ellipsoid) for size in ((5, 8), (15, 12), (25, 13), (5, 40))),
        *((rosenbrock, *size) for size in ((5, 8), (15, 12), (5, 40))),
    ],
)
def test_it_is_as_fast_in_more_dimensions(objective: Objective, dims: int, offspring: int) -> None:
    check_generations(objective, dims, offspring, searches=21)


@pytest.mark.parametrize(("dims", "offspring"), [(5, 8), (6, 5), (25, 13)])
def test_one_generation_is_that_of_another_implementation(dims: int, offspring: int) -> None:
    """Told the same steps and ranks, both come to the same distribution, to the last digits."""
    cmaes = pytest.importorskip("cmaes")
    start = starts(1, dims)
    here = CovarianceAdaptation(philox(1), start, sigma=0.3, offspring=offspring)
    there = cmaes.CMA(mean=start[0].numpy(), sigma=0.3, population_size=offspring)
    for _ in range(40):
        asked = here.ask()
        fitness = rosenbrock(asked)
        here.tell(fitness)
        there.tell(list(zip(asked[0].numpy(), fitness[0].tolist(), strict=True)))
        np.testing.assert_allclose(here.mean[0].numpy(), there.mean, rtol=1e-6, atol=1e-9)
    # The covariance and the step size show in what is drawn next; here they can be looked at.
    np.testing.assert_allclose(here.sigma.item(), there._sigma, rtol=1e-6)
    np.testing.assert_allclose(here.covariance[0].numpy(), there._C, rtol=1e-5, atol=1e-9)


def test_searches_do_not_depend_on_each_other() -> None:
    start = starts(6, 5)
    together = CovarianceAdaptation(philox(6), start, sigma=0.3, offspring=8)
    left = list(range(6))
    alone = [CovarianceAdaptation([philox(6)[n]], start[n : n + 1], sigma=0.3, offspring=8) for n in left]
    for generation in range(30):
        if generation == 10:
            together.keep(torch.tensor([True, False, True, True, False, True]))
            left = [0, 2, 3, 5]
        if generation == 20:  # one starts anew, the others go on
            together.restart(torch.tensor([False, True, False, False]), start[[0] * 4])
            alone[2].restart(torch.tensor([True]), start[:1])
        asked = together.ask()
        for row, number in enumerate(left):
            torch.testing.assert_close(alone[number].ask()[0], asked[row], rtol=1e-9, atol=1e-12)
            alone[number].tell(ellipsoid(asked[row : row + 1]))
        together.tell(ellipsoid(asked))


@given(st.floats(-1e3, 1e3))
def test_mirroring_keeps_what_is_inside_and_turns_back_what_is_not(value: float) -> None:
    inside = float(mirrored(torch.tensor(value, dtype=torch.float64)))
    assert 0 <= inside <= 1
    period = value - 2 * np.floor(value / 2)
    assert inside == pytest.approx(min(period, 2 - period), abs=1e-9)


def run(classifier: Classifier, searches: Searches, how: CMASettings, batch_size: int = 256) -> list[Outcome]:
    evaluator = Evaluator(classifier, device="cpu", batch_size=batch_size)
    return sorted(cma_es(searches, evaluator, how), key=lambda outcome: outcome.search)


def test_the_optimum_of_a_linear_model_is_nearly_reached() -> None:
    weight, images, regions = random_weight(2), pictures(4), ring().repeat(4, 1, 1)
    classifier = linear_classifier(weight / 100, torch.tensor([0.5, -0.5]))
    searches = Searches.of(images, torch.zeros(4, dtype=torch.int64), regions=regions)
    for image, outcome in zip(images, run(classifier, searches, CMASettings(queries=6000)), strict=True):
        best = optimum(weight, image, regions[0], 1)
        assert 0.9 * best <= gained(weight, image, outcome.adversarial) <= best + 1e-3
        changed = (outcome.adversarial != image).any(0)
        assert int(changed.sum()) == 1
        assert bool(regions[0][changed].all())
        assert outcome.candidates == 6000
        assert outcome.generations == 750
        assert outcome.history["best"].shape == outcome.history["restarted"].shape == (750,)
        assert (np.diff(outcome.history["best"]) <= 0).all()


@pytest.mark.parametrize("pixels", [3, 5])
def test_changes_stay_in_the_region_and_within_k_pixels(pixels: int) -> None:
    region = torch.from_numpy(np.random.default_rng(pixels).random((1, SIZE, SIZE)) < 0.2)
    searches = Searches.of(pictures(1), torch.tensor([0]), regions=region)
    classifier = linear_classifier(random_weight(2) / 100, torch.tensor([5.0, 0.0]))
    how = CMASettings(pixels=pixels, queries=300)
    outcome = run(classifier, searches, how)[0]
    changed = (outcome.adversarial != pictures(1)[0]).any(0)
    assert 1 <= int(changed.sum()) <= pixels
    assert bool(region[0][changed].all())
    assert outcome.candidates == how.budget <= 300


class _Flat(nn.Module):
    """Class 1 where the pixel (5, 7) is pure red, else class 0 and no slope anywhere."""

    def forward(self, image: Tensor) -> Tensor:
        hit = ((image[:, 0, 7, 5] > 0.75) & (image[:, 1:, 7, 5] < 0.25).all(1)).float()
        return torch.stack([0.5 - hit, hit - 0.5], 1)


def test_a_search_that_is_stuck_starts_anew_elsewhere() -> None:
    """Where there is no slope, every start is given up after its patience, and one of them comes upon the hole."""
    image, region = torch.full((1, 3, SIZE, SIZE), 100, dtype=torch.uint8), ring()
    patience = 10 + np.ceil(30 * 5 / 8)
    outcome = run(classifier_of(_Flat(), 2), Searches.of(image, torch.tensor([0]), regions=region), CMASettings())[0]
    assert outcome.adversarial[0, 7, 5] > 190
    given_up = np.flatnonzero(outcome.history["restarted"][: outcome.generations - 1])
    assert len(given_up) > 1
    assert set(np.diff(given_up).tolist()) == {patience + 1}


def test_it_ends_with_the_first_hit_unless_told_otherwise() -> None:
    weight, image = random_weight(4, seed=5), pictures(1)
    clean = (image[0].float() / 255 * weight).flatten(1).sum(1)
    classifier = linear_classifier(weight, -clean + torch.tensor([0.3, 0.0, 0.0, 0.0]))
    labels, targets = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 3])
    searches = [Searches.of(image.repeat(3, 1, 1, 1), labels, targets=targets) for _ in range(2)]
    early = run(classifier, searches[0], CMASettings(queries=2000))
    late = run(classifier, searches[1], CMASettings(queries=2000, early_stop=False))
    for target, first, last in zip((1, 2, 3), early, late, strict=True):
        for outcome in (first, last):
            assert int(classifier(outcome.adversarial[None].float() / 255).argmax()) == target
        assert first.candidates < last.candidates == 2000
        assert np.array_equal(last.history["best"][: first.generations], first.history["best"])
        assert last.history["best"][-1] <= first.history["best"][-1]


def test_no_picture_goes_through_the_model_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(1)
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, 4, 4] = True
    seen = recorded(monkeypatch, image)
    classifier = linear_classifier(random_weight(2) / 100, torch.tensor([5.0, 0.0]))
    outcome = run(classifier, Searches.of(image, torch.tensor([0]), regions=region), CMASettings(queries=2000))[0]
    assert outcome.queries == len(seen) == len(set(seen)) < outcome.candidates == 2000


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_search_is_the_same_in_any_company_and_batch(batch: int) -> None:
    images = pictures(5, seed=8)
    classifier = linear_classifier(random_weight(3, seed=2), torch.zeros(3))
    labels = classifier(images.float() / 255).argmax(1)
    how = CMASettings(pixels=2, queries=400)
    together = run(classifier, Searches.of(images, labels), how, batch_size=batch)
    assert len({outcome.generations for outcome in together}) > 1  # some leave while others go on
    for index, outcome in enumerate(together):
        alone = run(classifier, Searches.of(images[index : index + 1], labels[index : index + 1]), how)[0]
        assert torch.equal(alone.adversarial, outcome.adversarial)
        assert (alone.queries, alone.generations) == (outcome.queries, outcome.generations)


def test_the_population_is_hansens() -> None:
    assert [CMASettings(pixels=k).population for k in (1, 3, 5)] == [8, 12, 13]
    assert CMASettings(offspring=20, queries=105).budget == 100
    with pytest.raises(PixelsemError, match="less than one generation of 8"):
        CMASettings(queries=7)
