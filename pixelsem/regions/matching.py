"""Masks of one image in several places: a stage names it ``cat/1.jpg``, a mask folder holds ``cat/1.png``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pixelsem.images import SUFFIXES, list_images
from pixelsem.regions.masks import MaskEntry, MaskSource
from pixelsem.sources import fingerprint, open_images
from pixelsem.stage import STAGE_FILE, Stage


class NamedMasks:
    """The masks of a stage or folder, under names by which other stages and folders may ask for them."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` as :meth:`pixelsem.regions.masks.MaskSource.open` does, raising what it raises."""
        self.path = path
        self._source = MaskSource.open(path)
        self.is_stage = (path / STAGE_FILE).is_file()
        #: The images that have a mask: a stage's ids; of a folder relative paths without their last suffix.
        self.ids: list[str] = sorted(_stage_ids(path) if self.is_stage else _folder_ids(path))
        uses = Counter(map(_stem, self.ids))
        # A stem that several images share means none of them.
        self._names = {_stem(name): name for name in self.ids if uses[_stem(name)] == 1}
        self._names |= {name: name for name in self.ids}

    def __contains__(self, name: str) -> bool:
        return self.locate(name) is not None

    def find(self, name: str) -> MaskEntry | None:
        """Read the mask of the image ``name``, with or without its suffix; None where it has none.

        Raises :class:`pixelsem.errors.InputError` where the mask's file cannot be read.
        """
        found = self.locate(name)
        return None if found is None else self._source.find(found)

    def identity(self) -> str:
        """Return the digest of what the masks are, wherever they lie."""
        if self.is_stage:
            return Stage.open(self.path).info.identity
        return fingerprint(open_images(self.path).items)

    def locate(self, name: str) -> str | None:
        """Return which of :attr:`ids` the image ``name``, with or without its suffix, is; None where none is."""
        return next((self._names[known] for known in (name, _stem(name)) if known in self._names), None)


def _stem(name: str) -> str:
    """Return a relative path without its suffix, where this is one of an image."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def _stage_ids(path: Path) -> Iterator[str]:
    return (record.id for record in Stage.open(path).segment_records())


def _folder_ids(path: Path) -> set[str]:
    return {_stem(file.relative_to(path).as_posix()) for file in list_images(path)}
