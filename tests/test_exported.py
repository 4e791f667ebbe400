"""Networks that tracing cannot follow, and layers called as functions: on windows all the same, and exactly."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_incremental import (
    Layer,
    Size,
    build,
    check,
    compare,
    layers,
    make_classifier,
    make_edits,
    make_images,
    seeded,
    sizes,
    spent,
)
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pixelsem.fitness.graph import lower
from pixelsem.fitness.incremental import IncrementalScorer
from pixelsem.models.programs import load_exported

SIZE = (12, 14)


class Base(nn.Module):
    """Convolutions with batch norm; subclasses say what happens in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(4, 5, 3, padding="same", bias=False)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.between(self.first(x))).mean((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        return x


class Asserting(Base):
    """Insists on a size, as many published networks do."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        assert x.shape[2:] == SIZE
        return super().forward(x)


class Branching(Base):
    """Chooses by shapes and types."""

    def between(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.shape[1] != 4:
            raise TypeError
        return F.max_pool2d(x, 3, 2, 1) if x.shape[2] % 2 == 0 else x

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[0] > 0 else x.new_zeros(0, 2)


class Looping(Base):
    """Goes through channels one by one, by number and by slice."""

    def between(self, x: Tensor) -> Tensor:
        parts = [x[:, i : i + 1] * (i + 1) for i in range(x.size(1))]
        parts[1] = 1 - x[:, 2].unsqueeze(1)
        return torch.cat(parts, 1)


class Everything(Asserting):
    """Every operation that can be windows, in the form that export gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp, self.slope = nn.LayerNorm(4), nn.Linear(4, 4), nn.PReLU(4)
        self.pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.wide = nn.Conv2d(4, 4, (1, 3), (1, 2), (0, 2), groups=2)
        self.after = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.7))
        self.drop = nn.Dropout()

    def between(self, x: Tensor) -> Tensor:
        x = F.relu6(F.max_pool2d(x, 3, 1, 1) + 0.5, inplace=True)
        x = x + F.gelu(self.mlp(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        x = self.after(torch.cat([F.pad(x[:, :2], (0, 1, 1, 0)), F.pad(x[:, 2:], (1, 0, 0, 1))], 1))
        x = self.pool(F.hardswish(self.slope(self.drop(x)))) * self.scale
        one, other = x.chunk(2, 1)
        few, more = x.split([1, 3], 1)
        x = torch.cat((one, F.silu(other)), 1) - torch.cat((more, few), 1)
        count, channels, height, width = x.shape
        x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(count, -1, height, width)
        return self.wide(x)[:, :, ::2]


class Overwriting(Asserting):
    """Overwrites the image, and what it reads again through another name."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return super().forward(x)

    def between(self, x: Tensor) -> Tensor:
        y = x
        y += 1
        return x * y.detach()


class Functional(Base):
    """Layers as functions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 2, 3, 1)), nn.Parameter(torch.randn(6))
        self.slope = nn.Parameter(torch.tensor([0.3]))
        self.register_buffer("filter", torch.randn(4, 1, 3, 3))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("variance", torch.rand(6) + 0.5)
        self.last = nn.Conv2d(4, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, bias=self.bias, stride=(2, 1), padding=1, groups=2)
        x = F.batch_norm(x, self.mean, self.variance, None, None, False, 0.1, 1e-3)
        return F.conv2d(F.prelu(x, self.slope)[:, 2:], self.filter, None, 1, 1, 1, 4)


class AssertingFunctional(Functional, Asserting):
    pass


def untraceable(network: nn.Module) -> bool:
    try:
        fx.symbolic_trace(network)
    except Exception:
        return True
    return False


def convolutions(scorer: IncrementalScorer) -> list[bool]:
    """Which are dense, in their order."""
    return [node.dense for node in scorer.explain() if node.op == "Conv2d"]


