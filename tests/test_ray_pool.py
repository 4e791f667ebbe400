"""Workers on a real Ray cluster of this machine: what is handed out, and what becomes of it when they die."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_jobs import Doubling

from pixelsem.engine import ray_pool
from pixelsem.engine.groups import TRIES, Group, Lost, group_items
from pixelsem.engine.ray_pool import Pool, Share, connected, share_out, shares
from pixelsem.errors import PixelsemError, WorkerError
from pixelsem.sources import ImageItem


def numbered(count: int) -> list[ImageItem]:
    return [ImageItem(str(number), Path(f"{number}.png"), None) for number in range(count)]


# What each worker has


@pytest.mark.parametrize(
    ("nodes", "workers", "amount"),
    [([4], 1, 4), ([4], 2, 2), ([4], 3, 1), ([4, 4], 3, 2), ([2], 4, 0.5), ([2, 1], 7, 1 / 3), ([8, 2], 2, 4)],
)
def test_shares_of_cores(nodes: list[float], workers: int, amount: float) -> None:
    assert share_out(nodes, workers) == pytest.approx(amount)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5), st.integers(1, 200))
def test_all_workers_fit_on_the_nodes_and_no_larger_share_would(nodes: list[float], workers: int) -> None:
    amount = share_out(nodes, workers)
    assert sum(math.floor(node / amount + 1e-9) for node in nodes) >= workers
    larger = amount + 1 if amount >= 1 else 1 / (round(1 / amount) - 1)
    assert sum(math.floor(node / larger + 1e-9) for node in nodes) < workers


def test_a_cluster_without_processors_is_refused() -> None:
    with pytest.raises(PixelsemError, match="no processor"):
        share_out([], 2)


def test_a_worker_per_gpu_or_per_core() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]
    assert shares("auto", None, nodes) == ("GPU", 1, 2)
    assert shares("cuda", 4, nodes) == ("GPU", 0.5, 4)
    assert shares("cpu", None, nodes) == ("CPU", 1, 16)
    assert shares("auto", 2, [{"CPU": 8.0}]) == ("CPU", 4, 2)
    assert (shares("auto", None, nodes).device, shares("cpu", 4, nodes).threads) == ("cuda", 4)


def test_devices_that_ray_cannot_deal_out_are_refused() -> None:
    with pytest.raises(PixelsemError, match="--device cuda:1"):
        shares("cuda:1", None, [{"CPU": 1.0, "GPU": 2.0}])
    with pytest.raises(PixelsemError, match="has no GPU"):
        shares("cuda", None, [{"CPU": 1.0}])


def test_sigterm_is_answered_as_before_while_and_after_ray_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    import ctypes

    below = ctypes.pythonapi.PyOS_getsig
    below.restype = ctypes.c_void_p
    ignored = ctypes.c_void_p(1)  # SIG_IGN of C
    came: list[int] = []

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("this is Ray's"))
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        ctypes.pythonapi.PyOS_setsig(signal.SIGTERM, ignored)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        handler = below(signal.SIGTERM)
        with connected("local") as nodes:
            assert nodes == []
            assert below(signal.SIGTERM) == handler
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


# On a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start a cluster of two cores that all tests of this module share."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patched:  # workers find ray_jobs
        patched.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=100 * 2**20,
        )  # fmt: skip
        yield
        ray.shutdown()


class Run:
    """What a pool gave back, and how."""

    def __init__(
        self,
        job: Doubling,
        count: int,
        workers: int = 2,
        most: int = 4,
        look: Callable[[Any], None] = lambda _: None,
        groups: Iterator[Group] | None = None,
        cores: float | None = None,
    ) -> None:
        self.notes: list[str] = []
        self.pool = Pool(job, Share("CPU", cores or share_out([2], workers), workers), self.notes.append)
        self.results: list[Any] = []
        given_out = group_items(numbered(count), set(), job.parts, most, workers) if groups is None else groups
        deadline = time.monotonic() + 300  # a pool that hangs fails its test in place of stopping them all
        with closing(self.pool.run(given_out, lambda: time.monotonic() > deadline)) as results:
            for result in results:
                self.results.append(result)
                look(result)
        assert not self.pool.stopped

    @property
    def found(self) -> list[tuple[str, int, int]]:
        """What was found, the process left out; losses too."""
        return sorted(result[:3] for result in self.results if not isinstance(result, Lost))

    @property
    def lost(self) -> list[Lost]:
        return [result for result in self.results if isinstance(result, Lost)]


def expected(numbers: Iterator[int] | range | list[int], parts: int = 1) -> list[tuple[str, int, int]]:
    return sorted((str(number), part, 2 * number) for number in numbers for part in range(parts))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.usefixtures("cluster")
def test_everything_is_done_once_by_all_workers(tmp_path: Path, workers: int) -> None:
    groups = list(group_items(numbered(12), set(), 3, 4, workers))
    first = tuple(group.items[0].id for group in groups[:workers])  # they wait for each other: none is left without
    run = Run(Doubling(tmp_path, parts=3, together=first), 0, workers, groups=iter(groups))
    assert run.found == expected(range(12), 3)
    assert run.notes == []
    assert len({result[3] for result in run.results}) == workers


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_one_killed_worker_changes_nothing(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(result: Any) -> None:
        if not killed:
            killed.append(result[3])
            os.kill(result[3], signal.SIGKILL)

    run = Run(Doubling(tmp_path, parts=3, seconds=0.05), 12, look=kill)
    assert run.found == expected(range(12), 3)
    assert run.pool.deaths == 1
    assert [f"process {killed[0]} " in note for note in run.notes] == [True]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_is_done_of_a_group_is_not_done_again(tmp_path: Path) -> None:
    run = Run(Doubling(tmp_path, once=("2",)), 4, workers=1, groups=iter([Group(numbered(4), 1)]))
    assert run.found == expected(range(4))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_image_that_kills_its_workers_is_lost_alone(tmp_path: Path) -> None:
    run = Run(Doubling(tmp_path, deadly=("5",)), 12)
    assert run.found == expected([number for number in range(12) if number != 5])
    assert [lost.id for lost in run.lost] == ["5"]
    assert run.lost[0].problem.startswith(f"5.png: {TRIES} workers died on it")
    begun = Counter(path.name.partition(".")[0] for path in tmp_path.iterdir())
    assert begun["5"] == TRIES == run.pool.deaths


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_image_that_raises_is_lost_alone_too(tmp_path: Path) -> None:
    run = Run(Doubling(tmp_path, broken=("5",)), 12)
    assert run.found == expected([number for number in range(12) if number != 5])
    assert [lost.id for lost in run.lost] == ["5"]
    assert run.lost[0].problem.endswith("ended by ValueError: so it is")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_no_other_worker_could_do_either_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(PixelsemError, match=r"^the model gives no numbers$"):
        Run(Doubling(tmp_path, wrong=("5",)), 12)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_finds_no_room_is_not_waited_for(tmp_path: Path) -> None:
    """Two workers of two cores each, on two cores."""
    run = Run(Doubling(tmp_path), 12, cores=2)
    assert run.found == expected(range(12))
    assert len({result[3] for result in run.results}) == 1
    assert run.notes == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_where_no_worker_finds_room_that_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "_PATIENCE", 1.0)
    notes: list[str] = []
    pool = Pool(Doubling(tmp_path), Share("CPU", 3, 1), notes.append)
    deadline = time.monotonic() + 120
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += bool(notes)
        return looks > 3 or time.monotonic() > deadline

    assert list(pool.run(group_items(numbered(4), set(), 1, 4, 1), should_stop)) == []
    assert pool.stopped
    assert notes == ["no worker is set up after 1 s; waiting for room on the cluster (1 × 3 CPU)"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_job_that_cannot_be_set_up_ends_the_run_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(PixelsemError, match=r"^w\.pt: is no model \(process \d+ on "):
        Run(Doubling(tmp_path, refuses="w.pt: is no model"), 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_workers_that_all_die_at_the_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="no worker is left") as raised:
        Run(Doubling(tmp_path, dies_at_start=True), 4)
    assert raised.value.exit_code == 1


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_groups_are_taken_only_by_workers_that_are_free(tmp_path: Path) -> None:
    """The first two wait for each other: both workers have one at the same time."""
    taken: list[int] = []
    finished: set[str] = set()
    most = 0

    def groups() -> Iterator[Group]:
        nonlocal most
        for number in range(30):
            taken.append(number)
            most = max(most, len(taken) - len(finished))
            yield Group(numbered(30)[number : number + 1], 1)

    job = Doubling(tmp_path, together=("0", "1"))
    run = Run(job, 0, groups=groups(), look=lambda result: finished.add(result[0]))
    assert run.found == expected(range(30))
    assert most == 2


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_pauses_while_its_results_are_not_taken(tmp_path: Path) -> None:
    """200 images are one group; while the first result is looked at, a few more are begun, and then no others."""
    begun: list[int] = []

    def look(_: Any) -> None:
        if begun:
            return
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)
        begun.append(len(list(tmp_path.iterdir())))

    run = Run(Doubling(tmp_path), 200, workers=1, groups=iter([Group(numbered(200), 1)]), look=look)
    assert len(run.found) == 200
    assert 1 < begun[0] <= 12


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_stops_when_asked_and_ends_its_workers(tmp_path: Path) -> None:
    pool = Pool(Doubling(tmp_path, seconds=0.2), Share("CPU", 1, 2))
    seen: list[Any] = []
    with closing(pool.run(group_items(numbered(100), set(), 1, 4, 2), lambda: len(seen) >= 5)) as results:
        for result in results:
            seen.append(result)
    assert 5 <= len(seen) < 100
    assert pool.stopped
    for pid in {result[3] for result in seen}:
        assert _gone(pid)


def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_connection_that_is_there_is_used_and_stays() -> None:
    import ray

    with connected("local") as nodes:
        assert [node["CPU"] for node in nodes] == [2]
    assert ray.is_initialized()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cluster_answers() -> None:
    import ray

    ray_pool._check_answers(ray.get_runtime_context().gcs_address, "--address")
