"""A contact sheet: many images with their masks, names, coverage and flags on one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pixelsem.images import text_pixels
from pixelsem.report.overlays import Pixels

_PAPER, _INK, _QUIET, _FLAGGED, _FAINT = 255, (26, 26, 26), (95, 95, 95), (193, 18, 31), 236

_GAP, _LINE = 14, 16


@dataclass(frozen=True)
class Tile:
    """One picture (uint8 [H, W, 3]) with its name, a line about it, and whether that is a warning."""

    pixels: Pixels = field(repr=False)
    name: str
    note: str
    flagged: bool = False


def draw_sheet(tiles: Sequence[Tile], *, columns: int | None = None, side: int = 192) -> Pixels:
    """Draw the tiles row by row on white paper; uint8 [H, W, 3].

    A picture is at most ``side`` pixels, in the middle of its cell. Without ``columns`` the sheet is about as
    wide as it is high. Raises :class:`ValueError` without tiles, or for a picture that does not fit.
    """
    if not tiles or any(max(tile.pixels.shape[:2]) > side for tile in tiles):
        raise ValueError("no tiles to draw, or one larger than its cell")
    cell_height = side + 2 * _LINE + 6
    columns = columns or max(1, round(math.sqrt(len(tiles) * (cell_height + _GAP) / (side + _GAP))))
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height, width = rows * (cell_height + _GAP) + _GAP, columns * (side + _GAP) + _GAP
    sheet = np.full((height, width, 3), _PAPER, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = _GAP + row * (cell_height + _GAP), _GAP + column * (side + _GAP)
        _draw_tile(sheet[top : top + cell_height, left : left + side], tile, side)
    return sheet


def _draw_tile(cell: NDArray[np.uint8], tile: Tile, side: int) -> None:
    """Draw one tile into its part of the sheet."""
    height, width = tile.pixels.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    cell[:side] = _FAINT
    cell[top : top + height, left : left + width] = tile.pixels
    if tile.flagged:
        for edge in (cell[:3, :], cell[side - 3 : side, :], cell[:side, :3], cell[:side, -3:]):
            edge[:] = _FLAGGED
    _write(cell[side + 4 : side + 4 + _LINE], tile.name, _INK)
    _write(cell[side + 4 + _LINE : side + 4 + 2 * _LINE], tile.note, _FLAGGED if tile.flagged else _QUIET)


def _write(line: NDArray[np.uint8], text: str, colour: tuple[int, int, int]) -> None:
    """Write one line of text; what does not fit is left out of its middle."""
    ink = _fitting(text, line.shape[1])
    share = ink[:, :, None] / 255
    place = line[:, : ink.shape[1]]
    place[:] = np.rint((1 - share) * place + share * np.array(colour)).astype(np.uint8)


def _fitting(text: str, width: int) -> NDArray[np.uint8]:
    text = "".join(character if character.isprintable() else "�" for character in text)
    kept = len(text)
    ink = text_pixels(text, _LINE)
    while ink.shape[1] > width and kept > 2:
        kept = max(2, min(kept - 1, int(kept * width / ink.shape[1])))
        tail = kept // 2  # a file's name tells more than its folder
        ink = text_pixels(f"{text[: kept - tail]}…{text[-tail:]}", _LINE)
    return ink[:, :width]
