"""Incremental scoring: the logits of the whole network on the whole image, whatever the network does.

Everything is compared in float64, where the error of a right answer is rounding alone, and measured by what
the edit changes in the logits: an answer that overlooks part of a change cannot pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pixelsem.fitness import spreading, windows
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import DenseScorer
from pixelsem.fitness.incremental import IncrementalScorer
from pixelsem.models.allconv import allconv
from pixelsem.models.classifier import Classifier, Preprocessing
from pixelsem.models.nin import nin

Size = tuple[int, int]


def make_classifier(network: nn.Module, size: Size) -> Classifier:
    preprocessing = Preprocessing(size, min(size), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), scale=0.9)
    return Classifier(network.eval(), name="test", class_names=("a", "b"), preprocessing=preprocessing).eval()


def make_images(count: int, size: Size, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8))


def make_edits(images: Tensor, pixels: int, count: int = 24, seed: int = 1) -> Edits:
    """Random edits; the first ones at corners, along borders, side by side, in one place, or of no effect."""
    rng = np.random.default_rng(seed)
    (height, width), flat = images.shape[2:], images.flatten(2).transpose(1, 2)
    position = rng.integers(0, height * width, (count, pixels))
    corners = [0, width - 1, (height - 1) * width, height * width - 1]
    for row, corner in enumerate(corners):
        position[row, 0] = corner
    position[4] = np.arange(pixels)
    position[5] = (np.arange(pixels) % height) * width + width - 1
    position[6] = position[6, 0]
    position[7, -1] = position[7, 0]
    image = torch.from_numpy(rng.integers(0, len(images), count))
    place = torch.from_numpy(position)
    colour = torch.from_numpy(rng.integers(0, 256, (count, pixels, 3), dtype=np.uint8))
    colour[8] = flat[image[8], place[8]]
    return Edits(image, place, colour)


def exact_logits(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Logits in float64 of uint8 images, by the network itself, normalised in fp32 as scorers do."""
    network = copy.deepcopy(classifier.network).double().eval()
    unit = pixels.float() / 255
    with torch.inference_mode():
        scaled = (unit * classifier.preprocessing.scale - classifier.mean) / classifier.std
        result: Tensor = network(scaled.double())
    return result


def compare(scorer: IncrementalScorer, classifier: Classifier, images: Tensor, edits: Edits, of_change: float) -> bool:
    """Assert that the logits are right; return whether the edits changed enough for that to show anything."""
    expected, clean = exact_logits(classifier, edits.render(images)), exact_logits(classifier, images)
    error = (scorer.logits(edits) - expected).abs().amax(1)
    change = (expected - clean[edits.image]).abs().amax(1)
    scale = float(expected.abs().max())
    # What a candidate does not change at all may still be rounded otherwise.
    bound = of_change * change + 1e-13 * scale
    assert (error <= bound).all(), f"{float((error / bound).max()):.3g} times the allowed error"
    return float(change.max()) > 1e-4 * scale


def check(network: nn.Module, size: Size, pixels: int, of_change: float = 1e-9, **options: Any) -> IncrementalScorer:
    """Compare candidates of two images; return the scorer for more questions."""
    classifier, images = make_classifier(network, size), make_images(2, size)
    scorer = IncrementalScorer(classifier, dtype=torch.float64, **options)
    scorer.attach(images)
    assert compare(scorer, classifier, images, make_edits(images, pixels), of_change)
    return scorer


@contextmanager
def spreading_by(way: str | None) -> Iterator[None]:
    """Let every convolution that can spread changes do so, however few its channels and the windows.

    By ``way``: products at "points" or padded "windows", as in float32 and in bfloat16; None: leave all as it is.
    """
    if way is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        if way == "windows":
            patch.setattr(spreading, "_POINT_DTYPES", ())
        patch.setattr(spreading, "_FEWEST_VALUES", 1)
        patch.setattr(spreading, "_FEWEST_WINDOWS", 1)
        patch.setattr(spreading, "_AT_ONCE", 2**12)  # several pieces of a group
        patch.setattr(spreading, "_FEWEST_ROWS", 1)
        yield


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        randomise(network)
    return network.eval()


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Give batch norms statistics and weights unlike those they start with, and layers weights that pass changes on."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
            if module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)


