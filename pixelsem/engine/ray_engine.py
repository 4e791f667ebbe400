"""Searches on a Ray cluster: workers hold the model, this process writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass

from pixelsem.engine.groups import group_items
from pixelsem.engine.ray_pool import Lost, Pool, Results, Work, check_device, connected, import_ray, shares
from pixelsem.engine.searching import (
    AttackJob,
    Event,
    Failed,
    Key,
    OutOfTime,
    Searched,
    Searcher,
    Skipped,
    light,
    undone,
)
from pixelsem.sources import ImageItem


class RayEngine:
    """Spreads searches over the workers of a Ray cluster (see :class:`pixelsem.engine.searching.Engine`).

    A search's random numbers depend on its own image, region, target and repeat alone, so that the outcomes are those
    of one process, whatever the number of workers and the grouping; they come in another order.
    """

    def __init__(
        self,
        job: AttackJob,
        class_names: tuple[str, ...],
        *,
        address: str | None = None,
        workers: int | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``class_names`` are those of the model; ``address`` is as in :func:`pixelsem.engine.ray_pool.connected`,
        ``workers`` as in :func:`pixelsem.engine.ray_pool.shares`; ``note`` is told, in a line, what goes wrong and
        does not end the run.

        Raises :class:`PixelsemError` where Ray is not installed, for a device that it cannot deal out, and where labels
        or masks cannot be used.
        """
        import_ray()
        check_device(job.evaluator.device)
        self.job, self.plan = job, job.plan(class_names)
        self._class_names, self._note = class_names, note
        self._address, self._workers = address, workers

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

        Raises :class:`PixelsemError` where there is no such cluster or no worker can be set up, :class:`WorkerError`
        where none is left.
        """
        per_image = self.plan.searches_per_image(len(self.class_names))
        left = undone(items, done, per_image)
        if not left:
            return
        queries = 0
        with connected(self._address) as nodes:
            share = shares(self.job.evaluator.device, self._workers, nodes)
            groups = group_items(left, done, max(1, self.plan.in_flight // per_image), share.workers)
            pool = Pool(_Attack(self.job.on(share.device)), share, self._note)
            with closing(pool.run(groups, should_stop)) as results:  # type: ignore[type-var]
                for result in results:
                    if isinstance(result, Lost):
                        yield Failed(result.id, result.problem)
                        continue
                    event, more = result
                    queries += more
                    on_queries(queries)
                    if event is not None:
                        yield event
            if should_stop():
                yield OutOfTime()


@dataclass(frozen=True)
class _Attack:
    """The work of the pool's workers: an attack's searches."""

    job: AttackJob

    def open(self) -> Work:
        """Load the model; raises as :meth:`AttackJob.open`."""
        return _Searches(self.job.open())


class _Searches:
    """The searches of some images: events, each with the queries since the one before."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def __call__(self, items: Sequence[ImageItem], done: AbstractSet[Key]) -> Results:
        evaluator = self._searcher.evaluator
        counted = evaluator.queries
        for event in self._searcher.events(items, done):
            key = event.task.key if isinstance(event, Searched | Skipped) else None
            more, counted = evaluator.queries - counted, evaluator.queries
            yield key, (light(event), more)
        yield None, (None, evaluator.queries - counted)
