"""The fast gradient methods: on linear models, whose largest loss within a budget is known, and against NumPy."""

from __future__ import annotations

import dataclasses
import timeit
from functools import partial
from typing import Any, Literal

import known
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelsem.attacks.base import Attack, Outcome, Progress, Searches
from pixelsem.attacks.fgm import fast_gradient, log_odds_against
from pixelsem.attacks.registry import ATTACKS
from pixelsem.attacks.settings_dong2020 import FgmSettings, SaFgmSettings, SaiFgmSettings
from pixelsem.attacks.superpixel_fgm import SuperpixelNoise, superpixel_fast_gradient
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models import load_classifier
from pixelsem.models.classifier import Classifier

SIZE = 16
VALUES = 3 * SIZE * SIZE
PIXELWISE = ("fgm", "i-fgm", "mi-fgm")
GUIDED = ("sa-fgm", "sai-fgm", "m-sai-fgm")


classifier_of = partial(known.classifier_of, size=(SIZE, SIZE))
random_weight = partial(known.random_weight, side=SIZE)


def linear(weight: Tensor, scale: float = 1.0) -> Classifier:
    return known.linear(weight * scale)


def curved() -> Classifier:
    """A network whose gradient differs from place to place."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12 * 49, 4))
    for parameter in layers.parameters():
        parameter.data *= 4
    return classifier_of(layers, 4)


def mosaic(side: int) -> Tensor:
    """Squares of ``side`` × ``side`` pixels, int64 [H, W]."""
    at = torch.arange(SIZE) // side
    return at[:, None] * int(at.max() + 1) + at


def middling(count: int, labels: Tensor | None = None, seed: int = 3) -> Searches:
    """Images far from the ends of the box, each with superpixels of another number and attention of its own."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(100, 156, (count, 3, SIZE, SIZE), dtype=np.uint8))
    searches = Searches.of(images, torch.zeros(count, dtype=torch.int64) if labels is None else labels)
    attention = torch.from_numpy(rng.random((count, SIZE, SIZE))).float()
    attention[:, 0, 0] = 1
    maps = torch.stack([mosaic(2 + n % 3) for n in range(count)])
    return dataclasses.replace(searches, superpixels=maps, attention=attention)


def attack(name: str, classifier: Classifier, searches: Searches, **options: Any) -> list[Outcome]:
    info = ATTACKS[name]
    function: Attack = info.load()
    evaluator = Evaluator(classifier, device="cpu", scorer="dense", batch_size=5)
    found = function(searches, evaluator, info.settings(**options), Progress())
    return sorted(found, key=lambda outcome: outcome.search)


def changes(outcomes: list[Outcome], searches: Searches) -> Tensor:
    """Return the changes, float64 [S, 3, H, W] of −255 to 255."""
    adversarial = torch.stack([outcome.adversarial for outcome in outcomes])
    return adversarial.double() - searches.images[searches.image]


def gains(weight: Tensor, outcomes: list[Outcome], searches: Searches) -> Tensor:
    """Return by how much each attack changed logit 1 − logit 0, float64 [S]."""
    return (changes(outcomes, searches) / 255 * (weight[1] - weight[0])).sum((1, 2, 3))


