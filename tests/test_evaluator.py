"""The evaluator: the same logits whatever the batch, memory that runs out, precisions, counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pixelsem.errors import PixelsemError
from pixelsem.fitness.allocation import FreedMemory
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator, pick_device
from pixelsem.fitness.tuning import Memory, Way, fastest_batch
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

    def clean(self, images: slice) -> torch.Tensor:
        self._check(images.stop - images.start)
        result: torch.Tensor = self.inner.clean(images)
        return result

    def logits(self, edits: Edits) -> torch.Tensor:
        self._check(len(edits))
        result: torch.Tensor = self.inner.logits(edits)
        return result

    def _check(self, size: int) -> None:
        self.sizes.append(size)
        if size > self.limit:
            raise self.error


def with_small_memory(evaluator: Evaluator, limit: int, error: Exception) -> _SmallMemory:
    small = _SmallMemory(evaluator._scorer("dense"), limit, error)
    evaluator._scorers["dense"] = small
    return small


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
    evaluator = Evaluator(make_classifier(), device="cpu", batch_size=batch, scorer="dense")
    small = with_small_memory(evaluator, 9, error)
    evaluator.attach(images)
    torch.testing.assert_close(evaluator.score(make_edits()), expected.score(make_edits()), atol=1e-5, rtol=1e-5)
    small.sizes.clear()
    evaluator.score(make_edits())
    assert max(small.sizes) <= 9, "a size that failed must not be tried again"


def test_candidates_are_spread_evenly_over_batches(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu", batch_size=24, scorer="dense")
    whole = with_small_memory(evaluator, 1000, OUT_OF_MEMORY[0])
    evaluator.attach(images)
    whole.sizes.clear()
    evaluator.score(make_edits())
    assert whole.sizes == [17, 17, 16]


def test_one_candidate_that_does_not_fit_is_a_clear_error(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu", batch_size=8)
    with_small_memory(evaluator, 0, OUT_OF_MEMORY[0])
    with pytest.raises(PixelsemError, match="out of memory with a single candidate"):
        evaluator.attach(images)


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu", batch_size=8)
    with_small_memory(evaluator, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        evaluator.attach(images)


def linear(weight: torch.Tensor) -> Classifier:
    layer = nn.Linear(3 * SIZE * SIZE, len(weight))
    layer.weight.data, layer.bias.data = weight.flatten(1).clone(), torch.zeros(len(weight))
    preprocessing = Preprocessing((SIZE, SIZE), SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    names = tuple(f"class{number}" for number in range(len(weight)))
    return Classifier(nn.Sequential(nn.Flatten(), layer), name="linear", class_names=names, preprocessing=preprocessing)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_gradients_of_a_linear_model_are_its_weights(images: torch.Tensor, batch: int) -> None:
    weight = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    classifier = linear(weight)
    evaluator = Evaluator(classifier, device="cpu", batch_size=batch)
    evaluator.attach(images)  # in inference mode, which must leave no mark on the weights
    wanted = torch.tensor([2, 0, 3])
    unit = images.float() / 255
    result = evaluator.loss_and_gradient(unit, lambda logits, rows: logits.gather(1, wanted[rows, None])[:, 0])
    torch.testing.assert_close(result.gradients, weight[wanted] / classifier.std)
    with torch.inference_mode():
        torch.testing.assert_close(result.logits, classifier(unit))
    torch.testing.assert_close(result.losses, result.logits[torch.arange(3), wanted])
    assert evaluator.queries == 3
    torch.testing.assert_close(evaluator.logits(unit), result.logits)
    assert evaluator.queries == 6


def test_gradients_go_through_what_renders_the_images(images: torch.Tensor) -> None:
    """One brightness per image: its gradient is the sum of the weights."""
    weight = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    classifier = linear(weight)
    evaluator = Evaluator(classifier, device="cpu", batch_size=2)
    unit = images.float() / 255
    result = evaluator.loss_and_gradient(
        torch.zeros(3),
        lambda logits, rows: rows * logits[:, 1],
        lambda shift, rows: unit[rows] + shift[:, None, None, None],
    )
    expected = (weight[1] / classifier.std.view(3, 1, 1)).sum() * torch.arange(3)
    torch.testing.assert_close(result.gradients, expected, atol=1e-3, rtol=1e-4)


def test_gradients_that_do_not_fit_are_asked_for_in_smaller_batches(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu")
    many = images.float().repeat(10, 1, 1, 1) / 255
    expected = evaluator.loss_and_gradient(many, lambda logits, _: logits[:, 0])
    sizes: list[int] = []

    def loss(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits[:, 0]

    result = evaluator.loss_and_gradient(many, loss)
    torch.testing.assert_close(result.gradients, expected.gradients)
    assert result.losses.shape == (30,)
    assert max(sizes[sizes.index(3) :]) == 3


def test_no_candidates_have_no_logits(images: torch.Tensor) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu")
    evaluator.attach(images)
    assert evaluator.score(make_edits(0)).shape == (0, 4)
    assert evaluator.queries == 0


class _Slow:
    """A scorer that takes so much longer."""

    def __init__(self, inner: Any, factor: int) -> None:
        self.inner, self.factor = inner, factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def logits(self, edits: Edits) -> torch.Tensor:
        for _ in range(self.factor):
            logits: torch.Tensor = self.inner.logits(edits)
        return logits


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIXELSEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuning.json"


@pytest.mark.parametrize("slow", ["dense", "incremental"])
def test_auto_takes_what_is_faster(images: torch.Tensor, own_cache: Path, slow: str) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu")
    evaluator.attach(images)
    evaluator._scorers[slow] = _Slow(evaluator._scorer(slow), 20)
    assert evaluator.way(make_edits()).evaluator == {"dense": "incremental", "incremental": "dense"}[slow]


def test_auto_measures_once_per_model_and_number_of_pixels(images: torch.Tensor, own_cache: Path) -> None:
    def ways(seed: int, pixels: int) -> list[Any]:
        evaluator = Evaluator(make_classifier(seed), device="cpu")
        evaluator.attach(images)
        evaluator.score(make_edits(pixels=pixels))
        return list(evaluator._ways.values())

    first = ways(0, 2)
    noted = own_cache.read_bytes()
    assert ways(0, 2) == first
    assert own_cache.read_bytes() == noted
    ways(0, 3)
    ways(1, 2)
    assert len(json.loads(own_cache.read_bytes())) == 3
    own_cache.write_bytes(b"{damaged")
    ways(0, 2)
    assert len(json.loads(own_cache.read_bytes())) == 1


def test_auto_goes_by_what_it_noted(images: torch.Tensor, own_cache: Path) -> None:
    Evaluator(make_classifier(), device="cpu").attach(images)
    for name in ("dense", "incremental"):
        evaluator = Evaluator(make_classifier(), device="cpu")
        memory = Memory(evaluator.classifier, "fp32", evaluator.device)
        memory.note(2, Way(name, 5, 1000.0, 0.5, 256))  # type: ignore[arg-type]
        evaluator.attach(images)
        assert evaluator.way(make_edits()) == Way(name, 5, 1000.0, 0.5, 256)  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_written_does_no_harm(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PIXELSEM_CACHE", str(tmp_path / "file" / "cache"))
    evaluator = Evaluator(make_classifier(), device="cpu")
    evaluator.attach(images)
    assert evaluator.score(make_edits()).shape == (50, 4)


def test_the_batch_grows_while_that_is_faster_and_shrinks_to_what_fits() -> None:
    asked: list[int] = []

    def seconds(way: Way) -> float:
        asked.append(way.batch_size)
        if way.batch_size > 300:
            raise torch.OutOfMemoryError
        return 0.001 + way.batch_size * 1e-6  # a launch, and what each costs

    assert fastest_batch(Way("dense", 1, tried=4096), seconds).batch_size == 256
    assert asked == [1, 16, 32, 64, 128, 256, 512], "until memory ends"
    flat = fastest_batch(Way("dense", 1, tried=4096), lambda way: 0.002 * way.batch_size)
    assert (flat.batch_size, flat.rate) == (128, pytest.approx(500)), "the largest of equals, within reason"
    slower = fastest_batch(Way("dense", 1, tried=4096), lambda way: way.batch_size * (1e-3 + way.batch_size * 1e-5))
    assert slower.batch_size == 16
    heavy = fastest_batch(Way("dense", 1, tried=4096), lambda way: 3.0 * way.batch_size)
    assert heavy.batch_size == 1


def test_unknown_scorers_are_refused() -> None:
    with pytest.raises(PixelsemError, match="none of auto, dense, incremental"):
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_batch(python: Callable[..., Any]) -> None:
    """Large tensors made again cost page faults wherever their memory went back to the system."""
    code = """
