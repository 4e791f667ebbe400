"""The evaluator: the same logits whatever the batch, memory that runs out, precisions, counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator, pick_device
from pixelsem.models.classifier import Classifier, Preprocessing

SIZE = 8


def make_classifier(seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * SIZE * SIZE, 4))
    preprocessing = Preprocessing((SIZE, SIZE), SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    names = ("a", "b", "c", "d")
    return Classifier(network, name="tiny", class_names=names, preprocessing=preprocessing).eval()


@pytest.fixture
def images() -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8))


def make_edits(count: int = 50, pixels: int = 2) -> Edits:
    rng = np.random.default_rng(2)
    return Edits(
        torch.from_numpy(rng.integers(0, 3, count)),
        torch.from_numpy(rng.integers(0, SIZE * SIZE, (count, pixels))),
        torch.from_numpy(rng.integers(0, 256, (count, pixels, 3), dtype=np.uint8)),
    )


@pytest.mark.parametrize("scorer", ["dense", "incremental"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_scores_are_the_classifiers_own_logits(images: torch.Tensor, batch: int, scorer: str) -> None:
    classifier, edits = make_classifier(), make_edits()
    evaluator = Evaluator(classifier, device="cpu", batch_size=batch, scorer=scorer)
    clean = evaluator.attach(images)
    with torch.inference_mode():
        expected = classifier(edits.render(images).float() / 255)
        torch.testing.assert_close(evaluator.score(edits), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clean, classifier(images.float() / 255), atol=1e-5, rtol=1e-5)


def test_queries_count_scored_candidates_and_nothing_else(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu")
    evaluator.attach(images)
    evaluator.confirm(images)
    evaluator.measure_rate(20)
    assert evaluator.queries == 0
    evaluator.score(make_edits(50))
    evaluator.score(make_edits(3))
    assert evaluator.queries == 53


def test_low_precision_is_close_but_not_equal(images: torch.Tensor) -> None:
    full, half = (Evaluator(make_classifier(), device="cpu", precision=p, batch_size=64) for p in ("fp32", "bf16"))
    edits = make_edits()
    full.attach(images)
    half.attach(images)
    exact, rough = full.score(edits), half.score(edits)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_normalisation_stays_in_fp32_whatever_the_search(images: torch.Tensor) -> None:
    classifier = make_classifier()
    seen: list[torch.Tensor] = []
    classifier.network[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[operator]
    edits = make_edits(4)
    evaluator = Evaluator(classifier, device="cpu", precision="bf16", batch_size=4)
    evaluator.attach(images)
    seen.clear()
    evaluator.score(edits)
    exact = (edits.render(images).float() / 255 - classifier.mean) / classifier.std
    assert torch.equal(seen[0], exact.bfloat16())


def test_confirming_is_fp32_whatever_the_search(images: torch.Tensor) -> None:
    classifier = make_classifier()
    half = Evaluator(classifier, device="cpu", precision="bf16")
    with torch.inference_mode():
        torch.testing.assert_close(half.confirm(images), classifier(images.float() / 255), atol=1e-6, rtol=1e-6)


def test_confirming_does_not_depend_on_what_else_is_asked(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu")
    together = evaluator.confirm(images)
    assert torch.equal(together, torch.cat([evaluator.confirm(image[None]) for image in images]))


class _SmallMemory:
    """A scorer that cannot hold more than ``limit`` candidates."""

    def __init__(self, inner: Any, limit: int, error: Exception) -> None:
        self.inner, self.limit, self.error = inner, limit, error
        self.sizes: list[int] = []

    def attach(self, images: torch.Tensor) -> None:
        self.inner.attach(images)

    def logits(self, edits: Edits) -> torch.Tensor:
        self.sizes.append(len(edits))
        if len(edits) > self.limit:
            raise self.error
        result: torch.Tensor = self.inner.logits(edits)
        return result


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu"])
@pytest.mark.parametrize("batch", [64, None])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    images: torch.Tensor, error: Exception, batch: int | None
) -> None:
    expected = Evaluator(make_classifier(), device="cpu", batch_size=64)
    expected.attach(images)
    evaluator = Evaluator(make_classifier(), device="cpu", batch_size=batch)
    small = _SmallMemory(evaluator._scorer, 9, error)
    evaluator._scorer = small
    evaluator.attach(images)
    torch.testing.assert_close(evaluator.score(make_edits()), expected.score(make_edits()), atol=1e-5, rtol=1e-5)
    assert evaluator.batch_size is not None
    assert evaluator.batch_size <= 9
    small.sizes.clear()
    evaluator.score(make_edits())
    assert max(small.sizes) <= 9, "a size that failed must not be tried again"


def test_one_candidate_that_does_not_fit_is_a_clear_error(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu", batch_size=8)
    evaluator._scorer = _SmallMemory(evaluator._scorer, 0, OUT_OF_MEMORY[0])
    with pytest.raises(PixelsemError, match="out of memory with a single candidate"):
        evaluator.attach(images)


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu", batch_size=8)
    evaluator._scorer = _SmallMemory(evaluator._scorer, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        evaluator.attach(images)


def test_unknown_scorers_are_refused() -> None:
    with pytest.raises(PixelsemError, match="none of dense, incremental"):
        Evaluator(make_classifier(), device="cpu", scorer="psychic")


def test_unknown_devices_are_refused() -> None:
    for name in ("cuda:99", "toaster", "meta"):
        with pytest.raises(PixelsemError, match="--device"):
            pick_device(name)
    assert pick_device("cpu").type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_cuda_agrees_with_the_cpu(images: torch.Tensor, precision: str) -> None:
    cpu = Evaluator(make_classifier(), device="cpu", batch_size=64)
    cpu.attach(images)
    expected = cpu.score(make_edits())
    cuda = Evaluator(make_classifier(), device="cuda", precision=precision)
    cuda.attach(images)
    tolerance = 1e-4 if precision == "fp32" else 0.05
    torch.testing.assert_close(
        cuda.score(make_edits()).cpu(), expected, atol=tolerance * float(expected.abs().max()), rtol=0
    )
