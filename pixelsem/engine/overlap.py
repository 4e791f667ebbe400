"""Reading and writing on threads of their own, so that the search does not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Ahead:
    """Does some work for the items to come, ``depth`` of them at most, on ``threads`` threads. A context manager."""

    def __init__(self, depth: int, threads: int = 1) -> None:
        self._depth, self._threads = depth, threads
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Ahead:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="read")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, Callable[[], R]]]:
        """Yield every item in order, with a function that returns its result or raises what the work raised."""
        assert self._pool is not None, "used outside of its block"
        running: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            running.append((item, self._pool.submit(work, item)))
            if len(running) > self._depth:
                done, future = running.popleft()
                yield done, future.result
        for done, future in running:
            yield done, future.result


class Behind:
    """Does what is submitted one after the other on one thread, ``depth`` calls at most waiting. A context manager.

    What one of them raises is raised at the next submission or at the end of the block, and nothing that was
    submitted behind it is done. When the block ends, by an exception too, everything else is.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Behind:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            assert self._pool is not None
            self._pool.shutdown()

    def submit(self, work: Callable[[], None]) -> None:
        """Have ``work`` done; wait where too much is waiting already."""
        assert self._pool is not None, "used outside of its block"
        while len(self._waiting) >= self._depth or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._do, work))

    def _do(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise
