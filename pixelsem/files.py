"""Files that are written whole or not at all, paths that stay inside their folder, errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pixelsem.errors import OutputError

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; on leaving, flush it to the disk and rename it into place.

    Folders are made where needed. Raises :class:`OutputError` where the folder cannot be written or the
    disk is full. Then, and after any other error in the block, ``path`` is as it was and no temporary
    file is left.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {reason(error)}; what is done stays") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def temporary_beside(path: Path) -> Path:
    """Return a new name in the folder of ``path`` that no reader takes.

    One made from the file's own name could become too long for the file system.
    """
    return path.with_name(f".{os.urandom(8).hex()}.tmp")


def is_temporary(name: str) -> bool:
    """Tell the names that :func:`temporary_beside` makes."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path, *, below: bool = True) -> None:
    """Remove the temporary files that writers which were killed left in ``folder``, and in folders ``below`` it.

    Nobody may be writing there.
    """
    for parent, folders, names in os.walk(folder):
        if not below:
            folders.clear()
        for name in filter(is_temporary, names):
            with suppress(OSError):
                Path(parent, name).unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Where folders cannot be flushed (Windows, some mounts) it is left out."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, atomically. Raises :class:`OutputError`."""
    with write_atomically(path) as file:
        file.write(text.encode())


def path_problem(name: str) -> str | None:
    r"""Say why a relative path may leave its root or mean another one elsewhere; None where it may not.

    It may when it is absolute, has ``..``, NUL or ``\`` (which divides folders on some systems) in it, or is
    no Unicode text.
    """
    if name.startswith("/") or ".." in name.split("/") or (os.name == "nt" and ":" in name):
        return "leaves its folder"
    if "\0" in name or "\\" in name:
        return "has a backslash or NUL in it"
    return "is no Unicode text" if any("\ud800" <= character <= "\udfff" for character in name) else None


def reason(error: OSError) -> str:
    """Return the operating system's words for ``error`` without the path, which the caller names."""
    return error.strerror or one_line(error)


def one_line(error: BaseException | str) -> str:
    """Return an error's message with its line breaks folded into spaces."""
    return " ".join(str(error).split())


def cache_folder() -> Path:
    """Return the folder for what can be had again: ``PIXELSEM_CACHE``, or pixelsem's in the user's own for that."""
    given = os.environ.get("PIXELSEM_CACHE")
    home = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return Path(given) if given else Path(home or Path.home() / ".cache", "pixelsem")
