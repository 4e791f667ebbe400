"""Superpixels: what every label map must be, and what merging must do."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import label
from skimage.color import rgb2lab

from pixelsem.errors import InputError, PixelsemError
from pixelsem.images import read_image
from pixelsem.regions import superpixels as module
from pixelsem.regions.registry import METHODS, open_segmenter
from pixelsem.regions.settings import LscSettings, SeedsSettings, SlicSettings, SuperpixelSettings
from pixelsem.regions.superpixels import Superpixels, cielab, merge, superpixels

Image8 = NDArray[np.uint8]
Labels = NDArray[np.int32]

KINDS: list[type[SuperpixelSettings]] = [SlicSettings, LscSettings, SeedsSettings]
BLUE, YELLOW = (30, 60, 200), (230, 200, 40)


def noise(height: int, width: int, seed: int = 0) -> Image8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def photo(height: int = 60, width: int = 80, seed: int = 0) -> Image8:
    """Return blurred noise: smooth patches with soft borders."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3))
    large = np.kron(small, np.ones((6, 6, 1)))[:height, :width]
    return np.clip(large + np.random.default_rng(seed + 1).normal(0, 5, large.shape), 0, 255).astype(np.uint8)


def check_labels(labels: Labels, shape: tuple[int, int]) -> None:
    """Assert that every pixel has a label of 1 to n without a gap, and that each is one 4-connected piece."""
    assert labels.shape == shape
    assert labels.dtype == np.int32
    numbers = np.unique(labels)
    assert (numbers == np.arange(1, len(numbers) + 1)).all()
    for number in numbers:
        assert label(labels == number)[1] == 1


def lies_in(fine: Labels, coarse: Labels) -> bool:
    """Is every label of ``fine`` within one of ``coarse``?"""
    pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1]


sides = st.integers(1, 24)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(height=sides, width=sides, size=st.integers(2, 9), seed=st.integers(0, 99), smooth=st.booleans())
def test_labels_are_contiguous_and_connected(
    kind: type[SuperpixelSettings], height: int, width: int, size: int, seed: int, smooth: bool
) -> None:
    image = photo(height, width, seed) if smooth else noise(height, width, seed)
    for threshold in (0.0, 12.0):
        found = superpixels(image, kind(size=size, iterations=2, merge_threshold=threshold))
        check_labels(found, (height, width))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (2, 2), (3, 3), (4, 40), (61, 2)])
def test_tiny_images(kind: type[SuperpixelSettings], shape: tuple[int, int]) -> None:
    for size in (2, 5, 64):
        check_labels(superpixels(noise(*shape), kind(size=size)), shape)


@pytest.mark.parametrize("kind", KINDS)
def test_small_pieces_go_to_a_neighbour(kind: type[SuperpixelSettings]) -> None:
    for image in (noise(40, 40), photo()):
        found = superpixels(image, kind(size=6))
        assert np.bincount(found.ravel())[1:].min() >= 9  # a quarter of 6×6
        assert found.max() > 15


