"""Visible patches: where they lie, what is in them, and one for many images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import known
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.patch_fitting import Examples, PatchTraining, fit_patch
from pixelsem.attacks.patches import adversarial_patch, localised_noise
from pixelsem.attacks.placement import Placement, find_places, patch_mask
from pixelsem.attacks.settings_patches import PATCH_FILE, AdvPatchSettings, LavanSettings, PatchFitSettings
from pixelsem.engine.patches import given_patch
from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import read_layer, write_image, write_layer
from pixelsem.models import Classifier, Preprocessing
from pixelsem.records import PatchRecord

SIDE = 12


class Linear(nn.Module):
    """Two classes by a weighted sum; the second where it is above 0."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        z = (x * self.weights).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


def evaluator_of(network: nn.Module, classes: int = 2, batch_size: int = 32) -> Evaluator:
    names = tuple("abcdefgh"[:classes])
    model = Classifier(network, name="tiny", class_names=names, preprocessing=Preprocessing((SIDE, SIDE), SIDE))
    return Evaluator(model, device="cpu", scorer="dense", batch_size=batch_size)


def random_images(count: int, seed: int = 0) -> Tensor:
    return known.random_images(count, (SIDE, SIDE), seed)


def weights(seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(3, SIDE, SIDE))).float()


def disc(radius: float = 4.5) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (y - SIDE / 2 + 0.5) ** 2 + (x - SIDE / 2 + 0.5) ** 2 < radius**2


Attack = Callable[..., Iterator[Outcome]]
#: Each with settings that reach the end of their way.
ATTACKS: list[tuple[Attack, type, dict[str, Any]]] = [
    (adversarial_patch, AdvPatchSettings, {"lr": 0.05, "steps": 60}),
    (localised_noise, LavanSettings, {"step": 60.0, "steps": 60, "early_stop": False, "share": 0.15}),
]
both = pytest.mark.parametrize(("function", "kind", "fast"), ATTACKS, ids=["adv-patch", "lavan"])


def run(function: Attack, searches: Searches, evaluator: Evaluator, settings: Any) -> list[Outcome]:
    return sorted(function(searches, evaluator, settings), key=lambda outcome: outcome.search)


def pixels_of(outcome: Outcome) -> tuple[slice, slice]:
    top, left, height, width = outcome.history["box"].tolist()
    return slice(top, top + height), slice(left, left + width)


# Shape and place


@pytest.mark.parametrize("shape", ["square", "circle"])
@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 32), (60, 100)])
def test_a_patch_has_its_share(shape: Any, height: int, width: int) -> None:
    mask = patch_mask(0.15, shape, height, width)
    assert float(mask.sum()) / (height * width) == pytest.approx(0.15, rel=0.08)
    assert mask.shape[0] / mask.shape[1] == pytest.approx(height / width, rel=0.08)
    assert torch.equal(mask, mask.flip(0))
    assert torch.equal(mask, mask.flip(1))
    assert bool(mask[0, 0]) == (shape == "square")


def test_the_sides_of_the_papers() -> None:
    assert patch_mask(0.15, "square", 224, 224).shape == (87, 87)
    assert patch_mask(0.02, "square", 224, 224).shape == (32, 32)
    assert patch_mask(1.0, "square", 5, 7).shape == (5, 7)
    assert patch_mask(1e-9, "square", 5, 7).shape == (1, 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["random", "corner", "region"]))
