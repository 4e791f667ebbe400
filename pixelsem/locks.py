"""One writer per stage: a lock that says who holds it, and that a dead holder does not keep.

The lock is an flock on ``stage.lock``, which ends with its process, however that ends. Not every cluster mount
passes it on to other machines, so the file also says who holds it, and its time is renewed while the holder lives.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Thread

import msgspec

from pixelsem.errors import OutputError, StageError
from pixelsem.files import reason, temporary_beside

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "stage.lock"

#: Seconds between two signs of life of a holder.
BEAT = 20.0

#: A holder on another machine that gave no sign for so many seconds is taken for dead. Several beats, as network
#: mounts show a file's time up to a minute late.
SILENCE = 120.0


class Holder(msgspec.Struct, frozen=True):
    """Who writes to a stage: ``since`` in Unix seconds; ``records`` is what the manifest held then."""

    host: str
    pid: int
    since: float
    command: str
    token: str
    records: int = 0

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.since).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        return f"`pixelsem {self.command}`, process {self.pid} on {self.host}, since {when}"


class StageLock:
    """The right to write to one stage. Make one with :meth:`acquire`; :meth:`release` ends it.

    :ivar replaced: the dead holder that it was taken over from, None where there was none.
    """

    def __init__(self, path: Path, handle: int, holder: Holder, replaced: Holder | None) -> None:
        self.path, self.holder, self.replaced = path, holder, replaced
        self._handle = handle
        self._lost: str | None = None
        self._beaten = time.monotonic()
        self._over = Event()
        self._thread = Thread(target=self._keep, name="stage-lock", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: Path, command: str, records: int = 0) -> StageLock:
        """Lock the stage in ``folder``, which is made where it is missing.

        Raises :class:`StageError`, one line that says who holds it, where another process writes to it;
        :class:`OutputError` where the folder cannot be written.
        """
        path = folder / LOCK_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, alone = _open_locked(path)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {reason(error)}; choose another folder with -o") from error
        ours = False
        try:
            there = _read(path)
            if alone is False or (there is not None and _lives(there, path, sure=alone is True)):
                raise StageError(_busy(folder, there, path))
            holder = Holder(socket.gethostname(), os.getpid(), time.time(), command, os.urandom(8).hex(), records)
            ours = alone is True
            _write(handle, holder)
            if alone is None:
                _settle(path, holder, folder)
            return cls(path, handle, holder, there)
        except BaseException as error:  # a signal too: to write takes as long as the disk does
            if ours:
                with suppress(OSError):
                    path.unlink()
            os.close(handle)
            if isinstance(error, OSError):
                raise OutputError(f"{path}: cannot be written: {reason(error)}") from error
            raise

    def check(self) -> None:
        """Raise :class:`StageError` where the lock was lost: another process may be writing to the stage by now."""
        if time.monotonic() - self._beaten > 2 * BEAT:  # this process was stopped, or its disk was out of reach
            self._beat()
        if self._lost is not None:
            raise StageError(f"{self.path.parent}: its lock was lost ({self._lost}); stopped, what is done stays done")

    def release(self) -> None:
        """Let others write. May be called twice."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            if self._lost is None and self._is_ours():
                os.ftruncate(self._handle, 0)  # where an open file cannot be removed (Windows)
                self.path.unlink()
        os.close(self._handle)

    def _is_ours(self) -> bool:
        there = _read(self.path)
        return there is not None and there.token == self.holder.token

    def _keep(self) -> None:
        while not self._over.wait(BEAT) and self._lost is None:
            self._beat()

    def _beat(self) -> None:
        try:
            if self._is_ours():
                os.utime(self.path)
                self._beaten = time.monotonic()
            else:
                there = _read(self.path)
                self._lost = f"{LOCK_FILE} was removed" if there is None else f"taken over by {there}"
        except OSError:  # a mount that is away for a moment; what may have happened meanwhile the next beat sees
            return


def holder_of(folder: Path) -> Holder | None:
    """Return who seems to write to the stage in ``folder`` now, None where nobody does. Raises :class:`OSError`.

    Only looks: it neither locks nor writes, so that it never comes in a writer's way.
    """
    path = folder / LOCK_FILE
    there = _read(path)
    if there is None or not _is_fresh(path, time.time()):
        return None
    return there if there.host != socket.gethostname() or _runs(there.pid) else None


def _open_locked(path: Path) -> tuple[int, bool | None]:
    """Open the lock file, locked (True), held by another (False), or where nothing can be locked (None)."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            alone = _flock(handle)
            # Its last holder may have removed it between opening and locking; then a new one counts.
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle, alone
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int) -> bool | None:
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this mount knows no locks
        return None
    return True


def _lives(holder: Holder, path: Path, *, sure: bool) -> bool:
    """Does the holder named in an flock-free (``sure``) or unlockable lock file still write?"""
    if holder.host == socket.gethostname():
        return not sure and _runs(holder.pid) and _is_fresh(path, _clock(path))
    return _is_fresh(path, _clock(path))


def _runs(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_fresh(path: Path, now: float) -> bool:
    try:
        return now - path.stat().st_mtime < SILENCE
    except FileNotFoundError:
        return False


def _clock(path: Path) -> float:
    """Return the time by the clock that dates the lock file: that of the machine whose disk it is."""
    probe = temporary_beside(path)
    try:
        handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            return os.fstat(handle).st_mtime
        finally:
            os.close(handle)
    finally:
        with suppress(OSError):
            probe.unlink()


def _settle(path: Path, holder: Holder, folder: Path) -> None:
    """Where nothing can be locked, two may have written their names at once; the last one stays."""
    time.sleep(0.2)
    there = _read(path)
    if there is None or there.token != holder.token:
        raise StageError(_busy(folder, there, path))


def _read(path: Path) -> Holder | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except (FileNotFoundError, msgspec.DecodeError):  # none, or one who is just writing its name
        return None


def _write(handle: int, holder: Holder) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, msgspec.json.encode(holder))
    os.fsync(handle)


def _busy(folder: Path, holder: Holder | None, path: Path) -> str:
    who = "another process" if holder is None else str(holder)
    advice = "wait for it, or choose another folder with -o"
    if holder is not None and holder.host != socket.gethostname():
        with suppress(OSError):
            quiet = max(0.0, time.time() - path.stat().st_mtime)
            advice += f" (its last sign of life was {quiet:.0f} s ago; after {SILENCE:.0f} s it counts as dead)"
    return f"{folder}: is being written by {who}; {advice}"
