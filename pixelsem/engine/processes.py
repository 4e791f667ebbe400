"""Searches in processes of this machine, one per device: workers hold the model, this process writes."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

import torch

from pixelsem.engine.groups import Group, Key
from pixelsem.engine.searching import AttackJob, Event, Failed, OutOfTime, Searcher, light
from pixelsem.engine.spreading import Found, SpreadEngine
from pixelsem.errors import PixelsemError, WorkerError
from pixelsem.files import one_line
from pixelsem.sources import ImageItem

_WAITING = 2  # groups that a worker has at a time: the one it works on, and the next
_STARTS = 3  # times in a row that the worker of a device may die while it is set up
_POLL = 0.5  # seconds
_SIGN = 0.5  # seconds between two messages of a worker about its queries

#: What :meth:`Searcher.measure_rate` is asked: the attack's access, pixels, searches.
Probe = tuple[Literal["white", "black"], int, int]


class _Measuring(NamedTuple):
    """A worker tries which way of scoring is fastest, which takes seconds."""


class _Opened(NamedTuple):
    """A worker is ready, at so many queries per second (0 where it was not asked)."""

    rate: float


class _Refused(NamedTuple):
    """A worker cannot do what is asked, and another one could not either: a ``problem`` in one line."""

    problem: str


class _Broken(NamedTuple):
    """A worker ends by an error that nobody expected, in one line."""

    problem: str


class _Ended(NamedTuple):
    """A worker is done with its oldest group."""


@dataclass
class _Worker:
    """One process as it is seen from here. ``groups`` are those it has, the oldest first."""

    device: str
    process: BaseProcess
    connection: Connection
    deaths: int = 0  # of its predecessors on the device, in a row, while they were set up
    rate: float | None = None
    groups: deque[Group] = field(default_factory=deque)
    problem: str = ""

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.device}"


class ProcessEngine(SpreadEngine):
    """Spreads searches over one process per device.

    Groups of images are handed out as workers get free, two to each at most; a worker whose results are not taken
    pauses. So what is in memory does not grow with the number of images. The images of a worker that dies go to
    another one; where they kill one after the other, they are given up, and the rest goes on.

    :ivar on_measure: called once, when a worker begins to try which way of scoring is fastest, which takes seconds.
    """

    def __init__(
        self,
        job: AttackJob,
        class_names: tuple[str, ...],
        devices: Sequence[str],
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """See :class:`SpreadEngine`.

        The processors are shared out: each of W processes computes with 1/W of the threads of this one.
        """
        super().__init__(job, class_names, note)
        self.devices = list(devices)
        self.on_measure: Callable[[], None] = lambda: None
        self._threads = max(1, torch.get_num_threads() // len(self.devices))
        self._probe: Probe | None = None
        self._workers: list[_Worker] = []
        self._todo: deque[Group] = deque()
        self._was_open = self._told_measuring = False
        self._problem = ""

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that there are now."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def measure_rate(self, access: Literal["white", "black"], pixels: int, searches: int) -> float:
        """Return the queries per second of all workers together, which are started and try it at the same time.

        Raises as :meth:`events`.
        """
        self._probe = (access, pixels, -(-searches // len(self.devices)))
        self._start_all()
        while any(worker.rate is None for worker in self._workers):
            for _ in self._step():
                pass
        return sum(worker.rate or 0.0 for worker in self._workers)

    def _search(
        self, groups: Callable[[int], Iterator[Group]], should_stop: Callable[[], bool]
    ) -> Generator[Found, None, None]:
        self._todo = deque(groups(len(self.devices)))
        try:
            self._start_all()
            while self._hand_out():
                if should_stop():
                    yield Found(0, OutOfTime())
                    return
                yield from self._step()
        finally:
            self.close()

    def close(self) -> None:
        """End all workers at once. They write nothing, so that nothing is left half done."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    def _start_all(self) -> None:
        if not self._workers:
            for device in self.devices:
                self._start(device, 0)

    def _start(self, device: str, deaths: int) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.job.on(device), self._threads, self._probe)
        process = context.Process(target=_work, args=arguments, name=f"pixelsem-{device}", daemon=True)
        with _signals_held():
            process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        self._workers.append(_Worker(device, process, ours, deaths))

    def _hand_out(self) -> bool:
        """Give groups to workers that have room, to those that have nothing first; is anything left to wait for?"""
        for room in range(1, _WAITING + 1):
            for worker in self._workers:
                if self._todo and worker.rate is not None and len(worker.groups) < room:
                    worker.groups.append(self._todo.popleft())
                    group = worker.groups[-1]
                    with suppress(OSError):  # it died: that is seen when it is read from
                        _send(worker.connection, (group.items, frozenset(group.done)))
        return bool(self._todo) or any(worker.groups for worker in self._workers)

    def _step(self) -> Iterator[Found]:
        """Wait a moment for workers; yield what one message of each comes to."""
        ready = wait([worker.connection for worker in self._workers], timeout=_POLL)
        for worker in list(self._workers):
            if worker.connection not in ready:
                continue
            try:
                message = pickle.loads(worker.connection.recv_bytes())
            except (EOFError, OSError):
                yield from self._died(worker)
                continue
            yield from self._take(worker, message)

    def _take(self, worker: _Worker, message: Any) -> Iterator[Found]:
        if isinstance(message, Found):
            if message.key is not None:
                worker.groups[0].done.add(message.key)
            yield message
        elif isinstance(message, _Ended):
            worker.groups.popleft()
        elif isinstance(message, _Measuring):
            if not self._told_measuring:
                self._told_measuring = True
                self.on_measure()
        elif isinstance(message, _Opened):
            self._was_open, worker.rate, worker.deaths = True, message.rate, -1
        elif isinstance(message, _Refused) and (worker.rate is not None or not self._was_open):
            raise PixelsemError(message.problem)
        else:  # broken, or a successor that could not be set up: it ends by itself
            worker.problem = message.problem

    def _died(self, worker: _Worker) -> Iterator[Found]:
        """Put another worker in the place of a dead one, and its images to the next free one."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        self._problem = f"{worker} {worker.problem or _ending(worker.process.exitcode)}"
        if worker.deaths + 1 < _STARTS:
            self._start(worker.device, worker.deaths + 1)
        if worker.groups:
            again, lost = worker.groups.popleft().after_death(self._problem)
            self._todo.extendleft([*worker.groups, *again])
            if again:
                self._note(f"a worker died ({self._problem}); what it had not done goes to another")
            for each in lost:
                yield Found(0, Failed(each.id, each.problem))
        if not self._workers:
            raise WorkerError(f"--device: no worker is left ({self._problem}); what is done stays done")


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes that do not see Ctrl-C, which a terminal sends to all: this one ends them.

    SIGTERM waits meanwhile too, as a process that is half started would complain of its missing parent.
    """
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # now, as before Python 3.13 starting it lets these signals through again
    held = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(connection: Connection, message: Any) -> None:
    # By value: torch would share tensors through files that are gone with the process that made them.
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _work(connection: Connection, job: AttackJob, threads: int, probe: Probe | None) -> None:
    """Work on groups of images until there are no more: what runs in a worker's process."""
    os.dup2(2, 1)  # stdout is for data, and a model may print
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # it was held for the start alone
    torch.set_num_threads(threads)
    _keep_no_semaphore()
    try:
        searcher = job.open()
        searcher.evaluator.on_measure = lambda: _send(connection, _Measuring())
        _send(connection, _Opened(searcher.measure_rate(*probe) if probe is not None else 0.0))
        inbox: SimpleQueue[tuple[list[ImageItem], frozenset[Key]]] = SimpleQueue()
        threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
        while True:
            _search_group(connection, searcher, *inbox.get())
    except PixelsemError as error:
        _end(connection, _Refused(one_line(error)))
    except Exception as error:
        _end(connection, _Broken(f"ended by {type(error).__name__}: {one_line(error)}"))


