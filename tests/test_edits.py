"""Candidates as data: rendering and comparing against a plain loop."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsem.fitness.edits import Edits


@st.composite
def candidates(draw: st.DrawFn) -> tuple[torch.Tensor, Edits]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, height, width, count, pixels = (draw(st.integers(1, top)) for top in (3, 5, 4, 6, 5))
    clean = rng.integers(0, 4, (images, 3, height, width), dtype=np.uint8)
    edits = Edits(
        torch.from_numpy(rng.integers(0, images, count)),
        torch.from_numpy(rng.integers(0, height * width, (count, pixels))),
        torch.from_numpy(rng.integers(0, 4, (count, pixels, 3), dtype=np.uint8)),
    )
    return torch.from_numpy(clean), edits


def render_slowly(images: torch.Tensor, edits: Edits) -> torch.Tensor:
    out = images[edits.image].clone()
    for c in range(len(edits)):
        for k in range(edits.position.shape[1]):
            y, x = divmod(int(edits.position[c, k]), images.shape[3])
            out[c, :, y, x] = edits.colour[c, k]
    return out


@given(candidates())
@settings(max_examples=200, deadline=None)
def test_render_equals_writing_pixel_after_pixel(case: tuple[torch.Tensor, Edits]) -> None:
    images, edits = case
    assert torch.equal(edits.render(images), render_slowly(images, edits))


@given(candidates())
@settings(max_examples=200, deadline=None)
def test_changes_says_which_candidates_differ(case: tuple[torch.Tensor, Edits]) -> None:
    images, edits = case
    differs = (render_slowly(images, edits) != images[edits.image]).flatten(1).any(1)
    assert torch.equal(edits.changes(images), differs)


@given(candidates())
@settings(max_examples=200, deadline=None)
def test_keys_are_equal_where_the_pictures_are(case: tuple[torch.Tensor, Edits]) -> None:
    images, edits = case
    pictures = render_slowly(images, edits)
    keys = edits.keys(images).tolist()
    for first in range(len(edits)):
        for second in range(first):
            if edits.image[first] == edits.image[second]:
                assert (keys[first] == keys[second]) == torch.equal(pictures[first], pictures[second])


@given(candidates())
@settings(max_examples=50, deadline=None)
def test_rendering_leaves_the_clean_images_alone(case: tuple[torch.Tensor, Edits]) -> None:
    images, edits = case
    before = images.clone()
    edits.render(images)
    assert torch.equal(images, before)


def test_a_slice_is_a_part_of_the_candidates() -> None:
    edits = Edits(torch.arange(4), torch.arange(4)[:, None], torch.zeros(4, 1, 3, dtype=torch.uint8))
    assert edits[1:3].image.tolist() == [1, 2]
    assert edits[torch.tensor([3, 0])].position.flatten().tolist() == [3, 0]
