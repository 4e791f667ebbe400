"""The data sets that torchvision knows by name, read through its own classes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.defenses.data import Pictures
from pixelsem.errors import InputError, PixelsemError
from pixelsem.files import one_line
from pixelsem.images import read_image

PREFIX = "torchvision:"


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of images with one label each, of which some are meant for training and others for testing.

    ``kind`` is torchvision's class, ``train`` and ``test`` say which split to it. ``downloads`` tells whether it can
    fetch the files. ``classes`` is their number where torchvision does not name them.
    """

    kind: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    downloads: bool = True
    classes: int | None = None


def _flagged(kind: str, **more: Any) -> TorchvisionSet:
    return TorchvisionSet(kind, {"train": True}, {"train": False}, **more)


def _split(kind: str, train: str = "train", test: str = "test", **more: Any) -> TorchvisionSet:
    return TorchvisionSet(kind, {"split": train}, {"split": test}, **more)


_SETS = (
    *map(_flagged, ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST")),
    _flagged("USPS", classes=10),
    *map(_split, ("Country211", "DTD", "Flowers102", "Food101", "RenderedSST2")),
    _split("FGVCAircraft", "trainval"),
    _split("GTSRB", classes=43),
    _split("ImageNet", test="val", downloads=False),
    _split("Imagenette", test="val"),
    _split("OxfordIIITPet", "trainval"),
    _split("Places365", "train-standard", "val"),
    _split("StanfordCars", downloads=False),
    _split("STL10", classes=10),  # names them only where a file with the names is
    _split("SVHN", classes=10),
)

#: By the name that follows ``torchvision:``.
SETS: Mapping[str, TorchvisionSet] = {each.kind.lower(): each for each in _SETS}


class TorchvisionPictures(Pictures):
    """One split of a torchvision data set."""

    def __init__(self, dataset: Any, where: str, known: TorchvisionSet) -> None:
        names = getattr(dataset, "classes", None) or range(known.classes or 0)
        # ImageNet's classes are tuples of synonyms.
        super().__init__(where, tuple(str(n[0] if isinstance(n, tuple) else n) for n in names))
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Return an image and its label; see :meth:`Pictures.read`."""
        try:
            image, label = self._dataset[index]
            # With a loader of ours it is pixels already, else a PIL image.
            return image if isinstance(image, np.ndarray) else np.array(image.convert("RGB")), int(label)
        except PixelsemError:
            raise
        except Exception as error:  # decoders raise almost anything
            raise InputError(f"{self.where}: image {index} cannot be read ({one_line(error)})") from error

    def entries(self) -> Iterator[str]:
        """Yield the data set's name and length: torchvision checks what most are made of before it reads them."""
        yield f"{type(self._dataset).__name__}\0{len(self)}"

    def image_size(self, index: int) -> tuple[int, int]:
        """Return an image's (height, width); see :meth:`Pictures.image_size`."""
        pixels = self._pixels()
        return super().image_size(index) if pixels is None else (pixels.shape[2], pixels.shape[3])

    def load(self, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        """Return all images and labels where they are for memory; see :meth:`Pictures.load`."""
        pixels = self._pixels()
        labels = getattr(self._dataset, "targets", getattr(self._dataset, "labels", None))
        if pixels is None or labels is None:
            return super().load(size)
        if pixels.shape[2:] != size:
            return None
        return torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(np.asarray(labels, np.int64))

    def _pixels(self) -> NDArray[np.uint8] | None:
        """Return all images as torchvision holds them, uint8 [N, 3, H, W]; None where they are in files."""
        pixels = getattr(self._dataset, "data", None)
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 4:
            return None
        return pixels.transpose(0, 3, 1, 2) if pixels.shape[3] == 3 else pixels


def open_torchvision(name: str, root: Path, download: bool) -> tuple[Pictures, Pictures]:
    """Open the images to train and to test on of the data set ``name`` (a key of :data:`SETS`) below ``root``.

    With ``download`` torchvision fetches it where it is not there. Raises :class:`PixelsemError` for a name that is
    none, for files that are missing or damaged, and where ``download`` is not possible.
    """
    known = SETS.get(name.lower())
    if known is None:
        close = difflib.get_close_matches(name.lower(), SETS, 1)
        raise PixelsemError(
            f"{PREFIX}{name}: no such data set"
            + (f"; did you mean {PREFIX}{close[0]}?" if close else f"; there are {', '.join(SETS)}")
        )
    if download and not known.downloads:
        raise PixelsemError(f"{PREFIX}{name}: torchvision cannot download it; put its files in a --data-root yourself")
    where = f"{PREFIX}{name.lower()}"
    train, test = (_open(known, where, root, split, download) for split in (known.train, known.test))
    return TorchvisionPictures(train, where, known), TorchvisionPictures(test, where, known)


def _open(known: TorchvisionSet, where: str, root: Path, split: Mapping[str, Any], download: bool) -> Any:
    """Make torchvision's object for a split."""
    from torchvision import datasets

    kind = getattr(datasets, known.kind)
    takes = inspect.signature(kind).parameters
    options: dict[str, Any] = dict(split)
    if "loader" in takes or known.kind == "ImageNet":  # which hands its keywords on to ImageFolder
        options["loader"] = read_image
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
            options["download"] = True
        return kind(str(root), **options)
    except Exception as error:  # whatever is wrong with files that it may not even look at before
        raise PixelsemError(f"{where}: {_refusal(known, root, download, one_line(error))}") from error


def _refusal(known: TorchvisionSet, root: Path, download: bool, said: str) -> str:
    said = said.replace(" You can use download=True to download it", "").rstrip(".")
    if download:
        return f"could not be downloaded to {root} ({said})"
    advice = "give its --data-root" + (", or --download" if known.downloads else "; torchvision cannot download it")
    return f"torchvision finds it missing or damaged in {root} ({said}); {advice}"
