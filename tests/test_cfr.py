"""Contributing feature regions: against Algorithm 1 as the paper writes it, differentiated by PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_pgd import curved, linear, pictures, some_region, weights
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.cfr import contributing_features, soft_masks
from pixelsem.attacks.settings_qian2021 import CfrSettings
from pixelsem.engine.guides import attention
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models.classifier import Classifier
from pixelsem.regions.cam import class_activation


def hill(count: int) -> Tensor:
    """Attention with its peak of 1 in another place of every image."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    peaks = [torch.exp(-((y - 3 - 4 * n) ** 2 + (x - 8) ** 2) / 40) for n in range(count)]
    return torch.stack([peak / peak.max() for peak in peaks])


def searches_of(classifier: Classifier, images: Tensor, **options: Any) -> Searches:
    with torch.no_grad():
        labels = classifier(images.float() / 255).argmax(1)
    return replace(Searches.of(images, labels, **options), attention=hill(len(images)))


def run(classifier: Classifier, searches: Searches, progress: Progress | None = None, **options: Any) -> list[Outcome]:
    found = contributing_features(searches, Evaluator(classifier, device="cpu"), CfrSettings(**options), progress)
    return sorted(found, key=lambda outcome: outcome.search)


def algorithm_1(
    classifier: Classifier, image: Tensor, label: int, mask: Tensor, *, eta: float, temperature: float, beta: float
) -> tuple[Tensor, list[float]]:
    """Lines 5 to 9 as printed, 6 times, with the box constraint of Eq. 9; the image and every J."""
    x, delta, losses = image.double() / 255, torch.full(image.shape, 1 / 255, dtype=torch.float64), []
    network = classifier.double()
    delta = torch.where(mask > 0, torch.minimum(torch.maximum(delta * mask, -x), 1 - x) / mask, 0)
    for _ in range(6):
        delta = delta.detach().requires_grad_()
        confidence = network((x + delta * mask)[None]).softmax(1)[0, label]
        total = -confidence.log() / temperature + beta / (delta * mask).norm()
        (1 / total).backward()
        losses.append(float(total.detach()))
        delta = (delta.detach() - delta.grad * eta) * mask
        delta = torch.where(mask > 0, torch.minimum(torch.maximum(delta * mask, -x), 1 - x) / mask, 0)
    return x + delta * mask, losses


@pytest.mark.parametrize("mask_norm", ["max", "sum"])
def test_the_steps_are_those_of_algorithm_1(mask_norm: str) -> None:
    images, regions, classifier = pictures(3), some_region(3), curved()
    searches = searches_of(classifier, images, regions=regions)
    options: dict[str, Any] = {"temperature": 0.3, "beta": 0.7, "eta": 12.0}
    outcomes = run(classifier, searches, steps=6, mask_norm=mask_norm, **options)
    masks = soft_masks(hill(3), regions, 0.2, mask_norm).double()
    for row, outcome in enumerate(outcomes):
        label = int(searches.labels[row])
        image, losses = algorithm_1(curved(), images[row], label, masks[row], **options)
        np.testing.assert_allclose(outcome.history["loss"], losses, rtol=1e-3)
        assert float((image * 255 - outcome.adversarial).abs().max()) < 0.6
        assert mask_norm == "sum" or float((image * 255 - images[row]).norm()) > 20


