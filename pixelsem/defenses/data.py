"""Labelled images on disk, for training and for measuring accuracy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.errors import PixelsemError
from pixelsem.images import image_size, iter_chunks, list_images, read_image

#: Bytes of 8-bit pixels. More than this does not belong in memory, on no machine: what is trained on must not depend
#: on where that is done.
_LIMIT = 4 << 30

#: Images that are read at once before anybody looks at their sizes.
_CHUNK = 4096

#: Classes that a message names before a count stands for the rest.
_NAMES_SHOWN = 10


class Pictures(ABC):
    """Labelled images of any sizes, read one at a time.

    :ivar where: what messages call them.
    :ivar class_names: the names of the classes, by label.
    """

    def __init__(self, where: str, class_names: tuple[str, ...]) -> None:
        self.where = where
        self.class_names = class_names

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Return an image, uint8 [H, W, 3], and its label; raises :class:`InputError` where it cannot be read."""

    @abstractmethod
    def entries(self) -> Iterator[str]:
        """Yield a line for every image, which tells it from others without its being read."""

    def ids(self) -> list[str]:
        """Return every image's path below the data's folder, by which masks are found.

        Raises :class:`PixelsemError` where the images are not in files of their own.
        """
        raise PixelsemError(f"{self.where}: its images have no names that masks could have; give a folder of classes")

    def image_size(self, index: int) -> tuple[int, int]:
        """Return an image's (height, width); raises :class:`InputError` where it cannot be read."""
        height, width, _ = self.read(index)[0].shape
        return height, width

    def are_for_memory(self, size: tuple[int, int]) -> bool:
        """Will :meth:`load` return the images of (height, width) ``size``? Ends with the first that is of another."""
        count = len(self)
        return _fit(count, size) and all(self.image_size(index) == size for index in range(count))

    def load(self, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        """Return all images, uint8 [N, 3, H, W], and labels, int64 [N]; None where they are not for memory.

        That is where one is not of (height, width) ``size``, or all are too many. Raises :class:`InputError` for one
        that cannot be read.
        """
        count = len(self)
        if not _fit(count, size) or self.read(0)[0].shape[:2] != size:
            return None
        # Channels first from the start: a second copy may be as large as memory allows.
        pixels, labels = np.empty((count, 3, *size), np.uint8), np.empty(count, np.int64)

        def place(index: int) -> bool:
            image, labels[index] = self.read(index)
            if fits := image.shape[:2] == size:
                pixels[index] = image.transpose(2, 0, 1)
            return fits

        with ThreadPoolExecutor() as pool:
            for part in iter_chunks(count, _CHUNK):
                if not all(pool.map(place, range(count)[part])):
                    return None
        return torch.from_numpy(pixels), torch.from_numpy(labels)


def _fit(count: int, size: tuple[int, int]) -> bool:
    return count * 3 * size[0] * size[1] <= _LIMIT


class FolderPictures(Pictures):
    """The images of a split in a folder of classes, ``root/CLASS/…``, in the order of their paths."""

    def __init__(self, root: Path, class_names: tuple[str, ...] | None = None) -> None:
        """``class_names`` fixes the order of the classes; by default it is alphabetical.

        Raises :class:`PixelsemError` for a folder without images, an image in no class or in an unknown one, a class
        without images, and a single class.
        """
        self._root = root
        self._files = [path.relative_to(root).as_posix() for path in list_images(root)]
        folders = _folders(root)
        super().__init__(str(root), class_names or folders)
        if not self._files and not any((root / name).is_symlink() for name in folders):
            raise PixelsemError(f"{root}: no images; expected sub-folders named after the classes")
        tops = [name.rpartition("/")[0].partition("/")[0] for name in self._files]
        _check_classes(root, self._files, tops, self.class_names)
        _check_filled(root, folders, set(tops))
        if len(self.class_names) == 1:
            raise PixelsemError(f"{root}: holds one class, {self.class_names[0]}; a classifier needs two or more")
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self._labels = [numbers[top] for top in tops]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Read an image and its label; see :meth:`Pictures.read`."""
        return read_image(self._root / self._files[index]), self._labels[index]

    def image_size(self, index: int) -> tuple[int, int]:
        """Return an image's (height, width), by its header; see :meth:`Pictures.image_size`."""
        return image_size(self._root / self._files[index])

    def entries(self) -> Iterator[str]:
        """Yield every image's path and its file's size: reading all of ImageNet would take longer than many a run."""
        for name in self._files:
            try:
                size = (self._root / name).stat().st_size
            except OSError:  # a broken link, which reading reports
                size = 0
            yield f"{name}\0{size}"

    def ids(self) -> list[str]:
        """Return the images' paths below the folder that holds the splits."""
        return [f"{self._root.name}/{name}" for name in self._files]


def _folders(root: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _check_classes(root: Path, files: Sequence[str], tops: Sequence[str], names: tuple[str, ...]) -> None:
    """Raise :class:`PixelsemError` for one of the ``files`` whose top folder, ``""`` for none, is no class."""
    known = set(names)
    for name, top in zip(files, tops, strict=True):
        if not top:
            raise PixelsemError(f"{root / name}: in no folder of a class; expected {root.name}/CLASS/… (ImageFolder)")
        if top not in known:
            raise PixelsemError(f"{root / name}: its top folder is none of the classes {_shown(names)}")


def _check_filled(root: Path, folders: Sequence[str], used: Set[str]) -> None:
    """Raise :class:`PixelsemError` for a folder that none of the images is in."""
    empty = next((name for name in folders if name not in used), None)
    if empty is None:
        return
    if (root / empty).is_symlink():
        raise PixelsemError(f"{root / empty}: a link to a folder, which is not followed; link its files, or copy it")
    raise PixelsemError(f"{root / empty}: a class without images; fill it or remove it")


def _shown(names: tuple[str, ...]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def find_split(root: Path, split: str) -> Path | None:
    """Return ``root/split`` where it exists (``val`` and ``validation`` stand for ``test``), else None.

    One with folders of classes goes before one without: ILSVRC's ``test`` has images alone, which nobody labelled.
    """
    names = ("test", "val", "validation") if split == "test" else (split,)
    found = [root / name for name in names if (root / name).is_dir()]
    with_classes = [folder for folder in found if any(entry.is_dir() for entry in folder.iterdir())]
    return next(iter(with_classes or found), None)


def open_folders(root: Path) -> tuple[Pictures, Pictures]:
    """Find the images to train and to test on, ``root/train/CLASS/…`` and ``root/test/CLASS/…`` (or ``val/``).

    Raises :class:`PixelsemError` where a split is missing or cannot be used, see :class:`FolderPictures`.
    """
    if not root.is_dir():
        raise PixelsemError(f"{root}: no such folder; give --data a folder with train/CLASS/… and test/CLASS/…")
    found = {split: find_split(root, split) for split in ("train", "test")}
    for split, folder in found.items():
        if folder is None:
            raise PixelsemError(f"{root}: has no folder {split!r}; expected {split}/CLASS/… (ImageFolder)")
    train, test = found["train"], found["test"]
    assert train is not None
    assert test is not None
    pictures = FolderPictures(train)
    return pictures, FolderPictures(test, pictures.class_names)
