"""Figures with one row per attacked image: original, regions, attacked, difference.

As in wang2021, Figs. 1–2, dong2020, Fig. 7, and qian2021, Figs. 4–6. Everything is laid out in whole pixels, and
images are enlarged by whole numbers, so that every pixel of an image is a sharp square of one colour. Colours
are told apart by the colour-blind too; what they say is also said by words, weight and lightness.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from numpy.typing import NDArray

from pixelsem.metrics.success import sort_regions
from pixelsem.report.figures import FAINT, INK, QUIET, styles_for

Pixels = NDArray[np.uint8]

#: A power of two, so that inches × dots per inch is the whole number of pixels that was meant.
DPI = 128

_FOOLED = "#C1121F"

_WHERE = {
    "original": "anywhere in the image",
    "foreground": "in the foreground",
    "background": "in the background",
}


@dataclass(frozen=True)
class Attacked:
    """What became of an image: the picture, what is written below it and where pixels changed.

    ``image`` is uint8 [H, W, 3], None where there is no picture. ``pixels`` are the (x, y) to circle: column
    and row, from 0 at the top left. ``fooled`` says whether the attack succeeded. ``note`` is written below the
    difference (or behind the text, where no differences are drawn).
    """

    image: Pixels | None
    text: str
    fooled: bool
    pixels: Sequence[tuple[int, int]] = ()
    note: str = ""


@dataclass(frozen=True)
class PanelRow:
    """One image under attack.

    ``name`` stands at the row's side, ``text`` below the clean image (uint8 [H, W, 3]). ``masks`` (bool
    [H, W], True inside) and ``attacked`` go by region; a region that is the whole image has no mask.
    """

    name: str
    clean: Pixels
    text: str
    attacked: Mapping[str, Attacked]
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_picture(self.name, self.clean)
        size = self.clean.shape[:2]
        for region, mask in self.masks.items():
            if mask.dtype != np.bool_ or mask.shape != size:
                raise ValueError(f"{self.name}: the mask of {region} is {mask.dtype} {list(mask.shape)}, not {size}")
        for region, found in self.attacked.items():
            if found.image is not None:
                _check_picture(self.name, found.image)
                if found.image.shape[:2] != size:
                    raise ValueError(f"{self.name}: attacked {region} has another size than the clean image")
            if any(not (0 <= x < size[1] and 0 <= y < size[0]) for x, y in found.pixels):
                raise ValueError(f"{self.name}: a changed pixel of {region} lies outside the image")


def _check_picture(name: str, pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"{name}: an image is {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]")


def draw_panels(
    rows: Sequence[PanelRow],
    *,
    attacked: str = "attacked",
    difference: bool = True,
    gain: float | None = None,
    size: int = 192,
) -> Figure:
    """Draw the rows below each other; columns: original, regions (where there are masks), attacked, difference.

    Every region that occurs has a column of attacked images, headed ``attacked`` and the region, and with
    ``difference`` one of amplified differences: mid-grey + ``gain`` × (attacked − clean), 8 bits; without a gain
    the largest difference of the figure fills the scale. A panel is ``size`` pixels wide or less, but never
    smaller than its image. Raises :class:`ValueError` without rows.
    """
    if not rows:
        raise ValueError("no rows to draw")
    regions = sort_regions(region for row in rows for region in row.attacked)
    masked = sort_regions(region for row in rows for region in row.masks)
    columns: list[_Column] = [_Original()]
    if masked:
        columns.append(_Regions(region_colours(masked)))
    colours = region_colours(regions)
    columns += [_Attacks(region, attacked, colours[region], notes=not difference) for region in regions]
    if difference:
        scale = gain or _fitting_gain(rows)
        columns += [_Differences(region, scale, colours[region]) for region in regions]
    return _Sheet(rows, columns, size).draw()


def region_colours(regions: Sequence[str]) -> dict[str, str]:
    """Give every region its colour in all figures; the whole image gets a grey."""
    return {region: look.colour for region, look in styles_for(("original", *regions)).items() if region in regions}


def overlay(image: Pixels, masks: Mapping[str, NDArray[np.bool_]], colours: Mapping[str, str]) -> Pixels:
    """Tint the regions of uint8 [H, W, 3] in their colours (``#RRGGBB``) and fade what is in none.

    A background beside a foreground is half faded, so that the two can be told apart in grey.
    """
    grey = image @ np.array([0.299, 0.587, 0.114])
    base = 0.35 * image + 0.65 * grey[:, :, None]
    shown = 0.2 * base + 0.8 * 255.0
    for region, mask in masks.items():
        colour = np.array([int(colours[region][i : i + 2], 16) for i in (1, 3, 5)])
        kept = 0.5 if region == "background" and "foreground" in masks else 1.0
        shown[mask] = 0.5 * (kept * base[mask] + (1 - kept) * 255.0) + 0.5 * colour
    tinted: Pixels = np.rint(shown).astype(np.uint8)
    return tinted


def amplified(clean: Pixels, attacked: Pixels, gain: float) -> Pixels:
    """Return mid-grey (128) + ``gain`` × (attacked − clean), rounded and cut to 8 bits; uint8 [H, W, 3]."""
    change = attacked.astype(np.float64) - clean
    return np.rint(np.clip(128 + gain * change, 0, 255)).astype(np.uint8)


def _fitting_gain(rows: Sequence[PanelRow]) -> float:
    """Return the largest whole gain that cuts no difference off, at least 1."""
    pairs = [(row.clean, found.image) for row in rows for found in row.attacked.values() if found.image is not None]
    largest = max((int(np.abs(image.astype(np.int64) - clean).max()) for clean, image in pairs), default=0)
    return float(max(1, 127 // max(1, largest)))


@dataclass(frozen=True)
class _Panel:
    """One picture with its caption, or several side by side; ``image`` None leaves the place empty."""

    image: Pixels | None
    texts: Sequence[str] = ()
    fooled: bool = False
    pixels: Sequence[tuple[int, int]] = ()


class _Column(ABC):
    """One column: what stands above it, and its panel in each row.

    :ivar title: the heading.
    :ivar legend: what stands below it, each over a rule of its colour.
    """

    title: str
    legend: Sequence[tuple[str, str]]

    @abstractmethod
    def panel(self, row: PanelRow) -> _Panel:
        """Return what the column shows of ``row``."""


class _Original(_Column):
    title = "original"
    legend = (("class and confidence", QUIET),)

    def panel(self, row: PanelRow) -> _Panel:
        return _Panel(row.clean, (row.text,))


class _Regions(_Column):
    def __init__(self, colours: Mapping[str, str]) -> None:
        self.colours = colours
        self.title = "region" if len(colours) == 1 else "regions"
        self.legend = tuple(colours.items())

    def panel(self, row: PanelRow) -> _Panel:
        masks = {region: row.masks[region] for region in self.colours if region in row.masks}
        if not masks:
            return _Panel(None)
        # Below each other: a region's place in the legend, and its share of the image.
        shares = [f"{100 * masks[region].mean():.0f} %" if region in masks else "–" for region in self.colours]
        return _Panel(overlay(row.clean, masks, self.colours), shares)


class _Attacks(_Column):
    def __init__(self, region: str, title: str, colour: str, *, notes: bool) -> None:
        self.region, self.title, self.notes = region, title, notes
        self.legend = ((_WHERE.get(region, f"in {region}"), colour),)

    def panel(self, row: PanelRow) -> _Panel:
        found = row.attacked.get(self.region)
        if found is None:
            return _Panel(None)
        text = f"{found.text}, {found.note}" if self.notes and found.note else found.text
        return _Panel(found.image, (text,), found.fooled, found.pixels)


class _Differences(_Column):
    def __init__(self, region: str, gain: float, colour: str) -> None:
        self.region, self.gain = region, gain
        self.title = f"difference × {gain:g}"
        self.legend = ((_WHERE.get(region, f"in {region}"), colour),)

    def panel(self, row: PanelRow) -> _Panel:
        found = row.attacked.get(self.region)
        if found is None or found.image is None:
            return _Panel(None)
        return _Panel(
            amplified(row.clean, found.image, self.gain), (found.note,) if found.note else (), pixels=found.pixels
        )


class _Sheet:
    """The figure being drawn. Lengths are in pixels, places are counted from the top left."""

    def __init__(self, rows: Sequence[PanelRow], columns: Sequence[_Column], size: int) -> None:
        self.rows, self.columns = rows, columns
        self.factors = [max(1, size // max(row.clean.shape[:2])) for row in rows]
        enlarged = [(f * row.clean.shape[1], f * row.clean.shape[0]) for f, row in zip(self.factors, rows, strict=True)]
        self.cell_width, self.cell_height = (max(lengths) for lengths in zip(*enlarged, strict=True))
        em = self.em = max(11, round(self.cell_width / 14.5))
        self.gap = round(0.75 * em)
        self.left, self.top, self.caption = round(2.2 * em), round(4.5 * em), round(2.15 * em)
        self.width = self.left + len(columns) * (self.cell_width + self.gap)
        self.height = self.top + len(rows) * (self.cell_height + self.caption)
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)  # without a canvas, text has no size yet

    def draw(self) -> Figure:
        for number, column in enumerate(self.columns):
            self._head(column, self.left + number * (self.cell_width + self.gap))
        for number, row in enumerate(self.rows):
            top = self.top + number * (self.cell_height + self.caption)
            side = self._text(1.1 * self.em, top + self.cell_height / 2, row.name, 0.8, rotation=90, color=QUIET)
            self._fit(side, self.cell_height + self.caption / 2)
            for place, column in enumerate(self.columns):
                left = self.left + place * (self.cell_width + self.gap)
                self._panel(column.panel(row), row, self.factors[number], left, top)
        return self.figure

    def _head(self, column: _Column, left: float) -> None:
        middle = left + self.cell_width / 2
        title = self._text(middle, 1.5 * self.em, column.title, 1.05, weight="bold", color=INK)
        self._fit(title, self.cell_width)
        self._side_by_side([text for text, _ in column.legend], left, 2.9 * self.em, 0.85, color=QUIET)
        step = self.cell_width / len(column.legend)
        for number, (_, colour) in enumerate(column.legend):
            self._rule(left + number * step, step, colour)

    def _side_by_side(self, texts: Sequence[str], left: float, y: float, size: float, **style: Any) -> None:
        """Write texts into equal parts of a cell's width."""
        for number, text in enumerate(texts):
            step = self.cell_width / len(texts)
            self._fit(self._text(left + (number + 0.5) * step, y, text, size, **style), step - 2)

    def _rule(self, left: float, width: float, colour: str) -> None:
        height = round(0.3 * self.em)
        top = self.top - round(0.45 * self.em) - height
        corner = (left / self.width, 1 - (top + height) / self.height)
        rule = Rectangle(corner, width / self.width, height / self.height, facecolor=colour, linewidth=0)
        rule.set_transform(self.figure.transFigure)
        self.figure.add_artist(rule)

    def _panel(self, panel: _Panel, row: PanelRow, factor: int, left: int, top: int) -> None:
        """Draw a panel in the middle of its cell, and its caption."""
        height, width = (factor * length for length in row.clean.shape[:2])
        axes = self._axes(left + (self.cell_width - width) // 2, top + (self.cell_height - height) // 2, width, height)
        if panel.image is None:
            axes.set_facecolor(FAINT)
        else:
            axes.imshow(panel.image, interpolation="nearest", aspect="auto")
        for mark in _marks(panel, row.clean.shape[1], self.em):
            axes.add_patch(mark)
        style = {"color": _FOOLED, "weight": "bold"} if panel.fooled else {"color": INK}
        self._side_by_side(panel.texts, left, top + self.cell_height + 0.9 * self.em, 1, **style)

    def _axes(self, left: int, top: int, width: int, height: int) -> Axes:
        whole_width, whole_height = self.width, self.height
        box = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
        axes = self.figure.add_axes(box, frameon=True)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def _text(self, x: float, y: float, text: str, size: float, **style: Any) -> Text:
        """Write ``text`` centred at (x, y), ``size`` em high; it is never read as a formula."""
        place = (x / self.width, 1 - y / self.height)
        points = size * self.em * 72 / DPI
        common: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "family": "DejaVu Sans",
            "parse_math": False,
            "usetex": False,
        }
        return self.figure.text(place[0], place[1], text, fontsize=points, **common, **style)

    def _fit(self, text: Text, length: float) -> None:
        """Make ``text`` smaller, then leave out of its middle, until it is at most ``length`` long."""
        if self._length(text) > length:
            text.set_fontsize(float(text.get_fontsize()) * max(0.78, length / self._length(text)))
        words = text.get_text()
        kept = len(words)
        while kept > 2 and self._length(text) > length:
            kept = max(2, min(kept - 1, int(kept * length / self._length(text))))
            tail = min(kept // 2, 8)  # a confidence, or the end of a file's name
            text.set_text(f"{words[: kept - tail].rstrip()}…{words[-tail:].lstrip()}")

    def _length(self, text: Text) -> float:
        box = text.get_window_extent()
        return float(box.height if text.get_rotation() else box.width)


def _marks(panel: _Panel, width: int, em: int) -> Iterator[Circle | Rectangle]:
    """Yield a ring around every changed pixel, in data coordinates, and the pixels again, above all rings."""
    # Smaller where there are many, so that they do not hide the image.
    radius = max(1.9, width * (0.055 if len(panel.pixels) <= 8 else 0.03))
    line = em * 0.17 * 72 / DPI
    colour = _FOOLED if panel.fooled else INK
    for place in panel.pixels:
        halo = [withStroke(linewidth=2.4 * line, foreground="white")]
        yield Circle(place, radius, fill=False, edgecolor=colour, linewidth=line, path_effects=halo)
    if panel.image is not None:
        for x, y in panel.pixels:
            red, green, blue = (panel.image[y, x] / 255).tolist()
            corner = (x - 0.5, y - 0.5)
            yield Rectangle(corner, 1, 1, facecolor=(red, green, blue), linewidth=0, antialiased=False, zorder=2)
