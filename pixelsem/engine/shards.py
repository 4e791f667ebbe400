"""Which images one of several jobs takes: a division by image identity. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pixelsem.errors import PixelsemError

#: More parts than this are refused: each leaves a folder and a process behind.
MAX_SHARDS = 100_000


class HasId(Protocol):
    """What is divided by its ``id``, the relative path of a source image."""

    @property
    def id(self) -> str:
        """The relative path of the source image, with ``/``."""


T = TypeVar("T", bound=HasId)


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 1) of ``count``.

    An image's part depends on its id alone: not on the order of a listing, nor on which other images there are.
    Every image is in exactly one of the ``count`` parts; these are equal up to chance.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str | None, option: str = "--shard") -> Shard | None:
        """Read ``I/N``; None (no division) stays None. Raises :class:`PixelsemError`, which names ``option``."""
        if text is None:
            return None
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None:
            raise PixelsemError(f"{option}: {text!r} is not I/N, part I of N, like 3/16")
        index, count = int(found[1]), int(found[2])
        if not 1 <= count <= MAX_SHARDS:
            raise PixelsemError(f"{option}: {text}: N is not between 1 and {MAX_SHARDS:,}")
        if not 1 <= index <= count:
            raise PixelsemError(f"{option}: {text}: parts are counted from 1 to {count}")
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """What the default folder of this part ends in: ``-shard3of16``."""
        return f"-shard{self.index}of{self.count}"

    def holds(self, image_id: str) -> bool:
        """Is the image with this id in the part?"""
        return shard_of(image_id, self.count) == self.index


def shard_of(image_id: str, count: int) -> int:
    """Return the part, 1 … ``count``, that an image belongs to: its id's sha256 modulo ``count``, plus 1."""
    # surrogateescape: a name on the disk need not be text, and must not end the run here.
    named = hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(named[:8], "big") % count + 1


def take(items: Iterable[T], shard: Shard | None) -> list[T]:
    """Return the items of one part in their order; all of them where there is no division."""
    return [item for item in items if shard is None or shard.holds(item.id)]
