from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from pixelsem.defenses.spam import SPAM_SIZE, T, spam
from pixelsem.images import read_image

STRAIGHT = [(0, 1), (0, -1), (1, 0), (-1, 0)]
DIAGONAL = [(1, 1), (-1, -1), (1, -1), (-1, 1)]
PICTURES = sorted(path for path in (ROOT / "sample_images" / "images").rglob("*") if path.is_file())


def counted(plane: np.ndarray, direction: tuple[int, int]) -> np.ndarray:
    """Return the frequencies of differences along one direction, counted pixel by pixel: [third, second, first]."""
    found = np.zeros((2 * T + 1,) * 3)
    height, width = plane.shape
    for y, x in product(range(height), range(width)):
        places = [(y + k * direction[0], x + k * direction[1]) for k in range(4)]
        if all(0 <= a < height and 0 <= b < width for a, b in places):
            values = [int(plane[place]) for place in places]
            steps = [min(T, max(-T, values[k] - values[k + 1])) + T for k in range(3)]
            found[steps[0], steps[1], steps[2]] += 1
    return found / found.sum()


def planes(seed: int, count: int, height: int, width: int) -> np.ndarray:
    """Return planes of little and of much noise: differences within T and beyond it."""
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.integers(-4, 5, (count, height, width)), 2) + 128
    return np.clip(np.where(rng.random((count, height, width)) < 0.1, 255, smooth), 0, 255).astype(np.uint8)


def features_of_sealwatch(plane: np.ndarray) -> np.ndarray:
    parts = pytest.importorskip("sealwatch.spam").extract(plane)
    return np.concatenate([parts["straight"], parts["diagonal"]])


def test_the_features_are_counted_triples() -> None:
    (plane,) = planes(0, 1, 7, 6)
    expected = [sum(counted(plane, step) for step in steps) / 4 for steps in (STRAIGHT, DIAGONAL)]
    found = spam(torch.from_numpy(plane)[None])
    assert found.shape == (1, SPAM_SIZE) == (1, 686)
    np.testing.assert_allclose(found[0], np.concatenate([part.ravel() for part in expected]), atol=1e-15)


def test_a_ramp_has_one_triple_per_direction() -> None:
    ramp = torch.arange(0, 20, 2, dtype=torch.uint8).repeat(9, 1)[None]  # 2 more per column
    straight = spam(ramp)[0, :343].reshape(7, 7, 7)
    assert straight[T - 2, T - 2, T - 2] == straight[T + 2, T + 2, T + 2] == 0.25
    assert straight[T, T, T] == 0.5


@pytest.mark.parametrize(("height", "width"), [(4, 4), (40, 31), (64, 64)])
def test_the_features_are_exactly_those_of_sealwatch(height: int, width: int) -> None:
    given = planes(1, 3, height, width)
    expected = np.stack([features_of_sealwatch(plane) for plane in given])
    assert np.array_equal(spam(torch.from_numpy(given)).numpy(), expected)


@pytest.mark.slow
def test_fifty_real_images_have_exactly_the_features_of_sealwatch(data_dir: Path) -> None:
    """Five images of each class of CIFAR-10, every channel of them."""
    folders = sorted(path for path in (data_dir / "test").iterdir() if path.is_dir())
    chosen = [path for folder in folders for path in sorted(folder.iterdir())[:5]]
    assert len(chosen) == 50
    given = np.concatenate([np.moveaxis(read_image(path), 2, 0) for path in chosen])
    expected = np.stack([features_of_sealwatch(np.ascontiguousarray(plane)) for plane in given])
    assert np.array_equal(spam(torch.from_numpy(given)).numpy(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_sample_images_have_exactly_the_features_of_sealwatch(path: Path) -> None:
    given = np.ascontiguousarray(np.moveaxis(read_image(path), 2, 0))
    expected = np.stack([features_of_sealwatch(plane) for plane in given])
    assert np.array_equal(spam(torch.from_numpy(given)).numpy(), expected)


def test_mirrored_and_turned_planes_have_the_same_features() -> None:
    given = torch.from_numpy(planes(2, 1, 12, 12))
    for other in (given.flip(1), given.flip(2), given.transpose(1, 2)):
        torch.testing.assert_close(spam(other), spam(given), rtol=0, atol=1e-15)


def test_a_plane_does_not_depend_on_its_batch() -> None:
    given = torch.from_numpy(planes(3, 5, 9, 11))
    assert torch.equal(spam(given), torch.cat([spam(plane[None]) for plane in given]))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 8, 8), torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, dtype=torch.uint8)]
)
def test_what_is_no_plane_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        spam(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_does_not_matter() -> None:
    given = torch.from_numpy(planes(4, 4, 50, 40))
    assert torch.equal(spam(given.cuda()).cpu(), spam(given))
