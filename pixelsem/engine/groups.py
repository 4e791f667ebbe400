"""Images in groups, as they are handed to workers; what becomes of a group whose worker died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from pixelsem.sources import ImageItem

#: How often a group may lose its worker.
TRIES = 3

#: What tells the searches of a run apart, as :attr:`pixelsem.records.AttackRecord.key`; begins with the image's id.
Key = tuple[str, ...]


@dataclass(frozen=True)
class Lost:
    """An image whose workers died on it, one after the other; the ``problem`` in one line."""

    id: str
    problem: str


@dataclass
class Group:
    """Some images that go to one worker together, the keys of what is done of them, and how often it died.

    ``searches`` is the number of keys that each image comes to.
    """

    items: list[ImageItem]
    searches: int
    done: set[Key] = field(default_factory=set)
    deaths: int = 0

    def after_death(self, last: str) -> tuple[list[Group], list[Lost]]:
        """Return what is tried next where the group's worker died, and what is given up.

        All that is left goes to another worker, the last time image by image, so that one image that no worker
        survives takes no other with it. ``last`` says in a few words which worker died, and how.
        """
        self.deaths += 1
        self.items = undone(self.items, self.done, self.searches)
        if self.deaths >= TRIES:
            problem = f"{self.deaths} workers died on it, the last one {last}"
            return [], [Lost(item.id, f"{item.path}: {problem}") for item in self.items]
        if self.deaths < TRIES - 1:
            return [self] if self.items else [], []
        return [
            Group([item], self.searches, {key for key in self.done if key[0] == item.id}, self.deaths)
            for item in self.items
        ], []


def group_items(
    items: Sequence[ImageItem], done: AbstractSet[Key], searches: int, most: int, workers: int
) -> Iterator[Group]:
    """Yield the items in groups of ``most``, smaller ones towards the end so that no worker is left alone with many.

    ``done`` holds the keys of what is not to be done again, ``searches`` is the number of keys that an image comes to.
    """
    of_image: dict[str, set[Key]] = {}
    for key in done:
        of_image.setdefault(key[0], set()).add(key)
    at = 0
    while at < len(items):
        size = max(1, min(most, (len(items) - at) // (2 * workers)))
        chosen = list(items[at : at + size])
        yield Group(chosen, searches, set().union(*(of_image.get(item.id, set()) for item in chosen)))
        at += size


def undone(items: Sequence[ImageItem], done: AbstractSet[Key], searches: int) -> list[ImageItem]:
    """Return the items of which fewer than ``searches`` keys are in ``done``."""
    counts = Counter(key[0] for key in done)
    return [item for item in items if counts[item.id] < searches]