def test_a_constant_image_gives_the_grid() -> None:
    flat = np.full((30, 40, 3), 90, np.uint8)
    y, x = np.mgrid[:30, :40]
    grid = (y // 5 * 8 + x // 5 + 1).astype(np.int32)
    # SLIC's seeds sit at 2, 7, 12 …, each 5 from the next: no pixel is equally near to two of them.
    assert (superpixels(flat, SlicSettings(size=5)) == grid).all()
    y, x = y // 6, x // 6  # SEEDS of blocks of 6: two levels, 2·round(5/2)
    assert (superpixels(flat, SeedsSettings(size=5)) == y * 7 + x + 1)[:, :36].all()


@pytest.mark.parametrize("kind", KINDS)
def test_two_colours_give_two_regions(kind: type[SuperpixelSettings]) -> None:
    image = np.full((30, 36, 3), BLUE, np.uint8)
    image[:, 18:] = YELLOW
    fine = superpixels(image, kind(size=6))
    assert fine.max() > 12
    assert len(np.intersect1d(fine[:, :18], fine[:, 18:])) == 0
    merged = superpixels(image, kind(size=6, merge_threshold=4))
    assert (merged == np.where(np.arange(36) < 18, 1, 2)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_kept_where_compactness_allows(kind: type[SuperpixelSettings]) -> None:
    """A disc's outline crosses no superpixel by more than a few pixels, a grid's squares would by many."""
    y, x = np.mgrid[:60, :60]
    disc = (x - 30) ** 2 + (y - 29) ** 2 < 400
    image = np.where(disc[..., None], BLUE, YELLOW).astype(np.uint8)
    found = superpixels(image, kind(size=6))
    inside = np.bincount(found.ravel(), weights=disc.ravel().astype(float))
    wrong = np.minimum(inside, np.bincount(found.ravel()) - inside).sum()
    grid = (y // 6 * 10 + x // 6).ravel()
    within = np.bincount(grid, weights=disc.ravel().astype(float))
    assert wrong < 0.35 * np.minimum(within, 36 - within).sum()


def borders(labels: Labels) -> int:
    """Return how many pairs of neighbouring pixels have different labels."""
    return int((labels[1:] != labels[:-1]).sum() + (labels[:, 1:] != labels[:, :-1]).sum())


@pytest.mark.parametrize(("kind", "low", "high"), [(SlicSettings, 1.0, 1000.0), (LscSettings, 0.01, 5.0)])
def test_compact_superpixels_have_short_outlines(kind: Any, low: float, high: float) -> None:
    loose, tight = (borders(superpixels(photo(96, 96), kind(size=8, compactness=value))) for value in (low, high))
    assert tight < 0.9 * loose
    assert tight < 1.3 * 2 * 96 * 11  # that of squares of 8×8


def test_seeds_options_count() -> None:
    image = photo()
    base = superpixels(image, SeedsSettings(size=8))
    for other in ({"levels": 4}, {"bins": 16}, {"smoothness": 0}, {"iterations": 1}):
        assert (superpixels(image, SeedsSettings(**({"size": 8} | other))) != base).any(), other


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_does_not_depend_on_threads(kind: type[SuperpixelSettings]) -> None:
    import cv2

    images = [photo(120, 160, seed) for seed in range(3)]
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = [superpixels(image, kind(iterations=4)) for image in images]
        cv2.setNumThreads(8)  # with more than one, OpenCV's LSC differs from run to run
        again = [superpixels(image, kind(iterations=4)) for image in images]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda image: superpixels(image, kind(iterations=4)), images * 2))
        assert cv2.getNumThreads() == 8
    finally:
        cv2.setNumThreads(before)
    for number, expected in enumerate(alone):
        assert (again[number] == expected).all()
        assert all((found == expected).all() for found in together[number :: len(images)])


def test_arguments_stay_as_they_are() -> None:
    image = photo(20, 20)
    copy = image.copy()
    found = superpixels(image, SlicSettings())
    kept = found.copy()
    merge(found, image, 10)
    assert (image == copy).all()
    assert (found == kept).all()


def test_cielab_is_scikit_images() -> None:
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), axis=-1).reshape(-1, 52, 3).astype(np.uint8)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    for image in (every, greys):
        found = cielab(image)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, rgb2lab(image), atol=2e-3)
    np.testing.assert_allclose(cielab(np.full((1, 1, 3), 255, np.uint8))[0, 0], [100, 0, 0], atol=0.02)


