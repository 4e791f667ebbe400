"""What the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from pixelsem.cli import evaluate
from pixelsem.cli.groups import RootGroup

ROOT = Path(__file__).resolve().parent.parent

Finished = subprocess.CompletedProcess[str]

# Processes that tests start find this checkout's package too, from any folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def problem(result: Result) -> str:
    """Return the one line on stderr of a command that ended with a problem."""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("pixelsem:")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, _cache: Path) -> None:
    """Keep the user's own settings and files out of the tests."""
    monkeypatch.setenv("PIXELSEM_CACHE", str(_cache))
    for name in ("PIXELSEM_RUN", "FORCE_COLOR", "_PIXELSEM_COMPLETE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch sum in one order only, and not wait for other threads on images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that ``PIXELSEM_DATA`` names; tests that want it are skipped without."""
    folder = os.environ.get("PIXELSEM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PIXELSEM_DATA names no folder")
    return Path(folder)


@pytest.fixture
def evaluate_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[..., Result]]:
    """``evaluate_in("transfer")`` is that command, to be called with its arguments in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False)
    evaluate.register(app)
    app.command("other")(lambda: None)

    def command(name: str) -> Callable[..., Result]:
        return lambda *arguments: CliRunner().invoke(app, ["evaluate", name, *map(str, arguments)], input="")

    return command


@pytest.fixture(scope="session")
def python() -> Callable[..., Finished]:
    """Run Python in a process of its own: ``python("-c", code, cwd=…, input=…)``."""

    def run(*arguments: str | Path, **options: object) -> Finished:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]

    return run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder over HTTP; return it and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
