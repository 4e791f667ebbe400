"""A disk of a few kilobytes, to be filled or made read-only: a tmpfs, which only root may mount."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What files take up is counted in these.
PAGE = 4096

#: Enough for every job.
AMPLE = 256 << 20


class Disk:
    """A mounted tmpfs at :attr:`path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: int) -> None:
        """Give it room for ``size`` bytes, in whole pages, two at least."""
        self._remount(f"size={max(2, -(-size // PAGE)) * PAGE}")

    def protect(self, closed: bool) -> None:
        """Let nothing be written, whoever asks, or let it again."""
        self._remount("ro" if closed else "rw")

    def _remount(self, option: str) -> None:
        _call("mount", "-o", f"remount,{option}", str(self.path))


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mount a disk with room for everything at ``folder``, an empty one that is made; unmount it in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={AMPLE}", "tmpfs", str(folder))
    try:
        yield Disk(folder)
    finally:
        _call("umount", "--lazy", str(folder))


def can_mount() -> bool:
    """May this process mount a disk, and change it?"""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    try:
        with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder, "disk")) as disk:
            disk.resize(PAGE)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False
    return True


def pages(folder: Path) -> int:
    """Return the bytes that a folder's files take up on such a disk."""
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in folder.rglob("*") if file.is_file())


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
