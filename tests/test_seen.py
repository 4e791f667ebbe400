"""Candidates that come again: recognised, and not scored twice."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsem.fitness.edits import mixed
from pixelsem.fitness.seen import Seen, first_of_equal

small = st.integers(0, 5)
rows = st.integers(1, 4).flatmap(
    lambda n: st.integers(1, 12).flatmap(
        lambda p: st.lists(st.lists(small, min_size=p, max_size=p), min_size=n, max_size=n)
    )
)


@given(rows)
@settings(max_examples=200, deadline=None)
def test_first_of_equal(values: list[list[int]]) -> None:
    assert first_of_equal(torch.tensor(values)).tolist() == [[row.index(value) for value in row] for row in values]


def test_mixing_keeps_numbers_apart_and_zero_as_it_is() -> None:
    values = torch.cat([torch.arange(-50_000, 50_000), torch.arange(100_000) << 24])
    spread = mixed(values)
    assert len(spread.unique()) == len(values.unique())
    assert int(mixed(torch.zeros(1, dtype=torch.int64))) == 0
    # As good as uniform: about 63.2 % of 2^16 slots are hit by as many numbers.
    slots = len((mixed(torch.arange(1, 2**16 + 1) << 24) & (2**16 - 1)).unique())
    assert abs(slots / 2**16 - (1 - np.exp(-1))) < 0.01


def test_what_is_recalled_was_noted() -> None:
    rng = np.random.default_rng(0)
    seen, oracle = Seen(3, 64, torch.device("cpu")), [dict[int, tuple[float, bool]]() for _ in range(3)]
    recalled = 0
    for _ in range(40):
        keys = torch.from_numpy(rng.integers(0, 60, (3, 10)))
        known, fitness, hits = seen.recall(keys)
        assert not known[keys == 0].any(), "the clean image has no entry"
        for row, column in known.nonzero().tolist():
            recalled += 1
            expected = oracle[row][int(keys[row, column])]
            assert (float(fitness[row, column]), bool(hits[row, column])) == expected
        values = keys * 0.5 + torch.arange(3)[:, None]  # a function of search and key
        new = (keys != 0) & ~known & (first_of_equal(keys) == torch.arange(10))
        seen.note(keys, values.float(), keys % 3 == 0, new)
        for row in range(3):
            oracle[row] |= {int(k): (float(v), int(k) % 3 == 0) for k, v in zip(keys[row], values[row], strict=True)}
        again = seen.recall(keys)
        assert torch.equal(again[0], keys != 0), "nothing is forgotten while there is room"
        assert torch.equal(again[1][keys != 0], values.float()[keys != 0])
    assert recalled > 600, "most of 1,200 had been there"
    kept = seen.recall(keys)[0][2]
    seen.keep(torch.tensor([False, False, True]))
    assert torch.equal(seen.recall(keys[2:])[0][0], kept)
