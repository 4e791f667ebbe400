"""How well attacks are detected: tables of the shape of dong2020's Table 2, and the ROC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pixelsem.metrics.detection import Detection
from pixelsem.metrics.intervals import Rate
from pixelsem.metrics.setups import worded
from pixelsem.report.tables import Cell, Column, Table, ends, level, with_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class DetectionRow:
    """One attack's images under one detector.

    :ivar pixels: how many pixels the attack changes, where it has such a limit.
    :ivar delta: the attack's budget δ, where it has one; ``variant``, what else tells it from others in the table.
    :ivar features: what the detector looks at, e.g. ``spam (separate)``.
    :ivar trained_on: the attack that the detector was trained on; None where it was this very one.
    :ivar detector: what tells the row from others that are about the same, e.g. ``seed=1``; None where none are.
    """

    network: str
    attack: str
    pixels: int | None
    variant: str | None
    delta: float | None
    region: str
    features: str
    trained_on: str | None
    found: Detection
    detector: str | None = None

    @property
    def label(self) -> str:
        """What the row is called in a figure."""
        pixels = None if self.pixels is None else f"pixels={self.pixels}"
        delta = None if self.delta is None else f"δ={self.delta:g}"
        other = None if self.trained_on is None else f"by {self.trained_on}"
        region = None if self.region == "original" else self.region
        parts = (self.attack, pixels, delta, self.variant, region, other, self.detector)
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Source:
    """Where a row's scores are from, to tell it from other rows.

    :ivar training: how the detector was trained, by option; None where that is not known.
    :ivar held_out: whether the images are those held out of its training, not others scored later.
    :ivar stage: what the stage that holds the scores is called; each stage has a name of its own.
    """

    training: Mapping[str, Any] | None
    held_out: bool
    stage: str


def tell_apart(rows: Sequence[DetectionRow], sources: Sequence[Source]) -> list[DetectionRow]:
    """Return the rows with :attr:`DetectionRow.detector` filled in where several are about one attack and budget.

    A row is named by what its detector differs in from the others: options of its training, and whether the images
    are those held out of it. One that this does not name, or that shares its name with another of its budget, is named
    by its stage too. The budgets of one attack are named alike, so that they make one line of :func:`delta_table`.
    """
    lines: dict[tuple[Cell, ...], list[int]] = {}
    for number, row in enumerate(rows):
        lines.setdefault((*_about(row), row.trained_on), []).append(number)
    told = list(rows)
    for line in lines.values():
        names = _names([rows[number].delta for number in line], [sources[number] for number in line])
        for number, name in zip(line, names, strict=True):
            told[number] = replace(rows[number], detector=name or None)
    return told


def _names(deltas: Sequence[float | None], sources: Sequence[Source]) -> list[str]:
    """Return what the detectors of one line are called, empty where each budget has one alone."""
    if len(set(deltas)) == len(deltas):
        return [""] * len(deltas)
    words = _differences(sources)
    times = Counter(zip(deltas, words, strict=True))
    return [
        ", ".join(filter(None, [said, source.stage if not said or times[delta, said] > 1 else ""]))
        for delta, said, source in zip(deltas, words, sources, strict=True)
    ]


def _differences(sources: Sequence[Source]) -> list[str]:
    """Return what each source differs in from the others, in words; empty where its training is not known."""
    known = [(source.training, source.held_out) for source in sources if source.training is not None]
    first = known[0][0] if known else {}
    names = [name for name in first if any(training.get(name) != first[name] for training, _ in known)]
    both = len({held_out for _, held_out in known}) == 2

    def words(source: Source) -> str:
        if source.training is None:
            return ""
        parts = [worded(name, source.training.get(name)) for name in names]
        return ", ".join([*parts, "held out" if source.held_out else "scored"] if both else parts)

    return [words(source) for source in sources]


_ABOUT = (
    Column("network", "Network", about=True),
    Column("attack", "Attack", about=True),
    Column("pixels", "Pixels", "count", about=True),
    Column("variant", "Variant", about=True),
    Column("region", "Region", about=True),
    Column("features", "Features", about=True),
)
_DETECTOR = Column("detector", "Detector", about=True)


def detection_table(rows: Sequence[DetectionRow], confidence: float = 0.95) -> Table:
    """Return detection, false alarms, P_E and the area under the ROC, one row per attack, region and detector."""
    about, shown = _about_all(rows)
    columns = (
        *about,
        Column("delta", "δ", "number", 0 if all((row.delta or 0) % 1 == 0 for row in rows) else 2, about=True),
        Column("trained_on", "Detector trained on", about=True),
        Column("images", "Images", "count"),
        Column("detected", "Detected", "rate"),
        Column("false_alarms", "False alarms", "rate"),
        *with_ends("error", "P_E", "percent"),
        *with_ends("area", "AUC", digits=3),
    )
    notes = [
        "Images that the detector was not trained on, each clean and with its adversarial version.",
        f"Detected and False alarms: Wilson {level(confidence)}. P_E = (false alarms + misses) / 2 at the detector's "
        f"own threshold, and AUC: percentile bootstrap over images, {level(confidence)}, a clean image and its "
        "adversarial versions drawn together.",
    ]
    cells = [[*own, *_cells(row)] for own, row in zip(shown, rows, strict=True)]
    return Table("detection", "Steganalysis-based detection", columns, cells, notes)


def _about_all(rows: Sequence[DetectionRow]) -> tuple[list[Column], list[list[Cell]]]:
    """Return the columns of what rows are about, and their cells: the detector's too where that tells rows apart."""
    if any(row.detector for row in rows):
        return [*_ABOUT, _DETECTOR], [[*_about(row), row.detector] for row in rows]
    return [*_ABOUT], [_about(row) for row in rows]