def spent(scorer: IncrementalScorer, pixels: int = 1) -> float:
    """The planned share of the dense pass."""
    nodes = scorer.explain(pixels)
    return sum(node.incremental_macs for node in nodes) / sum(node.dense_macs for node in nodes)


# Small networks of every shape


class Residual(nn.Module):
    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.first = nn.Conv2d(channels, channels, kernel, 1, padding, dilation)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)  # one module at two nodes

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.relu(self.norm(self.first(x))))
        out += x
        return self.relu(out)


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding="same", groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x).sigmoid()


class Branches(nn.Module):
    """Paths of different reach side by side."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(channels, 3, 5, stride, 2), nn.BatchNorm2d(3), nn.Hardswish())
        self.flat = nn.Conv2d(channels, 2, (1, 3), stride, (0, 1))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, self.stride, 1)
        sampled = x[:, :, :: self.stride, :: self.stride]
        return torch.cat([self.wide(x), self.flat(x), pooled, sampled], dim=1)


class Grouped(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lift = nn.Conv2d(channels, 4, 1)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.lift(x).chunk(2, dim=1)
        x = torch.cat((one, F.relu(self.conv(other), inplace=True)), 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


class ChannelsLast(nn.Module):
    """Normalisation and layers over channels as ConvNeXt has them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 6), nn.GELU(), nn.Linear(6, channels))
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(x.permute(0, 2, 3, 1)))
        return torch.add(x, self.scale * y.permute(0, 3, 1, 2))


class Shifted(nn.Module):
    def __init__(self, pad: tuple[int, ...], value: float) -> None:
        super().__init__()
        self.pad, self.value = pad, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad, value=self.value)


Layer = Callable[[int], nn.Module]  # from the number of channels

small = st.integers(1, 3)
either = st.booleans()
ways = st.sampled_from([None, "points", "windows"])


@st.composite
def convolutions(draw: st.DrawFn) -> Layer:
    kernel, stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(st.tuples(small, small))
    dilation, padding = draw(st.tuples(st.integers(1, 2), st.integers(1, 2))), draw(st.tuples(small, small))
    grouped, same, bias = draw(either), draw(either), draw(either)
    options: dict[str, Any] = {"padding": "same"} if same else {"padding": padding, "stride": stride}

    def make(channels: int) -> nn.Module:
        out, groups = (2 * channels, channels) if grouped else (6, 1)
        return nn.Conv2d(channels, out, kernel, dilation=dilation, bias=bias, groups=groups, **options)

    return make


@st.composite
def pools(draw: st.DrawFn) -> Layer:
    kernel, stride, ceil = draw(st.tuples(small, small)), draw(st.none() | small), draw(either)
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    if draw(either):
        dilation = draw(st.integers(1, 2))
        return lambda _: nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    count, divisor = draw(either), draw(st.none() | st.just(5))
    return lambda _: nn.AvgPool2d(kernel, stride, padding, ceil, count, divisor)


@st.composite
def blocks(draw: st.DrawFn) -> Layer:
    kernel, dilation, stride = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2)), draw(small)
    pad, value = draw(st.tuples(*[st.integers(-1, 2)] * 4)), draw(st.sampled_from([0.0, 0.5]))
    choices: list[Layer] = [
        lambda c: Residual(c, kernel, dilation),
        Gate,
        lambda c: Branches(c, stride),
        Grouped,
        ChannelsLast,
        lambda _: Shifted(pad, value),
    ]
    return draw(st.sampled_from(choices))


pointwise = st.sampled_from(
    [
        nn.BatchNorm2d,
        nn.PReLU,
        lambda _: nn.ReLU(inplace=True),
        lambda _: nn.LeakyReLU(0.1),
        lambda _: nn.SiLU(inplace=True),
        lambda _: nn.Hardswish(),
        lambda _: nn.GELU(),
        lambda _: nn.Dropout(0.5),
        lambda _: nn.LocalResponseNorm(3),
    ]
)
layers = st.lists(st.one_of(convolutions(), pools(), blocks(), pointwise), min_size=1, max_size=6)