@pytest.mark.parametrize("region", ["original", "left"])
@pytest.mark.parametrize("name", PIXELWISE)
def test_pixelwise_methods_reach_the_largest_loss_within_the_budget(name: str, region: str) -> None:
    """On a linear model the best change of length ε is along the weights: ε times their norm (Cauchy–Schwarz)."""
    weight, searches = random_weight(2), middling(3)
    if region == "left":
        searches.regions[:, :, SIZE // 2 :] = False
    outcomes = attack(name, linear(weight), searches, delta=4.0)
    slope = (weight[1] - weight[0]).double() * searches.regions[0]
    largest = 4 / 255 * np.sqrt(VALUES) * float(slope.norm())
    found = gains(weight, outcomes, searches)
    assert (found >= 0.99 * largest).all()
    assert (found <= largest * (1 + 1e-6)).all()
    assert (changes(outcomes, searches).abs().amax(1)[~searches.regions] == 0).all()


def sums(values: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Add up [3, P] by the labels [P]: [3, K]."""
    return np.stack([np.bincount(labels, weights=channel, minlength=labels.max() + 1) for channel in values])


def strongest(values: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the value of the largest magnitude per label: [3, K] of [3, P]."""
    made = np.zeros((3, labels.max() + 1))
    for number in np.unique(labels):
        group = values[:, labels == number]
        made[:, number] = group[np.arange(3), np.abs(group).argmax(1)]
    return made


@pytest.mark.parametrize("gradient", ["noise", "avg", "max"])
@pytest.mark.parametrize("name", GUIDED)
def test_guided_methods_go_along_the_gradient_of_each_superpixel(name: str, gradient: str) -> None:
    """All gradients are alike on a linear model, so that Eqs. 3 to 5 end at Scale of the first: NumPy knows it.

    ``avg`` is the best direction there is for noise that is one in a superpixel.
    """
    weight, searches = random_weight(2), middling(3)
    searches.regions[:, -3:] = False
    outcomes = attack(name, linear(weight), searches, delta=4.0, gradient=gradient)
    found = gains(weight, outcomes, searches).numpy()
    slope = (weight[1] - weight[0]).double().flatten(1).numpy()
    assert searches.superpixels is not None
    assert searches.attention is not None
    for row in range(3):
        crop = (searches.regions[row] & (searches.attention[row] >= 4 / 12)).flatten().numpy()
        labels, inside = searches.superpixels[row].flatten().numpy()[crop], slope[:, crop]
        area, total = np.bincount(labels), sums(inside, labels)
        direction = {
            "noise": total,
            "avg": total / np.maximum(area, 1),
            "max": strongest(inside, labels),
        }[gradient]
        step = 4 / 255 * np.sqrt(VALUES) / np.sqrt((area * direction**2).sum())
        assert found[row] == pytest.approx(step * (total * direction).sum(), rel=0.03)
        best = 4 / 255 * np.sqrt(VALUES) * np.sqrt((total**2 / np.maximum(area, 1)).sum())
        assert found[row] <= best * (1 + 1e-6)
        assert gradient != "avg" or found[row] >= 0.99 * best


@pytest.mark.parametrize("delta", [0.5, 4.0])
@pytest.mark.parametrize("name", PIXELWISE + GUIDED)
def test_the_budget_is_kept_and_used_on_8_bits(name: str, delta: float) -> None:
    searches = middling(4)
    budget = delta * np.sqrt(VALUES)
    options = {"delta": delta, "phi": 0.0} if name in GUIDED else {"delta": delta}
    outcomes = attack(name, linear(random_weight(2)), searches, **options)
    norms = changes(outcomes, searches).flatten(1).norm(dim=1)
    assert (norms <= budget * (1 + 1e-9)).all()
    # At the smaller one a single superpixel is 4 % of the squared budget, or more.
    assert (norms >= (0.995 if name in PIXELWISE or delta > 1 else 0.95) * budget).all()


@pytest.mark.parametrize("name", GUIDED)
def test_superpixels_change_as_a_whole_and_only_where_attended(name: str) -> None:
    searches = middling(3)
    assert searches.superpixels is not None
    assert searches.attention is not None
    searches.regions[:, :, :5] = False
    outcomes = attack(name, curved(), searches, phi=0.6)
    for row, change in enumerate(changes(outcomes, searches)):
        crop = searches.regions[row] & (searches.attention[row] >= 0.6)
        assert (change[:, ~crop] == 0).all()
        colours = {}
        for label, colour in zip(searches.superpixels[row][crop].tolist(), change[:, crop].T.tolist(), strict=True):
            assert colours.setdefault(label, colour) == colour
        assert len({tuple(colour) for colour in colours.values()}) > 5


def reference(searches: Searches, row: int, settings: SaiFgmSettings, momentum: float) -> np.ndarray[Any, Any]:
    """Eqs. 3 to 5 with PyTorch's gradient with respect to n itself, in double precision; the image unrounded."""
    network = curved().double()
    assert searches.superpixels is not None
    assert searches.attention is not None
    labels = searches.superpixels[row]
    crop = (searches.regions[row] & (searches.attention[row] >= settings.phi)).double()
    clean = searches.images[row].double()
    epsilon = settings.delta * np.sqrt(VALUES)
    n = torch.zeros(3, int(labels.max()) + 1, dtype=torch.float64)
    g, scale = torch.zeros_like(n), torch.tensor(1.0, dtype=torch.float64)
    for _ in range(settings.steps):
        own = n.clone().requires_grad_()
        logits = network((clean + scale * own[:, labels] * crop)[None] / 255)
        torch.nn.functional.cross_entropy(logits, searches.labels[row : row + 1]).backward()
        assert own.grad is not None
        g = momentum * g + own.grad / own.grad.abs().sum()
        n = n + epsilon / settings.steps * g / g.norm()
        scale = epsilon / (n[:, labels] * crop).norm()
    adversarial: np.ndarray[Any, Any] = (clean + scale * n[:, labels] * crop).numpy()
    return adversarial


@pytest.mark.parametrize(("name", "momentum"), [("sai-fgm", 0.0), ("m-sai-fgm", 1.0), ("m-sai-fgm", 0.5)])
def test_steps_are_those_of_the_equations(name: str, momentum: float) -> None:
    searches = middling(3, torch.tensor([0, 1, 2]))
    options = {"momentum": momentum} if momentum else {}
    outcomes = attack(name, curved(), searches, steps=7, **options)
    for row, outcome in enumerate(outcomes):
        wanted = reference(searches, row, SaiFgmSettings(steps=7), momentum)
        assert np.abs(outcome.adversarial.numpy() - wanted).max() <= 1
        assert np.abs(outcome.adversarial.numpy() - wanted).mean() < 0.35


@pytest.mark.parametrize("name", PIXELWISE + GUIDED)
def test_targets_are_reached(name: str) -> None:
    weight, searches = random_weight(4), middling(3)
    searches = dataclasses.replace(searches, targets=torch.tensor([1, 2, 3]))
    model = linear(weight)
    before = model(searches.images / 255).softmax(1).detach()
    outcomes = attack(name, model, searches, delta=8.0 if name in PIXELWISE else 24.0)
    after = model(torch.stack([outcome.adversarial for outcome in outcomes]) / 255).softmax(1)
    assert after.argmax(1).tolist() == [1, 2, 3]
    for row, target in enumerate((1, 2, 3)):
        assert outcomes[row].history["loss"][0] == pytest.approx(float(-before[row, target].log()), rel=1e-3)


@pytest.mark.parametrize("name", PIXELWISE + GUIDED)
def test_a_sure_network_still_has_a_gradient(name: str) -> None:
    """Where the label's probability is 1 in fp32, the cross-entropy's own gradient is 0."""
    weight, searches = random_weight(2), middling(2)
    slope = weight[1] - weight[0]
    searches.images[:] = torch.where(slope > 0, 60, 190).to(torch.uint8)
    model = linear(weight, 10.0)
    assert (model(searches.images / 255).softmax(1)[:, 0] == 1).all()
    outcomes = attack(name, model, searches)
    largest = 4 / 255 * np.sqrt(VALUES) * float(slope.norm())
    assert (gains(weight, outcomes, searches) > (0.99 if name in PIXELWISE else 0.3) * largest).all()


def test_the_loss_is_the_cross_entropy() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 5, (50, 7))).float()
    classes = torch.arange(50) % 7
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    assert torch.allclose(torch.nn.functional.softplus(log_odds_against(logits, classes)), expected, atol=1e-5)