def _about(row: DetectionRow) -> list[Cell]:
    return [row.network, row.attack, row.pixels, row.variant, row.region, row.features]


def _cells(row: DetectionRow) -> list[Cell]:
    found = row.found
    return [
        row.delta, row.trained_on, found.images, found.detected, found.false_alarms,
        *ends(found.error), *ends(found.area),
    ]  # fmt: skip


def delta_table(rows: Sequence[DetectionRow], confidence: float = 0.95) -> Table | None:
    """Return the detection rates in the shape of dong2020's Table 2: one row per attack, one column per budget δ.

    Detectors trained on another attack are left out, as are attacks without δ; None where nothing is left. Several
    detectors of one attack and budget have a row each.
    """
    own = [row for row in rows if row.delta is not None and row.trained_on is None]
    deltas = sorted({row.delta for row in own if row.delta is not None})
    lines: dict[tuple[Cell, ...], dict[float, Rate]] = {}
    about, shown = _about_all(own)
    for cells, row in zip(shown, own, strict=True):
        if row.delta is not None:
            lines.setdefault(tuple(cells), {})[row.delta] = row.found.detected
    if not lines:
        return None
    columns = (*about, *(Column(f"delta_{delta:g}", f"δ = {delta:g}", "rate") for delta in deltas))
    body = [[*cells, *(rates.get(delta) for delta in deltas)] for cells, rates in lines.items()]
    several = "; several of one attack and budget have a row each" if _DETECTOR in about else ""
    notes = [
        "The lower, the better the attack hides. One detector per attack and budget"
        f"{several}; Wilson {level(confidence)}."
    ]
    return Table("table2", "Detection rate of steganalysis-based detection (dong2020, Table 2)", columns, body, notes)


def flagged_table(rows: Sequence[tuple[str, str, str, Rate]]) -> Table:
    """Return the share called adversarial of images of which nobody knows: (input, features, trained on, rate)."""
    columns = (
        Column("input", "Images"),
        Column("features", "Features", about=True),
        Column("trained_on", "Detector trained on", about=True),
        Column("flagged", "Called adversarial", "rate"),
    )
    return Table("flagged", "Images called adversarial", columns, rows)


def draw_roc(rows: Sequence[DetectionRow]) -> Figure:
    """Draw the ROC of every row, with chance as a dotted line and the areas in the legend."""
    from pixelsem.report.figures import Series, draw_lines, new_figure, show_percent, style

    labels = _distinct_labels(rows)
    with style():
        figure, axes = new_figure(width=5.2, height=4.6)
        axis: Axes = axes[0, 0]
        axis.plot([0, 1], [0, 1], color="#B0B0B0", linewidth=0.8, linestyle=":")
        curves = [
            Series(f"{label}: {row.found.area.value:.3f}", row.found.roc.false_alarms, row.found.roc.detections)
            for label, row in zip(labels, rows, strict=True)
        ]
        draw_lines(axis, curves, markers=False)
        axis.set(xlabel="False alarms", ylabel="Detected", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axis.set_aspect("equal")
        show_percent(axis, "x")
        show_percent(axis, "y")
        axis.legend(loc="lower right", title="Area under the curve", handlelength=3.2)
    return figure


def _distinct_labels(rows: Sequence[DetectionRow]) -> list[str]:
    """Return the rows' labels, with network and features where they would be alike without."""
    labels = [row.label for row in rows]
    return [
        label if labels.count(label) == 1 else f"{label}, {row.network}, {row.features}"
        for label, row in zip(labels, rows, strict=True)
    ]
