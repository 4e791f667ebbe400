"""Images in groups, as they are handed to workers; what becomes of a group whose worker died."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from pixelsem.sources import ImageItem

#: How often a group may lose its worker.
TRIES = 3

Key = tuple[str, ...]


@dataclass
class Group:
    """Some images that go to one worker together, the keys of what is done of them, and how often it died."""

    items: list[ImageItem]
    done: set[Key] = field(default_factory=set)
    deaths: int = 0

    def again(self) -> list[Group]:
        """Return what is tried next where the group's worker died; nothing where that was the last try.

        All that is left goes to another worker, the last time image by image, so that one image that no worker
        survives takes no other with it.
        """
        self.deaths += 1
        if self.deaths >= TRIES:
            return []
        if self.deaths < TRIES - 1:
            return [self]
        return [Group([item], {key for key in self.done if key[0] == item.id}, self.deaths) for item in self.items]


def group_items(items: Sequence[ImageItem], done: AbstractSet[Key], most: int, workers: int) -> Iterator[Group]:
    """Yield the items in groups of ``most``, smaller ones towards the end so that no worker is left alone with many.

    ``done`` holds the keys of what is not to be done again; a key begins with its image's id.
    """
    of_image: dict[str, set[Key]] = {}
    for key in done:
        of_image.setdefault(key[0], set()).add(key)
    at = 0
    while at < len(items):
        size = max(1, min(most, (len(items) - at) // (2 * workers)))
        chosen = list(items[at : at + size])
        yield Group(chosen, set().union(*(of_image.get(item.id, set()) for item in chosen)))
        at += size
