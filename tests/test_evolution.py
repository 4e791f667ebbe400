"""Differential evolution: against SciPy's on analytic functions, and its parts against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import differential_evolution as scipy_de

from pixelsem.attacks.evolution import CLOSE, Evolution, _distinct
from pixelsem.attacks.settings import EvolutionSettings, Strategy
from pixelsem.errors import PixelsemError

GENES = 5
Array = np.ndarray
Objective = Callable[[Array], Array]


def generators(count: int, first: int = 0) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(first + i)) for i in range(count)]


def sphere(x: Array) -> Array:
    """Minimum 0 at 0.3; genes along the first axis."""
    result: Array = ((x - 0.3) ** 2).sum(0)
    return result


def rosenbrock(x: Array) -> Array:
    z = (x - 0.5) * 4
    result: Array = (100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2).sum(0)
    return result


def rastrigin(x: Array) -> Array:
    z = (x - 0.5) * 10.24 - 1
    result: Array = 10 * len(x) + (z**2 - 10 * np.cos(2 * np.pi * z)).sum(0)
    return result


def ours(objective: Objective, how: EvolutionSettings, seeds: int, tolerance: float) -> Array:
    """Generations until each search is within tolerance; generations + 1 where it never is."""
    search = Evolution(generators(seeds), GENES, how)
    reached = np.full(seeds, how.generations + 1)
    for generation in range(1, how.generations + 1):
        search.tell(torch.from_numpy(objective(np.moveaxis(search.ask().numpy(), 2, 0))))
        good = search.fitness.min(1).values.numpy() < tolerance
        reached = np.where(good & (reached > how.generations), generation, reached)
    return reached


def scipys(objective: Objective, how: EvolutionSettings, seed: int, tolerance: float) -> int:
    calls, reached = 0, how.generations + 1

    def counted(x: Array) -> Array:
        nonlocal calls, reached
        calls += 1
        value = objective(x)
        if value.min() < tolerance:
            reached = min(reached, calls)
        return value

    scipy_de(
        counted, [(0, 1)] * GENES, strategy=how.strategy, popsize=how.population // GENES, maxiter=how.generations - 1,
        tol=0, atol=-1, polish=False, updating="deferred", vectorized=True, rng=seed,
        mutation=how.mutation, recombination=how.crossover,
    )  # fmt: skip
    return reached


CASES = [
    pytest.param(sphere, "rand1bin", 80, 1e-4, id="sphere-rand1bin"),
    pytest.param(sphere, "best1bin", 60, 1e-4, id="sphere-best1bin"),
    pytest.param(sphere, "currenttobest1bin", 80, 1e-4, id="sphere-currenttobest1bin"),
    pytest.param(sphere, "randtobest1exp", 80, 1e-4, id="sphere-randtobest1exp"),
    pytest.param(rosenbrock, "best1bin", 150, 1e-2, id="rosenbrock-best1bin"),
    pytest.param(rastrigin, "best1bin", 150, 1e-2, id="rastrigin-best1bin"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "strategy", "limit", "tolerance"), CASES)
def test_as_good_as_scipy_over_50_seeds(objective: Objective, strategy: str, limit: int, tolerance: float) -> None:
    how = EvolutionSettings(population=50, generations=limit, strategy=strategy)  # type: ignore[arg-type]
    mine = ours(objective, how, 50, tolerance)
    theirs = np.array([scipys(objective, how, seed, tolerance) for seed in range(50)])
    # The two proportions differ by less than 2.6 standard errors (99 %), the median evaluations by less than 12 %.
    share, other = (mine <= limit).mean(), (theirs <= limit).mean()
    pooled = (share + other) / 2
    assert abs(share - other) <= 2.6 * np.sqrt(2 * pooled * (1 - pooled) / 50) + 1e-9
    assert np.median(mine) == pytest.approx(np.median(theirs), rel=0.12)


def test_it_finds_the_minimum() -> None:
    how = EvolutionSettings(population=40, generations=60, strategy="best1bin")
    search = Evolution(generators(4), GENES, how)
    for _ in range(how.generations):
        search.tell(torch.from_numpy(sphere(np.moveaxis(search.ask().numpy(), 2, 0))))
    genes, fitness = search.best()
    assert float(fitness.max()) < 1e-6
    assert torch.allclose(genes, torch.full_like(genes, 0.3), atol=1e-3)


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_a_search_does_not_depend_on_its_company(strategy: str) -> None:
    how = EvolutionSettings(population=12, generations=6, strategy=strategy)  # type: ignore[arg-type]
    together, alone = Evolution(generators(3), 4, how), Evolution(generators(1, first=1), 4, how)
    for generation in range(how.generations):
        for search in (together, alone):
            search.tell(torch.from_numpy(sphere(np.moveaxis(search.ask().numpy(), 2, 0))))
        row = 1 if generation < 2 else 0
        if generation == 1:  # the others leave; nothing may change for the one that stays
            together.keep(torch.tensor([False, True, False]))
            row = 0
        assert torch.equal(together.genes[row], alone.genes[0])
        assert torch.equal(together.fitness[row], alone.fitness[0])


@given(st.integers(6, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_picked_members_differ_from_the_parent_and_each_other(size: int, seed: int) -> None:
    picks = _distinct(torch.from_numpy(np.random.default_rng(seed).random((2, size, 5))))
    own = torch.arange(size).expand(2, size)[..., None]
    for row in torch.cat([own, picks], -1).flatten(0, 1):
        assert len(set(row.tolist())) == 6
        assert all(0 <= index < size for index in row.tolist())


def test_picked_members_are_uniform() -> None:
    picks = _distinct(torch.from_numpy(np.random.default_rng(0).random((4000, 7, 5))))
    for column in range(5):
        counts = torch.bincount(picks[:, 3, column], minlength=7)
        assert counts[3] == 0
        others = counts[counts > 0].float()
        assert len(others) == 6
        assert float(((others - 4000 / 6) ** 2 / (4000 / 6)).sum()) < 20.5  # chi², 5 degrees of freedom, p = 0.001


def test_a_latin_hypercube_has_one_member_per_stratum() -> None:
    search = Evolution(generators(3), GENES, EvolutionSettings(population=20))
    strata = (search.ask() * 20).long().sort(1).values
    assert torch.equal(strata, torch.arange(20)[None, :, None].expand(3, 20, GENES))


def test_su_draws_colours_from_a_normal_distribution() -> None:
    normal = torch.tensor([False, True])
    start = Evolution(generators(1), 2, EvolutionSettings(population=20000, init="su"), normal=normal).ask()[0]
    inside = start[:, 1][(start[:, 1] > 0) & (start[:, 1] < 1)] * 255
    # N(128, 127) cut to 0 … 255: 16 % lie on each bound, the median is 128; the other gene is uniform.
    assert float((start[:, 1] == 0).double().mean()) == pytest.approx(0.157, abs=0.01)
    assert float(inside.median()) == pytest.approx(128, abs=3)
    assert float(start[:, 0].mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("crossover", "expected"), [(0.0, 1.0), (1.0, 5.0), (0.5, 3.0)])
def test_crossover_takes_as_many_genes_as_it_should(crossover: float, expected: float) -> None:
    how = EvolutionSettings(population=2000, crossover=crossover)
    search = Evolution(generators(1), GENES, how)
    search.tell(torch.zeros(1, 2000))
    changed = (search.ask() != search.genes).sum(-1).double()
    assert int(changed.min()) >= 1, "one gene always comes from the mutant"
    assert float(changed.mean()) == pytest.approx(expected, abs=0.1)  # 1 + (D − 1) · CR


def test_exponential_crossover_takes_one_run_of_genes() -> None:
    how = EvolutionSettings(population=500, crossover=0.6, strategy="rand1exp")
    search = Evolution(generators(1), 6, how)
    search.tell(torch.zeros(1, 500))
    taken = (search.ask() != search.genes)[0].numpy()
    starts = (taken & ~np.roll(taken, 1, axis=1)).sum(1)
    assert set(starts.tolist()) <= {0, 1}  # 0: the run is the whole circle
    assert taken.sum(1).mean() == pytest.approx(sum(0.6**k for k in range(6)), abs=0.15)


@pytest.mark.parametrize("rule", ["resample", "clip", "reflect"])
def test_genes_stay_in_their_range(rule: str) -> None:
    how = EvolutionSettings(population=50, mutation=(1.5, 2.0), crossover=1.0, out_of_range=rule)  # type: ignore[arg-type]
    search = Evolution(generators(2), GENES, how)
    on_bounds = 0
    for _ in range(5):
        trials = search.ask()
        assert float(trials.min()) >= 0
        assert float(trials.max()) <= 1
        on_bounds += int(((trials == 0) | (trials == 1)).sum())
        search.tell(torch.zeros(2, 50))
    assert (on_bounds > 0) == (rule == "clip")


def test_selection_keeps_the_better_and_takes_ties() -> None:
    search = Evolution(generators(1), 2, EvolutionSettings(population=6))
    first = search.ask().clone()
    search.tell(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, torch.nan]]))
    trials = search.ask().clone()
    search.tell(torch.tensor([[0.5, 1.0, 2.0, torch.nan, 1.0 + CLOSE / 2, 3.0]]))
    assert search.accepted[0].tolist() == [True, True, False, False, False, True]
    assert search.close[0].tolist() == [False, True, False, False, True, False]
    expected = torch.where(search.accepted[..., None], trials, first)
    assert torch.equal(search.genes, expected)


def test_dither_stays_in_its_range_and_varies() -> None:
    search = Evolution(generators(200), 2, EvolutionSettings(population=6, mutation=(0.5, 1.0)))
    search.tell(torch.zeros(200, 6))
    factors = search._draw().factor.flatten()
    assert 0.5 <= float(factors.min()) < 0.52
    assert 0.98 < float(factors.max()) < 1.0


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"population": 5}, {"mutation": (1.0, 0.5)}, {"crossover": 1.1}, {"strategy": "rand7bin"}):
        with pytest.raises(PixelsemError):
            EvolutionSettings(**wrong)  # type: ignore[arg-type]