def test_places_are_among_those_wanted(seed: int, place: Any) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 10, 2)
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    mask = torch.from_numpy(rng.random((h, w)) < 0.6)
    mask[rng.integers(h), rng.integers(w)] = True
    regions = torch.from_numpy(rng.random((4, height, width)) < rng.choice([0.05, 0.5, 1.0]))
    regions[:, h // 2, w // 2] = True
    mask[h // 2, w // 2] = True  # so that some place meets the region
    places = find_places(regions, mask, place, torch.from_numpy(rng.random(4)))
    for region, (top, left) in zip(regions, places.tolist(), strict=True):
        counts = {
            (y, x): int((region[y : y + h, x : x + w] & mask).sum())
            for y in range(height - h + 1)
            for x in range(width - w + 1)
        }
        corners = {(y, x): n for (y, x), n in counts.items() if n and y in (0, height - h) and x in (0, width - w)}
        most = {at for at, n in counts.items() if n == max(counts.values())}
        wanted = {"random": {at for at, n in counts.items() if n}, "region": most, "corner": set(corners) or most}
        assert (top, left) in wanted[place]


def test_every_place_is_as_likely() -> None:
    draws = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    whole = torch.ones(9, 4, 5, dtype=torch.bool)
    places = find_places(whole, torch.ones(2, 3, dtype=torch.bool), "random", draws)
    assert sorted(map(tuple, places.tolist())) == [(y, x) for y in range(3) for x in range(3)]
    corners = find_places(whole, torch.ones(2, 3, dtype=torch.bool), "corner", draws)
    assert {tuple(at) for at in corners.tolist()} == {(0, 0), (0, 2), (2, 0), (2, 2)}


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_pasting_changes_the_usable_pixels_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clean = torch.from_numpy(rng.random((3, 3, 6, 7)))
    regions, mask = (torch.from_numpy(rng.random(shape) < 0.6) for shape in ((3, 6, 7), (2, 4)))
    corners = torch.from_numpy(np.stack([rng.integers(0, 5, 3), rng.integers(0, 4, 3)], 1))
    content = torch.from_numpy(rng.random((3, 3, 2, 4)))
    placement = Placement(clean, regions, mask, corners)
    wanted = clean.clone()
    for row, (top, left) in enumerate(corners.tolist()):
        for y in range(2):
            for x in range(4):
                if mask[y, x] and regions[row, top + y, left + x]:
                    wanted[row, :, top + y, left + x] = content[row, :, y, x]
    assert torch.equal(placement.paste(content), wanted)
    some = torch.tensor([2, 0])
    assert torch.equal(placement.paste(content[some], some), wanted[some])
    assert placement.areas.tolist() == [int(used.sum()) for used in placement.usable]
    placement.keep(torch.tensor([False, True, True]))
    assert torch.equal(placement.paste(content[1:]), wanted[1:])


# Patches of single images


@both
@pytest.mark.parametrize("place", ["random", "corner", "region"])
def test_nearly_the_largest_margin_on_a_linear_model(function: Attack, kind: type, fast: Any, place: str) -> None:
    """The best patch is white where the weight is on the wanted class's side, and black elsewhere."""
    w, images = weights(), random_images(6)
    regions = disc().expand(6, -1, -1)
    labels = torch.tensor([0, 1] * 3)
    searches = Searches.of(images, labels, regions=regions)
    for outcome in run(function, searches, evaluator_of(Linear(w)), kind(place=place, **fast)):
        rows, columns = pixels_of(outcome)
        sign = 1 if labels[outcome.search] == 0 else -1
        clean, written = images[outcome.search].double(), outcome.adversarial.double()
        allowed = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        allowed[rows, columns] = disc()[rows, columns]
        best = torch.where(allowed, torch.where(sign * w > 0, 255.0, 0.0), clean)
        gained, possible = ((sign * w * (image - clean)).sum() for image in (written, best))
        assert float(gained) >= 0.99 * float(possible) > 0
        assert torch.equal(written[:, ~allowed], clean[:, ~allowed])
        assert int(outcome.history["area"]) == int(allowed.sum())
        assert outcome.history["loss"].shape == (60,)
        assert (outcome.queries, outcome.generations) == (60, 60)


@both
def test_a_target_is_reached(function: Attack, kind: type, fast: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 5))
    evaluator, images = evaluator_of(network, 5), random_images(5)
    labels = evaluator.confirm(images).argmax(1)
    targets = (labels + 1 + torch.arange(5) % 4) % 5
    searches = Searches.of(images, labels, targets=targets)
    outcomes = run(function, searches, evaluator, kind(**fast | {"share": 0.5}))
    found = evaluator.confirm(torch.stack([outcome.adversarial for outcome in outcomes])).argmax(1)
    assert torch.equal(found, targets)


@both
def test_the_batch_changes_nothing(function: Attack, kind: type, fast: Any) -> None:
    evaluator, images = evaluator_of(Linear(weights()), batch_size=2), random_images(4)
    labels = torch.zeros(4, dtype=torch.int64)
    together = run(function, Searches.of(images, labels), evaluator, kind(**fast))
    for row, outcome in enumerate(together):
        one = Searches.of(images[row : row + 1], labels[row : row + 1])
        alone = run(function, one, evaluator, kind(**fast))[0]
        assert torch.equal(outcome.adversarial, alone.adversarial)
        assert outcome.history["box"].tolist() == alone.history["box"].tolist()
    boxes = {tuple(outcome.history["box"].tolist()) for outcome in together}
    assert len(boxes) > 1  # places are drawn, image by image


@both
def test_early_stop_ends_with_the_first_hit(function: Attack, kind: type, fast: Any) -> None:
    evaluator, images = evaluator_of(Linear(weights())), random_images(8)
    labels = evaluator.confirm(images).argmax(1)
    full, stopped = (
        run(function, Searches.of(images, labels), evaluator, kind(**fast | {"share": 0.5, "early_stop": early}))
        for early in (False, True)
    )
    for whole, short in zip(full, stopped, strict=True):
        hit = int(evaluator.confirm(short.adversarial[None]).argmax()) != int(labels[short.search])
        assert hit == (short.generations < 60)
        # In both the losses are logit gaps of two classes: below 0 is a hit.
        assert short.history["loss"][-1] < 0 or not hit
        assert (short.history["loss"][:-1] >= 0).all()
        assert np.allclose(short.history["loss"], whole.history["loss"][: short.generations], atol=1e-4)
    assert any(outcome.generations < 60 for outcome in stopped)


@both
def test_asked_to_stop_there_is_no_outcome(function: Attack, kind: type, fast: Any) -> None:
    searches = Searches.of(random_images(2), torch.zeros(2, dtype=torch.int64))
    stop = Progress(should_stop=lambda: True)
    assert list(function(searches, evaluator_of(Linear(weights())), kind(**fast), stop)) == []


def test_settings_of_the_papers() -> None:
    patch, noise = AdvPatchSettings(), LavanSettings()
    assert (patch.share, patch.lr, patch.steps, patch.budget, patch.early_stop) == (0.15, 0.01, 1000, 1000, False)
    assert (noise.share, noise.steps, noise.place) == (0.02, 10_000, "corner")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "changes nothing"),
        ({"shape": "circle", "share": 0.9}, "0.785"),
        ({"patch": Path("a.png"), "steps": 5}, "--steps does not go with --patch"),
        ({"patch": Path("a.png"), "early_stop": True}, "--early-stop does not go with --patch"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PixelsemError, match=message):
        AdvPatchSettings(**options)


