"""What an attack's settings say of random numbers is the truth: other ones change its images, or nothing does."""

from __future__ import annotations

import dataclasses
from math import pi
from pathlib import Path
from typing import Any

import known
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from pixelsem.attacks.base import Progress, Searches
from pixelsem.attacks.registry import ATTACKS
from pixelsem.cli.app import app
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models.classifier import Classifier

SIDE, CLASSES, SEEDS = 8, 4, range(3)
FEW = {"population": 8, "generations": 2}

#: Every attack, with each setting that decides whether it draws.
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("de", FEW, True),
    ("sparse-rs", {"queries": 4}, True),
    ("random", {"queries": 4}, True),
    ("cma-es", {"queries": 16}, True),
    ("exhaustive", {}, False),
    ("exhaustive", {"refine": True, "refine_queries": 100}, False),
    ("fgm", {}, False),
    ("i-fgm", {}, False),
    ("mi-fgm", {}, False),
    ("sa-fgm", {}, False),
    ("sai-fgm", {}, False),
    ("m-sai-fgm", {}, False),
    ("cfr", {"steps": 3}, False),
    ("cfr", {"steps": 3, "init": "noise"}, True),
    ("pgd", {"steps": 3}, True),
    ("pgd", {"steps": 3, "norm": "l2"}, True),
    ("pgd", {"steps": 3, "random_start": False}, False),
    ("m-di2-fgsm", {"steps": 3}, True),
    ("m-di2-fgsm", {"steps": 3, "probability": 0.0}, False),
    ("m-di2-fgsm", {"steps": 3, "resize_rate": 1.0}, False),
    ("cw", {"steps": 5}, False),
    ("jsma", {}, False),
    ("adv-patch", {"steps": 3}, True),
    ("adv-patch", {"steps": 3, "place": "corner"}, True),
    ("adv-patch", {"steps": 3, "place": "region"}, True),  # every place covers as much of the whole image
    ("adv-patch", {"steps": 3, "share": 1.0}, False),
    ("adv-patch", {"steps": 3, "shape": "circle", "share": pi / 4}, False),
    ("adv-patch", {"patch": Path("patch.png")}, True),
    ("lavan", {"steps": 3}, True),
    ("lavan", {"steps": 3, "place": "random"}, True),
    ("lavan", {"steps": 3, "share": 1.0}, False),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * (SIDE - 2) ** 2, CLASSES))


def searches_of(classifier: Classifier, seed: int, patched: bool) -> Searches:
    images = known.random_images(3, (SIDE, SIDE))
    with torch.no_grad():
        labels = classifier(images.float() / 255).argmax(1)
    at = torch.arange(SIDE) // 2
    squares = (at[:, None] * (SIDE // 2) + at).expand(3, -1, -1)
    patch = torch.full((3, 4, 3, 3), 255, dtype=torch.uint8) if patched else None
    attention = torch.ones(3, SIDE, SIDE)
    searches = Searches.of(images, labels, seed=seed)
    return dataclasses.replace(searches, superpixels=squares, attention=attention, patches=patch)


def found(name: str, options: dict[str, Any], seed: int) -> Tensor:
    """Return what an attack makes of three images: uint8 [3, 3, H, W]."""
    info, classifier = ATTACKS[name], known.classifier_of(network(), CLASSES, (SIDE, SIDE))
    evaluator = Evaluator(classifier, device="cpu", scorer="dense", batch_size=64)
    searches = searches_of(classifier, seed, "patch" in options)
    outcomes = info.load()(searches, evaluator, info.settings(**options), Progress())
    return torch.stack([each.adversarial for each in sorted(outcomes, key=lambda each: each.search)])


@pytest.mark.parametrize(("name", "options", "draws"), CASES)
def test_other_random_numbers_change_the_images_of_attacks_that_draw(
    name: str, options: dict[str, Any], draws: bool
) -> None:
    assert ATTACKS[name].settings(**options).draws == draws
    first, *others = (found(name, options, seed) for seed in SEEDS)
    assert len(first) == 3
    assert any(not torch.equal(first, other) for other in others) == draws


def test_every_attack_is_tried() -> None:
    assert {name for name, _, _ in CASES} == set(ATTACKS)


#: The attacks that draw nothing unless they are told to.
ALIKE = [name for name, info in ATTACKS.items() if not info.settings().draws]


@pytest.mark.parametrize("name", ALIKE)
def test_repeats_that_are_all_alike_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["attack", name, "photos", "--repeats", "2"], prog_name="pixelsem")
    assert result.exit_code == 2
    (line,) = (each for each in result.stderr.splitlines() if not each.startswith("Try "))
    assert line.endswith(
        f"--repeats: `attack {name}` draws nothing at random with these settings, so repeats would all be alike; "
        "leave it out"
    )
    assert not list(tmp_path.iterdir())


def test_repeats_go_with_what_makes_an_attack_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["cfr", "--init", "noise"], ["pgd"]):
        result = CliRunner().invoke(app, ["attack", *arguments, "photos", "--repeats", "2"], prog_name="pixelsem")
        assert result.exit_code == 2
        assert "photos: no such" in result.stderr
        assert "--repeats" not in result.stderr
