"""The map of vulnerable pixels: against loops over every pixel and colour with the plain classifier."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import known
import msgspec
import numpy as np
import pytest
import torch
from attack_stages import record
from numpy.typing import NDArray
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.exhaustive import colour_grid, exhaustive
from pixelsem.attacks.settings_exhaustive import ExhaustiveSettings
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.metrics.vulnerability import PixelMap, classes_reached, density, density_difference, explain
from pixelsem.models.classifier import Classifier
from pixelsem.records import AttackRecord
from pixelsem.report.vulnerability import draw_vulnerability

HEIGHT, WIDTH, CLASSES = 6, 7, 4
CORNERS = list(itertools.product((0, 255), repeat=3))


def classifier_of(network: nn.Module, classes: int = CLASSES, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Classifier:
    return known.classifier_of(network, classes, size)


def images_of(count: int, seed: int = 3, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    return known.random_images(count, size, seed)


def convolutional(images: Tensor, classes: int = CLASSES) -> Classifier:
    """A small network for which class 0 leads on the first image by little, so that some pixels are enough."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * images[0, 0].numel(), classes),
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= 3
    with torch.no_grad():
        network[-1].bias -= network(images[:1].float() / 255)[0]
        network[-1].bias[0] += 0.25
    return classifier_of(network, classes, tuple(images.shape[2:]))  # type: ignore[arg-type]


@dataclass
class Oracle:
    """What a loop over every pixel and colour of one image says, one plain forward pass each."""

    confidence: NDArray[np.float64]  # [H, W, K, classes]
    top: NDArray[np.int64]  # [H, W, K]
    changed: NDArray[np.bool_]  # [H, W, K]


def brute_force(classifier: Classifier, image: Tensor, colours: list[tuple[int, ...]]) -> Oracle:
    _, height, width = image.shape
    confidence = np.zeros((height, width, len(colours), len(classifier.class_names)))
    top, changed = np.zeros(confidence.shape[:3], np.int64), np.zeros(confidence.shape[:3], np.bool_)
    for y, x, k in np.ndindex(*top.shape):
        candidate = image.clone()
        candidate[:, y, x] = torch.tensor(colours[k], dtype=torch.uint8)
        with torch.no_grad():
            logits = classifier(candidate[None].float() / 255)[0]
        confidence[y, x, k], top[y, x, k] = logits.double().softmax(0).numpy(), int(logits.argmax())
        changed[y, x, k] = not torch.equal(candidate, image)
    return Oracle(confidence, top, changed)


def run(
    classifier: Classifier, searches: Searches, how: dict[str, Any] | None = None, **settings: Any
) -> list[Outcome]:
    evaluator = Evaluator(classifier, device="cpu", **{"batch_size": 64, "scorer": "dense"} | (how or {}))
    found = exhaustive(searches, evaluator, ExhaustiveSettings(**settings))
    return sorted(found, key=lambda outcome: outcome.search)


