"""Workers on a Ray cluster: actors that are set up once, get images in groups and give back what they found.

Nothing here knows what the work is, and nothing is written: results come back to the one process that writes.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from pixelsem.engine.groups import Group, Key, Lost
from pixelsem.errors import PixelsemError, WorkerError
from pixelsem.files import one_line
from pixelsem.sources import ImageItem
from pixelsem.version import __version__

#: What a worker gives back, one by one: the key of what is done (None where nothing is), and anything about it.
Results = Iterator[tuple[Key | None, Any]]

_STARTS = 3  # in a row that a worker may die while it is set up
_UNREAD = 8  # results of one worker that wait to be taken; it pauses where there are more
_POLL = 0.5  # seconds
_PATIENCE = 30.0  # seconds without any worker that is set up, before that is said
_ANSWER = 5.0  # seconds that a cluster has to take a connection
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # HTTP/2's frame of settings, with none; every server begins with one
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS  # RFC 9113, 3.4
_STORE = 256 * 2**20  # bytes of shared memory of a cluster of our own; what waits in it is bounded by _UNREAD
_DEVICES = ("auto", "cpu", "cuda")

#: How Ray behaves, where its user has not said otherwise.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keeps a warning off stderr
    # Ray kills a worker's process that has not imported everything in time, a minute, and starts another one: on a
    # busy machine again and again.
    "RAY_worker_register_timeout_seconds": "600",
}


class Work(Protocol):
    """What a worker does, once it is set up."""

    def __call__(self, items: Sequence[ImageItem], done: AbstractSet[Key]) -> Results:
        """Do what is to be done of ``items``, but for what has a key in ``done``."""


class Job(Protocol):
    """Plain data that says what work there is; it is sent to the workers."""

    def open(self) -> Work:
        """Set up the work, in the worker; raises :class:`PixelsemError`."""


class Share(NamedTuple):
    """What each worker has of the cluster: so many of ``resource`` (``CPU`` or ``GPU``), a fraction where shared."""

    resource: Literal["CPU", "GPU"]
    amount: float
    workers: int

    @property
    def device(self) -> str:
        """The device of a worker; Ray shows it its own GPU alone."""
        return "cuda" if self.resource == "GPU" else "cpu"

    @property
    def threads(self) -> int:
        """How many threads a worker computes with."""
        return max(1, int(self.amount)) if self.resource == "CPU" else 1

    def __str__(self) -> str:
        return f"{self.workers} × {self.amount:.3g} {self.resource}"


def share_out(nodes: Sequence[float], workers: int) -> float:
    """Return how much of a resource each of ``workers`` can have, where each lives on one node.

    ``nodes`` is what each node has. A whole number, or 1/n where several share one (Ray takes nothing between). Raises
    :class:`PixelsemError` where there is nothing to share.

    >>> share_out([4, 4], 2), share_out([4, 4], 3), share_out([2], 4)
    (4, 2, 0.5)
    """
    if max(nodes, default=0) < 1:
        raise PixelsemError("--engine ray: the cluster has no processor to work on")
    for amount in range(int(max(nodes)), 0, -1):
        if sum(int(node // amount) for node in nodes) >= workers:
            return amount
    return 1 / -(-workers // sum(map(int, nodes)))


def check_device(device: str) -> None:
    """Raise :class:`PixelsemError` for a device that Ray cannot deal out."""
    if device not in _DEVICES:
        raise PixelsemError(f"--device {device}: with --engine ray, Ray deals out the devices; give auto, cpu or cuda")


def shares(device: str, workers: int | None, nodes: Sequence[dict[str, float]]) -> Share:
    """Return what each worker has: a GPU where ``device`` allows and there are any, else a share of the cores.

    ``device`` is ``auto``, ``cpu`` or ``cuda``; without ``workers`` there is one per GPU, or per core. Raises
    :class:`PixelsemError` for another device, and where there is none.
    """
    check_device(device)
    gpus = [node.get("GPU", 0) for node in nodes]
    if device == "cuda" and sum(gpus) < 1:
        raise PixelsemError("--device cuda: the Ray cluster has no GPU")
    resource: Literal["CPU", "GPU"] = "CPU" if device == "cpu" or sum(gpus) < 1 else "GPU"
    there = [node.get(resource, 0) for node in nodes]
    workers = workers or int(sum(there)) or 1
    return Share(resource, share_out(there, workers), workers)


class _Opened(NamedTuple):
    """A worker that is set up, by the words to call it by; or its ``problem``."""

    name: str
    problem: str | None


class _Actor:
    """What lives in a worker's process."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def open(self, job: Job, folder: str, version: str, threads: int) -> _Opened:
        """Set up the work, in the ``folder`` that relative paths start at."""
        name = f"process {os.getpid()} on {socket.gethostname()}"
        if version != __version__:
            return _Opened(name, f"pixelsem is {__version__} there and {version} here; install the same")
        try:
            os.chdir(folder)
        except OSError:
            return _Opened(name, f"{folder}: is not there; every machine needs the same files at the same paths")
        import torch

        torch.set_num_threads(threads)
        try:
            self._work = job.open()
        except PixelsemError as error:
            return _Opened(name, str(error))
        return _Opened(name, None)

    def do(self, items: Sequence[ImageItem], done: AbstractSet[Key]) -> Results:
        """Do the work for one group."""
        assert self._work is not None
        yield from self._work(items, done)


