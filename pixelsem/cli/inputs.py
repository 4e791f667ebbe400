"""Where a command's inputs come from: its arguments, a pipe, or the newest fitting stage of the run folder."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from pixelsem.errors import PixelsemError
from pixelsem.stage import STAGE_FILE, Stage


def resolve_inputs(given: Sequence[Path] | None, run: Path, kinds: Sequence[str]) -> list[Path]:
    """Return the input folders of a command.

    ``given`` as they are, ``-`` standing for the lines of stdin; with nothing given, the lines of stdin
    where it is a pipe with something in it; else the newest stage below ``run`` whose kind is one of
    ``kinds``. Raises :class:`PixelsemError` where there is nothing or a path does not exist.
    """
    paths = [path for item in given or [] for path in (_stdin_lines() if str(item) == "-" else [item])]
    if not given and _stdin_is_pipe():
        paths = _stdin_lines()
    if not paths:
        newest = newest_stage(run, kinds)
        if newest is None:
            raise PixelsemError(f"no input: name a folder; {run} holds no stage of kind {' or '.join(kinds)}")
        paths = [newest]
    for path in paths:
        if not path.exists():
            raise PixelsemError(f"{path}: no such file or folder")
    return paths


def newest_stage(run: Path, kinds: Sequence[str]) -> Path | None:
    """Return the stage directly below ``run`` of one of ``kinds`` that was written to last, or None."""
    found = []
    for file in run.glob(f"*/{STAGE_FILE}"):
        if Stage.open(file.parent).info.kind in kinds:
            manifest = file.parent / "manifest.jsonl"
            found.append((max(f.stat().st_mtime_ns for f in (file, manifest) if f.exists()), file.parent))
    return max(found)[1] if found else None


def _stdin_is_pipe() -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):
        return False


def _stdin_lines() -> list[Path]:
    return [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()]
