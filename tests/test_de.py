"""The few-pixel attack: on models whose best change is known."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import known
import numpy as np
import pytest
import torch
from known import linear as linear_classifier
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Progress, Searches, fitness_of, is_hit
from pixelsem.attacks.de import differential_evolution
from pixelsem.attacks.few_pixel import PixelCoding, bounding_boxes, snap_tables
from pixelsem.attacks.random import generator
from pixelsem.attacks.settings import DE_PRESETS, DESettings, RegionOptions
from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models.classifier import Classifier

SIZE = 12

classifier_of = partial(known.classifier_of, size=(SIZE, SIZE))
random_weight = partial(known.random_weight, side=SIZE)


@pytest.fixture
def image() -> Tensor:
    return known.random_images(1, (SIZE, SIZE))


def run(classifier: Classifier, searches: Searches, settings: DESettings, **how: Any) -> list[Outcome]:
    evaluator = Evaluator(classifier, device="cpu", batch_size=256, **how)
    return sorted(differential_evolution(searches, evaluator, settings), key=lambda outcome: outcome.search)


def margin_optimum(weight: Tensor, image: Tensor, region: Tensor) -> float:
    """The largest change of (logit 1 − logit 0) that one pixel of the region can bring: every channel to a bound."""
    slope = weight[1] - weight[0]
    unit = image[0].float() / 255
    gain = torch.where(slope > 0, slope * (1 - unit), slope * (0 - unit)).sum(0)
    return float(gain[region].max())


@pytest.mark.parametrize("constraint", ["encode", "revert"])
@pytest.mark.parametrize("strategy", ["rand1bin", "best1bin"])
def test_the_optimum_of_a_linear_model_is_reached(image: Tensor, constraint: str, strategy: str) -> None:
    weight, bias = random_weight(2), torch.tensor([50.0, -50.0])  # no single pixel can flip it: all generations run
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, 2:9, 3:11] = True
    region[0, 4:6, 4:6] = False
    # The confidence saturates at such a margin, so the search sees the margin itself: logits divided by 100.
    classifier = linear_classifier(weight / 100, bias / 100)
    settings = DESettings(
        population=60,
        generations=80,
        constraint=constraint,
        strategy=strategy,
        early_stop=False,  # type: ignore[arg-type]
    )
    outcome = run(classifier, Searches.of(image, torch.tensor([0]), regions=region), settings)[0]
    logits = (outcome.adversarial.float() / 255 * weight).flatten(1).sum(1)
    clean = (image[0].float() / 255 * weight).flatten(1).sum(1)
    reached = float((logits[1] - logits[0]) - (clean[1] - clean[0]))
    assert reached >= 0.98 * margin_optimum(weight, image, region[0])
    changed = (outcome.adversarial != image[0]).any(0)
    assert int(changed.sum()) == 1
    assert bool(region[0][changed].all())


class _OnePixel(nn.Module):
    """Class 1 where the pixel (x, y) is bright red, else class 0: the only hole in the model."""

    def __init__(self, x: int, y: int) -> None:
        super().__init__()
        self.x, self.y = x, y

    def forward(self, image: Tensor) -> Tensor:
        red = image[:, 0, self.y, self.x] - image[:, 1:, self.y, self.x].mean(1)
        return torch.stack([torch.zeros_like(red), 20 * (red - 0.5)], 1)


def test_the_only_vulnerable_pixel_is_found_and_nothing_outside_the_region(image: Tensor) -> None:
    image = torch.full_like(image, 100)
    inside = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    inside[0, 3:9, 3:9] = True
    settings = DESettings(population=100, generations=50)
    for region, found in ((inside, True), (~inside, False)):
        searches = Searches.of(image, torch.tensor([0]), regions=region)
        outcome = run(classifier_of(_OnePixel(5, 7), 2), searches, settings)[0]
        changed = (outcome.adversarial != image[0]).any(0)
        assert bool(changed[7, 5]) == found
        assert int(changed.sum()) <= 1
        assert bool(region[0][changed].all())
        assert (outcome.generations < 50) == found


@pytest.mark.parametrize("pixels", [1, 3, 5])
@pytest.mark.parametrize("constraint", ["encode", "revert"])
def test_changes_stay_in_the_region_and_within_k_pixels(image: Tensor, pixels: int, constraint: str) -> None:
    rng = np.random.default_rng(pixels)
    region = torch.from_numpy(rng.random((1, SIZE, SIZE)) < 0.2)
    settings = DESettings(population=20, generations=5, pixels=pixels, constraint=constraint, early_stop=False)  # type: ignore[arg-type]
    searches = Searches.of(image, torch.tensor([0]), regions=region)
    outcome = run(linear_classifier(random_weight(3), torch.zeros(3)), searches, settings)[0]
    changed = (outcome.adversarial != image[0]).any(0)
    assert 1 <= int(changed.sum()) <= pixels
    assert bool(region[0][changed].all())


def test_candidates_outside_the_region_cost_no_query(image: Tensor) -> None:
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, :3] = True  # a quarter of the image
    classifier = linear_classifier(random_weight(2), torch.tensor([100.0, 0.0]))
    counts = {}
    for constraint in ("encode", "revert"):
        settings = DESettings(population=400, generations=1, constraint=constraint)  # type: ignore[arg-type]
        counts[constraint] = run(classifier, Searches.of(image, torch.tensor([0]), regions=region), settings)[0]
    assert counts["encode"].candidates == counts["revert"].candidates == 400
    assert counts["encode"].queries == 400
    assert counts["revert"].queries == pytest.approx(100, abs=5)


@pytest.mark.parametrize("pixels", [1, 2])
def test_no_picture_goes_through_the_model_twice(image: Tensor, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Genes clipped to their range meet in its corners, so that many candidates come again."""
    pictures = known.recorded(monkeypatch, image)
    region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region[0, 4, 4:6] = True
    settings = DESettings(population=50, generations=40, pixels=pixels, out_of_range="clip", mutation=(1.5, 2.0))
    classifier = linear_classifier(random_weight(2) / 100, torch.tensor([0.5, -0.5]))
    outcome = run(classifier, Searches.of(image, torch.tensor([0]), regions=region), settings)[0]
    assert len(set(pictures)) == len(pictures) == outcome.queries
    assert outcome.queries < 0.7 * outcome.candidates


