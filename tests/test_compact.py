"""Compact records say what full ones say, in less memory."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from attack_stages import info, record
from hypothesis import given
from hypothesis import strategies as st

from pixelsem.metrics import bootstrap
from pixelsem.metrics.compact import Compactor
from pixelsem.metrics.setups import AttackStage, combine
from pixelsem.records import AttackRecord
from pixelsem.report.success import success_tables
from pixelsem.report.tables import to_plain

NAMES = st.text(min_size=1, max_size=8)
SHARES = st.floats(0, 1)


@st.composite
def answers(draw: st.DrawFn, *, after: bool) -> dict[str, Any]:
    top = draw(st.lists(st.tuples(NAMES, SHARES), max_size=5))
    plain = {"class": draw(NAMES), "confidence": draw(SHARES), "top5": top}
    old = draw(st.lists(st.tuples(NAMES, SHARES, st.integers(1, 10**6)), max_size=5))
    return plain | {"of_before_top5": old} if after else plain


@given(answers(after=False), answers(after=True) | st.none(), st.sampled_from(["foreground", "label:3"]))
def test_what_they_say_is_the_same(before: dict[str, Any], after: dict[str, Any] | None, region: str) -> None:
    pixels = [{"x": x, "y": 2, "from": [0, 255, 1], "to": [x, 7, 0]} for x in range(3)]
    full = record(
        region=region, before=before, after=after, target="dog", digests={"clean": "ab"}, pixels=pixels, seed=2**70,
        vulnerable_pixels=9, reachable={"dog": 3},
    )  # fmt: skip
    compact = Compactor()(full)
    for name in full.__struct_fields__:
        if name not in ("clean", "mask", "adversarial", "digests", "before", "after"):
            assert getattr(compact, name) == getattr(full, name)
    assert compact.key == full.key
    assert (compact.before.class_, compact.before.confidence) == (full.before.class_, full.before.confidence)
    assert compact.before.top5 == full.before.top5
    assert (compact.after is None) == (full.after is None)
    if full.after is not None and compact.after is not None:
        assert (compact.after.class_, compact.after.confidence) == (full.after.class_, full.after.confidence)
        assert compact.after.top5 == full.after.top5
        assert compact.after.of_before_top5 == full.after.of_before_top5


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"generations": 2},
        {"digests": {"clean": "cd"}},
        {"clean": "clean/cat/1-2.png"},
        {"confidence": 0.61},
        {"before": {"class": "cat", "confidence": 0.8, "top5": [["cat", 0.8]]}},
    ],
)
def test_they_differ_where_full_ones_do(change: dict[str, Any]) -> None:
    compactor = Compactor()
    one, other = record(digests={"clean": "ab"}), record(**{"digests": {"clean": "ab"}, **change})
    assert (compactor(one) == compactor(other)) == (one == other) == (change == {})


def test_tables_are_the_same() -> None:
    records = [
        record(f"{n}.png", region, to="dog" if n % k else None, generations=n, queries=10 * n, repeat=repeat)
        for n in range(1, 9)
        for region, k in (("original", 3), ("foreground", 4), ("background", 2))
        for repeat in (0, 1)
    ]
    found = []
    for kept in (records, list(map(Compactor(), records))):
        setups, notes = combine([AttackStage("a", info("all"), kept), AttackStage("b", info("all", seed=1), kept)])
        found.append(json.dumps([notes, *map(to_plain, success_tables(setups))]))
    assert found[0] == found[1]
    assert len(found[0]) > 10_000


def test_they_take_an_eighth_of_the_memory_at_most() -> None:
    """As they come from a manifest, five classes each and a few paths."""
    top = [[f"class {n}", 1 / (n + 2)] for n in range(5)]
    after = {"class": "cat", "confidence": 0.5, "top5": top, "of_before_top5": [[*pair, 1] for pair in top]}
    full = record(
        before={"class": "cat", "confidence": 0.5, "top5": top}, after=after, history="history/1.npz",
        digests={"clean": "ab" * 16, "attempt": "cd" * 16}, attempt="attempts/original/1.png",
        pixels=[{"x": 1, "y": 2, "from": [0, 0, 0], "to": [255, 0, 7]}],
    )  # fmt: skip
    lines = [msgspec.json.encode(msgspec.structs.replace(full, id=f"{n:05}.png", queries=1000 + n)) for n in range(500)]

    def taken(change: Any) -> int:
        decoder = msgspec.json.Decoder(AttackRecord)
        tracemalloc.start()
        try:
            kept = [change(decoder.decode(line)) for line in lines]
            return tracemalloc.get_traced_memory()[0] // len(kept)
        finally:
            tracemalloc.stop()

    assert taken(Compactor()) < taken(lambda each: each) / 8


def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for numbers in (100, 200_000, 10**7):
        monkeypatch.setattr(bootstrap, "_NUMBERS_AT_A_TIME", numbers)
        drawn = list(bootstrap.draws(300))
        assert max(each.size for each in drawn) <= max(numbers, 300)
        found.append([row.tolist() for each in drawn for row in each])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == bootstrap.RESAMPLES