@pytest.mark.parametrize("name", PIXELWISE + GUIDED)
def test_a_search_does_not_depend_on_the_others(name: str) -> None:
    searches = middling(6, torch.tensor([0, 1, 2, 3, 0, 1]))
    together = changes(attack(name, curved(), searches), searches)
    assert searches.superpixels is not None
    assert searches.attention is not None
    for row in range(6):
        one = slice(row, row + 1)
        alone = Searches.of(searches.images[one], searches.labels[one])
        alone = dataclasses.replace(alone, superpixels=searches.superpixels[one], attention=searches.attention[one])
        difference = changes(attack(name, curved(), alone), alone)[0] - together[row]
        assert difference.abs().max() <= 1
        assert difference.norm() < 0.08 * together[row].norm()  # a superpixel is of one whole number


@pytest.mark.parametrize("name", ["i-fgm", "sai-fgm", "m-sai-fgm"])
def test_early_stop_ends_with_a_hit_that_holds(name: str) -> None:
    weight, searches = random_weight(2), middling(5)
    model = linear(weight)
    searches = dataclasses.replace(searches, labels=model(searches.images / 255).argmax(1))
    options: dict[str, Any] = {"delta": 2.0, "steps": 60}
    full, early = (attack(name, model, searches, **options, early_stop=stop) for stop in (False, True))
    assert [outcome.queries for outcome in full] == [60] * 5
    assert [len(outcome.history["loss"]) for outcome in early] == [outcome.queries for outcome in early]
    stopped = [outcome for outcome in early if outcome.queries < 60]
    # Scaled noise has the whole length from the first step on; what it hits on a linear model it hits then.
    assert {outcome.queries for outcome in stopped} == {2} or (name == "i-fgm" and len(stopped) > 1)
    for outcome in stopped:
        assert int(model(outcome.adversarial[None] / 255).argmax()) != int(searches.labels[outcome.search])
    for one, other in zip(early, full, strict=True):
        assert np.allclose(one.history["loss"], other.history["loss"][: one.queries], rtol=1e-4, atol=1e-5)