def build(makers: list[Layer], size: Size, flat: bool) -> nn.Sequential:
    """Stack the layers that fit, and a head."""
    network, x = nn.Sequential(), torch.randn(2, 3, *size)
    for make in makers:
        try:
            layer = make(x.shape[1]).eval()
            y = layer(x.clone())
        except RuntimeError:
            continue  # the map has become too small for it
        # Pooling in ceil mode may have outputs that pool nothing, and are not finite.
        if 0 < y[0].numel() < 20000 and y.shape[1] <= 48 and y.isfinite().all():
            network.append(layer)
            x = y
    if not flat:
        network.append(nn.AdaptiveAvgPool2d(2))
    network.append(nn.Flatten())
    network.append(nn.Linear(x[0].numel() if flat else 4 * x.shape[1], 2))
    return network


sizes = st.tuples(st.integers(5, 14), st.integers(5, 14))
options = st.fixed_dictionaries({"classes": st.integers(1, 4), "dense_from": st.sampled_from([0.3, 0.9, 50.0])})


def check_random(
    makers: list[Layer], size: Size, pixels: int, flat: bool, options: dict[str, Any], seed: int, way: str | None
) -> None:
    classifier = make_classifier(seeded(lambda: build(makers, size, flat), seed), size)
    images = make_images(3, size, seed)
    with spreading_by(way):
        scorer = IncrementalScorer(classifier, dtype=torch.float64, **options)
        scorer.attach(images)
        assume(compare(scorer, classifier, images, make_edits(images, pixels, seed=seed), 1e-9))
    assert len(scorer.explain()) > 2, "the network was not traced"


@settings(max_examples=60, deadline=None)
@given(layers, sizes, st.sampled_from([1, 3, 5]), either, options, st.integers(0, 3), ways)
def test_random_networks_are_scored_exactly(
    makers: list[Layer], size: Size, pixels: int, flat: bool, options: dict[str, Any], seed: int, way: str | None
) -> None:
    check_random(makers, size, pixels, flat, options, seed, way)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(layers, sizes, st.sampled_from([1, 3, 5]), either, options, st.integers(0, 99), ways)
def test_many_random_networks_are_scored_exactly(
    makers: list[Layer], size: Size, pixels: int, flat: bool, options: dict[str, Any], seed: int, way: str | None
) -> None:
    check_random(makers, size, pixels, flat, options, seed, way)


# What it costs


def convolve(channels: int = 8) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 6, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2))


def lazy(build: Callable[[], nn.Module], size: Size) -> nn.Module:
    def initialised() -> nn.Module:
        network = build()
        network(torch.randn(2, 3, *size))
        return network

    return seeded(initialised)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_plan_tells_what_is_really_spent(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_rounded", int)  # no twins
    size, classifier = (16, 20), make_classifier(lazy(convolve, (16, 20)), (16, 20))
    scorer = IncrementalScorer(
        classifier, classes=classes, dtype=torch.float64
    )  # no packed weights, which nobody counts
    images = make_images(1, size)
    scorer.attach(images)
    everywhere = torch.arange(16 * 20)[:, None]  # the average candidate, exactly
    edits = Edits(torch.zeros(320, dtype=torch.int64), everywhere, make_edits(images, 1, 320).colour)
    scorer.logits(edits)  # keeps the clean activations
    with FlopCounterMode(display=False) as counter:
        scorer.logits(edits)
    nodes = scorer.explain(1)
    real = counter.get_total_flops() / 2 / 320
    assert real == pytest.approx(sum(node.incremental_macs for node in nodes), rel=1e-3)
    assert real < 0.3 * sum(node.dense_macs for node in nodes)


def test_the_plan_names_windows_and_maps() -> None:
    scorer = IncrementalScorer(make_classifier(lazy(convolve, (16, 20)), (16, 20)), classes=1)
    nodes = {node.op: node for node in scorer.explain(1)}  # the last of each kind
    assert "BatchNorm2d" not in nodes, "batch norm is part of the convolution"
    assert (nodes["MaxPool2d"].window, nodes["MaxPool2d"].map) == ((2, 2), (8, 10))
    last = nodes["Conv2d"]
    assert (last.window, last.map, last.share, last.dense) == ((4, 4), (8, 10), 0.2, False)
    assert (last.dense_macs, last.incremental_macs) == (8 * 10 * 8 * 6, 4 * 4 * 8 * 6)
    linear = nodes["Linear"]
    assert (linear.dense, linear.share, linear.incremental_macs) == (True, 1.0, 8 * 10 * 6 * 2)


#: What scoring one pixel may cost of the dense pass: 1.3 times the arithmetic with windows of any size.
@pytest.mark.parametrize(("build", "most"), [(allconv, 1.3 / 8.3), (nin, 1.3 / 6.5)])
def test_the_built_in_models_are_scored_exactly_and_cheaply(build: Callable[[], nn.Module], most: float) -> None:
    for pixels in (1, 3):
        scorer = check(seeded(build), (32, 32), pixels)
    assert spent(scorer) < most
    assert spent(scorer, 1) < spent(scorer, 3) < spent(scorer, 5) < 1


def test_more_pixels_go_dense_earlier_and_unknown_operations_for_good() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    scorer = check(lazy(lambda: network, (9, 9)), (9, 9), 1, classes=1)
    for pixels, first in ((1, False), (4, False), (6, True)):  # 6 · 3 · 3 of 7 · 7
        assert [node.dense for node in scorer.explain(pixels)] == [False, first, True, True, True, True]


# Networks that lay traps


class Reused(nn.Module):
    """Overwrites in place what a later path reads again: it must read what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.next, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.next(self.relu(x))
        y = F.relu(y, inplace=True)
        y.add_(x).mul_(2)
        return self.head((y + x).mean((2, 3)))


class Aliased(Reused):
    """Overwrites through another name, which tracing loses."""

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.conv(x)
        y += 1
        return self.head(self.next(x).mean((2, 3)))


class Viewed(Reused):
    """Overwrites a part of a tensor that is read as a whole later."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.relu(x[:, 1:])
        return self.head(self.next(x).mean((2, 3)))


class Assigned(Reused):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, 0] = 0.5
        return self.head(self.next(x).mean((2, 3)))


