"""PGD and M-DI²-FGSM: on linear models, whose largest loss within a budget is known, and against references."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis
import known
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known import linear
from torch import Tensor, nn
from torch.nn import functional as F

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.diverse_inputs import Resizing
from pixelsem.attacks.pgd import L2Ball
from pixelsem.attacks.registry import ATTACKS
from pixelsem.attacks.settings_qian2021 import MDi2FgmSettings, PgdSettings
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models.classifier import Classifier

SIZE = 16


classifier_of = partial(known.classifier_of, size=(SIZE, SIZE))


def curved(classes: int = 4) -> Classifier:
    """A network of any input size whose gradient differs from place to place."""
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, classes)
    )
    for parameter in layers.parameters():
        parameter.data *= 4
    return classifier_of(layers, classes)


def weights(classes: int = 2, scale: float = 0.05) -> Tensor:
    return known.random_weight(classes, SIZE, scale=scale)


def pictures(count: int = 3) -> Tensor:
    return known.random_images(count, (SIZE, SIZE))


def some_region(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).random((count, SIZE, SIZE)) < 0.4)


def run(name: str, classifier: Classifier, searches: Searches, **options: Any) -> list[Outcome]:
    info = ATTACKS[name]
    outcomes = info.load()(searches, Evaluator(classifier, device="cpu"), info.settings(**options), Progress())
    return sorted(outcomes, key=lambda outcome: outcome.search)


def changes(outcomes: list[Outcome], images: Tensor) -> Tensor:
    return torch.stack([outcome.adversarial for outcome in outcomes]).float() - images.float()


def best_linear_change(slope: Tensor, image: Tensor, region: Tensor, epsilon: float) -> Tensor:
    """The change within the L2 ball, the region and 0 … 255 of the largest product with ``slope``; float64."""
    slope, clean = slope.double() * region, image.double()
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        change = torch.minimum(torch.maximum(middle * slope, -clean), 255 - clean)
        low, high = (middle, high) if change.norm() <= epsilon else (low, middle)
    return torch.minimum(torch.maximum(low * slope, -clean), 255 - clean)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["pgd", "m-di2-fgsm"])
def test_the_largest_loss_within_the_linf_ball_is_reached(name: str, targeted: bool) -> None:
    images, weight, regions = pictures(), weights(), some_region(3)
    searches = Searches.of(
        images, torch.tensor([0, 0, 0]), regions=regions, targets=torch.tensor([1, 1, 1]) if targeted else None
    )
    options = {"probability": 0.0} if name == "m-di2-fgsm" else {}
    outcomes = run(name, linear(weight), searches, epsilon=9.5, **options)
    slope = (weight[1] - weight[0]).sign()
    wanted = (images + 9 * slope).clamp(0, 255) * regions[:, None] + images * ~regions[:, None]
    assert torch.equal(torch.stack([outcome.adversarial for outcome in outcomes]).float(), wanted.float())


@pytest.mark.parametrize("epsilon", [60.0, 128.0, 900.0])
def test_the_largest_loss_within_the_l2_ball_is_reached(epsilon: float) -> None:
    images, weight, regions = pictures(), weights(), some_region(3)
    searches = Searches.of(images, torch.tensor([0, 0, 0]), regions=regions)
    found = changes(
        run("pgd", linear(weight), searches, norm="l2", epsilon=epsilon, step=epsilon / 4, steps=40), images
    )
    slope = weight[1] - weight[0]
    for row in range(3):
        best = (best_linear_change(slope, images[row], regions[row], epsilon) * slope).sum()
        assert float(found[row].norm()) <= epsilon
        assert float((found[row] * slope).sum()) >= 0.99 * float(best)
        assert not (found[row] * ~regions[row]).any()


def test_the_l2_projection_is_the_nearest_point_of_ball_and_box() -> None:
    images, regions = pictures(), some_region(3)
    change = torch.from_numpy(np.random.default_rng(9).normal(0, 120, images.shape)).float()
    for epsilon in (50.0, 800.0, 1e5):
        projected = L2Ball(images, regions[:, None], epsilon).project(change)
        for row in range(3):
            clean = images[row].double()
            boxed = torch.minimum(torch.maximum(change[row].double() * regions[row], -clean), 255 - clean)
            exact = best_linear_change(change[row], images[row], regions[row], epsilon)
            exact = boxed if boxed.norm() <= epsilon else exact
            assert float(projected[row].norm()) <= epsilon * (1 + 1e-5)
            assert float((projected[row] - exact).norm()) < 0.01 * float(exact.norm())


@pytest.mark.parametrize(("name", "norm"), [("pgd", "linf"), ("pgd", "l2"), ("m-di2-fgsm", "linf")])
def test_budget_and_region_hold_and_targets_are_reached(name: str, norm: str) -> None:
    images, regions, classifier = pictures(4), some_region(4), curved()
    clean = classifier(images.float() / 255).argmax(1)
    for targets in (None, (clean + 1) % 4):
        searches = Searches.of(images, clean, regions=regions, targets=targets)
        options = {"norm": norm} if name == "pgd" else {}
        epsilon = 60.0 if norm == "linf" else 1200.0
        outcomes = run(name, classifier, searches, epsilon=epsilon, step=epsilon / 8, **options)
        change = changes(outcomes, images)
        size = change.abs().amax((1, 2, 3)) if norm == "linf" else change.flatten(1).norm(dim=1)
        assert bool((size <= epsilon).all())
        assert bool((size > 0.9 * epsilon).all())
        assert not (change * ~regions[:, None]).any()
        after = classifier((images + change) / 255).argmax(1)
        assert torch.equal(after, targets) if targets is not None else bool((after != clean).all())
        assert [outcome.queries for outcome in outcomes] == [21] * 4


@pytest.mark.parametrize("name", ["pgd", "m-di2-fgsm"])
def test_a_search_does_not_depend_on_the_others(name: str) -> None:
    images, classifier = pictures(4), curved()
    labels = classifier(images.float() / 255).argmax(1)
    together = run(name, classifier, Searches.of(images, labels), steps=4)
    for row in range(4):
        alone = run(name, classifier, Searches.of(images[row : row + 1], labels[row : row + 1]), steps=4)[0]
        np.testing.assert_allclose(alone.history["loss"], together[row].history["loss"], rtol=2e-3)
        assert float((alone.adversarial != together[row].adversarial).float().mean()) < 0.01


def test_of_several_starts_the_best_counts() -> None:
    images, classifier = pictures(4), curved()
    labels = classifier(images.float() / 255).argmax(1)
    options = {"epsilon": 3.0, "step": 1.0, "steps": 2}
    one = run("pgd", classifier, Searches.of(images, labels), **options)
    three = run("pgd", classifier, Searches.of(images, labels), restarts=3, **options)
    assert {outcome.history["loss"].shape for outcome in three} == {(3, 3)}
    for single, best in zip(one, three, strict=True):
        np.testing.assert_allclose(single.history["loss"][0], best.history["loss"][0], rtol=1e-4)
        assert len(set(best.history["loss"][:, 0].tolist())) == 3  # another start each time
        logits = classifier(best.adversarial[None].float() / 255)
        reached = F.cross_entropy(logits, labels[best.search : best.search + 1])
        if bool((best.history["loss"][:, -1] < 1.3).all()):  # none has hit: the highest loss
            assert float(reached.detach()) == pytest.approx(best.history["loss"][:, -1].max(), rel=1e-4)


@pytest.mark.parametrize(("name", "most"), [("pgd", 63), ("m-di2-fgsm", 41)])
def test_early_stop_ends_with_the_first_hit(name: str, most: int) -> None:
    images, classifier = pictures(4), curved()
    labels = classifier(images.float() / 255).argmax(1)
    restarts = {"restarts": 3} if name == "pgd" else {}
    options = {"epsilon": 40.0, "step": 2.0, "early_stop": True, **restarts}
    outcomes = run(name, classifier, Searches.of(images, labels), **options)
    assert len(outcomes) == 4
    settings = ATTACKS[name].settings(**options)
    assert settings.budget == most
    for outcome in outcomes:
        assert int(classifier(outcome.adversarial[None].float() / 255).argmax()) != int(labels[outcome.search])
        assert outcome.queries < 21
    assert len({outcome.queries for outcome in outcomes}) > 1


def test_a_stop_that_is_asked_for_leaves_searches_without_outcome() -> None:
    images = pictures()
    searches = Searches.of(images, torch.tensor([0, 0, 0]))
    progress = Progress(should_stop=lambda: progress.queries >= 6)
    attack = ATTACKS["pgd"].load()
    assert list(attack(searches, Evaluator(linear(weights()), device="cpu"), PgdSettings(), progress)) == []
    assert progress.queries == 6


def test_momentum_gathers_gradients_over_their_l1_norm() -> None:
    """Against Algorithm 1 of Dong et al. 2018, one image at a time."""
    images, classifier, regions = pictures(2), curved(), some_region(2)
    labels = classifier(images.float() / 255).argmax(1)
    searches = Searches.of(images, labels, regions=regions)
    options = {"steps": 6, "epsilon": 5.0, "step": 1.0, "probability": 0.0, "momentum": 0.7}
    outcomes = run("m-di2-fgsm", classifier, searches, **options)
    for row in range(2):
        clean = images[row : row + 1].float()
        image, gathered = clean.clone(), torch.zeros_like(clean)
        for _ in range(6):
            unit = (image / 255).requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(unit), labels[row : row + 1]), unit)
            gradient = gradient * regions[row]
            gathered = 0.7 * gathered + gradient / gradient.abs().sum()
            image = (clean + (image + gathered.sign() - clean).clamp(-5, 5)).clamp(0, 255)
        assert float((outcomes[row].adversarial != image[0]).float().mean()) < 0.005


@hypothesis.settings(deadline=None)
@given(
    length=st.integers(1, 40),
    rate=st.floats(0.1, 2),
    size=st.floats(0, 1, exclude_max=True, width=32),
    place=st.floats(0, 1, exclude_max=True, width=32),
)
def test_resizing_is_interpolation_and_padding(length: int, rate: float, size: float, place: float) -> None:
    resizing = Resizing(length, rate)
    column = torch.rand(length, generator=torch.Generator().manual_seed(length))
    matrix = resizing.matrices(torch.tensor([size]), torch.tensor([place]))[0]
    got = matrix @ column
    shown = matrix.any(1).nonzero()[:, 0]
    first, new = int(shown[0]), len(shown)
    smallest, padded = sorted((length, max(1, round(length * rate))))
    assert smallest <= new <= max(smallest, padded - 1)
    scaled = F.interpolate(column[None, None, :, None], size=(new, 1), mode="bilinear", align_corners=False)
    wanted = F.pad(scaled[0, 0, :, 0], (first, padded - first - new))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_all_sizes_and_places_of_the_paper_come_up() -> None:
    """299 pixels become 299 to 329, padded to 330 (Xie et al. 2019, §3.3)."""
    resizing = Resizing(299, 330 / 299)
    random = torch.rand(400, generator=torch.Generator().manual_seed(0))
    matrices = resizing.matrices(random, random.flip(0))
    lengths = (matrices != 0).any(2).sum(1)
    assert matrices.shape[1:] == (330, 299)
    assert set(lengths.tolist()) == set(range(299, 330))


class _Sizes(nn.Module):
    """Notes what it sees: how many images of which size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []
        self.layer = nn.Conv2d(3, 2, 1)

    def __deepcopy__(self, _: object) -> _Sizes:
        return self

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append((len(image), image.shape[-1]))
        out: Tensor = self.layer(image).mean((2, 3))
        return out