def test_nothing_attended_in_the_region_changes_nothing() -> None:
    searches = middling(2)
    assert searches.attention is not None
    searches.attention[0] = 0
    outcomes = attack("sai-fgm", curved(), searches)
    moved = changes(outcomes, searches).abs().amax((1, 2, 3))
    assert moved[0] == 0
    assert moved[1] > 0


@pytest.mark.parametrize("name", PIXELWISE + GUIDED)
def test_images_at_the_ends_of_the_box_stay_in_it_and_in_the_budget(name: str) -> None:
    searches = middling(2)
    searches.images[0], searches.images[1] = 0, 255
    outcomes = attack(name, linear(random_weight(2)), searches, delta=8.0)
    norms = changes(outcomes, searches).flatten(1).norm(dim=1)
    assert (norms > 0).all()
    assert (norms <= 8 * np.sqrt(VALUES)).all()
    # Half of the values cannot go where the gradient points; what is left is not stretched (Eq. 3 adds and ends).
    assert (norms < 0.85 * 8 * np.sqrt(VALUES)).all()


def test_a_stopped_attack_has_no_outcome() -> None:
    searches = middling(2)
    evaluator = Evaluator(curved(), device="cpu", scorer="dense")
    progress = Progress(should_stop=lambda: True)
    assert list(fast_gradient(searches, evaluator, FgmSettings(), progress)) == []
    assert evaluator.queries == 0


def test_guided_methods_want_guides() -> None:
    searches = Searches.of(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), torch.tensor([0]))
    evaluator = Evaluator(curved(), device="cpu", scorer="dense")
    with pytest.raises(ValueError, match="no superpixels or no attention"):
        list(superpixel_fast_gradient(searches, evaluator, SaFgmSettings()))


def test_one_step_methods_have_one_query_and_no_option_for_more() -> None:
    fields = {field.name for field in dataclasses.fields(SaFgmSettings)}
    assert not fields & {"steps", "momentum", "early_stop"}
    assert (SaFgmSettings().budget, FgmSettings().budget, SaiFgmSettings(steps=7).budget) == (1, 1, 7)


def test_size_is_refused_where_it_would_have_no_effect() -> None:
    with pytest.raises(PixelsemError, match="--size goes with"):
        SaFgmSettings(superpixels="maps", size=7)


def test_no_gradient_is_much_slower_than_another() -> None:
    """The paper's avg and max took 30 times as long as noise."""
    searches = middling(64)
    pixels = torch.randn(64, 3, SIZE, SIZE)

    def seconds(way: Literal["noise", "avg", "max"]) -> float:
        noise = SuperpixelNoise(searches, torch.device("cpu"), SaFgmSettings(gradient=way))
        return min(timeit.repeat(lambda: noise.gradient(pixels), number=5, repeat=7))

    fastest = seconds("noise")
    assert seconds("avg") < 10 * fastest
    assert seconds("max") < 10 * fastest


def squares(count: int, side: int) -> Searches:
    """Random images in superpixels of 5×5 pixels, all of them attended."""
    at = torch.arange(side) // 5
    searches = Searches.of(known.random_images(count, (side, side)), torch.zeros(count, dtype=torch.int64))
    maps = (at[:, None] * int(at.max() + 1) + at).expand(count, -1, -1)
    return dataclasses.replace(searches, superpixels=maps, attention=torch.ones(count, side, side))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["small", "allconv"])
def test_no_gradient_makes_the_attack_much_slower(network: str) -> None:
    """All of SAI-FGM on eight images, the best of three rounds in turns; a small network hides nothing."""
    classifier = curved() if network == "small" else load_classifier("allconv")
    searches, steps = (squares(8, SIZE), 100) if network == "small" else (squares(8, 32), 10)
    ways = ("noise", "avg", "max")

    def seconds(way: str) -> float:
        return timeit.timeit(lambda: attack("sai-fgm", classifier, searches, steps=steps, gradient=way), number=1)

    seconds("noise")  # what is done once is no part of it
    taken = [[seconds(way) for way in ways] for _ in range(3)]
    best = [min(times) for times in zip(*taken, strict=True)]
    assert max(best) < 3 * min(best), dict(zip(ways, best, strict=True))