def bits(packed: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    return np.unpackbits(packed, axis=-1, count=count).astype(bool)


def check(outcome: Outcome, oracle: Oracle, region: NDArray[np.bool_], label: int, target: int | None = None) -> None:
    """Compare an outcome with the oracle, number by number."""
    assert outcome.vulnerability is not None
    inside, count = region[..., None], oracle.top.shape[2]
    hits = oracle.changed & inside & ((oracle.top == target) if target is not None else (oracle.top != label))
    wanted = oracle.confidence[..., label if target is None else target]
    level = wanted.min(2) if target is None else wanted.max(2)
    assert np.array_equal(bits(outcome.history["hits"], count), hits)
    assert np.array_equal(outcome.vulnerability.vulnerable, hits.any(2))
    assert np.array_equal(outcome.history["vulnerable"], hits.any(2))
    np.testing.assert_allclose(outcome.vulnerability.level, np.where(region, level, 1.0 * (target is None)), atol=2e-6)
    classes = oracle.confidence.shape[3]
    reached = np.stack([((oracle.top == c) & oracle.changed & inside).any(2) & (c != label) for c in range(classes)], 2)
    assert np.array_equal(bits(outcome.vulnerability.reached, classes), reached)
    assert outcome.vulnerability.pixels_by_class(classes) == reached.sum((0, 1)).tolist()
    assert outcome.candidates == region.sum() * count
    assert outcome.queries == (oracle.changed & inside).sum()
    sign = 1 if target is None else -1
    answers = np.where(hits if hits.any() else inside, sign * wanted, np.inf)
    best = outcome.history["colours"][np.unravel_index(answers.argmin(), answers.shape)[2]]
    y, x, _ = np.unravel_index(answers.argmin(), answers.shape)
    assert outcome.adversarial[:, y, x].tolist() == best.tolist()


@pytest.mark.parametrize("scorer", ["dense", "incremental"])
def test_it_is_what_a_loop_over_every_pixel_and_colour_finds(scorer: str) -> None:
    image = images_of(1)
    image[0, :, 2, 3] = torch.tensor([255, 0, 255])  # a pixel that has one of the colours already
    classifier = convolutional(image)
    outcome = run(classifier, Searches.of(image, torch.tensor([0])), {"scorer": scorer})[0]
    oracle = brute_force(classifier, image[0], CORNERS)
    check(outcome, oracle, np.ones((HEIGHT, WIDTH), bool), 0)
    vulnerable = outcome.history["vulnerable"]
    assert 0 < vulnerable.sum() < vulnerable.size, "the test's network must have both kinds of pixels"
    assert outcome.queries == outcome.candidates - 1 == HEIGHT * WIDTH * 8 - 1
    changed = (outcome.adversarial != image[0]).any(0)
    assert int(changed.sum()) == 1
    assert int(classifier(outcome.adversarial[None].float() / 255).argmax()) != 0


def test_nothing_outside_of_the_region_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    image = images_of(1)
    classifier = convolutional(image)
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[1:4, 2:6] = True
    region[2, 3] = False
    places: list[int] = []
    asked = Evaluator.score

    def score(evaluator: Evaluator, edits: Any) -> Tensor:
        places.extend(edits.position.flatten().tolist())
        return asked(evaluator, edits)

    monkeypatch.setattr(Evaluator, "score", score)
    searches = Searches.of(image, torch.tensor([0]), regions=torch.from_numpy(region)[None])
    outcome = run(classifier, searches)[0]
    assert set(places) == set(np.flatnonzero(region).tolist())
    check(outcome, brute_force(classifier, image[0], CORNERS), region, 0)


def test_a_grid_of_colours_is_tried_whole() -> None:
    image = images_of(1, size=(4, 4))
    classifier = convolutional(image)
    levels = [0, 85, 170, 255]
    outcome = run(classifier, Searches.of(image, torch.tensor([0])), colours="grid:4")[0]
    colours = list(itertools.product(levels, repeat=3))
    assert outcome.history["colours"].tolist() == [list(colour) for colour in colours]
    check(outcome, brute_force(classifier, image[0], colours), np.ones((4, 4), bool), 0)


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 32])
def test_the_levels_of_a_grid_are_even(levels: int) -> None:
    grid = colour_grid(levels).numpy().astype(int)
    assert grid.shape == (levels**3, 3)
    assert len(np.unique(grid, axis=0)) == levels**3
    values = np.unique(grid)
    assert np.abs(values - np.arange(levels) * 255 / (levels - 1)).max() <= 0.5
    assert np.array_equal(values, 255 - values[::-1]) or levels % 2, "as many dark levels as light ones"


def test_targets_of_one_image_share_what_is_scored() -> None:
    image = images_of(1)
    classifier = convolutional(image)
    single = Searches.of(image, torch.tensor([0]))
    region = np.ones((3, HEIGHT, WIDTH), bool)
    region[2, :3] = False
    searches = Searches(
        images=image, image=torch.zeros(3, dtype=torch.int64), labels=torch.zeros(3, dtype=torch.int64),
        targets=torch.tensor([-1, 1, 3]), regions=torch.from_numpy(region), generators=list(single.generators) * 3,
    )  # fmt: skip
    evaluator = Evaluator(classifier, device="cpu", batch_size=64, scorer="dense")
    outcomes = list(exhaustive(searches, evaluator, ExhaustiveSettings()))
    oracle = brute_force(classifier, image[0], CORNERS)
    for outcome, target in zip(outcomes, (None, 1, 3), strict=True):
        check(outcome, oracle, region[outcome.search], 0, target)
    assert evaluator.queries == outcomes[0].queries < sum(outcome.queries for outcome in outcomes)


