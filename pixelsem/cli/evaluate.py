"""``pixelsem evaluate``: the tables that a paper would print, from what attacks left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pixelsem.cli import (
    evaluate_accuracy,
    evaluate_detection,
    evaluate_diff,
    evaluate_distortion,
    evaluate_figures,
    evaluate_masks,
    evaluate_occlusion,
    evaluate_panels,
    evaluate_report,
    evaluate_robustness,
    evaluate_sweep,
    evaluate_texture,
    evaluate_transfer,
    evaluate_vulnerability,
)
from pixelsem.cli.console import Console
from pixelsem.cli.groups import group_with_default
from pixelsem.cli.options import expand
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder

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
    group.command("figures")(expand(evaluate_figures.evaluate_figures))
    group.command("masks")(expand(evaluate_masks.evaluate_masks))
    group.command("occlusion")(expand(evaluate_occlusion.evaluate_occlusion))
    group.command("texture")(expand(evaluate_texture.evaluate_texture))
    group.command("panels")(expand(evaluate_panels.evaluate_panels))
    group.command("robustness")(expand(evaluate_robustness.evaluate_robustness))
    group.command("report")(expand(evaluate_report.evaluate_report))
    group.command("sweep")(expand(evaluate_sweep.evaluate_sweep))
    group.command("transfer")(expand(evaluate_transfer.evaluate_transfer))
    group.command("vulnerability")(expand(evaluate_vulnerability.evaluate_vulnerability))
    app.add_typer(group, name="evaluate")


def evaluate_success(*, context: typer.Context, stages: Stages = None, options: TableOptions) -> None:
    """Success, cost and area by network, region and number of pixels (wang2021, Tables II to IV; su2017).

    Several stages of the same network and search (say original, foreground and background) become one table;
    foreground and background are compared on the same images. Every table is written as JSON, CSV, Markdown
    and LaTeX, beside the stages unless --run or -o is given.
    """
    from pixelsem.cli.attack_stages import open_attacks
    from pixelsem.report.success import BRIEF, success_tables
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    attacks = open_attacks(stages, options.run, console.note, compact=True)
    identity = digest({"stages": attacks.identities})
    folder = tables_folder(context, options, attacks.paths, f"evaluate-success-{identity[:6]}")
    tables = success_tables(attacks.setups, options.confidence)
    summary = {"inputs": attacks.names, "failures": attacks.failures}
    show_tables(console, folder, tables, attacks.notes, summary, shown=BRIEF)
    exit_with(console, attacks.failures)
