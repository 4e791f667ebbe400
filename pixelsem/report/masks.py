"""The tables of masks: their quality, how they agree with each other, and the texture of their regions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pixelsem.metrics.bootstrap import RESAMPLES, Estimate
from pixelsem.metrics.masks import Measured, Quality, Summary
from pixelsem.metrics.texture import TextureSummary
from pixelsem.report.tables import Cell, Column, Table, ends, with_ends

_METHOD = Column("masks", "Masks", about=True)


def _intervals(confidence: float) -> str:
    return f"From, to: {100 * confidence:g} % percentile bootstrap over images ({RESAMPLES} resamples)"


def masks_table(methods: Mapping[str, Summary], threshold: float | None, confidence: float = 0.95) -> Table:
    """Return one row per method: quality where there is a truth, coverage, and how many masks are flagged."""
    columns = (
        _METHOD, Column("n", "Images", "count"),
        *with_ends("iou", "IoU", digits=3), *with_ends("max_f", "max-F", digits=3),
        Column("mean_f", "mean F", "number", 3), Column("adaptive_f", "adaptive F", "number", 3),
        *with_ends("mae", "MAE", digits=3), *with_ends("s_measure", "S", digits=3),
        Column("coverage", "Coverage", "percent"), Column("flagged", "Flagged", "rate"),
    )  # fmt: skip
    rows = [
        [name, found.n, *_quality_cells(found.quality), found.coverage, found.flagged]
        for name, found in methods.items()
    ]
    return Table("masks", "Masks", columns, rows, _notes(methods.values(), threshold, confidence))


def _quality_cells(quality: Quality | None) -> list[Cell]:
    if quality is None:
        return [None] * 14
    averages = [quality.mean_f.value, quality.adaptive_f.value]
    return [
        *ends(quality.iou), *ends(quality.max_f), *averages, *ends(quality.mae), *ends(quality.s_measure),
    ]  # fmt: skip


def _notes(methods: Iterable[Summary], threshold: float | None, confidence: float) -> list[str]:
    notes = [
        "Coverage: the foreground's mean share of the image. Flagged: degenerate foregrounds, or what a person "
        f"rejected (Wilson {100 * confidence:g} % interval)."
    ]
    qualities = [found.quality for found in methods if found.quality is not None]
    if qualities:
        cut = "each method's own threshold" if threshold is None else f"{threshold:g}"
        notes.insert(
            0,
            f"Means over the images. IoU: foreground at {cut}. F: beta squared 0.3, of precision and recall "
            "averaged over the images at each of 256 thresholds (max and mean over these), and at twice "
            f"each mask's mean (adaptive). MAE: less is better. S: S-measure. {_intervals(confidence)}.",
        )
    empty = max((quality.empty_truths for quality in qualities), default=0)
    if empty:
        notes.append(f"{empty} true masks have no foreground; their precision and recall count as 0.")
    return notes


@dataclass(frozen=True)
class PairRow:
    """How two methods agree; ``gain`` is the second's IoU with the truth minus the first's, None without a truth."""

    first: str
    second: str
    iou: Estimate
    agreement: Estimate
    gain: Estimate | None


def agreement_table(pairs: Sequence[PairRow], confidence: float = 0.95) -> Table:
    """Return one row per two methods, on the same images."""
    columns = (
        Column("first", "First", about=True), Column("second", "Second", about=True), Column("n", "Images", "count"),
        *with_ends("iou", "IoU", digits=3), Column("agreement", "Same pixels", "percent"),
        *with_ends("gain", "Gain", "points", 1),
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [pair.first, pair.second, pair.iou.n, *ends(pair.iou), pair.agreement.value, *ends(pair.gain)] for pair in pairs
    ]
    notes = [f"IoU and shared pixels of the two foregrounds, means over the images. {_intervals(confidence)}."]
    if any(pair.gain is not None for pair in pairs):
        notes.append("Gain: the second's IoU with the truth minus the first's, image by image, in points.")
    return Table("agreement", "Agreement of methods", columns, rows, notes)


def images_table(methods: Mapping[str, Mapping[str, Measured]]) -> Table:
    """Return one row per method and image."""
    columns = (
        _METHOD, Column("id", "Image", about=True), Column("iou", "IoU", "number", 3),
        Column("mae", "MAE", "number", 3), Column("s_measure", "S", "number", 3),
        Column("adaptive_f", "adaptive F", "number", 3), Column("coverage", "Coverage", "percent"),
        Column("flagged", "Flagged", "count"),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for name, images in methods.items():
        for image, found in images.items():
            scores = found.scores
            quality: list[Cell] = [None] * 4
            if scores is not None:
                quality = [scores.iou, scores.mae, scores.s_measure, scores.adaptive_f]
            rows.append([name, image, *quality, found.coverage, int(found.flagged)])
    return Table("images", "Masks by image", columns, rows)


def texture_table(methods: Mapping[str, TextureSummary], wet_cost: float, confidence: float = 0.95) -> Table:
    """Return one row per source of masks: the HILL cost of foreground and background."""
    large = any(mean.value >= 1000 for found in methods.values() for mean in (found.foreground, found.background))
    digits = 0 if large else 3
    columns = (
        _METHOD, Column("n", "Images", "count"),
        *with_ends("foreground", "Foreground", digits=digits),
        *with_ends("background", "Background", digits=digits),
        *with_ends("difference", "Difference", digits=digits),
        Column("textured", "Foreground has more texture", "rate"),
        Column("median_foreground", "Foreground, median", "number", 4),
        Column("median_background", "Background, median", "number", 4),
        Column("flat_foreground", "Flat, foreground", "percent"),
        Column("flat_background", "Flat, background", "percent"),
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            name, found.textured.n, *ends(found.foreground), *ends(found.background), *ends(found.difference),
            found.textured, found.median_foreground, found.median_background, found.flat_foreground,
            found.flat_background,
        ]
        for name, found in methods.items()
    ]  # fmt: skip
    notes = [
        f"HILL cost, less is more texture: each region's mean, then the mean and median over images. Difference: "
        f"background minus foreground. {_intervals(confidence)}; Wilson interval of the share.",
        f"Flat pixels, around which nothing varies, cost {wet_cost:g} each (--wet-cost) and make up most of a mean "
        "where there are any: compare means of one wet cost only.",
    ]
    return Table("texture", "Texture by region (dong2020, §3.2)", columns, rows, notes)