class Branching(Reused):
    """Looks at the values, which cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 1e6:
            x = x * 2
        return self.head(self.next(x).mean((2, 3)))


class Overwriting(Reused):
    """Overwrites the image itself."""

    def forward(self, x: Tensor, unused: int = 3) -> Tensor:
        x.mul_(2)
        return self.head(self.next(self.conv(x)).mean((2, 3)))


class Excited(Reused):
    """Squeeze and excitation: every position depends on all."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.next(x * F.adaptive_avg_pool2d(x, 1).sigmoid()).mean((2, 3)))


class Wrapped(Reused):
    """Pads as the torus does."""

    def __init__(self) -> None:
        super().__init__()
        self.next = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.next(self.conv(x)).amax((2, 3)))


class Positioned(Reused):
    """Adds another constant to every position."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(4, 9, 11))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.next((self.conv(x) + self.position).relu()).mean((2, 3)))


class Unpacked(Reused):
    """Parts of channels by number, slice and ``unbind``; shapes that are read in between."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        first = x[:, 0].unsqueeze(1) * x.shape[1] / x.size(3)
        rest = torch.stack(x[:, 1:].unbind(1), 1)
        return self.head(self.next(torch.cat([first, rest], 1)).mean((2, 3)))


class Doubled(Reused):
    """Sums and joins a value with itself, and takes every second row from the second on."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x + x)
        x = torch.cat([x[:, 2:], x[:, 2:]], -3)[:, :, 1::2, 2:-1]
        return self.head(self.next(x).mean((2, 3)))


class Flattened(Reused):
    """Flattens by ``view``, which depends on how a map lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 4 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.next(self.conv(x)), 2)
        return self.head(x.view(x.size(0), -1))


FOLLOWED = [Flattened, Reused, Overwriting, Excited, Wrapped, Positioned, Unpacked, Doubled, Aliased, Viewed, Assigned]


@pytest.mark.parametrize("way", [None, "points", "windows"])
@pytest.mark.parametrize("pixels", [1, 3])
@pytest.mark.parametrize("kind", [*FOLLOWED, Branching])
def test_traps_are_seen(kind: type[nn.Module], pixels: int, way: str | None) -> None:
    with spreading_by(way):
        scorer = check(seeded(kind), (9, 11), pixels)
    assert (len(scorer.explain()) > 2) == (kind in FOLLOWED)


def test_hooks_are_run() -> None:
    network = seeded(Positioned)
    network.next.register_forward_hook(lambda _, __, output: output * 3)  # type: ignore[union-attr]
    scorer = check(network, (9, 11), 1)
    assert [node.dense for node in scorer.explain() if node.op == "Conv2d"] == [False, True]


