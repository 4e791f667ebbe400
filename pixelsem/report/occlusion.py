"""The table and the bars of occlusion: accuracy without a region, and on it alone (qian2021, Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelsem.metrics.occlusion import Occlusion
from pixelsem.report.tables import Cell, Column, Table, level, with_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class OcclusionRow:
    """One model on one set of masks; ``threshold`` is where soft masks were cut, None for others."""

    network: str
    masks: str
    threshold: float | None
    found: Occlusion


def occlusion_table(rows: Sequence[OcclusionRow], confidence: float) -> Table:
    """Return one row per model and masks: three accuracies, and how far they fall."""
    columns = (
        Column("network", "Network", about=True),
        Column("masks", "Masks", about=True),
        Column("tau", "τ", "number", 3, about=True),
        Column("clean", "Clean", "rate"),
        Column("without", "Without region (Adv-CFR)", "rate"),
        Column("alone", "Region alone (Adv-non-CFR)", "rate"),
        *with_ends("change_without", "Change, without region", "points"),
        *with_ends("change_alone", "Change, region alone", "points"),
        Column("area", "Area of the region", "percent"),
        Column("empty", "Empty regions", "count"),
    )
    cells: list[list[Cell]] = []
    for row in rows:
        found = row.found
        drops = [-found.drop_without.difference, -found.drop_alone.difference]
        ends = [pair.interval(confidence) for pair in (found.drop_without, found.drop_alone)]
        changes = [value for drop, (low, high) in zip(drops, ends, strict=True) for value in (drop, -high, -low)]
        rates = (found.clean, found.without, found.alone)
        cells.append([row.network, row.masks, row.threshold, *rates, *changes, found.area, found.empty])
    notes = [
        f"Accuracy over all images (count/images), Wilson {level(confidence)}; changes on the same images, "
        f"{level(confidence)} by Newcombe's method 10. Soft masks are cut at τ, a share of their maximum."
    ]
    return Table("occlusion", "Accuracy without a region and on it alone (qian2021, Fig. 3)", columns, cells, notes)


def draw_occlusion(rows: Sequence[OcclusionRow]) -> Figure:
    """Draw three bars per row: clean, without the region, the region alone, with their intervals."""
    from pixelsem.report.figures import Series, draw_bars, new_figure, show_legend, show_percent, style

    several = len({row.masks for row in rows}) > 1
    groups = [f"{row.network}\n{row.masks}" if several else row.network for row in rows]
    bars = (("clean", "clean"), ("without", "without the region"), ("alone", "region alone"))
    with style():
        series = []
        for name, label in bars:
            rates = [getattr(row.found, name) for row in rows]
            numbers = ([getattr(rate, end) for rate in rates] for end in ("value", "low", "high"))
            series.append(Series(label, list(range(len(rows))), *numbers))
        figure, axes = new_figure(width=max(5.2, 1.2 + 1.3 * len(rows)), height=3.4)
        draw_bars(axes[0, 0], groups, series)
        axes[0, 0].set_ylim(0, 1)
        axes[0, 0].set_ylabel("accuracy")
        show_percent(axes[0, 0])
        show_legend(figure, axes[0, 0])
        return figure
