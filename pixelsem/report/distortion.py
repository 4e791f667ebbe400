"""Tables of distortion: attack success beside SSIM and norms, in the shape of qian2021's Table I."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pixelsem.metrics.bootstrap import bootstrap_by_image
from pixelsem.metrics.distortion import LARGEST, Distortion, Summary, summarize
from pixelsem.metrics.intervals import Rate
from pixelsem.report.setups import SEARCH
from pixelsem.report.tables import Cell, Column, Table, ends, level, with_ends

#: Over which searches means are taken.
Over = Literal["successes", "all tries"]

_ABOUT = (*SEARCH, Column("over", "Means over", about=True))

#: Key, title, field of :class:`Distortion`, what it is divided by, and decimals.
_MEASURES = (
    ("ssim", "SSIM", "ssim", 1.0, 4),
    ("psnr_db", "PSNR (dB)", "psnr", 1.0, 2),
    ("l0_pixels", "L0 (pixels)", "l0_pixels", 1.0, 1),
    ("l0_values", "L0 (values)", "l0_values", 1.0, 1),
    ("l1_0_to_1", "L1 (0–1)", "l1", LARGEST, 2),
    ("l2_0_to_1", "L2 (0–1)", "l2", LARGEST, 3),
    ("linf_0_to_1", "L∞ (0–1)", "linf", LARGEST, 3),
    ("l1_0_to_255", "L1 (0–255)", "l1", 1.0, 1),
    ("l2_0_to_255", "L2 (0–255)", "l2", 1.0, 1),
    ("linf_0_to_255", "L∞ (0–255)", "linf", 1.0, 1),
)


@dataclass(frozen=True)
class DistortionRow:
    """One row: what it is about, the attack's success, and the distortion of some of its images.

    :ivar names: network, attack, pixels, variant, region and goal.
    :ivar asr: successes over the searches that ran (qian2021, Eq. 10).
    :ivar found: the distortion by search, as its record's key.
    """

    names: Sequence[Cell]
    over: Over
    asr: Rate | None
    found: Mapping[tuple[str, ...], Distortion]

    @property
    def images(self) -> int:
        """How many images the searches are of; several targets of one count once."""
        return len({image for image, *_ in self.found})


def distortion_table(rows: Sequence[DistortionRow], confidence: float, common: bool) -> Table:
    """Return qian2021's Table I: success rate, SSIM and norms (means over images), one row per attack and region.

    The paper does not give the unit of its norms; an ℓ1 of 24.89 over 15 values is too much for images in 0–1.
    """
    columns = (
        *_ABOUT,
        Column("asr", "ASR", "rate"),
        Column("images", "Images", "count"),
        *(Column(key, title, "number", digits) for key, title, _, _, digits in _MEASURES),
    )
    cells = [[*row.names, row.over, row.asr, row.images, *_means(_summary(row))] for row in rows]
    return Table(
        "distortion", "Success and distortion (qian2021, Table I)", columns, cells, _notes(rows, confidence, common)
    )


def _summary(row: DistortionRow) -> Summary | None:
    return summarize(list(row.found.values()))


def _means(summary: Summary | None) -> list[Cell]:
    if summary is None:
        return [None] * len(_MEASURES)
    return [summary.mean[name] / unit if name in summary.mean else None for _, _, name, unit, _ in _MEASURES]


def _notes(rows: Sequence[DistortionRow], confidence: float, common: bool) -> list[str]:
    notes = [
        f"ASR: successes over the searches that ran, of images the model gets right (count/searches), "
        f"{level(confidence)}. Norms are of all channel values of an image; their unit, images in 0–1 "
        "or 0–255, is in the heading. Means over images (targeted: image × target pairs).",
    ]
    if common:
        notes.append("Only images that were attacked in every row: every model is right on them (qian2021, §IV-A).")
    if any(one.psnr is None for row in rows for one in row.found.values()):
        notes.append("PSNR: over the images in which anything changed.")
    if any(summary is not None and "ssim" not in summary.mean for summary in map(_summary, rows)):
        notes.append("SSIM needs images of at least 11×11 pixels.")
    return notes


def norms_table(rows: Sequence[DistortionRow], confidence: float) -> Table:
    """Return every measure in long form: mean with its bootstrap interval over images, median, how many images."""
    columns = (
        *_ABOUT, Column("measure", "Measure", about=True), *with_ends("mean", "Mean", digits=4),
        Column("median", "Median", "number", 4), Column("n", "Images", "count"),
    )  # fmt: skip
    cells: list[list[Cell]] = []
    for row in rows:
        for key, _, name, unit, _ in _MEASURES:
            known = {key: value / unit for key, one in row.found.items() if (value := getattr(one, name)) is not None}
            if known:
                values = np.array(list(known.values()))
                mean = bootstrap_by_image(values, [image for image, *_ in known], confidence)
                middle = float(np.median(values))
                cells.append([*row.names, row.over, key, *ends(mean), middle, mean.n])
    notes = [f"Percentile bootstrap over images, {level(confidence)}."]
    return Table("norms", "Distortion, measure by measure", columns, cells, notes)
