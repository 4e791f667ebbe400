"""The attacks against other implementations of them, on the bundled AllConv and real images."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT

#: Names in benchmarks/oracles.py: how many images are attacked, of which AllConv gets some wrong.
COUNTS = {
    "FGM": 100, "I-FGM": 100, "MI-FGM": 100, "PGD, L∞ 2/255": 100, "PGD, L2 128/255": 100, "M-DI²-FGSM": 100,
    "C&W, as published": 40, "C&W, rounding during": 40, "JSMA, θ = 1": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def oracles() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("oracles")


def compared(oracles: ModuleType, name: str, data_dir: Path) -> Any:
    comparison = oracles.COMPARISONS[name]
    pytest.importorskip("art" if comparison.peer == "ART" else comparison.peer)
    return oracles.compare(comparison, *oracles.right_images(data_dir / "test", COUNTS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_as_good_as_others(oracles: ModuleType, name: str, data_dir: Path) -> None:
    """Success within 3 points and distance within 5 %; where the other side errs, no less and no farther."""
    found = compared(oracles, name, data_dir)
    assert found.no_worse if oracles.COMPARISONS[name].differs else found.agrees, (found.rates, found.means)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FGM", "I-FGM", "MI-FGM"])
def test_the_same_change(oracles: ModuleType, name: str, data_dir: Path) -> None:
    comparison = oracles.COMPARISONS[name]
    pytest.importorskip("art")
    classifier, images, labels = oracles.right_images(data_dir / "test", 40)
    ours, theirs = (run(comparison, classifier, images, labels) for run in (oracles.attack, oracles.attack_of_peer))
    change = [(side.float() - images).flatten(1) for side in (ours, theirs)]
    assert torch.allclose(change[0].norm(dim=1), change[1].norm(dim=1), rtol=0.02)
    assert torch.cosine_similarity(*change).median() > 0.98


@pytest.mark.slow
def test_cw_survives_rounding(oracles: ModuleType, data_dir: Path) -> None:
    found = compared(oracles, "C&W, rounding during", data_dir)
    assert found.rates[0] >= 0.97
    assert found.rates[0] > found.rates[1]


def test_agreement_is_within_both_bounds(oracles: ModuleType) -> None:
    def found(more: int, farther: float) -> Any:
        """Of 100 images ``more`` successes than the other side, ``farther`` times as far."""
        success = torch.arange(100) < 90
        ours = torch.arange(100) < 90 + more
        distance = torch.ones(100)
        return oracles.Found((ours, success), (farther * distance, distance))

    assert found(0, 1.0).agrees
    assert found(2, 1.04).agrees
    assert not found(4, 1.0).agrees
    assert not found(0, 1.06).agrees
    assert found(9, 0.5).no_worse
    assert not found(9, 0.5).agrees
    assert not found(-4, 0.5).no_worse
    assert not found(9, 1.06).no_worse


def test_distances_are_of_images_that_both_change_the_class_of(oracles: ModuleType) -> None:
    success = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    distance = torch.tensor([1.0, 5.0, 7.0]), torch.tensor([2.0, 6.0, 8.0])
    found = oracles.Found(success, distance)
    assert found.means == (1.0, 2.0)
    assert found.rates == pytest.approx((2 / 3, 2 / 3))


def test_rates_have_intervals(oracles: ModuleType) -> None:
    """Wilson's, by its formula: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)."""
    row = {
        "attack": "FGM", "peer": "ART 1.0", "images": 89, "success": [60 / 89, 1.0], "distance": [0.5, 0.25],
        "measure": "l2", "agrees": True, "differs": "",
    }  # fmt: skip
    (texts,) = oracles.make_table([row]).texts()
    n, p, z = 89, 60 / 89, 1.959964
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = (100 * (p + z * z / (2 * n) + end) / (1 + z * z / n) for end in (-half, half))
    assert texts[2:5] == ["89", f"67.42 % (60/89) [{low:.2f}, {high:.2f}]", "100.00 % (89/89) [95.86, 100.00]"]
