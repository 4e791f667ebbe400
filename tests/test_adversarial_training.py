"""Adversarial training, on networks whose worst case is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import CPU, QUICK, TINY, data, defend, epochs, examples, same_weights, tiny
from torch import Tensor, nn

from pixelsem.defenses import robustness, training
from pixelsem.defenses.adversaries import FewPixels, SignAscent, measuring_adversary, training_adversary
from pixelsem.defenses.examples import InMemory
from pixelsem.defenses.robustness import attacked_accuracy, find_collapse, measure_robustness
from pixelsem.defenses.settings import TrainSettings
from pixelsem.defenses.training import rate, train
from pixelsem.errors import PixelsemError
from pixelsem.images import write_image
from pixelsem.models import Classifier, Preprocessing, load_classifier
from pixelsem.records import EpochRecord
from pixelsem.stage import open_stage

__all__ = ["data"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 8
FAST: dict[str, Any] = {"method": "fast", "robust_sample": 20, "robust_steps": 3}


def pictures(count: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, SIDE, SIDE), np.uint8))


def whole(count: int) -> Tensor:
    return torch.ones(count, SIDE, SIDE, dtype=torch.bool)


def linear(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a linear network of two classes, and the direction that takes most from class 0: signs [3, H, W]."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    weight = network[1].weight.detach()
    return network, (weight[1] - weight[0]).sign().view(3, SIDE, SIDE)


# Gradients


@pytest.mark.parametrize(("stride", "steps"), [(16.0, 1), (2.0, 8)])
def test_the_worst_case_of_a_linear_network_is_reached(stride: float, steps: int) -> None:
    """Steps of 2ε in all reach it from anywhere in the ball."""
    network, worst = linear()
    images = pictures(16)
    labels = torch.arange(16) % 2
    regions = torch.rand(16, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) < 0.5
    changed = SignAscent(8.0, stride, steps)(network, images, labels, regions, 3)
    towards = torch.where(labels[:, None, None, None] == 0, worst, -worst)
    wanted = torch.where(regions[:, None], (images + 8.0 * towards).clamp(0, 255), images.float())
    assert torch.equal(changed, wanted)


def test_one_step_of_fast_training_starts_anywhere_in_the_ball() -> None:
    network, worst = linear()
    images = torch.full((64, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    attack = training_adversary(TrainSettings(method="fast").resolved(32, 32))
    assert attack is not None
    changed = attack(network, images, torch.zeros(64, dtype=torch.int64), whole(64), 0)
    moved = (changed - 128) * worst
    # A start u in [-8, 8] ends at min(u + 10, 8): never under 2, and at 8 for 10 of 16 of them.
    assert moved.min() >= 2
    assert moved.max() == 8
    assert float((moved == 8).float().mean()) == pytest.approx(10 / 16, abs=0.02)
    between = moved[moved < 8]
    assert float(between.mean()) == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize("radius", [2.0, 2.5, 8.0])
def test_no_value_leaves_the_ball(radius: float) -> None:
    classifier = tiny().train()
    images = pictures(32)
    changed = SignAscent(radius, radius, 3)(classifier, images, torch.arange(32) % 2, whole(32), 0)
    change = changed.double() - images.double()
    assert float(change.abs().max()) == radius
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_draws_depend_on_the_seed_alone() -> None:
    network, _ = linear()
    images, labels = pictures(4), torch.zeros(4, dtype=torch.int64)
    for attack in (SignAscent(8.0, 1.0, 1), FewPixels(1, 6, 2)):
        torch.manual_seed(1)
        first = attack(network, images, labels, whole(4), 5)
        state = torch.random.get_rng_state()
        again = attack(network, images, labels, whole(4), 5)
        assert torch.equal(first, again)
        assert torch.equal(state, torch.random.get_rng_state())
        assert not torch.equal(first, attack(network, images, labels, whole(4), 6))


# Few pixels


def test_few_pixels_change_in_the_region_alone() -> None:
    network, _ = linear()
    images, labels = pictures(12), torch.arange(12) % 2
    regions = torch.rand(12, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) < 0.2
    regions[3] = False
    changed = FewPixels(3, 8, 3)(network, images, labels, regions, 0)
    differs = (changed != images).any(1)
    assert not (differs & ~regions).any()
    assert differs.sum((1, 2)).max() == 3
    assert differs.sum((1, 2))[[0, 1, 2]].min() >= 1
    assert torch.equal(changed[3], images[3].float())
    assert torch.equal(changed, changed.round())


def test_more_generations_take_more_confidence() -> None:
    network, _ = linear()
    images, labels = pictures(12), torch.arange(12) % 2

    def confidence(changed: Tensor) -> Tensor:
        return network(changed / 255).softmax(1).gather(1, labels[:, None])[:, 0].detach()

    found = [confidence(FewPixels(1, 8, number)(network, images, labels, whole(12), 0)) for number in (1, 3, 30)]
    clean = confidence(images.float())
    assert (found[0] < clean).all()  # the best of eight is better than none
    assert (found[1] <= found[0] + 1e-6).all()
    assert (found[2] <= found[1] + 1e-6).all()
    assert (found[2] < found[0] - 1e-4).any()
    # The known optimum: every channel of one pixel at its end.
    weight = (network[1].weight[1] - network[1].weight[0]).detach().view(3, SIDE, SIDE)  # type: ignore[index, operator]
    gain = torch.where(labels[:, None, None, None] == 0, weight, -weight)
    values = images / 255
    most = torch.maximum(gain * (1 - values), -gain * values).sum(1).amax((1, 2))
    odds = (clean / (1 - clean)).log() - most
    assert (found[2] >= odds.sigmoid() - 1e-5).all()
    assert (found[2] - odds.sigmoid()).mean() < 0.3 * (clean - odds.sigmoid()).mean()


# Training


class Probe(nn.Module):
    """A network that notes the mode and the size of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny().network
        self.calls: list[tuple[bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.training, len(x)))
        logits: Tensor = self.inner(x)
        return logits


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({"method": "standard"}, [(True, 20)]),
        ({"method": "fast"}, [(True, 20)] * 2),
        ({"method": "pgd", "steps": 4}, [(True, 20)] * 5),
        ({"method": "pixel", "population": 7, "generations": 2}, [(False, 140)] * 2 + [(True, 20)]),
    ],
)
def test_attacks_run_in_the_mode_that_they_are_made_for(
    tmp_path: Path, settings: dict[str, Any], calls: list[tuple[bool, int]]
) -> None:
    probe = Probe()
    classifier = Classifier(probe, name="x", class_names=("blue", "red"), preprocessing=Preprocessing((8, 8), 8))
    epochs(tmp_path / "c.pt", classifier, **settings, epochs=1, batch=20, robust_sample=0)
    assert probe.calls == [*calls * 2, (False, 30)]  # two steps, and the test images