def _keep_no_semaphore() -> None:
    """Give tqdm, by which torch.fx shows progress, a lock of this process alone.

    Its own is a semaphore of the system: that of a process which is killed, as workers are, would be left, and Python
    says so on stderr.
    """
    with suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())


def _end(connection: Connection, why: _Refused | _Broken) -> None:
    with suppress(OSError):  # nobody may be left to tell
        _send(connection, why)
    os._exit(1)  # not held up by the threads that read


def _receive(connection: Connection, inbox: SimpleQueue[Any]) -> None:
    """Take groups at once, so that neither side waits for the other to read; end where the other side is gone."""
    try:
        while True:
            inbox.put(pickle.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(1)


def _search_group(connection: Connection, searcher: Searcher, items: list[ImageItem], done: frozenset[Key]) -> None:
    told, last = 0, time.monotonic()

    def on_queries(queries: int, event: Event | None = None) -> None:
        nonlocal told, last
        if event is None and time.monotonic() - last < _SIGN:
            return
        _send(connection, Found(queries - told, event))
        told, last = queries, time.monotonic()

    start = searcher.evaluator.queries
    for event in searcher.events(items, done, on_queries=on_queries):
        on_queries(searcher.evaluator.queries - start, light(event))
    if searcher.evaluator.queries - start > told:
        _send(connection, Found(searcher.evaluator.queries - start - told))
    _send(connection, _Ended())