@pytest.mark.parametrize("kind", [Asserting, Branching, Looping, Everything, Overwriting, AssertingFunctional])
def test_what_cannot_be_traced_is_exported(kind: type[nn.Module]) -> None:
    network = seeded(kind)
    assert untraceable(network)
    scorer = check(network, SIZE, 3, dense_from=50.0)
    assert [node.op for node in scorer.explain() if node.dense] == ["mean.dim", "linear.default"]
    # Folded but for the one that follows no convolution.
    assert [node.op for node in scorer.explain()].count("BatchNorm2d") == (kind is Everything)
    assert spent(scorer) < 0.7


class Insisting(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        return self.network(x)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(layers, sizes, st.sampled_from([1, 3]), st.booleans(), st.integers(0, 99))
def test_random_networks_are_exported_exactly(
    makers: list[Layer], size: Size, pixels: int, flat: bool, seed: int
) -> None:
    classifier = make_classifier(seeded(lambda: Insisting(build(makers, size, flat)), seed), size)
    images = make_images(2, size, seed)
    scorer = IncrementalScorer(classifier, dtype=torch.float64, dense_from=50.0)
    scorer.attach(images)
    assume(compare(scorer, classifier, images, make_edits(images, pixels, seed=seed), 1e-9))
    assert len(scorer.explain()) > 2, "the network was not exported"


def test_layers_called_as_functions_are_those_layers() -> None:
    network = seeded(Functional)
    assert not untraceable(network)
    scorer = check(network, SIZE, 3, dense_from=50.0)
    assert convolutions(scorer) == [False] * 4
    assert "BatchNorm2d" not in {node.op for node in scorer.explain()}, "folded like any other"


class Counting(Base):
    """Another result for large batches."""

    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 4 else x


class Single(Base):
    """Another result for one image, which export takes no notice of."""

    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x


class Typed(Base):
    """Computes in a type of its own, which a graph of another type would not know."""

    def between(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        return self.last.weight.new_ones(1) * x.to(torch.float16).to(x.dtype)


class Looking(Base):
    """Looks at the values."""

    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 1e6 else x


@pytest.mark.parametrize("kind", [Counting, Single, Typed, Looking])
def test_what_cannot_be_exported_for_all_batches_is_one_node(
    kind: type[nn.Module], capfd: pytest.CaptureFixture[str]
) -> None:
    example = torch.randn(2, 3, *SIZE)
    graph = lower(seeded(kind), example)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(graph(example), seeded(kind)(example))
    assert capfd.readouterr() == ("", "")
    assert not logging.root.manager.disable


def test_an_exported_network_refuses_other_sizes() -> None:
    # The size is written into the graph, where it is not seen to be another.
    scorer = IncrementalScorer(make_classifier(seeded(Looping), SIZE))
    images = make_images(1, (20, 20))
    scorer.attach(images)
    with pytest.raises(ValueError, match="images of 12×14, not 20×20"):
        scorer.logits(make_edits(images, 1))


def test_files_of_exported_networks_are_scored_on_windows(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    for name, kind in (("base", Base), ("everything", Everything)):
        example = torch.randn(2, 3, *SIZE)
        program = torch.export.export(seeded(kind).float(), (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, tmp_path / f"{name}.pt2")
        network, _ = load_exported(tmp_path / f"{name}.pt2")
        scorer = check(network, SIZE, 3, dense_from=50.0)
        assert spent(scorer, 1) < 0.7


def test_exported_networks_are_scored_in_bf16() -> None:
    images = make_images(2, SIZE)
    classifier, edits = make_classifier(seeded(Everything), SIZE), make_edits(images, 3)
    with torch.inference_mode():
        exact = classifier(edits.render(images).float() / 255)
    scorer = IncrementalScorer(copy.deepcopy(classifier), "bf16")
    scorer.attach(images)
    assert not all(convolutions(scorer))
    torch.testing.assert_close(scorer.logits(edits), exact, atol=0.05 * float(exact.abs().max()), rtol=0)
