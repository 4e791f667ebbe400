"""Masks as regions: finding the mask of an image, and what is foreground in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelsem.errors import PixelsemError
from pixelsem.images import list_images, read_mask
from pixelsem.records import SegmentRecord
from pixelsem.stage import STAGE_FILE, Stage

Kind = Literal["binary", "soft", "labels"]
Region = NDArray[np.bool_]

#: Foregrounds with less or more of the image than this are flagged.
LEAST, MOST = 0.02, 0.98

_SOFT_TOP = 65535


@dataclass(frozen=True)
class MaskEntry:
    """One mask: its file, its ``values`` (integers [H, W], full size), what they mean, and its flags.

    ``binary`` values are 0/255 or 0/1, ``soft`` ones span 0 to 65535, ``labels`` are numbers with 0 for
    the background. ``threshold`` is the share of 65535 from which a pixel of a ``soft`` mask is foreground.
    """

    path: Path
    values: NDArray[np.integer] = field(repr=False, compare=False)
    kind: Kind
    flags: tuple[str, ...] = ()
    threshold: float = 0.5

    def region(self, name: str) -> Region:
        """Return where the region ``name`` is; see :func:`region_of`."""
        return region_of(self.values, self.kind, name, self.threshold)


class MaskSource(ABC):
    """Masks by image id; made by :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def open(path: Path) -> MaskSource:
        """Open a segmentation stage or a mask folder.

        A folder holds masks under the same relative paths as the images, with any image suffix
        (``cat/1.png`` for ``cat/1.jpg``), or ``.png`` behind the whole name (``cat/1.jpg.png``, which wins).
        Raises :class:`PixelsemError` where there is none of either.
        """
        if (path / STAGE_FILE).is_file():
            return _StageMasks(path)
        if not path.is_dir():
            raise PixelsemError(f"{path}: no such mask folder or stage")
        return FolderMasks(path)

    @abstractmethod
    def __contains__(self, image_id: object) -> bool:
        """Has the image ``image_id`` a mask? None is read."""

    @abstractmethod
    def find(self, image_id: str) -> MaskEntry | None:
        """Read the mask of the image ``image_id``, or return None where it has none.

        Raises :class:`pixelsem.errors.InputError` where the mask's file cannot be read.
        """


class _StageMasks(MaskSource):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stage = Stage.open(path)
        self._records: dict[str, SegmentRecord] = {record.id: record for record in self._stage.segment_records()}

    def __reduce__(self) -> tuple[type[_StageMasks], tuple[Path]]:
        """Let another process open the stage for itself: an open one cannot be sent there."""
        return _StageMasks, (self.path,)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._records

    def find(self, image_id: str) -> MaskEntry | None:
        record = self._records.get(image_id)
        if record is None:
            return None
        path = self._stage.resolve(record.mask)
        return MaskEntry(path, read_mask(path), record.kind, tuple(record.flags), record.threshold)


