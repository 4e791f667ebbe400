"""Incremental scoring of published classifiers is that of the whole network, and computes little in vain.

``benchmarks/equality.py`` measures; here is what must come out, and that it could come out otherwise.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from pixelsem.fitness.edits import Edits
from pixelsem.fitness.incremental import IncrementalScorer

#: Of different kinds, and fast.
FEW = ("squeezenet1_1", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5", "regnet_x_400mf")
#: Networks that look at all of the image early on.
GLOBAL = ("swin_t", "vit_b_16", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "mobilenet_v3_small")


def _load() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "equality.py"
    spec = importlib.util.spec_from_file_location("benchmarks_equality", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


equality = _load()

#: Networks whose dense pass in float32 does not keep to the bound either.
WILD = {"efficientnet_v2_s"}


def check(name: str) -> None:
    row = equality.measure(name, equality.MODELS[name])
    assert row.least_change > 1e-4, "the edits change the logits hardly more than rounding in float32 does"
    assert max(row.error64.values()) <= equality.FLOAT64
    # One network answers so wildly to a few edits that its dense pass in float32 is itself 0.5 to 2.5 % off float64, as
    # the sums happen to be rounded; windows are rounded otherwise, and about five times as much.
    allowed = 10 * max(row.dense_error32.values()) if name in WILD else equality.FLOAT32
    assert max(row.error32.values()) <= allowed
    assert row.nodes > 2, "the network was not followed"
    assert row.share[1] <= row.share[3] <= row.share[5]
    assert row.share[1] < (1 if name in GLOBAL else 0.9)


@pytest.mark.parametrize("name", FEW)
def test_a_few_classifiers_are_scored_exactly(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in equality.MODELS if name not in FEW])
def test_classifiers_are_scored_exactly(name: str) -> None:
    check(name)


def test_there_are_forty() -> None:
    assert len(equality.MODELS) == 40


# What is measured shows


class Forgetful(IncrementalScorer):
    """Overlooks one pixel of each candidate."""

    def logits(self, edits: Edits) -> Tensor:
        return super().logits(Edits(edits.image, edits.position[:, 1:], edits.colour[:, 1:]))


class Clean(IncrementalScorer):
    """Always answers for the clean images."""

    def logits(self, edits: Edits) -> Tensor:
        same = equality.make_images(2, 96, 0)[edits.image].flatten(2)
        colour = same.gather(2, edits.position[:, None].expand(-1, 3, -1)).transpose(1, 2)
        return super().logits(Edits(edits.image, edits.position, colour))


@pytest.mark.parametrize("wrong", [Forgetful, Clean])
def test_a_wrong_scorer_is_seen(wrong: type[IncrementalScorer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "IncrementalScorer", wrong)
    row = equality.measure("squeezenet1_1", 96, pixels=[3])
    assert row.error64[3] > 0.01
    assert row.error32[3] > 0.01


# What it costs


def test_marks_spread_as_a_convolution_reads() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    first, second = equality.spread_marks(network, 8)
    # Inner pixels reach three rows, the two at the ends two; of the pooled four rows, one row reaches one or two.
    assert first.macs == 64 * 27 * 4
    assert first.windows(1) == pytest.approx((22 / 64) ** 2)
    assert first.windows(100) == 1
    assert second.windows(1) == pytest.approx((14 / 32) ** 2)
    # Two pixels: twice the part but for what both reach.
    rows = torch.tensor([2, 3, 3, 3, 3, 3, 3, 2]) / 8
    both = (rows[:, None] * rows).double().square().mean()
    assert first.least(2) == pytest.approx(float(2 * first.least(1) - both))


@pytest.mark.parametrize("name", ["allconv", "nin"])
def test_the_built_in_models_take_little_more_than_they_need(name: str) -> None:
    for row in equality.bounds(name, 32):
        assert row.taken[None] <= 1.2 * row.windows
        assert row.windows >= row.least


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "alexnet", "squeezenet1_1", "resnet50"])
def test_published_models_take_little_more_than_they_need(name: str) -> None:
    for row in equality.bounds(name, 224):
        assert row.taken[None] <= 1.2 * row.windows
