"""Tables and figures of sweeps: success and distortion against an attack's options (qian2021, Figs. 9–10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelsem.metrics.distortion import LARGEST, Summary
from pixelsem.metrics.intervals import Rate
from pixelsem.metrics.sweeps import Value, in_order
from pixelsem.report.tables import Cell, Column, Table, level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pixelsem.report.figures import Series

#: Key, title, field of a distortion, what it is divided by, decimals.
_MEASURES = (
    ("ssim", "SSIM", "ssim", 1.0, 4),
    ("l0_pixels", "L0 (pixels)", "l0_pixels", 1.0, 1),
    ("l2_0_to_1", "L2 (0–1)", "l2", LARGEST, 3),
)

#: An axis whose numbers span more than this factor is logarithmic.
_WIDE = 50.0


@dataclass(frozen=True)
class SweepRow:
    """One point of a sweep.

    :ivar names: network, attack, region, goal and what else tells it apart (or None), in this order.
    :ivar x: the first option's value.
    :ivar y: the second option's value; None with one option.
    :ivar distortion: of the successes; None without any.
    """

    names: Sequence[Cell]
    x: Value
    y: Value | None
    asr: Rate | None
    distortion: Summary | None

    def measure(self, name: str, unit: float) -> float | None:
        """Return the mean of one measure, in its unit."""
        if self.distortion is None or name not in self.distortion.mean:
            return None
        return self.distortion.mean[name] / unit


def sweep_table(rows: Sequence[SweepRow], x: str, y: str | None, confidence: float) -> Table:
    """Return one row per point, in the order of the options' values; ``x`` and ``y`` are their names."""
    columns = (
        Column("network", "Network", about=True), Column("attack", "Attack", about=True),
        Column("region", "Region", about=True), Column("goal", "Goal", about=True),
        Column("variant", "Variant", about=True), Column("x", x, about=True), Column("y", y or "y", about=True),
        Column("asr", "ASR", "rate"), *(Column(key, title, "number", digits) for key, title, _, _, digits in _MEASURES),
    )  # fmt: skip
    cells: list[list[Cell]] = [
        [*row.names, _text(row.x), None if row.y is None else _text(row.y), row.asr, *_measures(row)]
        for row in _sorted(rows)
    ]
    notes = [
        f"ASR: successes over the searches that ran, {level(confidence)}. SSIM and norms: means over the successes."
    ]
    by = f"{x} and {y}" if y else x
    return Table("sweep", f"Success and distortion by {by}", columns, cells, notes)


def _measures(row: SweepRow) -> list[Cell]:
    return [row.measure(name, unit) for _, _, name, unit, _ in _MEASURES]


def _sorted(rows: Sequence[SweepRow]) -> list[SweepRow]:
    xs, ys = in_order([row.x for row in rows]), in_order([row.y for row in rows if row.y is not None])
    names = list(dict.fromkeys(tuple(row.names) for row in rows))
    return sorted(
        rows,
        key=lambda row: (names.index(tuple(row.names)), -1 if row.y is None else ys.index(row.y), xs.index(row.x)),
    )