# A patch that is given


def sticker(folder: Path) -> Path:
    layer = np.zeros((3, 5, 4), np.uint8)
    layer[..., 0] = 200
    layer[1:, :, 3] = 255  # the first row is transparent
    write_layer(folder / "sticker.png", layer)
    return folder / "sticker.png"


def test_a_given_patch_is_pasted_as_it_is(tmp_path: Path) -> None:
    evaluator, images = evaluator_of(Linear(weights())), random_images(5)
    settings = AdvPatchSettings(patch=sticker(tmp_path))
    labels = torch.zeros(5, dtype=torch.int64)
    fields = given_patch(settings, evaluator.classifier, "cpu")(images, labels)
    plain = Searches.of(images, labels)
    searches = Searches(*(getattr(plain, name) for name in list(plain.__dataclass_fields__)[:6]), **fields)
    outcomes = run(adversarial_patch, searches, evaluator, settings)
    for outcome in outcomes:
        top, left, height, width = outcome.history["box"].tolist()
        assert (height, width) == (3, 5)
        wanted = images[outcome.search].clone()
        wanted[:, top + 1 : top + 3, left : left + 5] = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None]
        assert torch.equal(outcome.adversarial, wanted)
        assert (outcome.queries, int(outcome.history["area"])) == (1, 10)
    assert len({tuple(outcome.history["box"].tolist()) for outcome in outcomes}) > 1


def test_layers_read_as_written(tmp_path: Path) -> None:
    layer = np.random.default_rng(0).integers(0, 256, (4, 7, 4), np.uint8)
    write_layer(tmp_path / "layer.png", layer)
    assert np.array_equal(read_layer(tmp_path / "layer.png"), layer)
    write_image(tmp_path / "plain.png", layer[..., :3])
    assert np.array_equal(read_layer(tmp_path / "plain.png")[..., :3], layer[..., :3])
    assert (read_layer(tmp_path / "plain.png")[..., 3] == 255).all()


