"""Steganalysis features of colour images: planes, how they are combined, and a memory on the disk.

Neither dong2020 (§4.2) nor the articles on SPAM and SRM say what to do with colour; see :class:`Extractor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixelsem.defenses.rich_models import RICH_SIZES, SMALLEST_RICH_SIDE, rich_models, sealwatch_version
from pixelsem.defenses.settings_detection import Channels, FeatureKind
from pixelsem.defenses.spam import SMALLEST_SIDE, SPAM_SIZE, spam
from pixelsem.errors import InputError, OutputError
from pixelsem.files import cache_folder, write_atomically
from pixelsem.images import iter_chunks, pixel_digest
from pixelsem.metrics.texture import to_grey

Rows = NDArray[np.floating[Any]]
Image = NDArray[np.uint8]

#: Planes that go through :func:`spam` at once: a batch at 224×224 takes some 150 MB.
_BATCH = 24

_SPAM_VERSION = "spam-1"


@dataclass(frozen=True)
class FeatureType:
    """What is measured: the features' kind and how the channels are combined.

    ``separate``: those of red, green and blue one after another (three times as many numbers); ``mean``: their
    mean; ``luma``: those of the luma alone (ITU-R 601, rounded to 8 bits).
    """

    kind: FeatureKind
    channels: Channels

    @property
    def per_plane(self) -> int:
        """How many numbers a plane has."""
        return SPAM_SIZE if self.kind == "spam" else RICH_SIZES[self.kind]

    @property
    def size(self) -> int:
        """How many numbers an image has."""
        return self.per_plane * (3 if self.channels == "separate" else 1)

    @property
    def smallest_side(self) -> int:
        """How many rows and columns a plane needs at least."""
        return SMALLEST_SIDE if self.kind == "spam" else SMALLEST_RICH_SIDE

    @property
    def version(self) -> str:
        """What tells features apart that are computed in another way; raises :class:`PixelsemError` as SRM needs."""
        return _SPAM_VERSION if self.kind == "spam" else f"{self.kind}-by-name-sealwatch-{sealwatch_version()}"


@dataclass(frozen=True)
class Extractor:
    """Measures images: features of a type, computed on ``device`` (SPAM) or by ``workers`` processes (SRM).

    What was computed is kept in ``folder`` by the digest of an image's pixels and the features' version, so that
    the clean images of several attacks are measured once.
    """

    type: FeatureType
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 1
    folder: Path = field(default_factory=lambda: cache_folder() / "features")

    def check(self, image: Image, name: object) -> None:
        """Raise :class:`InputError`, naming the image, where it is too small for the features."""
        least = self.type.smallest_side
        if min(image.shape[:2]) < least:
            height, width = image.shape[:2]
            raise InputError(
                f"{name}: {width}×{height} is too small for {self.type.kind}; {least}×{least} pixels are needed"
            )

    def measure(self, images: Sequence[Image]) -> Rows:
        """Return the features of uint8 [H, W, 3] images of any sizes, float [N, D], float64 for SPAM, else float32.

        An image's features do not depend on the others'. Raises :class:`InputError` as :meth:`check` does.
        """
        for number, image in enumerate(images):
            self.check(image, f"image {number}")
        files = [self._file(image) for image in images]
        rows = [self._recall(file) for file in files]
        missing = [number for number, row in enumerate(rows) if row is None]
        for number, planes in zip(missing, self._compute([images[number] for number in missing]), strict=True):
            rows[number] = planes
            self._keep(files[number], planes)
        return np.stack([self._combine(row) for row in rows if row is not None])

    def _planes(self, image: Image) -> Image:
        """Return what is measured of an image, uint8 [P, H, W]."""
        return to_grey(image)[None] if self.type.channels == "luma" else np.moveaxis(image, 2, 0)

    def _combine(self, planes: Rows) -> Rows:
        return planes.ravel() if self.type.channels == "separate" else planes.mean(0)

    def _compute(self, images: Sequence[Image]) -> Iterator[Rows]:
        """Yield every image's features by plane, [P, D]."""
        if self.type.kind == "spam":
            yield from self._spam(images)
            return
        flat = [plane for image in images for plane in self._planes(image)]
        each = rich_models(flat, self.type.kind, self.workers)
        for image in images:
            yield np.stack([next(each) for _ in self._planes(image)])

    def _spam(self, images: Sequence[Image]) -> Iterator[Rows]:
        found: dict[int, Rows] = {}
        for numbers in _by_shape(images):
            for part in iter_chunks(len(numbers), _BATCH // 3):
                stack = np.stack([self._planes(images[number]) for number in numbers[part]])
                planes = torch.from_numpy(stack).to(self.device)
                rows = spam(planes.flatten(0, 1)).reshape(*planes.shape[:2], -1).cpu().numpy()
                found |= dict(zip(numbers[part], rows, strict=True))
        yield from (found[number] for number in range(len(images)))

    def _file(self, image: Image) -> Path:
        name = pixel_digest(image)
        planes = "luma" if self.type.channels == "luma" else "rgb"
        return self.folder / f"{self.type.version}-{planes}" / name[:2] / name

    @property
    def _dtype(self) -> np.dtype[np.floating[Any]]:
        return np.dtype("<f8" if self.type.kind == "spam" else "<f4")

    def _recall(self, file: Path) -> Rows | None:
        """Return what is kept of an image, [P, D]; None where there is nothing, or something else."""
        try:
            data = file.read_bytes()
        except OSError:
            return None
        planes = 1 if self.type.channels == "luma" else 3
        if len(data) != planes * self.type.per_plane * self._dtype.itemsize:
            return None
        values = np.frombuffer(data, self._dtype).reshape(planes, -1)
        return values if np.isfinite(values).all() else None

    def _keep(self, file: Path, planes: Rows) -> None:
        """Keep an image's features; where the cache cannot be written they are computed again next time."""
        try:
            with write_atomically(file) as out:
                out.write(np.ascontiguousarray(planes, self._dtype).tobytes())
        except OutputError:
            return


def _by_shape(images: Sequence[Image]) -> list[list[int]]:
    """Return the numbers of images of one size together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        groups.setdefault(image.shape, []).append(number)
    return list(groups.values())
