"""Changes through convolutions by few products: the numbers of the convolution, and no more products than promised."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pixelsem.fitness.spreading import Spread, spread


def convolved(module: nn.Conv2d, changes: Tensor) -> Tensor:
    """Return float64 [h + r − 1, w + r − 1, n, C'], the sum over all taps."""
    x = changes.double().permute(2, 3, 0, 1)
    return F.conv2d(x, module.weight.double(), None, 1, module.kernel_size[0] - 1).permute(2, 3, 0, 1)


def make(taps: int, padding: int = 1, dtype: torch.dtype = torch.float64, channels: int = 40) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(32, channels, taps, padding=padding).requires_grad_(False).to(dtype)


sizes = st.integers(1, 13)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), sizes, sizes, st.sampled_from([1, 15, 16, 40]), st.data())
def test_products_at_points_are_the_convolution(
    taps: int, height: int, width: int, count: int, data: st.DataObject
) -> None:
    module = make(taps)
    changes = torch.randn(height, width, count, 32, dtype=torch.float64)
    expected = convolved(module, changes)
    rows, columns = (
        slice(start, data.draw(st.integers(start + 1, length)))
        for length in expected.shape[:2]
        for start in [data.draw(st.integers(0, length - 1))]
    )
    got = Spread(module, (1, 1))(changes, rows, columns)
    torch.testing.assert_close(got, expected[rows, columns], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rounding_is_small_beside_the_change(taps: int, dtype: torch.dtype) -> None:
    module = make(taps, dtype=dtype)
    for size in [1, 3, 4, 7, 12]:
        changes = (1e-3 * torch.randn(size, size, 32, 32)).to(dtype)
        expected = convolved(module, changes)
        error = Spread(module, (1, 1))(changes, slice(None), slice(None)).double() - expected
        assert error.norm() < (4e-6 if dtype == torch.float32 else 4e-3) * expected.norm()


@pytest.mark.parametrize(("size", "products"), [(1, 9), (2, 16), (3, 25), (4, 36), (6, 100), (8, 144), (9, 225)])
def test_as_many_products_as_points(size: int, products: int) -> None:
    """Of s values and r taps s + r − 1 per axis, in tiles of four values at most; a plain window takes 9 (s + 2)²."""
    assert Spread(make(3), (1, 1)).macs(size, size) == products * 32 * 40
    assert products < 9 * (size + 2) ** 2 / 2.5


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(96, 96, 3, stride=2),
        nn.Conv2d(96, 96, 3, dilation=2),
        nn.Conv2d(96, 96, 3, groups=2),
        nn.Conv2d(96, 96, (3, 1)),
        nn.Conv2d(88, 96, 3),
        nn.Conv2d(96, 96, 7),
    ],
)
def test_other_convolutions_stay_as_they_are(module: nn.Conv2d) -> None:
    assert spread(module, (1, 1), single=False) is None
    assert spread(nn.Conv2d(96, 96, 3), (1, 1), single=False) is not None


def test_windows_in_bfloat16_take_what_does_not_meet_zeros() -> None:
    assert Spread(make(3, dtype=torch.bfloat16), (1, 1)).macs(4, 5) == 4 * 5 * 9 * 32 * 40


@pytest.mark.parametrize("module", [nn.Conv2d(3, 8, 7), nn.Conv2d(3, 8, 3).bfloat16()])
def test_single_pixels_spread_through_any_kernel(module: nn.Conv2d) -> None:
    assert spread(module, (1, 1), single=True) is not None