def test_soft_masks() -> None:
    given = torch.tensor([[[1.0, 0.5], [0.25, 0.1]]])
    everywhere = torch.ones(1, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(soft_masks(given, everywhere, 0.2, "max")[0, 0], torch.tensor([[1.0, 0.5], [0.25, 0.0]]))
    by_sum = torch.tensor([[1.0, 0.5], [0.25, 0.0]]) / 1.75
    torch.testing.assert_close(soft_masks(given, everywhere, 0.2, "sum")[0, 0], by_sum)
    region = torch.tensor([[[False, True], [True, True]]])
    torch.testing.assert_close(soft_masks(given, region, 0.2, "sum")[0, 0], by_sum * region[0])
    assert not soft_masks(torch.zeros(1, 2, 2), everywhere, 0.0, "max").any()


def test_only_attended_pixels_of_the_region_change_and_the_label_loses_confidence() -> None:
    images, classifier = pictures(3), curved()
    regions = torch.ones(3, 16, 16, dtype=torch.bool)
    regions[:, :, :6] = False
    searches = searches_of(classifier, images, regions=regions)
    outcomes = run(classifier, searches, eta=60.0, tau=0.3)
    changed = torch.stack([(outcome.adversarial != images[outcome.search]).any(0) for outcome in outcomes])
    assert not (changed & ~(regions & (hill(3) >= 0.3))).any()
    assert bool(changed.flatten(1).any(1).all())
    for outcome in outcomes:
        both = torch.stack([images[outcome.search], outcome.adversarial])
        before, after = classifier(both.float() / 255).softmax(1)[:, searches.labels[outcome.search]].tolist()
        assert after < before
        assert outcome.queries == 20


def test_a_target_gains_confidence() -> None:
    images, classifier = pictures(3), curved()
    labels = classifier(images.float() / 255).argmax(1)
    targets = (labels + 1) % 4
    searches = searches_of(classifier, images, targets=targets)
    for outcome in run(classifier, searches, eta=60.0):
        both = torch.stack([images[outcome.search], outcome.adversarial])
        before, after = classifier(both.float() / 255).softmax(1)[:, targets[outcome.search]].tolist()
        assert after > before


def test_nothing_attended_in_the_region_leaves_the_image_as_it_is() -> None:
    images, classifier = pictures(1), linear(weights())
    regions = hill(1) < 0.1
    outcome = run(classifier, searches_of(classifier, images, regions=regions))[0]
    assert torch.equal(outcome.adversarial, images[0])


def test_noise_to_start_from_is_drawn_for_every_search_alone() -> None:
    images, classifier = pictures(3), curved()
    searches = searches_of(classifier, images)
    together = run(classifier, searches, init="noise", steps=3)
    again = replace(searches_of(classifier, images[1:2]), attention=hill(3)[1:2])
    alone = run(classifier, again, init="noise", steps=3)[0]
    np.testing.assert_allclose(alone.history["loss"], together[1].history["loss"], rtol=1e-3)
    other = replace(Searches.of(images[1:2], again.labels, seed=1), attention=again.attention)
    drawn_anew = run(classifier, other, init="noise", steps=3)[0]
    assert not np.allclose(drawn_anew.history["loss"], alone.history["loss"], rtol=1e-3)


def test_early_stop_ends_with_a_hit() -> None:
    images, classifier = pictures(3), linear(weights(scale=0.2))
    searches = searches_of(classifier, images)
    outcomes = run(classifier, searches, early_stop=True)
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert outcome.queries < 20
        assert len(outcome.history["loss"]) == outcome.queries
        logits = classifier(outcome.adversarial[None].float() / 255)
        assert int(logits.argmax()) != int(searches.labels[outcome.search])


def test_a_stop_that_is_asked_for_leaves_searches_without_outcome() -> None:
    progress = Progress(should_stop=lambda: progress.queries >= 6)
    assert run(curved(), searches_of(curved(), pictures()), progress) == []
    assert progress.queries == 6


def test_eta_goes_by_the_size_unless_it_is_given() -> None:
    assert (CfrSettings().eta_for(32, 32), CfrSettings().eta_for(224, 224)) == (10, 20)
    assert CfrSettings(eta=3).eta_for(224, 224) == 3


def test_searches_without_attention_are_refused() -> None:
    with pytest.raises(PixelsemError, match="cfr: the searches have no attention"):
        run(curved(), Searches.of(pictures(), torch.zeros(3, dtype=torch.int64)))


def test_the_guide_is_grad_cam_of_the_label() -> None:
    classifier, images, labels = curved(), pictures(), torch.tensor([0, 2, 1])
    guide = attention(CfrSettings(), classifier, "cpu")
    found = guide(images, labels)["attention"]
    torch.testing.assert_close(found, class_activation(classifier, images, labels, method="gradcam"))
    with pytest.raises(PixelsemError, match="nowhere"):
        attention(CfrSettings(layer="nowhere"), classifier, "cpu")
