"""Searches on a Ray cluster: workers hold the model, this process writes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass

from pixelsem.engine.groups import Group, Key, Lost
from pixelsem.engine.ray_pool import Pool, Results, Work, check_device, connected, import_ray, shares
from pixelsem.engine.searching import AttackJob, Failed, OutOfTime, Searcher, light
from pixelsem.engine.spreading import Found, SpreadEngine
from pixelsem.sources import ImageItem


class RayEngine(SpreadEngine):
    """Spreads searches over the workers of a Ray cluster."""

    def __init__(
        self,
        job: AttackJob,
        class_names: tuple[str, ...],
        *,
        address: str | None = None,
        workers: int | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """See :class:`SpreadEngine`; ``address`` is as in :func:`pixelsem.engine.ray_pool.connected`, ``workers`` as in
        :func:`pixelsem.engine.ray_pool.shares`.

        Raises :class:`PixelsemError` where Ray is not installed and for a device that it cannot deal out, too.
        """
        import_ray()
        check_device(job.evaluator.device)
        super().__init__(job, class_names, note)
        self._address, self._workers = address, workers

    def _search(
        self, groups: Callable[[int], Iterator[Group]], should_stop: Callable[[], bool]
    ) -> Generator[Found, None, None]:
        with connected(self._address) as nodes:
            share = shares(self.job.evaluator.device, self._workers, nodes)
            pool = Pool(_Attack(self.job.on(share.device)), share, self._note)
            with closing(pool.run(groups(share.workers), should_stop)) as results:
                for result in results:
                    yield Found(0, Failed(result.id, result.problem)) if isinstance(result, Lost) else result
            if pool.stopped:
                yield Found(0, OutOfTime())


@dataclass(frozen=True)
class _Attack:
    """The work of the pool's workers: an attack's searches."""

    job: AttackJob

    def open(self) -> Work:
        """Load the model; raises as :meth:`AttackJob.open`."""
        return _Searches(self.job.open())


class _Searches:
    """The searches of some images, in a worker."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def __call__(self, items: Sequence[ImageItem], done: AbstractSet[Key]) -> Results:
        """Yield a :class:`Found` per event, and one for the queries after the last."""
        evaluator = self._searcher.evaluator
        counted = evaluator.queries
        for event in self._searcher.events(items, done):
            found = Found(evaluator.queries - counted, light(event))
            counted = evaluator.queries
            yield found.key, found
        yield None, Found(evaluator.queries - counted)
