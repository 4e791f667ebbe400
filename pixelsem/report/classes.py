"""The tables of classes: what became of the original ones, how many were reached, which led to which."""

from __future__ import annotations

from collections.abc import Sequence

from pixelsem.metrics import classes as metrics
from pixelsem.metrics.ranks import ORIGINAL, WITHIN, original_classes
from pixelsem.metrics.setups import Setup
from pixelsem.metrics.success import GOALS
from pixelsem.report.setups import GOAL, REGION, SETUP, describe, each_region
from pixelsem.report.tables import Cell, Column, Table, ends, level, with_ends


def ranks_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return Table III (wang2021): one row per setup, region and goal, for successful and for unsuccessful attacks."""
    columns = (
        *SETUP, REGION, GOAL, Column("attacks", "Attacks", about=True), Column("n", "n", "count"),
        *(column for k in ORIGINAL for column in with_ends(f"decrease_top{k}", f"Conf.-Decrease-top{k}", "percent")),
        *(Column(f"top{k}_in_top{m}", f"Ori-top{k}-in-top{m}", "rate") for k, m in WITHIN),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        for goal in GOALS:
            for name, succeeded in (("successful", True), ("unsuccessful", False)):
                found = original_classes(setup.records, region, goal, succeeded=succeeded, confidence=confidence)
                if found is not None:
                    decrease = [cell for k in ORIGINAL for cell in ends(found.decrease.get(k))]
                    within = [found.within.get(pair) for pair in WITHIN]
                    rows.append([*describe(setup), region, goal, name, found.images, *decrease, *within])
    notes = [
        "Conf.-Decrease-topk: confidence before minus after, mean over the original k best classes and the images; "
        f"percentile bootstrap over images, {level(confidence)}.",
        "Ori-topk-in-topm: image × class pairs whose class, one of the original k best, is among the m best after the "
        "attack; the interval stands on the effective number of pairs. Targeted: every search counts as an image, but "
        "intervals are by image.",
    ]
    return Table("table3", "What became of the original classes (wang2021, Table III)", columns, rows, notes)


def target_classes_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return the share of images turned into exactly 0, 1, 2, … target classes, one row per number (Fig. 3)."""
    reached = Column("reached", "Target classes", "count", about=True)
    columns = (*SETUP, REGION, reached, Column("share", "Images", "rate"))
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        for number, share in enumerate(metrics.target_classes(setup.records, region, confidence)):
            rows.append([*describe(setup), region, number, share])
    notes = [f"Targeted. Share of the attacked images (count/images), Wilson {level(confidence)}."]
    return Table("target-classes", "Target classes reached (wang2021, Fig. 3)", columns, rows, notes)


def class_pairs_table(setups: Sequence[Setup]) -> Table:
    """Return how often attacks led from one class to another, one row per pair that was reached (Figs. 4 and 5)."""
    columns = (
        *SETUP, REGION, GOAL, Column("original", "Original class", about=True),
        Column("target", "Target class", about=True), Column("count", "Successes", "count"),
        Column("tried", "Tried", "count"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        for goal in GOALS:
            found = metrics.class_pairs(setup.records, region, goal)
            names = metrics.sort_classes(name for pair in found.hits for name in pair)
            place = {name: number for number, name in enumerate(names)}
            for pair in sorted(found.hits, key=lambda pair: (place[pair[0]], place[pair[1]])):
                if found.hits[pair]:
                    rows.append([*describe(setup), region, goal, *pair, found.hits[pair], found.tried[pair]])
    notes = [
        "Untargeted, the target class is the one that the image was taken for. Tried: attacked images of the original "
        "class; targeted, searches from it to the target. Pairs that were never reached have no row."
    ]
    return Table("class-pairs", "Original and target classes (wang2021, Figs. 4 and 5)", columns, rows, notes)