@pytest.mark.parametrize(
    "settings",
    [
        FAST,
        {"method": "fast", "precision": "bf16", "schedule": "cosine", "robust_sample": 0},
        {"method": "pgd", "steps": 2, "average": 0.9, "robust_sample": 10},
        {"method": "pixel", "population": 6, "generations": 2, "pixels": 2, "robust_sample": 4, "robust_steps": 2},
        {"average": 0.8, "schedule": "cosine"},
    ],
)
def test_interrupted_and_resumed_is_as_never_interrupted(tmp_path: Path, settings: dict[str, Any]) -> None:
    undisturbed, broken, resumed = tiny(), tiny(), tiny()
    log = epochs(tmp_path / "whole.pt", undisturbed, **settings)
    steps = train(broken, examples(40, 0), examples(30, 1), TrainSettings(**QUICK | settings), tmp_path / "c.pt", CPU)
    while not isinstance(next(steps), EpochRecord):
        pass
    assert isinstance(next(steps), float)
    steps.close()
    assert not same_weights(broken, undisturbed)
    torch.manual_seed(99)
    again = epochs(tmp_path / "c.pt", resumed, **settings)
    assert same_weights(resumed, undisturbed)
    fields = ("epoch", "loss", "train_accuracy", "test_accuracy", "robust_accuracy", "fgsm_accuracy")
    assert [[getattr(r, f) for f in fields] for r in again] == [[getattr(r, f) for f in fields] for r in log]
    measured = settings.get("robust_sample", 0) > 0
    assert all((record.robust_accuracy is not None) == measured for record in log)
    assert all((record.fgsm_accuracy is not None) == (measured and settings["method"] == "fast") for record in log)