def test_the_share_of_resized_images_is_p() -> None:
    network = _Sizes()
    searches = Searches.of(pictures(8), torch.zeros(8, dtype=torch.int64))
    run("m-di2-fgsm", classifier_of(network, 2), searches, resize_rate=1.5, steps=50, probability=0.3)
    network.seen = network.seen[1:]  # whether the size is taken at all was tried with one
    resized = sum(count for count, size in network.seen if size == 24)
    plain = sum(count for count, size in network.seen if size == 16)
    assert resized + plain == 8 * 51
    assert resized / (8 * 50) == pytest.approx(0.3, abs=0.07)


def test_a_model_of_one_size_refuses_larger_images() -> None:
    searches = Searches.of(pictures(), torch.tensor([0, 0, 0]))
    with pytest.raises(PixelsemError, match=r"known takes no images of 18×18 pixels; give a rate below 1"):
        run("m-di2-fgsm", linear(weights()), searches, resize_rate=1.1)


def test_settings() -> None:
    assert (PgdSettings().radius, PgdSettings().stride, PgdSettings().budget) == (16, 2, 21)
    assert (PgdSettings(norm="l2").radius, PgdSettings(norm="l2").stride) == (128, 16)
    for name in ("pgd", "m-di2-fgsm"):
        for preset in ATTACKS[name].presets.values():
            assert ATTACKS[name].settings(**preset).radius in (8, 15)
    with pytest.raises(PixelsemError, match=r"--epsilon: 0\.5 of 255"):
        MDi2FgmSettings(epsilon=0.5)
    with pytest.raises(PixelsemError, match="--restarts goes with a random start"):
        PgdSettings(restarts=2, random_start=False)
