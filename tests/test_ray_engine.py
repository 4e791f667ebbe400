"""``--engine ray``: the same stage as without, whatever becomes of workers and of the command; real clusters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.engine import ray_pool
from pixelsem.errors import PixelsemError
from pixelsem.images import write_image
from pixelsem.records import AttackRecord
from pixelsem.stage import open_stage

#: Which colour is the brightest? Exact arithmetic. An image with a pure blue pixel ends the process that sees it.
MODEL = """
import os, time
import torch
from torch import nn
from pixelsem.models import Classifier, Preprocessing


class Brightest(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", "0")))
        if os.environ.get("POISON") and (x == torch.tensor([0.0, 0.0, 1.0])[:, None, None]).all(1).any():
            os._exit(9)
        return x.amax((2, 3)) * self.sharpness


def make():
    names = ("red", "green", "blue")
    return Classifier(Brightest(), name="brightest", class_names=names, preprocessing=Preprocessing((12, 12), 12))
"""

QUICK = ["-m", "model.py:make", "--population", "16", "--generations", "4", "--labels", "predicted", "--in-flight", "2"]
RAY = ["--engine", "ray", "--address", "local"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of ten images; the folder above holds model.py and is entered."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 240, (12, 12, 3), np.uint8)
        pixels[5, 5, 0] = 250
        write_image(tmp_path / f"photos/{number}.png", pixels)
    return tmp_path / "photos"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pixelsem", "attack", "de", "photos", *QUICK, *map(str, arguments)]


def run(*arguments: str | Path, code: int = 0, **environment: str) -> Any:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def records(stage: str | Path) -> dict[tuple[str, ...], AttackRecord]:
    return {record.key: record for record in open_stage(stage).attack_records()}


def lines(stage: str | Path) -> list[str]:
    return sorted((Path(stage) / "manifest.jsonl").read_text().splitlines())


def files(stage: str | Path) -> dict[str, bytes]:
    found = (path for path in Path(stage).rglob("*") if path.suffix in (".png", ".npz"))
    return {path.relative_to(stage).as_posix(): path.read_bytes() for path in found}


def same(stage: str, reference: str) -> bool:
    return lines(stage) == lines(reference) and files(stage) == files(reference)


def wait_for(stage: str, count: int) -> None:
    manifest = Path(stage) / "manifest.jsonl"
    deadline = time.monotonic() + 200
    while not manifest.exists() or len(manifest.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "nothing was done"
        time.sleep(0.1)


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
    result = CliRunner().invoke(app, ["attack", "de", "photos", *QUICK, *arguments], prog_name="pixelsem")
    assert result.exit_code == 2, result.output
    assert not Path("pixelsem-run").exists()
    return result.stderr


def test_options_of_ray_go_with_ray(photos: Path) -> None:
    assert "--address and --ray-workers go with --engine ray" in refused("--ray-workers", "2")


def test_where_ray_is_missing_one_line_says_what_to_install(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused("--engine", "ray") == (
        "pixelsem: --engine ray needs Ray, which is not there: pip install 'pixelsem[ray]'\n"
    )


def test_the_address_of_a_ray_client_is_refused() -> None:
    pytest.importorskip("ray")
    with pytest.raises(PixelsemError, match="give auto, local or HOST:PORT"), ray_pool.connected("ray://head:10001"):
        pass


# With one


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_the_manifest_equals_that_of_one_process(photos: Path, workers: int) -> None:
    pytest.importorskip("ray")
    run("-o", "reference", "--repeats", "2", "--targeted")
    done = run("-o", "ray", "--repeats", "2", "--targeted", *RAY, "--ray-workers", str(workers))
    assert done.stdout == "ray\n"
    assert "ray" not in done.stderr.lower().replace("--engine ray", "")
    assert len(records("ray")) == 40
    assert same("ray", "reference")


@pytest.mark.slow
def test_a_killed_worker_gives_the_same_stage(photos: Path, started: list[subprocess.Popen[str]]) -> None:
    pytest.importorskip("ray")
    run("-o", "reference")
    environment = {**os.environ, "SLOW": "0.1"}
    arguments = command("-o", "ray", *RAY, "--ray-workers", "2")
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    wait_for("ray", 2)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=250)
    assert (process.returncode, out) == (0, "ray\n"), err
    assert "a worker died" in err
    assert same("ray", "reference")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_command_goes_on_to_the_same_stage(
    photos: Path, started: list[subprocess.Popen[str]], number: signal.Signals, code: int
) -> None:
    pytest.importorskip("ray")
    run("-o", "reference")
    arguments = command("-o", "ray", *RAY, "--ray-workers", "2")
    environment = {**os.environ, "SLOW": "0.1"}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    wait_for("ray", 2)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    assert 0 < len(lines("ray")) < 10
    run("-o", "ray", *RAY, "--ray-workers", "2")
    assert same("ray", "reference")


@pytest.mark.slow
def test_an_image_that_kills_every_worker_fails_and_the_rest_is_done(photos: Path) -> None:
    pytest.importorskip("ray")
    pixels = np.full((12, 12, 3), 40, np.uint8)
    pixels[0, 0] = (0, 0, 255)
    write_image(photos / "deadly.png", pixels)
    done = run("-o", "ray", "--json", *RAY, "--ray-workers", "2", POISON="1", code=1)
    assert {key[0] for key in records("ray")} == {f"{number}.png" for number in range(10)}
    assert list(json.loads(done.stdout)["failures"]) == ["deadly.png"]
    assert "deadly.png: 3 workers died on it" in done.stderr