def test_regions_follow_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright where the region is: crops and flips must keep it so, and changes must stay there."""
    labels = examples(40, 0).labels
    regions = torch.zeros(40, SIDE, SIDE, dtype=torch.bool)
    regions[:, 1:4, 0:3] = True
    images = torch.where(regions[:, None], 200, 50).expand(-1, 3, -1, -1).to(torch.uint8).contiguous()
    seen = []

    class Watching(SignAscent):
        def __call__(self, logits: Any, images: Tensor, labels: Tensor, regions: Tensor, seed: int) -> Tensor:
            changed = super().__call__(logits, images, labels, regions, seed)
            assert torch.equal(regions, images[:, 0] == 200)
            assert torch.equal((changed != images).all(1), regions)
            seen.append(seed)
            return changed

    monkeypatch.setattr(training, "training_adversary", lambda settings, scale: Watching(8.0, 16.0, 1, scale))
    settings = TrainSettings(**QUICK | {"method": "fast", "region": "foreground", "robust_sample": 0, "epochs": 2})
    bright = InMemory(images, labels, regions)
    list(train(tiny(), bright, bright, settings, tmp_path / "c.pt", CPU))
    assert len(seen) == len(set(seen)) == 10


def two_features(count: int, seed: int) -> InMemory:
    """Return images with one feature that ε = 8 cannot turn but errs in one of ten, and many that turn but never err.

    A network that looks at the many is right on all images as they are, and on none of those attacked.
    """
    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % 2
    side = 2 * labels[:, None, None, None].float() - 1
    images = 128 + 4 * side.expand(-1, 3, SIDE, SIDE).clone()
    erring = torch.from_numpy(np.where(rng.random(count) < 0.1, -1.0, 1.0)).float()[:, None, None, None]
    images[:, :, :1, :2] = 128 + 20 * (side * erring)
    return InMemory(images.round().to(torch.uint8), labels)


@pytest.mark.parametrize("method", ["fast", "pgd"])
def test_adversarial_training_makes_robust(tmp_path: Path, method: str) -> None:
    def trained(**settings: Any) -> tuple[float, float]:
        centred = Preprocessing((8, 8), 8, mean=(128 / 255,) * 3, std=(0.1,) * 3)
        classifier = Classifier(linear()[0], name="x", class_names=("a", "b"), preprocessing=centred)
        chosen = TrainSettings(
            epochs=12, batch=20, crop=0, flip=False, precision="fp32", lr=0.1, robust_sample=200, **settings
        )
        steps = train(
            classifier, two_features(200, 0), two_features(200, 1), chosen, tmp_path / f"{chosen.method}.pt", CPU
        )
        last = [step for step in steps if isinstance(step, EpochRecord)][-1]
        assert last.robust_accuracy is not None
        return last.test_accuracy, last.robust_accuracy

    clean, robust = trained()
    assert clean == 1.0
    assert robust < 0.3
    hard_clean, hard_robust = trained(method=method)
    assert hard_clean > 0.8
    assert hard_robust > 0.8


def test_robust_accuracy_of_a_linear_network_is_the_known_one() -> None:
    network, _ = linear()
    classifier = Classifier(network, name="x", class_names=("a", "b"), preprocessing=Preprocessing((8, 8), 8))
    images = torch.from_numpy(np.random.default_rng(0).integers(100, 156, (300, 3, SIDE, SIDE), np.uint8))
    labels = classifier(images / 255).argmax(1)
    length = float((network[1].weight[0] - network[1].weight[1]).detach().abs().sum())  # type: ignore[index, operator]
    logits = classifier(images / 255).detach()
    margin = (logits[:, 0] - logits[:, 1]).abs()
    epsilon = round(float(255 * margin.median() / length), 2)
    assert 0.5 < epsilon < 100  # far from 0 and 255
    wanted = float((margin > length * epsilon / 255).float().mean())
    settings = TrainSettings(robust_sample=300, epsilon=epsilon).resolved(8, 8)
    anywhere = InMemory(images, labels)
    found = measure_robustness(classifier, anywhere.batches(70, CPU), measuring_adversary(settings), 0)
    assert found == pytest.approx(wanted, abs=2 / 300)  # of float32
    assert 0.4 < found < 0.6
    assert attacked_accuracy(classifier, anywhere, settings, CPU) == (found, None)
    # Where nothing may change, it is the accuracy itself.
    closed = InMemory(images, labels, ~whole(300))
    assert attacked_accuracy(classifier, closed, settings, CPU) == (1.0, None)


def test_the_average_is_what_is_measured_and_left(tmp_path: Path) -> None:
    classifier, start = tiny(), tiny()
    epochs(tmp_path / "c.pt", classifier, average=0.5, epochs=1, batch=40)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    training._start(start, TrainSettings(**QUICK), CPU)
    for name, tensor in classifier.network.state_dict().items():
        assert torch.equal(tensor, state["averaged"][name])
        if name.endswith("weight"):  # after one step the decay is 2/11
            wanted = 2 / 11 * start.network.state_dict()[name] + 9 / 11 * state["network"][name]
            torch.testing.assert_close(tensor, wanted)


def test_learning_rates() -> None:
    assert [rate(step, 10, 0.4, "one-cycle") for step in (0, 3, 4, 7, 9)] == [0.25, 1, 1, 0.5, 1 / 6]
    found = [rate(step, 10, 0.4, "cosine") for step in (0, 3, 4, 7, 10)]
    assert found == pytest.approx([0.25, 1, 1, 0.5, 0])
    falling = [rate(step, 100, 0.1, "cosine") for step in range(10, 100)]
    assert falling == sorted(falling, reverse=True)


# Catastrophic overfitting


def log_of(*shares: tuple[float | None, float | None]) -> list[EpochRecord]:
    return [EpochRecord(n, 1.0, 0.5, 0.5, 1.0, *each) for n, each in enumerate(shares, 1)]


@pytest.mark.parametrize(
    ("shares", "sample", "found"),
    [
        ([(0.3, 0.35), (0.4, 0.45), (0.05, 0.8), (0.0, 0.9)], 500, (3, 2)),
        ([(0.4, 0.45), (0.35, 0.5), (0.0, 0.7)], 500, (3, 1)),
        ([(0.3, 0.35), (0.4, 0.45), (0.42, 0.46)], 500, None),
        ([(0.45, 0.5), (0.4, 0.55), (0.3, 0.6)], 500, None),  # overfitting, but not of this kind
        ([(0.4, 0.45), (0.1, 0.2)], 500, None),  # all falls: diverging
        ([(0.4, 0.45), (0.1, 0.8)], 10, None),  # too few images to tell
        ([(0.4, 0.45), (0.1, 0.8)], 100, (2, 1)),
        ([(0.4, None), (0.0, None)], 500, None),
        ([(None, None)], 0, None),
        ([], 0, None),
    ],
)
def test_catastrophic_overfitting_is_told(shares: Any, sample: int, found: tuple[int, int] | None) -> None:
    collapse = find_collapse(log_of(*shares), sample)
    assert (collapse and (collapse.epoch.epoch, collapse.best.epoch)) == found


def collapsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training's accuracies under attack be those of one that collapses in its fourth epoch."""
    shares = [(0.3, 0.35), (0.5, 0.55), (0.45, 0.6), (0.0, 0.9), (0.4, 0.5)]
    number = 0

    def made_up(classifier: Classifier, *_: Any) -> tuple[float, float]:
        nonlocal number
        number += 1
        return shares[(number - 1) % len(shares)]

    monkeypatch.setattr(training, "attacked_accuracy", made_up)


