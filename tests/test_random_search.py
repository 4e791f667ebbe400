"""The baseline of chance: its success is what probability says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known import recorded
from scipy import stats
from test_de import SIZE, classifier_of, linear_classifier, random_weight
from test_sparse_rs import gained, optimum, pictures, ring
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Searches
from pixelsem.attacks.random import generator
from pixelsem.attacks.random_search import random_search
from pixelsem.attacks.settings_black_box import RandomSettings
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models import Classifier


def run(classifier: Classifier, searches: Searches, how: RandomSettings, batch_size: int = 4096) -> list[Outcome]:
    evaluator = Evaluator(classifier, device="cpu", batch_size=batch_size, scorer="dense")
    return sorted(random_search(searches, evaluator, how), key=lambda outcome: outcome.search)


def repeats(image: Tensor, region: Tensor, count: int) -> Searches:
    """Many searches of one image that differ in their random numbers alone."""
    pixels = image[0].permute(1, 2, 0).numpy()
    return Searches(
        images=image,
        image=torch.zeros(count, dtype=torch.int64),
        labels=torch.zeros(count, dtype=torch.int64),
        targets=torch.full((count,), -1),
        regions=region.expand(count, -1, -1),
        generators=[generator(0, repeat, pixels, "original", None) for repeat in range(count)],
    )


class _Holes(nn.Module):
    """Class 1 where one of the first ``count`` pixels of row 3 is bright in red and dark in green and blue."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, image: Tensor) -> Tensor:
        row = image[:, :, 3, : self.count]
        open_ = (row[:, 0] > 0.5) & (row[:, 1:] < 0.5).all(1)
        hit = open_.any(1).float()
        return torch.stack([0.5 - hit, hit - 0.5], 1)


@pytest.mark.parametrize(("pixels", "holes"), [(1, 5), (3, 2), (5, 4)])
@pytest.mark.parametrize("colours", ["uniform", "corners"])
def test_it_succeeds_as_often_as_probability_says(pixels: int, holes: int, colours: str) -> None:
    """A candidate has a hypergeometric number of vulnerable pixels, each of which has one of 8 right colours."""
    searches, queries, side = 600, 40, 7
    image = torch.full((1, 3, SIZE, SIZE), 127, dtype=torch.uint8)
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, :side, :side] = True
    chance = stats.hypergeom(side * side, holes, pixels)
    hit = 1 - sum(float(chance.pmf(n)) * (7 / 8) ** n for n in range(holes + 1))
    how = RandomSettings(pixels=pixels, queries=queries, colours=colours, candidates_per_step=1)
    outcomes = run(classifier_of(_Holes(holes), 2), repeats(image, region, searches), how)
    found = [bool((outcome.adversarial[0, 3, :holes] > 127).any()) and _is_open(outcome, holes) for outcome in outcomes]
    assert stats.binomtest(sum(found), searches, 1 - (1 - hit) ** queries).pvalue > 1e-3
    # How long it takes is geometric: the mean of those found early enough.
    taken = np.array([outcome.candidates for outcome, ok in zip(outcomes, found, strict=True) if ok])
    number = np.arange(1, queries + 1)
    weight = hit * (1 - hit) ** (number - 1)
    mean = (number * weight).sum() / weight.sum()
    spread = np.sqrt(((number - mean) ** 2 * weight).sum() / weight.sum() / len(taken))
    assert abs(taken.mean() - mean) < 4 * spread


def _is_open(outcome: Outcome, holes: int) -> bool:
    row = outcome.adversarial[:, 3, :holes]
    return bool(((row[0] > 127) & (row[1:] < 128).all(0)).any())


def test_candidates_are_different_pixels_of_the_region_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    image, region = torch.full((1, 3, SIZE, SIZE), 100, dtype=torch.uint8), ring()
    inside = int(region.sum())
    asked, changed = Evaluator.score, torch.zeros(SIZE, SIZE)
    counts: list[int] = []

    def score(evaluator: Evaluator, edits: Edits) -> Tensor:
        different = (edits.render(image) != image).any(1)
        counts.extend(different.sum((1, 2)).tolist())
        changed.add_(different.sum(0))
        return asked(evaluator, edits)

    monkeypatch.setattr(Evaluator, "score", score)
    classifier = linear_classifier(random_weight(2), torch.tensor([200.0, 0.0]))
    how = RandomSettings(pixels=4, queries=6000, colours="corners")
    outcome = run(classifier, Searches.of(image, torch.tensor([0]), regions=region), how)[0]
    assert set(counts) == {4}
    assert len(counts) == outcome.queries
    assert outcome.candidates == 6000
    assert outcome.generations == 60
    assert float(changed[~region[0]].sum()) == 0
    expected = 4 * len(counts) / inside
    statistic = float(((changed[region[0]] - expected) ** 2 / (expected * (1 - 4 / inside))).sum())
    assert statistic < stats.chi2(inside - 1).ppf(0.999)