def test_a_targeted_search_reaches_its_target_and_no_other_class(image: Tensor) -> None:
    weight = random_weight(4, seed=5)
    clean = (image[0].float() / 255 * weight).flatten(1).sum(1)
    bias = -clean + torch.tensor([0.3, 0.0, 0.0, 0.0])
    searches = Searches.of(image.repeat(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64), targets=torch.tensor([1, 2, 3]))
    classifier = linear_classifier(weight, bias)
    for target, outcome in enumerate(run(classifier, searches, DESettings(population=50, generations=30)), 1):
        logits = classifier(outcome.adversarial[None].float() / 255)
        assert int(logits.argmax()) == target


def test_fitness_and_hits_are_what_the_papers_say() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    confidence = logits.softmax(1)
    labels = torch.tensor([0, 0])
    no_target, target = torch.tensor([-1, -1]), torch.tensor([2, 1])
    assert torch.equal(fitness_of(logits, labels, no_target), confidence[:, 0])
    assert torch.equal(fitness_of(logits, labels, target), -torch.stack([confidence[0, 2], confidence[1, 1]]))
    assert is_hit(logits, labels, no_target).tolist() == [False, True]
    assert is_hit(logits, labels, target).tolist() == [False, True]


def test_it_stops_with_the_first_hit_unless_told_otherwise(image: Tensor) -> None:
    image = torch.full_like(image, 100)
    classifier, searches = classifier_of(_OnePixel(5, 7), 2), Searches.of(image, torch.tensor([0]))
    early = run(classifier, searches, DESettings(population=200, generations=30))[0]
    late = run(
        classifier, Searches.of(image, torch.tensor([0])), DESettings(population=200, generations=30, early_stop=False)
    )[0]
    assert early.generations < late.generations == 30
    assert len(late.history["best"]) == len(late.history["mean"]) == 30
    assert late.history["accepted"].shape == late.history["close"].shape == (29, 25)
    assert np.array_equal(late.history["best"][: early.generations], early.history["best"])
    assert (np.diff(late.history["best"]) <= 0).all()
    confidences = [float(classifier(o.adversarial[None].float() / 255).softmax(1)[0, 0]) for o in (early, late)]
    assert confidences[1] <= confidences[0] < 0.5


def test_su2017_stops_at_its_confidences(image: Tensor) -> None:
    image = torch.full_like(image, 100)
    settings = DESettings(**{**DE_PRESETS["su2017"], "population": 200, "generations": 60})
    untargeted, targeted = (
        Searches.of(image, torch.tensor([0])),
        Searches.of(image, torch.tensor([0]), targets=torch.tensor([1])),
    )
    classifier = classifier_of(_OnePixel(5, 7), 2)
    for searches, column, bound in ((untargeted, 0, 0.05), (targeted, 1, 0.9)):
        outcome = run(classifier, searches, settings)[0]
        confidence = float(classifier(outcome.adversarial[None].float() / 255).softmax(1)[0, column])
        assert outcome.generations < 60
        assert confidence <= bound if column == 0 else confidence >= bound


class _Misled(Evaluator):
    """A search whose low precision sees hits that fp32 does not confirm."""

    def score(self, edits: Edits) -> Tensor:
        return super().score(edits).flip(1)


