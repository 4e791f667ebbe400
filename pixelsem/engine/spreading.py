"""What engines have in common whose searches are done elsewhere: images go out in groups, events come back.

What a worker runs on a group of images is a :class:`pixelsem.engine.searching.Searcher`; only this process writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from typing import NamedTuple

from pixelsem.engine.groups import Group, Key, group_items, undone
from pixelsem.engine.searching import AttackJob, Event, Searched, Skipped
from pixelsem.sources import ImageItem


class Found(NamedTuple):
    """So many queries more, and what they came to, if anything yet."""

    queries: int
    event: Event | None = None

    @property
    def key(self) -> Key | None:
        """What is done with it, and is not done again where the worker dies later."""
        return self.event.task.key if isinstance(self.event, Searched | Skipped) else None


class SpreadEngine(ABC):
    """Hands out groups of images to workers (see :class:`pixelsem.engine.searching.Engine`).

    A search's random numbers depend on its own image, region, target and repeat alone, so that the outcomes are those
    of one process, whatever the number of workers and the grouping; they come in another order.
    """

    def __init__(self, job: AttackJob, class_names: tuple[str, ...], note: Callable[[str], None]) -> None:
        """``class_names`` are those of the job's model; ``note`` is told, in a line, what does not end the run.

        Raises :class:`PixelsemError` where labels or masks cannot be used.
        """
        self.job, self.plan = job, job.plan(class_names)
        self._class_names, self._note = class_names, note

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classifier's classes, in the order of its logits."""
        return self._class_names

    def events(
        self,
        items: Sequence[ImageItem],
        done: AbstractSet[Key],
        should_stop: Callable[[], bool],
        on_queries: Callable[[int], None],
    ) -> Iterator[Event]:
        """See :class:`pixelsem.engine.searching.Engine`; the workers end with it.

        Raises :class:`PixelsemError` where no worker can do what is asked, :class:`WorkerError` where none is left.
        """
        searches = self.plan.searches_per_image(len(self.class_names))
        left = undone(items, done, searches)
        if not left:
            return

        def groups(workers: int) -> Iterator[Group]:
            return group_items(left, done, searches, max(1, self.plan.in_flight // searches), workers)

        queries = 0
        with closing(self._search(groups, should_stop)) as results:
            for found in results:
                queries += found.queries
                on_queries(queries)
                if found.event is not None:
                    yield found.event

    @abstractmethod
    def _search(
        self, groups: Callable[[int], Iterator[Group]], should_stop: Callable[[], bool]
    ) -> Generator[Found, None, None]:
        """Have the ``groups`` for so many workers searched; yield what is found.

        Ends early, with :class:`OutOfTime`, where that is asked for. Closing the iterator ends the workers.
        """
