"""The saliency map attack: the pairs of a search over all of them, step by step, and a linear model's optimum."""

from __future__ import annotations

from typing import Any

import known
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.jsma import best_pairs, saliency_map
from pixelsem.attacks.settings_jsma import JSMA_PRESETS, JsmaSettings
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models import Classifier

SIDE, CLASSES = 4, 5


def classifier(network: nn.Module, classes: int = CLASSES, side: int = SIDE) -> Classifier:
    return known.classifier_of(network, classes, (side, side))


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 24), nn.Tanh(), nn.Linear(24, CLASSES))


def random_images(count: int, seed: int = 0) -> Tensor:
    return known.random_images(count, (SIDE, SIDE), seed)


def clean_labels(model: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images.float() / 255).argmax(1)


def attack(
    model: Classifier,
    images: Tensor,
    *,
    regions: Tensor | None = None,
    targets: Tensor | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Outcome]:
    searches = Searches.of(images, clean_labels(model, images), regions=regions, targets=targets)
    evaluator = Evaluator(model, device="cpu", scorer="dense", batch_size=batch_size)
    return sorted(saliency_map(searches, evaluator, JsmaSettings(**settings), progress), key=lambda o: o.search)


def pair_by_trying(alpha: Tensor, beta: Tensor, allowed: Tensor) -> tuple[float, set[int]] | None:
    """Look at every pair; None where none has the right signs."""
    places = allowed.nonzero()[:, 0].tolist()
    best: tuple[float, set[int]] | None = None
    for p in places:
        for q in places:
            a, b = float(alpha[p] + alpha[q]), float(beta[p] + beta[q])
            if p < q and a > 0 > b and (best is None or -a * b > best[0]):
                best = -a * b, {p, q}
    return best


# The pair


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.sampled_from(["free", "tied", "opposed", "whole numbers"]))
def test_the_pair_is_the_best_of_all(seed: int, width: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    alpha, beta = rng.normal(size=(2, 3, width))
    if kind == "tied":  # as with softmax
        beta = -alpha + 0.1 * beta
    elif kind == "opposed":  # every value is on the front
        beta = alpha - 1
    elif kind == "whole numbers":  # many are equal
        alpha, beta = rng.integers(-2, 3, (2, 3, width)).astype(float)
    allowed = rng.random((3, width)) < 0.7
    given_values = [torch.from_numpy(values) for values in (alpha, beta, allowed)]
    pairs, found = best_pairs(*given_values)
    for row in range(3):
        a, b, free = (values[row] for values in given_values)
        best = pair_by_trying(a, b, free)
        assert bool(found[row]) == (best is not None)
        if best is not None:
            p, q = pairs[row].tolist()
            assert p != q
            assert free[p]
            assert free[q]
            assert float(-(a[p] + a[q]) * (b[p] + b[q])) == pytest.approx(best[0], rel=1e-12)
            if kind != "whole numbers":
                assert {p, q} == best[1]


def test_a_front_of_everything_is_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelsem.attacks.jsma._PAIRS", 100)
    angle = torch.linspace(0.1, 1.4, 60)[None]
    alpha, beta = angle.cos(), -angle.sin()
    pairs, found = best_pairs(alpha, beta, torch.ones(1, 60, dtype=torch.bool))
    best = pair_by_trying(alpha[0], beta[0], torch.ones(60, dtype=torch.bool))
    assert found[0]
    assert best is not None
    assert set(pairs[0].tolist()) == best[1]


# The search


def steps_by_trying(model: Classifier, image: Tensor, goal: int, region: Tensor, theta: float, limit: int) -> list[set]:  # type: ignore[type-arg]
    """Papernot et al.'s Algorithm 3 with the whole Jacobian, one image and all pairs."""
    x = image.float() / 255
    label = int(model(x[None]).argmax())
    taken: list[set[int]] = []
    while len(taken) < limit:
        top = int(model(((x * 255).round() / 255)[None]).argmax())
        if top != label:
            break
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x).flatten(1)
        alpha, beta = jacobian[goal], jacobian.sum(0) - jacobian[goal]
        free = ((x < 1) if theta > 0 else (x > 0)) & region
        sign = 1 if theta > 0 else -1
        best = pair_by_trying(sign * alpha, sign * beta, free.flatten())
        if best is None:
            break
        taken.append(best[1])
        flat = x.flatten().clone()
        flat[list(best[1])] += theta
        x = flat.clamp(0, 1).view_as(x)
    return taken


@pytest.mark.parametrize("theta", [0.3, 1.0, -0.3])
def test_pairs_are_those_of_the_paper(theta: float) -> None:
    model, images = classifier(small_network()), random_images(4)
    regions = torch.ones(4, SIDE, SIDE, dtype=torch.bool)
    regions[2, :, 2:] = False
    labels = clean_labels(model, images)
    with torch.no_grad():
        goal = model(images.float() / 255).scatter(1, labels[:, None], -torch.inf).argmax(1)
    outcomes = attack(model, images, regions=regions, theta=theta, gamma=0.5)
    lengths = []
    for row, outcome in enumerate(outcomes):
        wanted = steps_by_trying(model, images[row], int(goal[row]), regions[row], theta, 12)
        assert [set(pair) for pair in outcome.history["pairs"].tolist()] == wanted
        assert outcome.generations == len(wanted)
        assert outcome.queries == 2 * (len(wanted) + 1) + 1
        assert outcome.history["loss"].shape == (len(wanted) + 1,)
        lengths.append(len(wanted))
    assert max(lengths) > 2  # else nothing was compared