def test_batch_norm_without_statistics_is_not_taken_for_a_factor() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    check(lazy(lambda: network, (7, 7)), (7, 7), 3)


# The scorer


def test_the_network_it_is_given_stays_as_it_is() -> None:
    classifier = make_classifier(seeded(Reused), (9, 11))
    before = copy.deepcopy(classifier.state_dict())
    scorer = IncrementalScorer(classifier)
    scorer.attach(make_images(1, (9, 11)))
    scorer.logits(make_edits(make_images(1, (9, 11)), 3))
    assert classifier.network.relu.inplace is True  # type: ignore[union-attr]
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


def test_other_images_sizes_and_numbers_of_pixels_may_follow() -> None:
    classifier = make_classifier(seeded(Reused), (9, 11))
    scorer = IncrementalScorer(classifier, dtype=torch.float64)
    for seed, size in enumerate([(9, 11), (9, 11), (15, 8), (9, 11)]):
        images = make_images(20 if seed == 1 else 2, size, seed)
        scorer.attach(images)
        for pixels in (3, 1):
            assert compare(scorer, classifier, images, make_edits(images, pixels), 1e-9)


def test_a_batch_of_few_of_many_images() -> None:
    classifier, images = make_classifier(seeded(Reused), (9, 11)), make_images(20, (9, 11))
    scorer = IncrementalScorer(classifier, dtype=torch.float64)
    scorer.attach(images)
    edits = make_edits(images, 3, count=60)
    for image in (0, 7, 19):
        assert compare(scorer, classifier, images, edits[edits.image == image], 1e-9)
    assert compare(scorer, classifier, images, edits[edits.image > 12], 1e-9)


def test_the_cache_is_what_the_plan_reads() -> None:
    size, classifier = (16, 20), make_classifier(lazy(convolve, (16, 20)), (16, 20))
    scorer = IncrementalScorer(classifier)
    images = make_images(2, size)
    scorer.attach(images)
    assert scorer.cache_bytes() == 0
    scorer.logits(make_edits(images, 1))
    # The image, what it becomes before and after ReLU, the map that the second convolution reads, and the one before
    # the dense end.
    assert scorer.cache_bytes() == 2 * 4 * (320 * 3 + 2 * 320 * 8 + 80 * 8 + 80 * 6)
    scorer.attach(images[:1])
    assert scorer.cache_bytes() == 0


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("tf32", 1e-5), ("bf16", 0.05), ("fp16", 0.01)])
def test_precisions_are_those_of_the_dense_scorer(precision: str, tolerance: float) -> None:
    classifier, images = make_classifier(lazy(convolve, (16, 20)), (16, 20)), make_images(2, (16, 20))
    edits = make_edits(images, 3)
    dense, incremental = DenseScorer(classifier, precision), IncrementalScorer(classifier, precision)
    for scorer in (dense, incremental):
        scorer.attach(images)
    with torch.inference_mode():
        expected, got = dense.logits(edits), incremental.logits(edits)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


# Networks as they are used

PUBLISHED = {
    "alexnet": 96,
    "vgg11_bn": 64,
    "resnet18": 96,
    "squeezenet1_1": 96,
    "densenet121": 64,
    "mobilenet_v2": 96,
    "googlenet": 96,
    "shufflenet_v2_x0_5": 96,
    "mnasnet0_5": 96,
    "efficientnet_b0": 96,
    "inception_v3": 107,
    "convnext_tiny": 96,
}


def published(name: str, size: int) -> nn.Module:
    """A model with random weights that pass on what an edit changes, neither losing it nor blowing up rounding."""
    import torchvision

    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = getattr(torchvision.models, name)(weights=None, **options)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not norms:
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.momentum = None  # the statistics become those of the one batch seen now
        network.train()(torch.randn(8, 3, size, size))
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_scored_exactly(name: str) -> None:
    size = PUBLISHED[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = make_classifier(published(name, size), (size, size))
    images = make_images(2, (size, size))
    scorer = IncrementalScorer(classifier, dtype=torch.float64)
    scorer.attach(images)
    for pixels in (1, 3, 5):
        assert compare(scorer, classifier, images, make_edits(images, pixels, 12), 1e-6)
    assert len(scorer.explain()) > 2, "the network was not traced"
    assert spent(scorer) < 1
