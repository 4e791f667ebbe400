"""``pixelsem evaluate figures``: the figures of wang2021 and some of our own, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.figures import FigureOptions, need_matplotlib, write_figures
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, tables_folder
from pixelsem.errors import PixelsemError, StageError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    import numpy as np

    from pixelsem.cli.attack_stages import AttackStages, Search
    from pixelsem.metrics.effort import Curve
    from pixelsem.metrics.setups import Setup
    from pixelsem.report.charts import FitnessCurves

Stages = Annotated[
    list[Path] | None,
    typer.Argument(help="Attack stages; several are compared (default: stdin, or the newest attack stage)."),
]


@dataclass(frozen=True)
class CurveOptions(Settings):
    """Which searches the fitness curves are of."""

    curves: Literal["all", "success", "common"] = option(
        "all",
        "Fitness curves: of all searches, of those that succeed, or of images that succeed in every region (wang2021).",
    )
    lines: int = option(15, "Searches drawn one by one, in grey, per chart of fitness curves.", low=0, high=1000)


def evaluate_figures(
    *,
    context: typer.Context,
    stages: Stages = None,
    what: CurveOptions,
    figures: FigureOptions,
    options: TableOptions,
) -> None:
    """Success by region, target classes, class pairs and fitness curves (wang2021, Figs. 3–6), success by queries.

    The numbers of every figure are written beside it as JSON, CSV, Markdown and LaTeX. Runs with --grow and --shrink
    beside the one without make a figure of success by the border's place.
    """
    if not figures.formats:
        raise PixelsemError("--format: figures are all there is to this command; name png, svg or pdf")
    need_matplotlib()
    from pixelsem.cli.attack_stages import open_attacks
    from pixelsem.report.charts import attack_figures
    from pixelsem.report.success import figure_tables
    from pixelsem.report.tables import write_tables
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    attacks = open_attacks(stages, options.run, console.note)
    failures = attacks.failures
    fitness = list(_fitness(attacks, what, options.confidence, failures))
    drawn = attack_figures(attacks.setups, fitness, lines=what.lines, confidence=options.confidence)
    if not drawn:
        raise PixelsemError(f"{', '.join(attacks.names)}: no image was attacked; there is nothing to draw")
    key = digest({"stages": attacks.identities, "curves": what.curves, "lines": what.lines})
    folder = tables_folder(context, options, attacks.paths, f"evaluate-figures-{key[:6]}")
    means = [(one.setup, one.region, one.mean) for one in fitness]
    tables = figure_tables(attacks.setups, means, options.confidence)
    write_tables(folder, tables)
    files = write_figures(console, folder, drawn, figures.formats)
    for note in attacks.notes:
        console.note(f"note: {note}")
    if not console.quiet and not options.json:
        console.note(f"{len(drawn)} figures: {', '.join(drawn)}; numbers: {', '.join(table.name for table in tables)}")
    summary = {"inputs": attacks.names, "figures": files, "tables": [table.name for table in tables]}
    console.result(folder, {**summary, "notes": attacks.notes, "failures": failures})
    exit_with(console, failures)


def _fitness(
    attacks: AttackStages, what: CurveOptions, confidence: float, failures: dict[str, str]
) -> Iterator[FitnessCurves]:
    """Yield the fitness curves of untargeted searches by setup and region, where histories tell them."""
    from pixelsem.metrics.effort import mean_fitness
    from pixelsem.report.charts import FitnessCurves

    for setup in attacks.setups:
        chosen = _chosen(attacks, setup, what)
        for region in setup.regions:
            searches = [search for search in chosen if search.record.region == region]
            curves = [curve for search in searches if (curve := _curve(search, failures)) is not None]
            mean = mean_fitness(curves, confidence)
            if mean is not None:
                yield FitnessCurves(setup, region, curves, mean)


def _chosen(attacks: AttackStages, setup: Setup, what: CurveOptions) -> list[Search]:
    """Return the untargeted first searches of a setup whose curves are wanted."""
    from pixelsem.metrics.effort import in_every_region
    from pixelsem.metrics.success import attacked, image_of, select

    records = attacked(select(setup.records, "untargeted"))
    if what.curves == "success":
        records = [record for record in records if record.success]
    elif what.curves == "common":
        common = in_every_region(records)
        records = [record for record in records if image_of(record) in common]
    searches = attacks.searches(setup)
    return [searches[record.key] for record in records]


def _curve(search: Search, failures: dict[str, str]) -> Curve | None:
    """Return the best fitness by generation, float64 [G]; None where the attack keeps none or it cannot be read."""
    from pixelsem.cli.evaluate_diff import read_history

    if search.record.history is None:
        return None
    try:
        arrays = read_history(search.stage, search.record.history)
        return _checked(arrays["best"], search) if "best" in arrays else None
    except StageError as error:
        failures[search.record.id] = str(error)
        return None


def _checked(best: np.ndarray[tuple[int, ...], np.dtype[np.generic]], search: Search) -> Curve:
    import numpy as np

    if best.ndim != 1 or not len(best) or not np.issubdtype(best.dtype, np.floating):
        path = search.stage.path / str(search.record.history)
        raise StageError(f"{path}: `best` is {best.dtype} {list(best.shape)}, not one fitness per generation")
    return best.astype(np.float64)