def test_no_picture_goes_through_the_model_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(1)
    image[0, :, 4, 4] = 255
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, 4, 4:6] = True
    seen = recorded(monkeypatch, image)
    classifier = linear_classifier(random_weight(2), torch.tensor([200.0, 0.0]))
    searches = Searches.of(image, torch.tensor([0]), regions=region)
    outcome = run(classifier, searches, RandomSettings(queries=450, colours="corners"))[0]
    assert (outcome.candidates, outcome.generations) == (450, 5)
    assert outcome.queries == len(seen) == len(set(seen)) == 15  # 2 pixels × 8 corners, less the clean picture


def test_without_a_hit_the_best_candidate_is_returned() -> None:
    weight, image, region = random_weight(2), pictures(1), ring()
    classifier = linear_classifier(weight / 100, torch.tensor([5.0, 0.0]))
    searches = Searches.of(image, torch.tensor([0]), regions=region)
    outcome = run(classifier, searches, RandomSettings(queries=5000, colours="corners"))[0]
    # Of 52 pixels × 8 corners nearly all are tried, so the best of them is that of the model.
    assert gained(weight, image[0], outcome.adversarial) == pytest.approx(optimum(weight, image[0], region[0], 1))
    assert (np.diff(outcome.history["best"]) <= 0).all()
    confidence = classifier(outcome.adversarial[None].float() / 255).softmax(1)[0, 0].detach()
    assert float(confidence) == pytest.approx(float(outcome.history["best"][-1]), abs=1e-6)


def test_the_chunk_changes_no_draw() -> None:
    """All of the candidates are the same ones, so that the best of them is."""
    classifier = linear_classifier(random_weight(2) / 100, torch.tensor([5.0, 0.0]))
    searches = [Searches.of(pictures(1), torch.tensor([0])) for _ in range(3)]
    found = [
        run(classifier, each, RandomSettings(pixels=3, queries=501, candidates_per_step=step))[0]
        for each, step in zip(searches, (1, 100, 4096), strict=True)
    ]
    assert [outcome.candidates for outcome in found] == [501] * 3
    assert [outcome.generations for outcome in found] == [501, 6, 1]
    assert len({outcome.adversarial.numpy().tobytes() for outcome in found}) == 1


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_search_is_the_same_in_any_company_and_batch(batch: int) -> None:
    images = pictures(4, seed=8)
    classifier = linear_classifier(random_weight(3, seed=2), torch.zeros(3))
    labels = classifier(images.float() / 255).argmax(1)
    how = RandomSettings(pixels=2, queries=120, candidates_per_step=20)
    together = run(classifier, Searches.of(images, labels), how, batch_size=batch)
    assert len({outcome.generations for outcome in together}) > 1  # some leave while others go on
    for index, outcome in enumerate(together):
        alone = run(classifier, Searches.of(images[index : index + 1], labels[index : index + 1]), how)[0]
        assert torch.equal(alone.adversarial, outcome.adversarial)
        assert (alone.queries, alone.candidates) == (outcome.queries, outcome.candidates)


def test_a_targeted_search_reaches_its_target_and_no_other_class() -> None:
    weight, image = random_weight(4, seed=5), pictures(1)
    clean = (image[0].float() / 255 * weight).flatten(1).sum(1)
    classifier = linear_classifier(weight, -clean + torch.tensor([0.3, 0.0, 0.0, 0.0]))
    searches = Searches.of(image.repeat(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64), targets=torch.tensor([1, 2, 3]))
    outcomes = run(classifier, searches, RandomSettings(queries=3000))
    assert [int(classifier(o.adversarial[None].float() / 255).argmax()) for o in outcomes] == [1, 2, 3]