class FolderMasks(MaskSource):
    """Masks of a folder without a stage, whose kinds are inferred by :func:`infer`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._paths: dict[PurePosixPath, Path] = {}
        for file in list_images(path):
            stem = PurePosixPath(file.relative_to(path).with_suffix("").as_posix())
            # Of two files with one stem a PNG is the mask: it is the one without losses.
            if stem not in self._paths or file.suffix.lower() == ".png":
                self._paths[stem] = file
        if not self._paths:
            raise PixelsemError(f"{path}: holds no masks")

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self.locate(image_id) is not None

    def locate(self, image_id: str) -> Path | None:
        """Return the file that belongs to ``image_id``, or None."""
        name = PurePosixPath(image_id)
        return self._paths.get(name) or self._paths.get(name.with_suffix(""))

    def find(self, image_id: str) -> MaskEntry | None:
        """Read the mask of the image ``image_id``; see :meth:`MaskSource.find`."""
        path = self.locate(image_id)
        if path is None:
            return None
        values, kind = infer(read_mask(path))
        return MaskEntry(path, values, kind)


def infer(values: NDArray[np.integer]) -> tuple[NDArray[np.integer], Kind]:
    """Say what the values of a mask file mean, and bring them to that kind's range.

    The first rule that fits:

    1. a value of 32768 or more: ``soft``, 16 bits (below that, none would be foreground);
    2. a value over 255: ``labels``;
    3. only 0 and 1, or only 0 and 255: ``binary``;
    4. no value in 128 … 254: ``labels`` (small numbers; 255 is often "void");
    5. nine tenths within 16 of 0 or of 255, some of them of 255: ``binary`` with soft edges or JPEG noise,
       cut at half of 255;
    6. more than 64 different values: ``soft``, 8 bits, scaled to 16;
    7. else ``labels``.
    """
    counts = np.bincount(values.ravel(), minlength=256) if values.max(initial=0) <= 255 else None
    if counts is None:
        return values, "soft" if values.max() > _SOFT_TOP // 2 else "labels"
    present = set(np.flatnonzero(counts).tolist())
    if present <= {0, 1} or present <= {0, 255}:
        return values, "binary"
    if not counts[128:255].any():
        return values, "labels"
    low, high = counts[:17].sum(), counts[239:].sum()
    if high and low + high >= 0.9 * values.size:
        return np.where(values > 127, 255, 0).astype(np.uint8), "binary"
    if len(present) > 64:
        return values * 257, "soft"
    return values, "labels"


def region_of(mask: NDArray[np.integer], kind: Kind, region: str, threshold: float = 0.5) -> Region:
    """Return where ``region`` is, bool [H, W], in a mask of integers [H, W].

    ``original`` is everywhere. ``foreground`` is a value over half of the highest possible in a ``binary``
    mask (0/1 or 0/255), at least ``threshold`` × 65535 in a ``soft`` one, and any label but 0 in ``labels``;
    ``background`` is the rest. ``label:N`` is where the value is N. Raises :class:`PixelsemError` for any
    other region.
    """
    if region == "original":
        return np.ones(mask.shape, bool)
    if region.startswith("label:") and region[6:].isdecimal():
        return np.asarray(mask == int(region[6:]))
    if region not in ("foreground", "background"):
        raise PixelsemError(f"unknown region {region!r}; there are original, foreground, background and label:N")
    foreground = _foreground(mask, kind, threshold)
    return foreground if region == "foreground" else ~foreground


def _foreground(mask: NDArray[np.integer], kind: Kind, threshold: float) -> Region:
    if kind == "labels":
        return np.asarray(mask != 0)
    if kind == "soft":
        return np.asarray(mask >= threshold * _SOFT_TOP)
    return np.asarray(mask > (127 if mask.max(initial=0) > 1 else 0))


def grow(region: Region, pixels: int) -> Region:
    """Move the region's border outwards by ``pixels``, or inwards where negative; bool [H, W].

    Exact: a pixel belongs to the grown region where one of the region lies within that Euclidean distance of
    it (centre to centre). Shrinking grows the complement. The image's edge is no border: a region does not
    shrink away from it.
    """
    if pixels < 0:
        return ~grow(~region, -pixels)
    if pixels == 0 or not region.any():
        return region.copy()
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~region) <= pixels)


def match_area(foreground: Region, background: Region, rng: np.random.Generator) -> tuple[Region, Region]:
    """Reduce the larger of two regions, bool [H, W], to as many pixels as the smaller one has.

    The pixels kept are drawn uniformly without replacement, so that both offer an attack equally many places.
    """
    wanted = min(int(foreground.sum()), int(background.sum()))
    return _thin(foreground, wanted, rng), _thin(background, wanted, rng)


def _thin(region: Region, wanted: int, rng: np.random.Generator) -> Region:
    places = np.flatnonzero(region)
    if len(places) == wanted:
        return region.copy()
    kept = np.zeros(region.size, bool)
    kept[rng.choice(places, wanted, replace=False)] = True
    return kept.reshape(region.shape)


def coverage_flags(coverage: float) -> list[str]:
    """Return why a foreground of this share of the image is degenerate; empty where it is not."""
    if coverage < LEAST:
        return [f"degenerate-foreground: {100 * coverage:.2f} % of the image, under {100 * LEAST:g} %"]
    if coverage > MOST:
        return [f"degenerate-foreground: {100 * coverage:.2f} % of the image, over {100 * MOST:g} %"]
    return []
