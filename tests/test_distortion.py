"""SSIM against scikit-image, norms and PSNR against numpy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsem.metrics import distortion
from pixelsem.metrics.distortion import MEASURES, Distortion, measure, psnr, ssim, summarize


def images(seed: int, shape: tuple[int, ...] = (3, 3, 24, 31)) -> torch.Tensor:
    """Return smooth noise, uint8, as photos have neighbours that agree."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((shape[0], shape[1], 5, 5)))
    fine = torch.from_numpy(rng.normal(0, 6, shape))
    smooth = torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear") * 255
    return (smooth + fine).clamp(0, 255).round().to(torch.uint8)


def reference(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Return the SSIM of each pair by scikit-image: the map without the border that its windows overhang."""
    metrics = pytest.importorskip("skimage.metrics")
    found = []
    for one, two in zip(first.numpy(), second.numpy(), strict=True):
        planes = []
        for a, b in zip(one, two, strict=True):
            _, every = metrics.structural_similarity(
                a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
            )
            planes.append(every[5:-5, 5:-5].mean())
        found.append(float(np.mean(planes)))
    return found


class TestSsim:
    @pytest.mark.parametrize("spread", [1, 12, 90])
    def test_equals_scikit_image(self, spread):
        clean = images(0)
        noise = torch.from_numpy(np.random.default_rng(1).normal(0, spread, clean.shape))
        attacked = (clean + noise).clamp(0, 255).round().to(torch.uint8)
        found = ssim(clean, attacked)
        assert found.tolist() == pytest.approx(reference(clean, attacked), abs=1e-7)
        assert found.max() < 0.9995

    def test_of_flat_images_is_the_luminance_term_alone(self):
        low, high = torch.full((1, 3, 11, 11), 100.0), torch.full((1, 3, 11, 11), 140.0)
        c1 = (0.01 * 255) ** 2
        assert ssim(low, high).item() == pytest.approx((2 * 100 * 140 + c1) / (100**2 + 140**2 + c1), abs=1e-9)

    def test_of_an_image_with_itself_is_one_and_order_does_not_matter(self):
        one, two = images(0), images(1)
        assert ssim(one, one).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
        assert torch.allclose(ssim(one, two), ssim(two, one), atol=1e-12)

    def test_a_batch_scores_as_its_images_alone(self):
        one, two = images(0), images(1)
        alone = [ssim(one[i : i + 1], two[i : i + 1]).item() for i in range(3)]
        assert ssim(one, two).tolist() == pytest.approx(alone, abs=1e-12)

    def test_refuses_what_it_cannot_score(self):
        with pytest.raises(ValueError, match="at least 11×11"):
            ssim(images(0, (1, 3, 10, 40)), images(0, (1, 3, 10, 40)))
        with pytest.raises(ValueError, match="one shape"):
            ssim(images(0), images(0, (3, 3, 24, 30)))


class TestNorms:
    def test_five_pixels_count_fifteen_values(self):
        clean = torch.full((1, 3, 12, 12), 100, dtype=torch.uint8)
        attacked = clean.clone()
        attacked[0, :, 2, 3:8] = 110
        (found,) = measure(clean, attacked)
        assert (found.l0_pixels, found.l0_values) == (5, 15)
        assert (found.l1, found.linf) == (150, 10)
        assert found.l2 == pytest.approx(10 * math.sqrt(15))
        assert found.psnr == pytest.approx(10 * math.log10(255**2 / (1500 / (3 * 144))))

    def test_a_pixel_that_changes_in_one_channel_counts_one_value(self):
        clean = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
        attacked = clean.clone()
        attacked[0, 1, 0, 0], attacked[0, 2, 5, 5] = 3, 4
        (found,) = measure(clean, attacked)
        assert (found.l0_pixels, found.l0_values, found.l1, found.l2, found.linf) == (2, 2, 7, 5, 4)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30, deadline=None)
    def test_equal_numpy_on_full_range_changes(self, seed):
        rng = np.random.default_rng(seed)
        clean, attacked = rng.integers(0, 256, (2, 2, 3, 13, 11), dtype=np.uint8)
        found = measure(torch.from_numpy(clean), torch.from_numpy(attacked))
        for one, a, b in zip(found, clean.astype(int), attacked.astype(int), strict=True):
            change = (b - a).ravel()
            assert one.l1 == np.abs(change).sum()
            assert one.l2 == pytest.approx(np.linalg.norm(change))
            assert one.linf == np.abs(change).max()
            assert one.l0_values == np.count_nonzero(change)
            assert one.l0_pixels == np.count_nonzero((a != b).any(0))
            assert one.l1 / math.sqrt(change.size) <= one.l2 <= one.l1
        assert distortion.l2(torch.from_numpy(clean), torch.from_numpy(attacked)).tolist() == [one.l2 for one in found]

    def test_an_unchanged_image_has_no_psnr(self):
        clean = images(0)
        assert psnr(clean, clean).tolist() == [math.inf] * 3
        assert measure(clean[:1], clean[:1]) == [Distortion(pytest.approx(1.0), None, 0, 0, 0, 0, 0)]

    def test_an_image_below_the_window_has_no_ssim(self):
        small = images(0, (1, 3, 8, 8))
        (found,) = measure(small, 255 - small)
        assert found.ssim is None
        assert found.l0_pixels == 64

    def test_refuses_pairs_of_two_shapes(self):
        with pytest.raises(ValueError, match="one shape"):
            measure(images(0), images(0)[:2])


class TestSummary:
    def test_means_and_medians_leave_out_what_is_not_there(self):
        rows = [
            Distortion(0.5, None, 1, 3, 10, 5, 4),
            Distortion(1.0, 40.0, 2, 3, 20, 5, 4),
            Distortion(0.9, 20.0, 9, 3, 90, 5, 4),
        ]
        found = summarize(rows)
        assert found.n == 3
        assert found.mean == pytest.approx(
            {"ssim": 0.8, "psnr": 30, "l0_pixels": 4, "l0_values": 3, "l1": 40, "l2": 5, "linf": 4}
        )
        assert found.median["l1"] == 20
        assert set(found.mean) == set(MEASURES)

    def test_nothing_has_no_mean(self):
        assert summarize([]) is None
        assert "ssim" not in summarize([Distortion(None, None, 1, 1, 1, 1, 1)]).mean
