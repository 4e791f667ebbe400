"""Labelled images as training takes them: from memory, or read, decoded and cropped on the fly by workers."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pixelsem.defenses.adversaries import seed_of
from pixelsem.defenses.crops import draw_crop
from pixelsem.defenses.data import Pictures
from pixelsem.defenses.settings import ReadingSettings, TrainSettings
from pixelsem.errors import PixelsemError, WorkerError
from pixelsem.models.checkpoints import first_line
from pixelsem.models.classifier import Preprocessing
from pixelsem.models.inputs import fit_image, fit_mask

#: Images uint8 [n, 3, H, W], labels int64 [n], and where the images may be attacked, bool [n, H, W] (None: everywhere).
Batch = tuple[Tensor, Tensor, Tensor | None]

#: Of an image's number and its (height, width): where it may be attacked, bool [height, width].
RegionOf = Callable[[int, tuple[int, int]], NDArray[np.bool_]]

# More workers than cores are the user's to choose; torch would say so in several lines, for every loader.
warnings.filterwarnings("ignore", message="This DataLoader will create")

#: Images in memory that are turned into bytes at a time.
_PART = 1024

#: No more workers than this by default: they wait for the network before that.
_MOST_WORKERS = 8


class Examples(Protocol):
    """Labelled images at the size that a network takes."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""

    def __len__(self) -> int:
        """How many there are."""

    def training_batches(self, epoch: int, settings: TrainSettings, device: torch.device) -> Iterator[Batch]:
        """Yield every image once, cropped and flipped at random, in a random order, on ``device``.

        The order is drawn from torch's random numbers, which are seeded by (seed, epoch).
        """

    def batches(self, size: int, device: torch.device, chosen: Tensor | None = None) -> Iterator[Batch]:
        """Yield images as they are tested on, ``size`` at a time, on ``device``: all in order, or those ``chosen``."""

    def contents(self) -> Iterator[bytes]:
        """Yield what tells these examples from others, for a digest."""


@dataclass(frozen=True)
class InMemory:
    """Examples in memory: ``images`` uint8 [N, 3, H, W], ``labels`` int64 [N], ``regions`` bool [N, H, W] or None.

    Training crops are as large as the images, from their reflected padding.
    """

    images: Tensor
    labels: Tensor
    regions: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.images.shape[2], self.images.shape[3]

    def __len__(self) -> int:
        return len(self.images)

    def training_batches(self, epoch: int, settings: TrainSettings, device: torch.device) -> Iterator[Batch]:
        """Yield augmented batches, see :class:`Examples`; crops and flips are drawn from torch's numbers too."""
        images, labels, regions = self._on(device)
        for chosen in torch.randperm(len(images), device=device).split(settings.batch):
            own = None if regions is None else regions[chosen]
            made, own = _augmented(images[chosen], own, settings)
            yield made, labels[chosen], own

    def batches(self, size: int, device: torch.device, chosen: Tensor | None = None) -> Iterator[Batch]:
        """Yield images as they are; see :class:`Examples`."""
        part = self if chosen is None else self._taken(chosen)
        for start in range(0, len(part), size):
            yield part._taken(slice(start, start + size))._on(device)

    def contents(self) -> Iterator[bytes]:
        """Yield the images and labels themselves, a few at a time: they may fill half of the memory."""
        for part in self.images.split(_PART):
            yield part.numpy().tobytes()
        yield self.labels.numpy().tobytes()

    def _taken(self, chosen: Tensor | slice) -> InMemory:
        regions = None if self.regions is None else self.regions[chosen]
        return InMemory(self.images[chosen], self.labels[chosen], regions)

    def _on(self, device: torch.device) -> Batch:
        regions = None if self.regions is None else self.regions.to(device)
        return self.images.to(device), self.labels.to(device), regions


def _augmented(images: Tensor, regions: Tensor | None, settings: TrainSettings) -> tuple[Tensor, Tensor | None]:
    """Crop and flip images, and their regions with them."""
    if regions is None:
        return augment(images, settings.crop, settings.flip), None
    both = augment(torch.cat([images, regions[:, None].to(torch.uint8)], 1), settings.crop, settings.flip)
    return both[:, :3], both[:, 3].bool()