def test_patches_that_cannot_be_used(tmp_path: Path) -> None:
    model = evaluator_of(Linear(weights())).classifier
    large = tmp_path / "large.png"
    write_layer(large, np.full((3, SIDE + 1, 4), 255, np.uint8))
    clear = tmp_path / "clear.png"
    write_layer(clear, np.zeros((3, 3, 4), np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    for name, message in (("large", "make it smaller"), ("clear", "transparent throughout"), ("text", "not an image")):
        with pytest.raises(PixelsemError, match=message) as caught:
            given_patch(AdvPatchSettings(patch=tmp_path / f"{name}.png"), model, "cpu")
        assert f"{name}.png" in str(caught.value)


def test_a_stage_stands_for_its_patch(tmp_path: Path) -> None:
    assert AdvPatchSettings(patch=tmp_path).patch_file == tmp_path / PATCH_FILE
    assert AdvPatchSettings(patch=tmp_path / "a.png").patch_file == tmp_path / "a.png"


# One patch for many images


PATTERNS = torch.from_numpy(np.random.default_rng(4).choice([-1.0, 1.0], (3, 3, 3, 3))).float()


class Patterns(nn.Module):
    """Three classes, by which of three patterns is seen most strongly anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x - 0.5, PATTERNS).flatten(2).amax(2)


def examples_of(evaluator: Evaluator, count: int, seed: int, target: int = -1) -> Examples:
    """Make grey noise, each with a pattern somewhere in it, as strong as half of what 8 bits allow."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.normal(128, 10, (count, 3, SIDE, SIDE)))
    for row, (top, left) in enumerate(rng.integers(0, SIDE - 2, (count, 2))):
        images[row, :, top : top + 3, left : left + 3] = 128 + 64 * PATTERNS[row % 3]
    images = images.round().clamp(0, 255).to(torch.uint8)
    labels = torch.arange(count) % 3
    assert torch.equal(evaluator.confirm(images).argmax(1), labels)
    some = labels != target
    whole = torch.ones(int(some.sum()), SIDE, SIDE, dtype=torch.bool)
    return Examples(images[some], labels[some], torch.full_like(labels[some], target), whole)


def fitted(evaluator: Evaluator, examples: Examples, settings: PatchFitSettings, folder: Path, **options: Any) -> Any:
    patch = PatchTraining.start(settings, SIDE, SIDE, evaluator.device)
    options = {"seed": 0, "identity": "x"} | options
    steps = fit_patch(patch, examples, evaluator, settings, checkpoint=folder / "checkpoint.pt", **options)
    return patch, [step for step in steps if isinstance(step, PatchRecord)]


def share_of_hits(evaluator: Evaluator, examples: Examples, layer: np.ndarray) -> float:  # type: ignore[type-arg]
    plain = Searches.of(examples.images, examples.labels, targets=examples.targets)
    given_layer = torch.from_numpy(layer).permute(2, 0, 1).expand(len(examples), -1, -1, -1)
    searches = Searches(*(getattr(plain, name) for name in list(plain.__dataclass_fields__)[:6]), patches=given_layer)
    outcomes = run(adversarial_patch, searches, evaluator, AdvPatchSettings())
    found = evaluator.confirm(torch.stack([outcome.adversarial for outcome in outcomes])).argmax(1)
    hits = torch.where(examples.targets >= 0, found == examples.targets, found != examples.labels)
    return float(hits.float().mean())


@pytest.mark.parametrize("aimed", [False, True])
def test_a_trained_patch_fools_images_it_has_not_seen(tmp_path: Path, aimed: bool) -> None:
    evaluator, target = evaluator_of(Patterns(), 3), 1 if aimed else -1
    train, held_out = examples_of(evaluator, 40, 1, target), examples_of(evaluator, 40, 2, target)
    settings = PatchFitSettings(share=0.15, steps=100, lr=0.05, images_per_step=8)
    patch, log = fitted(evaluator, train, settings, tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (*patch.mask.shape, 4), np.uint8)
    noise[..., 3] = 255
    trained, random = (share_of_hits(evaluator, held_out, layer) for layer in (patch.pixels(), noise))
    assert trained >= random + 0.3
    assert [record.step for record in log] == [25, 50, 75, 100]
    assert log[-1].loss < log[0].loss
    assert log[-1].hits > log[0].hits


def test_an_interrupted_training_ends_the_same(tmp_path: Path) -> None:
    evaluator = evaluator_of(Patterns(), 3)
    examples = examples_of(evaluator, 12, 1)
    settings = PatchFitSettings(steps=60, images_per_step=4, shape="circle")
    whole, log = fitted(evaluator, examples, settings, tmp_path / "whole")
    assert [record.step for record in log] == [25, 50, 60]
    patch = PatchTraining.start(settings, SIDE, SIDE, evaluator.device)
    file = tmp_path / "cut" / "checkpoint.pt"
    for step in fit_patch(patch, examples, evaluator, settings, 0, file, "x"):
        if isinstance(step, float) and step > 0.6:
            break
    resumed, again = fitted(evaluator, examples, settings, tmp_path / "cut")
    assert torch.equal(whole.content, resumed.content)
    assert [(record.step, record.loss) for record in again] == [(record.step, record.loss) for record in log]
    assert np.array_equal(whole.pixels()[..., 3] > 0, whole.mask.numpy())
    other, _ = fitted(evaluator, examples, settings, tmp_path / "other", seed=1)
    assert not torch.equal(whole.content, other.content)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    evaluator = evaluator_of(Patterns(), 3)
    examples = examples_of(evaluator, 4, 1)
    settings = PatchFitSettings(steps=2, images_per_step=2)
    fitted(evaluator, examples, settings, tmp_path)
    with pytest.raises(StageError, match="another run"):
        fitted(evaluator, examples, settings, tmp_path, identity="y")
    (tmp_path / "checkpoint.pt").write_bytes(b"no archive")
    with pytest.raises(InputError, match="not a checkpoint"):
        fitted(evaluator, examples, settings, tmp_path)
