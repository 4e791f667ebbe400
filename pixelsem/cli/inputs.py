"""Where a command's inputs come from: its arguments, a pipe, or the newest fitting stage of the run folder."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixelsem.errors import PixelsemError, StageError
from pixelsem.stage import MANIFEST_FILE, STAGE_FILE, Stage

if TYPE_CHECKING:
    from pixelsem.attacks.settings import RegionOptions
    from pixelsem.sources import ImageSource


def resolve_inputs(
    given: Sequence[Path] | None, run: Path, kinds: Sequence[str], *, note: Callable[[str], None] | None = None
) -> list[Path]:
    """Return the input folders of a command.

    ``given`` as they are, ``-`` standing for the lines of stdin; with nothing given, the lines of stdin
    where it is a pipe with something in it; else the newest stage below ``run`` whose kind is one of
    ``kinds``, which is told to ``note``. Raises :class:`PixelsemError` where there is nothing or a path
    does not exist.
    """
    paths = named_inputs(given)
    if not paths:
        paths = [_newest(run, kinds)]
        if note is not None:
            note(f"input: {paths[0]} (the newest in {run})")
    return paths


def named_inputs(given: Sequence[Path] | None) -> list[Path]:
    """Return the inputs that were named, as arguments or by stdin (see :func:`resolve_inputs`); none is no error.

    Raises :class:`PixelsemError` where one does not exist, or ``-`` gave nothing.
    """
    paths = [path for item in given or [] for path in (_stdin_lines() if str(item) == "-" else [item])]
    if given and not paths:
        raise PixelsemError("-: nothing came from stdin; did the command before the pipe fail?")
    if not given and _stdin_is_pipe():
        paths = _stdin_lines()
    for path in paths:
        if not _exists(path):
            raise PixelsemError(f"{path}: no such file or folder")
    return paths


def _newest(run: Path, kinds: Sequence[str]) -> Path:
    newest = newest_stage(run, kinds)
    if newest is None:
        raise PixelsemError(f"no input: name a folder; {run} holds no stage of kind {' or '.join(kinds)}")
    return newest


def newest_stage(run: Path, kinds: Sequence[str], fits: Callable[[Stage], bool] = lambda stage: True) -> Path | None:
    """Return the stage directly below ``run`` of one of ``kinds`` that was written to last and ``fits``, or None.

    Folders that are no readable stage are passed over, and shards: a part is only taken where it is named.
    """
    for path in sorted((file.parent for file in run.glob(f"*/{STAGE_FILE}")), key=_written, reverse=True):
        try:
            stage = Stage.open(path)
            if stage.info.kind in kinds and stage.info.shard is None and fits(stage):
                return path
        except StageError:
            continue
    return None


def find_masks(source: ImageSource, region: RegionOptions, run: Path, note: Callable[[str], None]) -> Path | None:
    """Return where an attack's masks come from: --masks, the input stage itself, or the newest of the same images.

    None where its region needs none, or there are none below ``run``; a stage that was found is told to ``note``.
    """
    if region.regions == ("original",) or region.masks is not None:
        return region.masks
    if source.stage is not None and source.stage.info.kind == "segment":
        return source.stage.path

    def same_images(stage: Stage) -> bool:
        return (stage.path / stage.info.inputs.get("images", "")).resolve() == source.root.resolve()

    newest = newest_stage(run, ("segment",), same_images)
    if newest is not None:
        note(f"masks: {newest}")
    return newest


def _written(stage: Path) -> tuple[int, str]:
    """Return when a stage was last written to, with its name to break ties."""
    return max(_times(stage), default=0), stage.name


def _times(stage: Path) -> Iterator[int]:
    for name in (STAGE_FILE, MANIFEST_FILE):
        try:
            yield (stage / name).stat().st_mtime_ns
        except OSError:
            continue


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise PixelsemError(f"{path}: cannot be read: {error.strerror}") from error


def _stdin_is_pipe() -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, replaced or None
        return False


def _stdin_lines() -> list[Path]:
    if sys.stdin is None or sys.stdin.closed:
        return []
    return [Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()]