def augment(images: Tensor, crop: int, flip: bool) -> Tensor:
    """Crop [N, C, H, W] images at random from their reflected padding and flip half of them, all in one gather."""
    count, _, height, width = images.shape
    device = images.device
    if crop:
        images = F.pad(images.float(), (crop,) * 4, mode="reflect").to(images.dtype)
    top, left = torch.randint(0, 2 * crop + 1, (2, count, 1), device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(count, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


_Region = NDArray[np.bool_] | None
_Example = tuple[NDArray[np.uint8], int, _Region]

#: Of an image's number, pixels and region at full size: both at the network's.
_Make = Callable[[int, NDArray[np.uint8], _Region], tuple[NDArray[np.uint8], _Region]]


@dataclass(frozen=True)
class OnTheFly:
    """Pictures of any size, read batch by batch.

    Training images are random resized crops (:func:`pixelsem.defenses.crops.draw_crop`), flipped or not, drawn by
    (seed, epoch, number of the image) and nothing else; test images go the classifier's own way
    (:func:`pixelsem.models.inputs.fit_image`). ``regions`` says where a picture may be attacked, None: everywhere.
    Neither the number of workers nor what was read before changes a batch.
    """

    pictures: Pictures
    preprocessing: Preprocessing
    reading: ReadingSettings
    regions: RegionOf | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is made of every image."""
        return self.preprocessing.size

    def __len__(self) -> int:
        return len(self.pictures)

    def training_batches(self, epoch: int, settings: TrainSettings, device: torch.device) -> Iterator[Batch]:
        """Yield random crops, see :class:`Examples`. Raises :class:`InputError` for an image that cannot be read."""
        order = torch.randperm(len(self), device=device).cpu().split(settings.batch)
        yield from self._read(partial(self._drawn, settings.seed, epoch, settings.flip), order, device)

    def batches(self, size: int, device: torch.device, chosen: Tensor | None = None) -> Iterator[Batch]:
        """Yield fitted images, see :class:`Examples`. Raises :class:`InputError` for one that cannot be read."""
        order = torch.arange(len(self)) if chosen is None else chosen
        yield from self._read(self._fitted, order.split(size), device)

    def contents(self) -> Iterator[bytes]:
        """Yield a line per image and how they are read."""
        yield f"{self.reading.resize} {self.reading.min_area}\n".encode()
        for entry in self.pictures.entries():
            yield f"{entry}\n".encode()

    def _drawn(
        self, seed: int, epoch: int, flip: bool, index: int, pixels: NDArray[np.uint8], region: _Region
    ) -> tuple[NDArray[np.uint8], _Region]:
        rng = np.random.Generator(np.random.Philox(key=seed_of(seed, epoch, index)))
        crop = draw_crop(rng, (pixels.shape[0], pixels.shape[1]), self.reading.min_area, flip)
        made = crop.image(pixels, self.size, self.preprocessing.interpolation)
        return made, None if region is None else crop.region(region, self.size)

    def _fitted(self, _: int, pixels: NDArray[np.uint8], region: _Region) -> tuple[NDArray[np.uint8], _Region]:
        resize = self.reading.resize
        made = fit_image(pixels, self.preprocessing, resize)
        if region is None:
            return made, None
        return made, fit_mask(region.astype(np.uint8), pixels.shape, self.preprocessing, resize).astype(np.bool_)

    def _read(self, make: _Make, order: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        workers = min(_usual_workers() if self.reading.workers is None else self.reading.workers, len(order))
        loader: DataLoader[Any] = DataLoader(
            _Prepared(self, make), batch_sampler=[chosen.tolist() for chosen in order], collate_fn=_stacked,
            num_workers=workers, worker_init_fn=_settle, pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its seeds are of no use here; torch's own numbers are left alone
        )  # fmt: skip
        try:
            for batch in loader:
                if isinstance(batch, PixelsemError):
                    raise batch
                images, labels, regions = batch
                regions = None if regions is None else regions.to(device)
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True), regions
        except (RuntimeError, OSError) as error:
            if not workers or not _is_of_workers(error):
                raise
            advice = "give fewer --workers (0: none), or more room in /dev/shm"
            raise WorkerError(f"reading {self.pictures.where}: {first_line(error)}; {advice}") from error


#: What torch says of workers that it cannot hear any more, besides that one has ended.
_NO_ROOM = ("shared memory", "Too many open files", "ancdata")


def _is_of_workers(error: RuntimeError | OSError) -> bool:
    """Is an error that workers could not be started, ended, or had no room to hand their batches over?"""
    told = str(error)
    return isinstance(error, OSError) or told.startswith("DataLoader worker") or any(each in told for each in _NO_ROOM)


class _Prepared(Dataset[_Example | PixelsemError]):
    """Reads one example at a time; a problem is returned, not raised, so that it leaves a worker as it is."""

    def __init__(self, examples: OnTheFly, make: _Make) -> None:
        self._examples, self._make = examples, make

    def __getitem__(self, index: int) -> _Example | PixelsemError:
        try:
            pixels, label = self._examples.pictures.read(index)
            region_of = self._examples.regions
            region = None if region_of is None else region_of(index, (pixels.shape[0], pixels.shape[1]))
            made, region = self._make(index, pixels, region)
        except PixelsemError as error:
            return error
        return made, label, region


def _stacked(examples: Sequence[_Example | PixelsemError]) -> Batch | PixelsemError:
    """Make a batch of examples, or return their first problem."""
    good = []
    for example in examples:
        if isinstance(example, PixelsemError):
            return example
        good.append(example)
    images, labels, regions = zip(*good, strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    where = None if regions[0] is None else torch.from_numpy(np.stack(regions))
    return pixels, torch.tensor(labels), where


def _usual_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def _settle(_: int) -> None:
    """Let a new worker end as its parent wants it to: Ctrl-C is the parent's to tell, a signal ends it silently."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
