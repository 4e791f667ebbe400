"""Attack records in a quarter of the memory, for tables over very many of them."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

from msgspec.structs import replace

from pixelsem.records import FILE_FIELDS, AttackRecord, Prediction, PredictionAfter

#: What records name of their stage's files; tables of numbers read none.
_FILES = FILE_FIELDS["attack"]

_NO_DIGESTS: dict[str, str] = {}


class Compactor:
    """Makes records compact. Those of one compactor share the names that they have in common.

    They say the same as before, but for the names and digests of their files, which are left out. Two records that
    differ still differ, in their files too.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}

    def __call__(self, record: AttackRecord) -> AttackRecord:
        """Return a record that takes less memory."""
        files = hash((*(getattr(record, name) for name in _FILES), *sorted(record.digests.items())))
        after = record.after
        return replace(
            record,
            outcome=sys.intern(record.outcome),
            region=sys.intern(record.region),
            label=sys.intern(record.label),
            label_source=sys.intern(record.label_source),
            target=None if record.target is None else sys.intern(record.target),
            **{name: "" if name == "clean" else None for name in _FILES},
            digests=_NO_DIGESTS,
            before=cast(Prediction, self._answer(record.before, files)),
            after=None if after is None else cast(PredictionAfter, self._answer(after, 0, after.of_before_top5)),
        )

    def _answer(self, answer: Prediction, files: int, old: Sequence[tuple[str, float, int]] = ()) -> _Answer:
        packed = _layout(len(answer.top5), len(old)).pack(
            len(answer.top5),
            len(old),
            files,
            answer.confidence,
            *(share for _, share in answer.top5),
            *(share for _, share, _ in old),
            *(self._number(name) for name, _ in answer.top5),
            *(self._number(name) for name, _, _ in old),
            *(rank for *_, rank in old),
        )
        return _Answer(sys.intern(answer.class_), packed, self._names)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]


@cache
def _layout(top: int, old: int) -> struct.Struct:
    return struct.Struct(f"<BBqd{top}d{old}d{top}I{old}I{old}I")


class _Answer:
    """Reads as a :class:`PredictionAfter`, or a :class:`Prediction`; its numbers lie in a row."""

    __slots__ = ("_names", "_packed", "class_")

    def __init__(self, class_: str, packed: bytes, names: list[str]) -> None:
        self.class_, self._packed, self._names = class_, packed, names

    def __eq__(self, other: object) -> bool:
        """Do they say the same? Only those of one compactor do."""
        if not isinstance(other, _Answer):
            return NotImplemented
        return self._names is other._names and (self.class_, self._packed) == (other.class_, other._packed)

    def __hash__(self) -> int:
        return hash((self.class_, self._packed))

    @property
    def confidence(self) -> float:
        share: float = self._unpacked()[3]
        return share

    @property
    def top5(self) -> list[tuple[str, float]]:
        values = self._unpacked()
        top, old = values[:2]
        shares, numbers = values[4 : 4 + top], values[4 + top + old : 4 + 2 * top + old]
        return [(self._names[number], share) for number, share in zip(numbers, shares, strict=True)]

    @property
    def of_before_top5(self) -> list[tuple[str, float, int]]:
        values = self._unpacked()
        top, old = values[:2]
        at = 4 + 2 * top + old
        shares, numbers, ranks = values[4 + top : 4 + top + old], values[at : at + old], values[at + old :]
        return [(self._names[n], share, rank) for n, share, rank in zip(numbers, shares, ranks, strict=True)]

    def _unpacked(self) -> tuple[Any, ...]:
        return _layout(self._packed[0], self._packed[1]).unpack(self._packed)
