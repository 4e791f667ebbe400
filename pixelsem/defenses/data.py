"""Labelled images for training and for measuring accuracy, held in memory as 8-bit tensors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixelsem.errors import PixelsemError
from pixelsem.images import list_images, read_image

_LIMIT = 32 << 30  # bytes of 8-bit pixels; more than this does not belong in memory


def find_split(root: Path, split: str) -> Path | None:
    """Return ``root/split`` where it exists (``val`` and ``validation`` stand for ``test``), else None."""
    names = ("test", "val", "validation") if split == "test" else (split,)
    return next((root / name for name in names if (root / name).is_dir()), None)


def load_image_folder(root: Path, class_names: tuple[str, ...] | None = None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read ``root/CLASS/…`` into (uint8 [N, 3, H, W], int64 [N], class names).

    ``class_names`` fixes the order of the classes; by default it is alphabetical. All images must share
    one size. Raises :class:`PixelsemError` for an empty or mixed folder, an unknown class or an
    unreadable image.
    """
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = class_names or tuple(folders)
    index = {name: number for number, name in enumerate(names)}
    files = list_images(root)
    if not files:
        raise PixelsemError(f"{root}: no images; expected sub-folders named after the classes")
    unknown = next((f for f in files if f.relative_to(root).parts[0] not in index), None)
    if unknown is not None:
        raise PixelsemError(f"{unknown}: its top folder is none of the classes {', '.join(names)}")
    used = {f.relative_to(root).parts[0] for f in files}
    empty = next((name for name in folders if name not in used), None)
    if empty is not None:
        raise PixelsemError(f"{root / empty}: a class without images; fill it or remove it")
    first = read_image(files[0])
    if len(files) * first.nbytes > _LIMIT:
        raise PixelsemError(f"{root}: {len(files)} images of {first.shape[1]}×{first.shape[0]} do not fit in memory")
    pixels = np.empty((len(files), *first.shape), np.uint8)

    def load(number: int) -> None:
        image = read_image(files[number])
        if image.shape != first.shape:
            sizes = f"is {image.shape[1]}×{image.shape[0]}, {files[0]} {first.shape[1]}×{first.shape[0]}"
            raise PixelsemError(f"{files[number]}: {sizes}; all must have one size")
        pixels[number] = image

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(load, range(len(files))):
            pass
    labels = torch.tensor([index[f.relative_to(root).parts[0]] for f in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, names


def load_split(root: Path, split: str, class_names: tuple[str, ...] | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read the ``train`` or ``test`` split of an ImageFolder tree or of torchvision's CIFAR-10 folder.

    Returns (uint8 [N, 3, H, W], int64 [N], class names); raises :class:`PixelsemError` where neither is there.
    """
    if not root.is_dir():
        raise PixelsemError(f"{root}: no such folder; give --data a folder with train/CLASS/… and test/CLASS/…")
    if (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10

        try:
            data = CIFAR10(str(root), train=split == "train")
        except RuntimeError as error:  # torchvision checks the md5 of every file before it reads one
            raise PixelsemError(f"{root}: torchvision finds its CIFAR-10 missing or damaged: {error}") from error
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.tensor(data.targets), tuple(data.classes)
    folder = find_split(root, split)
    if folder is None:
        raise PixelsemError(f"{root}: has no folder {split!r}; expected {split}/CLASS/… (ImageFolder)")
    return load_image_folder(folder, class_names)


def list_split(root: Path, split: str) -> list[str]:
    """Return the paths below ``root`` of the images that :func:`load_split` reads, in its order.

    Raises :class:`PixelsemError` where the images are not in files of their own.
    """
    folder = None if (root / "cifar-10-batches-py").is_dir() else find_split(root, split)
    if folder is None:
        raise PixelsemError(
            f"{root}: its images have no names that masks could have; give {split}/CLASS/… (ImageFolder)"
        )
    return [file.relative_to(root).as_posix() for file in list_images(folder)]
