"""Batches of windows: sorted by class, each class of one of few sizes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelsem.fitness.windows import Batch, Placement, Reach


def one_class_per(length: int, size: int) -> Placement:
    """Pixels of a map ``size`` large, in classes of ``length`` coordinates."""
    axis = Reach.of_input(torch.arange(size) // length)
    return Placement(axis, axis)


@given(st.integers(1, 700), st.sampled_from([1, 3]), st.integers(0, 5))
def test_classes_have_few_sizes_filled_with_twins(candidates: int, pixels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    position = torch.randint(0, 64, (candidates, pixels), generator=generator)
    placement = one_class_per(4, 8)
    batch = Batch(torch.zeros(candidates, dtype=torch.int64), position, placement, 1)
    flat = position.flatten()
    classes = flat // 8 // 4 * 2 + flat % 8 // 4
    assert torch.equal(batch.order.unique(), torch.arange(candidates * pixels)), "every pixel has a window"
    for group in batch.layout(placement).groups:
        size, own = group.stop - group.start, batch.order[group.start : group.stop]
        real = len(own.unique())
        assert real <= size <= real * 17 / 16
        assert size % (1 << max(0, size.bit_length() - 5)) == 0, "one of sixteen sizes per power of two"
        assert torch.equal(own[:real], (classes == classes[own[0]]).nonzero()[:, 0])
        assert (own[real:] == own[real - 1]).all()


@given(st.integers(1, 40), st.sampled_from([2, 3, 5]), st.integers(0, 5))
def test_every_window_meets_the_others_of_its_candidate_once(candidates: int, pixels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    position = torch.randint(0, 64, (candidates, pixels), generator=generator)
    batch = Batch(torch.zeros(candidates, dtype=torch.int64), position, one_class_per(4, 8), 1)
    met: dict[int, list[int]] = {window: [] for window in range(len(batch.order))}
    for windows, partners, earlier in batch.partners():
        ours, theirs = batch.order[windows], batch.order[partners]
        assert torch.equal(earlier, theirs < ours)
        for window, other in zip(windows.tolist(), theirs.tolist(), strict=True):
            met[window].append(other)
    for window, others in met.items():
        pixel = int(batch.order[window])
        first = pixel - pixel % pixels
        assert sorted([pixel, *others]) == list(range(first, first + pixels))
