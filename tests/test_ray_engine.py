"""``--engine ray``: the same stage as without, whatever becomes of workers and of the command; real clusters."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner
from worker_runs import IMAGES, call, command, go_on, make_run, poison, records, same, start

from pixelsem.cli.app import app
from pixelsem.engine import ray_pool
from pixelsem.errors import PixelsemError

RAY = ["--engine", "ray", "--address", "local"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of images; the folder above holds model.py and is entered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return make_run(tmp_path)


def workers_of(pid: int) -> list[int]:
    """Return the processes of Ray's actors below a process."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(
                int(status.parent.name)
            )
        except OSError:
            continue
    below, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        below += children
        todo += children
    return [p for p in below if b"ray::_Actor" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Give a list of commands; those that still run in the end are killed."""
    made: list[subprocess.Popen[str]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()


# Without a cluster


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, command(*arguments)[3:], prog_name="pixelsem")
    assert result.exit_code == 2, result.output
    return result.stderr


def test_options_of_ray_go_with_ray(photos: Path) -> None:
    assert "--address and --ray-workers go with --engine ray" in refused("--ray-workers", "2")


def test_where_ray_is_missing_one_line_says_what_to_install(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused("--engine", "ray") == (
        "pixelsem: --engine ray needs Ray, which is not there: pip install 'pixelsem[ray]'\n"
    )
    assert not Path("pixelsem-run").exists()


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379", "head:port", "head:70000"])
def test_what_is_no_address_of_a_cluster_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(PixelsemError, match="give auto, local or HOST:PORT"), ray_pool.connected(address):
        pass


@pytest.fixture
def silent() -> Iterator[int]:
    """Give the port of a server that takes connections and says nothing."""
    with socket.create_server(("", 0)) as server:
        ended = threading.Event()

        def take() -> None:
            kept = []
            while not ended.is_set():
                try:
                    kept.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]
        ended.set()


@pytest.mark.parametrize("who", ["nobody", "somebody else"])
def test_where_no_cluster_answers_one_line_says_so_soon(monkeypatch: pytest.MonkeyPatch, silent: int, who: str) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray itself tries for a minute, then ends the process"))
    monkeypatch.setattr(ray_pool, "_ANSWER", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1] if who == 'nobody' else silent}"
        advice = "no Ray cluster answers there; start one with `ray start --head`, or give --address local"
        with pytest.raises(PixelsemError, match=f"^--address {address}: {advice}$"), ray_pool.connected(address):
            pass
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PixelsemError, match=f"^RAY_ADDRESS {address}: {advice}$"), ray_pool.connected(None):
            pass


def test_a_cluster_that_does_not_start_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nIt happens.")

    monkeypatch.setattr(pytest.importorskip("ray"), "init", slow)
    assert refused(*RAY, "-q") == "pixelsem: --address local: The current node timed out during startup. It happens.\n"


# With one


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_the_manifest_equals_that_of_one_process(photos: Path, workers: int) -> None:
    pytest.importorskip("ray")
    call("-o", "reference", "--repeats", "2", "--targeted")
    done = call("-o", "ray", "--repeats", "2", "--targeted", *RAY, "--ray-workers", str(workers))
    assert done.stdout == "ray\n"
    assert "ray" not in done.stderr.lower().replace("--engine ray", "")
    assert len(records("ray")) == 4 * IMAGES
    assert same("ray", "reference")
    diff = CliRunner().invoke(app, ["evaluate", "diff", "reference", "ray", "-q"], prog_name="pixelsem")
    assert diff.stdout.startswith(f"identical {4 * IMAGES}, float ties 0, unexplained 0, only in a 0")


@pytest.mark.slow
def test_a_killed_worker_gives_the_same_stage(photos: Path, started: list[subprocess.Popen[str]]) -> None:
    pytest.importorskip("ray")
    call("-o", "reference")
    process = start(*RAY, "--ray-workers", "2", stage="ray")
    started.append(process)
    for pid in workers_of(process.pid):  # all of them: at least one has something to do
        os.kill(pid, signal.SIGKILL)
    go_on()
    out, err = process.communicate(timeout=400)
    assert (process.returncode, out) == (0, "ray\n"), err
    assert "a worker died" in err
    assert same("ray", "reference")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_command_goes_on_to_the_same_stage(
    photos: Path, started: list[subprocess.Popen[str]], number: signal.Signals, code: int
) -> None:
    pytest.importorskip("ray")
    call("-o", "reference")
    process = start(*RAY, "--ray-workers", "2", stage="ray")
    started.append(process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    assert 0 < len(records("ray")) < IMAGES
    go_on()
    call("-o", "ray", *RAY, "--ray-workers", "2")
    assert same("ray", "reference")


@pytest.mark.slow
def test_an_image_that_kills_every_worker_fails_and_the_rest_is_done(photos: Path) -> None:
    pytest.importorskip("ray")
    call("-o", "reference")
    poison(photos, 4)
    done = call("-o", "ray", "--json", *RAY, "--ray-workers", "2", POISON="1", code=1)
    assert records("ray") == {key: record for key, record in records("reference").items() if record.id != "4.png"}
    assert list(json.loads(done.stdout)["failures"]) == ["4.png"]
    assert "4.png: 3 workers died on it" in done.stderr
