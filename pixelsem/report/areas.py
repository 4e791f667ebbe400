"""The tables that tell a fragile region from a big one: success for its area, with equal areas, as borders move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from pixelsem.metrics import areas as metrics
from pixelsem.metrics.intervals import Paired, Rate, rate
from pixelsem.metrics.repeats import image_probabilities, seed_variance
from pixelsem.metrics.setups import Setup, alike_but
from pixelsem.metrics.success import GOALS, Goal, Image, mean_of, pair, sort_regions
from pixelsem.records import AttackRecord
from pixelsem.report.setups import GOAL, REGION, SETUP, describe
from pixelsem.report.tables import Cell, Column, Table, level, with_ends

_SIDES = ("foreground", "background")


def density_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return success for the area of each region, and foreground to background on the same images."""
    columns = (
        *SETUP, REGION, GOAL, Column("area", "Area, mean", "percent"), Column("success", "Success", "rate"),
        *with_ends("density", "Density"), *with_ends("ratio", "To background"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup in setups:
        for goal in GOALS:
            sides = {region: metrics.searched(setup.records, region, goal) for region in setup.regions}
            for region, images in sides.items():
                found = metrics.density(images, confidence)
                if found is not None:
                    ratio = None
                    if region == "foreground" and "background" in sides:
                        ratio = metrics.density_ratio(images, sides["background"], confidence)
                    values = [*_interval(found.density), *_interval(ratio)]
                    rows.append([*describe(setup), region, goal, found.area.value, found.success, *values])
    notes = [
        "Density: the λ of success = 1 − exp(−λ · area), area as a share of the image: regions of equal density differ "
        "in success by their area alone. To background: the foreground's density over the background's, on images "
        "attacked in both; above 1, the foreground is more fragile than its size explains. Likelihood-ratio and (To "
        f"background) percentile bootstrap {level(confidence)}; no number stands for one without bound."
    ]
    return Table("density", "Success for the area of a region", columns, rows, notes)


def _interval(found: metrics.Interval | None) -> list[Cell]:
    if found is None:
        return [None, None, None]
    return [value if isfinite(value) else None for value in (found.value, found.low, found.high)]


def matched_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return foreground against background with their own areas and with equal ones, on the same images."""
    columns = (
        *SETUP, GOAL, Column("areas", "Areas", about=True), Column("n", "Images", "count"),
        Column("foreground_area", "Area, foreground", "percent"),
        Column("background_area", "Area, background", "percent"),
        Column("foreground", "Success, foreground", "rate"), Column("background", "Success, background", "rate"),
        *with_ends("difference", "Difference", "points"), Column("p_value", "p (McNemar)", "p"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for own, matched in _matched_pairs(setups):
        for goal in GOALS:
            sides = {
                (name, region): metrics.searched(setup.records, region, goal)
                for name, setup in (("own", own), ("equal", matched))
                for region in _SIDES
            }
            common = set.intersection(*(set(images) for images in sides.values()))
            for name in ("own", "equal") if common else ():
                found = [{image: sides[name, region][image] for image in common} for region in _SIDES]
                rows.append([*describe(own, without=["match_area"]), goal, name, *_side_cells(found, confidence)])
    notes = [
        "The same images in every row of a search. Equal: both regions were reduced to the smaller one's number of "
        f"pixels (--match-area). Wilson {level(confidence)}; difference by Newcombe's method 10, p by McNemar's exact "
        "test."
    ]
    return Table("matched", "Foreground against background with equal areas", columns, rows, notes)


def _matched_pairs(setups: Sequence[Setup]) -> Iterator[tuple[Setup, Setup]]:
    for group in alike_but(setups, "match_area"):
        by_choice = {bool((setup.region_options or {}).get("match_area")): setup for setup in group}
        if len(by_choice) == 2:
            yield by_choice[False], by_choice[True]


def _side_cells(found: Sequence[Mapping[Image, metrics.Searched]], confidence: float) -> list[Cell]:
    areas = [fmean(one.area for one in side.values()) for side in found]
    success = [{image: one.success for image, one in side.items()} for side in found]
    shares = [rate(sum(side.values()), len(side), confidence) for side in success]
    paired = pair(*success)
    return [paired.n, *areas, *shares, *_difference(paired, confidence)]


def _difference(paired: Paired, confidence: float) -> list[Cell]:
    return [paired.difference, *paired.interval(confidence), paired.p_value]


@dataclass(frozen=True)
class Border:
    """Success in one region with the mask's border moved by ``offset`` pixels (below 0: inwards)."""

    setup: Setup
    region: str
    goal: Goal
    offset: int
    area: float
    success: Rate
    change: Paired | None


def borders(setups: Sequence[Setup], confidence: float = 0.95) -> list[Border]:
    """Return success by the border's place, where setups differ in it alone; ``change`` is against offset 0."""
    return [
        border
        for group in alike_but(setups, "grow", "shrink")
        for region in sort_regions(region for setup in group for region in setup.regions if region != "original")
        for goal in GOALS
        for border in _borders(group, region, goal, confidence)
    ]


def _offset(setup: Setup) -> int:
    options = setup.region_options or {}
    return int(options.get("grow") or 0) - int(options.get("shrink") or 0)


def _borders(group: Sequence[Setup], region: str, goal: Goal, confidence: float) -> Iterator[Border]:
    by_offset = {_offset(setup): metrics.searched(setup.records, region, goal) for setup in group}
    own = {image: one.success for image, one in by_offset.get(0, {}).items()}
    for offset, images in sorted(by_offset.items()):
        area = mean_of(one.area for one in images.values())
        share = rate(sum(one.success for one in images.values()), len(images), confidence)
        if area is not None and share is not None:
            change = pair({image: one.success for image, one in images.items()}, own) if offset else None
            change = change if change is not None and change.n else None
            yield Border(group[0], region, goal, offset, area.value, share, change)


def borders_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return success by how far the mask's border was moved (--grow, --shrink)."""
    columns = (
        *SETUP, REGION, GOAL, Column("border", "Border moved", "count", about=True),
        Column("area", "Area, mean", "percent"), Column("success", "Success", "rate"),
        Column("n", "Images, also unmoved", "count"), *with_ends("change", "Change", "points"),
        Column("p_value", "p (McNemar)", "p"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for one in borders(setups, confidence):
        change: list[Cell] = [None] * 5
        if one.change is not None:
            change = [one.change.n, *_difference(one.change, confidence)]
        names = [*describe(one.setup, without=["grow", "shrink"]), one.region, one.goal, one.offset]
        rows.append([*names, one.area, one.success, *change])
    notes = [
        f"In pixels of the foreground's border: above 0 outwards, below inwards. Wilson {level(confidence)}. Change: "
        "in points against the unmoved border, on images attacked with both; Newcombe's method 10, McNemar's test."
    ]
    return Table("borders", "Success as the mask's border moves", columns, rows, notes)


def seeds_table(setups: Sequence[Setup]) -> Table:
    """Return how success varies between searches that differ in their random numbers alone (--repeats, --seed)."""
    columns = (
        *SETUP, REGION, Column("searches", "Searches", "count"), Column("images", "Images", "count"),
        Column("mean", "Success, mean", "percent"), Column("deviation", "Standard deviation", "percent"),
        Column("least", "Least", "percent"), Column("most", "Most", "percent"),
        Column("never", "Never", "count"), Column("sometimes", "Sometimes", "count"),
        Column("always", "Always", "count"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for names, records in _seed_groups(setups):
        for region in sort_regions(record.region for record in records):
            found = seed_variance(records, region)
            if found is not None:
                rows.append([
                    *names, region, found.searches, found.images, found.mean, found.deviation, found.least, found.most,
                    found.never, found.sometimes, found.always,
                ])  # fmt: skip
    notes = [
        "Untargeted, over images that every search attacked. Standard deviation of the share of images between "
        "searches. Never, sometimes, always: images on which none, some or all of the searches succeed."
    ]
    return Table("seeds", "Success with other random numbers", columns, rows, notes)


def _seed_groups(setups: Sequence[Setup]) -> Iterator[tuple[list[Cell], list[AttackRecord]]]:
    """Yield what the rows of one search are about, and its records with every seed."""
    groups = alike_but(setups, "seed")
    grouped = [id(setup) for group in groups for setup in group]
    for group in groups + [[setup] for setup in setups if id(setup) not in grouped]:
        yield describe(group[0], without=["seed"]), [record for setup in group for record in setup.records]


def probabilities_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return every image's share of successful searches, where searches are repeated."""
    columns = (
        *SETUP, REGION, Column("id", "Image", about=True), Column("label", "Class", about=True),
        Column("success", "Success", "rate"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for names, records in _seed_groups(setups):
        for region in sort_regions(record.region for record in records):
            for (image, label), share in image_probabilities(records, region, confidence).items():
                rows.append([*names, region, image, label, share])
    notes = [f"Untargeted. Share of an image's searches, Wilson {level(confidence)}."]
    return Table("image-success", "Success probability of each image", columns, rows, notes)
