"""Whatever is broken or hostile costs one clear line, the documented exit code, and nothing else."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import corpus
import pytest
import torch
from corpus import Case, encoded, put, scene
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.engine.verifying import Verification
from pixelsem.errors import ModelError
from pixelsem.models.epochs import Epochs
from pixelsem.records import EpochRecord
from pixelsem.stage import STAGE_FILE, open_stage

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="named pipes, links and alarms of POSIX")
CASES = [
    *corpus.image_cases(), *corpus.side_cases(), *corpus.yaml_cases(), *corpus.model_cases(), *corpus.file_cases(),
]  # fmt: skip
NAMES_OF_STAGES = [case.name for case in corpus.stage_cases(Path("none"))]


def some_slow(cases: Sequence[Any]) -> list[Any]:
    """Leave every fifth to the quick tests: each is quick, all together take a minute."""
    slow = pytest.mark.slow
    return [pytest.param(case, id=str(case), marks=() if n % 5 == 0 else slow) for n, case in enumerate(cases)]


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), prog_name="pixelsem")


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    """End a command that would wait for ever (for the other end of a named pipe, say)."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("still running after 30 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an attack stage of three images, with successes."""
    folder = tmp_path_factory.mktemp("whole")
    put(folder / "model.py", corpus.MODEL)
    for number in range(3):
        put(folder / f"photos/{number}.png", encoded(scene(number)))
    words = ["attack", "exhaustive", "-q", "-m", f"{folder / 'model.py'}:make", str(folder / "photos")]
    result = call(*words, "-o", str(folder / "stage"))
    assert result.exit_code == 0, result.stderr
    return folder / "stage"


def tree(folder: Path) -> list[str]:
    """Return the names of all that is in a folder but what Python keeps for itself."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def check(case: Case, folder: Path) -> None:
    """Run a case and look at everything that it may have left."""
    case.make(folder)
    before = tree(folder)
    result = call(*case.words)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    assert (result.exit_code, result.stderr) == (case.code, result.stderr)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Try 'pixelsem")]
    assert len(lines) == bool(case.says), result.stderr
    assert all(line.startswith("pixelsem: ") and re.search(case.says, line) for line in lines), result.stderr
    assert not (folder / "ran").exists(), "code in a data file was run"
    assert not list(folder.rglob("*.tmp"))
    stages = [path.parent for path in (folder / "pixelsem-run").glob(f"*/{STAGE_FILE}")]
    if case.done is None:
        assert case.code != 2 or tree(folder) == before
        return
    (made,) = stages
    assert {record.key[0] for record in open_stage(made).records()} == set(case.done)
    assert list(Verification(open_stage(made)).problems()) == []


def test_the_corpus_is_large_and_every_case_has_its_name() -> None:
    names = [case.name for case in CASES] + NAMES_OF_STAGES
    assert len(names) >= 200
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", some_slow(CASES))
def test_input(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(case, tmp_path)


@pytest.mark.parametrize("name", some_slow(NAMES_OF_STAGES))
def test_damaged_stage(name: str, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(next(case for case in corpus.stage_cases(stage) if case.name == name), tmp_path)


def test_what_a_model_prints_is_not_taken_for_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus.good(tmp_path)
    result = call(*corpus.ATTACK, "-q", "-m", "model.py:chatty", "photos")
    assert result.exit_code == 0, result.output
    assert "hello from the user's file" in result.stderr
    assert "scoring 1" in result.stderr
    assert result.stdout.count("\n") == 1
    assert Path(result.stdout.strip(), STAGE_FILE).is_file()


def test_a_checkpoint_of_another_shape_in_a_training_is_told(tmp_path: Path) -> None:
    class Training:
        def restore(self, state: dict[str, Any]) -> None:
            torch.nn.Linear(2, 2).load_state_dict(state["network"])

    identity = {"seed": 0}
    whole = {"identity": identity, "log": [], "network": torch.nn.Linear(3, 3).state_dict()}
    for changes in ({}, {"log": [{"epoch": "first"}]}, {"log": 7}, {"network": None}):
        torch.save(whole | changes, tmp_path / "checkpoint.pt")
        epochs = Epochs(tmp_path / "checkpoint.pt", identity, EpochRecord, 1, 0)
        with pytest.raises(ModelError, match=r"checkpoint\.pt: not a training checkpoint"):
            list(epochs.run(Training(), lambda number: iter(())))  # type: ignore[arg-type]