@dataclass
class _Worker:
    """One actor as it is seen from here. ``opening`` is pending until it is set up; ``results`` while it works."""

    handle: Any
    opening: Any
    name: str = ""
    group: Group | None = None
    results: Any = None

    @property
    def pending(self) -> Any:
        """What there is to wait for, None where it has nothing to do."""
        return self.opening if self.opening is not None else self.results


class Pool:
    """Workers that share out groups of images. Iterate over :meth:`run` once.

    At any time each worker has one group at most; groups are taken from their iterator when a worker is free, and a
    worker pauses when its results are not taken. So what is in memory does not grow with the number of images.

    :ivar deaths: how many workers died.
    :ivar stopped: whether :meth:`run` ended early, as it was asked to.
    """

    def __init__(self, job: Job, share: Share, note: Callable[[str], None] = lambda _: None) -> None:
        """``note`` is told, in a line, what went wrong and did not end the run. Ray must be connected."""
        self._job, self._share, self._note = job, share, note
        self._ray = import_ray()
        self._workers: list[_Worker] = []
        self._again: deque[Group] = deque()
        self._all_taken = False  # nothing is left in the iterator of groups
        self._failed_starts = 0
        self._was_open = False
        self._problem = ""
        self.deaths = 0
        self.stopped = False

    def run(self, groups: Iterator[Group], should_stop: Callable[[], bool]) -> Generator[Any, None, None]:
        """Have every group worked on; yield what is found, and :class:`Lost` for images that kill their workers.

        Returns early when ``should_stop`` turns true. Closing the iterator ends the workers. Raises
        :class:`PixelsemError` where no worker can be set up or the work itself raised it, :class:`WorkerError` where
        no worker is left. Any other error of the work ends its worker as a crash does.
        """
        alone_since: float | None = time.monotonic()
        try:
            for _ in range(self._share.workers):
                self._start()
            while self._hand_out(groups):
                if should_stop():
                    self.stopped = True
                    return
                if not self._workers:
                    raise WorkerError(f"--engine ray: no worker is left ({self._problem}); what is done stays done")
                alone_since = self._say_where_none_is_open(alone_since)
                waiting = [worker for worker in self._workers if worker.pending is not None]
                ready, _ = self._ray.wait([worker.pending for worker in waiting], num_returns=1, timeout=_POLL)
                for worker in waiting:
                    if any(worker.pending is each for each in ready):
                        yield from self._take(worker)
        finally:
            for worker in self._workers:
                self._ray.kill(worker.handle)

    def _start(self) -> None:
        share = {"num_gpus": self._share.amount} if self._share.resource == "GPU" else {"num_cpus": self._share.amount}
        handle = self._ray.remote(_Actor).options(**share).remote()
        opening = handle.open.remote(self._job, os.getcwd(), __version__, self._share.threads)
        self._workers.append(_Worker(handle, opening))

    def _hand_out(self, groups: Iterator[Group]) -> bool:
        """Give groups to the workers that are free; is anything left to wait for?

        A worker that is still being set up is not waited for where the others have done everything.
        """
        for worker in self._workers:
            if worker.pending is None and (group := self._next(groups)) is not None:
                worker.group = group
                do = worker.handle.do.options(num_returns="streaming", _generator_backpressure_num_objects=_UNREAD)
                worker.results = do.remote(group.items, frozenset(group.done))
        return bool(self._again) or not self._all_taken or any(worker.group is not None for worker in self._workers)

    def _next(self, groups: Iterator[Group]) -> Group | None:
        if self._again:
            return self._again.popleft()
        group = next(groups, None)
        self._all_taken = group is None
        return group

    def _say_where_none_is_open(self, since: float | None) -> float | None:
        """Return since when no worker is set up; said once after a while, as the cluster may be full."""
        if any(worker.opening is None for worker in self._workers):
            return None
        now = time.monotonic()
        since = now if since is None else since
        if now - since < _PATIENCE:
            return since
        self._note(f"no worker is set up after {_PATIENCE:.0f} s; waiting for room on the cluster ({self._share})")
        return float("inf")

    def _take(self, worker: _Worker) -> Iterator[Any]:
        """Take what a worker has ready."""
        try:
            if worker.opening is not None:
                self._opened(worker, self._ray.get(worker.opening))
                return
            key, result = self._ray.get(next(worker.results))
        except StopIteration:
            worker.group = worker.results = None
            return
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PixelsemError):
                raise error.cause from None
            yield from self._died(worker, f"ended by {type(error.cause).__name__}: {one_line(error.cause)}")
            return
        except self._ray.exceptions.RayError as error:
            yield from self._died(worker, _last_line(error))
            return
        assert worker.group is not None
        if key is not None:
            worker.group.done.add(key)
        yield result

    def _opened(self, worker: _Worker, opened: _Opened) -> None:
        worker.opening, worker.name = None, opened.name
        if opened.problem is None:
            self._was_open, self._failed_starts = True, 0
            return
        problem = f"{opened.problem} ({opened.name})"
        if not self._was_open:
            raise PixelsemError(problem)
        self._give_up(worker, problem)

    def _give_up(self, worker: _Worker, problem: str) -> None:
        self._problem = problem
        self._workers.remove(worker)
        self._ray.kill(worker.handle)
        self._note(f"a worker is left out: {problem}")

    def _died(self, worker: _Worker, problem: str) -> Iterator[Lost]:
        """Put another worker in the place of one that is dead or out of reach, and its images to the next free one."""
        self.deaths += 1
        if worker.group is None:  # while it was set up
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                self._give_up(worker, f"died while it was set up: {_shortened(problem)}")
                return
        self._workers.remove(worker)
        self._ray.kill(worker.handle)
        self._start()
        if worker.group is not None:
            how = f"{worker.name}: {_shortened(problem)}"
            again, lost = worker.group.after_death(how)
            self._again.extend(again)
            if again:
                self._note(f"a worker died ({how}); what it had not done goes to another")
            yield from lost