def test_an_unconfirmed_hit_does_not_end_the_search(image: Tensor) -> None:
    classifier = linear_classifier(random_weight(2) / 100, torch.tensor([5.0, 0.0]))
    evaluator = _Misled(classifier, device="cpu", batch_size=64)
    settings = DESettings(population=10, generations=4)
    outcome = next(iter(differential_evolution(Searches.of(image, torch.tensor([0])), evaluator, settings)))
    assert outcome.generations == 4
    assert int(classifier(outcome.adversarial[None].float() / 255).argmax()) == 0


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_search_is_the_same_in_any_company_and_batch(batch: int) -> None:
    rng = np.random.default_rng(8)
    images = torch.from_numpy(rng.integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8))
    classifier = linear_classifier(random_weight(3, seed=2), torch.zeros(3))
    labels = classifier(images.float() / 255).argmax(1)
    settings = DESettings(population=16, generations=6, pixels=2)
    evaluator = Evaluator(classifier, device="cpu", batch_size=batch)
    together = {o.search: o for o in differential_evolution(Searches.of(images, labels), evaluator, settings)}
    for index in range(4):
        alone = run(classifier, Searches.of(images[index : index + 1], labels[index : index + 1]), settings)[0]
        assert torch.equal(alone.adversarial, together[index].adversarial)
        assert (alone.queries, alone.generations) == (together[index].queries, together[index].generations)
        assert np.array_equal(alone.history["accepted"], together[index].history["accepted"])


def test_asking_to_stop_leaves_unfinished_searches_out(image: Tensor) -> None:
    calls: list[int] = []
    progress = Progress(on_change=lambda p: calls.append(p.queries), should_stop=lambda: len(calls) >= 3)
    evaluator = Evaluator(
        linear_classifier(random_weight(2) / 100, torch.tensor([9.0, 0.0])), device="cpu", batch_size=8
    )
    searches = Searches.of(image, torch.tensor([0]))
    assert list(differential_evolution(searches, evaluator, DESettings(population=8, generations=50), progress)) == []
    assert calls == [8, 16, 24]


def test_random_numbers_depend_on_all_of_the_key_and_nothing_else() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    other = pixels.copy()
    other[0, 0, 0] = 1
    base = (0, 0, pixels, "foreground", None)
    keys = [
        base,
        (1, *base[1:]),
        (0, 1, *base[2:]),
        (0, 0, other, *base[3:]),
        (*base[:3], "background", None),
        (*base[:4], "cat"),
    ]
    draws = [generator(*key).random(4).tolist() for key in keys]
    assert len({tuple(d) for d in draws}) == len(keys)
    assert generator(*base).random(4).tolist() == draws[0]
    # A golden value: a change here changes every result that was ever published.
    assert generator(0, 0, pixels, "original", None).integers(0, 2**32, 3).tolist() == GOLDEN


GOLDEN = [2838755974, 2635129258, 386248610]


def test_snapping_takes_the_nearest_pixel_of_the_region() -> None:
    regions = torch.from_numpy(np.random.default_rng(4).random((3, 6, 7)) < 0.25)
    regions[:, 2, 3] = True
    table = snap_tables(regions)
    grid = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij"), -1).view(-1, 2).double()
    for region, snapped in zip(regions, table, strict=True):
        allowed = grid[region.flatten()]
        nearest = torch.cdist(grid, allowed).min(1).values
        assert bool(region.flatten()[snapped].all())
        torch.testing.assert_close((grid - grid[snapped]).norm(dim=1), nearest)


def test_bounding_boxes_are_tight() -> None:
    region = torch.zeros(1, 6, 7, dtype=torch.bool)
    region[0, 2, 3] = region[0, 4, 1] = True
    origin, extent = bounding_boxes(region)
    assert origin.tolist() == [[1, 2]]
    assert extent.tolist() == [[3, 3]]


def test_genes_cover_every_pixel_and_colour_evenly() -> None:
    image = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
    coding = PixelCoding(image, torch.tensor([0]), torch.ones(1, 4, 5, dtype=torch.bool), "revert")
    genes = torch.from_numpy(np.random.default_rng(0).random((1, 40000, 5)))
    edits = coding.edits(genes)
    places = torch.bincount(edits.position.flatten(), minlength=20).double()
    colours = torch.bincount(edits.colour[:, 0, 0].long(), minlength=256).double()
    assert float(((places - 2000) ** 2 / 2000).sum()) < 43.8  # chi², 19 degrees of freedom, p = 0.001
    assert float(((colours - 156.25) ** 2 / 156.25).sum()) < 330.5  # 255 degrees of freedom
    ends = coding.edits(torch.tensor([[[0.0] * 5, [1.0] * 5]], dtype=torch.float64))
    assert ends.position.flatten().tolist() == [0, 19]
    assert ends.colour[:, 0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(PixelsemError, match="go with --stop confidence"):
        DESettings(stop_true=0.1)
    with pytest.raises(PixelsemError, match="cannot go with --no-early-stop"):
        DESettings(stop="confidence", early_stop=False)
    with pytest.raises(PixelsemError, match="another --region than original"):
        RegionOptions(masks=Path("masks"))
