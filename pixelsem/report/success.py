"""The tables of an attack: success (wang2021, Table II), generations (Table IV), queries, paired tests, regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pixelsem.metrics import success as metrics
from pixelsem.metrics.effort import FitnessCurve
from pixelsem.metrics.intervals import Paired
from pixelsem.metrics.setups import Setup, opposites
from pixelsem.metrics.success import GOALS, Mean, Success
from pixelsem.report.areas import borders_table, density_table, matched_table, probabilities_table, seeds_table
from pixelsem.report.classes import class_pairs_table, ranks_table, target_classes_table
from pixelsem.report.effort import effort_table, ended_notes, fitness_table, within_table
from pixelsem.report.setups import GOAL, REGION, SETUP, describe, each_region
from pixelsem.report.tables import Cell, Column, Table, cell_text, level, with_ends

#: The tables that answer the question; the others go further into it.
BRIEF = (
    "table2",
    "images",
    "generations",
    "paired",
    "constraints",
    "matched",
    "borders",
    "repeats",
    "seeds",
    "density",
)


def success_tables(setups: Sequence[Setup], confidence: float = 0.95) -> list[Table]:
    """Return every table that has rows, in the order of a paper; ``confidence`` is the intervals' level."""
    tables = [
        success_table(setups, confidence),
        paper_table(setups, confidence),
        images_table(setups, confidence),
        generations_table(setups),
        paired_table(setups, confidence),
        constraints_table(setups, confidence),
        matched_table(setups, confidence),
        borders_table(setups, confidence),
        repeats_table(setups, confidence),
        seeds_table(setups),
        density_table(setups, confidence),
        queries_table(setups),
        regions_table(setups),
        ranks_table(setups, confidence),
        effort_table(setups, confidence),
        target_classes_table(setups, confidence),
        class_pairs_table(setups),
        within_table(setups, confidence),
        probabilities_table(setups, confidence),
    ]
    return [table for table in tables if table.rows]


def figure_tables(
    setups: Sequence[Setup], fitness: Sequence[tuple[Setup, str, FitnessCurve]], confidence: float = 0.95
) -> list[Table]:
    """Return the numbers behind the figures of attacks; ``fitness`` are the mean curves by setup and region."""
    tables = [
        success_table(setups, confidence),
        target_classes_table(setups, confidence),
        class_pairs_table(setups),
        within_table(setups, confidence),
        fitness_table(fitness, confidence),
        borders_table(setups, confidence),
    ]
    return [table for table in tables if table.rows]


def _value(mean: Mean | None) -> float | None:
    return None if mean is None else mean.value


def _median(mean: Mean | None) -> float | None:
    return None if mean is None else mean.median


def success_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return the numbers of Table II, one row per setup × region."""
    columns = (
        *SETUP, REGION,
        Column("untargeted1", "Untargeted1", "rate"), Column("confidence_u", "Confidence_u", "percent"),
        Column("untargeted2", "Untargeted2", "rate"), Column("targeted", "Targeted", "rate"),
        Column("confidence_t", "Confidence_t", "percent"), Column("targets", "Targets per image"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    cells = [(setup, name, metrics.success(setup.records, name, confidence)) for setup, name in each_region(setups)]
    for setup, region, cell in cells:
        rows.append([
            *describe(setup), region, cell.untargeted1, _value(cell.confidence_u), cell.untargeted2, cell.targeted,
            _value(cell.confidence_t), _targets(cell),
        ])  # fmt: skip
    notes = _success_notes([cell for _, _, cell in cells], confidence)
    return Table("success", "Success of attacks", columns, rows, notes)


def _targets(cell: Success) -> str | None:
    least, most = cell.targets
    if most == 0:
        return None
    return str(most) if least == most else f"{least} to {most}"


def _success_notes(cells: Sequence[Success], confidence: float) -> list[str]:
    notes = [f"Share of the attacked images (count/images), Wilson {level(confidence)}."]
    if any(cell.targeted for cell in cells):
        notes.append(
            "Untargeted2: images that reached at least one target. Targeted: image × target pairs; as pairs of one "
            "image are not independent, its interval stands on the effective number of pairs."
        )
    if any(cell.targets[0] != cell.targets[1] for cell in cells):
        notes.append("Not every image was tried for the same number of targets; Untargeted2 may be too low.")
    return notes


#: The metrics of Table II, by the fields of :class:`pixelsem.metrics.success.Success`.
_METRICS = (
    Column("untargeted1", "Untargeted1", "rate"),
    Column("confidence_u", "Confidence_u", "percent"),
    Column("untargeted2", "Untargeted2", "rate"),
    Column("targeted", "Targeted", "rate"),
    Column("confidence_t", "Confidence_t", "percent"),
)


def paper_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return Table II as it is printed: network × metric down, region × pixels across; cells are texts."""
    regions = metrics.sort_regions(region for _, region in each_region(setups))
    places = [(region, pixels) for region in regions for pixels in sorted({setup.pixels or 0 for setup in setups})]
    blocks: dict[tuple[Cell, ...], dict[tuple[str, int], Success]] = {}
    for setup, region in each_region(setups):
        block = blocks.setdefault((setup.network, setup.attack, setup.constraint, setup.variant or None), {})
        block[region, setup.pixels or 0] = metrics.success(setup.records, region, confidence)
    rows = [row for names, block in blocks.items() for row in _paper_rows(names, block, places)]
    cells = [cell for block in blocks.values() for cell in block.values()]
    network, attack, _, constraint, variant = SETUP
    across = (Column(f"{region}_{pixels}", _place(region, pixels)) for region, pixels in places)
    return Table(
        "table2",
        "Success of attacks by region and number of pixels (wang2021, Table II)",
        (network, attack, constraint, variant, Column("metric", "Metric", about=True), *across),
        rows,
        _success_notes(cells, confidence),
    )


