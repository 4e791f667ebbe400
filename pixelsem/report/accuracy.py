"""Tables of accuracy on clean images (wang2021, Table I)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pixelsem.metrics.accuracy import Accuracy
from pixelsem.report.tables import Cell, Column, Table, level


@dataclass(frozen=True)
class AccuracyRow:
    """One network: what it is called, how often it is right, and its classes, in the order of the logits."""

    name: str
    found: Accuracy
    class_names: Sequence[str]


def accuracy_table(rows: Sequence[AccuracyRow], confidence: float) -> Table:
    """Return top-1 and top-5 accuracy, one row per network."""
    columns = (
        Column("network", "Network", about=True),
        Column("top1", "Top-1", "rate"),
        Column("top5", "Top-5", "rate"),
    )
    cells: list[list[Cell]] = [[row.name, row.found.top1, row.found.top5] for row in rows]
    notes = [f"Share of the images (count/images), Wilson {level(confidence)}, fp32."]
    return Table("accuracy", "Accuracy on clean images (wang2021, Table I)", columns, cells, notes)


def classes_table(rows: Sequence[AccuracyRow]) -> Table:
    """Return top-1 accuracy by class: one row per class with images, one column per network."""
    several = len(rows) > 1
    columns = [
        Column(f"accuracy_{number}" if several else "accuracy", row.name if several else "Accuracy", "rate")
        for number, row in enumerate(rows, 1)
    ]
    shares = [dict(zip(row.class_names, row.found.per_class, strict=True)) for row in rows]
    names = dict.fromkeys(name for own in shares for name, share in own.items() if share is not None)
    cells: list[list[Cell]] = [[name, *(own.get(name) for own in shares)] for name in names]
    return Table("classes", "Accuracy by class", (Column("class", "Class", about=True), *columns), cells)