def merged_by_force(labels: Labels, image: Image8, threshold: float) -> Labels:
    """Merge with dictionaries and loops; a group's number is that of its first pixel."""
    lab = rgb2lab(image)
    mean = {n: lab[labels == n].mean(axis=0) for n in np.unique(labels)}
    parent = {n: n for n in mean}

    def find(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < height and u < width:
                    a, b = labels[y, x], labels[v, u]
                    if np.linalg.norm(mean[a] - mean[b]) < threshold:
                        parent[find(a)] = find(b)
    numbers: dict[int, int] = {}
    result = np.zeros_like(labels)
    for place in np.ndindex(labels.shape):
        result[place] = numbers.setdefault(find(labels[place]), len(numbers) + 1)
    return result


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 14), width=st.integers(1, 14), seed=st.integers(0, 999), threshold=st.floats(0, 60))
def test_merging_is_the_brute_force_one(height: int, width: int, seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    image = noise(height, width, seed)
    labels = superpixels(image, SlicSettings(size=int(rng.integers(2, 4)), iterations=1))
    expected = merged_by_force(labels, image, threshold)
    found = merge(labels, image, threshold)
    assert (found == expected).all()
    shuffled = rng.permutation(np.arange(3, 3 + 5 * labels.max(), 5))[labels - 1]  # other names, with gaps
    assert (merge(shuffled, image, threshold) == expected).all()


@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_monotone(kind: type[SuperpixelSettings]) -> None:
    image = photo()
    fine = superpixels(image, kind())
    previous, counts = fine, [int(fine.max())]
    for threshold in (0.0, 2.0, 8.0, 24.0, 40.0, 60.0, 80.0, 200.0):
        found = merge(fine, image, threshold)
        check_labels(found, fine.shape)
        assert (found == superpixels(image, kind(merge_threshold=threshold))).all()
        assert lies_in(previous, found)
        counts.append(int(found.max()))
        previous = found
    assert counts[0] == counts[1]  # β = 0 leaves all
    assert len(set(counts)) > 4
    assert counts[-1] == 1


def test_merging_is_transitive_and_strict() -> None:
    """Greys whose L is 10 apart from one to the next: a chain, whose ends differ by more than β."""
    greys = [int(np.abs(rgb2lab(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2))[:, 0, 0] - lightness)
                 .argmin()) for lightness in (20, 30, 40, 80)]  # fmt: skip
    image = np.zeros((3, 8, 3), np.uint8)
    labels = np.zeros((3, 8), np.int32)
    for number, grey in enumerate(greys):
        image[:, 2 * number : 2 * number + 2], labels[:, 2 * number : 2 * number + 2] = grey, number + 1
    assert merge(labels, image, 12)[0].tolist() == [1, 1, 1, 1, 1, 1, 2, 2]
    assert merge(labels, image, 5)[0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    same = np.full_like(image, 77)
    assert (merge(labels, same, 0) == labels).all()
    assert (merge(labels, same, 1e-6) == 1).all()


def test_similar_superpixels_that_only_meet_at_a_corner_stay_apart() -> None:
    labels = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]], np.int32)
    image = np.where(((labels == 1) | (labels == 4))[..., None], BLUE, YELLOW).astype(np.uint8)
    assert (merge(labels, image, 10) == labels).all()


@pytest.mark.parametrize("method", ["slic", "lsc", "seeds"])
def test_methods_are_opened_by_name(method: str) -> None:
    chosen = METHODS[method].settings(size=6, merge_threshold=3.0)  # type: ignore[call-arg]
    segmenter = open_segmenter(method, chosen, ["a.png", "b.png"])
    assert (segmenter.kind, segmenter.whole, segmenter.batch) == ("labels", True, 1)
    images = [photo(), photo(20, 33, 7)]
    found = segmenter(images, ["a.png", "b.png"])
    for image, mask in zip(images, found, strict=True):
        assert mask.dtype == np.uint16
        assert isinstance(chosen, SuperpixelSettings)
        assert (mask == superpixels(image, chosen)).all()
    assert segmenter.identity == chosen.to_dict()


def test_more_superpixels_than_16_bits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "superpixels", lambda image, _: np.arange(1, 65537, dtype=np.int32).reshape(256, 256))
    with pytest.raises(InputError, match=r"a\.png: 65,536 superpixels, .*65,535 .*larger --size") as caught:
        Superpixels(SlicSettings())([noise(256, 256)], ["a.png"])
    assert "\n" not in str(caught.value)


def test_an_opencv_without_ximgproc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.delattr(cv2.ximgproc, "createSuperpixelLSC")
    with pytest.raises(PixelsemError, match=r"has no ximgproc\.createSuperpixelLSC; .*pip install .*contrib"):
        Superpixels(LscSettings())
    Superpixels(SlicSettings())  # needs another function
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(PixelsemError, match=r"has no ximgproc\.createSuperpixelSLIC"):
        Superpixels(SlicSettings())


def test_an_option_has_one_type_over_all_methods() -> None:
    """The command line makes one option of the fields of the same name."""
    types: dict[str, dict[Any, str]] = {}
    for name, method in METHODS.items():
        hints = get_type_hints(method.settings)
        for field in dataclasses.fields(method.settings):
            arguments = getattr(hints[field.name], "__args__", None)
            plain = frozenset(arguments) - {type(None)} if arguments else frozenset({hints[field.name]})
            types.setdefault(field.name, {})[plain] = name
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}


def test_real_photos(data_dir: Path) -> None:
    path = sorted((data_dir / "imagenet-sample").glob("*.JPEG"))[3]
    image = read_image(path)[:224, :224]
    for kind in KINDS:
        found = superpixels(image, kind(iterations=3))
        assert 900 < found.max() < 2600  # 2,007 squares of 5×5
        assert superpixels(image, kind(iterations=3, merge_threshold=4)).max() < 0.9 * found.max()
