"""Images and masks on their way to the classifier's resolution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelsem.errors import InputError
from pixelsem.models import Preprocessing, fit_image, fit_mask
from pixelsem.models.inputs import Resize, unfit_map

sides = st.integers(1, 70)
crops = st.integers(1, 24)


@st.composite
def preprocessings(draw: st.DrawFn, interpolation: str = "nearest") -> Preprocessing:
    size = draw(st.tuples(crops, crops))
    return Preprocessing(size, min(size) + draw(st.integers(0, 8)), interpolation=interpolation)  # type: ignore[arg-type]


def colour_code(labels: np.ndarray) -> np.ndarray:
    """Write each label as a colour of its own, uint8 [H, W, 3]."""
    return np.stack([labels & 255, labels >> 8 & 255, labels >> 16 & 255], axis=2).astype(np.uint8)


@settings(deadline=None, max_examples=300)
@given(height=sides, width=sides, preprocessing=preprocessings(), resize=st.sampled_from(["crop", "squash"]))
def test_mask_goes_where_its_image_goes(height: int, width: int, preprocessing: Preprocessing, resize: Resize) -> None:
    labels = np.arange(height * width, dtype=np.int64).reshape(height, width)
    image = fit_image(colour_code(labels), preprocessing, resize)
    mask = fit_mask(labels, (height, width), preprocessing, resize)
    assert image.shape == (*preprocessing.size, 3)
    assert mask.shape == preprocessing.size
    assert mask.dtype == labels.dtype
    np.testing.assert_array_equal(image, colour_code(mask))


@settings(deadline=None, max_examples=200)
@given(height=sides, width=sides, side=crops, margin=st.integers(0, 12), bicubic=st.booleans())
def test_crop_is_torchvisions(height: int, width: int, side: int, margin: int, bicubic: bool) -> None:
    from torchvision.transforms import functional as F

    pixels = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    mode = F.InterpolationMode.BICUBIC if bicubic else F.InterpolationMode.BILINEAR
    preprocessing = Preprocessing((side, side), side + margin, interpolation=mode.value)
    theirs = F.center_crop(F.resize(Image.fromarray(pixels), [side + margin], mode), [side, side])
    expected = pixels if (height, width) == (side, side) else np.asarray(theirs)
    np.testing.assert_array_equal(fit_image(pixels, preprocessing), expected)


@settings(deadline=None)
@given(height=sides, width=sides, size=st.tuples(crops, crops))
def test_squash_keeps_the_corners(height: int, width: int, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    squashed = fit_image(pixels, Preprocessing(size, min(size)), "squash")
    expected = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squashed, np.asarray(expected) if (height, width) != size else pixels)


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_an_image_of_the_classifiers_size_is_taken_as_it_is(resize: Resize) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    preprocessing = Preprocessing((24, 24), 32)
    assert np.array_equal(fit_image(pixels, preprocessing, resize), pixels)
    assert np.array_equal(fit_mask(pixels[:, :, 0], pixels.shape, preprocessing, resize), pixels[:, :, 0])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64])
def test_masks_keep_their_values_and_type(dtype: type) -> None:
    mask = np.zeros((40, 60), dtype)
    mask[10:30, 20:40] = np.iinfo(np.uint16).max if dtype in (np.uint16, np.int64) else 1
    fitted = fit_mask(mask, (40, 60, 3), Preprocessing((20, 20), 20))
    assert fitted.dtype == dtype
    assert set(np.unique(fitted)) == set(np.unique(mask))
    # The object spans the middle half of the height and, after the crop, half of the width.
    assert np.array_equal(np.argwhere(fitted).min(0), [5, 5])
    assert np.array_equal(np.argwhere(fitted).max(0), [14, 14])


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="the mask is 60×40, its image 40×60; both must have the same size"):
        fit_mask(np.zeros((40, 60), np.uint8), (60, 40, 3), Preprocessing((8, 8), 8))


@settings(deadline=None, max_examples=300)
@given(height=sides, width=sides, preprocessing=preprocessings(), resize=st.sampled_from(["crop", "squash"]))
def test_a_map_covers_what_the_mask_is_taken_from(
    height: int, width: int, preprocessing: Preprocessing, resize: Resize
) -> None:
    laid = unfit_map(np.full(preprocessing.size, 0.5), (height, width, 3), preprocessing, resize)
    assert laid.shape == (height, width)
    assert laid.dtype == np.float32
    assert set(np.unique(laid)) <= {np.float32(0), np.float32(0.5)}
    codes = (laid * 2).astype(np.uint8)
    assert fit_mask(codes, (height, width), preprocessing, resize).all()


@settings(deadline=None, max_examples=300)
@given(factor=st.integers(1, 5), rest=st.integers(0, 40), preprocessing=preprocessings(), tall=st.booleans())
def test_a_map_comes_back_where_the_image_is_larger(
    factor: int, rest: int, preprocessing: Preprocessing, tall: bool
) -> None:
    """A ramp is off by at most the half pixel by which the nearest one may lie beside the place asked for."""
    long = factor * preprocessing.resize * max(preprocessing.size) + rest
    shape = (long + 7, long) if tall else (long, long + 7)
    rows, columns = np.mgrid[: preprocessing.size[0], : preprocessing.size[1]]
    for ramp in (rows, columns):
        laid = unfit_map(ramp.astype(float), shape, preprocessing)
        back = fit_mask(np.rint(laid * 1000).astype(np.int64), shape, preprocessing)
        assert np.abs(back / 1000 - ramp).max() <= 0.51


def test_a_map_of_an_image_that_fits_is_itself() -> None:
    values = np.random.default_rng(0).random((24, 24), np.float32)
    assert np.array_equal(unfit_map(values, (24, 24, 3), Preprocessing((24, 24), 32)), values)


def test_a_map_is_nought_outside_of_the_crop() -> None:
    laid = unfit_map(np.ones((20, 20)), (40, 120, 3), Preprocessing((20, 20), 20))
    assert laid[:, 40:80].all()
    assert not laid[:, :40].any()
    assert not laid[:, 80:].any()