def _paper_rows(
    names: tuple[Cell, ...], block: dict[tuple[str, int], Success], places: Sequence[tuple[str, int]]
) -> Iterator[list[Cell]]:
    """Yield one row per metric that has a value anywhere."""
    for metric in _METRICS:
        texts: list[Cell] = []
        for place in places:
            value = getattr(block[place], metric.key) if place in block else None
            plain = value.value if isinstance(value, Mean) else value
            texts.append(None if plain is None else cell_text(plain, metric))
        if any(text is not None for text in texts):
            yield [*names, metric.title, *texts]


def _place(region: str, pixels: int) -> str:
    return region.capitalize() + (f", {pixels} pixel{'s' * (pixels > 1)}" if pixels else "")


def images_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return what became of the images drawn: attacked, or why not, and the success over all of them."""
    columns = (
        *SETUP, REGION, GOAL,
        Column("drawn", "Drawn", "count"), Column("attacked", "Attacked", "count"),
        Column("misclassified", "Misclassified", "count"), Column("empty_region", "Empty region", "count"),
        Column("flagged_mask", "Flagged mask", "count"), Column("of_all", "Success of all drawn", "rate"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        for goal in GOALS:
            found = metrics.drawn(setup.records, region, goal, confidence)
            if found is not None:
                counts = (found.images, found.attacked, found.misclassified, found.empty_region, found.flagged_mask)
                rows.append([*describe(setup), region, goal, *counts, found.of_all])
    notes = ["Misclassified: the model is wrong on the clean image, which was not attacked and is no success."]
    return Table("images", "Images", columns, rows, notes)


def generations_table(setups: Sequence[Setup]) -> Table:
    """Return Table IV: mean generations of successful untargeted searches, in two readings."""
    regions = metrics.sort_regions(region for _, region in each_region(setups))
    means = [Column(f"{region}", region.capitalize(), "number") for region in regions]
    counts = [Column(f"{region}_n", f"n ({region})", "count") for region in regions]
    columns = (*SETUP, Column("images", "Over", about=True), *means, *counts)
    rows: list[list[Cell]] = []
    for setup in setups:
        own = metrics.generations(setup.records)
        common = metrics.generations_in_common(setup.records)
        for name, found in (("each region's successes", own), ("successes in every region", common)):
            if found:
                values = [_value(found.get(region)) for region in regions]
                ns = [found[region].n if region in found else 0 for region in regions]
                rows.append([*describe(setup), name, *values, *ns])
    notes = ["Untargeted. The initial population is generation 1; n is the number of images behind each mean."]
    title = "Mean generations to success (wang2021, Table IV)"
    return Table("generations", title, columns, rows, notes + ended_notes(setups))


def queries_table(setups: Sequence[Setup]) -> Table:
    """Return queries and candidates per search: over the successes, and over all with failures as spent."""
    measures = [("queries", "Queries"), ("candidates", "Candidates")]
    columns = [*SETUP, REGION, GOAL, Column("searches", "Searches", "count"), Column("hits", "Hits", "count")]
    for key, title in measures:
        columns += [
            Column(f"{key}_mean", f"{title}, mean of hits", "number", 1),
            Column(f"{key}_median", f"{title}, median of hits", "number", 1),
            Column(f"{key}_all_mean", f"{title}, mean of all", "number", 1),
            Column(f"{key}_all_median", f"{title}, median of all", "number", 1),
        ]
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        for goal in GOALS:
            found = metrics.cost(setup.records, region, goal)
            if found is not None:
                means = (found.queries, found.queries_all, found.candidates, found.candidates_all)
                values = [value for mean in means for value in (_value(mean), _median(mean))]
                hits = found.queries.n if found.queries else 0
                rows.append([*describe(setup), region, goal, found.searches, hits, *values])
    notes = ["Query: a candidate that went through the model. All: a failed search counts what it spent of its budget."]
    return Table("queries", "Queries per search", columns, rows, notes)


def _pair_columns(first: str, second: str) -> tuple[Column, ...]:
    return (
        Column("n", "Images", "count"),
        Column("both", "Both", "count"), Column(f"only_{first}", f"Only {first}", "count"),
        Column(f"only_{second}", f"Only {second}", "count"), Column("neither", "Neither", "count"),
        Column(f"{first}_share", f"Success, {first}", "percent"),
        Column(f"{second}_share", f"Success, {second}", "percent"),
        *with_ends("difference", "Difference", "points"), Column("p_value", "p (McNemar)", "p"),
    )  # fmt: skip


def _pair_cells(pair: Paired, confidence: float) -> list[Cell]:
    counts: list[Cell] = [pair.n, pair.both, pair.only_first, pair.only_second, pair.neither]
    shares = [(pair.both + only) / pair.n for only in (pair.only_first, pair.only_second)]
    return [*counts, *shares, pair.difference, *pair.interval(confidence), pair.p_value]


def _pair_notes(confidence: float) -> list[str]:
    return [
        "Only images attacked in both; targeted: reached at least one target. "
        f"{level(confidence).capitalize()} of the difference by Newcombe's method 10 for paired shares, p by "
        "McNemar's exact test."
    ]


def paired_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return foreground against background on the same images."""
    rows: list[list[Cell]] = []
    for setup in setups:
        for goal in GOALS:
            sides = [metrics.image_success(setup.records, region, goal) for region in ("foreground", "background")]
            pair = metrics.pair(*sides)
            if pair.n:
                rows.append([*describe(setup), goal, *_pair_cells(pair, confidence)])
    columns = (*SETUP, GOAL, *_pair_columns("foreground", "background"))
    return Table("paired", "Foreground against background", columns, rows, _pair_notes(confidence))


