"""``pixelsem evaluate sweep``: success and distortion against the options that attacks were run with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.figures import FigureOptions, write_figures
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from pixelsem.cli.attack_stages import Group
    from pixelsem.metrics.sweeps import Point
    from pixelsem.report.sweeps import SweepRow

Stages = Annotated[
    list[Path] | None,
    typer.Argument(help="Attack stages that differ in one or two options (default: stdin)."),
]


@dataclass(frozen=True)
class SweepOptions(Settings):
    """Which options the axes are."""

    x: str | None = option(None, "The option along the axis, e.g. tau (default: what the stages differ in).")
    y: str | None = option(None, "A second option: one line per value, or with --heat-map the other axis.")
    heat_map: bool = option(False, "Draw heat maps of two options in place of lines.", flag="--heat-map")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")


def evaluate_sweep(
    *, context: typer.Context, stages: Stages = None, what: SweepOptions, drawing: FigureOptions, options: TableOptions
) -> None:
    """Attack success rate, SSIM, L0 and L2 by one or two options of the attack (qian2021, Figs. 9 and 10).

    Also dong2020's Fig. 8 and the like. Finds the options in which the stages differ by itself. Every point counts
    the searches that ran; distortion is the mean over successes.
    """
    from pixelsem.cli.attack_stages import open_attacks
    from pixelsem.metrics.sweeps import place
    from pixelsem.report.sweeps import draw_heat_maps, draw_lines_of, sweep_table
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    attacks = open_attacks(stages, options.run, console.note)
    points, x, y = place(attacks.setups, _name(what.x), _name(what.y))
    if what.heat_map and y is None:
        raise PixelsemError(f"--heat-map: needs two options; the stages differ in {x} alone")
    at = {id(point.setup): point for point in points}
    groups = [group for group in attacks.groups() if group.attacked]
    failures = attacks.failures
    rows: list[SweepRow] = []
    with console.progress("sweep", len(groups)) as bar:
        for group in groups:
            rows.append(_row(group, at[id(group.setup)], what.device, failures, options.confidence))
            bar.update(len(rows))
    if not rows:
        raise PixelsemError(f"{', '.join(attacks.names)}: no image was attacked; there is nothing to show")
    key = digest({"stages": attacks.identities, "x": x, "y": y, "heat_map": what.heat_map})
    folder = tables_folder(context, options, attacks.paths, f"evaluate-sweep-{key[:6]}")
    draw = partial(draw_heat_maps, rows, x, y or "") if what.heat_map else partial(draw_lines_of, rows, x, y)
    files = write_figures(console, folder, {"sweep": draw}, drawing.formats)
    summary = {"inputs": attacks.names, "x": x, "y": y, "figures": files, "failures": failures}
    show_tables(console, folder, [sweep_table(rows, x, y, options.confidence)], attacks.notes, summary)
    exit_with(console, failures)


def _name(option: str | None) -> str | None:
    """Return an option's name as stages note it, however it was typed."""
    return None if option is None else option.lstrip("-").replace("-", "_")


def _row(group: Group, point: Point, device: str, failures: dict[str, str], confidence: float) -> SweepRow:
    from pixelsem.cli.evaluate_distortion import measure_searches, success_rate
    from pixelsem.metrics.distortion import summarize
    from pixelsem.report.sweeps import SweepRow

    found = measure_searches(group, device, failures)
    hits = {search.record.key for search in group.attacked if search.record.success}
    names = [group.setup.network, group.setup.attack, group.region, group.goal, point.rest or None]
    distortion = summarize([one for key, one in found.items() if key in hits])
    return SweepRow(names, point.x, point.y, success_rate(group, confidence), distortion)
