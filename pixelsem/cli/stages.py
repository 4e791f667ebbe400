"""The stage folder of a command: its name, what is noted in its ``stage.yaml``, and how a run ends."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.options import OutputOptions, command_name
from pixelsem.errors import EXIT_SOME_FAILED, OutputError, StageError
from pixelsem.files import reason, remove_temporaries
from pixelsem.locks import StageLock
from pixelsem.settings import Settings
from pixelsem.stage import MANIFEST_FILE, STAGE_FILE, Stage, StageInfo, count_lines, digest, is_free
from pixelsem.version import __version__

if TYPE_CHECKING:
    from pixelsem.engine.shards import Shard
    from pixelsem.records import SegmentRecord

#: How many names of failed or flagged images are printed before a count stands for the rest.
NAMES_SHOWN = 10


def options_of(*groups: Settings, **others: Any) -> dict[str, Any]:
    """Return the options of settings (and ``others``) by name, for :func:`open_output`."""
    merged: dict[str, Any] = {}
    for group in groups:
        merged |= group.to_dict()
    return merged | others


def open_output(
    context: typer.Context,
    name: str,
    *,
    kind: str,
    identity: Mapping[str, Any],
    options: Mapping[str, Any],
    inputs: Mapping[str, Path],
    output: OutputOptions,
    modules: tuple[str, ...] = ("numpy",),
    model: dict[str, Any] | None = None,
    seed: int | None = None,
    shard: Shard | None = None,
    planned: int | None = None,
) -> Stage:
    """Make the command's stage folder, or resume it where it holds the same run; lock it until the command ends.

    The folder is ``--output``, else ``name`` (``segment-grabcut``, ``attack-de-background``) and six
    digits of the identity below ``--run``, with the ``shard`` behind where only a part of the run is done; the
    shard is noted among the options. ``identity`` is plain data: all that can change the results
    beside the command's name (see :func:`pixelsem.sources.fingerprint` for images; never where
    they are, so that a moved folder still resumes). ``options`` are every option by name as ``--config`` takes
    them, paths as :class:`~pathlib.Path`; they and ``inputs`` (folders by role) are noted relative to the
    stage. Output options are left out: a repeat chooses its own place. ``modules`` are those whose
    versions are noted. ``planned`` is how many records the stage holds at most when it is done.

    Raises :class:`StageError` where the folder holds another run, another process writes to it or ``--overwrite`` would
    delete what the command reads, :class:`OutputError` where it cannot be written.
    """
    command = command_name(context)
    key = digest({"command": command, **identity})
    path = output.output or output.run / f"{name}-{key[:6]}{shard.suffix if shard else ''}"
    if output.overwrite:
        _check_spared(path, [*inputs.values(), *options.values()])
    lock = hold(context, path)
    noted = dict(options) if shard is None else {**options, "shard": str(shard)}
    earlier = None if output.overwrite else _earlier(path, key)
    info = StageInfo(
        kind=kind,
        command=command,
        identity=key,
        options={option: _portable(value, path) for option, value in noted.items()},
        inputs={role: relative_to(folder, path) for role, folder in inputs.items()},
        model=model,
        seed=seed,
        versions=versions(*modules),
        counts=earlier.counts if earlier else None,
        wall_time=earlier.wall_time if earlier else None,
        planned=planned,
    )
    stage = Stage.create(path, info, overwrite=output.overwrite)
    stage.lock = lock
    if earlier is not None:
        stage.save()  # where the inputs are may have changed
    return stage


def _check_spared(path: Path, values: Sequence[Any]) -> None:
    """Raise :class:`StageError` where one of ``values`` is, or lists, a path in the stage that is to be emptied."""
    if not (path / STAGE_FILE).exists():
        return
    whole = path.resolve()
    for value in values:
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Path) and each.resolve().is_relative_to(whole):
                raise StageError(
                    f"{path}: --overwrite would delete {each}, which the command reads; choose another folder with -o"
                )


def hold(context: typer.Context, path: Path) -> StageLock | None:
    """Lock the stage at ``path`` until the command ends; None where something else is there.

    A lock whose holder is dead is taken over, which is said on stderr, and its half-written files are removed. Raises
    :class:`StageError` where another process writes to the stage.
    """
    try:
        if not (path / STAGE_FILE).exists() and not is_free(path):
            return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {reason(error)}; choose another folder with -o") from error
    lock = StageLock.acquire(path, command_name(context), count_lines(path / MANIFEST_FILE))
    context.call_on_close(lock.release)
    if lock.replaced is not None:
        Console().problem(f"{path}: the lock of {lock.replaced}, which is gone, was taken over")
        remove_temporaries(path)
    return lock


def _earlier(path: Path, identity: str) -> StageInfo | None:
    try:
        info = Stage.open(path).info
    except StageError:
        return None
    return info if info.identity == identity else None


def relative_to(path: Path, stage: Path) -> str:
    """Return ``path`` as seen from the stage folder, with ``/``; both may be anywhere."""
    try:
        return Path(os.path.relpath(path.resolve(), stage.resolve())).as_posix()
    except ValueError:  # two drives: there is no relative path
        return path.resolve().as_posix()


def _portable(value: Any, stage: Path) -> Any:
    if isinstance(value, Path):
        return relative_to(value, stage)
    if isinstance(value, list | tuple):
        return [_portable(item, stage) for item in value]
    return value


def masks_identity(masks: Path) -> str:
    """Return the digest of masks, a stage or a folder: what their files hold, how they are flagged, not where."""
    from pixelsem.sources import file_digest, fingerprint, open_images

    if not (masks / STAGE_FILE).is_file():
        return fingerprint(open_images(masks).items)
    stage = Stage.open(masks)
    return digest({r.id: [file_digest(stage.resolve(r.mask)), *_meaning(r)] for r in stage.segment_records()})


def _meaning(record: SegmentRecord) -> list[object]:
    """Return what decides beside a mask's values which pixels are its foreground, and whether it is attacked."""
    cut = [record.threshold] if record.threshold != 0.5 else []
    return [record.kind, record.flags, *cut]


def versions(*modules: str) -> dict[str, str]:
    """Return the versions of pixelsem, Python and some imported modules, as noted in ``stage.yaml``."""
    found = {"pixelsem": __version__, "python": platform.python_version()}
    names = {"cv2": "opencv"}
    return found | {names.get(name, name): str(import_module(name).__version__) for name in modules}


def close_output(stage: Stage, counts: dict[str, int], started: float) -> None:
    """Note the run's counts and its wall time in ``stage.yaml``; ``started`` is of ``time.monotonic()``.

    The time of earlier, interrupted runs of the same stage is added.
    """
    taken = time.monotonic() - started + (stage.info.wall_time or 0.0)
    stage.save(counts=counts, wall_time=round(taken, 3))


def list_some(console: Console, title: str, lines: Mapping[str, str]) -> None:
    """Print ``name: reason`` for the first few of ``lines`` under a title, then how many more there are."""
    if not lines:
        return
    console.note(f"{title}:")
    for name, text in list(lines.items())[:NAMES_SHOWN]:
        console.note(f"  {name}: {text}")
    if len(lines) > NAMES_SHOWN:
        console.note(f"  … and {len(lines) - NAMES_SHOWN} more")


def exit_with(console: Console, failures: Mapping[str, str]) -> None:
    """Print one line per failed input and leave with exit code 1; return where there are none.

    The lines name the file themselves (see :class:`pixelsem.errors.InputError`).
    """
    for problem in failures.values():
        console.problem(problem)
    if failures:
        raise typer.Exit(EXIT_SOME_FAILED)