def test_distortion_and_region() -> None:
    model, images = classifier(small_network(3)), random_images(6, 3)
    regions = torch.zeros(6, SIDE, SIDE, dtype=torch.bool)
    regions[:, 1:3, :3] = True
    for outcome in attack(model, images, regions=regions, theta=0.3, gamma=0.25):
        clean = images[outcome.search].int()
        change = outcome.adversarial.int() - clean
        assert not change[:, ~regions[0]].any()
        assert (change >= 0).all()
        assert int((change != 0).sum()) <= 0.25 * 3 * SIDE * SIDE
        # Every step adds 76.5 of 255, unless the value ends at white.
        steps = np.bincount(outcome.history["pairs"].flatten(), minlength=3 * SIDE * SIDE).reshape(clean.shape)
        wanted = (clean.double() + 76.5 * torch.from_numpy(steps)).clamp(max=255)
        assert (outcome.adversarial.double() - wanted).abs().max() <= 0.501


class Against(nn.Module):
    """Two classes: the second gains with every value, by a weight of its own."""

    def __init__(self, weights: Tensor, threshold: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weights - self.threshold
        return torch.stack([-z, z], 1)


@pytest.mark.parametrize("fewest", [20, 21, 35, 64])
@pytest.mark.parametrize("seed", [1, 2])
def test_as_few_values_as_it_takes_on_a_linear_model(fewest: int, seed: int) -> None:
    """Every value can gain 0.8 times its weight, so that the heaviest ones are the fewest in which the class changes.

    Values come in pairs: of an odd number one more is changed, which is within 5 % of 20 values and more.
    """
    side = 8
    weights = torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 1, 3 * side * side)).float()
    heaviest = weights.sort(descending=True)
    threshold = 0.2 * float(weights.sum()) + 0.8 * float(heaviest.values[:fewest].sum()) - 0.04
    assert 0.8 * float(heaviest.values[fewest - 1]) > 0.04  # so that one value less is not enough
    images = torch.full((1, 3, side, side), 51, dtype=torch.uint8)
    model = classifier(Against(weights, threshold), 2, side)
    outcome = attack(model, images, theta=1.0, gamma=1.0)[0]
    assert int(clean_labels(model, images)[0]) == 0
    assert int(clean_labels(model, outcome.adversarial[None])[0]) == 1
    changed = (outcome.adversarial != images[0]).flatten().nonzero()[:, 0]
    assert fewest <= len(changed) <= 1.05 * fewest
    assert set(changed.tolist()) == set(heaviest.indices[: len(changed)].tolist())


def test_no_pair_ends_the_search() -> None:
    images = torch.full((1, 3, SIDE, SIDE), 51, dtype=torch.uint8)
    outcome = attack(classifier(Against(-torch.ones(3 * SIDE * SIDE), 1.0), 2), images, theta=0.3)[0]
    assert torch.equal(outcome.adversarial, images[0])
    assert outcome.generations == 0
    assert outcome.queries == 3


def test_a_target_is_reached_and_others_do_not_end_it() -> None:
    model, images = classifier(small_network(1)), random_images(6, 1)
    targets = (clean_labels(model, images) + 2) % CLASSES
    outcomes = attack(model, images, targets=targets, theta=1.0, gamma=1.0)
    reached = [int(clean_labels(model, o.adversarial[None])[0]) == int(targets[o.search]) for o in outcomes]
    assert sum(reached) >= 4
    for outcome, hit in zip(outcomes, reached, strict=True):
        odds = outcome.history["loss"]
        if hit:  # before the last step it was not
            assert odds[-1] < odds[0]
            assert outcome.generations < 24


def test_the_batch_changes_nothing() -> None:
    model, images = classifier(small_network(2)), random_images(5, 2)
    together = attack(model, images, batch_size=3)
    for row, outcome in enumerate(together):
        alone = attack(model, images[row : row + 1], batch_size=1)[0]
        assert torch.equal(outcome.adversarial, alone.adversarial)
        assert np.array_equal(outcome.history["pairs"], alone.history["pairs"])


def test_asked_to_stop_there_is_no_outcome() -> None:
    model = classifier(small_network())
    assert attack(model, random_images(2), progress=Progress(should_stop=lambda: True)) == []


def test_settings() -> None:
    settings = JsmaSettings()
    assert (settings.theta, settings.gamma) == (0.3, 0.145)
    assert settings.steps_for(3 * 32 * 32) == 222
    assert settings.steps_for(3 * 224 * 224) == 10_000
    assert settings.budget_in(32 * 32) == 2 * 223 + 1
    assert JsmaSettings(**JSMA_PRESETS["papernot2016"]).theta == 1
    with pytest.raises(PixelsemError, match="changes nothing"):
        JsmaSettings(theta=0)
