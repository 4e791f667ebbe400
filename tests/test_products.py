"""Linear layers as convolutions: the same numbers, and only where they gain."""

import pytest
import torch
from torch import nn

from pixelsem.fitness import products
from pixelsem.fitness.products import Linear, with_fast_products


@pytest.fixture
def gaining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "convolutions_are_faster", lambda: True)


def convolved(run) -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return any("conv" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("shape", [(200, 512), (4, 50, 512), (2, 10, 10, 512)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers_and_gradients(gaining: None, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 300, bias=bias)
    network = with_fast_products(nn.Sequential(layer, nn.ReLU()))
    assert type(network[0]) is Linear
    x = torch.randn(shape, requires_grad=True)
    expected = (x.double() @ layer.weight.double().T) + (layer.bias.double() if bias else 0)
    assert convolved(lambda: network(x))
    torch.testing.assert_close(network(x), expected.relu().float(), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    (known,) = torch.autograd.grad(expected.relu().sum(), x)
    torch.testing.assert_close(gradient, known, rtol=1e-5, atol=1e-5)


def test_few_rows_and_other_types_stay_products(gaining: None) -> None:
    network = with_fast_products(nn.Sequential(nn.Linear(512, 300)))
    assert not convolved(lambda: network(torch.randn(100, 512)))
    assert not convolved(lambda: network.double()(torch.randn(200, 512, dtype=torch.float64)))


def test_small_foreign_and_watched_layers_stay_as_they_are(gaining: None) -> None:
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    watched = nn.Linear(512, 300)
    watched.register_forward_hook(lambda *_: None)
    network = nn.Sequential(nn.Linear(64, 64), Doubled(512, 300), watched)
    assert [type(layer) for layer in with_fast_products(network)] == [nn.Linear, Doubled, nn.Linear]


def test_nothing_changes_where_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "convolutions_are_faster", lambda: False)
    assert type(with_fast_products(nn.Sequential(nn.Linear(512, 300)))[0]) is nn.Linear


def test_weights_and_mode_are_shared(gaining: None) -> None:
    layer = nn.Linear(512, 300).eval()
    fast = with_fast_products(nn.Sequential(layer))[0]
    assert fast.weight is layer.weight
    assert not fast.training
    assert (fast.in_features, fast.out_features) == (512, 300)
