"""Files that are fetched at their first use: kept in the cache, and only where their checksum is right."""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from pixelsem.errors import ModelError
from pixelsem.files import cache_folder, temporary_beside
from pixelsem.models.checkpoints import first_line


@dataclass(frozen=True)
class Download:
    """A file by its address and its ``checksum``, ``md5:…`` or ``sha256:…`` in hex digits."""

    url: str
    checksum: str

    @property
    def path(self) -> Path:
        """Where it is kept, be it there or not."""
        return cache_folder() / "weights" / self.url.rpartition("/")[2]


def fetch(download: Download, name: str, advice: str) -> Path:
    """Return the file of ``download``, fetched first where it is not in the cache.

    Progress is shown on a terminal. The file appears whole and checked or not at all. Raises
    :class:`ModelError`, which calls it ``name`` and ends with ``advice``, where it cannot be had.
    """
    path = download.path
    if path.is_file():
        return path
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(download.url, str(temporary), progress=sys.stderr.isatty())
        if not _is_right(temporary, download.checksum):
            raise ModelError(f"{name}: {download.url} came damaged or is another file; try again, or {advice}")
        temporary.replace(path)
    except (OSError, HTTPException) as error:
        raise ModelError(f"{name}: {download.url} could not be fetched ({first_line(error)}); {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def _is_right(path: Path, checksum: str) -> bool:
    algorithm, _, wanted = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return found.hexdigest() == wanted
