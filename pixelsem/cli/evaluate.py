"""``pixelsem evaluate``: the tables that a paper would print, from what attacks left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli import (
    evaluate_accuracy,
    evaluate_detection,
    evaluate_diff,
    evaluate_distortion,
    evaluate_masks,
    evaluate_occlusion,
    evaluate_panels,
    evaluate_sweep,
    evaluate_texture,
    evaluate_transfer,
    evaluate_vulnerability,
)
from pixelsem.cli.console import Console
from pixelsem.cli.groups import group_with_default
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.options import expand
from pixelsem.cli.tables import TableOptions, show_tables
from pixelsem.errors import PixelsemError

if TYPE_CHECKING:
    from pixelsem.metrics.setups import AttackStage
    from pixelsem.stage import Stage

Stages = Annotated[
    list[Path] | None,
    typer.Argument(help="Attack stages; several make one table (default: stdin, or the newest attack stage)."),
]


def register(app: typer.Typer) -> None:
    """Add the ``evaluate`` group; ``success`` is what it does when no subcommand is named."""
    group = typer.Typer(cls=group_with_default("success"), help="Make tables from what attacks left behind.")
    group.command("success")(expand(evaluate_success))
    group.command("accuracy")(expand(evaluate_accuracy.evaluate_accuracy))
    group.command("detection")(expand(evaluate_detection.evaluate_detection))
    group.command("diff")(expand(evaluate_diff.evaluate_diff))
    group.command("distortion")(expand(evaluate_distortion.evaluate_distortion))
    group.command("masks")(expand(evaluate_masks.evaluate_masks))
    group.command("occlusion")(expand(evaluate_occlusion.evaluate_occlusion))
    group.command("texture")(expand(evaluate_texture.evaluate_texture))
    group.command("panels")(expand(evaluate_panels.evaluate_panels))
    group.command("sweep")(expand(evaluate_sweep.evaluate_sweep))
    group.command("transfer")(expand(evaluate_transfer.evaluate_transfer))
    group.command("vulnerability")(expand(evaluate_vulnerability.evaluate_vulnerability))
    app.add_typer(group, name="evaluate")


def evaluate_success(*, stages: Stages = None, options: TableOptions) -> None:
    """Success, cost and area by network, region and number of pixels (wang2021, Tables II and IV).

    Several stages of the same network and search (say original, foreground and background) become one table;
    foreground and background are compared on the same images. Every table is written as JSON, CSV, Markdown
    and LaTeX.
    """
    from pixelsem.metrics.setups import combine
    from pixelsem.report.success import success_tables
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    opened, notes = _open(resolve_inputs(stages, options.run, ("attack",), note=console.note))
    setups, more = combine(opened)
    identity = digest({"stages": sorted({stage.info.contents for stage in opened})})
    folder = options.output or options.run / f"evaluate-success-{identity[:6]}"
    names = [stage.name for stage in opened]
    show_tables(console, folder, success_tables(setups, options.confidence), notes + more, {"inputs": names})


def _open(paths: Sequence[Path]) -> tuple[list[AttackStage], list[str]]:
    """Read every stage once; return those with records, and notes on what is missing or there twice."""
    from pixelsem.metrics.setups import AttackStage
    from pixelsem.stage import Stage

    notes = []
    distinct: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in distinct:
            notes.append(f"{path}: given twice; counted once")
        distinct.setdefault(path.resolve(), path)
    opened = []
    for path in distinct.values():
        stage = Stage.open(path)
        records = list(stage.attack_records())
        notes += _gaps(stage, len(records))
        opened.append(AttackStage(str(path), stage.info, records))
    if not any(stage.records for stage in opened):
        raise PixelsemError(f"{opened[0].name}: nothing attacked yet; run its attack command again and let it work")
    return [stage for stage in opened if stage.records], notes


def _gaps(stage: Stage, count: int) -> list[str]:
    """Say what a stage that was not finished lacks."""
    if count == 0:
        return [f"{stage.path}: holds no records yet"]
    planned = (stage.info.counts or {}).get("searches")
    if planned is None:
        return [f"{stage.path}: was not finished; the same attack command goes on from there"]
    if count < planned and stage.info.options.get("target") is None:
        return [f"{stage.path}: holds {count} of {planned} searches; the others failed or are still to be run"]
    return []