def _last_line(error: Exception) -> str:
    """Return the last line of what Ray says, which names the cause."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"


def import_ray() -> Any:
    """Return the module; raises :class:`PixelsemError` where it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise PixelsemError("--engine ray needs Ray, which is not there: pip install 'pixelsem[ray]'") from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[list[dict[str, float]]]:
    """Connect to a cluster while the block runs; give the resources of its nodes.

    ``address`` is ``local`` (a cluster of this run's own, on this machine), ``HOST:PORT``, or ``auto`` (that of
    ``RAY_ADDRESS``, else the one that runs on this machine); None takes ``RAY_ADDRESS``, else ``local``. A connection
    that there is already is used, and stays. Meanwhile nothing gets to stdout, where Ray would put its messages among
    data. Raises :class:`PixelsemError` where there is no such cluster.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    named = os.environ.get("RAY_ADDRESS") if address in (None, "auto") else None
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            if own:
                _connect(ray, named or address or "local", "RAY_ADDRESS" if named else "--address")
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            if own:
                ray.shutdown()


def _connect(ray: Any, address: str, option: str) -> None:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE}
    elif address != "auto":
        _check_answers(address, option)
    with _own_signals():
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise _nobody(address, option) from error
        except Exception as error:  # of any class: a cluster of our own that did not start in time is a plain one
            raise PixelsemError(f"{option} {address}: {_shortened(one_line(error))}") from error


def _check_answers(address: str, option: str) -> None:
    """Raise :class:`PixelsemError` where no server answers in HTTP/2, as Ray's does.

    Ray itself tries for a minute, then says so in lines of its own and ends this process.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or int(port) > 65535:
        raise PixelsemError(f"{option} {address}: give auto, local or HOST:PORT, on a machine of the cluster")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return
            connection.sendall(_GREETING)
            answer = connection.recv(len(_SETTINGS), socket.MSG_WAITALL)
    except OSError as error:
        raise _nobody(address, option) from error
    if answer[3:4] != _SETTINGS[3:4]:
        raise _nobody(address, option)


def _nobody(address: str, option: str) -> PixelsemError:
    advice = "start one with `ray start --head`, or give --address local"
    return PixelsemError(f"{option} {address}: no Ray cluster answers there; {advice}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces when it connects.

    It does so twice: at the start, in Python, which is held off here, and below Python, hundredths of a second before
    it is connected, which is undone here; a signal that comes in between ends the process in Ray's own way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    set_signal, before = signal.signal, signal.getsignal(signal.SIGTERM)

    def set_other(number: int, handler: Any) -> Any:
        return before if number == signal.SIGTERM else set_signal(number, handler)

    signal.signal = set_other  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_signal
        signal.signal(signal.SIGTERM, before)