@pytest.mark.parametrize("together", [1, 5, 100, 1000])
def test_it_does_not_matter_what_is_scored_together(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(3)
    classifier = convolutional(images)
    labels = classifier(images.float() / 255).argmax(1)
    regions = torch.from_numpy(np.random.default_rng(0).random((3, HEIGHT, WIDTH)) < 0.15)
    monkeypatch.setattr(ExhaustiveSettings, "population", together)
    outcomes = run(classifier, Searches.of(images, labels, regions=regions))
    assert [outcome.search for outcome in outcomes] == [0, 1, 2]
    for outcome, image, label, region in zip(outcomes, images, labels.tolist(), regions.numpy(), strict=True):
        check(outcome, brute_force(classifier, image, CORNERS), region, label)


def test_what_is_marked_in_low_precision_holds_in_fp32() -> None:
    image = images_of(1)
    classifier = convolutional(image)
    oracle = brute_force(classifier, image[0], CORNERS)
    outcome = run(classifier, Searches.of(image, torch.tensor([0])), {"precision": "bf16"})[0]
    marked, true = bits(outcome.history["hits"], 8), oracle.changed & (oracle.top != 0)
    assert not (marked & ~true).any()
    assert marked.sum() >= 0.8 * true.sum() > 0


class _Tied(nn.Module):
    """Two classes a hair apart, the wrong one ahead wherever images come in batches."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.amax((1, 2, 3)) * 0
        lead = 1e-4 if len(x) > 1 else -1e-4
        return torch.stack([bright, bright + lead], 1)


def test_near_ties_are_decided_on_the_image_alone() -> None:
    image = images_of(1, size=(2, 2))
    outcome = run(classifier_of(_Tied(), 2, (2, 2)), Searches.of(image, torch.tensor([0])))[0]
    assert not outcome.history["vulnerable"].any()


class _Tent(nn.Module):
    """Class 1 where the reds of one pixel are near 130 and its greens near 40, which no corner is."""

    def forward(self, x: Tensor) -> Tensor:
        red, green = x[:, 0, 1, 2] * 255, x[:, 1, 1, 2] * 255
        far = ((red - 130).abs() + (green - 40).abs()) / 255
        return torch.stack([torch.zeros_like(far), 4 * (0.1 - far)], 1)


def test_refining_finds_the_colour_between_the_corners() -> None:
    image = torch.full((1, 3, 3, 4), 200, dtype=torch.uint8)
    classifier, searches = classifier_of(_Tent(), 2, (3, 4)), Searches.of(image, torch.tensor([0]))
    plain = run(classifier, searches)[0]
    assert not plain.history["vulnerable"].any()
    refined = run(classifier, searches, refine=True)[0]
    assert refined.adversarial[:2, 1, 2].tolist() == [130, 40]
    assert np.argwhere(refined.history["vulnerable"]).tolist() == [[1, 2]]
    assert refined.vulnerability is not None
    assert refined.vulnerability.pixels_by_class(2) == [0, 1]
    assert refined.vulnerability.level[1, 2] == pytest.approx(1 / (1 + np.exp(0.4)), abs=1e-5)
    assert refined.history["best"][1, 2, :2].tolist() == [130, 40]
    assert not bits(refined.history["hits"], 8).any(), "no colour of the grid is a hit"
    assert plain.queries < refined.queries <= plain.queries + 1000
    assert refined.generations > plain.generations == 1


@pytest.mark.parametrize("queries", [1, 60, 200])
def test_refining_keeps_its_budget_and_never_loses(queries: int) -> None:
    image = images_of(2)
    classifier = convolutional(image)
    labels = classifier(image.float() / 255).argmax(1)
    plain = run(classifier, Searches.of(image, labels))
    refined = run(classifier, Searches.of(image, labels), refine=True, refine_pixels=7, refine_queries=queries)
    for before, after in zip(plain, refined, strict=True):
        assert before.vulnerability is not None
        assert after.vulnerability is not None
        assert before.queries <= after.queries <= before.queries + queries
        assert (after.vulnerability.level <= before.vulnerability.level).all()
        assert (after.vulnerability.vulnerable >= before.vulnerability.vulnerable).all()
        assert (before.vulnerability.level != after.vulnerability.level).sum() <= 7


def test_it_stops_between_images_when_asked() -> None:
    images = images_of(4)
    classifier = convolutional(images)
    evaluator = Evaluator(classifier, device="cpu", batch_size=64, scorer="dense")
    seen: list[int] = []
    progress = Progress(on_change=lambda p: seen.append(p.queries), should_stop=lambda: len(seen) >= 1)
    searches = Searches.of(images.repeat(5, 1, 1, 1), torch.zeros(20, dtype=torch.int64))
    outcomes = list(exhaustive(searches, evaluator, ExhaustiveSettings(), progress))
    assert [outcome.search for outcome in outcomes] == list(range(4096 // (8 * HEIGHT * WIDTH)))
    assert seen == [4096]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colours": "all"}, "neither corners nor grid:N"),
        ({"colours": "grid:1"}, "grid:N with N from 2"),
        ({"colours": "grid:99"}, "from 2 to 32"),
        ({"colours": "grid:"}, "neither"),
        ({"refine_pixels": 3}, "go with --refine"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PixelsemError, match=told):
        ExhaustiveSettings(**options)


def test_the_budget_is_the_region_times_the_colours() -> None:
    assert ExhaustiveSettings().budget_in(1024) == 8192
    assert ExhaustiveSettings(colours="grid:3", refine=True, refine_queries=50).budget_in(10) == 320


# The picture


def test_the_picture_rings_vulnerable_pixels_and_fades_the_rest() -> None:
    image = np.full((8, 8, 3), 90, np.uint8)
    region, vulnerable = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    region[:, 6:], vulnerable[2, 3] = False, True
    danger = np.where(vulnerable, 0.9, 0.0).astype(np.float32)
    shown = draw_vulnerability(image, region, danger, vulnerable)
    assert shown.shape == (512, 512, 3)
    assert shown.dtype == np.uint8
    assert shown[5 * 64 + 32, 32].tolist() == [90, 90, 90]
    assert shown[32, 7 * 64 + 32].min() > 180
    assert shown[2 * 64, 3 * 64].tolist() == [0, 0, 0]
    assert shown[2 * 64 + 6, 3 * 64 + 6].tolist() == [255, 255, 255]
    red, _, blue = shown[2 * 64 + 32, 3 * 64 + 32].astype(int).tolist()
    assert red > blue + 80
    assert draw_vulnerability(
        np.zeros((224, 300, 3), np.uint8), *(np.zeros((224, 300), t) for t in (bool, np.float32, bool))
    ).shape == (224, 300, 3)


# The numbers


def mapped(image: str, region: str, vulnerable: int, reachable: dict[str, int], **changes: Any) -> AttackRecord:
    made = record(image, region, **changes)
    return msgspec.structs.replace(made, vulnerable_pixels=vulnerable, reachable=reachable, history="history/x.npz")


def test_density_is_counted_by_image() -> None:
    records = [
        mapped("a.png", "foreground", 10, {"dog": 8, "ship": 4}),
        mapped("b.png", "foreground", 0, {}),
        record("c.png", "foreground", outcome="misclassified"),
    ]
    found = density(records)
    assert found is not None
    assert found.images is not None
    assert (found.images.successes, found.images.n) == (1, 2)
    assert (found.pixels_mean, found.pixels_median) == (5, 5)
    assert found.density.value == pytest.approx(0.125)  # 10 of 40, 0 of 40
    assert found.classes_mean == 1
    assert found.classes_per_pixel == pytest.approx(1.2)
    assert classes_reached(records) == [("dog", 1, 8), ("ship", 1, 4)]
    assert density([records[2]]) is None


def test_sides_are_compared_on_the_same_images() -> None:
    inner = [mapped("a.png", "foreground", 20, {}), mapped("b.png", "foreground", 4, {})]
    outer = [mapped("a.png", "background", 6, {}), mapped("c.png", "background", 60, {})]
    found = density_difference(inner, outer)
    assert found is not None
    assert found[:2] == pytest.approx((0.5, 0.1))
    assert (found[2].value, found[2].n) == (pytest.approx(0.4), 1)
    assert density_difference(inner[1:], outer) is None


def pixel_map(hits: dict[tuple[int, int], list[int]]) -> PixelMap:
    marks, vulnerable = np.zeros((10, 10, 8), bool), np.zeros((10, 10), bool)
    for (x, y), colours in hits.items():
        marks[y, x, colours], vulnerable[y, x] = True, True
    return PixelMap(np.array(CORNERS, np.uint8), np.packbits(marks, axis=2), vulnerable)


def test_a_map_explains_successes_and_failures() -> None:
    def change(x: int, y: int, to: tuple[int, int, int]) -> list[dict[str, Any]]:
        return [{"x": x, "y": y, "from": [9, 9, 9], "to": list(to)}]

    some, none = pixel_map({(1, 2): [7, 4], (5, 5): [0]}), pixel_map({})
    with_hits, without = mapped("a.png", "original", 2, {}), mapped("b.png", "original", 0, {})
    searches = [
        (record("a.png", to="dog", pixels=change(1, 2, (255, 255, 255))), with_hits, some),  # in the map
        (record("a.png", to="dog", pixels=change(1, 2, (255, 0, 255))), with_hits, some),  # a corner that is no hit
        (record("a.png", to="dog", pixels=change(1, 2, (7, 0, 255))), with_hits, some),  # a colour not tried
        (record("a.png", to="dog", pixels=change(2, 1, (7, 0, 255))), with_hits, some),  # elsewhere
        (record("a.png"), with_hits, some),  # missed
        (record("b.png"), without, none),  # explained
        (record("b.png"), without, none),
    ]
    found = explain(searches)
    assert found is not None
    assert found.at_vulnerable is not None
    assert found.on_grid_in_map is not None
    assert found.missed is not None
    assert found.explained is not None
    assert (found.at_vulnerable.successes, found.at_vulnerable.n) == (3, 4)
    assert (found.on_grid, found.on_grid_in_map.successes, found.on_grid_in_map.n) == (2, 1, 2)
    assert (found.missed.successes, found.missed.n) == (1, 3)
    assert (found.explained.successes, found.explained.n) == (2, 3)
    assert explain([]) is None


def test_records_without_a_map_are_written_as_before() -> None:
    plain = msgspec.json.encode(record())
    assert not {b"vulnerable_pixels", b"reachable", b'"map"', b"overlay"} & set(plain.replace(b":", b",").split(b","))
    assert b"vulnerable" not in plain
    assert msgspec.json.decode(plain, type=AttackRecord) == record()


@pytest.mark.slow
def test_every_corner_that_de_finds_on_allconv_is_in_the_map(data_dir: Path) -> None:
    """DE whose colours are clipped to their range ends in corners often."""
    from pixelsem import load_classifier
    from pixelsem.attacks.de import differential_evolution
    from pixelsem.attacks.settings import DESettings
    from pixelsem.images import read_image

    classifier = load_classifier("allconv")
    files = sorted((data_dir / "test").rglob("*.jpg"))[::200]
    images = torch.from_numpy(np.stack([read_image(file) for file in files])).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        confidence, labels = classifier(images.float() / 255).softmax(1).max(1)
    unsure = confidence.argsort()[3:7]  # the very first fall for any change
    images, labels = images[unsure], labels[unsure]
    outcomes = run(classifier, Searches.of(images, labels), {"scorer": "incremental", "batch_size": 256})
    settings = DESettings(
        population=60, generations=40, out_of_range="clip", mutation=(1.0, 1.5), crossover=1.0, early_stop=False
    )
    evaluator = Evaluator(classifier, device="cpu", batch_size=256, scorer="incremental")
    found = 0
    for search in differential_evolution(Searches.of(images, labels), evaluator, settings):
        changed = (search.adversarial != images[search.search]).any(0).nonzero()
        hit = int(evaluator.confirm(search.adversarial[None]).argmax()) != int(labels[search.search])
        if hit and len(changed):
            y, x = changed[0].tolist()
            colour = tuple(search.adversarial[:, y, x].tolist())
            if colour in CORNERS:
                found += 1
                assert bits(outcomes[search.search].history["hits"], 8)[y, x, CORNERS.index(colour)]
    assert found > 0
