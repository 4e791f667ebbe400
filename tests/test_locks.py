"""One writer per stage."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from pixelsem import locks
from pixelsem.errors import OutputError, StageError
from pixelsem.locks import LOCK_FILE, Holder, StageLock, holder_of
from pixelsem.records import EpochRecord
from pixelsem.stage import Stage, StageInfo

HOLDS = """
import sys, time
from pathlib import Path
from pixelsem.locks import StageLock
StageLock.acquire(Path(sys.argv[1]), "attack de")
print("held", flush=True)
time.sleep(60)
"""


def another(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of ``folder``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leave(folder: Path, *, host: str, pid: int = 1, age: float = 0.0) -> Holder:
    """Leave the lock file of a holder that held no flock that we see, say on another machine."""
    holder = Holder(host, pid, time.time() - 3600, "attack de", "ab" * 8)
    folder.mkdir(exist_ok=True)
    path = folder / LOCK_FILE
    path.write_bytes(msgspec.json.encode(holder))
    os.utime(path, (time.time() - age,) * 2)
    return holder


def test_a_second_process_is_told_who_writes_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    process = another(tmp_path)
    with pytest.raises(StageError) as refused:
        StageLock.acquire(tmp_path, "attack de")
    for part in (str(tmp_path), "attack de", f"process {process.pid}", socket.gethostname(), "since 20"):
        assert part in str(refused.value)
    holder = holder_of(tmp_path)
    assert holder is not None
    assert holder.pid == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert (tmp_path / LOCK_FILE).exists()
    assert holder_of(tmp_path) is None
    lock = StageLock.acquire(tmp_path, "attack de")
    assert lock.replaced == holder
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_process_still_holds_its_lock(tmp_path: Path) -> None:
    process = another(tmp_path)
    process.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    with pytest.raises(StageError, match=f"process {process.pid}"):
        StageLock.acquire(tmp_path, "attack de")
    process.kill()
    process.wait(timeout=30)


def test_a_lock_is_free_after_its_release(tmp_path: Path) -> None:
    for _ in range(2):
        lock = StageLock.acquire(tmp_path / "new", "x")
        assert lock.replaced is None
        lock.release()
        lock.release()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "no such luck")])
def test_a_lock_that_was_not_had_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(locks, "_write", write)
        with pytest.raises((KeyboardInterrupt, OutputError)):
            StageLock.acquire(tmp_path, "segment")
    assert list(tmp_path.iterdir()) == []
    StageLock.acquire(tmp_path, "segment").release()


def test_a_holder_on_another_machine_counts_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    leave(tmp_path, host="node7", age=30)
    with pytest.raises(StageError, match=r"on node7, .* 30 s ago; after 120 s it counts as dead"):
        StageLock.acquire(tmp_path, "x")
    assert holder_of(tmp_path) is not None
    silent = leave(tmp_path, host="node7", age=locks.SILENCE + 5)
    assert holder_of(tmp_path) is None
    lock = StageLock.acquire(tmp_path, "x")
    assert lock.replaced == silent
    lock.release()


def test_where_nothing_can_be_locked_the_process_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    lock = StageLock.acquire(tmp_path, "x")
    with pytest.raises(StageError, match=f"process {os.getpid()}"):
        StageLock.acquire(tmp_path, "x")
    lock.release()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=30)
    leave(tmp_path, host=socket.gethostname(), pid=gone.pid)
    StageLock.acquire(tmp_path, "x").release()


@pytest.mark.parametrize("removed", [True, False])
def test_a_lost_lock_ends_the_writing(tmp_path: Path, removed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    stage = Stage.create(tmp_path / "stage", StageInfo("train", "defend train", "ab", {}, {}))
    stage.lock = StageLock.acquire(stage.path, "defend train")
    stage.append(EpochRecord(1, 1.0, 0.5, 0.5, 1.0))
    if removed:
        (stage.path / LOCK_FILE).unlink()
    else:
        leave(stage.path, host="node7")
    time.sleep(0.3)
    with pytest.raises(StageError, match="was removed" if removed else "taken over by .* on node7"):
        stage.append(EpochRecord(2, 1.0, 0.5, 0.5, 1.0))
    assert len(list(stage)) == 1
    stage.lock.release()
    assert (stage.path / LOCK_FILE).exists() is not removed  # another's lock stays


def test_the_lock_of_a_running_holder_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    lock = StageLock.acquire(tmp_path, "x")
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    deadline = time.monotonic() + 20
    while (tmp_path / LOCK_FILE).stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert holder_of(tmp_path) == lock.holder
    lock.release()
