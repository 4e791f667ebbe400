"""The division of images among jobs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsem.engine.shards import Shard, shard_of, take
from pixelsem.errors import PixelsemError
from pixelsem.records import FILE_FIELDS, PATH_FIELDS, RECORD_TYPES, SegmentRecord

names = st.lists(st.text(min_size=1, max_size=30), unique=True, max_size=40)


def item(name: str) -> SegmentRecord:
    return SegmentRecord(name, name, name, "binary", 0.5, [])


@given(names, st.integers(1, 12), st.randoms())
def test_every_image_is_in_one_part_whatever_the_order_and_the_others(
    ids: list[str], count: int, random: object
) -> None:
    items = [item(name) for name in ids]
    parts = [take(items, Shard(index, count)) for index in range(1, count + 1)]
    assert Counter(each.id for part in parts for each in part) == Counter(ids)
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for index, part in enumerate(parts, 1):
        assert {each.id for each in take(shuffled, Shard(index, count))} == {each.id for each in part}
        # What else there is does not move an image, and the order stays that of the list.
        assert [each.id for each in take(items[: len(items) // 2], Shard(index, count))] == [
            each.id for each in part if each in items[: len(items) // 2]
        ]


def test_parts_are_about_equal() -> None:
    sizes = Counter(shard_of(f"cat/{number}.png", 16) for number in range(16_000))
    assert set(sizes) == set(range(1, 17))
    assert all(850 < size < 1150 for size in sizes.values())  # 1,000 ± 5 standard deviations


def test_the_division_stays_the_same_over_versions() -> None:
    """Jobs of one run may be started weeks and versions apart."""
    assert [shard_of(name, 16) for name in ("cat/1.png", "a.jpg", "Ä/ö.png", "x")] == [3, 11, 2, 5]


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1/0", "1", "1/", "/4", "a/b", "-1/4", "1/4/2", "1.0/4", "1/100001", "²/4", ""]
)
def test_what_is_no_part_is_one_line(text: str) -> None:
    with pytest.raises(PixelsemError, match=r"^--shard: "):
        Shard.parse(text)


def test_parts_are_written_as_they_are_read() -> None:
    shard = Shard.parse("3/16")
    assert shard == Shard(3, 16)
    assert (str(shard), shard and shard.suffix) == ("3/16", "-shard3of16")
    assert Shard.parse(None) is None


def test_every_kind_of_stage_says_which_paths_are_files_of_its_own() -> None:
    """Merging copies these, verifying reads them."""
    assert FILE_FIELDS.keys() == RECORD_TYPES.keys() == PATH_FIELDS.keys()
    assert all(set(FILE_FIELDS[kind]) <= set(PATH_FIELDS[kind]) for kind in RECORD_TYPES)
