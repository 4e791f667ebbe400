"""The pictures of a page with thousands of attacked images: many on one sheet, each only once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pixelsem.images import encode_image, resize_image, resize_mask
from pixelsem.records import AttackRecord, Prediction
from pixelsem.report.overlays import Pixels, shown_size
from pixelsem.report.pages import data_block, data_uri

#: Digits of a confidence, of which the page shows three.
_DIGITS = 6

#: A sheet is so many pictures wide and high at most, and so many pixels: few are unpacked for what is in sight, and a
#: sheet that is being filled takes little memory.
_PICTURES, _PIXELS = 8, 1024

#: Items of a block.
_ITEMS = 256


@dataclass(frozen=True)
class GalleryItem:
    """One search with its pictures.

    ``clean`` and ``attacked`` (None where nothing is known of it) are uint8 [H, W, 3], ``mask`` (None for the
    whole image) is bool [H, W]. ``setup`` and ``stage`` are numbers in the page's lists. ``links`` are the
    addresses of the files ``clean``, ``adversarial`` and ``mask`` as seen from the page; they are used for
    images that the page holds only in small.
    """

    record: AttackRecord
    setup: int
    stage: int
    clean: Pixels = field(repr=False)
    attacked: Pixels | None = field(repr=False)
    mask: NDArray[np.bool_] | None = field(repr=False)
    links: Mapping[str, str]


class Gallery:
    """Turns items into the data of a page: :meth:`add` each, then :meth:`finish`.

    Both yield blocks to write, as soon as a sheet is full or there are many items. Images of at most ``whole`` pixels
    a side are in the page as they are, pixel by pixel; larger ones as pictures of ``thumbnail`` pixels.

    :ivar count: how many items were taken.
    :ivar blocks: how many blocks of items there are, ``i0`` and so on.
    """

    def __init__(self, *, whole: int, thumbnail: int) -> None:
        self.count = self.blocks = 0
        self._items: list[dict[str, Any]] = []
        self._whole, self._thumbnail = whole, thumbnail
        self._sheets: dict[tuple[Any, ...], _Sheet] = {}
        self._places: dict[bytes, tuple[int, int]] = {}
        self._number = 0  # of sheets

    def add(self, item: GalleryItem) -> Iterator[bytes]:
        """Take one item."""
        record = item.record
        whole = max(item.clean.shape[:2]) <= self._whole
        size = item.clean.shape[:2] if whole else shown_size(item.clean.shape, self._thumbnail)
        painted = item.attacked is not None and bool((_painted(item.clean, record) == item.attacked).all())
        about = _about(record) | {
            "setup": item.setup, "stage": item.stage, "whole": whole, "painted": painted,
            "distortion": None if item.attacked is None else _distortion(item.clean, item.attacked),
            "links": None if whole else dict(item.links),
        }  # fmt: skip
        pictures = {"clean": item.clean, "attacked": None if painted else item.attacked}
        for name, pixels in pictures.items():
            if pixels is not None and not whole:
                pixels = resize_image(pixels, size, "lanczos")
            about[name] = None if pixels is None else (yield from self._place(pixels, lossless=whole))
        about["mask"] = None
        if item.mask is not None:
            mask = resize_mask(item.mask.astype(np.uint8) * np.uint8(255), size).astype(np.uint8)
            about["mask"] = yield from self._place(mask, lossless=True)
        self.count += 1
        self._items.append(about)
        if len(self._items) == _ITEMS:
            yield self._block()

    def finish(self) -> Iterator[bytes]:
        """Yield what is not full."""
        for sheet in self._sheets.values():
            yield sheet.block()
        self._sheets = {}
        if self._items:
            yield self._block()

    def _block(self) -> bytes:
        """Return the items at hand as a part of the page."""
        block = data_block(f"i{self.blocks}", self._items)
        self._items, self.blocks = [], self.blocks + 1
        return block

    def _place(self, pixels: Pixels, *, lossless: bool) -> Any:
        """Put a picture on a sheet of its kind, unless it is on one; return [sheet, place]."""
        key = hashlib.sha256(repr((pixels.shape, lossless)).encode() + pixels.tobytes()).digest()
        if key not in self._places:
            kind = (pixels.shape, lossless)
            if kind not in self._sheets:
                self._sheets[kind] = _Sheet(self._number, lossless)
                self._number += 1
            sheet = self._sheets[kind]
            self._places[key] = (sheet.number, sheet.put(pixels))
            if sheet.full:
                yield self._sheets.pop(kind).block()
        return list(self._places[key])


class _Sheet:
    """Pictures of one size side by side, row by row."""

    def __init__(self, number: int, lossless: bool) -> None:
        self.number, self._lossless = number, lossless
        self._tiles: list[Pixels] = []

    def put(self, pixels: Pixels) -> int:
        self._tiles.append(pixels)
        return len(self._tiles) - 1

    @property
    def _across(self) -> int:
        return _fitting(self._tiles[0].shape[1])

    @property
    def full(self) -> bool:
        return len(self._tiles) == self._across * _fitting(self._tiles[0].shape[0])

    def block(self) -> bytes:
        """Return the sheet as a part of the page."""
        height, width = self._tiles[0].shape[:2]
        columns = min(len(self._tiles), self._across)
        rows = -(-len(self._tiles) // columns)
        blank = [np.zeros_like(self._tiles[0])] * (rows * columns - len(self._tiles))
        grid = np.stack(self._tiles + blank).reshape(rows, columns, *self._tiles[0].shape)
        picture = grid.swapaxes(1, 2).reshape(rows * height, columns * width, *self._tiles[0].shape[2:])
        kind: Literal["png", "webp"] = "png" if picture.ndim == 2 else "webp"
        source = data_uri(encode_image(picture, kind, lossless=self._lossless), kind)
        return data_block(f"s{self.number}", {"width": width, "height": height, "columns": columns, "source": source})


def _fitting(side: int) -> int:
    """Return how many pictures with so many pixels a side are side by side."""
    return max(1, min(_PICTURES, _PIXELS // int(side)))


def _painted(clean: Pixels, record: AttackRecord) -> Pixels:
    """Return the clean image with the changes that the record lists."""
    image = clean.copy()
    for change in record.pixels:
        image[change.y, change.x] = change.to
    return image


def _about(record: AttackRecord) -> dict[str, Any]:
    """Return what a record says, as the page reads it."""
    return {
        "id": record.id, "region": record.region, "label": record.label, "source": record.label_source,
        "target": record.target, "repeat": record.repeat, "outcome": record.outcome, "success": record.success,
        "queries": record.queries, "candidates": record.candidates, "generations": record.generations,
        "area": record.region_pixels / (record.width * record.height), "width": record.width, "height": record.height,
        "before": _answer(record.before),
        "after": None if record.after is None else _answer(record.after) | {"of": _short(record.after.of_before_top5)},
        "pixels": [[change.x, change.y, *change.from_, *change.to] for change in record.pixels],
    }  # fmt: skip


def _answer(prediction: Prediction) -> dict[str, Any]:
    return {
        "class": prediction.class_, "confidence": round(prediction.confidence, _DIGITS), "top5": _short(prediction.top5)
    }  # fmt: skip


def _short(classes: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(name, round(confidence, _DIGITS), *rest) for name, confidence, *rest in classes]


def _distortion(clean: Pixels, attacked: Pixels) -> dict[str, float]:
    """Return changed pixels, and L2 and L∞ over all channel values in units of 0 to 255."""
    difference = attacked.astype(np.int32) - clean
    return {
        "pixels": int((difference != 0).any(axis=2).sum()),
        "l2": round(float(np.sqrt((difference**2).sum())), 2),
        "most": int(np.abs(difference).max()),
    }