def _text(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _labels(rows: Sequence[SweepRow], y: str | None) -> list[str]:
    """Name each row's line: what differs between the rows, and the second option's value."""
    columns = list(zip(*(row.names for row in rows), strict=True))
    shown = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    labels = []
    for row in rows:
        parts = [str(row.names[number]) for number in shown if row.names[number] is not None]
        parts += [f"{y} = {_text(row.y)}"] if row.y is not None else []
        labels.append(", ".join(parts) or str(row.names[1]))
    return labels


def draw_lines_of(rows: Sequence[SweepRow], x: str, y: str | None) -> Figure:
    """Draw ASR (with its intervals), SSIM, L0 and L2 against the option ``x``, a line per series and value of ``y``."""
    from pixelsem.report.figures import draw_lines, new_figure, show_legend, show_percent, style

    rows = _sorted(rows)
    ticks = in_order([row.x for row in rows])
    with style():
        figure, axes = new_figure(2, 2, width=7.4, height=5.6, sharex=True)
        lines = _lines(rows, ticks, y)
        for place, (title, number) in zip(axes.ravel().tolist(), _panels(), strict=True):
            draw_lines(place, [series[number] for series in lines])
            place.set_title(title)
        for place in axes[1]:
            place.set_xlabel(x)
            _set_ticks(place, ticks)
        show_percent(axes[0, 0])
        axes[0, 0].set_ylim(-0.02, 1.02)
        if len(lines) > 1:
            show_legend(figure, axes[0, 0])
        return figure


def _panels() -> list[tuple[str, int]]:
    return [(title, number) for number, title in enumerate(["attack success rate", *(row[1] for row in _MEASURES)])]


def _lines(rows: Sequence[SweepRow], ticks: Sequence[Value], y: str | None) -> list[list[Series]]:
    """Return for every line its series of ASR and of each measure."""
    from pixelsem.report.figures import Series

    nothing = float("nan")
    by_label: dict[str, list[SweepRow]] = {}
    for row, label in zip(rows, _labels(rows, y), strict=True):
        by_label.setdefault(label, []).append(row)
    numbers = _numeric(ticks)
    found = []
    for label, own in by_label.items():
        places = [row.x if numbers else ticks.index(row.x) for row in own]
        rates = [row.asr for row in own]
        ends = ([nothing if rate is None else getattr(rate, end) for rate in rates] for end in ("value", "low", "high"))
        lines = [Series(label, places, *ends)]
        for _, _, name, unit, _ in _MEASURES:
            values = [row.measure(name, unit) for row in own]
            lines.append(Series(label, places, [nothing if value is None else value for value in values]))
        found.append(lines)
    return found


def _numeric(ticks: Sequence[Value]) -> bool:
    return not any(isinstance(tick, str) for tick in ticks)


def _set_ticks(axes: Axes, ticks: Sequence[Value]) -> None:
    """Mark the values that were tried; numbers over decades on a logarithmic axis."""
    if not _numeric(ticks):
        axes.set_xticks(range(len(ticks)), list(map(_text, ticks)))
        return
    numbers = [float(tick) for tick in ticks]
    if min(numbers) > 0 and max(numbers) / min(numbers) > _WIDE:
        axes.set_xscale("log")
    axes.set_xticks(numbers, list(map(_text, ticks)))
    axes.minorticks_off()


def draw_heat_maps(rows: Sequence[SweepRow], x: str, y: str) -> Figure:
    """Draw the attack success rate over both options, one heat map per series."""
    import numpy as np

    from pixelsem.report.figures import draw_heat_map, draw_scale, new_figure, style

    xs, ys = in_order([row.x for row in rows]), in_order([row.y for row in rows if row.y is not None])
    plain = [SweepRow(row.names, row.x, None, row.asr, row.distortion) for row in rows]
    labels = _labels(plain, None)
    names = list(dict.fromkeys(labels))
    with style():
        width = 1.6 + len(names) * (0.8 + 0.55 * len(xs))
        figure, axes = new_figure(1, len(names), width=width, height=1.6 + 0.42 * len(ys), sharey=True)
        for place, name in zip(axes[0], names, strict=True):
            values = np.full((len(ys), len(xs)), np.nan)
            for row, label in zip(rows, labels, strict=True):
                if label == name and row.asr is not None and row.y is not None:
                    values[ys.index(row.y), xs.index(row.x)] = 100 * row.asr.value
            image = draw_heat_map(
                place, values, list(map(_text, ys)), list(map(_text, xs)), limits=(0, 100), text="{:.0f}".format
            )
            place.set_title(name)
            place.set_xlabel(x)
        axes[0, 0].set_ylabel(y)
        draw_scale(figure, image, axes[0], "attack success rate (%)")
        return figure
