"""How every chart looks, and how it becomes a file: styles, lines with bands, bars, heat maps, PNG, SVG and PDF.

Series differ by colour (Okabe and Ito's, which the colour-blind tell apart), by line style and marker, and by
hatching, so that a chart says the same printed in grey. Make figures with :func:`new_figure`, inside
:func:`style`; pyplot, with its global state, is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pixelsem.files import write_atomically

#: What a figure's file may be, by suffix without the dot.
FORMATS = ("png", "svg", "pdf")

#: Text and frames, secondary text, grid lines and places without a value.
INK, QUIET, FAINT = "#1A1A1A", "#5F5F5F", "#E4E4E4"


@dataclass(frozen=True)
class Style:
    """How one series is drawn: ``#RRGGBB``, and matplotlib's line style, marker and hatch."""

    colour: str
    dash: Any = "-"
    marker: str = "o"
    hatch: str = ""


#: Okabe and Ito's colours (the last is a brown); the foreground's is dark and the background's light, so that the two
#: differ in grey.
REGION_STYLES: Mapping[str, Style] = {
    "original": Style(QUIET, "-", "o", ""),
    "foreground": Style("#0072B2", (0, (6, 2)), "s", "///"),
    "background": Style("#E69F00", (0, (1.5, 1.5)), "^", "..."),
}

_OTHER_STYLES = (
    Style("#009E73", (0, (6, 2, 1.5, 2)), "D", "\\\\\\"),
    Style("#CC79A7", (0, (3, 1)), "v", "xxx"),
    Style("#56B4E9", (0, (9, 3)), "P", "--"),
    Style("#D55E00", (0, (6, 2, 1.5, 2, 1.5, 2)), "X", "++"),
    Style("#1A1A1A", (0, (1, 1.2)), "*", "oo"),
    Style("#8C6D46", (0, (4, 1.5, 1, 1.5)), "p", "**"),
)

#: Any names that are no regions, in turn: the strongest contrasts first.
_CYCLE = (Style("#0072B2", "-", "o", "///"), Style("#E69F00", (0, (6, 2)), "s", "..."), *_OTHER_STYLES)

#: From white to a dark blue: the lightness falls evenly, so that grey shows the same order.
SEQUENTIAL = LinearSegmentedColormap.from_list("pixelsem", ["#FFFFFF", "#BBD7EC", "#5E9CCB", "#1F6096", "#08304F"])

_PARAMETERS: Any = {
    "figure.facecolor": "white", "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET, "xtick.color": QUIET, "ytick.color": QUIET,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": False,
    "grid.color": FAINT, "grid.linewidth": 0.8, "lines.linewidth": 1.8, "lines.markersize": 5, "hatch.linewidth": 0.6,
    "text.parse_math": False,  # names of classes and files are never formulas
    "svg.hashsalt": "pixelsem", "svg.fonttype": "path", "savefig.bbox": None,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Draw in the package's style inside the block, whatever the user's matplotlibrc says; it is restored after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_PARAMETERS)
        yield


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = 6.4, height: float = 3.8, **options: Any
) -> tuple[Figure, NDArray[np.object_]]:
    """Return a figure of ``width`` × ``height`` inches and its axes, an object array [rows, columns].

    Further ``options`` go to :meth:`matplotlib.figure.Figure.subplots` (``sharey=True``, …).
    """
    figure = Figure(figsize=(width, height), dpi=160)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = ()) -> list[Path]:
    """Write a figure, atomically; return the files. Equal figures give equal files: no date, no random names.

    Without ``formats`` (of :data:`FORMATS`), ``path``'s own suffix says which one; with them they are added to
    ``path``, which then has none. Raises :class:`ValueError` for an unknown format and
    :class:`pixelsem.errors.OutputError` where a file cannot be written.
    """
    paths = [path.with_name(f"{path.name}.{kind}") for kind in formats] or [path]
    kinds = [file.suffix.lower()[1:] for file in paths]
    if unknown := set(kinds) - set(FORMATS):
        raise ValueError(f"{path}: a figure is one of {', '.join(FORMATS)}, not {', '.join(sorted(unknown))}")
    _settle(figure)
    for file, kind in zip(paths, kinds, strict=True):
        _save(figure, file, kind)
    return paths


def _settle(figure: Figure) -> None:
    """Lay a figure out once, for all formats: done again at another resolution it would come out otherwise."""
    if figure.get_layout_engine() is not None:
        with style():
            figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _save(figure: Figure, path: Path, kind: str) -> None:
    dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    # Images in a vector figure are stored enlarged, as many viewers would blur them.
    dpi = figure.dpi if kind == "png" else 2 * figure.dpi
    with write_atomically(path) as file, style():
        figure.savefig(file, format=kind, dpi=dpi, metadata=dates)


def styles_for(names: Iterable[str]) -> dict[str, Style]:
    """Give every name a style of its own, in order; regions have the same one in every figure.

    Names beyond the styles there are begin again from the first.
    """
    distinct = list(dict.fromkeys(names))
    others = [name for name in distinct if name not in REGION_STYLES]
    free = _OTHER_STYLES if len(others) < len(distinct) else _CYCLE
    cycle = {name: free[number % len(free)] for number, name in enumerate(others)}
    return {name: REGION_STYLES.get(name) or cycle[name] for name in distinct}