def test_training_ends_at_it_with_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapsing(monkeypatch)
    classifier = tiny()
    settings = TrainSettings(**QUICK | FAST | {"epochs": 8})
    kept: dict[int, dict[str, Tensor]] = {}
    for step in train(classifier, examples(40, 0), examples(30, 1), settings, tmp_path / "c.pt", CPU):
        if isinstance(step, EpochRecord):
            kept[step.epoch] = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    assert list(kept) == [1, 2, 3, 4]

    def left(of: Classifier) -> list[int]:
        own = of.network.state_dict()
        return [epoch for epoch, state in kept.items() if all(torch.equal(own[name], state[name]) for name in own)]

    assert left(classifier) == [2]
    # The checkpoint tells the same; nothing is trained again.
    again = tiny()
    assert [record.epoch for record in epochs(tmp_path / "c.pt", again, **FAST | {"epochs": 8})] == [1, 2, 3, 4]
    assert left(again) == [2]


def test_few_test_images_do_not_tell_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of ten images right after five of them: the intervals of ten meet, those of 500 would not."""
    collapsing(monkeypatch)
    settings = TrainSettings(**QUICK | FAST | {"epochs": 5, "robust_sample": 500})
    steps = train(tiny(), examples(40, 0), examples(10, 1), settings, tmp_path / "c.pt", CPU)
    assert [step.epoch for step in steps if isinstance(step, EpochRecord)] == [1, 2, 3, 4, 5]


# Settings


def test_defaults_are_those_of_the_methods() -> None:
    def of(method: str, side: int) -> tuple[Any, ...]:
        s = TrainSettings(method=method).resolved(side, side)  # type: ignore[arg-type]
        return s.epsilon, s.step, s.steps, s.pixels, s.population, s.generations, s.region, s.robust_sample

    assert of("standard", 32) == (None, None, None, None, None, None, None, 0)
    assert of("fast", 32) == (8.0, 10.0, None, None, None, None, "original", 500)
    assert of("fast", 224) == (2.0, 2.5, None, None, None, None, "original", 500)
    assert of("pgd", 32) == (8.0, 2.0, 7, None, None, None, "original", 500)
    assert of("pgd", 224) == (2.0, 0.5, 7, None, None, None, "original", 500)
    assert of("pixel", 32) == (None, None, None, 1, 10, 3, "original", 500)
    given = TrainSettings(method="pgd", epsilon=4.0, step=3.0, steps=2).resolved(32, 32)
    assert (given.epsilon, given.step, given.steps) == (4.0, 3.0, 2)
    assert given.resolved(224, 224) == given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3}, "--steps goes with --method pgd, not standard"),
        ({"method": "fast", "steps": 3}, "--steps goes with --method pgd, not fast"),
        ({"method": "pixel", "epsilon": 8.0}, "--epsilon goes with --method standard, fast, pgd, not pixel"),
        ({"method": "pgd", "pixels": 1}, "--pixels goes with --method pixel, not pgd"),
        ({"region": "foreground"}, "--region goes with --method fast, pgd, pixel, not standard"),
        ({"epsilon": 8.0}, "--epsilon goes with a --robust-sample of more than 0"),
        ({"method": "fast", "robust_sample": 0, "robust_steps": 5}, "--robust-steps goes with a --robust-sample"),
        ({"method": "pixel", "region": "all"}, "--region: 'all' is none of original, foreground"),
        ({"method": "pixel", "region": "label:x"}, "--region: 'label:x' is none of"),
    ],
)
def test_options_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PixelsemError, match=re.escape(message)):
        TrainSettings(**settings)


# The command


def test_the_command_tells_method_budget_and_accuracies(data: Path) -> None:
    options = ["--method", "fast", "--epsilon", "4", "--robust-sample", "10", "--robust-steps", "2", "--epochs", "2"]
    result = defend("--data", "data", "--json", *options)
    summary = json.loads(result.stdout)
    stage = Path(summary["stage"])
    assert stage.name.startswith("train-model.py-make-fast-")
    log = list(open_stage(stage).epoch_records())
    assert all(record.robust_accuracy is not None and record.fgsm_accuracy is not None for record in log)
    assert re.search(r"epoch 1: loss .*, robust [\d.]+ %, FGSM [\d.]+ %, ", result.stderr)
    card = (stage / "model.py-make.md").read_text()
    for part in (
        f"**Robust accuracy: {100 * summary['robust_accuracy']:.2f} %**",
        "of 10 test images under PGD (ε = 4/255, 2 steps).",
        "| method | fast |", "| epsilon | 4.0 |", "| step | 5.0 |",
        "| epoch | loss | train accuracy % | test accuracy % | robust accuracy % | accuracy under FGSM % | seconds |",
    ):  # fmt: skip
        assert part in card
    assert "| population |" not in card
    assert load_classifier("model.py:make", weights=Path(summary["weights"])).class_names == ("blue", "red")
    # The default of ε said aloud is the same run.
    first = defend("--data", "data", "--method", "fast", "--epochs", "1", "--robust-sample", "0").stdout
    said = ["--epsilon", "8", "--step", "10"]
    again = defend("--data", "data", "--method", "fast", "--epochs", "1", "--robust-sample", "0", *said).stdout
    assert first == again


def test_the_command_tells_of_catastrophic_overfitting(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapsing(monkeypatch)
    monkeypatch.setattr(robustness, "measure_robustness", lambda *_, **__: 0.5)
    result = defend("--data", "data", "--method", "fast", "--epochs", "7", "--robust-sample", "500", "-o", "out")
    told = "catastrophic overfitting in epoch 4: robust accuracy fell from 50.00 % to 0.00 %"
    assert told in result.stderr
    assert "ended early with the weights of epoch 2" in result.stderr
    card = Path("out/model.py-make.md").read_text()
    assert told in card
    assert "The weights are those of epoch 2." in card
    assert len(list(open_stage("out").epoch_records())) == 4


def test_masks_say_where_training_images_change(data: Path) -> None:
    pixel = ["--method", "pixel", "--population", "6", "--generations", "1", "--robust-sample", "4", "--epochs", "1"]
    there = ["--region", "foreground", "--masks", "masks"]
    for path in data.rglob("*.png"):
        inside = np.zeros((SIDE, SIDE), np.uint8)
        inside[:4] = 0 if path.stem == "3" else 255
        write_image(Path("masks") / path.relative_to(data), inside)
    result = defend("--data", "data", *pixel, *there, "-o", "out")
    assert "train: 2 of 40 images stay as they are (0 with flagged masks)" in result.stderr
    info = open_stage("out").info
    assert info.inputs == {"data": "../data", "masks": "../masks"}
    assert "under 1 changed pixel in the foreground" in Path("out/model.py-make.md").read_text()
    defend("--config", "out/stage.yaml", "-o", "again", options=[])
    assert open_stage("again").info.identity == info.identity
    write_image(Path("masks/train/red/0.png"), np.full((SIDE, SIDE), 255, np.uint8))
    assert "holds another run" in defend("--data", "data", *pixel, *there, "-o", "out", code=2).stderr
    Path("masks/train/red/5.png").unlink()
    assert "train/red/5.png: has no mask in masks" in defend("--data", "data", *pixel, *there, code=1).stderr
    without = defend("--data", "data", *pixel, "--region", "foreground", code=2).stderr
    assert "--region foreground needs masks" in without
    unused = defend("--data", "data", *pixel, "--masks", "masks", code=2).stderr
    assert "--masks goes with another --region than original" in unused


def test_the_options_of_other_methods_are_refused(data: Path) -> None:
    result = defend("--data", "data", "--method", "pixel", "--epsilon", "8", code=2, options=TINY)
    assert result.stderr == "pixelsem: --epsilon goes with --method standard, fast, pgd, not pixel\n"
    assert not Path("pixelsem-run").exists()
