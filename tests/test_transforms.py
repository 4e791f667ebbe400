"""The image transforms against Pillow, SciPy, formulas and a converged solver."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from scipy import fft, ndimage
from torch import Tensor

from pixelsem.errors import PixelsemError
from pixelsem.transforms import distillation, tvm
from pixelsem.transforms.layer import DefenseLayer, apply
from pixelsem.transforms.registry import TRANSFORMS
from pixelsem.transforms.specs import parse_defense, parse_defenses

SPECS = ("resize:g=1.7", "jpeg:q=40", "dnn-jpeg:q=30", "avg-pool", "max-pool", "median", "tvm", "bit-depth:d=3")


def pictures(count: int = 2, height: int = 21, width: int = 29, seed: int = 0) -> Tensor:
    """Return images with slopes, edges and noise, uint8 [N, 3, H, W]."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    slopes = random.uniform(-4, 4, (count, 3, 2, 1, 1))
    plane = 128 + slopes[:, :, 0] * (rows - height / 2) + slopes[:, :, 1] * (columns - width / 2)
    plane += 60 * (columns > width * random.uniform(0.2, 0.8, (count, 1, 1, 1)))
    noisy = plane + random.normal(0, 12, plane.shape)
    return torch.from_numpy(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def run(text: str, images: Tensor) -> Tensor:
    return apply(images, [parse_defense(text)])


def planes(images: Tensor) -> list[np.ndarray]:
    return [image.permute(1, 2, 0).numpy() for image in images]


@pytest.mark.parametrize("text", SPECS)
def test_the_form_and_independence_of_every_transform(text: str) -> None:
    images = pictures(3)
    before = images.clone()
    out = run(text, images)
    assert (out.dtype, out.shape) == (torch.uint8, images.shape)
    assert torch.equal(images, before)
    assert not torch.equal(out, images)
    for number in range(3):  # neither the batch nor the order changes what comes out for an image
        assert torch.equal(run(text, images[[number]])[0], out[number])
    assert torch.equal(run(text, images.flip(0)), out.flip(0))
    assert run(text, images[:0]).shape == (0, *images.shape[1:])


def test_every_transform_is_tried() -> None:
    assert {parse_defense(text).info.name for text in SPECS} == set(TRANSFORMS)


@pytest.mark.parametrize("quality", [5, 55, 95])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_is_pillows(quality: int, subsampling: str) -> None:
    images = pictures()
    out = run(f"jpeg:q={quality},subsampling={subsampling}", images)
    for before, after in zip(planes(images), planes(out), strict=True):
        file = io.BytesIO()
        Image.fromarray(before).save(file, "JPEG", quality=quality, subsampling=subsampling)
        assert np.array_equal(np.asarray(Image.open(file)), after)


@pytest.mark.parametrize("gamma", [1.3, 2.0, 3.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_is_pillows_but_for_the_order_of_rounding(gamma: float, interpolation: str) -> None:
    images = pictures(height=32, width=41)
    out = run(f"resize:gamma={gamma},interpolation={interpolation}", images)
    small = round(41 / gamma), round(32 / gamma)
    for before, after in zip(planes(images), planes(out), strict=True):
        kind = Image.Resampling[interpolation.upper()]
        known = np.asarray(Image.fromarray(before).resize(small, kind).resize((41, 32), kind)).astype(int)
        # Pillow also rounds between rows and columns.
        assert np.abs(known - after).max() <= 2
        assert np.abs(known - after).mean() < 0.5


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_pooling_is_scipys(kernel: int) -> None:
    images = pictures()
    median, highest = run(f"median:k={kernel}", images), run(f"max-pool:k={kernel}", images)
    average = run(f"avg-pool:k={kernel}", images)
    for before, *after in zip(
        images.flatten(0, 1).numpy(), *(out.flatten(0, 1).numpy() for out in (median, highest, average)), strict=True
    ):
        assert np.array_equal(ndimage.median_filter(before, kernel, mode="reflect"), after[0])
        assert np.array_equal(ndimage.maximum_filter(before, kernel, mode="constant"), after[1])
        total = ndimage.convolve(before.astype(int), np.ones((kernel, kernel), int), mode="constant")
        count = ndimage.convolve(np.ones(before.shape, int), np.ones((kernel, kernel), int), mode="constant")
        assert np.array_equal(np.rint(total / count), after[2])


def test_windows_larger_than_the_image() -> None:
    images = pictures(height=4, width=3)
    assert (run("median:k=21", images).amax((2, 3)) <= images.amax((2, 3))).all()
    assert (run("max-pool:k=9", images) == images.amax((2, 3), keepdim=True)).all()


@pytest.mark.parametrize("depth", range(1, 9))
def test_bit_depth_by_its_formula(depth: int) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    steps = 2**depth - 1
    known = np.rint(np.rint(levels.numpy() / 255 * steps) / steps * 255)
    out = run(f"bit-depth:d={depth}", levels)
    assert np.array_equal(out.numpy(), known)
    assert len(out.unique()) == 2**depth


def test_the_dct_is_scipys() -> None:
    block = np.random.default_rng(1).normal(size=(8, 8))
    basis = distillation.dct_basis().numpy()
    assert np.allclose(basis @ block @ basis.T, fft.dctn(block, norm="ortho"), atol=1e-6)


def test_the_steps_of_feature_distillation() -> None:
    table = distillation.steps(50)
    assert (table[:4, :4] == 25).all()
    assert (table == 25).sum() == 16
    assert (table == 30).sum() == 48
    assert distillation.steps(25)[0, 0] == 50
    assert distillation.steps(75)[7, 7] == 15
    assert (distillation.steps(100) == 1).all()


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_feature_distillation_is_what_scipy_makes_of_each_block(quality: int) -> None:
    images = pictures(height=21, width=29)
    table = distillation.steps(quality).numpy()
    out = run(f"dnn-jpeg:q={quality}", images)
    for before, after in zip(images.flatten(0, 1).numpy(), out.flatten(0, 1).numpy(), strict=True):
        padded = np.pad(before.astype(float), ((0, 3), (0, 3)), mode="edge")
        for top in range(0, 24, 8):
            for left in range(0, 32, 8):
                place = np.s_[top : top + 8, left : left + 8]
                kept = np.floor(fft.dctn(padded[place], norm="ortho") / table + 0.5 + 1e-9) * table
                padded[place] = fft.idctn(kept, norm="ortho")
        known = np.clip(np.floor(padded + 0.5 + 1e-9), 0, 255)[:21, :29]
        assert np.array_equal(known, after)


def test_what_changes_nothing_or_little() -> None:
    images = pictures()
    for text in ("resize:gamma=1", "avg-pool:k=1", "max-pool:k=1", "median:k=1", "bit-depth:d=8"):
        assert torch.equal(run(text, images), images), text
    for text in ("dnn-jpeg:q=100", "jpeg:q=100,subsampling=4:4:4"):
        assert (run(text, images).int() - images.int()).abs().max() <= 4, text
    flat = torch.full((1, 3, 16, 24), 200, dtype=torch.uint8)
    for text in ("resize", "avg-pool", "max-pool", "median", "tvm", "jpeg"):
        assert torch.equal(run(text, flat), flat), text


@pytest.mark.parametrize("weight", [0.01, 0.03, 0.1])
def test_tvm_reaches_the_optimum_within_half_a_percent(weight: float) -> None:
    settings = parse_defense(f"tvm:weight={weight}").settings
    images = pictures(height=24, width=32)
    kept = tvm.kept_values(images, 0.5, 0)
    exact = images.double() / 255
    best = tvm.objective(tvm.solve(exact, kept, weight, 6000), exact, kept, weight)
    steps = settings.iterations if weight <= 0.03 else 600
    found = tvm.objective(tvm.solve(exact.float(), kept, weight, steps).double(), exact, kept, weight)
    assert (best <= found).all()
    assert (found / best - 1).max() < 0.005


def test_the_optimum_of_tvm_is_scikit_images_where_no_pixel_is_dropped() -> None:
    denoise = pytest.importorskip("skimage.restoration").denoise_tv_chambolle
    images = pictures(1, 24, 24)
    kept = tvm.kept_values(images, 0.0, 0)
    assert kept.all()
    exact = images.double() / 255
    mine = tvm.solve(exact, kept, 0.1, 6000)
    known = torch.from_numpy(denoise(exact[0].numpy(), weight=0.1, eps=1e-12, max_num_iter=6000, channel_axis=0))[None]
    low, high = (float(tvm.objective(each, exact, kept, 0.1)) for each in (mine, known))
    assert low == pytest.approx(high, rel=1e-3)
    assert low <= high * (1 + 1e-6)


def test_tvm_fills_in_a_plane_of_one_colour_exactly() -> None:
    images = torch.full((1, 3, 12, 12), 90, dtype=torch.uint8)
    kept = tvm.kept_values(images, 0.5, 3)
    holes = torch.where(kept, images.float() / 255, torch.tensor(0.0))
    assert torch.allclose(tvm.solve(holes, kept, 0.03, 100), images / 255, atol=1e-5)


def test_which_values_tvm_drops() -> None:
    images = pictures(2, 64, 64)
    kept = tvm.kept_values(images, 0.5, 0)
    deviation = 0.5 / 64
    assert kept.float().mean((2, 3)).sub(0.5).abs().max() < 4 * deviation
    # Each channel on its own: two agree on half of the pixels, and one of eight is kept in all.
    assert (kept[:, 0] == kept[:, 1]).float().mean((1, 2)).sub(0.5).abs().max() < 4 * deviation
    assert kept.all(1).float().mean((1, 2)).sub(1 / 8).abs().max() < 4 * deviation
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept, tvm.kept_values(images, 0.5, 1))
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    again = tvm.kept_values(changed, 0.5, 0)
    assert torch.equal(again[1], kept[1])
    assert not torch.equal(again[0], kept[0])


@pytest.mark.parametrize("text", SPECS)
def test_the_layer_gives_exactly_what_the_transform_gives(text: str) -> None:
    images = pictures()
    layer = DefenseLayer([parse_defense(text)])
    unit = (images / 255).requires_grad_()
    assert torch.equal(layer(unit).detach(), run(text, images) / 255)
    with torch.no_grad():
        assert torch.equal(layer(unit), run(text, images) / 255)


def test_transforms_in_a_row_are_applied_in_their_order() -> None:
    images = pictures()
    two = [parse_defense("bit-depth:d=2"), parse_defense("avg-pool")]
    assert torch.equal(apply(images, two), run("avg-pool", run("bit-depth:d=2", images)))
    assert torch.equal(DefenseLayer(two)(images / 255), apply(images, two) / 255)
    assert not torch.equal(apply(images, two), apply(images, two[::-1]))


@pytest.mark.parametrize("text", ["jpeg:q=40", "dnn-jpeg", "median", "tvm", "bit-depth:d=3"])
def test_straight_through_gradients(text: str) -> None:
    unit = (pictures() / 255).requires_grad_()
    weights = torch.rand_like(unit)
    (gradient,) = torch.autograd.grad((DefenseLayer([parse_defense(text)])(unit) * weights).sum(), unit)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize("text", ["resize:g=1.7", "avg-pool:k=5"])
def test_gradients_of_linear_transforms_are_their_adjoints(text: str) -> None:
    defense = parse_defense(text)
    surrogate = defense.info.load_surrogate()
    assert surrogate is not None
    random = torch.Generator().manual_seed(0)
    one, two = (torch.rand(1, 3, 12, 15, generator=random, dtype=torch.float64) for _ in range(2))
    unit = two.float().requires_grad_()
    (gradient,) = torch.autograd.grad((DefenseLayer([defense])(unit) * one).sum(), unit)
    # <one, T two> = <T* one, two>
    assert float((one * surrogate(two, defense.settings)).sum()) == pytest.approx(
        float((gradient * two).sum()), rel=1e-4
    )


def test_the_gradient_of_the_maximum_goes_to_the_maximum() -> None:
    unit = torch.zeros(1, 3, 5, 5)
    unit[0, :, 2, 3] = 1
    unit.requires_grad_()
    out = DefenseLayer([parse_defense("max-pool:k=3")])(unit)
    (gradient,) = torch.autograd.grad(out[0, :, 1, 2].sum(), unit)
    assert torch.equal(gradient, unit.detach())


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("jpeg:q=95:75:-10", ["jpeg:quality=95", "jpeg:quality=85", "jpeg:quality=75"]),
        ("avg-pool:k=3/5/7", ["avg-pool:kernel=3", "avg-pool:kernel=5", "avg-pool:kernel=7"]),
        ("resize:g=1:1.3:0.1", [f"resize:gamma={gamma}" for gamma in ("1", "1.1", "1.2", "1.3")]),
        ("tvm:drop=0.3/0.5,weight=0.1", ["tvm:weight=0.1,drop=0.3", "tvm:weight=0.1"]),
        ("jpeg:sub=4:4:4", ["jpeg:quality=75,subsampling=4:4:4"]),
    ],
)
def test_lists_of_strengths(text: str, known: list[str]) -> None:
    found = parse_defenses(text)
    assert [defense.text for defense in found] == known
    assert [parse_defense(each) for each in known] == found  # what is shown can be typed


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 30))
@hypothesis_settings(deadline=None)
def test_ranges_hold_both_ends(first: int, last: int, step: int) -> None:
    step = step if last >= first else -step
    found = [int(each.strength) for each in parse_defenses(f"jpeg:q={first}:{last}:{step}")]
    assert found == list(range(first, last + (1 if step > 0 else -1), step))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gif", "'gif' is no transform; there are resize, jpeg"),
        ("jpeg:q=0", "0 is not between 1 and 100"),
        ("jpeg:q=5.5", "5.5 is no whole number"),
        ("jpeg:q", "'q' is not SETTING=VALUE"),
        ("jpeg:z=3", "'z' is no setting; there are quality, subsampling"),
        ("jpeg:q=5,quality=6", "quality is given twice"),
        ("jpeg:q=95:5:10", "is not FIRST:LAST:STEP with a step that leads there"),
        ("jpeg:q=1:100:0.0001", "at most 200"),
        ("jpeg:q=nan", "is not finite"),
        ("jpeg:q=a", "'a' is not 75, 3/5/7 or 95:5:-10"),
        ("avg-pool:k=4", "4 is even"),
        ("tvm:drop=0.1/0.2,weight=0.1/0.2", "drop and weight are both lists"),
        ("resize:interpolation=cubist", "'cubist' is not one of bilinear, bicubic"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(PixelsemError, match="--defense") as caught:
        parse_defenses(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_is_refused_where_one_strength_is_needed() -> None:
    with pytest.raises(PixelsemError, match="stands for 2 strengths"):
        parse_defense("avg-pool:k=3/5")
