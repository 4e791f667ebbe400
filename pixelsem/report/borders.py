"""The table and the curve of vulnerable pixels by their distance from the border of object and surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf
from typing import TYPE_CHECKING

from pixelsem.metrics.borders import BANDS, Band
from pixelsem.report.tables import Column, Table, ends, level, with_ends
from pixelsem.report.vulnerability import ABOUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: (network, colours, variant, region, goal), and the bands there.
Row = tuple[Sequence[str | None], Sequence[Band]]

_SIDES = {"background": -1, "foreground": 1}


def borders_table(rows: Sequence[Row], confidence: float) -> Table:
    """Return one row per setup × region × goal × band, each given as its names and its bands."""
    columns = (
        *ABOUT,
        Column("distance", "From the border, pixels", about=True),
        Column("n", "Images", "count"),
        Column("pixels", "Pixels there, mean", "number", 1),
        *with_ends("share", "Vulnerable", "percent"),
    )
    cells = [
        [*names, _name(band), band.share.n, band.pixels, *ends(band.share)] for names, bands in rows for band in bands
    ]
    note = (
        "From the centre of a pixel to that of the nearest one outside of its region; the image's own edge is no "
        "border. Vulnerable: mean over the images that have such pixels of the share that is enough alone, "
        f"{level(confidence)} by resampling images."
    )
    return Table("vulnerability_borders", "Vulnerable pixels by distance from the border", columns, cells, [note])


def _name(band: Band) -> str:
    if isinf(band.high):
        return f"more than {band.low:g}"
    return f"{band.high:g}" if band.low == 0 else f"{band.low:g} to {band.high:g}"


def draw_borders(rows: Sequence[Row]) -> Figure:
    """Draw a panel per network and goal: vulnerable share from deep in the background to deep in the foreground."""
    from pixelsem.report.figures import new_figure, show_legend, style

    panels: dict[tuple[str | None, ...], dict[str, Sequence[Band]]] = {}
    for (*about, region, goal), bands in rows:
        if region in _SIDES:
            panels.setdefault((*about, goal), {})[str(region)] = bands
    with style():
        figure, axes = new_figure(1, max(1, len(panels)), width=max(5.6, 3.6 * len(panels)), height=3.4, sharey=True)
        for place, (names, sides) in zip(axes[0], panels.items(), strict=False):
            _draw(place, sides)
            if len(panels) > 1:
                place.set_title(", ".join(name for name in names if name))
        axes[0, 0].set_ylabel("vulnerable pixels")
        show_legend(figure, axes[0, 0])
        return figure


def _draw(axes: Axes, sides: dict[str, Sequence[Band]]) -> None:
    from pixelsem.report.figures import Series, draw_lines, show_percent

    places = [sign * (number + 1) for sign in (-1, 1) for number in range(len(BANDS))]
    series = []
    for region, sign in _SIDES.items():
        bands = sides.get(region, ())
        shares = [band.share for band in bands]
        x = [sign * (BANDS.index((band.low, band.high)) + 1) for band in bands]
        values = ([share.value for share in shares], [_number(share.low) for share in shares])
        series.append(Series(region, x, *values, [_number(share.high) for share in shares]))
    draw_lines(axes, series)
    axes.axvline(0, color="#5F5F5F", linewidth=0.8)
    names = {abs(place): _short(BANDS[abs(place) - 1]) for place in places}
    axes.set_xticks(places, [names[abs(place)] for place in places])
    axes.set_xlabel("pixels from the border")
    axes.set_ylim(bottom=0)
    show_percent(axes)


def _short(band: tuple[float, float]) -> str:
    low, high = band
    return f">{low:g}" if isinf(high) else f"{high:g}" if high == 1 else f"{low:g}–{high:g}"


def _number(end: float | None) -> float:
    return float("nan") if end is None else end