def constraints_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return encode against revert on the same images, where two setups differ in nothing else."""
    rows: list[list[Cell]] = []
    for encode, revert in opposites(setups, "constraint", "encode", "revert"):
        for region in encode.regions:
            for goal in GOALS:
                pair = metrics.pair(*(metrics.image_success(s.records, region, goal) for s in (encode, revert)))
                if pair.n:
                    names = [encode.network, encode.attack, encode.pixels, region, goal]
                    rows.append([*names, *_pair_cells(pair, confidence)])
    network, attack, pixels, *_ = SETUP
    columns = (network, attack, pixels, REGION, GOAL, *_pair_columns("encode", "revert"))
    return Table("constraints", "Constraint encode against revert", columns, rows, _pair_notes(confidence))


def repeats_table(setups: Sequence[Setup], confidence: float = 0.95) -> Table:
    """Return the success of repeated untargeted searches of the same images."""
    columns = (
        *SETUP, REGION, Column("searches", "Searches per image", "count"),
        Column("per_search", "Success per search", "rate"), Column("any", "Any search", "rate"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        found = metrics.repeat_statistics(setup.records, region, confidence)
        if found is not None:
            rows.append([*describe(setup), region, found.searches, found.per_search, found.any])
    notes = [
        "Untargeted. The other tables count the first search of each image. Success per search is the mean over "
        "images of an image's success probability; its interval is by images."
    ]
    return Table("repeats", "Repeated searches", columns, rows, notes)


def regions_table(setups: Sequence[Setup]) -> Table:
    """Return how large each region is."""
    columns = (
        *SETUP, REGION, Column("images", "Images", "count"),
        Column("area_mean", "Area, mean", "percent"), Column("area_median", "Area, median", "percent"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for setup, region in each_region(setups):
        share = metrics.area(setup.records, region)
        if share is not None:
            rows.append([*describe(setup), region, share.n, share.value, share.median])
    return Table("regions", "Area of the regions", columns, rows, ["Share of the image, over the images attacked."])
