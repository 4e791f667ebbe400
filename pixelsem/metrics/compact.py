"""Attack records in a ninth of the memory, for tables over very many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from msgspec import Struct, msgpack

from pixelsem.records import FILE_FIELDS, AttackRecord, PixelChange, Prediction, PredictionAfter

#: What records name of their stage's files; tables of numbers read none.
_FILES = FILE_FIELDS["attack"]

#: What every table asks to choose its records; kept as it is, each value once but for ids.
_AT_HAND = ("id", "outcome", "region", "label", "target", "repeat", "seed", "success")


class Compactor:
    """Makes records compact. Those of one compactor share the names that they have in common.

    They say the same as before, but for the names and digests of their files, which are left out. Two records that
    differ still differ, in their files too; ``clean_hash`` is kept.
    """

    def __init__(self) -> None:
        self._names = _Names()
        self._values: dict[Any, Any] = {}

    def __call__(self, record: AttackRecord) -> AttackRecord:
        """Return a record that takes less memory; it is unpacked anew for whatever is asked of it."""
        at_hand = [getattr(record, name) for name in _AT_HAND]
        shared = [self._values.setdefault((type(value), value), value) for value in at_hand[1:]]
        number, after = self._names.number, record.after
        rest = _Rest(
            files=hash((*(getattr(record, name) for name in _FILES), *sorted(record.digests.items()))),
            label_source=number(record.label_source),
            height=record.height,
            width=record.width,
            region_pixels=record.region_pixels,
            queries=record.queries,
            candidates=record.candidates,
            generations=record.generations,
            before=self._names.packed(record.before),
            after=None if after is None else self._names.packed(after, after.of_before_top5),
            old=[] if after is None else [(number(name), share, rank) for name, share, rank in after.of_before_top5],
            pixels=[(change.x, change.y, *change.from_, *change.to) for change in record.pixels],
            vulnerable_pixels=record.vulnerable_pixels,
            reachable=record.reachable,
            clean_hash=record.clean_hash,
        )
        return cast(AttackRecord, _Compact([at_hand[0], *shared], msgpack.encode(rest), self._names))


class _Answer(Struct, array_like=True, frozen=True):
    """A :class:`Prediction` with numbers for names; of the five, those among the old five are their places there."""

    class_: int
    confidence: float
    top5: list[tuple[int, float] | int]


class _Rest(Struct, array_like=True, frozen=True):
    """What is not at hand; ``files`` is a digest of what names files, ``old`` the old five of the answer after."""

    files: int
    label_source: int
    height: int
    width: int
    region_pixels: int
    queries: int
    candidates: int
    generations: int
    before: _Answer
    after: _Answer | None
    old: list[tuple[int, float, int]]
    pixels: list[tuple[int, int, int, int, int, int, int, int]]
    vulnerable_pixels: int | None
    reachable: dict[str, int] | None
    clean_hash: int | None


_decode = msgpack.Decoder(_Rest).decode


class _Names:
    """Numbers for names."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]

    def __getitem__(self, number: int) -> str:
        return self._names[number]

    def packed(self, answer: Prediction, old: Sequence[tuple[str, float, int]] = ()) -> _Answer:
        places = {(name, share): place for place, (name, share, _) in enumerate(old)}
        top5 = [places.get(one, (self.number(one[0]), one[1])) for one in answer.top5]
        return _Answer(self.number(answer.class_), answer.confidence, top5)

    def unpacked(
        self, answer: _Answer, old: Sequence[tuple[str, float, int]] = ()
    ) -> tuple[str, float, list[tuple[str, float]]]:
        """Return what a :class:`Prediction` is made of."""
        top5 = [old[one][:2] if isinstance(one, int) else (self[one[0]], one[1]) for one in answer.top5]
        return self[answer.class_], answer.confidence, top5


class _Compact:
    """Reads as an :class:`AttackRecord` that names no files."""

    __slots__ = (*_AT_HAND, "_names", "_packed")

    def __init__(self, at_hand: list[Any], packed: bytes, names: _Names) -> None:
        for name, value in zip(_AT_HAND, at_hand, strict=True):
            setattr(self, name, value)
        self._packed, self._names = packed, names

    key: Any = AttackRecord.key  # the same property

    def __eq__(self, other: object) -> bool:
        """Do they say the same? Only those of one compactor do."""
        if not isinstance(other, _Compact):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.key, self._packed))

    def __getattr__(self, name: str) -> Any:
        """Return what is not at hand."""
        if name in _FILES:
            return "" if name == "clean" else None
        if name != "clean_hash" and name not in AttackRecord.__struct_fields__:
            raise AttributeError(name)
        return {} if name == "digests" else self._unpacked(_decode(self._packed), name)

    def _unpacked(self, rest: _Rest, name: str) -> Any:
        names = self._names
        if name == "before":
            return Prediction(*names.unpacked(rest.before))
        if name == "after":
            old = [(names[number], share, rank) for number, share, rank in rest.old]
            return None if rest.after is None else PredictionAfter(*names.unpacked(rest.after, old), old)
        if name == "pixels":
            return [PixelChange(x, y, (a, b, c), (d, e, f)) for x, y, a, b, c, d, e, f in rest.pixels]
        return names[rest.label_source] if name == "label_source" else getattr(rest, name)