import resource, sys, torch
from pixelsem.fitness.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, given_back = (int(python("-c", code, how).stdout) for how in ("keep", "return"))
    # Not all of it: an aligned tensor may not fit where the last one was until two such places have become one.
    assert kept < 0.75 * given_back


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_goes_back_to_the_system_once_in_a_while(python: Callable[..., Any]) -> None:
    """Small tensors in use between large ones that are freed: none of these could go back by itself."""
    code = """
import sys, torch
from pixelsem.fitness.allocation import FreedMemory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
freed = FreedMemory(float(sys.argv[1]))
both = [(torch.ones(2**20), torch.ones(2**10)) for _ in range(50)]
used = [small for _, small in both]
del both
before = resident()
assert freed.give_back() is (sys.argv[1] == "0")
print(before - resident())
"""
    at_once, later = (int(python("-c", code, pause).stdout) for pause in ("0", "60"))
    assert at_once > 0.9 * 50 * 2**22
    assert abs(later) < 2**20


def test_an_evaluator_gives_freed_memory_back(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(make_classifier(), device="cpu", scorer="dense", batch_size=4)
    evaluator.attach(images)
    times: list[FreedMemory] = []
    monkeypatch.setattr(FreedMemory, "give_back", lambda self: times.append(self))
    for _ in range(3):
        evaluator.score(make_edits())
    assert len(times) == 3
