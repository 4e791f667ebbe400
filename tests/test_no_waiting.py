"""No step of a white-box attack waits for the device, so that the host is always ahead of it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import known
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pixelsem.attacks.base import Progress, Searches
from pixelsem.attacks.registry import ATTACKS
from pixelsem.fitness.evaluator import Evaluator

SIDE, CLASSES, COUNT, STEPS = 8, 4, 5, 6

#: All that go step by step, but JSMA, which says why.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("i-fgm", {}),
    ("mi-fgm", {}),
    ("sai-fgm", {}),
    ("sai-fgm", {"gradient": "max"}),
    ("m-sai-fgm", {}),
    ("cfr", {}),
    ("pgd", {}),
    ("pgd", {"norm": "l2"}),
    ("m-di2-fgsm", {}),
    ("m-di2-fgsm", {"resize_rate": 1.25}),
    ("cw", {}),
    ("cw", {"rounding": "after"}),
    ("adv-patch", {}),
    ("lavan", {"early_stop": False}),
]

#: Operations whose result, or the size of it, the host must know.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """Counts operations that the host would wait for on any device but a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
            for each in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        self.count += name in WAITING or by_mask
        return func(*args, **(kwargs or {}))


def waits_by_step(name: str, options: dict[str, Any], device: str, count: Callable[[], int]) -> list[int]:
    """Run an attack; return by how much ``count`` has grown at the end of each step but the first."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, CLASSES))
    classifier = known.classifier_of(layers, CLASSES, (SIDE, SIDE))
    images = known.random_images(COUNT, (SIDE, SIDE))
    with torch.no_grad():
        labels = classifier(images.float() / 255).argmax(1)
    at = torch.arange(SIDE) // 2
    squares = (at[:, None] * (SIDE // 2) + at).expand(COUNT, -1, -1)
    attention = torch.ones(COUNT, SIDE, SIDE)
    searches = dataclasses.replace(Searches.of(images, labels), superpixels=squares, attention=attention)
    evaluator = Evaluator(classifier, device=device, scorer="dense", batch_size=64)
    counts: list[int] = []
    progress = Progress(on_change=lambda _: counts.append(count()))
    settings = ATTACKS[name].settings(**{**options, "steps": STEPS})
    outcomes = list(ATTACKS[name].load()(searches, evaluator, settings, progress))
    assert len(outcomes) == COUNT
    assert len(counts) == STEPS
    return [after - before for before, after in pairwise(counts)]


@pytest.mark.parametrize(
    "ask",
    [
        lambda values: values.sum().item(),
        lambda values: bool(values.any()),
        lambda values: int(values.max()),
        lambda values: values.nonzero(),
        lambda values: values[values > 0],
    ],
)
def test_what_makes_the_host_wait_is_counted(ask: Callable[[Tensor], Any]) -> None:
    with Waits() as waits:
        ask(torch.tensor([1.0, 0.0, 2.0]))
    assert waits.count > 0


def test_other_operations_are_not_counted() -> None:
    values, rows = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0, 2])
    with Waits() as waits:
        values[rows] = torch.where(values > 0, values, 1.0).cumsum(0)[rows]
    assert waits.count == 0


@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_step_waits_for_the_device(name: str, options: dict[str, Any]) -> None:
    with Waits() as waits:
        assert waits_by_step(name, options, "cpu", lambda: waits.count) == [0] * (STEPS - 1)


def test_steps_that_wait_are_seen() -> None:
    with Waits() as waits:
        assert min(waits_by_step("pgd", {"early_stop": True, "epsilon": 1.0}, "cpu", lambda: waits.count)) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_step_waits_for_a_cuda_device(name: str, options: dict[str, Any]) -> None:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = waits_by_step(name, options, "cuda", lambda: sum("synchroniz" in str(w.message) for w in caught))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found == [0] * (STEPS - 1)