@dataclass(frozen=True)
class Series:
    """One line or one set of bars: values at x (numbers or, for bars, groups), and the interval's ends, if any.

    All have the same length; NaN is a place without a value.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


def draw_lines(
    axes: Axes,
    series: Sequence[Series],
    styles: Mapping[str, Style] | None = None,
    *,
    steps: bool = False,
    markers: bool = True,
    band: float = 0.13,
) -> None:
    """Draw lines with their intervals as bands; ``steps`` keeps a value until the next x (survival curves).

    ``styles`` go by label (default: :func:`styles_for`); ``band`` is the bands' opacity, in [0, 1].
    """
    styles = styles or styles_for(one.label for one in series)
    for one in series:
        look = styles[one.label]
        draw_style: Literal["steps-post", "default"] = "steps-post" if steps else "default"
        axes.plot(
            np.asarray(one.x), np.asarray(one.y, float), color=look.colour, linestyle=look.dash,
            marker=look.marker if markers else "", drawstyle=draw_style, label=one.label,
        )  # fmt: skip
        if one.low is not None and one.high is not None:
            ends = (np.asarray(one.low, float), np.asarray(one.high, float))
            step: Literal["post"] | None = "post" if steps else None
            axes.fill_between(np.asarray(one.x), *ends, step=step, color=look.colour, alpha=band, linewidth=0)
    axes.grid(True, axis="y")


def draw_bars(
    axes: Axes, groups: Sequence[str], series: Sequence[Series], styles: Mapping[str, Style] | None = None
) -> None:
    """Draw bars side by side, one group per name, one bar per series, with their intervals as whiskers.

    A series' ``x`` holds the numbers of its groups, from 0.
    """
    styles = styles or styles_for(one.label for one in series)
    width = 0.8 / max(1, len(series))
    for number, one in enumerate(series):
        look, heights = styles[one.label], np.asarray(one.y, float)
        places = np.asarray(one.x, float) + (number - (len(series) - 1) / 2) * width
        ends = None
        if one.low is not None and one.high is not None:
            ends = np.stack([heights - np.asarray(one.low, float), np.asarray(one.high, float) - heights]).clip(0)
        axes.bar(
            places, heights, 0.92 * width, yerr=ends, color=look.colour, hatch=look.hatch, edgecolor="white",
            linewidth=0, label=one.label, error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": INK},
        )  # fmt: skip
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, max(1, len(groups)) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(True, axis="y")


#: Above this many rows or columns, the numbers in a heat map's cells could not be read.
_NUMBERED = 24


def draw_heat_map(
    axes: Axes,
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float] | None = None,
    text: Callable[[float], str] | None = "{:g}".format,
) -> AxesImage:
    """Draw values [rows, columns] as squares, the greatest darkest, each with its number.

    ``limits`` are the values of white and of the darkest (default: 0, or the least value below it, and the
    greatest; give them where several maps are compared); ``text`` writes a cell's number, None for no numbers.
    NaN is drawn as a hatched place without a value. Returns the image, for :func:`draw_scale`.
    """
    shown = np.asarray(values, float).reshape(len(rows), len(columns))
    low, high = limits or heat_limits([shown])
    axes.set_facecolor("white")
    axes.patch.set(hatch="////", edgecolor="#C8C8C8")
    image = axes.imshow(np.ma.masked_invalid(shown), cmap=SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(rows)), list(rows))
    if max(map(len, columns), default=0) > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if text is not None and max(shown.shape, default=0) <= _NUMBERED:
        _write_numbers(axes, shown, low, high, text)
    return image


def heat_limits(maps: Iterable[ArrayLike]) -> tuple[float, float]:
    """Return the common limits of several heat maps: 0 (or the least value below it) and the greatest, never equal."""
    found = np.concatenate([np.ravel(np.asarray(one, float)) for one in maps] or [np.zeros(0)])
    found = found[np.isfinite(found)]
    low = min(0.0, float(found.min(initial=0.0)))
    high = float(found.max(initial=low))
    return low, high if high > low else low + 1.0


def _write_numbers(
    axes: Axes, values: NDArray[np.floating], low: float, high: float, text: Callable[[float], str]
) -> None:
    for row, column in np.argwhere(np.isfinite(values)).tolist():
        value = float(values[row, column])
        dark = (value - low) / (high - low) > 0.6
        colour = "white" if dark else "#8C8C8C" if value == 0 else INK
        axes.text(column, row, text(value), ha="center", va="center", fontsize=7, color=colour)


def draw_scale(figure: Figure, image: AxesImage, axes: Iterable[Axes], label: str, *, whole: bool = False) -> None:
    """Add the colour scale of heat maps with common limits beside their ``axes``; ``whole`` for counts."""
    ticks = MaxNLocator(integer=True) if whole else None
    bar = figure.colorbar(image, ax=list(axes), fraction=0.05, shrink=0.8, pad=0.02, ticks=ticks)
    bar.outline.set_visible(False)
    bar.set_label(label)


def show_percent(axes: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Write an axis of shares in [0, 1] as percentages."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def show_counts(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Mark an axis of counts at whole numbers alone."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(MaxNLocator(integer=True))


def show_legend(figure: Figure, axes: Axes, *, title: str | None = None) -> None:
    """Write one legend for a figure of several axes, below them; ``axes`` names the series."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), title=title, handlelength=3.2)
