"""The tables of effort: su2017's averages, success within a number of queries, fitness by generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pixelsem.metrics import effort as metrics
from pixelsem.metrics.setups import Setup
from pixelsem.metrics.success import GOALS
from pixelsem.report.setups import GOAL, REGION, SETUP, describe, each_region
from pixelsem.report.tables import Cell, Column, Table, ends, level, with_ends


def effort_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return su2017's AvgEvaluation and AvgDistortion, and how many target classes an image reaches."""
    columns = (
        *SETUP, REGION, GOAL,
        *with_ends("evaluations", "AvgEvaluation", digits=1), *with_ends("distortion", "AvgDistortion"),
        *with_ends("target_classes", "Target classes"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        for goal in GOALS:
            found = metrics.effort(setup.records, region, goal, confidence)
            if found is not None:
                values = [*ends(found.evaluations), *ends(found.distortion), *ends(found.target_classes)]
                rows.append([*describe(setup), region, goal, *values])
    notes = [
        "AvgEvaluation: candidates until success. AvgDistortion: absolute change per channel of the changed pixels, of "
        "255. Both are means over successful searches. Target classes: how many an image was turned into, mean over "
        f"images. Percentile bootstrap over images, {level(confidence)}."
    ]
    return Table("su2017", "Cost and distortion (su2017)", columns, rows, notes + ended_notes(setups))


def ended_notes(setups: Iterable[Setup]) -> list[str]:
    """Say it where some searches did not end with their first hit, so that their cost is not that of success."""
    if any(setup.options.get("early_stop") is False or setup.options.get("stop") == "confidence" for setup in setups):
        return ["Some searches went on after their first hit; their cost counts to where they ended."]
    return []


def ends_with_success(setup: Setup) -> bool:
    """Do the setup's searches end when they succeed, so that their queries say when that was?"""
    return setup.options.get("early_stop") is not False


def within_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return the share of searches that succeeded within q queries, one row per q at which it grows."""
    columns = (
        *SETUP, REGION, GOAL, Column("queries", "Queries", "count", about=True), Column("share", "Succeeded", "rate"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region in each_region([setup for setup in setups if ends_with_success(setup)]):
        for goal in GOALS:
            for queries, share in metrics.success_within(setup.records, region, goal, confidence):
                rows.append([*describe(setup), region, goal, queries, share])
    notes = [f"Share of the searches that ran; pointwise Wilson {level(confidence)}, by images."]
    return Table("within", "Success within a number of queries", columns, rows, notes + ended_notes(setups))


def fitness_table(curves: Iterable[tuple[Setup, str, metrics.FitnessCurve]], confidence: float = 0.95) -> Table:
    """Return the mean fitness by generation of untargeted searches, one row per setup, region and generation."""
    columns = (
        *SETUP, REGION, Column("generation", "Generation", "count", about=True), Column("n", "Searches", "count"),
        *with_ends("fitness", "Fitness", digits=4),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region, curve in curves:
        for number, mean in enumerate(curve.mean.tolist()):
            low = None if curve.low is None else float(curve.low[number])
            high = None if curve.high is None else float(curve.high[number])
            rows.append([*describe(setup), region, number + 1, curve.n, mean, low, high])
    notes = [
        "Best fitness so far, mean over searches; one that has ended keeps its last. Percentile bootstrap over "
        f"searches, {level(confidence)}."
    ]
    return Table("fitness", "Fitness by generation (wang2021, Fig. 6)", columns, rows, notes)
