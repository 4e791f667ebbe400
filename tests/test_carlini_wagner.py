"""Carlini and Wagner's attack: on linear models, whose nearest adversarial image is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_pgd import classifier_of, curved, linear, pictures, some_region, weights
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.carlini_wagner import Adam, carlini_wagner
from pixelsem.attacks.registry import ATTACKS
from pixelsem.attacks.settings_qian2021 import CarliniWagnerSettings
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models.classifier import Classifier


def run(classifier: Classifier, searches: Searches, progress: Progress | None = None, **options: Any) -> list[Outcome]:
    settings = CarliniWagnerSettings(**options)
    found = carlini_wagner(searches, Evaluator(classifier, device="cpu"), settings, progress)
    return sorted(found, key=lambda outcome: outcome.search)


def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(images.float() / 255)  # type: ignore[no-any-return]


def grey() -> Tensor:
    """Images far from black and white, so that only the hyperplane bounds the change."""
    return (pictures() // 3 + 85).to(torch.uint8)


def far(classes: int, images: Tensor, distance: float) -> tuple[Classifier, Tensor]:
    """A linear model that sees class 0, so that others are about ``distance`` away; and its weight."""
    weight = weights(classes, scale=0.3)
    classifier = linear(weight)
    middle = logits_of(classifier, images).mean(0)
    middle[0] -= distance * 0.3 * (2 * 768) ** 0.5
    classifier.network[1].bias.data = -middle  # type: ignore[index, union-attr]
    return classifier, weight


def nearest(slopes: Tensor, gaps: Tensor) -> float:
    """The length of the smallest x with slopes · x ≥ gaps, for one or two rows; float64."""
    found = []
    for active in ([0], [1], [0, 1])[: 1 if len(gaps) == 1 else 3]:
        rows, wanted = slopes[active], gaps[active]
        x = rows.T @ torch.linalg.solve(rows @ rows.T, wanted)
        if bool((slopes @ x >= gaps - 1e-9).all()):
            found.append(float(x.norm()))
    return min(found)


@pytest.mark.parametrize("kappa", [0.0, 3.0])
@pytest.mark.parametrize(("classes", "regional"), [(2, False), (3, True)])
def test_the_nearest_adversarial_image_of_a_linear_model_is_found(kappa: float, classes: int, regional: bool) -> None:
    images = grey()
    regions = some_region(3) if regional else torch.ones(3, 16, 16, dtype=torch.bool)
    classifier, weight = far(classes, images, 1.0)
    targets = torch.tensor([1, 1, 1]) if classes == 3 else None
    searches = Searches.of(images, torch.tensor([0, 0, 0]), regions=regions, targets=targets)
    for outcome in run(classifier, searches, kappa=kappa, steps=400):
        row = outcome.search
        change = (outcome.adversarial.float() - images[row].float()) / 255
        assert not (change * ~regions[row]).any()
        logits = logits_of(classifier, torch.stack([images[row], outcome.adversarial])).double()
        others = [c for c in range(classes) if c != 1]
        assert float(logits[1, 1] - logits[1, others].max()) >= kappa
        slopes = ((weight[1] - weight[others]) * regions[row]).flatten(1).double()
        best = nearest(slopes, logits[0, others] - logits[0, 1] + kappa)
        assert 0.999 * best <= float(change.norm()) <= 1.05 * best


def faint() -> tuple[Classifier, Tensor]:
    """A model that changes of under half a level in every value deceive, and images of it."""
    weight = torch.zeros(2, 3, 16, 16)
    weight[1] = 1 + 0.2 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(768, 2)
    images = grey()[:1]
    layer.weight.data = weight.flatten(1)
    layer.bias.data = torch.tensor([0.0, -float((weight[1] * images.float() / 255).sum()) - 0.3 * 768 / 255])
    return classifier_of(nn.Sequential(nn.Flatten(), layer), 2), images


def test_rounding_during_the_search_keeps_what_rounding_after_it_undoes() -> None:
    classifier, images = faint()
    after = run(classifier, Searches.of(images, torch.tensor([0])), lr=0.001, steps=400, rounding="after")[0]
    assert torch.equal(after.adversarial, images[0])
    during = run(classifier, Searches.of(images, torch.tensor([0])), lr=0.001, steps=400)[0]
    assert int(logits_of(classifier, during.adversarial[None]).argmax()) == 1
    change = during.adversarial.long() - images[0].long()
    assert set(change.unique().tolist()) == {0, 1}
    assert int(change.sum()) < 0.36 * 768  # 0.3 levels per value are wanted: some by 1, not all


def test_binary_search_finds_a_c_that_is_large_enough() -> None:
    images = grey()
    classifier, weight = far(2, images, 3.0)
    searches = Searches.of(images, torch.tensor([0, 0, 0]))
    short = run(classifier, searches, c=1e-3, steps=150)
    outcomes = run(classifier, searches, c=1e-3, steps=150, binary_search_steps=6)
    clean = logits_of(classifier, images)
    best = (clean[:, 0] - clean[:, 1]) / (weight[1] - weight[0]).norm()
    for outcome, failed in zip(outcomes, short, strict=True):
        assert int(logits_of(classifier, failed.adversarial[None]).argmax()) == 0
        assert int(logits_of(classifier, outcome.adversarial[None]).argmax()) == 1
        tried = outcome.history["c"]
        np.testing.assert_allclose(tried[:3], [1e-3, 1e-2, 1e-1], rtol=1e-5)
        assert (np.diff(tried) < 0).any()  # after the first success it goes down again
        assert outcome.history["loss"].shape == (6, 150)
        assert outcome.queries == 900
        distance = float((outcome.adversarial.float() - images[outcome.search].float()).norm() / 255)
        assert distance <= 1.05 * float(best[outcome.search])


def test_early_stop_saves_queries_and_finds_the_same() -> None:
    images = grey()
    classifier, _ = far(2, images, 1.0)
    searches = Searches.of(images, torch.tensor([0, 0, 0]))
    whole = run(classifier, searches, steps=600)
    early = run(classifier, searches, steps=600, early_stop=True)
    for long, short in zip(whole, early, strict=True):
        assert short.queries < 600 == long.queries
        assert int(np.isfinite(short.history["loss"]).sum()) == short.queries
        clean = images[long.search].float()
        lengths = [float((each.adversarial.float() - clean).norm()) for each in (long, short)]
        assert lengths[1] <= 1.03 * lengths[0]


def test_black_and_white_values_can_move() -> None:
    weight = torch.zeros(2, 3, 16, 16)
    weight[1, 0], weight[1, 1] = 1.0, -1.0
    layer = nn.Linear(768, 2)
    layer.weight.data, layer.bias.data = weight.flatten(1), torch.tensor([0.0, 236.0])
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[0, 1] = 255  # logits 0 and −20: the red must rise, the green fall
    classifier = classifier_of(nn.Sequential(nn.Flatten(), layer), 2)
    outcome = run(classifier, Searches.of(images, torch.tensor([0])), c=10.0)[0]
    assert int(logits_of(classifier, outcome.adversarial[None]).argmax()) == 1


def test_a_search_does_not_depend_on_the_others() -> None:
    images, classifier = pictures(4), curved()
    labels = logits_of(classifier, images).argmax(1)
    together = run(classifier, Searches.of(images, labels), steps=20)
    for row in range(4):
        alone = run(classifier, Searches.of(images[row : row + 1], labels[row : row + 1]), steps=20)[0]
        np.testing.assert_allclose(alone.history["loss"], together[row].history["loss"], rtol=5e-3)


def test_a_stop_that_is_asked_for_leaves_searches_without_outcome() -> None:
    progress = Progress(should_stop=lambda: progress.queries >= 6)
    assert run(linear(weights()), Searches.of(pictures(), torch.tensor([0, 0, 0])), progress) == []
    assert progress.queries == 6


def test_adam_is_adam() -> None:
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    ours, theirs = Adam(start.clone(), 0.05), nn.Parameter(start.clone())
    reference = torch.optim.Adam([theirs], lr=0.05)
    for step in range(30):
        gradient = torch.sin(step + 3 * theirs.detach())
        ours.step(gradient)
        theirs.grad = gradient
        reference.step()
    torch.testing.assert_close(ours.parameters, theirs.detach(), atol=1e-6, rtol=1e-5)


def test_presets_are_settings() -> None:
    preset = CarliniWagnerSettings(**ATTACKS["cw"].presets["carlini2017"])
    assert preset.budget == 90_000
    assert CarliniWagnerSettings().budget == 1000
