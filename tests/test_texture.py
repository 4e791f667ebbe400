from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.signal import convolve2d

from pixelsem.images import read_image, read_mask
from pixelsem.metrics.texture import WET_COST, flat, hill_cost, region_texture, summarize, to_grey

KB = np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]])


def oracle(grey: np.ndarray, wet_cost: float = WET_COST) -> np.ndarray:
    """The formula with two-dimensional convolutions."""
    residual = convolve2d(grey.astype(float), KB, mode="same", boundary="symm")
    smooth = convolve2d(np.abs(residual), np.ones((3, 3)) / 9, mode="same", boundary="symm")
    return convolve2d(1 / (smooth + 1 / wet_cost), np.ones((15, 15)) / 225, mode="same", boundary="symm")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


@pytest.mark.parametrize("size", [(40, 56), (16, 16), (33, 20)])
def test_cost_is_that_of_the_formula(size):
    grey = texture(*size)
    grey[: size[0] // 3] //= 40
    np.testing.assert_allclose(hill_cost(grey, 1e4), oracle(grey, 1e4), rtol=1e-9)


def test_cost_with_flat_parts_is_that_of_the_formula():
    grey = texture(60, 60)
    grey[:30] = 17
    cost = hill_cost(grey)
    # The oracle's residual of flat pixels is exactly 0 too, as it sums whole numbers.
    np.testing.assert_allclose(cost, oracle(grey), rtol=1e-9)
    assert cost[0, 0] == pytest.approx(WET_COST)
    assert cost[55, 30] < 1


def test_cost_by_loops():
    grey = texture(6, 7, 1).astype(int)

    def at(values, y, x):
        """Read as if the image were mirrored at its border, the border pixel repeated."""
        height, width = len(values), len(values[0])
        y, x = y % (2 * height), x % (2 * width)
        return values[min(y, 2 * height - 1 - y)][min(x, 2 * width - 1 - x)]

    def around(values, reach, weight):
        steps = range(-reach, reach + 1)
        return [
            [sum(weight(dy, dx) * at(values, y + dy, x + dx) for dy in steps for dx in steps) for x in range(7)]
            for y in range(6)
        ]

    residual = around(grey.tolist(), 1, lambda dy, dx: int(KB[dy + 1, dx + 1]))
    smooth = around([[abs(v) for v in row] for row in residual], 1, lambda dy, dx: 1 / 9)
    expected = around([[1 / (v + 1e-10) for v in row] for row in smooth], 7, lambda dy, dx: 1 / 225)
    np.testing.assert_allclose(hill_cost(grey.astype(np.uint8)), expected, rtol=1e-9)


def test_a_checkerboard_by_hand():
    """Every residual is 8 times the contrast, so every cost is 1 / (8 · 10), away from the border."""
    grey = (10 * (np.indices((40, 40)).sum(0) % 2)).astype(np.uint8)
    np.testing.assert_allclose(hill_cost(grey)[10:-10, 10:-10], 1 / 80, rtol=1e-8)


@pytest.mark.parametrize("wet_cost", [100.0, 1e6, 1e10])
def test_what_does_not_vary_costs_the_wet_cost(wet_cost):
    constant = np.full((20, 30), 200, np.uint8)
    np.testing.assert_allclose(hill_cost(constant, wet_cost), wet_cost)
    assert flat(constant).all()


def test_a_sum_of_rows_and_columns_is_flat():
    rows, columns = np.indices((20, 30))
    grey = (rows**2 // 4 + 3 * columns).astype(np.uint8)
    assert flat(grey)[2:-2, 2:-2].all()
    grey[10, 15] += 1
    assert np.argwhere(~flat(grey)[2:-2, 2:-2]).tolist() == [[y, x] for y in range(6, 11) for x in range(11, 16)]


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, (9, 11), elements=st.integers(0, 127)))
def test_twice_the_contrast_is_half_the_cost(grey):
    varied = ~flat(grey)
    cost, doubled = hill_cost(grey), hill_cost(2 * grey)
    if varied.all():
        np.testing.assert_allclose(doubled, cost / 2, rtol=1e-6)
    assert (doubled <= cost * (1 + 1e-9)).all()
    np.testing.assert_array_equal(flat(2 * grey), ~varied)


def test_a_batch_is_its_images():
    batch = np.stack([texture(20, 24, seed) for seed in range(3)])
    np.testing.assert_array_equal(hill_cost(batch), np.stack([hill_cost(grey) for grey in batch]))


def test_grey_is_that_of_pil():
    pixels = np.random.default_rng(5).integers(0, 256, (2, 30, 40, 3), np.uint8)
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in pixels]
    np.testing.assert_array_equal(to_grey(pixels), expected)


def test_regions_are_means_of_the_cost():
    grey = texture(40, 40)
    grey[:, 20:] //= 16
    foreground = np.zeros((40, 40), bool)
    foreground[5:30, 3:18] = True
    found = region_texture(grey, foreground, 1e4)
    cost = oracle(grey, 1e4)
    assert found.foreground == pytest.approx(cost[foreground].mean())
    assert found.background == pytest.approx(cost[~foreground].mean())
    assert found.foreground < found.background
    assert found.flat_background == pytest.approx(flat(grey)[~foreground].mean())
    for empty in (np.zeros((40, 40), bool), np.ones((40, 40), bool)):
        assert region_texture(grey, empty) is None


def test_the_summary_is_by_image():
    grey, foreground = texture(32, 32), np.zeros((32, 32), bool)
    foreground[:16] = True
    smooth_below, smooth_above = grey.copy(), grey.copy()
    smooth_below[16:] = 9
    smooth_above[:16] = 9
    images = [region_texture(each, foreground, 1e6) for each in (smooth_below, smooth_below, smooth_above)]
    found = summarize(images)
    assert (found.textured.successes, found.textured.n) == (2, 3)
    assert found.foreground.value == pytest.approx(np.mean([one.foreground for one in images]))
    assert found.difference.value == pytest.approx(found.background.value - found.foreground.value)
    assert found.median_foreground == sorted(one.foreground for one in images)[1]
    assert found.flat_background == pytest.approx(2 / 3 * images[0].flat_background)
    with pytest.raises(ValueError, match="no images"):
        summarize([])


@pytest.mark.slow
def test_objects_have_more_texture_than_what_is_around_them(data_dir):
    """The order that dong2020 (§3.2) reports, on photos with true masks."""
    root = data_dir / "ecssd"
    if not root.is_dir():
        pytest.skip("no ecssd folder")
    found = []
    for path in sorted((root / "images").iterdir())[:200]:
        truth = read_mask(root / "masks" / f"{path.stem}.png") > 127
        found.append(region_texture(to_grey(read_image(path)), truth))
    summary = summarize([one for one in found if one is not None])
    assert summary.foreground.value < summary.background.value
    assert summary.difference.low > 0
    assert summary.textured.low > 0.5
