"""Layers with packed weights: the same numbers, and gradients where they are asked."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelsem.fitness import products
from pixelsem.fitness.products import Linear, convolution, packing_works, with_fast_products

packs = pytest.mark.skipif(not packing_works(torch.float32), reason="this PyTorch has no packed weights")


@pytest.fixture
def gaining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "mkl_is_held_back", lambda: True)


def operations(run) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return " ".join(event.key for event in profile.key_averages())


@packs
@pytest.mark.parametrize("shape", [(200, 512), (1, 512), (4, 50, 512), (2, 10, 10, 512)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_same_numbers(gaining: None, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 300, bias=bias)
    network = with_fast_products(nn.Sequential(layer, nn.ReLU()))
    assert type(network[0]) is Linear
    x = torch.randn(shape)
    expected = (x.double() @ layer.weight.double().T) + (layer.bias.double() if bias else 0)
    with torch.inference_mode():
        assert "_linear_pointwise" in operations(lambda: network(x))
        for _ in range(2):
            torch.testing.assert_close(network(x), expected.relu().float(), rtol=1e-5, atol=1e-5)


def test_a_gradient_goes_through_the_weights_themselves(gaining: None) -> None:
    layer = nn.Linear(512, 300)
    network = with_fast_products(nn.Sequential(layer))
    x = torch.randn(8, 512, requires_grad=True)
    with torch.inference_mode():
        network(x.detach())
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    torch.testing.assert_close(gradient, layer.weight.sum(0).expand(8, -1))


def test_other_types_stay_as_they_are(gaining: None) -> None:
    network = with_fast_products(nn.Sequential(nn.Linear(512, 300))).double()
    with torch.inference_mode():
        assert "pointwise" not in operations(lambda: network(torch.randn(200, 512, dtype=torch.float64)))


def test_small_foreign_and_watched_layers_stay_as_they_are(gaining: None) -> None:
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    watched = nn.Linear(512, 300)
    watched.register_forward_hook(lambda *_: None)
    network = nn.Sequential(nn.Linear(64, 64), Doubled(512, 300), watched)
    assert [type(layer) for layer in with_fast_products(network)] == [nn.Linear, Doubled, nn.Linear]


def test_nothing_changes_where_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "mkl_is_held_back", lambda: False)
    assert type(with_fast_products(nn.Sequential(nn.Linear(512, 300)))[0]) is nn.Linear


def test_weights_and_mode_are_shared(gaining: None) -> None:
    layer = nn.Linear(512, 300).eval()
    fast = with_fast_products(nn.Sequential(layer))[0]
    assert fast.weight is layer.weight
    assert not fast.training
    assert (fast.in_features, fast.out_features) == (512, 300)


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LARGE_KERNEL", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("stride", "dilation", "groups"), [((1, 1), 1, 1), ((2, 1), 1, 1), ((1, 1), 2, 1), ((2, 2), 1, 4)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_are_the_same_numbers(
    all_large: None, dtype: torch.dtype, stride: tuple[int, int], dilation: int, groups: int, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, padding=1, stride=3, dilation=dilation, groups=groups, bias=bias).to(dtype)
    convolve = convolution(layer, stride)
    for size in ((5, 9, 7), (1, 12, 6), (3, 5, 5)):  # the weights are packed for the first of them
        x = torch.randn(size[0], 8, *size[1:]).to(dtype).contiguous(memory_format=torch.channels_last)
        expected = F.conv2d(x, layer.weight, layer.bias, stride, 0, dilation, groups)
        with torch.inference_mode():
            torch.testing.assert_close(convolve(x), expected)
        torch.testing.assert_close(convolve(x), expected)


@packs
def test_weights_are_packed_once_for_all_that_share_them(all_large: None) -> None:
    layer = nn.Conv2d(8, 8, 3)
    with torch.inference_mode():
        x = torch.randn(2, 8, 6, 6)
        assert "_reorder_convolution_weight" in operations(lambda: convolution(layer, (1, 1))(x))
        assert "_reorder_convolution_weight" not in operations(lambda: convolution(layer, (2, 2))(x))


def test_small_kernels_are_called_as_usual() -> None:
    with torch.inference_mode():
        assert "pointwise" not in operations(lambda: convolution(nn.Conv2d(8, 8, 3), (1, 1))(torch.randn(2, 8, 6, 6)))
